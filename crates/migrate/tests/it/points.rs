//! Points of prepare of migrations that another program ended: it knows nothing of them, and only ends the records.

use bytes::Bytes;
use ferry_core::testing::{MemStore, test_env};
use ferry_core::{BlockDevice, Effect, Namespace, ObjectId, Store, WriteOp};
use ferry_image::create::{CreateOptions, create};
use ferry_image::device::ImageDevice;
use ferry_image::encoding::MigrationSide;
use ferry_image::header::{self, Opening};
use ferry_image::image::Image;
use ferry_image::pool::Pool;
use ferry_migrate::{Ends, PrepareOptions, prepare};
use futures_executor::block_on;

const SIZE: u64 = 64 << 10;

/// A full image of one object that was prepared to move, and its target written to; the target's object.
async fn prepared() -> (Pool, Ends, ObjectId) {
    let env = test_env(3);
    let store = MemStore::new(&env);
    store.create_pool("p").await.unwrap();
    let pool = Pool::open(store, env, "p", &Namespace::default()).await.unwrap();
    let options = CreateOptions { order: Some(16), ..CreateOptions::sized(SIZE) };
    create(&pool, "a", &options).await.unwrap();
    let open = async |name| {
        ImageDevice::open(Image::open(&pool, name, Opening::ReadWrite).await.unwrap()).await.unwrap()
    };
    let device = open("a").await;
    device.write(0, Bytes::from(vec![7; usize::try_from(SIZE).unwrap()])).await.unwrap();
    device.close().await.unwrap();
    prepare(&pool, "a", &pool, "b", &PrepareOptions::default()).await.unwrap();
    let device = open("b").await;
    device.write(0, Bytes::from(vec![8; 4096])).await.unwrap();
    let object = device.image().data_object(0);
    device.close().await.unwrap();
    let ends = Ends::find(&pool, "b").await.unwrap();
    assert_eq!(versions(&pool, &object).await, 1, "the point of prepare is preserved");
    (pool, ends, object)
}

async fn versions(pool: &Pool, object: &ObjectId) -> usize {
    pool.store.list_snaps(object).await.unwrap().clones.len()
}

/// Ends the record of an image, as `rbd` does, and opens the image to write it.
async fn end_and_write(pool: &Pool, id: &str) -> Image {
    let object = header::object(pool.id(), &pool.namespace, id);
    let end = |h: &mut header::Header| {
        h.end_migration();
        Ok(())
    };
    header::update(&*pool.store, &object, end).await.unwrap();
    let mut image = Image::open_by_id(pool, id, Opening::ReadWrite).await.unwrap();
    image.acquire().await.unwrap();
    image
}

#[test]
fn where_another_program_committed_the_next_writer_releases_it() {
    block_on(async {
        let (pool, ends, object) = prepared().await;
        let before = ends.target.header.as_ref().unwrap().base().unwrap();
        let image = end_and_write(&pool, &ends.target.id).await;
        assert_eq!(versions(&pool, &object).await, 0);
        assert!(image.header.base().is_none());
        assert!(!image.snap_context().snaps.contains(&before.snap));
        image.close().await.unwrap();
    });
}

#[test]
fn where_another_program_aborted_the_next_writer_releases_it() {
    block_on(async {
        let (pool, ends, object) = prepared().await;
        let target = header::object(pool.id(), &pool.namespace, &ends.target.id);
        pool.store.write(&target, WriteOp::new().effect(Effect::Remove)).await.unwrap();
        let image = end_and_write(&pool, &ends.source.id).await;
        assert_eq!(versions(&pool, &object).await, 0);
        assert_eq!(image.header.target_point().unwrap(), None);
        image.close().await.unwrap();
    });
}

#[test]
fn while_it_migrates_nobody_releases_it() {
    block_on(async {
        let (pool, ends, object) = prepared().await;
        assert_eq!(ends.source.record().unwrap().side, MigrationSide::Source);
        let point = ends.source.header.as_ref().unwrap().target_point().unwrap().unwrap();
        let base = ends.target.header.as_ref().unwrap().base().unwrap();
        assert_eq!(point, (pool.id(), base.snap));
        let mut image = ends.open_target().await.unwrap();
        image.acquire().await.unwrap();
        assert_eq!(image.header.base(), Some(base));
        assert_eq!(versions(&pool, &object).await, 1);
        image.close().await.unwrap();
    });
}
