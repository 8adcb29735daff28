//! Bytes, sizes, holes, versions and limits.

use std::thread;

use bytes::Bytes;

use super::{BLOCK, Place, context, done, fails, filled, text};
use crate::env::Rng;
use crate::error::{Errno, ErrorKind};
use crate::ident::{Namespace, ObjectId, SnapId};
use crate::limits::{METADATA_VALUE_MAX, NAMESPACE_MAX, OBJECT_NAME_MAX, OBJECT_SIZE_MAX, OMAP_KEY_MAX};
use crate::store::{Effect, Guard, ReadOp, Stamp, WriteOp};
use crate::testing::TestRng;

/// An op of one effect.
fn op(effect: Effect) -> WriteOp {
    WriteOp::new().effect(effect)
}

pub(super) fn a_missing_object_is_not_found(place: &Place) {
    for ask in [ReadOp::stat(), ReadOp::data(0, 10), ReadOp::omap_page("", ""), ReadOp::omap_keys(["k"])] {
        fails(place.store.read(&place.id("o"), SnapId::HEAD, ask).wait(), ErrorKind::NotFound, Errno::ENOENT);
    }
}

pub(super) fn create_makes_an_empty_object_and_spares_an_old_one(place: &Place) {
    place.write("o", op(Effect::Create));
    assert_eq!(place.stat("o").map(|s| s.1), Some(0));
    assert!(place.omap("o").is_empty());
    assert!(place.xattrs("o").is_empty());
    place.write("o", WriteOp::new().write(0, text("data")).omap_set("k", "v"));
    let before = place.sight("o");
    place.write("o", op(Effect::Create));
    assert_eq!(place.sight("o"), before);
}

pub(super) fn a_stamp_stays_until_the_next_change_or_is_not_kept_at_all(place: &Place) {
    let read = |at| place.store.read(&place.id("o"), at, ReadOp::stat()).wait().expect("it is there").stamp;
    let stamp = Stamp::of(77);
    place.write("o", WriteOp::new().write(0, text("mine")).stamped(Some(stamp)));
    let snap = place.snap();
    let kept = read(SnapId::HEAD);
    assert!(kept.is_none() || kept == Some(stamp), "{kept:?}");
    assert_eq!(read(snap), kept, "a snapshot shows what was there");
    place.write("o", WriteOp::new().write(0, text("theirs")).under(context(&[snap])));
    assert_eq!(read(SnapId::HEAD), None, "another change takes it away");
    assert_eq!(read(snap), kept, "a preserved version keeps it");
}

pub(super) fn writes_grow_the_object_and_leave_holes(place: &Place) {
    place.write("o", WriteOp::new().write(10 * BLOCK + 100, text("tail")));
    assert_eq!(place.stat("o").map(|s| s.1), Some(10 * BLOCK + 104));
    place.write("o", WriteOp::new().write(2 * BLOCK, filled(1, BLOCK)));
    let mut expected = vec![0; 10 * 4096 + 104];
    expected[2 * 4096..3 * 4096].fill(1);
    expected[10 * 4096 + 100..].copy_from_slice(b"tail");
    assert_eq!(place.bytes("o"), expected);
    for hole in [(0, 2 * BLOCK), (3 * BLOCK, 7 * BLOCK)] {
        assert_eq!(place.extents("o", hole.0, hole.1), [], "a hole is no extent: {hole:?}");
    }
    assert_eq!(place.extents("o", 0, 5 * BLOCK), [(2 * BLOCK, BLOCK)]);
}

pub(super) fn overlapping_writes_read_as_the_last_wrote(place: &Place) {
    let rng = TestRng::new(7);
    let mut model: Vec<u8> = Vec::new();
    for round in 1..60_u8 {
        let (offset, length) = (rng.below(5 * BLOCK), 1 + rng.below(3 * BLOCK));
        place.write("o", WriteOp::new().write(offset, filled(round, length)));
        let (from, to) =
            (usize::try_from(offset).expect("small"), usize::try_from(offset + length).expect("small"));
        model.resize(model.len().max(to), 0);
        model[from..to].fill(round);
        if round % 10 == 9 {
            assert_eq!(place.bytes("o"), model, "after write {round} at {offset}+{length}");
        }
    }
    assert_eq!(place.bytes("o"), model);
}

