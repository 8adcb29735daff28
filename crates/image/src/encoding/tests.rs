//! Tests of the records, on the bytes of the reference and on made-up older and newer ones.

use std::collections::BTreeMap;

use ferry_core::denc::Encoder;
use ferry_core::{ErrorKind, Namespace, PoolId, SnapId, Timestamp};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

use super::{
    ChildSpec, Children, ImportPin, Message, MigrationIntent, MigrationPeer, MigrationPhase, MigrationRecord,
    MigrationSide, MigrationState, MirrorSnapshot, NotifyClient, Origin, ParentRecord, Protection, RequestId,
    SnapshotNamespace, SnapshotRecord, TrashEntry, TrashNotice, TrashSource, TrashState, V1Children,
    data_prefix, decode_response, decode_string, decode_u64, encode_response, encode_string, encode_u64,
    object_map_object, parse_hex_id, pin_key, pinned_by, snapshot_key, v1_children_key,
};

/// Bytes written as hex with blanks and, in quotes, text.
fn bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for (i, part) in text.split('"').enumerate() {
        if i % 2 == 1 {
            out.extend(part.as_bytes());
            continue;
        }
        let digits: String = part.chars().filter(char::is_ascii_hexdigit).collect();
        out.extend((0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap()));
    }
    out
}

const USER_SNAPSHOT: &str = r#"08 08 36 00 00 00  04 00 00 00 00 00 00 00  02 00 00 00 "s1"  00 00 00 04 00 00 00 00  00
    00 00 00 00 00 00 00 00  01 01 04 00 00 00  00 00 00 00  e8 f3 01 6b 96 e6 f8 2c  00 00 00 00  00"#;

#[test]
fn a_users_snapshot_is_as_in_the_reference() {
    let stored = bytes(USER_SNAPSHOT);
    let snap = SnapshotRecord::decode(&stored).unwrap();
    let timestamp = Timestamp { seconds: 0x6b01_f3e8, nanoseconds: 0x2cf8_e696 };
    assert_eq!(snap, SnapshotRecord { timestamp, ..SnapshotRecord::new(SnapId(4), "s1", 64 << 20) });
    assert_eq!(snap.encode().unwrap(), stored);
    let of_clone = SnapshotRecord { parent_overlap: Some(16 << 20), ..snap };
    let encoded = of_clone.encode().unwrap();
    assert_eq!(encoded[2], 0x3e, "eight bytes more");
    assert!(encoded.ends_with(&bytes("01 00 00 00 01 00 00 00 00")));
    assert_eq!(SnapshotRecord::decode(&encoded).unwrap(), of_clone);
}

#[test]
fn namespaces_of_snapshots_are_as_in_the_reference() {
    let trash = r#"01 01 0e 00 00 00  02 00 00 00  02 00 00 00 "s1"  00 00 00 00"#;
    let group = r#"01 01 2c 00 00 00  01 00 00 00  05 00 00 00 00 00 00 00  0c 00 00 00 "197a6b8b4567"
        0c 00 00 00 "19826b8b4567""#;
    for (text, expected) in [
        (trash, SnapshotNamespace::Trash { original_name: "s1".to_owned(), original_type: 0 }),
        (
            group,
            SnapshotNamespace::Group {
                pool: PoolId(5),
                group: "197a6b8b4567".to_owned(),
                snapshot: "19826b8b4567".to_owned(),
            },
        ),
        (
            "01 01 06 00 00 00 09 00 00 00 aa bb",
            SnapshotNamespace::Unknown { code: 9, payload: (&[0xaa, 0xbb][..]).into() },
        ),
    ] {
        let stored = bytes(text);
        let mut d = ferry_core::denc::Decoder::new(&stored);
        assert_eq!(SnapshotNamespace::decode_from(&mut d).unwrap(), (expected.clone(), false));
        d.expect_end().unwrap();
        let mut e = Encoder::new();
        expected.encode_into(&mut e);
        assert_eq!(e.finish(), stored);
    }
}

