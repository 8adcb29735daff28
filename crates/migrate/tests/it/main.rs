//! Migrations on stores in memory: random cases against a model, deaths at every change, errors of the source, flipped bytes.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod ahead;
mod announced;
mod case;
mod fault;
mod import;
mod inside;
mod maps;
mod nameless;
mod points;
mod power;
mod receipts;
mod rivals;
mod shrunk;
mod steps;

use std::sync::atomic::Ordering;

use case::{Case, Kind, Tally};
use import::From;

/// Cases of each kind that run each time; `FERRY_MIGRATION_CASES` for more.
fn cases(default: u64) -> u64 {
    std::env::var("FERRY_MIGRATION_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// A seed from the environment.
fn seed(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

/// Runs cases; `FERRY_MIGRATION_SEED` for one, `FERRY_MIGRATION_FROM` for others than the first.
fn run(kind: Kind, seeds: std::ops::Range<u64>) -> Tally {
    let from = seed("FERRY_MIGRATION_FROM").unwrap_or(0);
    let seeds = from + seeds.start..from + seeds.end;
    let seeds = seed("FERRY_MIGRATION_SEED").map_or(seeds, |seed| seed..seed + 1);
    let all = Tally::default();
    for seed in seeds.clone() {
        let done = std::panic::catch_unwind(|| futures_executor::block_on(Case::new(seed, kind).run()));
        let Ok(tally) = done else { panic!("{kind:?} seed {seed}") };
        all.add_all(tally);
    }
    println!("{kind:?}, seeds {} to {}: {all}", seeds.start, seeds.end - 1);
    all
}

#[test]
fn images_move_inside_a_store_that_shares() {
    let tally = run(Kind::OneStore, 0..cases(1250));
    // Where blocks are shared, nothing is read to be copied, but for what lies across blocks.
    assert!(tally.share_by_digests() < 0.2, "{tally}");
}

#[test]
fn images_move_inside_a_store_that_copies() {
    let tally = run(Kind::OneStoreCopying, 0..cases(1250));
    assert!(tally.share_by_digests() > 0.1, "{tally}");
}

#[test]
fn images_move_inside_a_store_that_can_do_the_least() {
    run(Kind::OneStoreLeast, 0..cases(1250));
}

#[test]
fn images_move_between_stores() {
    let tally = run(Kind::TwoStores, 0..cases(1250));
    assert!(tally.share_by_digests() > 0.1, "{tally}");
    assert!(tally.live_aborts.load(Ordering::Relaxed) * 40 > cases(1250), "{tally}");
}

#[test]
fn a_death_after_any_change_inside_a_store_is_survived() {
    let tally = run(Kind::DyingOneStore, 0..cases(2500));
    assert!(tally.live_aborts.load(Ordering::Relaxed) > 0, "{tally}");
}

#[test]
fn a_death_after_any_change_between_stores_is_survived() {
    let tally = run(Kind::DyingTwoStores, 0..cases(2500));
    assert!(tally.live_aborts.load(Ordering::Relaxed) > 0, "{tally}");
}

#[test]
fn a_power_cut_inside_a_store_is_survived() {
    let tally = run(Kind::CutOneStore, 0..cases(600));
    assert!(tally.deaths.load(Ordering::Relaxed) > cases(600) * 3, "{tally}");
}

#[test]
fn a_power_cut_of_two_stores_at_once_is_survived() {
    let tally = run(Kind::CutTwoStores, 0..cases(600));
    assert!(tally.deaths.load(Ordering::Relaxed) > cases(600) * 3, "{tally}");
}

#[test]
fn an_abort_beside_clients_gives_way_without_harm() {
    for kind in [Kind::OneStore, Kind::TwoStores] {
        let mut begun = 0;
        for seed in 0..cases(200) {
            match futures_executor::block_on(Case::new(seed, kind).refused_beside_clients()) {
                Ok(()) => begun += 1,
                // Images without exclusive lock are not aborted so.
                Err(e) if e.kind() == ferry_core::ErrorKind::Invalid && e.clause() == "not begun" => {}
                Err(e) => panic!("{kind:?} seed {seed}: {}", e.chain()),
            }
        }
        assert!(begun * 3 > cases(200), "{kind:?}: {begun}");
    }
}

#[test]
fn what_went_wrong_once_goes_well() {
    for (seed, kind) in [
        (1_001_476, Kind::DyingOneStore),
        (4_002_231, Kind::DyingTwoStores),
        (10_017_415, Kind::DyingTwoStores),
        (21_067_368, Kind::DyingOneStore),
        (6839, Kind::CutOneStore),
        (12_007, Kind::CutOneStore),
        (20_504, Kind::CutTwoStores),
        (101_442, Kind::CutOneStore),
    ] {
        let tally = futures_executor::block_on(Case::new(seed, kind).run());
        assert!(tally.deaths.load(Ordering::Relaxed) > 0, "{kind:?} seed {seed}: nobody died");
    }
}

#[test]
fn a_flipped_byte_in_the_copy_path_is_never_committed() {
    let wanted = cases(1000);
    let mut flips = 0;
    for seed in 0.. {
        flips += u64::from(futures_executor::block_on(Case::new(seed, Kind::TwoStores).flip()));
        if flips >= wanted {
            break;
        }
        assert!(seed < wanted * 20, "only {flips} flips");
    }
}

#[test]
fn an_error_of_the_source_is_an_error_and_never_zeros() {
    for seed in 0..cases(200) {
        futures_executor::block_on(Case::new(seed, Kind::TwoStores).unreadable_source());
    }
}

fn run_imports(from: From, kind: Kind, seeds: std::ops::Range<u64>) -> Tally {
    let all = Tally::default();
    let from_seed = seed("FERRY_MIGRATION_FROM").unwrap_or(0);
    let seeds = from_seed + seeds.start..from_seed + seeds.end;
    let seeds = seed("FERRY_MIGRATION_SEED").map_or(seeds, |seed| seed..seed + 1);
    for seed in seeds {
        let import = || futures_executor::block_on(Case::new(seed, kind).import(from));
        let Ok(tally) = std::panic::catch_unwind(import) else { panic!("{from:?} {kind:?} seed {seed}") };
        all.add_all(tally);
    }
    println!("import {from:?} {kind:?}: {all}");
    all
}

#[test]
fn foreign_sources_are_imported() {
    for kind in [Kind::OneStore, Kind::OneStoreLeast] {
        let tally = run_imports(From::Foreign, kind, 0..cases(800));
        assert!(tally.share_by_digests() > 0.2, "{tally}");
    }
}

#[test]
fn a_death_after_any_change_of_an_import_is_survived() {
    run_imports(From::Foreign, Kind::DyingOneStore, 0..cases(2000));
    run_imports(From::Snapshot, Kind::DyingTwoStores, 0..cases(1000));
}

#[test]
fn snapshots_of_images_are_imported_and_stay() {
    for kind in [Kind::OneStore, Kind::OneStoreCopying, Kind::OneStoreLeast, Kind::TwoStores] {
        run_imports(From::Snapshot, kind, 0..cases(400));
    }
}

#[test]
fn a_foreign_source_that_fails_or_changes_is_an_error_and_never_zeros() {
    for seed in 0..cases(200) {
        futures_executor::block_on(Case::new(seed, Kind::OneStore).faulty_foreign());
    }
}

#[test]
fn a_flipped_byte_of_an_import_is_never_committed() {
    let wanted = cases(200);
    let mut flips = 0;
    for seed in 0.. {
        flips += u64::from(futures_executor::block_on(Case::new(seed, Kind::OneStore).flip_import()));
        if flips >= wanted {
            break;
        }
        assert!(seed < wanted * 20, "only {flips} flips");
    }
}

#[test]
fn a_first_write_waits_for_its_own_blocks_and_not_for_an_object() {
    futures_executor::block_on(Box::pin(Case::new(1, Kind::OneStore).written_at_once()));
}

#[test]
fn what_was_copied_is_not_read_again_to_be_verified() {
    let mut by_digests = 0;
    for seed in 0..cases(300) {
        let case = Case::new(seed, Kind::OneStore).verified_by_digests();
        by_digests += u64::from(futures_executor::block_on(case));
    }
    assert!(by_digests * 3 > cases(300), "{by_digests}");
}

#[test]
fn nothing_is_fetched_before_it_is_needed_nor_twice() {
    futures_executor::block_on(Case::new(1, Kind::OneStore).thrifty());
}
