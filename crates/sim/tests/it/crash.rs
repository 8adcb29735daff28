//! Crashes of the engine: fixed seeds, and fresh ones each run.

use ferry_sim::crash::{Outcome, Plan, run};
use ferry_sim::workload::Moment;

const PLAN: Plan = Plan { steps: 120, images: 25 };

#[test]
fn every_crash_leaves_a_prefix_that_holds_what_was_flushed() {
    let mut outcome = Outcome::default();
    for seed in 0..500 {
        run(seed, PLAN, &mut outcome).unwrap();
    }
    println!("{outcome:?}");
    assert!(outcome.images >= 10_000, "{outcome:?}");
    let all = [
        Moment::Write,
        Moment::Share,
        Moment::SnapDelete,
        Moment::Flush,
        Moment::Checkpoint,
        Moment::Clean,
        Moment::SegmentRoll,
        Moment::Freed,
        Moment::Recovery,
    ];
    for moment in all {
        assert!(outcome.moments.get(&moment).is_some_and(|n| *n > 0), "no crash in {moment:?}");
    }
    assert!(outcome.replayed > 0 && outcome.dropped > 0, "{outcome:?}");
}

/// Long enough for a store to fill up, so that records free segments and those are used again before a checkpoint.
#[test]
fn crashes_of_stores_that_run_full_leave_a_prefix_that_holds_what_was_flushed() {
    let mut outcome = Outcome::default();
    for seed in 0..40 {
        run(seed, Plan { steps: 600, images: 60 }, &mut outcome).unwrap();
    }
    println!("{outcome:?}");
    assert!(outcome.reused >= 50 && outcome.moments[&Moment::Freed] >= 200, "{outcome:?}");
}

#[test]
fn what_went_wrong_once_goes_well() {
    // Files that the segment table does not know, left by an opening that was cut off, were counted as its segments.
    run(9_004_467, PLAN, &mut Outcome::default()).unwrap();
}

#[test]
fn fresh_seeds_crash_as_well_as_fixed_ones() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    let base = u64::try_from(now & 0xFFFF_FFFF_FFFF).unwrap();
    let mut outcome = Outcome::default();
    for seed in base..base + 40 {
        run(seed, PLAN, &mut outcome).unwrap();
    }
}
