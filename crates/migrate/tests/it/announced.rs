//! What a copy says of the objects it comes to, before it reads them.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use ferry_core::testing::{MemStore, test_env};
use ferry_core::{BlockDevice, Layer, Layered, Namespace, ObjectId, ReadOp, ReadReply, Reply, SnapId, Store};
use ferry_image::create::{CreateOptions, create};
use ferry_image::device::ImageDevice;
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::pool::Pool;
use ferry_image::progress::silent;
use ferry_migrate::{Control, Ends, PrepareOptions, execute, prepare};
use futures_executor::block_on;

use crate::case::Both;

const OBJECT: u64 = 64 << 10;
const OBJECTS: usize = 6;

/// What a store heard of a data object.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Heard {
    /// A range of it will be read.
    Will(String, u64, u64),
    /// Its data is read.
    Read(String),
}

/// A store that notes what it is asked of data.
#[derive(Debug)]
struct Listening {
    store: Arc<MemStore>,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Layer for Listening {
    fn below(&self) -> &dyn Store {
        &*self.store
    }

    fn read(&self, object: &ObjectId, at: SnapId, op: ReadOp) -> Reply<ReadReply> {
        // What is aside is looked for, too.
        let is_of_image = object.name.starts_with("rbd_data.") && !object.name.contains(".early.");
        if op.data.is_some() && is_of_image {
            self.heard.lock().unwrap().push(Heard::Read(object.name.to_string()));
        }
        self.store.read(object, at, op)
    }

    fn will_read(&self, object: &ObjectId, _at: SnapId, offset: u64, length: u64) {
        self.heard.lock().unwrap().push(Heard::Will(object.name.to_string(), offset, length));
    }
}

/// Moves an image with `OBJECTS` full objects between two stores, or pools of one; what the store of the source heard
/// while that was executed, once and then again.
fn heard(between_stores: bool) -> Vec<Heard> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    block_on(async {
        let env = test_env(5);
        let mut stores: Vec<Arc<dyn Store>> = Vec::new();
        for _ in 0..=usize::from(between_stores) {
            let store = Listening { store: MemStore::new(&env), heard: Arc::clone(&heard) };
            store.store.create_pool("p").await.unwrap();
            stores.push(Arc::new(Layered(store)));
        }
        let peers = Arc::new(Both(stores.clone(), None));
        let open = async |store: &Arc<dyn Store>| {
            let pool = Pool::open(Arc::clone(store), env.clone(), "p", &Namespace::default()).await.unwrap();
            pool.with_peers(Arc::clone(&peers) as _)
        };
        let (from, to) = (open(&stores[0]).await, open(stores.last().unwrap()).await);
        let size = OBJECT * OBJECTS as u64;
        let options = CreateOptions { order: Some(16), ..CreateOptions::sized(size) };
        create(&from, "a", &options).await.unwrap();
        let device =
            ImageDevice::open(Image::open(&from, "a", Opening::ReadWrite).await.unwrap()).await.unwrap();
        device.write(0, Bytes::from(vec![7; usize::try_from(size).unwrap()])).await.unwrap();
        device.close().await.unwrap();
        prepare(&from, "a", &to, "b", &PrepareOptions::default()).await.unwrap();

        let device =
            ImageDevice::open(Image::open(&to, "b", Opening::ReadWrite).await.unwrap()).await.unwrap();
        let mut ends = Ends::find(&to, "b").await.unwrap();
        heard.lock().unwrap().clear();
        execute(&mut ends, &device, &Control::default(), &mut silent).await.unwrap();
        device.close().await.unwrap();
    });
    std::mem::take(&mut *heard.lock().unwrap())
}

#[test]
fn a_store_hears_of_each_object_before_the_first_is_read() {
    let heard = heard(true);
    let is_will = |h: &Heard| matches!(h, Heard::Will(..));
    let first_read = heard.iter().position(|h| matches!(h, Heard::Read(_))).unwrap();
    // All are in flight at once.
    assert_eq!(heard.iter().filter(|h| is_will(h)).count(), OBJECTS, "{heard:?}");
    assert!(heard[..first_read].iter().filter(|h| is_will(h)).count() >= OBJECTS, "{heard:?}");
    for (n, told) in heard.iter().filter(|h| is_will(h)).enumerate() {
        let Heard::Will(name, offset, length) = told else { unreachable!() };
        assert!(name.ends_with(&format!("{n:016x}")), "{told:?} is number {n}");
        assert_eq!((*offset, *length), (0, OBJECT));
    }
}

#[test]
fn a_store_that_shares_hears_of_nothing() {
    let heard = heard(false);
    assert!(heard.is_empty(), "{heard:?}");
}
