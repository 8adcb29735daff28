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
    ];
    for moment in all {
        assert!(outcome.moments.get(&moment).is_some_and(|n| *n > 0), "no crash in {moment:?}");
    }
    assert!(outcome.replayed > 0 && outcome.dropped > 0, "{outcome:?}");
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
