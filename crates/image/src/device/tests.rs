use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use ferry_core::testing::{MemStore, test_env};
use ferry_core::{BlockDevice, ErrorKind, Namespace, Result, SnapId, Store};
use futures_executor::block_on;
use futures_util::future::{Either, abortable, join, select};

use super::ImageDevice;
use crate::create::{CreateOptions, create};
use crate::header::Opening;
use crate::image::Image;
use crate::pool::Pool;
use crate::snapshot;

const SIZE: u64 = 64 << 10;

async fn pools() -> (Pool, Pool) {
    let env = test_env(7);
    let store = MemStore::new(&env);
    store.create_pool("p").await.unwrap();
    let other: Arc<dyn Store> = store.another_client();
    let here = Pool::open(store, env.clone(), "p", &Namespace::default()).await.unwrap();
    let there = Pool::open(other, env, "p", &Namespace::default()).await.unwrap();
    let options = CreateOptions { order: Some(14), ..CreateOptions::sized(SIZE) };
    create(&here, "a", &options).await.unwrap();
    (here, there)
}

async fn device(pool: &Pool) -> ImageDevice {
    ImageDevice::open(Image::open(pool, "a", Opening::ReadWrite).await.unwrap()).await.unwrap()
}

/// Runs `work` while `attended` answers others.
async fn attending<T>(attended: &ImageDevice, work: impl Future<Output = T>) -> T {
    match select(pin!(work), pin!(attended.attend())).await {
        Either::Left((value, _)) => value,
        Either::Right((ended, _)) => panic!("attending ended: {ended:?}"),
    }
}

async fn byte(device: &ImageDevice, offset: u64) -> u8 {
    device.read(offset, 1).await.unwrap()[0]
}

fn is_owner(device: &ImageDevice) -> bool {
    device.image().session.is_some_and(|s| s.is_owner())
}

#[test]
fn the_first_write_takes_the_lock_and_reading_does_not() {
    block_on(async {
        let (here, _) = pools().await;
        let device = device(&here).await;
        assert_eq!(byte(&device, 5).await, 0);
        assert!(!is_owner(&device));
        device.write(5, Bytes::from_static(b"x")).await.unwrap();
        assert!(is_owner(&device));
        device.release().await.unwrap();
        assert!(!is_owner(&device));
        assert_eq!(byte(&device, 5).await, b'x');
    });
}

#[test]
fn the_lock_goes_to_whoever_writes_and_nothing_is_lost_on_the_way() {
    block_on(async {
        let (here, there) = pools().await;
        let (a, b) = (device(&here).await, device(&there).await);
        let both = async |work| attending(&a, attending(&b, work)).await;
        both(a.write(0, Bytes::from_static(b"a"))).await.unwrap();
        assert!(is_owner(&a) && !is_owner(&b));
        both(b.write(1, Bytes::from_static(b"b"))).await.unwrap();
        assert!(!is_owner(&a) && is_owner(&b));
        both(a.write(2, Bytes::from_static(b"c"))).await.unwrap();
        assert!(is_owner(&a) && !is_owner(&b));
        for device in [&a, &b] {
            assert_eq!(&device.read(0, 3).await.unwrap()[..], b"abc");
        }
    });
}

#[test]
fn two_writers_taking_turns_both_finish() {
    block_on(async {
        let (here, there) = pools().await;
        let (a, b) = (device(&here).await, device(&there).await);
        let write = async |device: &ImageDevice, first: u64| -> Result<()> {
            for n in 0..20 {
                device.write(first + 2 * n, Bytes::from(vec![7])).await?;
            }
            Ok(())
        };
        let both = join(write(&a, 0), write(&b, 1));
        let (x, y) = attending(&a, attending(&b, both)).await;
        x.unwrap();
        y.unwrap();
        assert_eq!(a.read(0, 40).await.unwrap(), vec![7; 40]);
    });
}

