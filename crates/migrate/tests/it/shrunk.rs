//! A target that stays a clone, and is shrunk and grown again.

use bytes::Bytes;
use ferry_core::testing::{MemStore, test_env};
use ferry_core::{BlockDevice, Namespace, Store};
use ferry_image::clone::{self, CloneFormat};
use ferry_image::create::{CreateOptions, create};
use ferry_image::device::ImageDevice;
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::pool::Pool;
use ferry_image::progress::silent;
use ferry_image::resize::{Shrinking, resize};
use ferry_image::snapshot;
use ferry_migrate::{Comparing, Control, Ends, PrepareOptions, execute, prepare, verify};
use futures_executor::block_on;

/// Bytes of an image: one object.
const SIZE: u64 = 16 << 10;

async fn device(pool: &Pool, name: &str) -> ImageDevice {
    ImageDevice::open(Image::open(pool, name, Opening::ReadWrite).await.unwrap()).await.unwrap()
}

#[test]
fn a_write_to_what_was_cut_and_grown_again_leaves_the_point_of_prepare_as_it_was() {
    block_on(Box::pin(async {
        let env = test_env(5);
        let store = MemStore::new(&env);
        store.create_pool("p").await.unwrap();
        let pool = Pool::open(store, env, "p", &Namespace::default()).await.unwrap();
        let options = CreateOptions { order: Some(14), ..CreateOptions::sized(SIZE) };
        create(&pool, "parent", &options).await.unwrap();
        let parent = device(&pool, "parent").await;
        parent.write(0, Bytes::from(vec![7; usize::try_from(SIZE).unwrap()])).await.unwrap();
        parent.exclusively(async |i: &mut Image| snapshot::create(i, "s").await).await.unwrap();
        parent.close().await.unwrap();
        let at = Image::open(&pool, "parent", Opening::ReadOnly).await.unwrap().at_snapshot("s").unwrap();
        clone::create(&at, &pool, "a", CloneFormat::V2, &CreateOptions::default()).await.unwrap();

        prepare(&pool, "a", &pool, "b", &PrepareOptions::default()).await.unwrap();
        let target = device(&pool, "b").await;
        for size in [5000, SIZE] {
            let to = async |i: &mut Image| resize(i, size, Shrinking::Allowed, &mut silent).await;
            target.exclusively(to).await.unwrap();
        }
        // With a snapshot the parent's bytes would go below it, and below the point of prepare, too.
        target.exclusively(async |i: &mut Image| snapshot::create(i, "t").await).await.unwrap();
        let mut ends = Ends::find(&pool, "b").await.unwrap();
        execute(&mut ends, &target, &Control::default(), &mut silent).await.unwrap();
        target.write(100, Bytes::from_static(b"new")).await.unwrap();
        let mut wanted = vec![7; 5000];
        wanted.resize(usize::try_from(SIZE).unwrap(), 0);
        wanted[100..103].copy_from_slice(b"new");
        assert!(target.read(0, SIZE).await.unwrap() == wanted);
        target.close().await.unwrap();
        let ends = Ends::find(&pool, "b").await.unwrap();
        let verification = verify(&ends, Comparing::default(), &mut silent).await.unwrap();
        assert!(verification.is_equal(), "{verification:?}");
    }));
}
