//! Sharing ranges between objects, where a store can.

use super::{BLOCK, Place, context, done, filled, text};
use crate::error::{Errno, ErrorKind};
use crate::ident::SnapId;
use crate::store::{Effect, WriteOp};

/// An op that shares `[offset, +length)` of `source` at `target`.
fn share(place: &Place, source: &str, at: SnapId, offset: u64, length: u64, target: u64) -> WriteOp {
    let source = place.id(source);
    WriteOp::new().effect(Effect::ShareRange { source, at, offset, length, target_offset: target })
}

/// Whether the store can; the cases have nothing to say about one that cannot but `a_store_without_sharing_says_so`.
fn can(place: &Place) -> bool {
    place.store.capabilities().share
}

pub(super) fn a_store_without_sharing_says_so(place: &Place) {
    place.put("source", "bytes", &[]);
    let op = share(place, "source", SnapId::HEAD, 0, BLOCK, 0);
    if can(place) {
        place.write("o", op);
        assert_eq!(place.bytes("o"), b"bytes");
    } else {
        place.refuses("o", op, ErrorKind::Unsupported, Errno::EOPNOTSUPP);
        assert_eq!(place.stat("o"), None);
    }
}

pub(super) fn shared_ranges_read_the_same_and_part_on_write(place: &Place) {
    if !can(place) {
        return a_store_without_sharing_says_so(place);
    }
    place.write("source", WriteOp::new().write(0, filled(1, 2 * BLOCK)).write(3 * BLOCK, filled(3, BLOCK)));
    place.write("o", WriteOp::new().write(0, filled(9, 6 * BLOCK)).omap_set("k", "v"));
    place.write("o", share(place, "source", SnapId::HEAD, BLOCK, 3 * BLOCK, 2 * BLOCK));
    let expected = |after: u8| {
        let blocks = [9, 9, after, 0, 3, 9].map(|value| vec![value; 4096]);
        blocks.concat()
    };
    assert_eq!(place.bytes("o"), expected(1));
    assert_eq!(place.extents("o", 3 * BLOCK, BLOCK), [], "a hole is shared as a hole");
    assert_eq!(place.omap("o"), [(text("k"), text("v"))]);
    place.write("source", WriteOp::new().write(0, filled(7, 4 * BLOCK)));
    assert_eq!(place.bytes("o"), expected(1), "the source's writes do not show");
    place.write("o", WriteOp::new().write(2 * BLOCK, filled(5, BLOCK)));
    assert_eq!(place.bytes("o"), expected(5));
    assert_eq!(place.bytes("source"), vec![7; 4 * 4096], "nor the target's");
    place.write("source", WriteOp::new().effect(Effect::Remove));
    assert_eq!(place.bytes("o"), expected(5));
}

pub(super) fn what_lies_behind_a_shared_end_stays(place: &Place) {
    if !can(place) {
        return a_store_without_sharing_says_so(place);
    }
    place.write("source", WriteOp::new().write(0, filled(1, BLOCK + 1000)));
    let whole = [vec![9; 4096], vec![1; 1000], vec![9; 3000]].concat();
    place.write("o", WriteOp::new().write(0, filled(9, BLOCK + 4000)));
    place.write("o", share(place, "source", SnapId::HEAD, BLOCK, 1000, BLOCK));
    assert_eq!(place.bytes("o"), whole, "the source ends inside a block");
    // Made in the same op, and with a range that reaches past the source's end.
    let made = WriteOp::new().write(0, filled(9, 2 * BLOCK));
    let Some(share) = share(place, "source", SnapId::HEAD, BLOCK, 1500, 0).effects.pop() else {
        panic!("a share has an effect");
    };
    place.write("p", made.effect(share));
    assert_eq!(place.bytes("p"), [vec![1; 1000], vec![0; 500], vec![9; 6692]].concat());
}

