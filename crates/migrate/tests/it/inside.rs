//! Objects that a store copies by itself: which ones, what is left of it, and what is done where it turns out that it cannot.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use ferry_core::testing::{MemStore, test_env};
use ferry_core::{
    BlockDevice, Capabilities, Effect, Env, Error, Layer, Layered, Namespace, ObjectId, ReadOp, Reply,
    SnapId, Store, WriteOp, WriteReply,
};
use ferry_image::clone::{self, CloneFormat};
use ferry_image::create::{CreateOptions, create};
use ferry_image::device::ImageDevice;
use ferry_image::flatten::flatten;
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::layout::ObjectNo;
use ferry_image::pool::Pool;
use ferry_image::progress::silent;
use ferry_image::{copy, snapshot};
use ferry_migrate::{Comparing, Control, Ends, PrepareOptions, execute, prepare, verify};
use futures_executor::block_on;

use crate::case::Both;

const OBJECT: u64 = 64 << 10;
const OBJECT_LEN: usize = 64 << 10;

/// Whether copies are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copies {
    Made,
    /// As where the OSDs may not read of each other, which shows when it is tried.
    Refused,
}

/// A store that copies objects, and notes which.
#[derive(Debug)]
struct Copying {
    store: Arc<MemStore>,
    copies: Copies,
    refused: AtomicUsize,
    /// `(source, bytes)`.
    made: Mutex<Vec<(String, u64)>>,
}

impl Copying {
    fn new(env: &Env, copies: Copies) -> Arc<Layered<Self>> {
        let capabilities =
            Capabilities { share: false, copy: Some(OBJECT / 2), list_snaps: false, list_watchers: true };
        let store = MemStore::with_capabilities(env, capabilities);
        Arc::new(Layered(Self { store, copies, refused: AtomicUsize::new(0), made: Mutex::default() }))
    }
}

impl Layer for Copying {
    fn below(&self) -> &dyn Store {
        &*self.store
    }

    fn write(&self, object: &ObjectId, op: WriteOp) -> Reply<WriteReply> {
        for effect in &op.effects {
            let Effect::CopyObject { source, length, .. } = effect else { continue };
            if self.copies == Copies::Refused && self.refused.fetch_add(1, Ordering::SeqCst) < 3 {
                return Reply::ready(Err(Error::unsupported("copying objects")));
            }
            self.made.lock().unwrap().push((source.name.to_string(), *length));
        }
        self.store.write(object, op)
    }
}

/// What one has, as `(first byte, length)`, and zeros in between.
const PARTS: [(u64, u64); 5] = [
    (0, OBJECT),
    (OBJECT, OBJECT),
    (3 * OBJECT + 4096, OBJECT - 4096),
    (4 * OBJECT, 2 * OBJECT),
    (6 * OBJECT, 1000),
];
const SIZE: u64 = 8 * OBJECT;

/// An image with objects that are full, with a hole, missing, and short.
async fn pool_with(store: Arc<dyn Store>, env: &Env, name: &str) -> Pool {
    store.create_pool("p").await.unwrap();
    let pool = Pool::open(Arc::clone(&store), env.clone(), "p", &Namespace::default()).await.unwrap();
    let pool = pool.with_peers(Arc::new(Both(vec![store], None)));
    let options = CreateOptions { order: Some(16), ..CreateOptions::sized(SIZE) };
    create(&pool, name, &options).await.unwrap();
    let device = open(&pool, name).await;
    for (offset, length) in PARTS {
        device.write(offset, filled(offset, length)).await.unwrap();
    }
    device.close().await.unwrap();
    pool
}

fn filled(offset: u64, length: u64) -> Bytes {
    (offset..offset + length).map(|at| u8::try_from(at / 512 % 251).unwrap() + 1).collect::<Vec<u8>>().into()
}

async fn open(pool: &Pool, name: &str) -> ImageDevice {
    ImageDevice::open(Image::open(pool, name, Opening::ReadWrite).await.unwrap()).await.unwrap()
}

