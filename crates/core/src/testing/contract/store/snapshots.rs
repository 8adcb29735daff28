//! Preserved versions: who makes them, who reads them, rolling back, letting go.

use super::{BLOCK, Place, context, done, fails, filled, text};
use crate::error::{Errno, ErrorKind};
use crate::ident::SnapId;
use crate::store::{Effect, ReadOp, SnapContext, SnapSet, WriteOp};

fn op(effect: Effect) -> WriteOp {
    WriteOp::new().effect(effect)
}

/// The bytes at a snapshot, as a text that can be compared; absence is its own.
fn at(place: &Place, name: &str, snap: SnapId) -> String {
    let bytes = place.bytes_at(name, snap);
    bytes.map_or_else(|| "(missing)".to_owned(), |b| String::from_utf8_lossy(&b).into_owned())
}

/// Bytes at each snapshot and HEAD.
fn history(place: &Place, name: &str, snaps: &[SnapId]) -> Vec<String> {
    snaps.iter().chain([&SnapId::HEAD]).map(|s| at(place, name, *s)).collect()
}

pub(super) fn a_write_under_a_newer_context_preserves(place: &Place) {
    place.put("o", "one", &[]);
    let a = place.snap();
    place.write("o", WriteOp::new().write(0, text("T")).under(context(&[a])));
    assert_eq!(history(place, "o", &[a]), ["one", "Tne"]);
    place.write("o", WriteOp::new().write(1, text("WO")).under(context(&[a])));
    assert_eq!(history(place, "o", &[a]), ["one", "TWO"], "the second write preserves nothing again");
    let b = place.snap();
    place.put("o", "three", &[a, b]);
    assert_eq!(history(place, "o", &[a, b]), ["one", "TWO", "three"]);
}

pub(super) fn a_write_under_no_or_an_older_context_preserves_nothing(place: &Place) {
    place.put("o", "one", &[]);
    let a = place.snap();
    place.write("o", op(Effect::WriteFull(text("two"))));
    assert_eq!(history(place, "o", &[a]), ["two", "two"], "no context");
    place.put("o", "three", &[a]);
    let b = place.snap();
    place.put("o", "four", &[a]);
    assert_eq!(history(place, "o", &[a, b]), ["two", "four", "four"], "an older context");
    place.put("o", "five", &[a, b]);
    place.put("o", "six", &[a]);
    place.write("o", op(Effect::WriteFull(text("seven"))));
    assert_eq!(history(place, "o", &[a, b]), ["two", "four", "seven"], "older than what the object has seen");
}

pub(super) fn an_object_not_written_since_reads_as_it_is(place: &Place) {
    place.put("o", "one", &[]);
    let a = place.snap();
    assert_eq!(history(place, "o", &[a]), ["one", "one"]);
    place.put("p", "other", &[a]);
    assert_eq!(history(place, "o", &[a]), ["one", "one"], "writes elsewhere do not matter");
}

pub(super) fn an_object_made_after_a_snapshot_is_missing_at_it(place: &Place) {
    let a = place.snap();
    place.put("o", "one", &[a]);
    place.write("p", op(Effect::Create).under(context(&[a])));
    assert_eq!(history(place, "o", &[a]), ["(missing)", "one"]);
    assert_eq!(history(place, "p", &[a]), ["(missing)", ""]);
    let b = place.snap();
    place.put("o", "two", &[a, b]);
    assert_eq!(history(place, "o", &[a, b]), ["(missing)", "one", "two"]);
}

pub(super) fn snapshots_between_two_writes_share_a_version(place: &Place) {
    place.put("o", "one", &[]);
    let (a, b, c) = (place.snap(), place.snap(), place.snap());
    place.put("o", "two", &[a, b, c]);
    assert_eq!(history(place, "o", &[a, b, c]), ["one", "one", "one", "two"]);
    let d = place.snap();
    place.put("o", "three", &[a, c, d]);
    assert_eq!(history(place, "o", &[a, c, d]), ["one", "one", "two", "three"], "b is gone from the context");
}

pub(super) fn every_data_effect_preserves(place: &Place) {
    let effects = [
        Effect::Write { offset: 1, data: text("!") },
        Effect::WriteFull(text("new")),
        Effect::Zero { offset: 0, length: 2 },
        Effect::Truncate(1),
        Effect::Truncate(9),
        Effect::Remove,
    ];
    for (i, effect) in effects.into_iter().enumerate() {
        let name = format!("o{i}");
        place.put(&name, "before", &[]);
        let a = place.snap();
        let what = format!("{effect:?}");
        place.write(&name, op(effect).under(context(&[a])));
        assert_eq!(at(place, &name, a), "before", "{what}");
        assert_ne!(at(place, &name, SnapId::HEAD), "before", "{what}");
    }
    let big = WriteOp::new().write(0, filled(1, 3 * BLOCK));
    place.write("big", big);
    let a = place.snap();
    place.write("big", op(Effect::Truncate(BLOCK)).under(context(&[a])));
    place.write("big", op(Effect::Truncate(2 * BLOCK)).under(context(&[a])));
    assert_eq!(place.bytes_at("big", a), Some(vec![1; 3 * 4096]));
    assert_eq!(place.bytes("big")[4096..], [0; 4096]);
}

