//! A store as one command sees it: it answers until the command is asked to end, and calls pools what the home calls them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ferry_core::lock::UnlockRequest;
use ferry_core::watch::NotifyReply;
use ferry_core::{Layer, Layered, ObjectId, PoolInfo, Reply, Store};

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
    /// `store` until `cancel` is asked for, its pools called by these names.
    pub(crate) fn over(store: Arc<dyn Store>, cancel: Cancel, names: Names) -> Arc<dyn Store> {
        Arc::new(Layered(Self { store, cancel, names }))
    }
}

impl Layer for Stoppable {
    fn below(&self) -> &dyn Store {
        &*self.store
    }

    fn ask<T: Send + Unpin + 'static>(&self, request: impl FnOnce(&dyn Store) -> Reply<T>) -> Reply<T> {
        match self.cancel.check() {
            Ok(()) => request(&*self.store),
            Err(e) => Reply::ready(Err(e)),
        }
    }

    fn pools(&self) -> Reply<Vec<PoolInfo>> {
        let listed = self.ask(|s| s.pools());
        if self.names.is_empty() {
            return listed;
        }
        let names = self.names.clone();
        Reply::pending(async move { listed.await.map(|pools| renamed(pools, &names)) })
    }

    fn notify(&self, object: &ObjectId, payload: Bytes, timeout: Duration) -> Reply<NotifyReply> {
        let (reply, cancel) = (self.ask(|s| s.notify(object, payload, timeout)), self.cancel.clone());
        // The only answer that may be long in coming: somebody else gives it.
        Reply::pending(async move {
            let asked = std::pin::pin!(cancel.asked());
            match futures_util::future::select(reply, asked).await {
                futures_util::future::Either::Left((reply, _)) => reply,
                futures_util::future::Either::Right(((), _)) => Err(crate::cancel::interrupted()),
            }
        })
    }

    /// A lock is given back also by a command that is stopped.
    fn unlock(&self, object: &ObjectId, request: UnlockRequest) -> Reply<()> {
        self.store.unlock(object, request)
    }

    fn flush(&self) -> Reply<()> {
        self.store.flush()
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
