//! Tests of the header: what is read, what is written, and that nothing else is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use ferry_core::denc::Encoder;
use ferry_core::{Effect, Errno, ErrorKind, Namespace, ObjectId, PoolId, SnapId, Timestamp, WriteOp};
use futures_executor::block_on;

use super::{Header, Opening, Reattach, load, update};
use crate::create::{CreateOptions, create};
use crate::encoding::{
    ChildSpec, MigrationRecord, MigrationSide, MigrationState, ParentRecord, Protection, SnapshotNamespace,
    header as key, snapshot_key,
};
use crate::features::{Features, Flags, OpFeatures};
use crate::image::Image;
use crate::pool::Pool;
use crate::test_world::World;

fn image(world: &World) -> (Pool, ObjectId) {
    let pool = world.pool("p");
    block_on(create(&pool, "a", &CreateOptions::sized(64 << 20))).unwrap();
    let image = block_on(Image::open(&pool, "a", Opening::ReadOnly)).unwrap();
    (pool, image.header_object())
}

fn header() -> Header {
    let world = World::new();
    let (pool, object) = image(&world);
    block_on(load(&*pool.store, &object)).unwrap()
}

fn now() -> Timestamp {
    Timestamp { seconds: 5, nanoseconds: 0 }
}

fn parent(overlap: u64) -> ParentRecord {
    ParentRecord::new(PoolId(1), &Namespace::default(), "par", SnapId(3), overlap)
}

fn child(id: &str) -> ChildSpec {
    ChildSpec { pool: PoolId(1), namespace: Namespace::default(), image_id: id.to_owned() }
}

#[test]
fn keys_nobody_knows_are_kept_and_never_written() {
    let world = World::new();
    let (pool, object) = image(&world);
    let op = WriteOp::new().omap_set("ferry.note", "ours").omap_set("from_the_future", "theirs");
    pool.store.write(&object, op).wait().unwrap();
    let (after, ()) = block_on(update(&*pool.store, &object, |h| {
        h.set_size(1 << 20);
        Ok(())
    }))
    .unwrap();
    assert_eq!(after.other.len(), 2);
    let again = block_on(load(&*pool.store, &object)).unwrap();
    assert_eq!(again, after);
}

#[test]
fn a_change_that_changes_nothing_writes_nothing() {
    let world = World::new();
    let (pool, object) = image(&world);
    let before = block_on(load(&*pool.store, &object)).unwrap();
    let (after, ()) = block_on(update(&*pool.store, &object, |_| Ok(()))).unwrap();
    assert_eq!(after.version, before.version);
}

#[test]
fn of_two_changes_at_once_none_is_lost() {
    let world = World::new();
    let (pool, object) = image(&world);
    let tries = AtomicU32::new(0);
    let (store, elsewhere) = (Arc::clone(&pool.store), object.clone());
    let (after, ()) = block_on(update(&*pool.store, &object, |h| {
        if tries.fetch_add(1, Ordering::Relaxed) < 3 {
            // Somebody else is faster.
            let note = format!("note{}", tries.load(Ordering::Relaxed));
            let op = WriteOp::new().omap_set(format!("metadata_{note}"), "x");
            store.write(&elsewhere, op).wait().unwrap();
        }
        h.set_size(1 << 20);
        Ok(())
    }))
    .unwrap();
    assert_eq!(tries.load(Ordering::Relaxed), 4);
    assert_eq!((after.size, after.metadata.len()), (1 << 20, 3));
}

#[test]
fn a_header_of_more_keys_than_one_page_is_read_whole() {
    let world = World::new();
    let (pool, object) = image(&world);
    let many: Vec<(Bytes, Bytes)> =
        (0..3000).map(|n| (Bytes::from(format!("metadata_{n:05}")), Bytes::from_static(b"v"))).collect();
    pool.store.write(&object, WriteOp::new().effect(Effect::OmapSet(many))).wait().unwrap();
    assert_eq!(block_on(load(&*pool.store, &object)).unwrap().metadata.len(), 3000);
}

