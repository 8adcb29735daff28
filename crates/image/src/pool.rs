//! A pool of images, seen through one of its namespaces.

mod directory;
mod namespaces;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;

use ferry_core::store::StoreExt;
use ferry_core::{
    Effect, Env, Error, ErrorKind, Guard, Namespace, ObjectId, PoolId, PoolInfo, ReadOp, ReadReply, Result,
    SnapId, Store, WriteOp,
};

use crate::encoding::{INFO_OBJECT, INFO_VALIDATED};
use crate::peers::{NoPeers, Peers};

/// How often a change that lost against another is tried again before giving up.
pub(crate) const RETRIES_MAX: usize = 64;

/// A pool and one namespace in it.
#[derive(Clone, Debug)]
pub struct Pool {
    /// The store that holds it.
    pub store: Arc<dyn Store>,
    /// The pool.
    pub info: PoolInfo,
    /// The namespace; empty for the default one.
    pub namespace: Namespace,
    /// Time and randomness.
    pub env: Env,
    /// Other stores.
    pub peers: Arc<dyn Peers>,
}

/// Whether an error only says that a pool is not there. Who looks for something in all pools of a store does not find it in one that
/// was removed since they were listed.
#[must_use]
pub fn is_pool_gone(error: &Error) -> bool {
    error.kind() == ErrorKind::NotFound && error.fact("pool").is_some()
}

impl Pool {
    /// The pool called `name`, and `namespace` in it. Whether the namespace exists is looked at when an image is added.
    ///
    /// # Errors
    /// `NotFound` (2) where there is no such pool.
    pub async fn open(store: Arc<dyn Store>, env: Env, name: &str, namespace: &Namespace) -> Result<Self> {
        let info = store.pool_by_name(name).await?;
        Ok(Self { store, info, namespace: namespace.clone(), env, peers: Arc::new(NoPeers) })
    }

    /// The same, able to find the other ends of migrations in other stores.
    #[must_use]
    pub fn with_peers(self, peers: Arc<dyn Peers>) -> Self {
        Self { peers, ..self }
    }

    /// The pool with number `id` of the same store, and `namespace` in it.
    ///
    /// # Errors
    /// `NotFound` (2) where there is no such pool.
    pub async fn sibling(&self, id: PoolId, namespace: &Namespace) -> Result<Self> {
        let pools = self.store.pools().await?;
        let info = pools
            .into_iter()
            .find(|p| p.id == id)
            .ok_or_else(|| Error::not_found("no such pool").with("pool", id))?;
        Ok(Self { info, namespace: namespace.clone(), ..self.clone() })
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> PoolId {
        self.info.id
    }

    /// Whether every write to it fails.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.info.flags.read_only
    }

    /// An object of this pool and namespace.
    #[must_use]
    pub fn object(&self, name: &str) -> ObjectId {
        ObjectId::new(self.info.id, &self.namespace, name)
    }

    /// An object of this pool's default namespace.
    #[must_use]
    pub fn pool_object(&self, name: &str) -> ObjectId {
        ObjectId::new(self.info.id, &Namespace::default(), name)
    }

    /// Prepares the pool for images, as `rbd pool init` does. Nothing changes where that was done.
    ///
    /// # Errors
    /// `ReadOnly` (30).
    pub async fn init(&self) -> Result<()> {
        self.ensure_init().await?;
        self.store.flush().await
    }

    /// As [`Pool::init`], without the flush.
    pub(crate) async fn ensure_init(&self) -> Result<()> {
        let object = self.pool_object(INFO_OBJECT);
        let stored = self.read_or_absent(&object, ReadOp::data(0, INFO_VALIDATED.len() as u64)).await?;
        if stored.is_some_and(|r| r.data.to_vec(0, INFO_VALIDATED.len() as u64) == INFO_VALIDATED) {
            return Ok(());
        }
        let op = WriteOp::new().effect(Effect::WriteFull(Bytes::from_static(INFO_VALIDATED)));
        self.store.write(&object, op).await.map(drop)
    }

    /// Reads an object; `None` where it does not exist.
    pub(crate) async fn read_or_absent(&self, object: &ObjectId, op: ReadOp) -> Result<Option<ReadReply>> {
        match self.store.read(object, SnapId::HEAD, op).await {
            Ok(reply) => Ok(Some(reply)),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                // A pool that is gone is an error, an object that is not there is none.
                if e.fact("pool").is_some() { Err(e) } else { Ok(None) }
            }
            Err(e) => Err(e),
        }
    }

    /// One omap value of an object; `None` where object or key do not exist.
    pub(crate) async fn read_key(&self, object: &ObjectId, key: &Bytes) -> Result<Option<Bytes>> {
        let reply = self.read_or_absent(object, ReadOp::omap_keys([key.clone()])).await?;
        Ok(reply.and_then(|r| r.omap.entries.into_iter().next()).map(|(_, value)| value))
    }

    /// All omap entries of an object whose keys begin with `prefix`, page by page; nothing where it does not exist.
    pub(crate) async fn read_entries(&self, object: &ObjectId, prefix: &str) -> Result<Vec<(Bytes, Bytes)>> {
        let mut entries = Vec::new();
        let mut after = Bytes::new();
        loop {
            let op = ReadOp::omap_page(after.clone(), Bytes::copy_from_slice(prefix.as_bytes()));
            let Some(reply) = self.read_or_absent(object, op).await? else { return Ok(entries) };
            entries.extend(reply.omap.entries);
            let (Some((last, _)), true) = (entries.last(), reply.omap.more) else { return Ok(entries) };
            after = last.clone();
        }
    }

    /// Changes one omap value: `change` gets what is there and gives what shall be there, `None` for nothing, and is asked
    /// again where somebody else was faster. The object comes into being where a value is set.
    pub(crate) async fn change_key(
        &self,
        object: &ObjectId,
        key: &Bytes,
        mut change: impl FnMut(Option<&Bytes>) -> Result<Option<Bytes>> + Send,
    ) -> Result<()> {
        for _ in 0..RETRIES_MAX {
            let before = self.read_key(object, key).await?;
            let after = change(before.as_ref())?;
            if before == after {
                return Ok(());
            }
            let mut op = WriteOp::new();
            if before.is_none() {
                op = op.effect(Effect::Create);
            }
            op = op.omap_compare(key.clone(), before.unwrap_or_default());
            op = match after {
                Some(value) => op.omap_set(key.clone(), value),
                None => op.omap_remove(key.clone()),
            };
            match self.store.write(object, op).await {
                Ok(_) => return Ok(()),
                Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Error::busy("an index is changed by others all the time").with("object", object))
    }

    /// Removes an object; whether it was there.
    pub(crate) async fn remove_object(&self, object: &ObjectId) -> Result<bool> {
        match self.store.write(object, WriteOp::new().guard(Guard::AssertExists).effect(Effect::Remove)).await
        {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }
}