/// A snapshot record as releases before nautilus wrote it.
fn legacy_snapshot(version: u8, parent_overlap: Option<u64>) -> Vec<u8> {
    let mut e = Encoder::new();
    e.frame(version, 1, |e| {
        e.u64(4);
        e.string("s1");
        e.u64(1 << 20);
        e.u64(0x3d);
        if version >= 2 {
            e.frame(1, 1, |e| {
                e.i64(if parent_overlap.is_some() { 5 } else { -1 });
                e.string(if parent_overlap.is_some() { "par" } else { "" });
                e.u64(if parent_overlap.is_some() { 8 } else { SnapId::HEAD.0 });
                e.u64(parent_overlap.unwrap_or(0));
            });
        }
        if version >= 3 {
            e.u8(2);
        }
        if version >= 4 {
            e.u64(1);
        }
        if version >= 5 {
            SnapshotNamespace::User.encode_into(e);
        }
        if version >= 6 {
            e.timestamp(Timestamp { seconds: 7, nanoseconds: 8 });
        }
        if version >= 7 {
            e.u32(0);
        }
    });
    e.finish().to_vec()
}

#[test]
fn snapshots_of_every_older_release_are_read() {
    for version in 1..=7 {
        let snap = SnapshotRecord::decode(&legacy_snapshot(version, Some(512))).unwrap();
        assert_eq!((snap.id, snap.name.as_str(), snap.size), (SnapId(4), "s1", 1 << 20));
        assert_eq!(snap.overlap(), (version >= 2).then_some(512), "{version}");
        assert_eq!(snap.protection == Protection::Protected, version >= 3, "{version}");
        assert_eq!(snap.flags, u64::from(version >= 4), "{version}");
        assert_eq!(snap.timestamp.seconds == 7, version >= 6, "{version}");
        let again = SnapshotRecord::decode(&snap.encode().unwrap()).unwrap();
        assert_eq!(
            again.parent_overlap,
            snap.overlap(),
            "the overlap stays, the parent moves to its own key"
        );
        assert_eq!(again.legacy_parent, None);
        let alone = SnapshotRecord::decode(&legacy_snapshot(version, None)).unwrap();
        assert_eq!(alone.overlap(), None, "{version}");
    }
}

