//! Tests of pools, namespaces and the directory.

use ferry_core::{Errno, Namespace, WriteOp};
use futures_executor::block_on;

use super::Pool;
use crate::clone::{self, CloneFormat};
use crate::create::{CreateOptions, create};
use crate::encoding::{DIRECTORY_OBJECT, TrashSource, encode_string};
use crate::header::Opening;
use crate::image::Image;
use crate::metadata;
use crate::progress::silent;
use crate::remove::{UsedParent, remove};
use crate::rename::rename;
use crate::snapshot;
use crate::status;
use crate::test_world::{World, die_everywhere};
use crate::trash::{self, Force};

#[test]
fn a_pool_is_found_by_name_and_number() {
    let world = World::new();
    let pool = world.pool("p");
    let namespace = Namespace::default();
    let missing = Pool::open(pool.store.clone(), world.env.clone(), "nopool", &namespace);
    assert_eq!(block_on(missing).unwrap_err().errno(), Errno::ENOENT);
    let q = block_on(pool.sibling(world.pool("q").id(), &Namespace::new("n"))).unwrap();
    assert_eq!((q.info.name.as_str(), q.namespace.as_str()), ("q", "n"));
}

#[test]
fn initialising_twice_changes_nothing_the_second_time() {
    let world = World::new();
    let pool = world.pool("p");
    block_on(pool.init()).unwrap();
    let once = world.dump(&pool);
    block_on(pool.init()).unwrap();
    assert_eq!(world.dump(&pool), once);
    assert!(once[0].contains("rbd_info"), "{once:?}");
}

#[test]
fn the_directory_lists_more_images_than_one_page_holds() {
    let world = World::new();
    let pool = world.pool("p");
    for n in 0..2100 {
        block_on(pool.directory_add(&format!("image{n:04}"), &format!("id{n:04}"))).unwrap();
    }
    let images = block_on(pool.images()).unwrap();
    assert_eq!(images.len(), 2100);
    assert_eq!(images[2099], ("image2099".to_owned(), "id2099".to_owned()));
    assert_eq!(block_on(pool.image_name("id0007")).unwrap().as_deref(), Some("image0007"));
}

#[test]
fn names_and_ids_are_taken_once() {
    let world = World::new();
    let pool = world.pool("p");
    block_on(pool.directory_add("a", "1")).unwrap();
    assert_eq!(block_on(pool.directory_add("a", "2")).unwrap_err().errno(), Errno::EEXIST);
    assert_eq!(block_on(pool.directory_add("b", "1")).unwrap_err().errno(), Errno::EBADF);
    assert_eq!(block_on(pool.directory_rename("x", "y", "1")).unwrap_err().errno(), Errno::ESTALE);
    assert_eq!(block_on(pool.directory_rename("x", "y", "3")).unwrap_err().errno(), Errno::ENOENT);
    block_on(pool.directory_rename("a", "b", "1")).unwrap();
    block_on(pool.directory_rename("a", "b", "1")).unwrap();
    assert!(block_on(pool.directory_remove("b", "1")).unwrap());
    assert!(!block_on(pool.directory_remove("b", "1")).unwrap());
}

#[test]
fn an_empty_id_object_counts_as_none() {
    let world = World::new();
    let pool = world.pool("p");
    let object = pool.object("rbd_id.a");
    pool.store.write(&object, WriteOp::new().effect(ferry_core::Effect::Create)).wait().unwrap();
    assert_eq!(block_on(pool.image_id("a")).unwrap_err().errno(), Errno::ENOENT);
    block_on(pool.create_id("a", "77")).unwrap();
    assert_eq!(block_on(pool.image_id("a")).unwrap(), "77");
    assert_eq!(block_on(pool.create_id("a", "78")).unwrap_err().errno(), Errno::EEXIST);
    assert!(!block_on(pool.remove_id("a", "78")).unwrap());
}

#[test]
fn namespaces_are_made_listed_and_removed_when_empty() {
    let world = World::new();
    let pool = world.pool("p");
    block_on(pool.create_namespace("n")).unwrap();
    block_on(pool.create_namespace("m")).unwrap();
    assert_eq!(block_on(pool.create_namespace("n")).unwrap_err().errno(), Errno::EEXIST);
    for bad in ["", "a/b", "a@b"] {
        assert_eq!(block_on(pool.create_namespace(bad)).unwrap_err().errno(), Errno::EINVAL, "{bad}");
    }
    let names = [Namespace::new("m"), Namespace::new("n")];
    assert_eq!(block_on(pool.namespaces()).unwrap(), names);
    let inside = pool.in_namespace(&names[1]);
    block_on(create(&inside, "a", &CreateOptions::sized(1 << 20))).unwrap();
    assert_eq!(block_on(pool.remove_namespace("n")).unwrap_err().errno(), Errno::EBUSY);
    let source = TrashSource::User;
    let id = block_on(trash::move_in(&inside, "a", source, std::time::Duration::ZERO)).unwrap();
    assert_eq!(block_on(pool.remove_namespace("n")).unwrap_err().errno(), Errno::EBUSY);
    block_on(trash::restore(&inside, &id, None, None)).unwrap();
    block_on(remove(&inside, "a", UsedParent::Refuse, &mut silent)).unwrap();
    block_on(pool.remove_namespace("n")).unwrap();
    assert_eq!(block_on(pool.namespaces()).unwrap(), names[..1]);
    assert_eq!(block_on(pool.remove_namespace("n")).unwrap_err().errno(), Errno::ENOENT);
    let left = world.dump(&pool);
    assert!(!left.iter().any(|o| o.contains("/n/")), "{left:?}");
}

