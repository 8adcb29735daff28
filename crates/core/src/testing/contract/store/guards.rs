//! Conditions: what they compare, how they fail, and that a refused op changes nothing.

use bytes::Bytes;

use super::{BLOCK, Place, filled, text};
use crate::error::{Errno, ErrorKind};
use crate::store::{Effect, Guard, WriteOp};

fn xattr(name: &str, value: &'static str) -> Guard {
    Guard::XattrCompare { name: name.to_owned(), value: text(value) }
}

pub(super) fn create_exclusive_makes_an_object_once(place: &Place) {
    let op = || WriteOp::new().guard(Guard::CreateExclusive);
    place.write("o", op());
    assert_eq!(place.bytes("o"), b"");
    place.refuses("o", op(), ErrorKind::Exists, Errno::EEXIST);
    place.write("o", WriteOp::new().effect(Effect::Remove));
    place.write("o", op().write(0, text("again")));
    assert_eq!(place.bytes("o"), b"again");
    place.refuses("o", op().write(0, text("never")), ErrorKind::Exists, Errno::EEXIST);
    assert_eq!(place.bytes("o"), b"again");
}

pub(super) fn assert_exists_needs_the_object(place: &Place) {
    let op = || WriteOp::new().guard(Guard::AssertExists).write(0, text("x"));
    place.refuses("o", op(), ErrorKind::NotFound, Errno::ENOENT);
    assert_eq!(place.stat("o"), None);
    place.write("o", WriteOp::new().effect(Effect::Create));
    place.write("o", op());
    assert_eq!(place.bytes("o"), b"x");
    place.write("o", WriteOp::new().effect(Effect::Remove));
    place.refuses("o", op(), ErrorKind::NotFound, Errno::ENOENT);
}

pub(super) fn assert_version_knows_older_newer_and_missing(place: &Place) {
    let op = |v| WriteOp::new().guard(Guard::AssertVersion(v)).write(0, text("y"));
    place.refuses("o", op(1), ErrorKind::NotFound, Errno::ENOENT);
    assert_eq!(place.stat("o"), None);
    let first = place.write("o", WriteOp::new().write(0, text("x")));
    let second = place.write("o", WriteOp::new().write(1, text("x")));
    assert!(second > first);
    place.refuses("o", op(first), ErrorKind::Conflict, Errno::ERANGE);
    place.refuses("o", op(second + 1000), ErrorKind::Conflict, Errno::EOVERFLOW);
    assert_eq!(place.bytes("o"), b"xx");
    assert_eq!(place.version("o"), second);
    let third = place.write("o", op(second));
    assert_eq!(place.bytes("o"), b"yx");
    assert!(third > second);
    place.refuses("o", op(second), ErrorKind::Conflict, Errno::ERANGE);
}

pub(super) fn omap_compare_takes_absent_for_empty(place: &Place) {
    let key = &b"k\0\xff"[..];
    let op = |value: &'static str| {
        WriteOp::new().omap_compare(key, text(value)).omap_set(&b"seen"[..], text(value))
    };
    place.write("o", WriteOp::new().effect(Effect::Create));
    place.refuses("o", op("v"), ErrorKind::Conflict, Errno::ECANCELED);
    place.write("o", op(""));
    place.write("o", WriteOp::new().omap_set(key, text("")));
    place.write("o", op(""));
    place.refuses("o", op("v"), ErrorKind::Conflict, Errno::ECANCELED);
    place.write("o", WriteOp::new().omap_set(key, text("v")));
    place.refuses("o", op(""), ErrorKind::Conflict, Errno::ECANCELED);
    place.refuses("o", op("vv"), ErrorKind::Conflict, Errno::ECANCELED);
    place.refuses("o", op("w"), ErrorKind::Conflict, Errno::ECANCELED);
    place.write("o", op("v"));
    assert_eq!(place.omap("o"), [(Bytes::from_static(key), text("v")), (text("seen"), text("v"))]);
}

pub(super) fn xattr_compare_takes_absent_for_empty(place: &Place) {
    let op =
        |value| WriteOp::new().guard(xattr("a", value)).effect(Effect::XattrSet("seen".into(), text(value)));
    place.write("o", WriteOp::new().effect(Effect::Create));
    place.refuses("o", op("v"), ErrorKind::Conflict, Errno::ECANCELED);
    place.write("o", op(""));
    place.write("o", WriteOp::new().effect(Effect::XattrSet("a".into(), text("v"))));
    place.refuses("o", op(""), ErrorKind::Conflict, Errno::ECANCELED);
    place.refuses("o", op("vv"), ErrorKind::Conflict, Errno::ECANCELED);
    assert_eq!(place.xattrs("o")["seen"], text(""));
    place.write("o", op("v"));
    assert_eq!(place.xattrs("o")["seen"], text("v"));
}

