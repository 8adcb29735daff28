use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ferry_core::testing::{MemStore, TestClock, TestRng};
use ferry_core::{BlockDevice, Env, Namespace, PoolFlags, Store, Timestamp};
use futures_executor::block_on;

use crate::create::{CreateOptions, create};
use crate::device::ImageDevice;
use crate::header::Opening;
use crate::image::Image;
use crate::metadata::config;
use crate::pool::Pool;

/// An image `a` in a pool, and the clock there.
async fn set_up() -> (Pool, Arc<TestClock>, Arc<MemStore>) {
    let clock = Arc::new(TestClock::at(1_000_000));
    let env = Env { clock: Arc::clone(&clock) as _, rng: Arc::new(TestRng::new(1)) };
    let store = MemStore::new(&env);
    store.create_pool("p").await.unwrap();
    let pool = Pool::open(Arc::clone(&store) as _, env, "p", &Namespace::default()).await.unwrap();
    create(&pool, "a", &CreateOptions::sized(1 << 20)).await.unwrap();
    (pool, clock, store)
}

async fn open(pool: &Pool) -> Image {
    Image::open(pool, "a", Opening::ReadWrite).await.unwrap()
}

/// Seconds since the image was made at which it was last read and last written.
async fn times(pool: &Pool) -> (u32, u32) {
    let header = open(pool).await.header;
    let since = |time: Timestamp| time.seconds - header.created.seconds;
    (since(header.accessed), since(header.modified))
}

#[test]
fn reads_and_writes_are_noted_once_a_minute() {
    block_on(async {
        let (pool, clock, _) = set_up().await;
        let device = ImageDevice::open(open(&pool).await).await.unwrap();
        device.write(0, Bytes::from_static(b"x")).await.unwrap();
        device.note_times().await.unwrap();
        assert_eq!(times(&pool).await, (0, 0), "younger than a minute");
        clock.advance(Duration::from_secs(70));
        device.note_times().await.unwrap();
        assert_eq!(times(&pool).await, (0, 0), "nothing happened since");
        device.write(0, Bytes::from_static(b"y")).await.unwrap();
        device.note_times().await.unwrap();
        assert_eq!(times(&pool).await, (0, 70));
        device.read(0, 1).await.unwrap();
        clock.advance(Duration::from_secs(50));
        device.discard(0, 4096).await.unwrap();
        device.note_times().await.unwrap();
        assert_eq!(times(&pool).await, (120, 70));
        // What was not due then is when its minute is over, as of when it happened.
        clock.advance(Duration::from_secs(30));
        device.note_times().await.unwrap();
        assert_eq!(times(&pool).await, (120, 120));
        clock.advance(Duration::from_secs(100));
        device.write_zeroes(0, 4096).await.unwrap();
        device.close().await.unwrap();
        assert_eq!(times(&pool).await, (120, 250));
    });
}

#[test]
fn what_is_noted_leaves_the_rest_of_the_header_alone_and_obeys_the_settings() {
    block_on(async {
        let (pool, clock, _) = set_up().await;
        let mut image = open(&pool).await;
        config::set_in_image(&mut image, "rbd_mtime_update_interval", "0").await.unwrap();
        config::set_in_image(&mut image, "rbd_atime_update_interval", "5").await.unwrap();
        let before = open(&pool).await.header;
        let device = ImageDevice::open(image).await.unwrap();
        clock.advance(Duration::from_secs(10));
        device.write(0, Bytes::from_static(b"x")).await.unwrap();
        device.read(0, 1).await.unwrap();
        device.close().await.unwrap();
        let after = open(&pool).await.header;
        assert!(after.accessed > before.accessed);
        let rest =
            crate::header::Header { version: before.version, accessed: before.accessed, ..(*after).clone() };
        assert_eq!(rest, *before);
    });
}

#[test]
fn a_pool_that_is_read_only_is_not_written() {
    block_on(async {
        let (pool, clock, store) = set_up().await;
        store.set_pool_flags(pool.id(), PoolFlags { read_only: true }).await.unwrap();
        let env = pool.env.clone();
        let frozen = Pool::open(Arc::clone(&store) as _, env, "p", &Namespace::default()).await.unwrap();
        let image = Image::open(&frozen, "a", Opening::ReadOnly).await.unwrap();
        clock.advance(Duration::from_secs(100));
        super::note(&image, super::Used::Read).await.unwrap();
        let after = Image::open(&frozen, "a", Opening::ReadOnly).await.unwrap().header;
        assert_eq!(*after, *image.header);
    });
}
