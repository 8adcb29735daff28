//! Tests of snapshots.

use ferry_core::{Errno, SnapId, WriteOp};
use futures_executor::block_on;

use super::{create, protect, purge, remove, rename, set_limit, unprotect};
use crate::create::{CreateOptions, create as create_image};
use crate::encoding::Protection;
use crate::features::{Features, Flags, OpFeatures};
use crate::header::Opening;
use crate::image::Image;
use crate::layout::ObjectNo;
use crate::live_map::load_stored;
use crate::object_map::{Loaded, ObjectMap, ObjectState};
use crate::pool::Pool;
use crate::progress::silent;
use crate::test_world::{World, die_everywhere};

const SIZE: u64 = 64 << 20;

fn new_image(world: &World) -> Image {
    let pool = world.pool("p");
    block_on(create_image(&pool, "a", &CreateOptions::sized(SIZE))).unwrap();
    open(&pool)
}

fn open(pool: &Pool) -> Image {
    block_on(Image::open(pool, "a", Opening::ReadWrite)).unwrap()
}

/// Says in HEAD's map that object 0 exists, as a write of it would.
fn mark_written(image: &Image) {
    let mut map = map_at(image, SnapId::HEAD);
    map.set(ObjectNo(0), ObjectState::Exists);
    let op = WriteOp::new().effect(ferry_core::Effect::WriteFull(map.encode()));
    image.pool.store.write(&image.object_map_object(SnapId::HEAD), op).wait().unwrap();
}

fn map_at(image: &Image, at: SnapId) -> ObjectMap {
    match block_on(load_stored(&*image.pool.store, &image.object_map_object(at), 16)).unwrap() {
        Loaded::Valid(map) => map,
        Loaded::Invalid { reason, .. } => panic!("{reason}"),
    }
}

#[test]
fn a_snapshot_keeps_size_flags_and_time() {
    let world = World::new();
    let mut image = new_image(&world);
    let first = block_on(create(&mut image, "one")).unwrap();
    block_on(image.update_header(|h| {
        h.set_size(SIZE / 2);
        Ok(())
    }))
    .unwrap();
    let second = block_on(create(&mut image, "two")).unwrap();
    assert!(second > first);
    assert_eq!(image.header.size_at(first).unwrap(), SIZE);
    assert_eq!(image.header.size_at(second).unwrap(), SIZE / 2);
    assert_eq!(image.snap_context().seq, second.0);
    assert_eq!(&*image.snap_context().snaps, [second, first]);
    assert!(image.header.snap(first).unwrap().timestamp.seconds > 0);
    assert_eq!(image.at_snapshot("one").unwrap().size().unwrap(), SIZE);
}

#[test]
fn names_are_taken_once_and_the_limit_holds() {
    let world = World::new();
    let mut image = new_image(&world);
    block_on(create(&mut image, "one")).unwrap();
    assert_eq!(block_on(create(&mut image, "one")).unwrap_err().errno(), Errno::EEXIST);
    assert_eq!(block_on(create(&mut image, "")).unwrap_err().errno(), Errno::EINVAL);
    block_on(set_limit(&mut image, Some(2))).unwrap();
    block_on(create(&mut image, "two")).unwrap();
    assert_eq!(block_on(create(&mut image, "three")).unwrap_err().errno(), Errno::EDQUOT);
    block_on(set_limit(&mut image, None)).unwrap();
    block_on(create(&mut image, "three")).unwrap();
}

#[test]
fn renaming_refuses_taken_names_and_unknown_ones() {
    let world = World::new();
    let mut image = new_image(&world);
    let id = block_on(create(&mut image, "one")).unwrap();
    block_on(create(&mut image, "two")).unwrap();
    assert_eq!(block_on(rename(&mut image, "one", "two")).unwrap_err().errno(), Errno::EEXIST);
    assert_eq!(block_on(rename(&mut image, "one", "one")).unwrap_err().errno(), Errno::EEXIST);
    assert_eq!(block_on(rename(&mut image, "none", "x")).unwrap_err().errno(), Errno::ENOENT);
    block_on(rename(&mut image, "one", "uno")).unwrap();
    assert_eq!(image.header.user_snap("uno").unwrap().id, id);
}

