//! Tests of watchers and locks.

use ferry_core::lock::LockKind;
use ferry_core::testing::MemStore;
use ferry_core::watch::WatchEvent;
use ferry_core::{Capabilities, ClientId, Errno, Store};
use futures_executor::block_on;
use futures_util::future::{Either, select};

use super::{lock_add, lock_remove, lockers, watchers};
use crate::create::{CreateOptions, create};
use crate::encoding::{LOCK_TAG, Message};
use crate::header::Opening;
use crate::image::Image;
use crate::metadata;
use crate::pool::Pool;
use crate::progress::silent;
use crate::remove::{UsedParent, remove};
use crate::test_world::World;

fn set_up(world: &World) {
    block_on(create(&world.pool("p"), "a", &CreateOptions::sized(1 << 20))).unwrap();
}

fn open(pool: &Pool) -> Image {
    block_on(Image::open(pool, "a", Opening::ReadWrite)).unwrap()
}

#[test]
fn a_writer_is_a_watcher_and_a_reader_is_not() {
    let world = World::new();
    set_up(&world);
    let pool = world.pool("p");
    let reader = block_on(Image::open(&pool, "a", Opening::ReadOnly)).unwrap();
    assert!(block_on(watchers(&reader)).unwrap().is_empty());
    let writer = open(&pool);
    let seen = block_on(watchers(&reader)).unwrap();
    assert_eq!((seen.len(), seen[0].client), (1, world.store.client()));
    block_on(writer.close()).unwrap();
    assert!(block_on(watchers(&reader)).unwrap().is_empty());
}

#[test]
fn the_exclusive_lock_is_taken_as_librbd_takes_it_and_given_back() {
    let world = World::new();
    set_up(&world);
    let mut image = open(&world.pool("p"));
    assert!(block_on(lockers(&image)).unwrap().lockers.is_empty(), "not before it is needed");
    block_on(image.acquire()).unwrap();
    block_on(image.acquire()).unwrap();
    let info = block_on(lockers(&image)).unwrap();
    let handle = image.session.as_ref().unwrap().handle();
    assert_eq!((info.kind, info.tag.as_str()), (LockKind::Exclusive, LOCK_TAG));
    assert_eq!(info.lockers[0].cookie, format!("auto {handle}"));
    let reader = Image { read_only: true, session: None, ..image.clone() };
    block_on(image.close()).unwrap();
    assert!(block_on(lockers(&reader)).unwrap().lockers.is_empty());
}

#[test]
fn the_lock_of_a_client_that_is_gone_is_broken() {
    let world = World::new();
    set_up(&world);
    let mut dead = open(&world.fresh_pool("p"));
    block_on(dead.acquire()).unwrap();
    drop(dead);
    let mut image = open(&world.pool("p"));
    block_on(metadata::set(&mut image, "k", b"v")).unwrap();
    assert_eq!(block_on(lockers(&image)).unwrap().lockers[0].client, world.store.client());
}

#[test]
fn a_living_owner_is_asked_for_the_lock() {
    let world = World::new();
    set_up(&world);
    let mut owner = open(&world.fresh_pool("p"));
    block_on(owner.acquire()).unwrap();
    let mut asker = open(&world.pool("p"));
    block_on(async {
        let session = owner.session.clone().unwrap();
        let serve = Box::pin(async {
            loop {
                let WatchEvent::Notify(notification) = session.next_event().await else { panic!("lost") };
                let asked = Message::decode(&notification.payload).unwrap();
                session.answer(notification);
                if matches!(asked, Message::RequestLock { .. }) {
                    break;
                }
            }
            // Others' answers come while the owner lets go.
            session.release().await.unwrap();
            loop {
                let WatchEvent::Notify(notification) = session.next_event().await else { panic!("lost") };
                session.answer(notification);
            }
        });
        match select(Box::pin(metadata::set(&mut asker, "k", b"v")), serve).await {
            Either::Left((result, _)) => result.unwrap(),
            Either::Right(((), _)) => panic!("the owner serves for ever"),
        }
    });
    assert!(asker.session.as_ref().unwrap().is_owner());
    assert!(!owner.session.as_ref().unwrap().is_owner());
}

