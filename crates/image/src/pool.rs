//! A pool of images, seen through one of its namespaces.

use std::sync::Arc;

use ferry_core::store::StoreExt;
use ferry_core::{Env, Error, Namespace, ObjectId, PoolId, PoolInfo, Result, Store};

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
}

impl Pool {
    /// The pool called `name`, and `namespace` in it. Whether the namespace exists is looked at when an image is added.
    ///
    /// # Errors
    /// `NotFound` (2) where there is no such pool.
    pub async fn open(store: Arc<dyn Store>, env: Env, name: &str, namespace: &Namespace) -> Result<Self> {
        let info = store.pool_by_name(name).await?;
        Ok(Self { store, info, namespace: namespace.clone(), env })
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
}