pub(super) fn a_removed_object_is_read_at_its_snapshots(place: &Place) {
    place.put("o", "one", &[]);
    let a = place.snap();
    place.write("o", op(Effect::Remove).under(context(&[a])));
    assert_eq!(history(place, "o", &[a]), ["one", "(missing)"]);
    place.refuses("o", op(Effect::Remove), ErrorKind::NotFound, Errno::ENOENT);
    let b = place.snap();
    assert_eq!(at(place, "o", b), "(missing)");
    place.put("o", "two", &[a, b]);
    assert_eq!(history(place, "o", &[a, b]), ["one", "(missing)", "two"]);
    let c = place.snap();
    place.put("o", "three", &[a, b, c]);
    assert_eq!(history(place, "o", &[a, b, c]), ["one", "(missing)", "two", "three"]);
}

pub(super) fn metadata_is_never_preserved(place: &Place) {
    place.write("o", WriteOp::new().write(0, text("one")).omap_set("k", "old"));
    let a = place.snap();
    place.write("o", WriteOp::new().omap_set("k", "new").under(context(&[a])));
    place.write("o", WriteOp::new().effect(Effect::XattrSet("x".into(), text("new"))).under(context(&[a])));
    assert_eq!(history(place, "o", &[a]), ["one", "one"]);
    place.put("o", "two", &[a]);
    place.write("o", WriteOp::new().omap_set("k", "newer"));
    assert_eq!(history(place, "o", &[a]), ["one", "two"], "the context was not used up by metadata");
    place.write("p", WriteOp::new().write(0, text("one")));
    let b = place.snap();
    place.write("p", WriteOp::new().omap_set("k", "v").under(context(&[a, b])));
    place.write("p", op(Effect::WriteFull(text("two"))));
    assert_eq!(at(place, "p", b), "two", "an op on metadata alone preserves nothing");
    let mut ask = ReadOp::omap_page("", "");
    ask.xattrs = true;
    let reply = done(place.store.read(&place.id("o"), a, ask).wait());
    assert_eq!(reply.omap.entries, [(text("k"), text("newer"))], "metadata is that of HEAD");
    assert_eq!(reply.xattrs["x"], text("new"));
}

pub(super) fn a_context_without_snapshots_preserves_nothing(place: &Place) {
    place.put("o", "one", &[]);
    let a = place.snap();
    let empty = SnapContext { seq: a.0, snaps: [].into() };
    place.write("o", op(Effect::WriteFull(text("two"))).under(empty));
    place.put("o", "three", &[a]);
    assert_eq!(at(place, "o", SnapId::HEAD), "three");
    assert_eq!(at(place, "o", a), "(missing)", "its version was given up by the first write");
}

pub(super) fn contexts_out_of_order_are_invalid(place: &Place) {
    place.put("o", "one", &[]);
    let (a, b) = (place.snap(), place.snap());
    let wrong = [
        SnapContext { seq: b.0, snaps: [a, b].into() },
        SnapContext { seq: b.0, snaps: [b, b].into() },
        SnapContext { seq: a.0, snaps: [b].into() },
    ];
    for context in wrong {
        let write = WriteOp::new().write(0, text("x")).under(context);
        place.refuses("o", write, ErrorKind::Invalid, Errno::EINVAL);
    }
    assert_eq!(history(place, "o", &[a, b]), ["one", "one", "one"]);
}

pub(super) fn rollback_brings_back_bytes_and_size(place: &Place) {
    place.put("o", "one", &[]);
    let a = place.snap();
    place.put("o", "a longer two", &[a]);
    let b = place.snap();
    place.put("o", "3", &[a, b]);
    place.write("o", op(Effect::Rollback(b)).under(context(&[a, b])));
    assert_eq!(history(place, "o", &[a, b]), ["one", "a longer two", "a longer two"]);
    place.write("o", op(Effect::Rollback(a)).under(context(&[a, b])));
    assert_eq!(history(place, "o", &[a, b]), ["one", "a longer two", "one"]);
    place.write("o", WriteOp::new().write(0, text("O")).under(context(&[a, b])));
    assert_eq!(history(place, "o", &[a, b]), ["one", "a longer two", "One"]);
}

