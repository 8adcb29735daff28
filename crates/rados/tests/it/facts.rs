//! What only a real cluster shows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ferry_core::lock::{LockKind, LockRequest, UnlockRequest};
use ferry_core::store::{OmapRead, PoolFlags};
use ferry_core::watch::{Notification, WatchEvent, WatchReceiver};
use ferry_core::{
    Effect, Errno, ErrorKind, Namespace, ObjectId, PoolId, ReadOp, Result, SnapId, Store, WriteOp,
};
use ferry_rados::{Options, RadosStore};

use crate::Ground;

fn failure<T: std::fmt::Debug>(result: Result<T>) -> (ErrorKind, Errno) {
    let e = result.unwrap_err();
    (e.kind(), e.errno())
}

fn object(ground: &Ground, name: &str) -> ObjectId {
    ObjectId::new(ground.pool, &Namespace::default(), &own(name))
}

/// A name no earlier run on this cluster has used.
fn own(name: &str) -> String {
    format!("{name}.{}", std::process::id())
}

fn made(ground: &Ground, name: &str) -> ObjectId {
    let id = object(ground, name);
    ground.store.write(&id, WriteOp::new().effect(Effect::Create)).wait().unwrap();
    id
}

fn exclusive(cookie: &str) -> LockRequest {
    LockRequest {
        name: "rbd_lock".into(),
        kind: LockKind::Exclusive,
        cookie: cookie.into(),
        tag: "internal".into(),
        description: String::new(),
        renew: false,
    }
}

fn next(watch: &WatchReceiver) -> Notification {
    match futures_executor::block_on(watch.next()) {
        WatchEvent::Notify(n) => n,
        WatchEvent::Lost => panic!("the watch was lost"),
    }
}

pub(crate) fn an_unknown_pool_is_not_found_and_flags_are_refused(ground: &Ground) {
    let nowhere = ObjectId::new(PoolId(9_999_999), &Namespace::default(), "o");
    let missing = (ErrorKind::NotFound, Errno::ENOENT);
    let store = &ground.store;
    assert_eq!(failure(store.write(&nowhere, WriteOp::new().effect(Effect::Create)).wait()), missing);
    assert_eq!(failure(store.read(&nowhere, SnapId::HEAD, ReadOp::stat()).wait()), missing);
    assert_eq!(failure(store.allocate_snap(nowhere.pool).wait()), missing);
    assert_eq!(failure(store.pool_stats(nowhere.pool).wait()), missing);
    assert_eq!(failure(store.remove_pool(nowhere.pool).wait()), missing);
    assert_eq!(failure(store.set_pool_flags(nowhere.pool, PoolFlags::default()).wait()), missing);
    let flags = store.set_pool_flags(ground.pool, PoolFlags { read_only: true }).wait();
    assert_eq!(failure(flags), (ErrorKind::Unsupported, Errno::EOPNOTSUPP));
}

pub(crate) fn an_object_with_holes_is_told_and_read_without_them(ground: &Ground) {
    const MIB: u64 = 1 << 20;
    let id = object(ground, "holes");
    // A read of everything would show blocks.
    let op = WriteOp::new().write(MIB + 50, vec![7; 100]).write(3 * MIB, vec![8; 4096]);
    ground.store.write(&id, op.effect(Effect::Truncate(4 * MIB))).wait().unwrap();
    let data = [(MIB + 50, 100), (3 * MIB, 4096)];
    assert_eq!(ground.store.find_extents(&id, SnapId::HEAD, 0, 4 * MIB).wait().unwrap(), data);
    let mut sparse = 0;
    for _ in 0..20 {
        let reply = ground.store.read(&id, SnapId::HEAD, ReadOp::data(0, 4 * MIB)).wait().unwrap();
        assert_eq!(reply.size, 4 * MIB);
        let found = reply.data.extents.iter().map(|(at, bytes)| (*at, bytes.len() as u64));
        sparse += usize::from(found.eq(data));
        let bytes = reply.data.to_vec(0, 4 * MIB);
        assert!(bytes[1 << 20..][50..150] == [7; 100] && bytes[3 << 20..][..4096] == [8; 4096]);
        assert_eq!(bytes.iter().filter(|b| **b != 0).count(), 100 + 4096);
    }
    // Objects without holes before it let up to seven be read whole.
    assert!(sparse >= 13, "{sparse} of 20 were read without the holes");
}

