//! What is left when a client dies after any of its changes, and that the same call finishes.

use bytes::Bytes;
use ferry_core::{BlockDevice, ErrorKind, Namespace, Result, SnapId, Store};
use futures_executor::block_on;

use crate::clone::{self, CloneFormat};
use crate::create::{CreateOptions, create};
use crate::device::ImageDevice;
use crate::flatten::flatten;
use crate::header::Opening;
use crate::image::Image;
use crate::map_check::{MapCheck, check};
use crate::pool::Pool;
use crate::progress::silent;
use crate::resize::{Shrinking, resize};
use crate::rollback::rollback;
use crate::snapshot;
use crate::sparsify::sparsify;
use crate::test_world::{World, die_everywhere};

/// Bytes.
const OBJECT: usize = 16 << 10;
const SIZE: usize = 3 * OBJECT;

/// The pool as a healthy client sees it.
async fn healthy(world: &World) -> Pool {
    let store = world.store.another_client();
    Pool::open(store, world.env.clone(), "p", &Namespace::default()).await.unwrap()
}

/// A clone called `a` of an image of sevens, with a snapshot `t`, written to since.
async fn make_clone(world: &World) -> Result<()> {
    let pool = healthy(world).await;
    let options = CreateOptions { order: Some(14), ..CreateOptions::sized(SIZE as u64) };
    create(&pool, "parent", &options).await?;
    write(&pool, "parent", 0, vec![7; SIZE]).await?;
    let mut parent = Image::open(&pool, "parent", Opening::ReadWrite).await?;
    snapshot::create(&mut parent, "s").await?;
    parent.close().await?;
    let parent = Image::open(&pool, "parent", Opening::ReadOnly).await?.at_snapshot("s")?;
    clone::create(&parent, &pool, "a", CloneFormat::V2, &CreateOptions::default()).await?;
    let mut image = Image::open(&pool, "a", Opening::ReadWrite).await?;
    snapshot::create(&mut image, "t").await?;
    image.close().await
}

async fn write(pool: &Pool, name: &str, offset: u64, data: Vec<u8>) -> Result<()> {
    let device = ImageDevice::open(Image::open(pool, name, Opening::ReadWrite).await?).await?;
    device.write(offset, Bytes::from(data)).await?;
    device.close().await
}

/// Bytes of HEAD, having checked that the snapshot holds sevens and that no object is denied by the object map.
async fn head(pool: &Pool) -> Vec<u8> {
    let mut image = Image::open(pool, "a", Opening::ReadWrite).await.unwrap();
    let then = image.header.user_snap("t").unwrap().id;
    let read = async |at: SnapId| {
        let revision = image.revision_at(at).await.unwrap();
        revision.read_bytes(0, revision.size).await.unwrap().to_vec()
    };
    assert!(read(then).await == vec![7; SIZE], "the snapshot has changed");
    let bytes = read(SnapId::HEAD).await;
    assert_eq!(check(&mut image, &mut silent).await.unwrap(), MapCheck::Valid);
    image.close().await.unwrap();
    bytes
}

#[test]
fn a_first_write_cut_off_anywhere_leaves_the_object_old_or_new() {
    let mut new = vec![7; SIZE];
    new[100..150].fill(1);
    let (old, expected) = (vec![7; SIZE], new.clone());
    die_everywhere(
        |world| block_on(make_clone(world)).unwrap(),
        async |world, pool| {
            let now = head(&healthy(world).await).await;
            assert!(now == old || now == new, "neither old nor new");
            write(pool, "a", 100, vec![1; 50]).await
        },
        |again| again.unwrap(),
        |_, pool| assert!(block_on(head(pool)) == expected),
    );
}

#[test]
fn a_flatten_cut_off_anywhere_changes_nothing_that_is_read_and_can_be_finished() {
    die_everywhere(
        |world| block_on(make_clone(world)).unwrap(),
        async |world, pool| {
            assert!(head(&healthy(world).await).await == vec![7; SIZE]);
            let mut image = Image::open(pool, "a", Opening::ReadWrite).await?;
            if image.header.needs_parent() {
                flatten(&mut image, &mut silent).await?;
            }
            image.close().await
        },
        |again| again.unwrap(),
        |_, pool| {
            assert!(block_on(head(pool)) == vec![7; SIZE]);
            let image = block_on(Image::open(pool, "a", Opening::ReadOnly)).unwrap();
            assert!(!image.header.needs_parent());
        },
    );
}

