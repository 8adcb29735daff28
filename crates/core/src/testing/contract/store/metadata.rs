//! Omap and xattrs.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Place, done, text};
use crate::error::{Errno, ErrorKind};
use crate::ident::SnapId;
use crate::limits::OMAP_PAGE_MAX;
use crate::store::{Effect, ReadOp, WriteOp};

type Entries = Vec<(Bytes, Bytes)>;

/// Entries whose values repeat their keys.
fn entries<'a>(keys: impl IntoIterator<Item = &'a [u8]>) -> Entries {
    keys.into_iter().map(|k| (Bytes::copy_from_slice(k), Bytes::copy_from_slice(k))).collect()
}

fn set(entries: &Entries) -> WriteOp {
    WriteOp::new().effect(Effect::OmapSet(entries.clone()))
}

/// Decimal keys of fixed width with values of another length.
fn numbered(n: usize) -> Entries {
    (0..n).map(|i| (Bytes::from(format!("key{i:06}")), Bytes::from(format!("v{i}")))).collect()
}

pub(super) fn omap_keys_are_bytes_in_order(place: &Place) {
    let keys: [&[u8]; 9] = [b"\0", b"\0\0", b"\x01", b"A", b"a", b"a\0", b"a\0b", b"\x7f", b"\xff\xfe"];
    let mut shuffled = entries(keys);
    shuffled.reverse();
    place.write("o", set(&shuffled));
    assert_eq!(place.omap("o"), entries(keys));
    place.write("o", WriteOp::new().omap_remove(&b"a\0"[..]).omap_set(&b"\0\0"[..], ""));
    let mut expected = entries(keys);
    expected.remove(5);
    expected[1].1 = Bytes::new();
    assert_eq!(place.omap("o"), expected);
}

pub(super) fn omap_reads_by_key_give_those_that_exist(place: &Place) {
    place.write("o", set(&entries([&b"a"[..], b"b\0b", b"c"])));
    let ask = ReadOp::omap_keys([&b"c"[..], b"b\0b", b"nope", b"b", b"b\0"]);
    let reply = done(place.store.read(&place.id("o"), SnapId::HEAD, ask).wait());
    assert_eq!(reply.omap.entries, entries([&b"b\0b"[..], b"c"]));
    assert!(!reply.omap.more);
    let none = done(place.store.read(&place.id("o"), SnapId::HEAD, ReadOp::omap_keys(["nope"])).wait());
    assert!(none.omap.entries.is_empty());
    place.write("bare", WriteOp::new().effect(Effect::Create));
    let bare = done(place.store.read(&place.id("bare"), SnapId::HEAD, ReadOp::omap_keys(["a"])).wait());
    assert!(bare.omap.entries.is_empty());
}

pub(super) fn omap_pages_continue_and_say_whether_there_is_more(place: &Place) {
    let all = numbered(10);
    place.write("o", set(&all));
    let mut seen = Vec::new();
    loop {
        let after = seen.last().map_or_else(Bytes::new, |(k, _): &(Bytes, Bytes)| k.clone());
        let (page, more) = place.page("o", &after, b"", 3);
        seen.extend(page);
        if !more {
            break;
        }
        assert_eq!(seen.len() % 3, 0, "a page that says there is more is full");
    }
    assert_eq!(seen, all);
    assert_eq!(place.page("o", b"", b"", 10), (all.clone(), false), "exactly all is not more");
    assert_eq!(place.page("o", b"key000004", b"", 2), (all[5..7].to_vec(), true));
    assert_eq!(
        place.page("o", b"key0000045", b"", 2),
        (all[5..7].to_vec(), true),
        "after a key that is not there"
    );
    assert_eq!(place.page("o", b"key000009", b"", 2), (Vec::new(), false));
    assert_eq!(place.page("o", b"z", b"", 2), (Vec::new(), false));
}

pub(super) fn omap_pages_are_bounded(place: &Place) {
    let all = numbered(2 * OMAP_PAGE_MAX + 100);
    for part in all.chunks(700) {
        place.write("o", set(&part.to_vec()));
    }
    let (first, more) = place.page("o", b"", b"", 10 * OMAP_PAGE_MAX);
    assert_eq!((first.as_slice(), more), (&all[..OMAP_PAGE_MAX], true));
    let (second, more) = place.page("o", &first[OMAP_PAGE_MAX - 1].0, b"", OMAP_PAGE_MAX);
    assert_eq!((second.as_slice(), more), (&all[OMAP_PAGE_MAX..2 * OMAP_PAGE_MAX], true));
    let (third, more) = place.page("o", &second[OMAP_PAGE_MAX - 1].0, b"", OMAP_PAGE_MAX);
    assert_eq!((third.as_slice(), more), (&all[2 * OMAP_PAGE_MAX..], false));
}

