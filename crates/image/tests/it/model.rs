//! Images against a model, on the in-memory store with and without what is optional.
//!
//! `FERRY_SEED` adds a seed, `FERRY_STEPS` sets how many operations each run makes.

use ferry_core::Capabilities;
use ferry_core::testing::{MemStore, test_env};
use ferry_image::testing::model;
use futures_executor::block_on;

/// Seeds that are always run; those that found something stay.
const SEEDS: [u64; 5] = [1, 2, 3, 4, 100];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

fn run(capabilities: Capabilities) {
    let steps = number("FERRY_STEPS").unwrap_or(1700);
    for seed in SEEDS.into_iter().chain(number("FERRY_SEED")) {
        let store = MemStore::with_capabilities(&test_env(seed), capabilities);
        block_on(model::run(store, seed, steps));
    }
}

#[test]
fn images_hold_what_was_written_where_ranges_are_shared() {
    run(Capabilities { share: true, copy: None, list_snaps: true, list_watchers: true });
}

#[test]
fn images_hold_what_was_written_where_bytes_are_copied() {
    run(Capabilities { share: false, copy: None, list_snaps: true, list_watchers: true });
}

#[test]
fn images_hold_what_was_written_on_a_store_that_can_do_the_least() {
    run(Capabilities { share: false, copy: None, list_snaps: false, list_watchers: false });
}