#[test]
fn a_rollback_cut_off_anywhere_is_finished_by_the_next_one() {
    die_everywhere(
        |world| {
            block_on(async {
                make_clone(world).await?;
                let pool = healthy(world).await;
                write(&pool, "a", OBJECT as u64, vec![1; OBJECT]).await?;
                let mut image = Image::open(&pool, "a", Opening::ReadWrite).await?;
                resize(&mut image, 2 * OBJECT as u64, Shrinking::Allowed, &mut silent).await?;
                image.close().await
            })
            .unwrap();
        },
        async |world, pool| {
            // Half rolled back is allowed; a snapshot that changed or a map that denies is not.
            head(&healthy(world).await).await;
            let mut image = Image::open(pool, "a", Opening::ReadWrite).await?;
            let then = image.header.user_snap("t")?.id;
            rollback(&mut image, then, &mut silent).await?;
            image.close().await
        },
        |again| again.unwrap(),
        |_, pool| assert!(block_on(head(pool)) == vec![7; SIZE]),
    );
}

#[test]
fn shrinking_cut_off_anywhere_leaves_the_part_that_stays_and_can_be_finished() {
    let size = OBJECT + 1000;
    die_everywhere(
        |world| {
            block_on(async {
                make_clone(world).await?;
                write(&healthy(world).await, "a", 0, vec![1; SIZE]).await
            })
            .unwrap();
        },
        async |world, pool| {
            let now = head(&healthy(world).await).await;
            assert!(now[..size].iter().all(|b| *b == 1), "a byte that stays was lost");
            let mut image = Image::open(pool, "a", Opening::ReadWrite).await?;
            resize(&mut image, size as u64, Shrinking::Allowed, &mut silent).await?;
            image.close().await
        },
        |again| again.unwrap(),
        |_, pool| assert!(block_on(head(pool)) == vec![1; size]),
    );
}

#[test]
fn sparsifying_cut_off_anywhere_changes_nothing_that_is_read() {
    let mut holds = vec![7; SIZE];
    holds[..OBJECT + 4096].fill(0);
    die_everywhere(
        |world| {
            block_on(async {
                make_clone(world).await?;
                write(&healthy(world).await, "a", 0, vec![0; OBJECT + 4096]).await
            })
            .unwrap();
        },
        async |world, pool| {
            assert!(head(&healthy(world).await).await == holds);
            let mut image = Image::open(pool, "a", Opening::ReadWrite).await?;
            sparsify(&mut image, 4096, &mut silent).await?;
            image.close().await
        },
        |again| again.unwrap(),
        |_, pool| assert!(block_on(head(pool)) == holds),
    );
}

#[test]
fn data_whose_pool_is_gone_is_an_error_and_never_zeros() {
    let world = World::new();
    let (pool, data) = (world.pool("p"), world.pool("q"));
    block_on(async {
        let options = CreateOptions {
            data_pool: Some(data.info.clone()),
            order: Some(14),
            ..CreateOptions::sized(SIZE as u64)
        };
        create(&pool, "a", &options).await.unwrap();
        write(&pool, "a", 0, vec![7; OBJECT]).await.unwrap();
        world.store.remove_pool(data.id()).await.unwrap();
        let image = Image::open(&pool, "a", Opening::ReadOnly).await.unwrap();
        let revision = image.revision().await.unwrap();
        let device = ImageDevice::open(image).await.unwrap();
        let gone = |kind| assert_eq!(kind, ErrorKind::NotFound);
        gone(device.read(0, 4096).await.unwrap_err().kind());
        gone(device.read(0, SIZE as u64).await.unwrap_err().kind());
        gone(device.extents(0, SIZE as u64).await.unwrap_err().kind());
        gone(revision.locate(0, SIZE as u64).await.unwrap_err().kind());
    });
}