pub(super) fn reads_past_the_end_are_short(place: &Place) {
    place.write("o", WriteOp::new().write(0, filled(1, 100)));
    assert_eq!(place.extents("o", 50, 1000), [(50, 50)]);
    assert_eq!(place.extents("o", 100, 1000), []);
    assert_eq!(place.extents("o", 10 * BLOCK, 1000), []);
    assert_eq!(place.extents("o", 0, 0), []);
}

pub(super) fn data_asked_for_alone_is_the_same(place: &Place) {
    let ask = |offset, length, is_data_alone| {
        let op = ReadOp { is_data_alone, ..ReadOp::data(offset, length) };
        place.store.read(&place.id("o"), SnapId::HEAD, op).wait()
    };
    for length in [0, 10] {
        fails(ask(0, length, true), ErrorKind::NotFound, Errno::ENOENT);
    }
    place.write("o", WriteOp::new().write(BLOCK, filled(1, 2 * BLOCK + 10)));
    for (offset, length) in [(0, 20 * BLOCK), (BLOCK + 5, 10), (3 * BLOCK, BLOCK), (7 * BLOCK, 10), (5, 0)] {
        let (alone, beside) = (done(ask(offset, length, true)), done(ask(offset, length, false)));
        assert_eq!(alone.data, beside.data, "{offset}+{length}");
    }
}

pub(super) fn extents_are_cut_to_the_range_asked_for(place: &Place) {
    place.write("o", WriteOp::new().write(0, filled(1, 4 * BLOCK)));
    assert_eq!(place.extents("o", 10, 20), [(10, 20)]);
    assert_eq!(place.extents("o", BLOCK - 1, 2), [(BLOCK - 1, 2)]);
    assert_eq!(place.extents("o", 4 * BLOCK - 1, 5), [(4 * BLOCK - 1, 1)]);
}

pub(super) fn what_holds_bytes_is_told_without_them(place: &Place) {
    let ask = |at, offset, length| place.store.extents(&place.id("o"), at, offset, length).wait();
    let find = |at, offset, length| place.store.find_extents(&place.id("o"), at, offset, length).wait();
    fails(ask(SnapId::HEAD, 0, 10), ErrorKind::NotFound, Errno::ENOENT);
    fails(find(SnapId::HEAD, 0, 10), ErrorKind::NotFound, Errno::ENOENT);
    place.write(
        "o",
        WriteOp::new().write(2 * BLOCK, filled(1, BLOCK)).write(8 * BLOCK, filled(2, BLOCK + 10)),
    );
    let asked = [
        (0, 20 * BLOCK),
        (2 * BLOCK + 5, 10),
        (3 * BLOCK, 5 * BLOCK),
        (8 * BLOCK, 5 * BLOCK),
        (9 * BLOCK + 10, 9),
    ];
    let both = |(offset, length)| {
        [ask(SnapId::HEAD, offset, length), find(SnapId::HEAD, offset, length)]
            .map(|told| (offset, length, done(told)))
    };
    for (offset, length, told) in asked.into_iter().flat_map(both) {
        let end = (offset + length).min(9 * BLOCK + 10);
        assert!(
            told.iter().all(|(at, n)| *n > 0 && *at >= offset && at + n <= end),
            "{told:?} of {offset}+{length}"
        );
        assert!(told.windows(2).all(|w| w[0].0 + w[0].1 < w[1].0), "{told:?}");
        for (at, n) in place.extents("o", offset, length) {
            assert!(told.iter().any(|(a, m)| *a <= at && at + n <= a + m), "{at}+{n} is in none of {told:?}");
        }
    }
}