#[test]
fn a_header_that_lacks_a_key_or_lies_is_corrupt() {
    for (key, value) in [
        (key::SIZE, None),
        (key::ORDER, Some(&[26_u8][..])),
        (key::ORDER, Some(&[255_u8][..])),
        (key::SIZE, Some(&[1_u8, 2][..])),
        (key::STRIPE_COUNT, Some(&[0_u8; 8][..])),
        ("snapshot_0000000000000009", Some(&[8_u8, 8, 0, 0, 0, 0][..])),
    ] {
        let world = World::new();
        let (pool, object) = image(&world);
        let op = match value {
            None => WriteOp::new().omap_remove(key),
            Some(value) => WriteOp::new().omap_set(key, Bytes::copy_from_slice(value)),
        };
        pool.store.write(&object, op).wait().unwrap();
        let error = block_on(load(&*pool.store, &object)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{key}: {error}");
    }
}

#[test]
fn a_parent_inside_an_old_snapshot_record_moves_to_its_own_key_when_that_is_written() {
    let world = World::new();
    let (pool, object) = image(&world);
    let mut e = Encoder::new();
    e.frame(2, 1, |e| {
        e.u64(4);
        e.string("old");
        e.u64(64 << 20);
        e.u64(1);
        e.frame(1, 1, |e| {
            e.i64(1);
            e.string("par");
            e.u64(3);
            e.u64(1 << 20);
        });
    });
    let op = WriteOp::new()
        .omap_set(snapshot_key(SnapId(4)), e.finish())
        .omap_set(key::SNAP_SEQ, crate::encoding::encode_u64(4));
    pool.store.write(&object, op).wait().unwrap();
    let before = block_on(load(&*pool.store, &object)).unwrap();
    assert!(before.parent.is_none());
    let link = before.parent_at(SnapId(4)).unwrap().unwrap();
    assert_eq!((link.overlap, link.parent.image_id.as_str()), (1 << 20, "par"));
    assert!(before.is_v1_clone() && before.needs_parent());
    let (after, ()) =
        block_on(update(&*pool.store, &object, |h| h.rename_snapshot(SnapId(4), "new"))).unwrap();
    let reloaded = block_on(load(&*pool.store, &object)).unwrap();
    assert_eq!(reloaded, after);
    assert_eq!(reloaded.parent.as_ref().unwrap().head_overlap, None);
    assert_eq!(reloaded.parent_at(SnapId(4)).unwrap().unwrap().overlap, 1 << 20);
    let (last, removed) = block_on(update(&*pool.store, &object, |h| h.remove_snapshot(SnapId(4)))).unwrap();
    assert_eq!(removed.former_parent.unwrap().image_id, "par");
    assert!(last.parent.is_none());
}

#[test]
fn a_record_of_a_newer_release_is_read_but_not_replaced() {
    let world = World::new();
    let (pool, object) = image(&world);
    let (_, ()) = block_on(update(&*pool.store, &object, |h| {
        h.add_snapshot(SnapId(1), "s", SnapshotNamespace::User, now())
    }))
    .unwrap();
    let mut record =
        block_on(load(&*pool.store, &object)).unwrap().snaps[&SnapId(1)].encode().unwrap().to_vec();
    record[0] = 9;
    record[2] += 1;
    record.push(1);
    let op = WriteOp::new().omap_set(snapshot_key(SnapId(1)), record);
    pool.store.write(&object, op).wait().unwrap();
    let refused = block_on(update(&*pool.store, &object, |h| h.rename_snapshot(SnapId(1), "t"))).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    block_on(update(&*pool.store, &object, |h| {
        h.set_size(1);
        Ok(())
    }))
    .unwrap();
}

#[test]
fn snapshot_ids_only_grow_and_kinds_have_names_of_their_own() {
    let mut h = header();
    h.add_snapshot(SnapId(5), "s", SnapshotNamespace::User, now()).unwrap();
    for old in [SnapId(5), SnapId(4), SnapId::HEAD] {
        let stale = h.add_snapshot(old, "t", SnapshotNamespace::User, now()).unwrap_err();
        assert_eq!(stale.errno(), Errno::ESTALE);
    }
    let group = SnapshotNamespace::Group { pool: PoolId(1), group: "g".to_owned(), snapshot: "x".to_owned() };
    h.add_snapshot(SnapId(6), "s", group, now()).unwrap();
    assert_eq!(h.rename_snapshot(SnapId(6), "u").unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(h.user_snap("s").unwrap().id, SnapId(5));
    assert!(h.snap_context().is_valid());
    let unknown = SnapshotNamespace::Unknown { code: 9, payload: Bytes::new() };
    h.add_snapshot(SnapId(7), "odd", unknown, now()).unwrap();
    assert_eq!(h.trash_snapshot(SnapId(7), "uuid").unwrap_err().errno(), Errno::EINVAL);
}

#[test]
fn the_bit_operations_follows_the_operation_features() {
    let mut h = header();
    h.set_op_features(OpFeatures::CLONE_CHILD.with(OpFeatures::GROUP), OpFeatures::NONE);
    assert!(h.features.contains(Features::OPERATIONS));
    h.set_op_features(OpFeatures::NONE, OpFeatures::GROUP);
    assert!(h.features.contains(Features::OPERATIONS));
    h.set_op_features(OpFeatures::NONE, OpFeatures::CLONE_CHILD);
    assert!(!h.features.contains(Features::OPERATIONS));
}

#[test]
fn a_parent_is_attached_once_and_shows_no_more_than_the_image_holds() {
    let mut h = header();
    h.attach_parent(parent(1 << 40), Reattach::No).unwrap();
    assert_eq!(h.parent_at(SnapId::HEAD).unwrap().unwrap().overlap, 64 << 20);
    assert_eq!(h.attach_parent(parent(1), Reattach::No).unwrap_err().errno(), Errno::EEXIST);
    let other = ParentRecord { image_id: "other".to_owned(), ..parent(1) };
    assert_eq!(h.attach_parent(other.clone(), Reattach::No).unwrap_err().errno(), Errno::EEXIST);
    h.attach_parent(other, Reattach::Yes).unwrap();
    h.set_size(0);
    assert_eq!(h.parent_at(SnapId::HEAD).unwrap().unwrap().overlap, 0);
    assert!(h.detach_parent().unwrap().is_some());
    assert_eq!(h.detach_parent().unwrap_err().errno(), Errno::ENOENT);
    let nobody = ParentRecord { pool: PoolId(-1), ..parent(1) };
    assert_eq!(h.attach_parent(nobody, Reattach::No).unwrap_err().errno(), Errno::EINVAL);
    h.features = h.features.without(Features::LAYERING);
    assert_eq!(h.attach_parent(parent(1), Reattach::No).unwrap_err().errno(), Errno::ENOEXEC);
}

#[test]
fn children_are_counted_as_they_are_listed() {
    let mut h = header();
    h.add_snapshot(SnapId(1), "s", SnapshotNamespace::User, now()).unwrap();
    assert_eq!(h.attach_child(SnapId(9), child("c")).unwrap_err().errno(), Errno::ENOENT);
    h.attach_child(SnapId(1), child("c")).unwrap();
    h.attach_child(SnapId(1), child("d")).unwrap();
    assert_eq!(h.attach_child(SnapId(1), child("d")).unwrap_err().errno(), Errno::EEXIST);
    assert_eq!(h.snaps[&SnapId(1)].child_count, 2);
    assert_eq!(h.remove_snapshot(SnapId(1)).unwrap_err().errno(), Errno::EBUSY);
    h.trash_snapshot(SnapId(1), "uuid").unwrap();
    assert_eq!(h.attach_child(SnapId(1), child("e")).unwrap_err().errno(), Errno::ENOENT);
    assert!(!h.detach_child(SnapId(1), &child("c")).unwrap());
    assert_eq!(h.detach_child(SnapId(1), &child("c")).unwrap_err().errno(), Errno::ENOENT);
    h.snaps.get_mut(&SnapId(1)).unwrap().child_count = 7;
    assert_eq!(h.detach_child(SnapId(1), &child("d")).unwrap_err().errno(), Errno::EINVAL);
    h.snaps.get_mut(&SnapId(1)).unwrap().child_count = 1;
    assert!(h.detach_child(SnapId(1), &child("d")).unwrap(), "the trash snapshot may go");
    assert!(!h.op_features.contains(OpFeatures::CLONE_PARENT));
    h.remove_snapshot(SnapId(1)).unwrap();
    assert_eq!(h.op_features, OpFeatures::NONE);
}

#[test]
fn flags_are_heads_or_a_snapshots() {
    let mut h = header();
    h.add_snapshot(SnapId(1), "s", SnapshotNamespace::User, now()).unwrap();
    h.set_flags(SnapId(1), Flags::OBJECT_MAP_INVALID, Flags::NONE).unwrap();
    assert_eq!((h.flags, h.flags_at(SnapId(1)).unwrap()), (Flags::NONE, Flags::OBJECT_MAP_INVALID));
    h.set_all_flags(Flags::FAST_DIFF_INVALID, Flags::OBJECT_MAP_INVALID);
    assert_eq!(
        (h.flags, h.flags_at(SnapId(1)).unwrap()),
        (Flags::FAST_DIFF_INVALID, Flags::FAST_DIFF_INVALID)
    );
    assert_eq!(h.set_flags(SnapId(9), Flags::NONE, Flags::NONE).unwrap_err().errno(), Errno::ENOENT);
    h.set_protection(SnapId(1), Protection::Protected).unwrap();
    assert_eq!(h.remove_snapshot(SnapId(1)).unwrap_err().errno(), Errno::EBUSY);
}

fn record(side: MigrationSide, state: MigrationState) -> MigrationRecord {
    MigrationRecord {
        side,
        pool: PoolId(1),
        namespace: Namespace::default(),
        image_name: "x".to_owned(),
        image_id: "1".to_owned(),
        snap_seqs: std::collections::BTreeMap::new(),
        overlap: 0,
        flatten: false,
        mirroring: false,
        state,
        description: String::new(),
        mirror_mode: 0,
        source_spec: String::new(),
        newer: false,
    }
}

#[test]
fn a_migration_is_begun_once_and_its_feature_goes_with_it() {
    let mut h = header();
    let before = h.clone();
    let executing = MigrationState::Executing;
    assert_eq!(h.set_migration_state(executing, "").unwrap_err().errno(), Errno::ENOENT);
    h.begin_migration(record(MigrationSide::Source, MigrationState::Preparing)).unwrap();
    assert!(h.features.contains(Features::MIGRATING));
    let again = h.begin_migration(record(MigrationSide::Source, MigrationState::Preparing));
    assert_eq!(again.unwrap_err().errno(), Errno::EEXIST);
    h.set_migration_state(executing, "23% complete").unwrap();
    assert_eq!(h.migration.as_ref().unwrap().description, "23% complete");
    h.end_migration();
    h.end_migration();
    assert_eq!(h, before);
}

#[test]
fn a_migrating_image_opens_as_the_table_says() {
    use MigrationSide::{Source, Target};
    use MigrationState::{Aborting, Error, Executed, Executing, Prepared, Preparing, Unknown};
    let table = [
        (Source, Preparing, None, Some(30), false),
        (Source, Executed, None, Some(30), false),
        (Target, Preparing, Some(16), Some(16), false),
        (Target, Prepared, None, None, true),
        (Target, Executing, None, None, true),
        (Target, Executed, None, None, false),
        (Target, Aborting, None, Some(30), false),
        (Target, Error, Some(22), Some(22), false),
        (Target, Unknown(9), Some(22), Some(22), false),
    ];
    for (side, state, read, write, redirects) in table {
        let mut h = header();
        h.features = h.features.with(Features::MIGRATING);
        h.migration = Some(record(side, state));
        let errno = |opening| h.check_opening(opening).err().map(|e| e.errno().0);
        assert_eq!(errno(Opening::ReadOnly), read, "{side:?} {state}");
        assert_eq!(errno(Opening::ReadWrite), write, "{side:?} {state}");
        assert_eq!(h.redirects(), redirects, "{side:?} {state}");
    }
    let mut h = header();
    h.features = h.features.with(Features::MIGRATING);
    assert_eq!(h.check_opening(Opening::ReadOnly).unwrap_err().errno(), Errno::EBUSY);
}