#[test]
fn after_a_snapshot_by_another_client_writes_do_not_reach_it() {
    block_on(async {
        let (here, there) = pools().await;
        let a = device(&here).await;
        a.write(0, Bytes::from_static(b"old")).await.unwrap();
        let id: SnapId = attending(&a, async {
            let mut image = Image::open(&there, "a", Opening::ReadWrite).await.unwrap();
            let id = snapshot::create(&mut image, "s").await.unwrap();
            image.close().await.unwrap();
            id
        })
        .await;
        a.write(0, Bytes::from_static(b"new")).await.unwrap();
        let then = a.image().revision_at(id).await.unwrap();
        assert_eq!(&then.read_bytes(0, 3).await.unwrap()[..], b"old");
        assert_eq!(&a.read(0, 3).await.unwrap()[..], b"new");
    });
}

#[test]
fn a_snapshot_through_the_device_needs_nobody_to_answer_it_but_itself() {
    block_on(async {
        let (here, there) = pools().await;
        let (a, b) = (device(&here).await, device(&there).await);
        attending(&b, a.write(0, Bytes::from_static(b"old"))).await.unwrap();
        let snap = a.exclusively(async |image: &mut Image| snapshot::create(image, "s").await);
        // `b` answers the news of the snapshot, `a` its own.
        let id = attending(&b, Box::pin(attending(&a, snap))).await.unwrap();
        attending(&b, a.write(0, Bytes::from_static(b"new"))).await.unwrap();
        let then = a.image().revision_at(id).await.unwrap();
        assert_eq!(&then.read_bytes(0, 3).await.unwrap()[..], b"old");
        assert_eq!(b.image().header.snaps.len(), 1, "the other device has read the header");
    });
}

#[test]
fn a_read_only_device_refuses_to_write_and_everything_outside_is_invalid() {
    block_on(async {
        let (here, _) = pools().await;
        let device =
            ImageDevice::open(Image::open(&here, "a", Opening::ReadOnly).await.unwrap()).await.unwrap();
        assert!(device.is_read_only());
        let refused = device.write(0, Bytes::from_static(b"x")).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ReadOnly);
        assert_eq!(device.discard(0, 1).await.unwrap_err().kind(), ErrorKind::ReadOnly);
        assert_eq!(device.read(SIZE, 1).await.unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(device.read(u64::MAX, 2).await.unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(device.read(SIZE, 0).await.unwrap().len(), 0);
    });
}

#[test]
fn one_that_changes_the_image_and_one_that_attends_do_not_wait_for_each_other() {
    const CHANGES: usize = 3_000;
    let device = block_on(async {
        let (here, _) = pools().await;
        device(&here).await
    });
    let (attending, stop) = abortable(device.attend());
    let (done, hears) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| block_on(attending));
        let changed = device.clone();
        scope.spawn(move || {
            for _ in 0..CHANGES {
                block_on(changed.exclusively(async |image: &mut Image| image.notify_header().await)).unwrap();
            }
            done.send(()).unwrap();
        });
        if hears.recv_timeout(std::time::Duration::from_secs(60)).is_err() {
            eprintln!("they wait for each other");
            std::process::abort();
        }
        stop.abort();
    });
}

#[test]
fn one_that_changes_the_image_elsewhere_and_writers_that_want_its_lock_do_not_wait_for_each_other() {
    const CHANGES: usize = 3_000;
    let (here, there) = block_on(pools());
    let written = block_on(device(&here));
    let (attending, stop) = abortable(written.attend());
    let (done, hears) = std::sync::mpsc::channel();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| block_on(attending));
        for offset in 0..2 {
            let (writer, is_over) = (written.clone(), &is_over);
            scope.spawn(move || {
                while !is_over.load(std::sync::atomic::Ordering::Acquire) {
                    block_on(writer.write(offset, Bytes::from_static(b"x"))).unwrap();
                }
            });
        }
        scope.spawn(move || {
            for _ in 0..CHANGES {
                block_on(async {
                    let mut image = Image::open(&there, "a", Opening::ReadWrite).await.unwrap();
                    image.acquire().await.unwrap();
                    image.notify_header().await.unwrap();
                    image.close().await.unwrap();
                });
            }
            done.send(()).unwrap();
        });
        if hears.recv_timeout(std::time::Duration::from_secs(60)).is_err() {
            eprintln!("they wait for each other");
            std::process::abort();
        }
        is_over.store(true, std::sync::atomic::Ordering::Release);
        stop.abort();
    });
}