pub(super) fn write_full_replaces_everything(place: &Place) {
    place.write("o", WriteOp::new().write(0, filled(1, 3 * BLOCK)).omap_set("k", "v"));
    place.write("o", op(Effect::WriteFull(text("short"))));
    assert_eq!(place.bytes("o"), b"short");
    assert_eq!(place.omap("o"), [(text("k"), text("v"))], "only data is replaced");
    place.write("o", op(Effect::WriteFull(filled(2, 2 * BLOCK))));
    assert_eq!(place.bytes("o"), vec![2; 2 * 4096]);
    place.write("o", op(Effect::WriteFull(Bytes::new())));
    assert_eq!(place.bytes("o"), b"");
    place.write("new", op(Effect::WriteFull(Bytes::new())));
    assert_eq!(place.bytes("new"), b"", "it exists, with size 0");
}

pub(super) fn zero_makes_holes_and_cuts_at_the_end(place: &Place) {
    place.write("o", WriteOp::new().write(0, filled(1, 4 * BLOCK)));
    place.write("o", op(Effect::Zero { offset: 100, length: 2 * BLOCK }));
    let mut expected = vec![1; 4 * 4096];
    expected[100..100 + 2 * 4096].fill(0);
    assert_eq!(place.bytes("o"), expected);
    assert_eq!(place.extents("o", BLOCK, BLOCK), [], "a block wholly zeroed is a hole");
    place.write("o", op(Effect::Zero { offset: 3 * BLOCK, length: 5 * BLOCK }));
    expected.truncate(3 * 4096);
    assert_eq!(place.bytes("o"), expected, "a range past the end cuts");
    place.write("o", op(Effect::Zero { offset: 100 * BLOCK, length: BLOCK }));
    place.write("o", op(Effect::Zero { offset: 3 * BLOCK, length: BLOCK }));
    place.write("o", op(Effect::Zero { offset: 0, length: 0 }));
    place.write("o", op(Effect::Zero { offset: 2 * BLOCK, length: 0 }));
    assert_eq!(place.bytes("o"), expected, "one wholly past the end, or empty, is ignored");
    place.write("o", op(Effect::Zero { offset: 2 * BLOCK + 7, length: BLOCK - 7 }));
    expected.truncate(2 * 4096 + 7);
    assert_eq!(place.bytes("o"), expected, "one up to the end cuts too");
    place.write("o", WriteOp::new().write(BLOCK, text("back")));
    expected[4096..4100].copy_from_slice(b"back");
    assert_eq!(place.bytes("o"), expected);
}

pub(super) fn zero_and_truncate_leave_a_missing_object_missing(place: &Place) {
    place.write("o", op(Effect::Zero { offset: 0, length: BLOCK }));
    place.write("o", op(Effect::Truncate(BLOCK)));
    assert_eq!(place.stat("o"), None);
    place.write("o", WriteOp::new().effect(Effect::Create).effect(Effect::Truncate(BLOCK)));
    assert_eq!(place.bytes("o"), vec![0; 4096]);
}

pub(super) fn truncate_cuts_and_growing_again_reads_zeros(place: &Place) {
    place.write("o", WriteOp::new().write(0, filled(1, 3 * BLOCK)));
    place.write("o", op(Effect::Truncate(BLOCK + 10)));
    assert_eq!(place.bytes("o"), vec![1; 4096 + 10]);
    place.write("o", op(Effect::Truncate(2 * BLOCK)));
    let mut expected = vec![1; 4096 + 10];
    expected.resize(2 * 4096, 0);
    assert_eq!(place.bytes("o"), expected);
    place.write("o", op(Effect::Truncate(0)));
    assert_eq!(place.bytes("o"), b"");
    place.write("o", op(Effect::Truncate(5)));
    assert_eq!(place.bytes("o"), [0; 5]);
    assert_eq!(place.extents("o", 0, 5), [], "growing adds a hole");
}

pub(super) fn effects_follow_in_order_and_see_each_other(place: &Place) {
    let all = WriteOp::new()
        .write(0, text("aaaa"))
        .effect(Effect::Truncate(2))
        .write(4, text("b"))
        .write(1, text("cc"))
        .effect(Effect::Zero { offset: 0, length: 1 });
    place.write("o", all);
    assert_eq!(place.bytes("o"), b"\0cc\0b");
    place.write("o", WriteOp::new().effect(Effect::WriteFull(text("new"))).write(3, text("er")));
    assert_eq!(place.bytes("o"), b"newer");
    place.write("o", WriteOp::new().write(0, text("x")).effect(Effect::Remove));
    assert_eq!(place.stat("o"), None);
}

