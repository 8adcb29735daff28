//! An execute beside a client that writes the target all the time by way of another process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ferry_core::testing::{MemStore, test_env};
use ferry_core::{BlockDevice, Namespace, Store};
use ferry_image::create::{CreateOptions, create};
use ferry_image::device::ImageDevice;
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::pool::Pool;
use ferry_image::progress::silent;
use ferry_migrate::{Comparing, Control, Ends, PrepareOptions, execute, prepare, verify};
use futures_executor::block_on;
use futures_util::future::abortable;

/// Bytes of an object, and how many the image has.
const OBJECT: u64 = 16 << 10;
const OBJECTS: u64 = 400;

async fn pool(store: Arc<dyn Store>, name: &str) -> Pool {
    Pool::open(store, test_env(3), name, &Namespace::default()).await.unwrap()
}

#[test]
fn both_the_copy_and_a_writer_in_another_process_get_on() {
    let store = MemStore::new(&test_env(3));
    let (ends, here, there) = block_on(async {
        for name in ["p", "q"] {
            store.create_pool(name).await.unwrap();
        }
        let source = pool(store.another_client(), "p").await;
        let options = CreateOptions { order: Some(14), ..CreateOptions::sized(OBJECT * OBJECTS) };
        create(&source, "a", &options).await.unwrap();
        let device =
            ImageDevice::open(Image::open(&source, "a", Opening::ReadWrite).await.unwrap()).await.unwrap();
        device.write(0, Bytes::from(vec![7; usize::try_from(OBJECT * OBJECTS).unwrap()])).await.unwrap();
        device.close().await.unwrap();
        let target = pool(store.another_client(), "q").await;
        prepare(&source, "a", &target, "a", &PrepareOptions::default()).await.unwrap();
        let other = pool(store.another_client(), "q").await;
        let image = Image::open(&other, "a", Opening::ReadWrite).await.unwrap();
        let there = ImageDevice::open(image).await.unwrap();
        let ends = Ends::find(&target, "a").await.unwrap();
        let here = ImageDevice::open(ends.open_target().await.unwrap()).await.unwrap();
        (ends, here, there)
    });
    let is_over = AtomicBool::new(false);
    let writes = AtomicU64::new(0);
    let (attend_here, stop_here) = abortable(here.attend());
    let (attend_there, stop_there) = abortable(there.attend());
    let (executed, hears) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| block_on(attend_here));
        scope.spawn(|| block_on(attend_there));
        let writer = scope.spawn(|| {
            for n in 0.. {
                if is_over.load(Ordering::Acquire) {
                    break;
                }
                block_on(there.write(n * 7919 % (OBJECT * OBJECTS - 512), Bytes::from(vec![9; 512])))
                    .unwrap();
                writes.fetch_add(1, Ordering::AcqRel);
            }
        });
        let (mut moving, device) = (ends.clone(), here.clone());
        // The writer has the lock when the copy begins.
        while writes.load(Ordering::Acquire) < 10 {
            std::thread::yield_now();
        }
        scope.spawn(move || {
            let done = block_on(execute(&mut moving, &device, &Control::default(), &mut silent));
            executed.send(done).unwrap();
        });
        let done = hears.recv_timeout(Duration::from_secs(60));
        is_over.store(true, Ordering::Release);
        if done.is_err() {
            println!("they wait for each other: {} writes", writes.load(Ordering::Acquire));
            std::process::abort();
        }
        let copied = done.unwrap().unwrap();
        assert_eq!(copied.migrated, OBJECTS);
        let hand_overs = here.hand_overs();
        println!(
            "{OBJECTS} objects, {} writes meanwhile, {hand_overs} hand-overs",
            writes.load(Ordering::Acquire)
        );
        assert!(writes.load(Ordering::Acquire) > 0, "the writer starves");
        assert!(hand_overs <= OBJECTS / 4, "the lock goes to and fro for every object: {hand_overs}");
        // Both answer until the last write has its lock.
        writer.join().unwrap();
        stop_here.abort();
        stop_there.abort();
    });
    block_on(async {
        let ends = Ends::find(&ends.target.pool, "a").await.unwrap();
        assert!(verify(&ends, Comparing::default(), &mut silent).await.unwrap().is_equal());
    });
}
