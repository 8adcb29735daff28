//! Tests of taking the lock from others.

use std::pin::pin;
use std::sync::Arc;

use ferry_core::testing::{MemStore, test_env};
use ferry_core::watch::WatchEvent;
use ferry_core::{Capabilities, Namespace, ObjectId, Store, WriteOp};
use futures_executor::block_on;
use futures_util::future::{Either, join, select};

use super::Session;

/// Two sessions of different clients with one image, the first of which owns the lock.
async fn two(list_watchers: bool) -> (Session, Session) {
    let env = test_env(7);
    let capabilities = Capabilities { share: true, copy: None, list_snaps: true, list_watchers };
    let here = MemStore::with_capabilities(&env, capabilities);
    let pool = here.create_pool("p").await.unwrap();
    let there: Arc<dyn Store> = here.another_client();
    let here: Arc<dyn Store> = here;
    let header = ObjectId::new(pool, &Namespace::default(), "rbd_header.1");
    here.write(&header, WriteOp::new().effect(ferry_core::Effect::Create)).await.unwrap();
    let owner = Session::open(&here, &env.clock, &header).await.unwrap();
    owner.acquire().await.unwrap();
    (owner, Session::open(&there, &env.clock, &header).await.unwrap())
}

/// Answers the request for the lock with a promise.
async fn promise(owner: &Session) {
    let WatchEvent::Notify(asked) = owner.next_event().await else { panic!("the watch is lost") };
    owner.answer(asked);
    assert!(owner.owes_lock());
}

#[test]
fn an_owner_that_promised_its_lock_and_died_is_not_waited_for() {
    for list_watchers in [true, false] {
        block_on(async {
            let (owner, asker) = two(list_watchers).await;
            let dies = async {
                promise(&owner).await;
                drop(owner);
            };
            let (taken, ()) = join(asker.acquire(), dies).await;
            taken.unwrap();
            assert!(asker.is_owner());
        });
    }
}

#[test]
fn an_owner_that_promised_its_lock_and_lives_is_waited_for() {
    for list_watchers in [true, false] {
        block_on(async {
            let (owner, asker) = two(list_watchers).await;
            let lets_go = async {
                promise(&owner).await;
                // For many a look it does not let go, but says that it is there.
                for _ in 0..5 {
                    assert!(!asker.is_owner());
                    owner.clock.sleep(super::PROMISE_LOOK * 4).await.unwrap();
                    if !list_watchers {
                        promise(&owner).await;
                    }
                }
                owner.release().await.unwrap();
                // It goes on hearing what the others tell.
                loop {
                    let WatchEvent::Notify(told) = owner.next_event().await else { break };
                    owner.answer(told);
                }
            };
            match select(pin!(asker.acquire()), pin!(lets_go)).await {
                Either::Left((taken, _)) => taken.unwrap(),
                Either::Right(((), _)) => panic!("the owner's watch is lost"),
            }
            assert!(asker.is_owner() && !owner.is_owner());
        });
    }
}
