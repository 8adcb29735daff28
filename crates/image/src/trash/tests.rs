//! Tests of the trash.

use std::time::Duration;

use ferry_core::{Errno, Timestamp};
use futures_executor::block_on;

use super::{Force, find_by_name, get, is_expired, list, move_in, purge, remove, restore, set_state};
use crate::clone::{self, CloneFormat};
use crate::create::{CreateOptions, create};
use crate::encoding::{TrashEntry, TrashSource, TrashState};
use crate::header::Opening;
use crate::image::Image;
use crate::pool::Pool;
use crate::progress::silent;
use crate::snapshot;
use crate::test_world::{World, die_everywhere};

const SIZE: u64 = 8 << 20;
const HOUR: Duration = Duration::from_secs(3600);

fn set_up(world: &World) {
    block_on(create(&world.pool("p"), "a", &CreateOptions::sized(SIZE))).unwrap();
}

fn throw_away(pool: &Pool, delay: Duration) -> String {
    block_on(move_in(pool, "a", TrashSource::User, delay)).unwrap()
}

#[test]
fn an_image_in_the_trash_has_no_name_and_comes_back_under_any() {
    let world = World::new();
    set_up(&world);
    let pool = world.pool("p");
    let id = throw_away(&pool, HOUR);
    assert_eq!(block_on(pool.images()).unwrap(), []);
    assert_eq!(block_on(Image::open(&pool, "a", Opening::ReadOnly)).unwrap_err().errno(), Errno::ENOENT);
    let entry = block_on(get(&pool, &id)).unwrap().unwrap();
    assert_eq!(
        (entry.source, entry.state, entry.name.as_str()),
        (TrashSource::User, TrashState::Normal, "a")
    );
    assert_eq!(entry.deferred_until, entry.deleted.after(HOUR));
    assert!(!is_expired(&entry, entry.deleted));
    assert_eq!(block_on(Image::open_by_id(&pool, &id, Opening::ReadOnly)).unwrap().name, "a");
    block_on(restore(&pool, &id, Some("b"), None)).unwrap();
    assert_eq!(block_on(pool.images()).unwrap(), [("b".to_owned(), id)]);
    assert_eq!(block_on(list(&pool)).unwrap(), []);
}

#[test]
fn a_name_taken_meanwhile_is_not_taken_from_its_owner() {
    let world = World::new();
    set_up(&world);
    let pool = world.pool("p");
    let id = throw_away(&pool, Duration::ZERO);
    set_up(&world);
    assert_eq!(block_on(restore(&pool, &id, None, None)).unwrap_err().errno(), Errno::EEXIST);
    assert_eq!(block_on(get(&pool, &id)).unwrap().unwrap().state, TrashState::Normal);
    assert_ne!(block_on(pool.image_id("a")).unwrap(), id);
    assert_eq!(block_on(restore(&pool, "nothing", None, None)).unwrap_err().errno(), Errno::ENOENT);
}

#[test]
fn deferment_protects_unless_forced() {
    let world = World::new();
    set_up(&world);
    let pool = world.pool("p");
    let id = throw_away(&pool, HOUR);
    let refused = block_on(remove(&pool, &id, Force::No, &mut silent)).unwrap_err();
    assert_eq!(refused.errno(), Errno::EPERM);
    block_on(remove(&pool, &id, Force::Yes, &mut silent)).unwrap();
    assert!(!world.object_names(&pool).iter().any(|n| n.contains(&id)));
    let again = block_on(remove(&pool, &id, Force::Yes, &mut silent)).unwrap_err();
    assert_eq!(again.errno(), Errno::ENOENT);
}

#[test]
fn states_in_between_are_left_alone() {
    let world = World::new();
    set_up(&world);
    let pool = world.pool("p");
    let id = throw_away(&pool, Duration::ZERO);
    block_on(set_state(&pool, &id, TrashState::Moving, &[TrashState::Normal])).unwrap();
    assert_eq!(block_on(restore(&pool, &id, None, None)).unwrap_err().errno(), Errno::EBUSY);
    let refused = block_on(remove(&pool, &id, Force::Yes, &mut silent)).unwrap_err();
    assert_eq!(refused.errno(), Errno::EUCLEAN);
    let stale = block_on(set_state(&pool, &id, TrashState::Removing, &[TrashState::Normal])).unwrap_err();
    assert_eq!(stale.errno(), Errno::ESTALE);
}

#[test]
fn the_source_of_a_migration_is_neither_restored_nor_purged() {
    let world = World::new();
    set_up(&world);
    let pool = world.pool("p");
    let id = block_on(move_in(&pool, "a", TrashSource::Migration, Duration::ZERO)).unwrap();
    assert_eq!(block_on(restore(&pool, &id, None, None)).unwrap_err().errno(), Errno::EINVAL);
    let refused = block_on(remove(&pool, &id, Force::Yes, &mut silent)).unwrap_err();
    assert_eq!(refused.errno(), Errno::EROFS);
    let purged =
        block_on(purge(&pool, Timestamp { seconds: u32::MAX, nanoseconds: 0 }, &mut silent)).unwrap();
    assert!(purged.removed.is_empty() && purged.failed.is_empty());
    let found = block_on(find_by_name(&pool, "a", TrashSource::Migration)).unwrap().unwrap();
    assert_eq!(found.0, id);
    block_on(restore(&pool, &id, None, Some(TrashSource::Migration))).unwrap();
    assert_eq!(block_on(pool.image_id("a")).unwrap(), id);
}