pub(super) fn a_share_nobody_has_looked_at_shows_the_source_as_it_was(place: &Place) {
    if !can(place) {
        return a_store_without_sharing_says_so(place);
    }
    place.put("source", "first", &[]);
    let snap = place.snap();
    place.put("source", "second", &[snap]);
    for (target, at) in [("o.head", SnapId::HEAD), ("o.snap", snap)] {
        place.write(target, share(place, "source", at, 0, BLOCK, 0));
    }
    place.write("o.chain", share(place, "o.head", SnapId::HEAD, 0, BLOCK, 0));
    place.put("source", "third", &[snap]);
    place.put("o.head", "own", &[]);
    place.write("source", WriteOp::new().effect(Effect::Remove).under(context(&[snap])));
    done(place.store.release_snap(place.pool, snap).wait());
    assert_eq!(place.bytes("o.chain"), b"second");
    assert_eq!(place.bytes("o.head"), b"own");
    assert_eq!(place.bytes("o.snap"), b"first");
}

pub(super) fn shared_ranges_at_a_snapshot(place: &Place) {
    if !can(place) {
        return a_store_without_sharing_says_so(place);
    }
    place.put("source", "old", &[]);
    let a = place.snap();
    place.put("source", "new and longer", &[a]);
    place.put("o", "before", &[]);
    let b = place.snap();
    let op = WriteOp::new().effect(Effect::Truncate(0));
    let Some(Effect::ShareRange { source, .. }) = share(place, "source", a, 0, BLOCK, 0).effects.pop() else {
        panic!("one effect");
    };
    let op = op.effect(Effect::ShareRange { source, at: a, offset: 0, length: BLOCK, target_offset: 0 });
    place.write("o", op.under(context(&[a, b])));
    assert_eq!(place.bytes("o"), b"old");
    assert_eq!(place.bytes_at("o", b).as_deref(), Some(&b"before"[..]), "the target's history is kept");
    place.write("source", WriteOp::new().effect(Effect::Remove).under(context(&[a, b])));
    place.store.release_snap(place.pool, a).wait().expect("a snapshot is released");
    assert_eq!(place.bytes("o"), b"old");
    place.refuses("o", share(place, "source", SnapId::HEAD, 0, BLOCK, 0), ErrorKind::NotFound, Errno::ENOENT);
}

pub(super) fn sharing_past_the_source_leaves_holes(place: &Place) {
    if !can(place) {
        return a_store_without_sharing_says_so(place);
    }
    place.write("source", WriteOp::new().write(0, filled(1, BLOCK + 10)));
    place.write("o", WriteOp::new().write(0, filled(9, 4 * BLOCK)));
    place.write("o", share(place, "source", SnapId::HEAD, 0, 3 * BLOCK, 0));
    let mut expected = vec![1; 4096 + 10];
    expected.resize(3 * 4096, 0);
    expected.resize(4 * 4096, 9);
    assert_eq!(place.bytes("o"), expected);
    place.write("p", share(place, "source", SnapId::HEAD, 0, 3 * BLOCK, BLOCK));
    assert_eq!(place.stat("p").map(|s| s.1), Some(2 * BLOCK + 10), "it grows to hold the data copied");
    let tail = share(place, "source", SnapId::HEAD, BLOCK, 10, 0);
    place.write("q", tail);
    assert_eq!(place.bytes("q"), [1; 10], "a length may end with the source");
}

pub(super) fn sharing_refuses_what_it_must(place: &Place) {
    if !can(place) {
        return a_store_without_sharing_says_so(place);
    }
    place.write("source", WriteOp::new().write(0, filled(1, 4 * BLOCK)));
    let wrong =
        [(1, BLOCK, 0), (0, BLOCK, 1), (0, BLOCK + 1, 0), (0, crate::limits::OBJECT_SIZE_MAX + BLOCK, 0)];
    for (offset, length, target) in wrong {
        let op = share(place, "source", SnapId::HEAD, offset, length, target);
        place.refuses("o", op, ErrorKind::Invalid, Errno::EINVAL);
    }
    place.refuses("o", share(place, "nope", SnapId::HEAD, 0, BLOCK, 0), ErrorKind::NotFound, Errno::ENOENT);
    let late = WriteOp::new().write(0, text("x")).effect(Effect::ShareRange {
        source: place.id("nope"),
        at: SnapId::HEAD,
        offset: 0,
        length: BLOCK,
        target_offset: 0,
    });
    place.refuses("o", late, ErrorKind::NotFound, Errno::ENOENT);
    assert_eq!(place.stat("o"), None);
}
