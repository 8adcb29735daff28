//! A store that answers late: requests made at the same time happen in any order.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use ferry_core::lock::{LockInfo, LockRequest, UnlockRequest};
use ferry_core::store::ObjectCursor;
use ferry_core::testing::TestRng;
use ferry_core::watch::{NotifyReply, WatchReceiver, WatcherInfo};
use ferry_core::{
    Capabilities, ClientId, Namespace, ObjectId, ObjectPage, PoolFlags, PoolId, PoolInfo, PoolStats, ReadOp,
    ReadReply, Reply, SnapId, SnapSet, Store, WriteOp, WriteReply,
};

/// Longest wait. Polls.
const POLLS_MAX: u64 = 6;

/// Puts off each request for a random number of polls determined by a seed, then passes it on.
#[derive(Debug)]
pub struct LateStore {
    inner: Arc<dyn Store>,
    rng: TestRng,
}

impl LateStore {
    /// Puts off what goes to `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, seed: u64) -> Arc<Self> {
        Arc::new(Self { inner, rng: TestRng::new(seed) })
    }

    /// Makes a request later. Half of the wait lies before the request happens and half before its answer is seen.
    fn later<T: Unpin + Send + 'static>(
        &self,
        request: impl FnOnce(&dyn Store) -> Reply<T> + Send + 'static,
    ) -> Reply<T> {
        let inner = Arc::clone(&self.inner);
        let (before, after) = (self.rng.below(POLLS_MAX), self.rng.below(POLLS_MAX));
        Reply::pending(async move {
            polls(before).await;
            let answer = request(&*inner).await;
            polls(after).await;
            answer
        })
    }
}

/// Waits for `left` polls.
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

impl Store for LateStore {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn client(&self) -> ClientId {
        self.inner.client()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn identity(&self) -> [u8; 16] {
        self.inner.identity()
    }

    fn pools(&self) -> Reply<Vec<PoolInfo>> {
        self.later(|s| s.pools())
    }

    fn create_pool(&self, name: &str) -> Reply<PoolId> {
        let name = name.to_owned();
        self.later(move |s| s.create_pool(&name))
    }

    fn remove_pool(&self, pool: PoolId) -> Reply<()> {
        self.later(move |s| s.remove_pool(pool))
    }

    fn set_pool_flags(&self, pool: PoolId, flags: PoolFlags) -> Reply<()> {
        self.later(move |s| s.set_pool_flags(pool, flags))
    }

    fn pool_stats(&self, pool: PoolId) -> Reply<PoolStats> {
        self.later(move |s| s.pool_stats(pool))
    }

    fn write(&self, object: &ObjectId, op: WriteOp) -> Reply<WriteReply> {
        let object = object.clone();
        self.later(move |s| s.write(&object, op))
    }

    fn read(&self, object: &ObjectId, at: SnapId, op: ReadOp) -> Reply<ReadReply> {
        let object = object.clone();
        self.later(move |s| s.read(&object, at, op))
    }

    fn extents(&self, object: &ObjectId, at: SnapId, offset: u64, length: u64) -> Reply<Vec<(u64, u64)>> {
        let object = object.clone();
        self.later(move |s| s.extents(&object, at, offset, length))
    }

    fn find_extents(
        &self,
        object: &ObjectId,
        at: SnapId,
        offset: u64,
        length: u64,
    ) -> Reply<Vec<(u64, u64)>> {
        let object = object.clone();
        self.later(move |s| s.find_extents(&object, at, offset, length))
    }

    fn is_full(&self, object: &ObjectId, at: SnapId, length: u64) -> Reply<bool> {
        let object = object.clone();
        self.later(move |s| s.is_full(&object, at, length))
    }

    fn is_same_at(&self, object: &ObjectId, one: SnapId, other: SnapId) -> Reply<bool> {
        let object = object.clone();
        self.later(move |s| s.is_same_at(&object, one, other))
    }

    fn list_snaps(&self, object: &ObjectId) -> Reply<SnapSet> {
        let object = object.clone();
        self.later(move |s| s.list_snaps(&object))
    }

    fn allocate_snap(&self, pool: PoolId) -> Reply<SnapId> {
        self.later(move |s| s.allocate_snap(pool))
    }

    fn release_snap(&self, pool: PoolId, snap: SnapId) -> Reply<()> {
        self.later(move |s| s.release_snap(pool, snap))
    }

    fn list_objects(
        &self,
        pool: PoolId,
        namespace: Option<&Namespace>,
        after: Option<ObjectCursor>,
        max: usize,
    ) -> Reply<ObjectPage> {
        let namespace = namespace.cloned();
        self.later(move |s| s.list_objects(pool, namespace.as_ref(), after, max))
    }

    fn watch(&self, object: &ObjectId) -> Reply<WatchReceiver> {
        let object = object.clone();
        self.later(move |s| s.watch(&object))
    }

    fn notify(&self, object: &ObjectId, payload: Bytes, timeout: Duration) -> Reply<NotifyReply> {
        let object = object.clone();
        self.later(move |s| s.notify(&object, payload, timeout))
    }

    fn list_watchers(&self, object: &ObjectId) -> Reply<Vec<WatcherInfo>> {
        let object = object.clone();
        self.later(move |s| s.list_watchers(&object))
    }

    fn lock(&self, object: &ObjectId, request: LockRequest) -> Reply<()> {
        let object = object.clone();
        self.later(move |s| s.lock(&object, request))
    }

    fn unlock(&self, object: &ObjectId, request: UnlockRequest) -> Reply<()> {
        let object = object.clone();
        self.later(move |s| s.unlock(&object, request))
    }

    fn break_lock(&self, object: &ObjectId, request: UnlockRequest, locker: ClientId) -> Reply<()> {
        let object = object.clone();
        self.later(move |s| s.break_lock(&object, request, locker))
    }

    fn cut_off(&self, address: &str) -> Reply<()> {
        let address = address.to_owned();
        self.later(move |s| s.cut_off(&address))
    }

    fn lock_info(&self, object: &ObjectId, name: &str) -> Reply<LockInfo> {
        let (object, name) = (object.clone(), name.to_owned());
        self.later(move |s| s.lock_info(&object, &name))
    }

    fn flush(&self) -> Reply<()> {
        self.later(|s| s.flush())
    }

    fn address(&self) -> String {
        self.inner.address()
    }
}
