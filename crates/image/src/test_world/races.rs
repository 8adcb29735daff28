//! Two clients at once, their answers late by the luck of a seed: whatever the order, nothing is lost and both ends agree.

use std::pin::pin;
use std::sync::Arc;

use ferry_core::{Errno, Namespace, Result, SnapId, Store};
use futures_executor::block_on;
use futures_util::future::{Either, select};

use super::{DyingStore, World};
use crate::clone::{self, CloneFormat, children};
use crate::create::{CreateOptions, create};
use crate::header::Opening;
use crate::image::Image;
use crate::metadata;
use crate::pool::Pool;
use crate::progress::silent;
use crate::remove::{UsedParent, remove};
use crate::rename::rename;
use crate::snapshot;

const SEEDS: u64 = 150;
const SIZE: u64 = 1 << 20;

/// Two clients of pool `p`.
fn two(world: &World, seed: u64) -> (Pool, Pool) {
    let late = |n| -> Arc<dyn Store> { DyingStore::late(world.store.another_client(), 2 * seed + n) };
    (world.pool_of(late(0), "p"), world.pool_of(late(1), "p"))
}

/// Runs both to the end.
fn race<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    block_on(async {
        match select(pin!(a), pin!(b)).await {
            Either::Left((x, other)) => (x, other.await),
            Either::Right((y, other)) => (other.await, y),
        }
    })
}

async fn with(pool: &Pool, name: &str, act: impl AsyncFnOnce(&mut Image) -> Result<()>) -> Result<()> {
    let mut image = Image::open(pool, name, Opening::ReadWrite).await?;
    let result = act(&mut image).await;
    let closed = image.close().await;
    result.and(closed)
}

fn with_snapshot(world: &World) {
    let pool = world.pool("p");
    block_on(create(&pool, "a", &CreateOptions::sized(SIZE))).unwrap();
    block_on(with(&pool, "a", async |i| snapshot::create(i, "s").await.map(drop))).unwrap();
}

async fn clone_to(pool: &Pool, name: &str) -> Result<()> {
    let parent = Image::open(pool, "a", Opening::ReadOnly).await?.at_snapshot("s")?;
    clone::create(&parent, pool, name, CloneFormat::V2, &CreateOptions::default()).await.map(drop)
}

#[test]
fn of_two_images_of_one_name_one_is_made() {
    for seed in 0..SEEDS {
        let world = World::new();
        let (a, b) = two(&world, seed);
        let options = CreateOptions::sized(SIZE);
        let (x, y) = race(create(&a, "a", &options), create(&b, "a", &options));
        assert_eq!(u8::from(x.is_ok()) + u8::from(y.is_ok()), 1, "{seed}");
        assert_eq!(x.or(y).err().map(|e| e.errno()), None, "{seed}");
        let pool = world.pool("p");
        block_on(with(&pool, "a", async |i| snapshot::create(i, "s").await.map(drop))).unwrap();
        let headers = world.object_names(&pool).iter().filter(|n| n.starts_with("rbd_header")).count();
        assert_eq!(headers, 1, "{seed}");
    }
}

#[test]
fn two_clients_that_change_one_image_take_turns() {
    for seed in 0..SEEDS {
        let world = World::new();
        with_snapshot(&world);
        let (a, b) = two(&world, seed);
        let (x, y) = race(
            with(&a, "a", async |i| snapshot::create(i, "x").await.map(drop)),
            with(&b, "a", async |i| {
                metadata::set(i, "k", b"v").await?;
                snapshot::create(i, "y").await.map(drop)
            }),
        );
        x.unwrap();
        y.unwrap();
        let image = block_on(Image::open(&world.pool("p"), "a", Opening::ReadOnly)).unwrap();
        let names: Vec<_> = image.header.snaps.values().map(|s| s.name.as_str()).collect();
        assert!(names == ["s", "x", "y"] || names == ["s", "y", "x"], "{seed} {names:?}");
        assert_eq!(image.header.metadata["k"], "v");
    }
}