pub(super) fn a_removed_object_leaves_nothing_to_its_successor(place: &Place) {
    let full = WriteOp::new().write(0, filled(1, 2 * BLOCK)).omap_set("k", "v");
    let old = place.write("o", full.effect(Effect::XattrSet("a".into(), text("1"))));
    place.write("o", op(Effect::Remove));
    assert_eq!(place.stat("o"), None);
    let new = place.write("o", WriteOp::new().write(BLOCK, text("x")));
    assert!(new > old, "versions do not start again: {old} then {new}");
    assert!(place.omap("o").is_empty());
    assert!(place.xattrs("o").is_empty());
    assert_eq!(place.bytes("o")[..4096], [0; 4096]);
    assert_eq!(place.bytes("o").len(), 4097);
}

pub(super) fn removing_a_missing_object_is_not_found(place: &Place) {
    place.refuses("o", op(Effect::Remove), ErrorKind::NotFound, Errno::ENOENT);
    place.write("o", op(Effect::Create));
    place.write("o", op(Effect::Remove));
    place.refuses("o", op(Effect::Remove), ErrorKind::NotFound, Errno::ENOENT);
}

pub(super) fn every_change_raises_the_version(place: &Place) {
    let changes = [
        Effect::Write { offset: 0, data: filled(1, BLOCK) },
        Effect::Write { offset: 0, data: filled(1, BLOCK) },
        Effect::WriteFull(filled(2, BLOCK)),
        Effect::Zero { offset: 0, length: 10 },
        Effect::Truncate(7),
        Effect::OmapSet(vec![(text("k"), text("v"))]),
        Effect::OmapRemove(vec![text("k")]),
        Effect::OmapClear,
        Effect::XattrSet("a".into(), text("v")),
        Effect::XattrRemove("a".into()),
    ];
    let mut last = place.write("o", op(Effect::Create));
    for effect in changes {
        let what = format!("{effect:?}");
        let version = place.write("o", op(effect));
        assert!(version > last, "{what}: {version} after {last}");
        assert_eq!(place.version("o"), version, "{what}: the read tells the same");
        let guarded = WriteOp::new().guard(Guard::AssertVersion(version)).effect(Effect::Create);
        last = place.write("o", guarded);
    }
}

pub(super) fn a_large_object_reads_back(place: &Place) {
    let rng = TestRng::new(11);
    let data: Vec<u8> = (0..(4 << 20) / 8).flat_map(|_| rng.next_u64().to_le_bytes()).collect();
    place.write("o", op(Effect::WriteFull(Bytes::from(data.clone()))));
    assert!(place.bytes("o") == data, "4 MiB came back changed");
    let reply = done(place.store.read(&place.id("o"), SnapId::HEAD, ReadOp::data(1_000_003, 70_001)).wait());
    assert!(reply.data.to_vec(1_000_003, 70_001) == data[1_000_003..1_070_004], "a part came back changed");
}

pub(super) fn a_long_read_of_an_object_with_holes_shows_one_moment(place: &Place) {
    const MIB: u64 = 1 << 20;
    const ROUNDS: u8 = 200;
    // The last block says how often it was written, and so does the first at odd numbers; at even ones there is a hole.
    let change = |round: u8| {
        let first = if round % 2 == 1 {
            Effect::Write { offset: 0, data: filled(round, BLOCK) }
        } else {
            Effect::Zero { offset: 0, length: BLOCK }
        };
        op(first).write(3 * MIB, filled(round, BLOCK)).write(4 * MIB - BLOCK, filled(1, BLOCK))
    };
    place.write("o", change(0));
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 1..=ROUNDS {
                place.write("o", change(round));
            }
        });
        let mut last = 0;
        while last < ROUNDS {
            let is_over = writer.is_finished();
            let read = place.store.read(&place.id("o"), SnapId::HEAD, ReadOp::data(0, 4 * MIB)).wait();
            let bytes = done(read).data.to_vec(0, 4 * MIB);
            let (first, round) = (bytes[0], bytes[3 << 20]);
            assert!(round >= last, "round {round} after {last}");
            assert_eq!(first, if round % 2 == 1 { round } else { 0 }, "round {round}");
            assert_eq!(bytes[(4 << 20) - 1], 1);
            assert!(!is_over || round == ROUNDS, "round {round} after the last");
            last = round;
        }
    });
}

