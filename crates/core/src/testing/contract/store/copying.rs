//! Copying whole objects inside a store, where it can.

use super::{BLOCK, Place, context, done, filled};
use crate::error::{Errno, ErrorKind};
use crate::ident::SnapId;
use crate::store::{Effect, Guard, ReadOp, Stamp, WriteOp};

/// An op that copies `source`.
fn copy(place: &Place, source: &str, at: SnapId) -> WriteOp {
    WriteOp::new().effect(Effect::CopyObject { source: place.id(source), at, length: 0 })
}

fn can(place: &Place) -> bool {
    place.store.capabilities().copy.is_some()
}

pub(super) fn a_store_that_cannot_copy_says_so(place: &Place) {
    if can(place) {
        return;
    }
    place.put("source", "bytes", &[]);
    place.refuses("o", copy(place, "source", SnapId::HEAD), ErrorKind::Unsupported, Errno::EOPNOTSUPP);
    assert_eq!(place.stat("o"), None);
}

pub(super) fn a_copied_object_has_the_bytes_and_the_size_of_its_source(place: &Place) {
    if !can(place) {
        return a_store_that_cannot_copy_says_so(place);
    }
    // Holes in it, and a size inside a block.
    let source = WriteOp::new().write(0, filled(1, 2 * BLOCK)).write(5 * BLOCK, filled(3, BLOCK / 2));
    place.write("source", source);
    let bytes = place.bytes("source");
    place.write("new", copy(place, "source", SnapId::HEAD).guard(Guard::CreateExclusive));
    assert_eq!(place.bytes("new"), bytes);
    // Over one that is longer, with a step before it as a migration has them.
    place.write("old", WriteOp::new().write(0, filled(9, 9 * BLOCK)));
    let op = WriteOp::new().effect(Effect::Create).effect(Effect::Truncate(0));
    let op = WriteOp { effects: [op.effects, copy(place, "source", SnapId::HEAD).effects].concat(), ..op };
    place.write("old", op);
    assert_eq!(place.bytes("old"), bytes);
    // Each has its own from then on.
    place.write("source", WriteOp::new().write(0, filled(7, BLOCK)));
    place.write("old", WriteOp::new().write(BLOCK, filled(8, BLOCK)));
    assert_eq!(place.bytes("new"), bytes);
    place.write("source", WriteOp::new().effect(Effect::Remove));
    assert_eq!(place.bytes("new"), bytes);
}

pub(super) fn what_follows_a_copy_in_its_op_lies_over_it(place: &Place) {
    if !can(place) {
        return a_store_that_cannot_copy_says_so(place);
    }
    place.write("source", WriteOp::new().write(0, filled(1, 2 * BLOCK)));
    let op = copy(place, "source", SnapId::HEAD).write(BLOCK, filled(2, 2 * BLOCK));
    let op = op.effect(Effect::XattrSet("mark".into(), "a".into()));
    let version = place.write("o", op.stamped(Some(Stamp::of(1))));
    assert_eq!(place.bytes("o"), [vec![1; 4096], vec![2; 8192]].concat());
    assert_eq!(place.xattrs("o").get("mark").map(|m| &m[..]), Some(&b"a"[..]));
    // The next op leaves its stamp, if nobody came in between.
    let (stamp, before) = (Some(Stamp::of(2)), place.sight("o"));
    let last = WriteOp::new().guard(Guard::AssertVersion(version)).effect(Effect::Create).stamped(stamp);
    place.write("o", last.clone());
    assert_eq!(place.sight("o"), before);
    let read = done(place.store.read(&place.id("o"), SnapId::HEAD, ReadOp::stat()).wait());
    assert!(read.stamp.is_none() || read.stamp == stamp, "{:?}", read.stamp);
    place.refuses("o", last, ErrorKind::Conflict, Errno::ERANGE);
}

pub(super) fn an_object_is_copied_as_it_was_at_a_snapshot_and_preserved_under_it(place: &Place) {
    if !can(place) {
        return a_store_that_cannot_copy_says_so(place);
    }
    let a = place.snap();
    place.write("source", WriteOp::new().write(0, filled(1, BLOCK)));
    place.write("source", WriteOp::new().write(0, filled(2, 2 * BLOCK)).under(context(&[a])));
    place.write("o", copy(place, "source", a));
    assert_eq!(place.bytes("o"), vec![1; 4096]);
    let b = place.snap();
    place.write("o", copy(place, "source", SnapId::HEAD).under(context(&[b])));
    assert_eq!(place.bytes("o"), vec![2; 8192]);
    assert_eq!(place.bytes_at("o", b), Some(vec![1; 4096]));
}

pub(super) fn copying_refuses_what_it_must(place: &Place) {
    place.refuses("o", copy(place, "o", SnapId::HEAD), ErrorKind::Invalid, Errno::EINVAL);
    if !can(place) {
        return a_store_that_cannot_copy_says_so(place);
    }
    place.put("o", "old", &[]);
    let missing = copy(place, "missing", SnapId::HEAD);
    place.refuses("o", missing.clone(), ErrorKind::NotFound, Errno::ENOENT);
    place.refuses("new", missing, ErrorKind::NotFound, Errno::ENOENT);
    place.put("source", "bytes", &[]);
    let exclusive = copy(place, "source", SnapId::HEAD).guard(Guard::CreateExclusive);
    place.refuses("o", exclusive, ErrorKind::Exists, Errno::EEXIST);
    let other = Guard::XattrCompare { name: "mark".into(), value: "a".into() };
    place.refuses(
        "o",
        copy(place, "source", SnapId::HEAD).guard(other),
        ErrorKind::Conflict,
        Errno::ECANCELED,
    );
    assert_eq!(place.bytes("o"), b"old");
    assert_eq!(place.stat("new"), None);
}
