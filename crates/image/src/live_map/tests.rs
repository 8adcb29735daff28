//! Tests of changes that are asked for at the same time.

use std::collections::HashSet;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;

use ferry_core::testing::{MemStore, TestRng, test_env};
use ferry_core::{
    Effect, ErrorKind, Layer, Layered, Namespace, ObjectId, Reply, Rng, Store, WriteOp, WriteReply,
};
use futures_executor::block_on;
use futures_util::FutureExt;
use futures_util::future::{Either, join_all, select};

use super::{LiveMap, load_stored};
use crate::layout::ObjectNo;
use crate::object_map::{Loaded, ObjectMap, ObjectState};

const OBJECTS: u64 = 5000;

/// A store that answers writes late, counts them, and may be full.
#[derive(Debug)]
struct Slow {
    inner: Arc<MemStore>,
    rng: TestRng,
    writes: AtomicUsize,
    is_full: AtomicBool,
}

/// Waits for so many polls.
async fn polls(mut left: u64) {
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Layer for Slow {
    fn below(&self) -> &dyn Store {
        &*self.inner
    }

    fn write(&self, object: &ObjectId, op: WriteOp) -> Reply<WriteReply> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        if self.is_full.load(Ordering::Relaxed) && !op.full_try {
            return Reply::ready(Err(ferry_core::Error::new(ErrorKind::NoSpace, "the store is full")));
        }
        let (inner, object) = (Arc::clone(&self.inner), object.clone());
        let (before, after) = (1 + self.rng.below(4), self.rng.below(4));
        Reply::pending(async move {
            polls(before).await;
            let reply = inner.write(&object, op).await;
            polls(after).await;
            reply
        })
    }
}

/// The map of an image of [`OBJECTS`] objects in such a store.
struct World {
    store: Arc<Layered<Slow>>,
    object: ObjectId,
    map: LiveMap,
}

impl World {
    fn new(seed: u64) -> Self {
        let inner = MemStore::new(&test_env(seed));
        let pool = inner.create_pool("p").wait().unwrap();
        let object = ObjectId::new(pool, &Namespace::default(), "rbd_object_map.1");
        let empty = ObjectMap::new(OBJECTS).unwrap();
        inner.write(&object, WriteOp::new().effect(Effect::WriteFull(empty.encode()))).wait().unwrap();
        let store = Arc::new(Layered(Slow {
            inner,
            rng: TestRng::new(seed),
            writes: AtomicUsize::new(0),
            is_full: AtomicBool::new(false),
        }));
        let as_store: Arc<dyn Store> = Arc::clone(&store) as Arc<dyn Store>;
        let map = block_on(LiveMap::open(&as_store, object.clone(), OBJECTS)).unwrap().unwrap();
        Self { store, object, map }
    }

    fn writes(&self) -> usize {
        self.store.0.writes.load(Ordering::Relaxed)
    }

    /// The map as it is in the store, whose checksums are right.
    fn stored(&self) -> ObjectMap {
        match load_stored(&*self.store.0.inner, &self.object, OBJECTS).now_or_never().unwrap().unwrap() {
            Loaded::Valid(map) => map,
            Loaded::Invalid { .. } => panic!("the stored map is not valid"),
        }
    }
}

#[test]
fn writes_that_begin_at_once_are_announced_together() {
    let world = World::new(1);
    let objects: Vec<u64> = (0..64).chain([1100, 1101, 4999]).collect();
    let begun = block_on(join_all(objects.iter().map(|o| world.map.begin_write(vec![ObjectNo(*o)]))));
    // The first goes alone, the others while that is under way.
    assert_eq!(world.writes(), 2);
    let stored = world.stored();
    let exist: Vec<u64> =
        stored.states().filter(|(_, s)| *s == ObjectState::Exists).map(|(o, _)| o.0).collect();
    assert_eq!(exist, objects);
    assert_eq!(world.map.snapshot(), stored);
    begun.into_iter().for_each(|ticket| ticket.unwrap().finish());
    // What is announced is not announced again.
    block_on(world.map.begin_write(objects.iter().copied().map(ObjectNo).collect())).unwrap().finish();
    assert_eq!(world.writes(), 2);
}