#[test]
fn a_crash_with_a_namespace_is_finished_by_the_same_command() {
    die_everywhere(
        |_| {},
        async |_, pool| pool.create_namespace("n").await,
        |again| assert!(again.is_ok() || again.unwrap_err().errno() == Errno::EEXIST),
        |_, pool| {
            let inside = pool.in_namespace(&Namespace::new("n"));
            block_on(create(&inside, "a", &CreateOptions::sized(1 << 20))).unwrap();
        },
    );
    die_everywhere(
        |world| block_on(world.pool("p").create_namespace("n")).unwrap(),
        async |_, pool| pool.remove_namespace("n").await,
        |again| assert!(again.is_ok() || again.unwrap_err().errno() == Errno::ENOENT),
        |_, pool| {
            assert_eq!(block_on(pool.namespaces()).unwrap(), []);
            block_on(pool.create_namespace("n")).unwrap();
        },
    );
}

#[test]
fn a_directory_entry_that_is_no_text_is_reported() {
    let world = World::new();
    let pool = world.pool("p");
    let op = WriteOp::new().omap_set(&b"name_\xff"[..], encode_string("1"));
    pool.store.write(&pool.object(DIRECTORY_OBJECT), op).wait().unwrap();
    let error = block_on(pool.images()).unwrap_err();
    assert_eq!(error.kind(), ferry_core::ErrorKind::Corrupt);
}

#[test]
fn every_write_to_a_read_only_pool_fails_with_30_and_changes_no_byte() {
    let world = World::new();
    let pool = world.pool("p");
    block_on(pool.create_namespace("n")).unwrap();
    for name in ["a", "b"] {
        block_on(create(&pool, name, &CreateOptions::sized(1 << 20))).unwrap();
    }
    let mut image = block_on(Image::open(&pool, "a", Opening::ReadWrite)).unwrap();
    block_on(snapshot::create(&mut image, "s")).unwrap();
    block_on(image.close()).unwrap();
    block_on(status::lock_add(&block_on(Image::open(&pool, "a", Opening::ReadOnly)).unwrap(), "x", None))
        .unwrap();
    let id = block_on(trash::move_in(&pool, "b", TrashSource::User, std::time::Duration::ZERO)).unwrap();
    let pool = world.freeze(&pool);
    let before = world.dump(&pool);
    let image = block_on(Image::open(&pool, "a", Opening::ReadOnly)).unwrap();
    let at = image.at_snapshot("s").unwrap();
    let options = CreateOptions::sized(1 << 20);
    let refused = [
        ("create", block_on(create(&pool, "c", &options)).map(drop)),
        (
            "create in namespace",
            block_on(create(&pool.in_namespace(&Namespace::new("n")), "c", &options)).map(drop),
        ),
        ("clone", block_on(clone::create(&at, &pool, "c", CloneFormat::Auto, &options)).map(drop)),
        ("remove", block_on(remove(&pool, "a", UsedParent::Refuse, &mut silent))),
        ("rename", block_on(rename(&pool, "a", "c"))),
        ("open", block_on(Image::open(&pool, "a", Opening::ReadWrite)).map(drop)),
        (
            "trash mv",
            block_on(trash::move_in(&pool, "a", TrashSource::User, std::time::Duration::ZERO)).map(drop),
        ),
        ("trash restore", block_on(trash::restore(&pool, &id, None, None))),
        ("trash rm", block_on(trash::remove(&pool, &id, Force::Yes, &mut silent))),
        ("trash purge", block_on(trash::purge(&pool, world.env.clock.now(), &mut silent)).map(drop)),
        ("namespace create", block_on(pool.create_namespace("m"))),
        ("namespace rm", block_on(pool.remove_namespace("n"))),
        ("metadata", block_on(metadata::pool_set(&pool, "k", b"v"))),
        ("config", block_on(metadata::config::set_in_pool(&pool, "rbd_cache", "true"))),
        ("lock add", block_on(status::lock_add(&image, "y", None))),
        ("lock rm", block_on(status::lock_remove(&image, "x", pool.store.client()))),
    ];
    for (what, result) in refused {
        assert_eq!(result.map_err(|e| e.errno()), Err(Errno::EROFS), "{what}");
        assert_eq!(world.dump(&pool), before, "{what}");
    }
    block_on(pool.init()).unwrap();
    assert_eq!(world.dump(&pool), before, "a pool that is initialised already stays as it is");
}
