//! A store in front of another: what is asked of it goes on to the one below, and something is done about it on the way.
//!
//! A layer says what that is for requests that change something and for those that do not; where a single request is another
//! matter, it says so for that one.

use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;

use crate::lock::{LockInfo, LockRequest, UnlockRequest};
use crate::store::{ChildStep, ObjectCursor};
use crate::watch::{NotifyReply, WatchReceiver, WatcherInfo};
use crate::{
    Capabilities, ClientId, Namespace, ObjectId, ObjectPage, PoolFlags, PoolId, PoolInfo, PoolStats, ReadOp,
    ReadReply, Reply, SnapId, SnapSet, Store, WriteOp, WriteReply,
};

/// What is done about requests. [`Layered`] makes it a store.
///
/// # Cancel safety
/// As for [`Store`]; what a layer does when a reply is dropped is its own.
pub trait Layer: Send + Sync + Debug + Sized {
    /// The store below.
    fn below(&self) -> &dyn Store;

    /// A request that changes nothing.
    fn ask<T: Send + Unpin + 'static>(&self, request: impl FnOnce(&dyn Store) -> Reply<T>) -> Reply<T> {
        request(self.below())
    }

    /// A request that changes something.
    fn change<T: Send + Unpin + 'static>(&self, request: impl FnOnce(&dyn Store) -> Reply<T>) -> Reply<T> {
        self.ask(request)
    }

    /// See [`Store::describe`].
    fn describe(&self) -> String {
        self.below().describe()
    }

    /// See [`Store::pools`].
    fn pools(&self) -> Reply<Vec<PoolInfo>> {
        self.ask(|s| s.pools())
    }

    /// See [`Store::write`].
    fn write(&self, object: &ObjectId, op: WriteOp) -> Reply<WriteReply> {
        self.change(|s| s.write(object, op))
    }

    /// See [`Store::read`].
    fn read(&self, object: &ObjectId, at: SnapId, op: ReadOp) -> Reply<ReadReply> {
        self.ask(|s| s.read(object, at, op))
    }

    /// See [`Store::will_read`].
    fn will_read(&self, object: &ObjectId, at: SnapId, offset: u64, length: u64) {
        self.below().will_read(object, at, offset, length);
    }

    /// See [`Store::notify`].
    fn notify(&self, object: &ObjectId, payload: Bytes, timeout: Duration) -> Reply<NotifyReply> {
        self.ask(|s| s.notify(object, payload, timeout))
    }

    /// See [`Store::unlock`].
    fn unlock(&self, object: &ObjectId, request: UnlockRequest) -> Reply<()> {
        self.change(|s| s.unlock(object, request))
    }

    /// See [`Store::flush`].
    fn flush(&self) -> Reply<()> {
        self.ask(|s| s.flush())
    }
}

/// A layer as a store.
#[derive(Debug)]
pub struct Layered<L>(pub L);

impl<L: Layer> Store for Layered<L> {
    fn capabilities(&self) -> Capabilities {
        self.0.below().capabilities()
    }

    fn client(&self) -> ClientId {
        self.0.below().client()
    }

    fn describe(&self) -> String {
        self.0.describe()
    }

    fn identity(&self) -> [u8; 16] {
        self.0.below().identity()
    }

    fn generation(&self) -> Option<u64> {
        self.0.below().generation()
    }

    fn pools(&self) -> Reply<Vec<PoolInfo>> {
        self.0.pools()
    }

    fn create_pool(&self, name: &str) -> Reply<PoolId> {
        self.0.change(|s| s.create_pool(name))
    }

    fn remove_pool(&self, pool: PoolId) -> Reply<()> {
        self.0.change(|s| s.remove_pool(pool))
    }

    fn set_pool_flags(&self, pool: PoolId, flags: PoolFlags) -> Reply<()> {
        self.0.change(|s| s.set_pool_flags(pool, flags))
    }

    fn pool_stats(&self, pool: PoolId) -> Reply<PoolStats> {
        self.0.ask(|s| s.pool_stats(pool))
    }

    fn write(&self, object: &ObjectId, op: WriteOp) -> Reply<WriteReply> {
        self.0.write(object, op)
    }

    fn read(&self, object: &ObjectId, at: SnapId, op: ReadOp) -> Reply<ReadReply> {
        self.0.read(object, at, op)
    }

    fn extents(&self, object: &ObjectId, at: SnapId, offset: u64, length: u64) -> Reply<Vec<(u64, u64)>> {
        self.0.ask(|s| s.extents(object, at, offset, length))
    }

    fn find_extents(
        &self,
        object: &ObjectId,
        at: SnapId,
        offset: u64,
        length: u64,
    ) -> Reply<Vec<(u64, u64)>> {
        self.0.ask(|s| s.find_extents(object, at, offset, length))
    }

    fn is_full(&self, object: &ObjectId, at: SnapId, length: u64) -> Reply<bool> {
        self.0.ask(|s| s.is_full(object, at, length))
    }

    fn will_read(&self, object: &ObjectId, at: SnapId, offset: u64, length: u64) {
        self.0.will_read(object, at, offset, length);
    }

    fn is_same_at(&self, object: &ObjectId, one: SnapId, other: SnapId) -> Reply<bool> {
        self.0.ask(|s| s.is_same_at(object, one, other))
    }

    fn list_snaps(&self, object: &ObjectId) -> Reply<SnapSet> {
        self.0.ask(|s| s.list_snaps(object))
    }

    fn allocate_snap(&self, pool: PoolId) -> Reply<SnapId> {
        self.0.change(|s| s.allocate_snap(pool))
    }

    fn release_snap(&self, pool: PoolId, snap: SnapId) -> Reply<()> {
        self.0.change(|s| s.release_snap(pool, snap))
    }

    fn list_objects(
        &self,
        pool: PoolId,
        namespace: Option<&Namespace>,
        after: Option<ObjectCursor>,
        max: usize,
    ) -> Reply<ObjectPage> {
        self.0.ask(|s| s.list_objects(pool, namespace, after, max))
    }

    fn watch(&self, object: &ObjectId) -> Reply<WatchReceiver> {
        self.0.ask(|s| s.watch(object))
    }

    fn notify(&self, object: &ObjectId, payload: Bytes, timeout: Duration) -> Reply<NotifyReply> {
        self.0.notify(object, payload, timeout)
    }

    fn list_watchers(&self, object: &ObjectId) -> Reply<Vec<WatcherInfo>> {
        self.0.ask(|s| s.list_watchers(object))
    }

    fn lock(&self, object: &ObjectId, request: LockRequest) -> Reply<()> {
        self.0.change(|s| s.lock(object, request))
    }

    fn unlock(&self, object: &ObjectId, request: UnlockRequest) -> Reply<()> {
        self.0.unlock(object, request)
    }

    fn break_lock(&self, object: &ObjectId, request: UnlockRequest, locker: ClientId) -> Reply<()> {
        self.0.change(|s| s.break_lock(object, request, locker))
    }

    fn cut_off(&self, address: &str) -> Reply<()> {
        self.0.change(|s| s.cut_off(address))
    }

    fn change_child(&self, object: &ObjectId, step: ChildStep, input: Bytes) -> Reply<()> {
        self.0.change(|s| s.change_child(object, step, input))
    }

    fn lock_info(&self, object: &ObjectId, name: &str) -> Reply<LockInfo> {
        self.0.ask(|s| s.lock_info(object, name))
    }

    fn flush(&self) -> Reply<()> {
        self.0.flush()
    }

    fn address(&self) -> String {
        self.0.below().address()
    }
}