#[test]
fn on_a_full_store_objects_can_be_removed_while_others_wait_to_be_written() {
    let world = World::new(2);
    for object in 0..8 {
        block_on(world.map.begin_write(vec![ObjectNo(object)])).unwrap().finish();
    }
    // A removal first, so that the rest is asked for while it is under way.
    world.store.0.is_full.store(true, Ordering::Relaxed);
    let removals = join_all((0..4).map(|o| world.map.begin_remove(ObjectNo(o))));
    let writes = join_all((100..104).map(|o| world.map.begin_write(vec![ObjectNo(o)])));
    let more = join_all((4..8).map(|o| world.map.begin_remove(ObjectNo(o))));
    let (removed, written, more) = block_on(futures_util::future::join3(removals, writes, more));
    removed.into_iter().chain(more).for_each(|done| done.unwrap());
    assert!(written.into_iter().all(|w| w.is_err_and(|e| e.kind() == ErrorKind::NoSpace)));
    (0..8).for_each(|o| block_on(world.map.end_remove(ObjectNo(o))).unwrap());
    assert!((0..8).all(|o| world.stored().get(ObjectNo(o)) == ObjectState::Absent));
}

/// One object used by one request after the other, some given up at any point. `must` are the objects that are being written, which the
/// stored map must not deny.
async fn use_object(world: &World, object: u64, seed: u64, must: &std::sync::Mutex<HashSet<u64>>) {
    let (rng, object) = (TestRng::new(seed), ObjectNo(object));
    for _ in 0..rng.below(6) {
        polls(rng.below(9)).await;
        if rng.one_in(2) {
            let begun = Box::pin(world.map.begin_write(vec![object]));
            let given_up = Box::pin(polls(if rng.one_in(3) { rng.below(9) } else { 100_000 }));
            let Either::Left((ticket, _)) = select(begun, given_up).await else { continue };
            assert!(world.stored().get(object).may_exist(), "seed {seed}");
            must.lock().unwrap().insert(object.0);
            polls(rng.below(9)).await;
            must.lock().unwrap().remove(&object.0);
            ticket.unwrap().finish();
        } else {
            let removal = Box::pin(async {
                world.map.begin_remove(object).await.unwrap();
                world.map.end_remove(object).await.unwrap();
            });
            let given_up = Box::pin(polls(if rng.one_in(3) { rng.below(20) } else { 100_000 }));
            drop(select(removal, given_up).await);
        }
        let stored = world.stored();
        assert!(must.lock().unwrap().iter().all(|o| stored.get(ObjectNo(*o)).may_exist()), "seed {seed}");
    }
}

#[test]
fn the_stored_map_never_denies_an_object_that_is_written_whoever_gives_up() {
    for seed in 0..300 {
        let world = World::new(seed);
        let must = std::sync::Mutex::default();
        let users = (0..24).map(|o| use_object(&world, o * 7, world.store.0.rng.next_u64(), &must));
        block_on(join_all(users));
        // With nobody left, one more change brings store and memory together.
        let all: Vec<ObjectNo> = (0..24).map(|o| ObjectNo(o * 7)).collect();
        block_on(world.map.begin_write(all)).unwrap().finish();
        assert_eq!(world.map.snapshot(), world.stored(), "seed {seed}");
    }
}

#[test]
fn an_object_behind_the_end_is_refused_and_costs_nobody_else_anything() {
    let world = World::new(3);
    let begun = [0, 1, OBJECTS, 2, 3].map(|o| world.map.begin_write(vec![ObjectNo(o)]));
    let errors: Vec<bool> = block_on(join_all(begun)).into_iter().map(|t| t.is_err()).collect();
    assert_eq!(errors, [false, false, true, false, false]);
    assert!((0..4).all(|o| world.stored().get(ObjectNo(o)) == ObjectState::Exists));
    assert_eq!(world.stored().get(ObjectNo(OBJECTS - 1)), ObjectState::Absent);
}