#[test]
fn a_lock_taken_by_hand_is_left_alone() {
    let world = World::new();
    set_up(&world);
    let pool = world.pool("p");
    let image = block_on(Image::open(&pool, "a", Opening::ReadOnly)).unwrap();
    block_on(lock_add(&image, "mine", None)).unwrap();
    assert_eq!(block_on(lock_add(&image, "mine", None)).unwrap_err().errno(), Errno::EEXIST);
    assert_eq!(block_on(lock_add(&image, "other", None)).unwrap_err().errno(), Errno::EBUSY);
    let mut writer = open(&world.fresh_pool("p"));
    let refused = block_on(metadata::set(&mut writer, "k", b"v")).unwrap_err();
    assert_eq!((refused.errno(), refused.fact("cookie")), (Errno::EBUSY, Some("mine")));
    let stranger = ClientId(1);
    assert_eq!(block_on(lock_remove(&image, "mine", stranger)).unwrap_err().errno(), Errno::ENOENT);
    block_on(lock_remove(&image, "mine", world.store.client())).unwrap();
    block_on(metadata::set(&mut writer, "k", b"v")).unwrap();
}

#[test]
fn shared_locks_agree_on_a_tag() {
    let world = World::new();
    set_up(&world);
    let image = block_on(Image::open(&world.pool("p"), "a", Opening::ReadOnly)).unwrap();
    block_on(lock_add(&image, "one", Some("t"))).unwrap();
    block_on(lock_add(&image, "two", Some("t"))).unwrap();
    assert_eq!(block_on(lock_add(&image, "three", Some("u"))).unwrap_err().errno(), Errno::EBUSY);
    let info = block_on(lockers(&image)).unwrap();
    assert_eq!((info.kind, info.lockers.len(), info.tag.as_str()), (LockKind::Shared, 2, "t"));
}

#[test]
fn where_the_store_lists_no_watchers_their_answers_tell() {
    let world = World::new();
    let capabilities = Capabilities { share: false, copy: None, list_snaps: false, list_watchers: false };
    let env = world.env.clone();
    let store = MemStore::with_capabilities(&env, capabilities);
    store.create_pool("p").wait().unwrap();
    let pool = world.pool_of(store.clone(), "p");
    let other_pool = world.pool_of(store.another_client(), "p");
    block_on(create(&pool, "a", &CreateOptions::sized(1 << 20))).unwrap();
    let other = open(&other_pool);
    let session = other.session.clone().unwrap();
    block_on(async {
        let attend = Box::pin(async {
            loop {
                let WatchEvent::Notify(notification) = session.next_event().await else { panic!("lost") };
                session.answer(notification);
            }
        });
        let act = Box::pin(async {
            let reader = Image::open(&pool, "a", Opening::ReadOnly).await.unwrap();
            let seen = watchers(&reader).await.unwrap();
            assert_eq!((seen.len(), seen[0].client), (1, other_pool.store.client()));
            assert_eq!(seen[0].address, "");
            session.acquire().await.unwrap();
            let locked = lockers(&reader).await.unwrap();
            assert_eq!(watchers(&reader).await.unwrap()[0].address, locked.lockers[0].address);
            assert_ne!(locked.lockers[0].address, "");
            let refused = remove(&pool, "a", UsedParent::Refuse, &mut silent).await.unwrap_err();
            assert_eq!(refused.errno(), Errno::EBUSY);
        });
        match select(act, attend).await {
            Either::Left(((), _)) => {}
            Either::Right((never, _)) => never,
        }
    });
    drop(session);
    block_on(other.close()).unwrap();
    block_on(remove(&pool, "a", UsedParent::Refuse, &mut silent)).unwrap();
}
