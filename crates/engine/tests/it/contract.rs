//! The engine keeps the contract of a `Store`, on a simulated disk and on files.

use std::sync::Arc;

use ferry_core::testing::contract::store as contract;
use ferry_core::testing::test_env;
use ferry_core::{Namespace, Store};
use ferry_engine::disk::FileDisk;
use ferry_engine::disk::sim::SimDisk;
use ferry_engine::{Engine, Options};

fn on_sim(seed: u64, segment_blocks: u32) -> Arc<Engine> {
    let options = Options { segment_blocks, ..Options::default() };
    Engine::create(Arc::new(SimDisk::new(seed)), test_env(seed), options).unwrap()
}

#[test]
fn on_a_simulated_disk_it_keeps_the_contract() {
    contract::run_all(|| on_sim(1, 16384));
}

#[test]
fn on_files_it_keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    let count = std::cell::Cell::new(0);
    contract::run_all(|| {
        count.set(count.get() + 1);
        let disk = FileDisk::create(&directory.path().join(count.get().to_string())).unwrap();
        Engine::create(Arc::new(disk), test_env(1), Options { segment_blocks: 4096, ..Options::default() })
            .unwrap()
    });
}

#[test]
fn random_ops_match_the_store_in_memory() {
    for seed in 0..40 {
        let store: Arc<dyn Store> = on_sim(seed, if seed % 2 == 0 { 64 } else { 4096 });
        let pool = store.create_pool("p").wait().unwrap();
        let place = contract::Place { store, pool, namespace: Namespace::new("n") };
        contract::differential(&place, seed, 400);
    }
}
