//! Object maps of targets in stores that cannot list the versions of an object, as in a cluster.

use bytes::Bytes;
use ferry_core::testing::{MemStore, test_env};
use ferry_core::{BlockDevice, Capabilities, Namespace, Store};
use ferry_image::create::{CreateOptions, create};
use ferry_image::device::ImageDevice;
use ferry_image::features::Flags;
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::map_check::{self, MapCheck};
use ferry_image::pool::Pool;
use ferry_image::progress::silent;
use ferry_image::resize::{Shrinking, resize};
use ferry_image::snapshot;
use ferry_migrate::{Comparing, Control, Ends, PrepareOptions, execute, prepare, verify};
use futures_executor::block_on;

/// Bytes of an image: four objects.
const SIZE: u64 = 64 << 10;

/// Bytes of an object.
const OBJECT: u64 = 16 << 10;

async fn device(pool: &Pool, name: &str) -> ImageDevice {
    ImageDevice::open(Image::open(pool, name, Opening::ReadWrite).await.unwrap()).await.unwrap()
}

async fn resized(device: &ImageDevice, size: u64) {
    let to = async |i: &mut Image| resize(i, size, Shrinking::Allowed, &mut silent).await;
    device.exclusively(to).await.unwrap();
}

/// A full image with the snapshot `s`.
async fn ground() -> Pool {
    let env = test_env(7);
    let least = Capabilities { share: false, copy: None, list_snaps: false, list_watchers: true };
    let store = MemStore::with_capabilities(&env, least);
    store.create_pool("p").await.unwrap();
    let pool = Pool::open(store, env, "p", &Namespace::default()).await.unwrap();
    let options = CreateOptions { order: Some(14), ..CreateOptions::sized(SIZE) };
    create(&pool, "a", &options).await.unwrap();
    let a = device(&pool, "a").await;
    a.write(0, Bytes::from(vec![7; usize::try_from(SIZE).unwrap()])).await.unwrap();
    a.exclusively(async |i: &mut Image| snapshot::create(i, "s").await).await.unwrap();
    a.close().await.unwrap();
    pool
}

/// Executes the migration to `b` and looks at its maps, its bytes and its snapshot.
async fn execute_and_check(pool: &Pool, target: ImageDevice, shown: u64) {
    let mut ends = Ends::find(pool, "b").await.unwrap();
    execute(&mut ends, &target, &Control::default(), &mut silent).await.unwrap();
    let verification = verify(&Ends::find(pool, "b").await.unwrap(), Comparing::default(), &mut silent).await;
    assert!(verification.unwrap().is_equal());
    resized(&target, SIZE).await;
    let mut wanted = vec![7; usize::try_from(shown).unwrap()];
    wanted.resize(usize::try_from(SIZE).unwrap(), 0);
    assert!(target.read(0, SIZE).await.unwrap() == wanted);
    target.close().await.unwrap();
    let mut image = Image::open(pool, "b", Opening::ReadWrite).await.unwrap();
    assert_eq!(image.header.flags, Flags::NONE);
    assert_eq!(map_check::check(&mut image, &mut silent).await.unwrap(), MapCheck::Valid);
    image.close().await.unwrap();
    let image = Image::open(pool, "b", Opening::ReadOnly).await.unwrap();
    let mut then = image.at_snapshot("s").unwrap();
    assert_eq!(map_check::check(&mut then, &mut silent).await.unwrap(), MapCheck::Valid);
    let then = ImageDevice::open(then).await.unwrap();
    assert!(then.read(0, SIZE).await.unwrap() == vec![7; usize::try_from(SIZE).unwrap()]);
}

#[test]
fn objects_that_only_a_snapshot_reaches_are_not_left_at_head() {
    block_on(Box::pin(async {
        let pool = ground().await;
        let a = device(&pool, "a").await;
        resized(&a, OBJECT).await;
        a.close().await.unwrap();
        prepare(&pool, "a", &pool, "b", &PrepareOptions::default()).await.unwrap();
        let target = device(&pool, "b").await;
        execute_and_check(&pool, target, OBJECT).await;
    }));
}

#[test]
fn a_target_that_is_shrunk_while_it_migrates_keeps_a_valid_map() {
    block_on(Box::pin(async {
        let pool = ground().await;
        prepare(&pool, "a", &pool, "b", &PrepareOptions::default()).await.unwrap();
        let target = device(&pool, "b").await;
        // One that is brought first, one that is cut in the middle, one that nobody has asked for.
        target.write(3 * OBJECT, Bytes::from_static(b"new")).await.unwrap();
        resized(&target, OBJECT + 5000).await;
        target.exclusively(async |i: &mut Image| snapshot::create(i, "t").await).await.unwrap();
        resized(&target, 3 * OBJECT).await;
        execute_and_check(&pool, target, OBJECT + 5000).await;
    }));
}