#[test]
fn what_a_newer_release_added_is_skipped_and_never_written_over() {
    let mut stored = bytes(USER_SNAPSHOT);
    stored[0] = 9;
    stored[2] += 3;
    stored.extend([1, 2, 3]);
    let snap = SnapshotRecord::decode(&stored).unwrap();
    assert_eq!(snap.name, "s1");
    assert_eq!(snap.encode().unwrap_err().kind(), ErrorKind::Unsupported);
    stored[1] = 9;
    assert_eq!(SnapshotRecord::decode(&stored).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn parents_are_as_in_the_reference() {
    let linked = r#"02 02 2d 00 00 00  05 00 00 00 00 00 00 00  00 00 00 00  0c 00 00 00 "1174b9262f06"
        08 00 00 00 00 00 00 00  01 00 00 00 01 00 00 00 00"#;
    let parent = ParentRecord::new(PoolId(5), &Namespace::default(), "1174b9262f06", SnapId(8), 16 << 20);
    assert_eq!(ParentRecord::decode(&bytes(linked)).unwrap(), parent);
    assert_eq!(parent.encode().unwrap(), bytes(linked));
    let flat = r#"02 02 25 00 00 00  05 00 00 00 00 00 00 00  00 00 00 00  0c 00 00 00 "1174b9262f06"
        0a 00 00 00 00 00 00 00  00"#;
    let parent = ParentRecord { snap: SnapId(10), head_overlap: None, ..parent };
    assert_eq!(ParentRecord::decode(&bytes(flat)).unwrap(), parent);
    assert_eq!(parent.encode().unwrap(), bytes(flat));
    let old = r#"01 01 1f 00 00 00  05 00 00 00 00 00 00 00  03 00 00 00 "abc"  08 00 00 00 00 00 00 00
        00 00 00 01 00 00 00 00"#;
    let old = ParentRecord::decode(&bytes(old)).unwrap();
    assert_eq!((old.image_id.as_str(), old.head_overlap), ("abc", Some(16 << 20)));
}

#[test]
fn children_are_as_in_the_reference() {
    let stored = r#"02 00 00 00
        02 01 1f 00 00 00  05 00 00 00 00 00 00 00  0c 00 00 00 "11968ae9d819"  03 00 00 00 "ns1"
        02 01 1c 00 00 00  08 00 00 00 00 00 00 00  0c 00 00 00 "119087f4ce57"  00 00 00 00"#;
    let children = Children::decode(&bytes(stored)).unwrap();
    let child = |pool, namespace, id: &str| ChildSpec {
        pool: PoolId(pool),
        namespace: Namespace::new(namespace),
        image_id: id.to_owned(),
    };
    let expected = [child(5, "ns1", "11968ae9d819"), child(8, "", "119087f4ce57")];
    assert_eq!(children.set, expected.into());
    assert_eq!(children.encode().unwrap(), bytes(stored));
    let v1 = bytes(r#"01 00 00 00  01 01 0e 00 00 00  05 00 00 00 00 00 00 00  02 00 00 00 "ab""#);
    assert_eq!(Children::decode(&v1).unwrap().set, [child(5, "", "ab")].into());
    let key = r#"05 00 00 00 00 00 00 00  0c 00 00 00 "1174b9262f06"  08 00 00 00 00 00 00 00"#;
    assert_eq!(v1_children_key(PoolId(5), "1174b9262f06", SnapId(8)), bytes(key));
    let value = bytes(r#"01 00 00 00  0c 00 00 00 "1186f3c73b68""#);
    let set = V1Children::decode(&value).unwrap();
    assert_eq!(set.0, ["1186f3c73b68".to_owned()].into());
    assert_eq!(set.encode(), value);
}

#[test]
fn trash_entries_are_as_in_the_reference() {
    let stored =
        r#"02 01 18 00 00 00  00  02 00 00 00 "t2"  2b f4 01 6b 4f 30 f9 1d  3b 02 02 6b 4f 30 f9 1d  00"#;
    let entry = TrashEntry::decode(&bytes(stored)).unwrap();
    assert_eq!(
        (entry.source, entry.state, entry.name.as_str()),
        (TrashSource::User, TrashState::Normal, "t2")
    );
    assert_eq!(entry.deferred_until.seconds - entry.deleted.seconds, 3600);
    assert_eq!(entry.encode().unwrap(), bytes(stored));
    let mut odd = bytes(stored);
    odd[1] = 2;
    assert_eq!(TrashEntry::decode(&odd).unwrap(), entry, "seen once: the oldest reader one higher");
    for notice in
        [TrashNotice::Added { id: "1".to_owned(), entry }, TrashNotice::Removed { id: "1".to_owned() }]
    {
        assert_eq!(TrashNotice::decode(&notice.encode()).unwrap(), notice);
    }
}

#[test]
fn migrations_are_as_in_the_reference() {
    let source = r#"03 01 3e 00 00 00  01  08 00 00 00 00 00 00 00  00 00 00 00  05 00 00 00 "m1new"
        0c 00 00 00 "124d2aeea2aa"  00 00 00 00  00 00 00 00 00 00 00 00  00  00  02  00 00 00 00  00  00 00 00 00"#;
    let record = MigrationRecord::decode(&bytes(source)).unwrap();
    assert_eq!((record.side, record.state), (MigrationSide::Source, MigrationState::Prepared));
    assert_eq!(record.encode().unwrap(), bytes(source));
    let target = r#"03 01 5b 00 00 00  02  05 00 00 00 00 00 00 00  00 00 00 00  02 00 00 00 "m1"
        0c 00 00 00 "122f872d9611"  02 00 00 00  0d 00 00 00 00 00 00 00 05 00 00 00 00 00 00 00
        0e 00 00 00 00 00 00 00 06 00 00 00 00 00 00 00  00 00 00 01 00 00 00 00  00  00  02  00 00 00 00  00
        00 00 00 00"#;
    let record = MigrationRecord::decode(&bytes(target)).unwrap();
    assert_eq!((record.overlap, record.source_snap(SnapId(6))), (16 << 20, Some(SnapId(14))));
    assert_eq!(record.encode().unwrap(), bytes(target));
    let import = MigrationRecord { source_spec: "{}".to_owned(), pool: PoolId(-1), ..record };
    let encoded = import.encode().unwrap();
    assert_eq!(encoded[..2], [3, 3], "only readers that know source specs may read it");
    assert_eq!(MigrationRecord::decode(&encoded).unwrap(), import);
    assert!(import.is_import() && !import.is_far());
}

#[test]
fn a_migration_from_another_store_is_for_ferry_alone_until_it_is_executed() {
    let record = MigrationRecord {
        side: MigrationSide::Target,
        pool: PoolId(7),
        namespace: Namespace::default(),
        image_name: "a".to_owned(),
        image_id: "1002".to_owned(),
        snap_seqs: [(1, 4)].into(),
        overlap: 1 << 20,
        flatten: false,
        mirroring: false,
        state: MigrationState::Prepared,
        description: String::new(),
        mirror_mode: 0,
        source_spec: String::new(),
        newer: false,
    };
    let mut far = record.clone().far();
    assert!(far.is_far() && !far.is_import() && !record.is_far());
    assert_eq!(far.pool, PoolId(-1), "a pool's number means nothing in another store");
    for (state, oldest_reader) in [
        (MigrationState::Preparing, 0xff),
        (MigrationState::Prepared, 0xff),
        (MigrationState::Executing, 0xff),
        (MigrationState::Executed, 3),
        (MigrationState::Aborting, 0xff),
    ] {
        far.state = state;
        let encoded = far.encode().unwrap();
        assert_eq!(encoded[..2], [3, oldest_reader], "{state}");
        assert_eq!(MigrationRecord::decode(&encoded).unwrap(), far);
    }
    // What a newer release writes stays unreadable.
    let mut newer = far.encode().unwrap().to_vec();
    newer[0] = 4;
    assert_eq!(MigrationRecord::decode(&newer).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn messages_are_as_in_the_reference() {
    let client = NotifyClient { client: 0x14a0, handle: 0x7fd6_b400_1410 };
    let acquired = "07 01 14 00 00 00  00 00 00 00  a0 14 00 00 00 00 00 00  10 14 00 b4 d6 7f 00 00";
    assert_eq!(Message::AcquiredLock(client).encode(), bytes(acquired));
    assert_eq!(Message::HeaderUpdate.encode(), bytes("07 01 04 00 00 00  03 00 00 00"));
    let request = RequestId { client, request: 3 };
    let create = Message::SnapCreate {
        name: "a".to_owned(),
        namespace: SnapshotNamespace::User,
        request: Some(request),
        flags: 0,
    };
    assert_eq!(create.encode()[..6], bytes("07 01 33 00 00 00")[..]);
    assert_eq!(encode_response(0), bytes("01 01 04 00 00 00  00 00 00 00"));
    assert_eq!(decode_response(&encode_response(-95)).unwrap(), Some(-95));
    assert_eq!(decode_response(&[]).unwrap(), None);
    for message in [
        Message::ReleasedLock(client),
        Message::RequestLock { client, force: true },
        Message::AsyncProgress { request, offset: 1, total: 2 },
        Message::AsyncComplete { request, result: -5 },
        create,
        Message::SnapRemove {
            name: "a".to_owned(),
            namespace: SnapshotNamespace::User,
            request: Some(request),
        },
        Message::SnapRename {
            snap: SnapId(4),
            name: "b".to_owned(),
            namespace: SnapshotNamespace::User,
            request: Some(request),
        },
        Message::Resize { size: 9, request, allow_shrink: true },
        Message::Other { op: 16, payload: (&[1, 2][..]).into() },
    ] {
        assert_eq!(Message::decode(&message.encode()).unwrap(), message);
        let owners = [2, 7, 8, 9, 11, 16].contains(&message.op());
        assert_eq!(message.wants_owner(), owners, "{message:?}");
    }
    let v6 = bytes(r#"06 01 13 00 00 00  08 00 00 00  01 00 00 00 "a"  01 01 04 00 00 00 00 00 00 00"#);
    let Message::SnapCreate { name, request, .. } = Message::decode(&v6).unwrap() else { panic!("not that") };
    assert_eq!((name.as_str(), request), ("a", None));
}

#[test]
fn names_and_keys_are_as_in_the_reference() {
    assert_eq!(snapshot_key(SnapId(0x1a)), "snapshot_000000000000001a");
    assert_eq!(parse_hex_id(b"snapshot_000000000000001a", "snapshot_"), Some(SnapId(0x1a)));
    for bad in
        ["snapshot_1a", "snapshot_000000000000001A", "snapshot_00000000000000001a", "snap_000000000000001a"]
    {
        assert_eq!(parse_hex_id(bad.as_bytes(), "snapshot_"), None, "{bad}");
    }
    assert_eq!(object_map_object("ab", SnapId::HEAD), "rbd_object_map.ab");
    assert_eq!(object_map_object("ab", SnapId(5)), "rbd_object_map.ab.0000000000000005");
    assert_eq!(data_prefix("ab", Some(PoolId(5))), "rbd_data.5.ab");
    assert_eq!(decode_string(&encode_string("105e68437917")).unwrap(), "105e68437917");
    assert!(decode_u64(&encode_u64(1)[..7]).is_err());
    assert!(decode_u64(&[0; 9]).is_err(), "bytes left over");
}

fn namespaces() -> impl Strategy<Value = SnapshotNamespace> {
    let group = (any::<i64>(), any::<String>(), any::<String>())
        .prop_map(|(pool, group, snapshot)| SnapshotNamespace::Group { pool: PoolId(pool), group, snapshot });
    let trash = (any::<String>(), any::<u32>())
        .prop_map(|(original_name, original_type)| SnapshotNamespace::Trash { original_name, original_type });
    let mirror = (any::<u8>(), any::<bool>(), any::<u64>(), any::<BTreeMap<u64, u64>>()).prop_map(
        |(state, complete, last_object, snap_seqs)| {
            SnapshotNamespace::Mirror(MirrorSnapshot {
                state,
                complete,
                peers: ["x".to_owned()].into(),
                primary_uuid: "u".to_owned(),
                primary_snap: SnapId(1),
                last_object,
                snap_seqs,
            })
        },
    );
    prop_oneof![Just(SnapshotNamespace::User), group, trash, mirror]
}

proptest! {
    #[test]
    fn any_snapshot_comes_back_as_it_went(
        id in 0..SnapId::MAX.0, name: String, size: u64, flags: u64, child_count: u32,
        parent_overlap: Option<u64>, namespace in namespaces(),
    ) {
        let snap = SnapshotRecord {
            flags, child_count, parent_overlap, namespace, ..SnapshotRecord::new(SnapId(id), &name, size)
        };
        assert_eq!(SnapshotRecord::decode(&snap.encode().unwrap()).unwrap(), snap);
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(noise: Vec<u8>, cut in 0_usize..80, at in 0_usize..80, value: u8) {
        let mut damaged = bytes(USER_SNAPSHOT);
        damaged.truncate(cut.max(1));
        let end = damaged.len();
        damaged[at % end] = value;
        for input in [noise, damaged] {
            drop(SnapshotRecord::decode(&input));
            drop(ParentRecord::decode(&input));
            drop(Children::decode(&input));
            drop(V1Children::decode(&input));
            drop(TrashEntry::decode(&input));
            drop(TrashNotice::decode(&input));
            drop(MigrationRecord::decode(&input));
            drop(Message::decode(&input));
            drop(super::GroupRef::decode(&input));
        }
    }
}

#[test]
fn the_notes_of_imports_come_back_and_those_of_other_migrations_stay_as_old_releases_read_them() {
    let peer = MigrationPeer {
        store: [7; 16],
        place: "/there".to_owned(),
        pool: PoolId(3),
        namespace: Namespace::default(),
        name: "a".to_owned(),
        id: "10".to_owned(),
    };
    let note = |origin: Option<Origin>| MigrationIntent {
        uuid: [1; 16],
        phase: MigrationPhase::Underway,
        peer: peer.clone(),
        base: None,
        overlaps: BTreeMap::new(),
        cursor: if origin.is_some() { 9 } else { 0 },
        origin,
        newer: false,
    };
    let pin = "24 bytes".to_owned();
    for (origin, version) in
        [(None, 1), (Some(Origin::Snapshot(SnapId(5))), 2), (Some(Origin::Foreign { pin }), 2)]
    {
        let note = note(origin);
        let encoded = note.encode().unwrap();
        assert_eq!(encoded[..2], [version, version]);
        assert_eq!(MigrationIntent::decode(&encoded).unwrap(), note);
        for cut in 0..encoded.len() {
            assert!(MigrationIntent::decode(&encoded[..cut]).is_err(), "{cut}");
        }
    }
    let pin = ImportPin { snaps: vec![SnapId(2), SnapId(4)], target: peer, newer: false };
    assert_eq!(ImportPin::decode(&pin.encode().unwrap()).unwrap(), pin);
    let uuid = [0xab; 16];
    assert_eq!(&pin_key(&uuid)[..], format!("ferry.pin.{}", "ab".repeat(16)).as_bytes());
    assert_eq!(pinned_by(&pin_key(&uuid)), Some(uuid));
    assert_eq!(pinned_by(b"ferry.pin.AB"), None);
}