pub(super) fn ranges_past_the_largest_object_are_invalid(place: &Place) {
    place.write("o", WriteOp::new().write(OBJECT_SIZE_MAX - BLOCK, filled(1, BLOCK)));
    assert_eq!(place.stat("o").map(|s| s.1), Some(OBJECT_SIZE_MAX));
    let past = [
        Effect::Write { offset: OBJECT_SIZE_MAX - BLOCK + 1, data: filled(1, BLOCK) },
        Effect::Write { offset: u64::MAX, data: text("x") },
        Effect::Truncate(OBJECT_SIZE_MAX + 1),
        Effect::Zero { offset: u64::MAX - 1, length: 10 },
    ];
    let version = place.version("o");
    for effect in past {
        place.refuses("o", op(effect), ErrorKind::Invalid, Errno::EINVAL);
    }
    assert_eq!(place.version("o"), version);
}

pub(super) fn names_and_keys_past_their_limits_are_invalid(place: &Place) {
    let name = "n".repeat(OBJECT_NAME_MAX);
    place.write(&name, op(Effect::Create));
    assert!(place.stat(&name).is_some());
    place.refuses(&format!("{name}n"), op(Effect::Create), ErrorKind::Invalid, Errno::EINVAL);
    place.refuses("", op(Effect::Create), ErrorKind::Invalid, Errno::EINVAL);
    let far = ObjectId::new(place.pool, &Namespace::new(&"n".repeat(NAMESPACE_MAX + 1)), "o");
    fails(place.store.write(&far, op(Effect::Create)).wait(), ErrorKind::Invalid, Errno::EINVAL);
    let key = "k".repeat(OMAP_KEY_MAX);
    place.write("o", WriteOp::new().omap_set(key.clone(), "v"));
    place.refuses("o", WriteOp::new().omap_set(format!("{key}k"), "v"), ErrorKind::Invalid, Errno::EINVAL);
    let value = vec![1_u8; METADATA_VALUE_MAX + 1];
    place.refuses("o", WriteOp::new().omap_set("k", value.clone()), ErrorKind::Invalid, Errno::EINVAL);
    let long = Effect::XattrSet("a".into(), value.into());
    place.refuses("o", op(long), ErrorKind::Invalid, Errno::EINVAL);
    assert_eq!(place.omap("o"), [(Bytes::from(key), text("v"))]);
}

pub(super) fn effects_after_a_removal_are_invalid(place: &Place) {
    place.write("o", WriteOp::new().write(0, text("x")));
    let after = WriteOp::new().effect(Effect::Remove).effect(Effect::Create);
    place.refuses("o", after, ErrorKind::Invalid, Errno::EINVAL);
    assert_eq!(place.bytes("o"), b"x");
}

pub(super) fn namespaces_keep_objects_apart(place: &Place) {
    let other = Place { namespace: Namespace::new(&format!("{}-other", place.namespace)), ..place.clone() };
    place.write("o", WriteOp::new().write(0, text("here")));
    assert_eq!(other.stat("o"), None);
    other.write("o", WriteOp::new().write(0, text("there")));
    assert_eq!(place.bytes("o"), b"here");
    other.write("o", op(Effect::Remove));
    assert_eq!(place.bytes("o"), b"here");
}

pub(super) fn flush_keeps_everything(place: &Place) {
    place.write("o", WriteOp::new().write(0, text("kept")).omap_set("k", "v"));
    let before = place.sight("o");
    done(place.store.flush().wait());
    assert_eq!(place.sight("o"), before);
}