pub(super) fn rollback_under_a_newer_context_preserves(place: &Place) {
    place.put("o", "one", &[]);
    let a = place.snap();
    place.put("o", "two", &[a]);
    let b = place.snap();
    place.write("o", op(Effect::Rollback(a)).under(context(&[a, b])));
    assert_eq!(history(place, "o", &[a, b]), ["one", "two", "one"]);
}

pub(super) fn rollback_to_before_the_object_removes_it(place: &Place) {
    let a = place.snap();
    place.put("o", "one", &[a]);
    let b = place.snap();
    place.write("o", op(Effect::Rollback(a)).under(context(&[a, b])));
    assert_eq!(history(place, "o", &[a, b]), ["(missing)", "one", "(missing)"]);
    place.write("o", op(Effect::Rollback(b)).under(context(&[a, b])));
    assert_eq!(history(place, "o", &[a, b]), ["(missing)", "one", "one"]);
}

pub(super) fn rollback_brings_back_a_removed_object(place: &Place) {
    place.put("o", "one", &[]);
    let a = place.snap();
    place.write("o", op(Effect::Remove).under(context(&[a])));
    place.write("o", op(Effect::Rollback(a)).under(context(&[a])));
    assert_eq!(history(place, "o", &[a]), ["one", "one"]);
}

pub(super) fn rollback_of_an_unchanged_object_does_nothing(place: &Place) {
    place.put("o", "one", &[]);
    let a = place.snap();
    place.write("o", op(Effect::Rollback(a)).under(context(&[a])));
    assert_eq!(history(place, "o", &[a]), ["one", "one"]);
}

pub(super) fn rollback_stands_alone(place: &Place) {
    place.put("o", "one", &[]);
    let a = place.snap();
    place.put("o", "two", &[a]);
    let company = op(Effect::Rollback(a)).omap_set("k", "v").under(context(&[a]));
    place.refuses("o", company, ErrorKind::Invalid, Errno::EINVAL);
    let guarded = op(Effect::Rollback(a)).guard(crate::store::Guard::AssertExists).under(context(&[a]));
    place.refuses("o", guarded, ErrorKind::Invalid, Errno::EINVAL);
    assert_eq!(history(place, "o", &[a]), ["one", "two"]);
}

pub(super) fn released_snapshots_leave_the_others_alone(place: &Place) {
    place.put("o", "one", &[]);
    let (a, b) = (place.snap(), place.snap());
    place.put("o", "two", &[a, b]);
    let c = place.snap();
    place.put("o", "three", &[a, b, c]);
    done(place.store.release_snap(place.pool, a).wait());
    assert_eq!(history(place, "o", &[b, c]), ["one", "two", "three"]);
    place.put("o", "four", &[b, c]);
    done(place.store.release_snap(place.pool, c).wait());
    assert_eq!(history(place, "o", &[b]), ["one", "four"]);
    done(place.store.release_snap(place.pool, b).wait());
    assert_eq!(at(place, "o", SnapId::HEAD), "four");
    done(place.store.release_snap(place.pool, SnapId(b.0 + 1_000_000)).wait());
}

pub(super) fn snapshot_ids_grow(place: &Place) {
    let a = place.snap();
    let b = place.snap();
    done(place.store.release_snap(place.pool, b).wait());
    let c = place.snap();
    assert!(SnapId(0) < a && a < b && b < c && c < SnapId::MAX, "{a} {b} {c}");
}

/// Checks a set against what reads say, and the overlaps against the bytes.
pub(super) fn set_agrees_with_reads(place: &Place, name: &str, set: &SnapSet, snaps: &[SnapId]) {
    for snap in snaps {
        let size = if *snap > SnapId(set.seq) {
            set.head_size
        } else {
            let version = set.clones.iter().find(|c| c.id >= *snap).filter(|c| c.snaps.contains(snap));
            version.map(|c| c.size)
        };
        let read = place.bytes_at(name, *snap).map(|b| b.len() as u64);
        assert_eq!(read, size, "size of {name} at {snap}: {set:?}");
    }
    for (i, clone) in set.clones.iter().enumerate() {
        let Some(old) = clone.snaps.iter().find(|s| snaps.contains(s)) else { continue };
        let newer = set.clones.get(i + 1).map_or(Some(SnapId::HEAD), |c| c.snaps.first().copied());
        let Some(newer) = newer.filter(|s| *s == SnapId::HEAD || snaps.contains(s)) else { continue };
        let old = place.bytes_at(name, *old).expect("a version reads");
        let new = place.bytes_at(name, newer).unwrap_or_default();
        let mut last = 0;
        for (offset, length) in &clone.overlap {
            assert!(*offset >= last && *length > 0, "overlaps in order: {clone:?}");
            last = offset + length;
            let range = usize::try_from(*offset).expect("fits")..usize::try_from(last).expect("fits");
            assert_eq!(
                old.get(range.clone()),
                new.get(range),
                "{name}: overlap {offset}+{length} of {clone:?}"
            );
        }
    }
}