#[test]
fn a_protected_snapshot_stays() {
    let world = World::new();
    let mut image = new_image(&world);
    block_on(create(&mut image, "one")).unwrap();
    assert_eq!(block_on(unprotect(&mut image, "one")).unwrap_err().errno(), Errno::EINVAL);
    block_on(protect(&mut image, "one")).unwrap();
    assert_eq!(block_on(protect(&mut image, "one")).unwrap_err().errno(), Errno::EBUSY);
    assert_eq!(block_on(remove(&mut image, "one")).unwrap_err().errno(), Errno::EBUSY);
    assert!(!image.header.snaps.values().any(|s| s.namespace.is_trash()));
    block_on(unprotect(&mut image, "one")).unwrap();
    block_on(remove(&mut image, "one")).unwrap();
    assert!(image.header.snaps.is_empty());
    assert_eq!(image.header.op_features, OpFeatures::NONE);
    assert!(!image.header.features.contains(Features::OPERATIONS));
    assert_eq!(block_on(remove(&mut image, "one")).unwrap_err().errno(), Errno::ENOENT);
}

#[test]
fn protecting_needs_layering() {
    let world = World::new();
    let pool = world.pool("p");
    let options = CreateOptions { features: Some(Features::EXCLUSIVE_LOCK), ..CreateOptions::sized(SIZE) };
    block_on(create_image(&pool, "a", &options)).unwrap();
    let mut image = open(&pool);
    block_on(create(&mut image, "one")).unwrap();
    assert_eq!(block_on(protect(&mut image, "one")).unwrap_err().errno(), Errno::ENOSYS);
}

#[test]
fn a_purge_leaves_what_is_protected() {
    let world = World::new();
    let mut image = new_image(&world);
    for name in ["one", "two", "three"] {
        block_on(create(&mut image, name)).unwrap();
    }
    block_on(protect(&mut image, "two")).unwrap();
    let mut seen = Vec::new();
    let purged = block_on(purge(&mut image, &mut |done, total| seen.push((done, total)))).unwrap();
    assert_eq!(purged.protected, ["two"]);
    assert_eq!(purged.removed, ["three", "one"]);
    assert_eq!(seen, [(1, 2), (2, 2)]);
    assert_eq!(block_on(purge(&mut image, &mut silent)).unwrap().removed, [] as [&str; 0]);
}

#[test]
fn a_snapshot_copies_the_object_map_and_its_removal_hands_on_what_it_knew() {
    let world = World::new();
    let mut image = new_image(&world);
    mark_written(&image);
    let one = block_on(create(&mut image, "one")).unwrap();
    assert_eq!(map_at(&image, one).get(ObjectNo(0)), ObjectState::Exists);
    assert_eq!(map_at(&image, SnapId::HEAD).get(ObjectNo(0)), ObjectState::Clean);
    let two = block_on(create(&mut image, "two")).unwrap();
    assert_eq!(map_at(&image, two).get(ObjectNo(0)), ObjectState::Clean);
    block_on(remove(&mut image, "one")).unwrap();
    assert_eq!(
        map_at(&image, two).get(ObjectNo(0)),
        ObjectState::Exists,
        "changed before one, so before two"
    );
    assert_eq!(map_at(&image, SnapId::HEAD).get(ObjectNo(0)), ObjectState::Clean);
    assert!(!world.object_names(&image.pool).iter().any(|n| n.ends_with(&format!("{:016x}", one.0))));
}

#[test]
fn a_missing_object_map_is_marked_invalid_rather_than_trusted() {
    let world = World::new();
    let mut image = new_image(&world);
    block_on(image.pool.remove_object(&image.object_map_object(SnapId::HEAD))).unwrap();
    let one = block_on(create(&mut image, "one")).unwrap();
    assert!(image.header.flags.contains(Flags::OBJECT_MAP_INVALID));
    assert!(image.header.flags_at(one).unwrap().contains(Flags::OBJECT_MAP_INVALID));
    assert!(image.header.flags_at(one).unwrap().contains(Flags::FAST_DIFF_INVALID));
    assert!(map_at(&image, one).states().all(|(_, state)| state == ObjectState::Exists));
}