async fn bytes(pool: &Pool, name: &str) -> Vec<u8> {
    let image = Image::open(pool, name, Opening::ReadOnly).await.unwrap();
    image.revision().await.unwrap().read_bytes(0, SIZE).await.unwrap().to_vec()
}

/// Where an object of an image has data.
async fn extents(pool: &Pool, name: &str, object: u64) -> Vec<(u64, u64)> {
    let image = Image::open(pool, name, Opening::ReadOnly).await.unwrap();
    let id = image.revision().await.unwrap().object_id(ObjectNo(object));
    pool.store.find_extents(&id, SnapId::HEAD, 0, OBJECT).await.unwrap()
}

#[test]
fn full_objects_are_copied_by_the_store_and_verified() {
    for copies in [Copies::Made, Copies::Refused] {
        block_on(async {
            let env = test_env(7);
            let store = Copying::new(&env, copies);
            let pool = pool_with(Arc::clone(&store) as _, &env, "a").await;
            let before = bytes(&pool, "a").await;
            prepare(&pool, "a", &pool, "b", &PrepareOptions::default()).await.unwrap();
            let device = open(&pool, "b").await;
            let mut ends = Ends::find(&pool, "b").await.unwrap();
            let copied = execute(&mut ends, &device, &Control::default(), &mut silent).await.unwrap();
            let header = device.image().header.clone();
            device.close().await.unwrap();

            let made = store.0.made.lock().unwrap().clone();
            // The one with a hole and the short one are not for the store.
            assert_eq!(made.len(), 4, "{copies:?}: {made:?}");
            assert!(made.iter().all(|(_, length)| *length == OBJECT), "{made:?}");
            assert_eq!(store.0.refused.load(Ordering::SeqCst) > 0, copies == Copies::Refused);
            assert_eq!(copied.moved.copied, 5 * OBJECT - 4096 + 1000, "whoever copied it");
            assert_eq!(bytes(&pool, "b").await, before);
            assert_eq!(extents(&pool, "b", 3).await, [(4096, OBJECT - 4096)], "the hole stays one");

            let stamp = header.copy_stamp().unwrap();
            let image = Image::open(&pool, "b", Opening::ReadOnly).await.unwrap();
            for object in [0, 1, 3, 4, 5, 6] {
                let id = image.revision().await.unwrap().object_id(ObjectNo(object));
                let op = ReadOp { xattrs: true, ..ReadOp::stat() };
                let reply = pool.store.read(&id, SnapId::HEAD, op).await.unwrap();
                assert!(reply.xattrs.is_empty(), "object {object}: {:?}", reply.xattrs.keys());
                assert!(stamp.is_some() && reply.stamp == stamp, "object {object} has another stamp");
            }
            let report = verify(&ends, Comparing::default(), &mut silent).await.unwrap();
            let point = &report.points[0];
            assert!(report.is_equal() && point.data_bytes > point.digest_bytes, "{point:?}");
        });
    }
}

#[test]
fn what_was_written_to_a_copy_meanwhile_carries_no_stamp() {
    block_on(async {
        let env = test_env(8);
        let store = Copying::new(&env, Copies::Made);
        let pool = pool_with(Arc::clone(&store) as _, &env, "a").await;
        prepare(&pool, "a", &pool, "b", &PrepareOptions::default()).await.unwrap();
        let device = open(&pool, "b").await;
        // A first write brings the object, and is no part of the copy.
        device.write(100, Bytes::from_static(b"written")).await.unwrap();
        let mut ends = Ends::find(&pool, "b").await.unwrap();
        execute(&mut ends, &device, &Control::default(), &mut silent).await.unwrap();
        let stamp = device.image().header.copy_stamp().unwrap();
        device.close().await.unwrap();
        let image = Image::open(&pool, "b", Opening::ReadOnly).await.unwrap();
        let id = image.revision().await.unwrap().object_id(ObjectNo(0));
        let reply = pool.store.read(&id, SnapId::HEAD, ReadOp::stat()).await.unwrap();
        assert_ne!(reply.stamp, stamp);
        let mut expected = filled(0, OBJECT).to_vec();
        expected[100..107].copy_from_slice(b"written");
        assert_eq!(bytes(&pool, "b").await[..OBJECT_LEN], expected);
        assert!(verify(&ends, Comparing::default(), &mut silent).await.unwrap().is_equal());
    });
}