pub(super) fn omap_pages_by_prefix_hold_only_it(place: &Place) {
    let keys: [&[u8]; 7] = [b"a", b"ab", b"ab1", b"ab2", b"ab3", b"ac", b"b"];
    place.write("o", set(&entries(keys)));
    assert_eq!(place.page("o", b"", b"ab", 10), (entries([&b"ab"[..], b"ab1", b"ab2", b"ab3"]), false));
    assert_eq!(place.page("o", b"", b"ab", 2), (entries([&b"ab"[..], b"ab1"]), true));
    assert_eq!(
        place.page("o", b"ab1", b"ab", 2),
        (entries([&b"ab2"[..], b"ab3"]), false),
        "others are not more"
    );
    assert_eq!(place.page("o", b"a", b"ab", 1), (entries([&b"ab"[..]]), true), "starting before the prefix");
    assert_eq!(place.page("o", b"b", b"ab", 10), (Vec::new(), false), "starting behind it");
    assert_eq!(place.page("o", b"", b"x", 10), (Vec::new(), false));
}

pub(super) fn omap_removal_forgives_absent_keys(place: &Place) {
    place.write("o", set(&entries([&b"a"[..], b"b"])));
    place.write("o", WriteOp::new().effect(Effect::OmapRemove(vec![text("a"), text("nope")])));
    assert_eq!(place.omap("o"), entries([&b"b"[..]]));
    place.write("o", WriteOp::new().effect(Effect::OmapClear));
    assert!(place.omap("o").is_empty());
    place.write("o", WriteOp::new().effect(Effect::OmapClear));
    assert!(place.stat("o").is_some(), "an object without entries exists");
}

pub(super) fn omap_effects_follow_in_order(place: &Place) {
    place.write("o", set(&entries([&b"a"[..], b"b", b"c"])));
    let op = WriteOp::new().effect(Effect::OmapClear).omap_set("a", "1").omap_set("d", "2").omap_remove("a");
    place.write("o", op.omap_set("e", "3").omap_set("e", "4"));
    assert_eq!(place.omap("o"), [(text("d"), text("2")), (text("e"), text("4"))]);
}

pub(super) fn removing_metadata_of_a_missing_object_is_not_found(place: &Place) {
    for effect in [Effect::OmapRemove(vec![text("k")]), Effect::OmapClear, Effect::XattrRemove("a".into())] {
        place.refuses("o", WriteOp::new().effect(effect.clone()), ErrorKind::NotFound, Errno::ENOENT);
        place.write("p", WriteOp::new().effect(Effect::Create).effect(effect));
        place.write("p", WriteOp::new().effect(Effect::Remove));
    }
    assert_eq!(place.stat("o"), None);
}

pub(super) fn xattrs_hold_bytes(place: &Place) {
    let attribute =
        |name: &str, value: &'static [u8]| Effect::XattrSet(name.into(), Bytes::from_static(value));
    let op = WriteOp::new().effect(attribute("a.b", b"\0\xff")).effect(attribute("empty", b""));
    place.write("o", op.effect(attribute("c", b"1")));
    let op = WriteOp::new().effect(attribute("c", b"2")).effect(Effect::XattrRemove("nope".into()));
    place.write("o", op);
    let expected: BTreeMap<String, Bytes> = [("a.b", &b"\0\xff"[..]), ("c", b"2"), ("empty", b"")]
        .into_iter()
        .map(|(n, v)| (n.to_owned(), Bytes::from_static(v)))
        .collect();
    assert_eq!(place.xattrs("o"), expected);
    place.write("o", WriteOp::new().effect(Effect::XattrRemove("a.b".into())));
    assert!(!place.xattrs("o").contains_key("a.b"));
    assert_eq!(place.bytes("o"), b"", "attributes are no data");
}

pub(super) fn metadata_and_data_change_together(place: &Place) {
    let op = WriteOp::new().write(0, text("d")).omap_set("k", "v");
    let version = place.write("o", op.effect(Effect::XattrSet("a".into(), text("x"))));
    let mut ask = ReadOp::omap_page("", "");
    (ask.xattrs, ask.data) = (true, Some((0, 10)));
    let reply = done(place.store.read(&place.id("o"), SnapId::HEAD, ask).wait());
    assert_eq!((reply.version, reply.size), (version, 1));
    assert_eq!(reply.data.to_vec(0, 1), b"d");
    assert_eq!(reply.xattrs["a"], text("x"));
    assert_eq!(reply.omap.entries, [(text("k"), text("v"))]);
}

pub(super) fn whatever_is_not_data_changes_the_generation_or_there_is_none(place: &Place) {
    let mut seen = place.store.generation();
    for effect in [
        Effect::Create,
        Effect::XattrSet("mark".into(), text("unfinished")),
        Effect::XattrRemove("mark".into()),
        Effect::OmapSet([(text("k"), text("v"))].into()),
        Effect::OmapRemove([text("k")].into()),
        Effect::Remove,
    ] {
        let what = format!("{effect:?}");
        place.write("o", WriteOp::new().effect(effect));
        let now = place.store.generation();
        assert!(now.is_none() || now != seen, "{what} leaves the generation as it was");
        seen = now;
    }
}
