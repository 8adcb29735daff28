//! Tests of renaming.

use ferry_core::Errno;
use futures_executor::block_on;

use super::rename;
use crate::create::{CreateOptions, create};
use crate::encoding::id_object;
use crate::progress::silent;
use crate::remove::{UsedParent, remove};
use crate::test_world::{DyingStore, World, die_everywhere};

fn set_up(world: &World) {
    block_on(create(&world.pool("p"), "a", &CreateOptions::sized(1 << 20))).unwrap();
}

#[test]
fn the_id_stays_and_the_old_name_is_free() {
    let world = World::new();
    set_up(&world);
    let pool = world.pool("p");
    let id = block_on(pool.image_id("a")).unwrap();
    block_on(rename(&pool, "a", "b")).unwrap();
    assert_eq!(block_on(pool.images()).unwrap(), [("b".to_owned(), id.clone())]);
    assert_eq!(block_on(pool.image_id("b")).unwrap(), id);
    assert_eq!(block_on(pool.image_id("a")).unwrap_err().errno(), Errno::ENOENT);
    set_up(&world);
}

#[test]
fn a_taken_name_stays_its_owners() {
    let world = World::new();
    set_up(&world);
    let pool = world.pool("p");
    let other = block_on(create(&pool, "b", &CreateOptions::sized(1 << 20))).unwrap();
    for (from, to, errno) in [
        ("a", "b", Errno::EEXIST),
        ("a", "a", Errno::EEXIST),
        ("none", "c", Errno::ENOENT),
        ("a", "", Errno::EINVAL),
        ("a", "x/y", Errno::EINVAL),
    ] {
        assert_eq!(block_on(rename(&pool, from, to)).unwrap_err().errno(), errno, "{from} {to}");
    }
    assert_eq!(block_on(pool.image_id("b")).unwrap(), other);
    assert_eq!(block_on(pool.images()).unwrap().len(), 2);
    let frozen = world.freeze(&pool);
    assert_eq!(block_on(rename(&frozen, "a", "c")).unwrap_err().errno(), Errno::EROFS);
}

#[test]
fn a_crash_is_finished_by_renaming_again() {
    die_everywhere(
        set_up,
        async |_, pool| rename(pool, "a", "b").await,
        // It may have been whole before the death.
        |again| assert!(again.is_ok() || again.unwrap_err().errno() == Errno::ENOENT),
        |world, pool| {
            let id = block_on(pool.image_id("b")).unwrap();
            assert_eq!(block_on(pool.images()).unwrap(), [("b".to_owned(), id)]);
            assert!(!world.object_names(pool).contains(&id_object("a")));
        },
    );
}

#[test]
fn an_image_with_two_names_after_a_crash_is_removed_under_either() {
    for name in ["a", "b"] {
        for changes in 1..3 {
            let world = World::new();
            set_up(&world);
            let store = DyingStore::new(world.store.another_client(), changes);
            assert!(block_on(rename(&world.pool_of(store, "p"), "a", "b")).is_err());
            let pool = world.fresh_pool("p");
            block_on(remove(&pool, name, UsedParent::Refuse, &mut silent)).unwrap();
            assert_eq!(block_on(pool.images()).unwrap(), [], "{name} {changes}");
            // The other name leads nowhere; removing it cleans that up, if it is still there.
            let other = if name == "a" { "b" } else { "a" };
            match block_on(remove(&pool, other, UsedParent::Refuse, &mut silent)) {
                Ok(()) => {}
                Err(e) => assert_eq!(e.errno(), Errno::ENOENT),
            }
            let names = world.object_names(&pool);
            assert!(!names.iter().any(|n| n.starts_with("rbd_id")), "{name} {changes} {names:?}");
        }
    }
}
