//! Images on the engine against plain byte vectors.
//!
//! `FERRY_SEED` adds a seed, `FERRY_STEPS` sets how many operations each run makes.

use std::sync::Arc;

use ferry_core::Store;
use ferry_core::testing::test_env;
use ferry_engine::disk::sim::SimDisk;
use ferry_engine::{Engine, Options};
use ferry_image::testing::model;
use futures_executor::block_on;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

/// A store with small segments and almost no cache, so that everything leaves memory and comes back.
fn small_engine(seed: u64) -> Arc<dyn Store> {
    let options = Options { segment_blocks: 2048, capacity_bytes: 0, cache_bytes: 256 << 10 };
    Engine::create(Arc::new(SimDisk::new(seed)), test_env(seed), options).unwrap()
}

#[test]
fn images_on_the_engine_hold_what_was_written() {
    let steps = number("FERRY_STEPS").unwrap_or(2500);
    for seed in (1..=8).chain(number("FERRY_SEED")) {
        block_on(model::run(small_engine(seed), seed, steps));
    }
}
