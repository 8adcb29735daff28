//! What the tests of this room share: a pool in memory, and a store that dies after a number of changes.

mod races;

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::Poll;

use ferry_core::testing::{MemStore, TestRng, test_env};
use ferry_core::{
    Env, Error, ErrorKind, Layer, Layered, Namespace, ObjectId, PoolFlags, ReadOp, Reply, Result, SnapId,
    Store,
};
use futures_executor::block_on;

use crate::pool::Pool;

/// A store in memory with two pools, `p` and `q`.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) store: Arc<MemStore>,
    pub(crate) env: Env,
}

impl World {
    pub(crate) fn new() -> Self {
        let env = test_env(7);
        let store = MemStore::new(&env);
        for name in ["p", "q"] {
            store.create_pool(name).wait().unwrap();
        }
        Self { store, env }
    }

    /// A pool's default namespace, as the first client sees it.
    pub(crate) fn pool(&self, name: &str) -> Pool {
        self.pool_of(Arc::clone(&self.store) as Arc<dyn Store>, name)
    }

    /// A pool as a client sees it that nobody has seen before.
    pub(crate) fn fresh_pool(&self, name: &str) -> Pool {
        self.pool_of(self.store.another_client(), name)
    }

    pub(crate) fn pool_of(&self, store: Arc<dyn Store>, name: &str) -> Pool {
        block_on(Pool::open(store, self.env.clone(), name, &Namespace::default())).unwrap()
    }

    /// Makes a pool read-only.
    pub(crate) fn freeze(&self, pool: &Pool) -> Pool {
        self.store.set_pool_flags(pool.id(), PoolFlags { read_only: true }).wait().unwrap();
        self.pool(&pool.info.name)
    }

    /// Every object of a pool with its omap and data, to compare two states.
    pub(crate) fn dump(&self, pool: &Pool) -> Vec<String> {
        let page = self.store.list_objects(pool.id(), None, None, 4096).wait().unwrap();
        page.objects
            .iter()
            .map(|(namespace, name)| {
                let object = ObjectId::new(pool.id(), namespace, name);
                let mut op = ReadOp::omap_page("", "");
                op.data = Some((0, 1 << 16));
                op.xattrs = true;
                format!("{object} {:?}", self.store.read(&object, SnapId::HEAD, op).wait().unwrap())
            })
            .collect()
    }

    /// Names of all objects of a pool.
    pub(crate) fn object_names(&self, pool: &Pool) -> Vec<String> {
        let page = self.store.list_objects(pool.id(), None, None, 4096).wait().unwrap();
        page.objects.iter().map(|(_, name)| name.to_string()).collect()
    }
}

/// A client whose connection breaks after a number of changes: that change and all later requests fail.
#[derive(Debug)]
pub(crate) struct DyingStore {
    inner: Arc<dyn Store>,
    changes_left: AtomicI64,
    /// Where set, answers come late, by this luck.
    late: Option<TestRng>,
}

impl DyingStore {
    pub(crate) fn new(inner: Arc<dyn Store>, changes: i64) -> Arc<Layered<Self>> {
        Arc::new(Layered(Self { inner, changes_left: AtomicI64::new(changes), late: None }))
    }

    /// A client that lives, but whose answers come late, so that others get in between.
    pub(crate) fn late(inner: Arc<dyn Store>, seed: u64) -> Arc<Layered<Self>> {
        let (changes_left, late) = (AtomicI64::new(i64::MAX), Some(TestRng::new(seed)));
        Arc::new(Layered(Self { inner, changes_left, late }))
    }

    /// Whether it broke.
    pub(crate) fn is_dead(&self) -> bool {
        self.changes_left.load(Ordering::Relaxed) < 0
    }
}

impl Layer for DyingStore {
    fn below(&self) -> &dyn Store {
        &*self.inner
    }

    fn ask<T: Send + Unpin + 'static>(&self, request: impl FnOnce(&dyn Store) -> Reply<T>) -> Reply<T> {
        if self.is_dead() {
            return Reply::ready(Err(Error::new(ErrorKind::Unavailable, "the store is gone")));
        }
        let reply = request(&*self.inner);
        let Some(rng) = &self.late else { return reply };
        let turns = rng.below(4);
        Reply::pending(async move {
            for _ in 0..turns {
                let mut waited = false;
                poll_fn(|cx| {
                    if waited {
                        return Poll::Ready(());
                    }
                    waited = true;
                    cx.waker().wake_by_ref();
                    Poll::Pending
                })
                .await;
            }
            reply.await
        })
    }

    fn change<T: Send + Unpin + 'static>(&self, request: impl FnOnce(&dyn Store) -> Reply<T>) -> Reply<T> {
        self.changes_left.fetch_sub(1, Ordering::Relaxed);
        self.ask(request)
    }
}

/// Runs `act` in a new world, after `set_up`, with a client that dies after 0, 1, 2, … changes, until it lives to the end.
/// After each death, `act` runs again with a healthy client and must succeed where `again` says so; then `check` looks at
/// the world.
#[expect(clippy::needless_pass_by_value, reason = "closures are written at the call")]
pub(crate) fn die_everywhere(
    set_up: impl Fn(&World),
    act: impl AsyncFn(&World, &Pool) -> Result<()>,
    again: impl Fn(Result<()>),
    check: impl Fn(&World, &Pool),
) {
    for changes in 0.. {
        assert!(changes < 1000, "an operation of a thousand changes");
        let world = World::new();
        set_up(&world);
        let store = DyingStore::new(world.store.another_client(), changes);
        let dying = world.pool_of(Arc::clone(&store) as Arc<dyn Store>, "p");
        let first = block_on(act(&world, &dying));
        let healthy = world.fresh_pool("p");
        if store.0.is_dead() {
            assert!(first.is_err(), "a dead store reports success after {changes} changes");
            again(block_on(act(&world, &healthy)));
        } else {
            first.unwrap();
        }
        check(&world, &healthy);
        if !store.0.is_dead() {
            assert!(changes > 0, "an operation that changes nothing");
            return;
        }
    }
}