pub(super) fn xattr_compare_needs_the_object(place: &Place) {
    for value in ["", "v"] {
        for op in [
            WriteOp::new(),
            WriteOp::new().effect(Effect::Create),
            WriteOp::new().guard(Guard::CreateExclusive),
        ] {
            let op = op.guard(xattr("a", value)).omap_set("x", "");
            place.refuses("o", op, ErrorKind::NotFound, Errno::ENOENT);
        }
    }
    assert_eq!(place.stat("o"), None);
}

pub(super) fn omap_compare_on_a_missing_object_needs_a_create_first(place: &Place) {
    let compare = |value| Guard::OmapCompare { key: text("k"), value: text(value) };
    for value in ["", "v"] {
        let op = WriteOp::new().guard(compare(value)).omap_set("x", "");
        place.refuses("o", op, ErrorKind::NotFound, Errno::ENOENT);
    }
    let op = WriteOp::new().effect(Effect::Create).guard(compare("v")).omap_set("x", "");
    place.refuses("o", op, ErrorKind::Conflict, Errno::ECANCELED);
    assert_eq!(place.stat("o"), None, "a refused op makes no object");
    place.write("o", WriteOp::new().effect(Effect::Create).guard(compare("")).omap_set("k", "1"));
    place.write("p", WriteOp::new().guard(Guard::CreateExclusive).guard(compare("")).omap_set("k", "2"));
    for (name, value) in [("o", "1"), ("p", "2")] {
        assert_eq!(place.omap(name), [(text("k"), text(value))]);
    }
}

pub(super) fn guards_see_the_state_before_the_op(place: &Place) {
    place.write("o", WriteOp::new().omap_set("k", "old").effect(Effect::XattrSet("a".into(), text("old"))));
    let set = |op: WriteOp| op.omap_set("k", "new").effect(Effect::XattrSet("a".into(), text("new")));
    let stale = set(WriteOp::new()).omap_compare("k", "new");
    place.refuses("o", stale, ErrorKind::Conflict, Errno::ECANCELED);
    place.refuses("o", set(WriteOp::new()).guard(xattr("a", "new")), ErrorKind::Conflict, Errno::ECANCELED);
    place.write("o", set(WriteOp::new()).omap_compare("k", "old").guard(xattr("a", "old")));
    assert_eq!(place.omap("o"), [(text("k"), text("new"))]);
}

pub(super) fn the_first_guard_that_fails_names_the_error(place: &Place) {
    let first = place.write("o", WriteOp::new().omap_set("k", "v"));
    place.write("o", WriteOp::new().omap_set("k", "w"));
    let (version, value) =
        (Guard::AssertVersion(first), Guard::OmapCompare { key: text("k"), value: text("v") });
    let op = |a: &Guard, b: &Guard| WriteOp::new().guard(a.clone()).guard(b.clone()).omap_set("k", "never");
    place.refuses("o", op(&version, &value), ErrorKind::Conflict, Errno::ERANGE);
    place.refuses("o", op(&value, &version), ErrorKind::Conflict, Errno::ECANCELED);
}

pub(super) fn a_refused_op_changes_nothing(place: &Place) {
    let setup = WriteOp::new()
        .write(0, filled(7, 3 * BLOCK))
        .effect(Effect::OmapSet(vec![(text("k"), text("v")), (text("l"), text("w"))]))
        .effect(Effect::XattrSet("a".into(), text("1")));
    let version = place.write("o", setup);
    let before = place.sight("o");
    let guards = [
        (Guard::CreateExclusive, ErrorKind::Exists, Errno::EEXIST),
        (Guard::AssertVersion(version + 1_000_000), ErrorKind::Conflict, Errno::EOVERFLOW),
        (Guard::OmapCompare { key: text("k"), value: text("") }, ErrorKind::Conflict, Errno::ECANCELED),
        (xattr("a", "2"), ErrorKind::Conflict, Errno::ECANCELED),
    ];
    let effects = [
        Effect::Write { offset: 1, data: text("changed") },
        Effect::WriteFull(text("changed")),
        Effect::Zero { offset: 0, length: BLOCK },
        Effect::Truncate(1),
        Effect::OmapSet(vec![(text("k"), text("changed"))]),
        Effect::OmapRemove(vec![text("k")]),
        Effect::OmapClear,
        Effect::XattrSet("a".into(), text("changed")),
        Effect::XattrRemove("a".into()),
        Effect::Remove,
    ];
    for (guard, kind, errno) in guards {
        for effect in &effects {
            place.refuses("o", WriteOp::new().guard(guard.clone()).effect(effect.clone()), kind, errno);
        }
        let all = WriteOp { guards: vec![guard], effects: effects.to_vec(), ..WriteOp::default() };
        place.refuses("o", all, kind, errno);
    }
    assert_eq!(place.sight("o"), before);
    assert_eq!(place.version("o"), version);
}

pub(super) fn guards_alone_change_nothing(place: &Place) {
    let version = place.write("o", WriteOp::new().omap_set("k", "v"));
    place.write("o", WriteOp::new().guard(Guard::AssertVersion(version)).omap_compare("k", "v"));
    assert_eq!(place.version("o"), version);
}