#[test]
fn a_snapshot_of_an_image_whose_map_is_invalid_has_a_map_that_denies_nothing() {
    let world = World::new();
    let mut image = new_image(&world);
    let bad = Flags::OBJECT_MAP_INVALID.with(Flags::FAST_DIFF_INVALID);
    block_on(image.update_header(|h| h.set_flags(SnapId::HEAD, bad, Flags::NONE))).unwrap();
    let before = map_at(&image, SnapId::HEAD);
    let one = block_on(create(&mut image, "one")).unwrap();
    let map = map_at(&image, one);
    assert_eq!(map.count(), 16);
    assert!(map.states().all(|(_, state)| state == ObjectState::Exists));
    assert_eq!(image.header.flags_at(one).unwrap(), bad);
    assert_eq!(map_at(&image, SnapId::HEAD), before, "what nobody trusts stays for whoever rebuilds it");
    block_on(remove(&mut image, "one")).unwrap();
    assert!(!world.object_names(&image.pool).iter().any(|n| n.ends_with(&format!("{:016x}", one.0))));
}

#[test]
fn an_image_that_is_read_only_takes_no_snapshot() {
    let world = World::new();
    let image = new_image(&world);
    let pool = image.pool.clone();
    block_on(image.close()).unwrap();
    let mut reader = block_on(Image::open(&pool, "a", Opening::ReadOnly)).unwrap();
    assert_eq!(block_on(create(&mut reader, "one")).unwrap_err().errno(), Errno::EROFS);
    let frozen = world.freeze(&pool);
    let before = world.dump(&frozen);
    let refused = block_on(Image::open(&frozen, "a", Opening::ReadWrite)).unwrap_err();
    assert_eq!(refused.errno(), Errno::EROFS);
    assert_eq!(world.dump(&frozen), before);
}

#[test]
fn a_crash_while_making_one_leaves_none_or_one() {
    die_everywhere(
        |world| block_on(new_image(world).close()).unwrap(),
        async |_, pool| {
            let mut image = Image::open(pool, "a", Opening::ReadWrite).await?;
            create(&mut image, "one").await?;
            image.close().await
        },
        |again| {
            if let Err(e) = again {
                assert_eq!(e.errno(), Errno::EEXIST);
            }
        },
        |_, pool| {
            let mut image = open(pool);
            assert_eq!(image.header.snaps.len(), 1);
            let snap = image.header.user_snap("one").unwrap().clone();
            assert_eq!(image.header.snap_seq, snap.id.0);
            block_on(remove(&mut image, "one")).unwrap();
            assert!(image.header.snaps.is_empty());
        },
    );
}

#[test]
fn a_crash_while_removing_one_is_finished_by_removing_it_again() {
    die_everywhere(
        |world| {
            let mut image = new_image(world);
            mark_written(&image);
            block_on(create(&mut image, "one")).unwrap();
            block_on(create(&mut image, "two")).unwrap();
            block_on(image.close()).unwrap();
        },
        async |_, pool| {
            let mut image = Image::open(pool, "a", Opening::ReadWrite).await?;
            remove(&mut image, "one").await?;
            image.close().await
        },
        // The whole of it may have happened before the death.
        |again| assert!(again.is_ok() || again.unwrap_err().errno() == Errno::ENOENT),
        |world, pool| {
            let image = open(pool);
            let left: Vec<_> = image.header.snaps.values().map(|s| s.name.clone()).collect();
            assert_eq!(left, ["two"]);
            assert_eq!(image.header.op_features, OpFeatures::NONE);
            let two = image.header.user_snap("two").unwrap().id;
            assert_eq!(map_at(&image, two).get(ObjectNo(0)), ObjectState::Exists);
            let maps = world.object_names(pool).iter().filter(|n| n.starts_with("rbd_object_map")).count();
            assert_eq!(maps, 2, "HEAD's and two's");
        },
    );
}

#[test]
fn a_crash_while_unprotecting_is_finished_either_way() {
    die_everywhere(
        |world| {
            let mut image = new_image(world);
            block_on(create(&mut image, "one")).unwrap();
            block_on(protect(&mut image, "one")).unwrap();
            block_on(image.close()).unwrap();
        },
        async |_, pool| {
            let mut image = Image::open(pool, "a", Opening::ReadWrite).await?;
            unprotect(&mut image, "one").await?;
            image.close().await
        },
        |again| assert!(again.is_ok() || again.unwrap_err().errno() == Errno::EINVAL),
        |_, pool| {
            let image = open(pool);
            assert_eq!(image.header.user_snap("one").unwrap().protection, Protection::Unprotected);
        },
    );
}
