//! The store on a real cluster: a single-node Ceph made for this run (`tests/ceph/single-node.sh`).
//!
//! Runs where `FERRY_TEST_CEPH=1` says so; `FERRY_TEST_CEPH_CONF` names a running cluster's configuration instead.

// The room's bans are for what it ships; a test of a real cluster waits and measures.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::print_stdout)]

mod cluster;
mod facts;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use ferry_core::testing::contract::store as contract;
use ferry_core::{Namespace, PoolId, Store};
use ferry_rados::RadosStore;

use self::cluster::Cluster;

/// A part of the test and its name.
type Part = (&'static str, fn(&Ground));

/// What the parts work with. The store goes before its cluster: its end waits for answers.
struct Ground {
    store: Arc<RadosStore>,
    pool: PoolId,
    cluster: Cluster,
}

impl Ground {
    fn place(&self, namespace: &str) -> contract::Place {
        // A cluster that was running before may have seen an earlier run.
        let namespace = Namespace::new(&format!("{}.{namespace}", std::process::id()));
        let store = Arc::clone(&self.store);
        contract::Place { store, pool: self.pool, namespace }
    }
}

/// The pool of this run.
pub(crate) fn pool_name() -> String {
    format!("contract-{}", std::process::id())
}

fn the_contract(ground: &Ground) {
    let store: Arc<dyn Store> = Arc::clone(&ground.store) as Arc<dyn Store>;
    contract::run_in(&store, ground.pool, &format!("{}.", std::process::id()));
}

fn the_contract_of_pools(ground: &Ground) {
    // Flags are refused; statistics come seconds late.
    let left_out =
        ["a_read_only_pool_refuses_every_write", "pool_stats_count_objects", "an_unknown_pool_is_not_found"];
    for case in contract::POOL_CASES.iter().filter(|c| !left_out.contains(&c.name)) {
        (case.run)(&ground.place(case.name));
        for pool in ground.store.pools().wait().unwrap() {
            if ["pool-a", "pool-b", "other"].contains(&pool.name.as_str()) {
                ground.store.remove_pool(pool.id).wait().unwrap();
            }
        }
    }
}

fn random_operations(ground: &Ground) {
    for seed in 1..4 {
        contract::differential(&ground.place(&format!("differential.{seed}")), seed, 150);
    }
}

#[test]
fn a_real_cluster_keeps_the_contract() {
    let started = Instant::now();
    let Some(cluster) = Cluster::start("a_real_cluster_keeps_the_contract") else { return };
    println!("cluster ready after {:.1} s", started.elapsed().as_secs_f64());
    let store = cluster.connect();
    println!("librados {}, {}", store.library_version(), store.describe());
    // Of its own: others may be using this cluster.
    let pool = store.create_pool(&pool_name()).wait().unwrap();
    let ground = Ground { store, pool, cluster };
    let parts: &[Part] = &[
        ("the contract", the_contract),
        ("the contract of pools", the_contract_of_pools),
        ("random operations", random_operations),
        ("unknown pools", facts::an_unknown_pool_is_not_found_and_flags_are_refused),
        ("holes", facts::an_object_with_holes_is_told_and_read_without_them),
        ("locks as rados shows them", facts::the_rados_command_shows_our_locks_and_watches),
        ("two clients", facts::two_clients_exclude_and_notify_each_other),
        ("slow watchers", facts::a_watcher_that_does_not_answer_is_named),
        ("dropped requests", facts::requests_dropped_under_way_harm_nobody),
        ("watches that outlive their store", facts::a_watch_that_outlives_its_store_ends_the_connection),
        ("omap keys with NULs", facts::paging_behind_a_key_with_a_nul),
        ("fencing", facts::a_blocklisted_client_is_fenced),
    ];
    let mut failed = Vec::new();
    for (name, part) in parts {
        let started = Instant::now();
        let went = catch_unwind(AssertUnwindSafe(|| part(&ground)));
        let verdict = if went.is_ok() { "ok" } else { "FAILED" };
        println!("{verdict:>6} {:6.1} s  {name}", started.elapsed().as_secs_f64());
        if went.is_err() {
            failed.push(*name);
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
    let Ground { store, cluster, pool } = ground;
    store.remove_pool(pool).wait().unwrap();
    drop(store);
    assert_eq!(RadosStore::connections(), 0, "connections are left at the end of the process");
    drop(cluster);
}
