//! The contract, and what only this store shows.

use super::*;
use crate::testing::contract::store as contract;
use crate::testing::test_env;

#[test]
fn an_op_that_fails_halfway_leaves_nothing_behind() {
    let store = MemStore::new(&test_env(1));
    let pool = store.create_pool("p").wait().unwrap();
    let object = ObjectId::new(pool, &Namespace::default(), "o");
    store.write(&object, WriteOp::new().write(0, &b"old"[..])).wait().unwrap();
    let missing = ObjectId::new(pool, &Namespace::default(), "missing");
    let share =
        Effect::ShareRange { source: missing, at: SnapId::HEAD, offset: 0, length: 4096, target_offset: 0 };
    let error = store.write(&object, WriteOp::new().write(0, &b"new"[..]).effect(share)).wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let reply = store.read(&object, SnapId::HEAD, ReadOp::data(0, 10)).wait().unwrap();
    assert_eq!(reply.data.to_vec(0, reply.size), b"old");
}

#[test]
fn it_keeps_the_contract() {
    contract::run_all(|| MemStore::new(&test_env(1)));
}

#[test]
fn it_keeps_the_contract_without_the_optional_parts() {
    let nothing = Capabilities { share: false, copy: None, list_snaps: false, list_watchers: false };
    contract::run_all(|| MemStore::with_capabilities(&test_env(1), nothing));
}

#[test]
fn the_suite_runs_in_one_pool_of_a_shared_store() {
    let store: Arc<dyn Store> = MemStore::new(&test_env(1));
    let pool = store.create_pool("p").wait().unwrap();
    contract::run_in(&store, pool, "test.");
}

#[test]
fn two_of_it_do_not_differ() {
    for seed in 0..20 {
        let store = MemStore::new(&test_env(seed));
        let pool = store.create_pool("p").wait().unwrap();
        // Other numbers than the model's, as in a store that has been used before.
        for _ in 0..seed {
            store.allocate_snap(pool).wait().unwrap();
        }
        let place = contract::Place { store, pool, namespace: Namespace::new("n") };
        contract::differential(&place, seed, 400);
    }
}

#[test]
fn another_client_sees_the_same_objects_under_its_own_name() {
    let one = MemStore::new(&test_env(1));
    let two = one.another_client();
    assert_ne!(one.client(), two.client());
    assert_eq!(one.identity(), two.identity());
    let pool = one.create_pool("p").wait().unwrap();
    let object = ObjectId::new(pool, &Namespace::default(), "o");
    let request = LockRequest {
        name: "l".into(),
        kind: crate::lock::LockKind::Exclusive,
        cookie: "c".into(),
        tag: String::new(),
        description: String::new(),
        renew: false,
    };
    one.lock(&object, request.clone()).wait().unwrap();
    assert_eq!(two.lock(&object, request).wait().unwrap_err().kind(), ErrorKind::Busy);
    let watch = one.watch(&object).wait().unwrap();
    let reply = two.notify(&object, Bytes::from_static(b"hi"), Duration::ZERO);
    assert!(
        matches!(watch.try_next(), Some(crate::watch::WatchEvent::Notify(n)) if n.notifier == two.client())
    );
    assert_eq!(reply.wait().unwrap().answers[0].0, one.client());
}