#[test]
fn clones_have_the_store_copy_objects_of_their_parents() {
    for copies in [Copies::Made, Copies::Refused] {
        block_on(async {
            let env = test_env(9);
            let store = Copying::new(&env, copies);
            let pool = pool_with(Arc::clone(&store) as _, &env, "parent").await;
            let mut parent = Image::open(&pool, "parent", Opening::ReadWrite).await.unwrap();
            snapshot::create(&mut parent, "s").await.unwrap();
            parent.close().await.unwrap();
            // What the parent is later shows nowhere.
            let mut expected = bytes(&pool, "parent").await;
            let device = open(&pool, "parent").await;
            device.write(OBJECT, Bytes::from(vec![0xee; OBJECT_LEN])).await.unwrap();
            device.close().await.unwrap();
            let parent =
                Image::open(&pool, "parent", Opening::ReadOnly).await.unwrap().at_snapshot("s").unwrap();
            clone::create(&parent, &pool, "child", CloneFormat::V2, &CreateOptions::default()).await.unwrap();

            let device = open(&pool, "child").await;
            for at in [OBJECT + 4096, 3 * OBJECT, 6 * OBJECT + 8192] {
                device.write(at, Bytes::from_static(&[0xaa; 4096])).await.unwrap();
                expected[usize::try_from(at).unwrap()..][..4096].fill(0xaa);
            }
            device.close().await.unwrap();
            let by_writes = usize::from(copies == Copies::Made);
            assert_eq!(
                store.0.made.lock().unwrap().len(),
                by_writes,
                "only the full object is for the store"
            );
            assert_eq!(bytes(&pool, "child").await, expected);
            let mut child = Image::open(&pool, "child", Opening::ReadWrite).await.unwrap();
            flatten(&mut child, &mut silent).await.unwrap();
            child.close().await.unwrap();
            assert_eq!(bytes(&pool, "child").await, expected);
            let made = store.0.made.lock().unwrap().clone();
            assert!(made.len() > by_writes, "{made:?}");
        });
    }
}

#[test]
fn copies_of_images_have_the_store_copy_their_objects() {
    for copies in [Copies::Made, Copies::Refused] {
        block_on(async {
            let env = test_env(10);
            let store = Copying::new(&env, copies);
            let pool = pool_with(Arc::clone(&store) as _, &env, "a").await;
            let before = bytes(&pool, "a").await;
            // Objects as large, larger, which others may be the beginning of, and smaller, which none is.
            for (name, order, by_store) in [("same", 16, 4), ("larger", 17, 2), ("smaller", 15, 0)] {
                store.0.made.lock().unwrap().clear();
                let options = CreateOptions { order: Some(order), ..CreateOptions::sized(SIZE) };
                create(&pool, name, &options).await.unwrap();
                let source = Image::open(&pool, "a", Opening::ReadOnly).await.unwrap();
                let mut target = Image::open(&pool, name, Opening::ReadWrite).await.unwrap();
                copy::copy(&source, &mut target, &mut silent).await.unwrap();
                target.close().await.unwrap();
                assert_eq!(bytes(&pool, name).await, before, "{name}");
                let made = store.0.made.lock().unwrap().clone();
                match copies {
                    Copies::Made => assert_eq!(made.len(), by_store, "{name}: {made:?}"),
                    Copies::Refused => assert!(made.len() <= by_store, "{name}: {made:?}"),
                }
            }
            assert_eq!(extents(&pool, "same", 3).await, [(4096, OBJECT - 4096)], "the hole stays one");
        });
    }
}