#[test]
fn a_purge_takes_what_is_expired_in_the_order_that_works() {
    let world = World::new();
    set_up(&world);
    let pool = world.pool("p");
    let mut parent = block_on(Image::open(&pool, "a", Opening::ReadWrite)).unwrap();
    block_on(snapshot::create(&mut parent, "s")).unwrap();
    block_on(parent.close()).unwrap();
    let at = block_on(Image::open(&pool, "a", Opening::ReadOnly)).unwrap().at_snapshot("s").unwrap();
    block_on(clone::create(&at, &pool, "c", CloneFormat::V2, &CreateOptions::default())).unwrap();
    let mut parent = block_on(Image::open(&pool, "a", Opening::ReadWrite)).unwrap();
    block_on(snapshot::remove(&mut parent, "s")).unwrap();
    block_on(parent.close()).unwrap();
    let parent_id = throw_away(&pool, Duration::ZERO);
    block_on(move_in(&pool, "c", TrashSource::User, Duration::ZERO)).unwrap();
    block_on(create(&pool, "later", &CreateOptions::sized(SIZE))).unwrap();
    let later = block_on(move_in(&pool, "later", TrashSource::User, HOUR)).unwrap();
    let now = world.env.clock.now();
    let purged = block_on(purge(&pool, now, &mut silent)).unwrap();
    assert_eq!(purged.removed.len(), 2, "{purged:?}");
    assert!(purged.failed.is_empty(), "{purged:?}");
    assert!(purged.removed.contains(&parent_id));
    let left: Vec<_> = block_on(list(&pool)).unwrap().into_iter().map(|(id, _)| id).collect();
    assert_eq!(left, [later]);
}

#[test]
fn a_purge_tells_what_it_could_not_remove() {
    let world = World::new();
    set_up(&world);
    let pool = world.pool("p");
    let mut image = block_on(Image::open(&pool, "a", Opening::ReadWrite)).unwrap();
    block_on(snapshot::create(&mut image, "s")).unwrap();
    block_on(image.close()).unwrap();
    let id = throw_away(&pool, Duration::ZERO);
    let purged = block_on(purge(&pool, world.env.clock.now(), &mut silent)).unwrap();
    assert!(purged.removed.is_empty());
    assert_eq!((purged.failed[0].0.as_str(), purged.failed[0].1.errno()), (id.as_str(), Errno::ENOTEMPTY));
    assert_eq!(block_on(get(&pool, &id)).unwrap().unwrap().state, TrashState::Normal);
}

fn only_entry(pool: &Pool) -> (String, TrashEntry) {
    let mut entries = block_on(list(pool)).unwrap();
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

#[test]
fn a_crash_on_the_way_in_is_finished_by_moving_again() {
    die_everywhere(
        set_up,
        async |_, pool| move_in(pool, "a", TrashSource::User, HOUR).await.map(drop),
        // It may have been whole before the death.
        |again| assert!(again.is_ok() || again.unwrap_err().errno() == Errno::ENOENT),
        |_, pool| {
            let (id, entry) = only_entry(pool);
            assert_eq!(entry.state, TrashState::Normal);
            assert_eq!(block_on(pool.images()).unwrap(), []);
            block_on(restore(pool, &id, None, None)).unwrap();
            assert_eq!(block_on(pool.image_id("a")).unwrap(), id);
        },
    );
}

#[test]
fn a_crash_on_the_way_out_is_finished_by_restoring_again() {
    die_everywhere(
        |world| {
            set_up(world);
            throw_away(&world.pool("p"), HOUR);
        },
        async |_, pool| {
            let (id, _) = list(pool).await?.remove(0);
            restore(pool, &id, None, None).await
        },
        |again| again.unwrap(),
        |_, pool| {
            assert_eq!(block_on(list(pool)).unwrap(), []);
            let id = block_on(pool.image_id("a")).unwrap();
            assert_eq!(block_on(pool.images()).unwrap(), [("a".to_owned(), id)]);
        },
    );
}

#[test]
fn a_restore_under_another_name_takes_over_from_one_that_was_cut_off() {
    for changes in 1..4 {
        let world = World::new();
        set_up(&world);
        let id = throw_away(&world.pool("p"), HOUR);
        let store = crate::test_world::DyingStore::new(world.store.another_client(), changes);
        let dying = world.pool_of(store, "p");
        assert!(block_on(restore(&dying, &id, None, None)).is_err(), "{changes}");
        let pool = world.fresh_pool("p");
        block_on(restore(&pool, &id, Some("b"), None)).unwrap();
        assert_eq!(block_on(pool.images()).unwrap(), [("b".to_owned(), id.clone())], "{changes}");
        let a = block_on(Image::open(&pool, "a", Opening::ReadOnly));
        assert_eq!(a.unwrap_err().errno(), Errno::ENOENT, "{changes}");
    }
}
