//! Pools.

use super::{BLOCK, Place, done, fails, filled, text};
use crate::error::{Errno, ErrorKind};
use crate::ident::{Namespace, PoolId, SnapId};
use crate::lock::{LockKind, LockRequest, UnlockRequest};
use crate::store::{Effect, PoolFlags, ReadOp, WriteOp};

fn names(place: &Place) -> Vec<(PoolId, String)> {
    done(place.store.pools().wait()).into_iter().map(|p| (p.id, p.name)).collect()
}

pub(super) fn pools_are_made_listed_and_removed(place: &Place) {
    let a = done(place.store.create_pool("pool-a").wait());
    let b = done(place.store.create_pool("pool-b").wait());
    assert!(a.0 > 0 && a != b && a != place.pool);
    let listed = names(place);
    assert!(listed.is_sorted(), "by id: {listed:?}");
    assert!(listed.contains(&(a, "pool-a".to_owned())) && listed.contains(&(b, "pool-b".to_owned())));
    done(place.store.remove_pool(b).wait());
    fails(place.store.remove_pool(b).wait(), ErrorKind::NotFound, Errno::ENOENT);
    assert!(!names(place).iter().any(|(id, _)| *id == b));
    let c = done(place.store.create_pool("pool-b").wait());
    assert_ne!(c, b, "numbers are not used again");
}

pub(super) fn pool_names_are_taken_once(place: &Place) {
    done(place.store.create_pool("pool-a").wait());
    fails(place.store.create_pool("pool-a").wait(), ErrorKind::Exists, Errno::EEXIST);
}

pub(super) fn an_unknown_pool_is_not_found(place: &Place) {
    let gone = Place { pool: PoolId(9_999_999), ..place.clone() };
    let (store, id) = (&gone.store, gone.id("o"));
    gone.refuses("o", WriteOp::new().effect(Effect::Create), ErrorKind::NotFound, Errno::ENOENT);
    fails(store.read(&id, SnapId::HEAD, ReadOp::stat()).wait(), ErrorKind::NotFound, Errno::ENOENT);
    fails(store.allocate_snap(gone.pool).wait(), ErrorKind::NotFound, Errno::ENOENT);
    fails(store.release_snap(gone.pool, SnapId(1)).wait(), ErrorKind::NotFound, Errno::ENOENT);
    fails(store.list_objects(gone.pool, None, None, 10).wait(), ErrorKind::NotFound, Errno::ENOENT);
    fails(store.pool_stats(gone.pool).wait(), ErrorKind::NotFound, Errno::ENOENT);
    fails(store.set_pool_flags(gone.pool, PoolFlags::default()).wait(), ErrorKind::NotFound, Errno::ENOENT);
    fails(store.watch(&id).wait(), ErrorKind::NotFound, Errno::ENOENT);
    fails(store.lock_info(&id, "l").wait(), ErrorKind::NotFound, Errno::ENOENT);
}

pub(super) fn pools_keep_objects_apart(place: &Place) {
    let pool = done(place.store.create_pool("other").wait());
    let other = Place { pool, ..place.clone() };
    place.write("o", WriteOp::new().write(0, text("here")));
    assert_eq!(other.stat("o"), None);
    other.write("o", WriteOp::new().write(0, text("there")));
    assert_eq!(place.bytes("o"), b"here");
    done(place.store.remove_pool(pool).wait());
    assert_eq!(place.bytes("o"), b"here");
    fails(
        place.store.read(&other.id("o"), SnapId::HEAD, ReadOp::stat()).wait(),
        ErrorKind::NotFound,
        Errno::ENOENT,
    );
}

pub(super) fn a_read_only_pool_refuses_every_write(place: &Place) {
    place.write("o", WriteOp::new().write(0, text("data")).omap_set("k", "v"));
    let before = (place.sight("o"), place.version("o"));
    let flags = |read_only| done(place.store.set_pool_flags(place.pool, PoolFlags { read_only }).wait());
    flags(true);
    let shown = done(place.store.pools().wait()).into_iter().find(|p| p.id == place.pool);
    assert!(shown.expect("listed").flags.read_only);
    let (kind, errno) = (ErrorKind::ReadOnly, Errno::EROFS);
    place.refuses("o", WriteOp::new().write(0, text("x")), kind, errno);
    place.refuses("o", WriteOp::new().omap_set("k", "x"), kind, errno);
    place.refuses("o", WriteOp::new().effect(Effect::Remove), kind, errno);
    place.refuses("new", WriteOp::new().effect(Effect::Create), kind, errno);
    let lock = LockRequest {
        name: "l".into(),
        kind: LockKind::Exclusive,
        cookie: "c".into(),
        tag: String::new(),
        description: String::new(),
        renew: false,
    };
    fails(place.store.lock(&place.id("o"), lock).wait(), kind, errno);
    let unlock = UnlockRequest { name: "l".into(), cookie: "c".into() };
    assert!(place.store.unlock(&place.id("o"), unlock).wait().is_err());
    fails(place.store.remove_pool(place.pool).wait(), kind, errno);
    assert_eq!((place.sight("o"), place.version("o")), before);
    assert_eq!(place.stat("new"), None);
    flags(false);
    place.write("o", WriteOp::new().write(0, text("D")));
    assert_eq!(place.bytes("o"), b"Data");
}

pub(super) fn pool_stats_count_objects(place: &Place) {
    let stats = || done(place.store.pool_stats(place.pool).wait());
    assert_eq!(stats().objects, 0);
    place.write("o", WriteOp::new().write(0, filled(1, 16 * BLOCK)));
    let other = Place { namespace: Namespace::new("elsewhere"), ..place.clone() };
    other.write("o", WriteOp::new().effect(Effect::Create));
    assert_eq!(stats().objects, 2);
    assert!(stats().used_bytes >= 16 * BLOCK, "{:?}", stats());
    place.write("o", WriteOp::new().effect(Effect::Remove));
    assert_eq!(stats().objects, 1);
    place.put("p", "one", &[]);
    let a = place.snap();
    place.write("p", WriteOp::new().effect(Effect::Remove).under(super::context(&[a])));
    assert_eq!(stats().objects, 1, "an object of which only a snapshot is left is not counted");
}
