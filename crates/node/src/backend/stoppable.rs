//! A store as one command sees it: it answers until the command is asked to end, and calls pools what the home calls them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ferry_core::lock::{LockInfo, LockRequest, UnlockRequest};
use ferry_core::store::{
    Capabilities, ObjectCursor, ObjectPage, ReadOp, ReadReply, SnapSet, WriteOp, WriteReply,
};
use ferry_core::watch::{NotifyReply, WatchReceiver, WatcherInfo};
use ferry_core::{
    ClientId, Namespace, ObjectId, PoolFlags, PoolId, PoolInfo, PoolStats, Reply, SnapId, Store,
};

use crate::cancel::Cancel;

/// See the module.
#[derive(Debug)]
pub(crate) struct Stoppable {
    store: Arc<dyn Store>,
    cancel: Cancel,
    names: Names,
}

/// What the home calls pools, by the names they have in their store; those it does not mention are called as there.
///
/// A pool of the store that is called as the home calls another has no name here: it would be taken for that one.
pub(crate) type Names = BTreeMap<String, String>;

/// Gives pools the home's names.
fn renamed(pools: Vec<PoolInfo>, names: &Names) -> Vec<PoolInfo> {
    if names.is_empty() {
        return pools;
    }
    let named = pools.into_iter().map(|pool| match names.get(&pool.name) {
        Some(name) => PoolInfo { name: name.clone(), ..pool },
        None if names.values().any(|taken| *taken == pool.name) => PoolInfo { name: String::new(), ..pool },
        None => pool,
    });
    named.collect()
}

impl Stoppable {
    /// `store` until `cancel` is asked for.
    pub(crate) fn new(store: Arc<dyn Store>, cancel: Cancel) -> Self {
        Self { store, cancel, names: Names::new() }
    }

    /// The same, with these names for its pools.
    pub(crate) fn with_names(self, names: Names) -> Self {
        Self { names, ..self }
    }

    /// Asks the store, unless the command is to end.
    fn unless_stopped<T>(&self, ask: impl FnOnce(&dyn Store) -> Reply<T>) -> Reply<T> {
        match self.cancel.check() {
            Ok(()) => ask(&*self.store),
            Err(e) => Reply::ready(Err(e)),
        }
    }
}

impl Store for Stoppable {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    fn client(&self) -> ClientId {
        self.store.client()
    }

    fn describe(&self) -> String {
        self.store.describe()
    }

    fn identity(&self) -> [u8; 16] {
        self.store.identity()
    }

    fn generation(&self) -> Option<u64> {
        self.store.generation()
    }

    fn pools(&self) -> Reply<Vec<PoolInfo>> {
        if self.names.is_empty() {
            return self.unless_stopped(|s| s.pools());
        }
        let (listed, names) = (self.unless_stopped(|s| s.pools()), self.names.clone());
        Reply::pending(async move { listed.await.map(|pools| renamed(pools, &names)) })
    }

    fn create_pool(&self, name: &str) -> Reply<PoolId> {
        self.unless_stopped(|s| s.create_pool(name))
    }

    fn remove_pool(&self, pool: PoolId) -> Reply<()> {
        self.unless_stopped(|s| s.remove_pool(pool))
    }

    fn set_pool_flags(&self, pool: PoolId, flags: PoolFlags) -> Reply<()> {
        self.unless_stopped(|s| s.set_pool_flags(pool, flags))
    }

    fn pool_stats(&self, pool: PoolId) -> Reply<PoolStats> {
        self.unless_stopped(|s| s.pool_stats(pool))
    }

    fn write(&self, object: &ObjectId, op: WriteOp) -> Reply<WriteReply> {
        let op = op;
        self.unless_stopped(|s| s.write(object, op))
    }

    fn read(&self, object: &ObjectId, at: SnapId, op: ReadOp) -> Reply<ReadReply> {
        self.unless_stopped(|s| s.read(object, at, op))
    }

    fn list_snaps(&self, object: &ObjectId) -> Reply<SnapSet> {
        self.unless_stopped(|s| s.list_snaps(object))
    }

    fn allocate_snap(&self, pool: PoolId) -> Reply<SnapId> {
        self.unless_stopped(|s| s.allocate_snap(pool))
    }

    fn release_snap(&self, pool: PoolId, snap: SnapId) -> Reply<()> {
        self.unless_stopped(|s| s.release_snap(pool, snap))
    }

    fn list_objects(
        &self,
        pool: PoolId,
        namespace: Option<&Namespace>,
        after: Option<ObjectCursor>,
        max: usize,
    ) -> Reply<ObjectPage> {
        self.unless_stopped(|s| s.list_objects(pool, namespace, after, max))
    }

    fn watch(&self, object: &ObjectId) -> Reply<WatchReceiver> {
        self.unless_stopped(|s| s.watch(object))
    }

    fn notify(&self, object: &ObjectId, payload: Bytes, timeout: Duration) -> Reply<NotifyReply> {
        let (reply, cancel) = match self.cancel.check() {
            Ok(()) => (self.store.notify(object, payload, timeout), self.cancel.clone()),
            Err(e) => return Reply::ready(Err(e)),
        };
        // The only answer that may be long in coming: somebody else gives it.
        Reply::pending(async move {
            let asked = std::pin::pin!(cancel.asked());
            match futures_util::future::select(reply, asked).await {
                futures_util::future::Either::Left((reply, _)) => reply,
                futures_util::future::Either::Right(((), _)) => Err(crate::cancel::interrupted()),
            }
        })
    }

    fn list_watchers(&self, object: &ObjectId) -> Reply<Vec<WatcherInfo>> {
        self.unless_stopped(|s| s.list_watchers(object))
    }

    // A lock is given back also by a command that is stopped.

    fn lock(&self, object: &ObjectId, request: LockRequest) -> Reply<()> {
        self.unless_stopped(|s| s.lock(object, request))
    }

    fn unlock(&self, object: &ObjectId, request: UnlockRequest) -> Reply<()> {
        self.store.unlock(object, request)
    }

    fn break_lock(&self, object: &ObjectId, request: UnlockRequest, locker: ClientId) -> Reply<()> {
        self.unless_stopped(|s| s.break_lock(object, request, locker))
    }

    fn cut_off(&self, address: &str) -> Reply<()> {
        self.unless_stopped(|s| s.cut_off(address))
    }

    fn lock_info(&self, object: &ObjectId, name: &str) -> Reply<LockInfo> {
        self.unless_stopped(|s| s.lock_info(object, name))
    }

    fn flush(&self) -> Reply<()> {
        self.store.flush()
    }

    fn address(&self) -> String {
        self.store.address()
    }
}

#[cfg(test)]
mod tests {
    use ferry_core::{PoolFlags, PoolId, PoolInfo};

    use super::{Names, renamed};

    #[test]
    fn pools_have_the_names_of_the_home_and_no_two_the_same() {
        let pool =
            |id, name: &str| PoolInfo { id: PoolId(id), name: name.to_owned(), flags: PoolFlags::default() };
        let names: Names = [("vms".to_owned(), "rbd".to_owned())].into();
        let pools = vec![pool(1, "rbd"), pool(2, "vms"), pool(3, "other")];
        let called: Vec<String> = renamed(pools, &names).into_iter().map(|p| p.name).collect();
        assert_eq!(called, ["", "rbd", "other"]);
    }
}