#[test]
fn a_clone_of_a_snapshot_that_is_being_removed_keeps_it_or_fails() {
    for seed in 0..SEEDS {
        let world = World::new();
        with_snapshot(&world);
        let (a, b) = two(&world, seed);
        let (cloned, removed) =
            race(clone_to(&a, "c"), with(&b, "a", async |i| snapshot::remove(i, "s").await));
        removed.unwrap();
        let pool = world.pool("p");
        let parent = block_on(Image::open(&pool, "a", Opening::ReadOnly)).unwrap();
        let known = block_on(children(&parent, SnapId::HEAD)).unwrap();
        match cloned {
            Ok(()) => assert_eq!((known.len(), parent.header.snaps.len()), (1, 1), "{seed}"),
            Err(e) => {
                assert_eq!(e.errno(), Errno::ENOENT, "{seed} {e}");
                assert_eq!((known.len(), parent.header.snaps.len()), (0, 0), "{seed}");
                assert_eq!(block_on(pool.images()).unwrap().len(), 1, "{seed}");
            }
        }
    }
}

#[test]
fn the_last_of_two_clones_removed_at_once_takes_the_removed_snapshot_along() {
    for seed in 0..SEEDS {
        let world = World::new();
        with_snapshot(&world);
        let pool = world.pool("p");
        for name in ["c", "d"] {
            block_on(clone_to(&pool, name)).unwrap();
        }
        block_on(with(&pool, "a", async |i| snapshot::remove(i, "s").await)).unwrap();
        let (a, b) = two(&world, seed);
        let (mut here, mut there) = (silent, silent);
        let (x, y) = race(
            remove(&a, "c", UsedParent::Refuse, &mut here),
            remove(&b, "d", UsedParent::Refuse, &mut there),
        );
        x.unwrap();
        y.unwrap();
        let parent = block_on(Image::open(&pool, "a", Opening::ReadOnly)).unwrap();
        assert_eq!((parent.header.snaps.len(), parent.header.children.len()), (0, 0), "{seed}");
        assert!(parent.header.op_features.is_empty(), "{seed}");
    }
}

#[test]
fn of_two_new_names_one_is_taken() {
    for seed in 0..SEEDS {
        let world = World::new();
        let pool = world.pool("p");
        let id = block_on(create(&pool, "a", &CreateOptions::sized(SIZE))).unwrap();
        let (a, b) = two(&world, seed);
        let (x, y) = race(rename(&a, "a", "b"), rename(&b, "a", "c"));
        assert_eq!(u8::from(x.is_ok()) + u8::from(y.is_ok()), 1, "{seed} {x:?} {y:?}");
        let name = if x.is_ok() { "b" } else { "c" };
        assert_eq!(block_on(pool.images()).unwrap(), [(name.to_owned(), id)], "{seed}");
        let ids: Vec<_> =
            world.object_names(&pool).into_iter().filter(|n| n.starts_with("rbd_id.")).collect();
        assert_eq!(ids, [format!("rbd_id.{name}")], "{seed}");
    }
}

#[test]
fn a_namespace_is_removed_or_takes_an_image_but_not_both() {
    for seed in 0..SEEDS {
        let world = World::new();
        block_on(world.pool("p").create_namespace("n")).unwrap();
        let (a, b) = two(&world, seed);
        let inside = a.in_namespace(&Namespace::new("n"));
        let options = CreateOptions::sized(SIZE);
        let (made, removed) = race(create(&inside, "a", &options), b.remove_namespace("n"));
        assert_eq!(u8::from(made.is_ok()) + u8::from(removed.is_ok()), 1, "{seed} {made:?} {removed:?}");
        if let Err(e) = made {
            assert_eq!(e.errno(), Errno::ENOENT, "{seed}");
        }
    }
}

#[test]
fn an_image_is_removed_or_gets_a_snapshot_but_is_never_hidden_with_one() {
    for seed in 0..SEEDS {
        let world = World::new();
        block_on(create(&world.pool("p"), "a", &CreateOptions::sized(SIZE))).unwrap();
        let (a, b) = two(&world, seed);
        let mut progress = silent;
        let (removed, snapped) = race(
            remove(&a, "a", UsedParent::Refuse, &mut progress),
            with(&b, "a", async |i| snapshot::create(i, "s").await.map(drop)),
        );
        let pool = world.pool("p");
        let left = block_on(pool.images()).unwrap().len();
        assert_eq!(left, usize::from(removed.is_err()), "{seed} {removed:?} {snapped:?}");
        assert_eq!(block_on(crate::trash::list(&pool)).unwrap(), [], "{seed} {removed:?} {snapped:?}");
        if let Err(e) = removed {
            assert!([Errno::EBUSY, Errno::ENOTEMPTY].contains(&e.errno()), "{seed} {e}");
            snapped.unwrap();
        }
    }
}