pub(crate) fn the_rados_command_shows_our_locks_and_watches(ground: &Ground) {
    let id = made(ground, "shown");
    let watch = ground.store.watch(&id).wait().unwrap();
    let cookie = format!("auto {}", watch.handle.0);
    ground.store.lock(&id, exclusive(&cookie)).wait().unwrap();
    let watchers =
        ground.cluster.command("rados", &["-p", &crate::pool_name(), "listwatchers", &own("shown")]);
    let expected = format!("{} cookie={}", ground.store.client(), watch.handle.0);
    assert!(watchers.contains(&expected), "{watchers}");
    assert!(watchers.contains(&ground.store.address()), "{watchers} at {}", ground.store.address());
    let lock = ground
        .cluster
        .command("rados", &["-p", &crate::pool_name(), "lock", "info", &own("shown"), "rbd_lock"]);
    assert!(lock.contains(&ground.store.client().to_string()), "{lock}");
    assert!(lock.contains(&cookie), "{lock}");
    assert!(lock.contains("exclusive") && lock.contains("internal"), "{lock}");
    assert!(lock.contains(&ground.store.address()), "{lock}");
    drop(watch);
    let gone = Instant::now();
    while ground
        .cluster
        .command("rados", &["-p", &crate::pool_name(), "listwatchers", &own("shown")])
        .contains(&expected)
    {
        assert!(gone.elapsed() < Duration::from_secs(10), "a dropped watch stays");
    }
    assert_eq!(ground.store.list_watchers(&id).wait().unwrap(), []);
}

pub(crate) fn two_clients_exclude_and_notify_each_other(ground: &Ground) {
    let (one, two) = (&ground.store, ground.cluster.connect());
    assert_ne!(one.client(), two.client());
    assert_eq!(one.identity(), two.identity());
    let id = made(ground, "both");
    one.lock(&id, exclusive("a")).wait().unwrap();
    assert_eq!(failure(two.lock(&id, exclusive("a")).wait()), (ErrorKind::Busy, Errno::EBUSY));
    let hold = UnlockRequest { name: "rbd_lock".into(), cookie: "a".into() };
    assert_eq!(failure(two.unlock(&id, hold.clone()).wait()), (ErrorKind::NotFound, Errno::ENOENT));
    two.break_lock(&id, hold, one.client()).wait().unwrap();
    two.lock(&id, exclusive("b")).wait().unwrap();
    assert_eq!(one.lock_info(&id, "rbd_lock").wait().unwrap().lockers[0].client, two.client());
    let (a, b) = (one.watch(&id).wait().unwrap(), two.watch(&id).wait().unwrap());
    let reply = two.notify(&id, Bytes::from_static(b"ping"), Duration::from_secs(10));
    for (watch, answer) in [(&a, &b"one"[..]), (&b, b"two")] {
        let notification = next(watch);
        assert_eq!((notification.notifier, &notification.payload[..]), (two.client(), &b"ping"[..]));
        notification.answer(Bytes::from_static(answer));
    }
    let answers: BTreeMap<_, _> =
        reply.wait().unwrap().answers.into_iter().map(|(c, h, p)| ((c, h), p)).collect();
    assert_eq!(answers[&(one.client(), a.handle)], &b"one"[..]);
    assert_eq!(answers[&(two.client(), b.handle)], &b"two"[..]);
    drop((a, b, two));
}

pub(crate) fn a_watcher_that_does_not_answer_is_named(ground: &Ground) {
    let id = made(ground, "slow");
    let (slow, quick) = (ground.store.watch(&id).wait().unwrap(), ground.store.watch(&id).wait().unwrap());
    let reply = ground.store.notify(&id, Bytes::from_static(b"x"), Duration::from_secs(1));
    let kept = next(&slow);
    next(&quick).answer(Bytes::from_static(b"here"));
    let reply = reply.wait().unwrap();
    let me = ground.store.client();
    assert_eq!(reply.answers, [(me, quick.handle, Bytes::from_static(b"here"))]);
    assert_eq!(reply.timed_out, [(me, slow.handle)]);
    kept.answer(Bytes::from_static(b"too late"));
}