pub(super) fn what_is_known_to_be_the_same_reads_the_same(place: &Place) {
    let a = place.snap();
    place.write("o", WriteOp::new().write(0, filled(1, BLOCK)).under(context(&[a])));
    let (b, c) = (place.snap(), place.snap());
    place.write("o", WriteOp::new().write(0, filled(2, BLOCK)).under(context(&[a, b, c])));
    let d = place.snap();
    place.write("o", WriteOp::new().write(0, filled(1, BLOCK)).under(context(&[a, b, c, d])));
    let e = place.snap();
    let is_same = |one, other| done(place.store.is_same_at(&place.id("o"), one, other).wait());
    let points = [a, b, c, d, e, SnapId::HEAD];
    // Known or not: what is told must be true.
    let check = |wrong: &[(SnapId, SnapId)]| {
        for (one, other) in wrong {
            assert!(!is_same(*one, *other) && !is_same(*other, *one), "{one} and {other} differ");
        }
        let told: Vec<_> = points.iter().map(|p| is_same(*p, *p)).collect();
        assert!(told.windows(2).all(|w| w[0] == w[1]), "known of all points or of none: {told:?}");
        told[0]
    };
    let knows = check(&[(a, b), (a, SnapId::HEAD), (c, d), (b, d), (d, e), (d, SnapId::HEAD)]);
    if knows {
        assert!(is_same(b, c) && is_same(e, SnapId::HEAD), "nothing happened in between");
    }
    place.write("o", op(Effect::Remove).under(context(&[a, b, c, d, e])));
    check(&[(a, b), (c, d), (e, SnapId::HEAD), (b, SnapId::HEAD)]);
    if knows {
        assert!(is_same(a, SnapId::HEAD), "it was not there, and is not");
    }
}

pub(super) fn list_snaps_tells_versions_and_their_overlap(place: &Place) {
    if !place.store.capabilities().list_snaps {
        place.put("o", "one", &[]);
        fails(place.store.list_snaps(&place.id("o")).wait(), ErrorKind::Unsupported, Errno::EOPNOTSUPP);
        return;
    }
    fails(place.store.list_snaps(&place.id("o")).wait(), ErrorKind::NotFound, Errno::ENOENT);
    place.write("o", WriteOp::new().write(0, filled(1, 4 * BLOCK)).under(context(&[])));
    let (a, b) = (place.snap(), place.snap());
    place.write("o", WriteOp::new().write(BLOCK, filled(2, BLOCK)).under(context(&[a, b])));
    let c = place.snap();
    place.write("o", op(Effect::Truncate(3 * BLOCK)).under(context(&[a, b, c])));
    let set = done(place.store.list_snaps(&place.id("o")).wait());
    assert_eq!((set.seq, set.head_size), (c.0, Some(3 * BLOCK)));
    let clones: Vec<_> = set.clones.iter().map(|v| (v.id, v.snaps.clone(), v.size)).collect();
    assert_eq!(clones, [(b, vec![a, b], 4 * BLOCK), (c, vec![c], 4 * BLOCK)]);
    assert_eq!(set.clones[0].overlap, [(0, BLOCK), (2 * BLOCK, 2 * BLOCK)]);
    assert_eq!(set.clones[1].overlap, [(0, 3 * BLOCK)]);
    set_agrees_with_reads(place, "o", &set, &[a, b, c]);
    done(place.store.release_snap(place.pool, a).wait());
    let set = done(place.store.list_snaps(&place.id("o")).wait());
    set_agrees_with_reads(place, "o", &set, &[b, c]);
}

pub(super) fn list_snaps_of_a_removed_object_has_no_head(place: &Place) {
    if !place.store.capabilities().list_snaps {
        return list_snaps_tells_versions_and_their_overlap(place);
    }
    place.put("o", "one", &[]);
    let a = place.snap();
    place.write("o", op(Effect::Remove).under(context(&[a])));
    let set = done(place.store.list_snaps(&place.id("o")).wait());
    assert_eq!((set.seq, set.head_size), (a.0, None));
    assert_eq!(set.clones.len(), 1);
    assert_eq!((set.clones[0].id, set.clones[0].size), (a, 3));
    assert!(set.clones[0].overlap.is_empty(), "nothing is shared with an object that is gone");
}
