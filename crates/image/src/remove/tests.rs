//! Tests of removal.

use ferry_core::{Effect, Errno, Guard, SnapId, WriteOp};
use futures_executor::block_on;

use super::{UsedParent, check_watchers, remove};
use crate::create::{CreateOptions, create};
use crate::encoding::{DIRECTORY_OBJECT, GroupRef, directory_id, directory_name, header_object, id_object};
use crate::header::Opening;
use crate::image::Image;
use crate::layout::ObjectNo;
use crate::live_map::load_stored;
use crate::object_map::{Loaded, ObjectState};
use crate::pool::Pool;
use crate::progress::silent;
use crate::snapshot;
use crate::test_world::{World, die_everywhere};
use crate::trash;

const SIZE: u64 = 8 << 20;

/// An image `a` of two objects, both written, the object map knowing.
fn set_up(world: &World) {
    let pool = world.pool("p");
    block_on(create(&pool, "a", &CreateOptions::sized(SIZE))).unwrap();
    let image = block_on(Image::open(&pool, "a", Opening::ReadOnly)).unwrap();
    let object = image.object_map_object(SnapId::HEAD);
    let Loaded::Valid(mut map) = block_on(load_stored(&*pool.store, &object, 2)).unwrap() else {
        panic!("a new map is valid")
    };
    for number in 0..2 {
        pool.store.write(&image.data_object(number), WriteOp::new().write(0, "data")).wait().unwrap();
        map.set(ObjectNo(number), ObjectState::Exists);
    }
    let op = WriteOp::new().effect(Effect::WriteFull(map.encode()));
    pool.store.write(&object, op).wait().unwrap();
}

fn remove_it(pool: &Pool) -> ferry_core::Result<()> {
    block_on(remove(pool, "a", UsedParent::Refuse, &mut silent))
}

/// Nothing of any image is left.
fn check_clean(world: &World, pool: &Pool) {
    let mut names = world.object_names(pool);
    names.retain(|n| !["rbd_directory", "rbd_info", "rbd_trash", "rbd_children"].contains(&n.as_str()));
    assert_eq!(names, [] as [&str; 0]);
    assert_eq!(block_on(pool.images()).unwrap(), []);
    assert_eq!(block_on(trash::list(pool)).unwrap(), []);
}

#[test]
fn everything_of_the_image_goes_and_progress_is_told() {
    let world = World::new();
    set_up(&world);
    let pool = world.pool("p");
    let mut seen = Vec::new();
    block_on(remove(&pool, "a", UsedParent::Refuse, &mut |done, total| seen.push((done, total)))).unwrap();
    assert_eq!(seen, [(1, 2), (2, 2), (2, 2)]);
    check_clean(&world, &pool);
    assert_eq!(remove_it(&pool).unwrap_err().errno(), Errno::ENOENT);
}

#[test]
fn snapshots_watchers_and_groups_are_in_the_way() {
    let world = World::new();
    set_up(&world);
    let pool = world.pool("p");
    let mut image = block_on(Image::open(&pool, "a", Opening::ReadWrite)).unwrap();
    block_on(snapshot::create(&mut image, "s")).unwrap();
    let other = world.fresh_pool("p");
    assert_eq!(remove_it(&other).unwrap_err().errno(), Errno::EBUSY);
    assert!(block_on(check_watchers(&image)).is_ok(), "its own watch is no other's");
    block_on(image.close()).unwrap();
    let refused = remove_it(&pool).unwrap_err();
    assert_eq!((refused.errno(), refused.fact("snapshots")), (Errno::ENOTEMPTY, Some("1")));
    let mut image = block_on(Image::open(&pool, "a", Opening::ReadWrite)).unwrap();
    block_on(snapshot::remove(&mut image, "s")).unwrap();
    let group = GroupRef { pool: pool.id(), group: "g".to_owned(), newer: false };
    block_on(image.update_header(|h| {
        h.group = Some(group.clone());
        Ok(())
    }))
    .unwrap();
    block_on(image.close()).unwrap();
    assert_eq!(remove_it(&pool).unwrap_err().errno(), Errno::EMLINK);
    assert_eq!(block_on(pool.images()).unwrap().len(), 1);
    assert_eq!(block_on(trash::list(&pool)).unwrap(), []);
}

#[test]
fn a_read_only_pool_keeps_its_image() {
    let world = World::new();
    set_up(&world);
    let pool = world.freeze(&world.pool("p"));
    let before = world.dump(&pool);
    assert_eq!(remove_it(&pool).unwrap_err().errno(), Errno::EROFS);
    assert_eq!(world.dump(&pool), before);
}

#[test]
fn an_image_that_lost_a_part_of_itself_is_cleaned() {
    let omap_remove = |key| WriteOp::new().omap_remove(key);
    let whole = || WriteOp::new().guard(Guard::AssertExists).effect(Effect::Remove);
    for part in ["id", "name key", "id key", "header"] {
        let world = World::new();
        set_up(&world);
        let pool = world.pool("p");
        let id = block_on(pool.image_id("a")).unwrap();
        let (name, op) = match part {
            "id" => (id_object("a"), whole()),
            "name key" => (DIRECTORY_OBJECT.to_owned(), omap_remove(directory_name("a"))),
            "id key" => (DIRECTORY_OBJECT.to_owned(), omap_remove(directory_id(&id))),
            _ => (header_object(&id), whole()),
        };
        pool.store.write(&pool.object(&name), op).wait().unwrap();
        remove_it(&pool).unwrap();
        assert_eq!(block_on(pool.images()).unwrap(), [], "{part}");
        assert_eq!(block_on(trash::list(&pool)).unwrap(), [], "{part}");
        let keep: &[&str] = if part == "header" { &["rbd_data"] } else { &[] };
        let mut names = world.object_names(&pool);
        names.retain(|n| !["rbd_directory", "rbd_info", "rbd_trash"].contains(&n.as_str()));
        names.retain(|n| !keep.iter().any(|k| n.starts_with(k)));
        assert_eq!(names, [] as [&str; 0], "{part}");
    }
}

#[test]
fn a_crash_is_finished_by_removing_again() {
    die_everywhere(
        set_up,
        async |_, pool| remove(pool, "a", UsedParent::Refuse, &mut silent).await,
        // It may have been whole before the death.
        |again| assert!(again.is_ok() || again.unwrap_err().errno() == Errno::ENOENT),
        check_clean,
    );
}