pub(crate) fn requests_dropped_under_way_harm_nobody(ground: &Ground) {
    for round in 0..8 {
        let store = ground.cluster.connect();
        let id = object(ground, &format!("dropped.{round}"));
        let write = || WriteOp::new().write(0, vec![1; 100_000]).omap_set("k", "v");
        store.write(&id, write()).wait().unwrap();
        let watch = store.watch(&id).wait().unwrap();
        drop(store.write(&id, write()));
        drop(store.read(&id, SnapId::HEAD, ReadOp::data(0, 1 << 20)));
        drop(store.read(&id, SnapId::HEAD, ReadOp::omap_page("", "")));
        drop(store.watch(&id));
        drop(store.notify(&id, Bytes::from_static(b"x"), Duration::from_millis(200)));
        drop(store.allocate_snap(ground.pool));
        if round % 2 == 0 {
            drop(watch);
            drop(store);
        } else {
            drop(store);
            drop(watch);
        }
    }
    let id = made(ground, "after");
    ground.store.write(&id, WriteOp::new().write(0, &b"fine"[..])).wait().unwrap();
    // librados aborts a process that ends under a connection.
    assert_eq!(RadosStore::connections(), 1, "what was dropped leaves connections behind");
}

pub(crate) fn a_watch_that_outlives_its_store_ends_the_connection(ground: &Ground) {
    let store = ground.cluster.connect();
    let id = object(ground, "outlived");
    store.write(&id, WriteOp::new().write(0, &b"x"[..])).wait().unwrap();
    let (watch, answered) = (store.watch(&id).wait().unwrap(), store.watch(&id).wait().unwrap());
    let reply = ground.store.notify(&id, Bytes::from_static(b"x"), Duration::from_secs(5));
    let (kept, late) = (next(&watch), next(&answered));
    drop((watch, store, answered));
    kept.answer(Bytes::new());
    drop(late);
    reply.wait().unwrap();
    assert_eq!(RadosStore::connections(), 1, "the last owner does not end the connection");
}

pub(crate) fn paging_behind_a_key_with_a_nul(ground: &Ground) {
    let id = object(ground, "nul");
    let key = |n: u8| Bytes::copy_from_slice(&[b'p', 0, n]);
    let entries: Vec<(Bytes, Bytes)> = (0..100).map(|n| (key(n), Bytes::from_static(b"v"))).collect();
    let op = WriteOp::new().effect(Effect::OmapSet(entries.clone())).omap_set("q", "end");
    ground.store.write(&id, op).wait().unwrap();
    let mut seen = Vec::new();
    loop {
        let after = seen.last().map_or_else(Bytes::new, |(k, _): &(Bytes, Bytes)| k.clone());
        let page = OmapRead::Page { after, prefix: Bytes::from_static(b"p\0"), max: 7 };
        let ask = ReadOp { omap: Some(page), ..ReadOp::default() };
        let omap = ground.store.read(&id, SnapId::HEAD, ask).wait().unwrap().omap;
        seen.extend(omap.entries);
        if !omap.more {
            break;
        }
    }
    assert_eq!(seen, entries);
}

pub(crate) fn a_blocklisted_client_is_fenced(ground: &Ground) {
    let victim = ground.cluster.connect();
    let id = made(ground, "fenced");
    let watch = victim.watch(&id).wait().unwrap();
    ground.cluster.command("ceph", &["osd", "blocklist", "add", &victim.address()]);
    let write = || victim.write(&id, WriteOp::new().write(0, &b"never"[..])).wait();
    let started = Instant::now();
    let refused = loop {
        match write() {
            Err(e) => break e,
            Ok(_) => assert!(started.elapsed() < Duration::from_secs(20), "a fenced client still writes"),
        }
    };
    assert_eq!(
        (refused.kind(), refused.errno()),
        (ErrorKind::Fenced, Errno::ESHUTDOWN),
        "{}",
        refused.chain()
    );
    assert!(matches!(futures_executor::block_on(watch.next()), WatchEvent::Lost));
    drop((watch, victim));
    let wrong = Options {
        config_file: Some(ground.cluster.config_file().to_owned()),
        user: Some("nobody".into()),
        ..Options::default()
    };
    assert!(RadosStore::connect(&wrong).is_err(), "a user without a key");
}
