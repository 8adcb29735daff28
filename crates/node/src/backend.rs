//! Opening stores. The only room that names a concrete one.

mod engine;
mod owner;
mod rados;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ferry_core::{Env, Result, Store};

use crate::api::{CheckReport, Cluster, Events};

pub use engine::RealStores;
pub use owner::{OWNER_WAIT_MAX, Owner};

/// What to do where there is no store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfMissing {
    /// Say so.
    Fail,
    /// Make one.
    Create,
}

/// A store this process owns.
pub trait OwnedStore: Send + Sync + fmt::Debug {
    /// The store.
    fn store(&self) -> Arc<dyn Store>;

    /// Reads all of it and compares checksums.
    ///
    /// # Errors
    /// Only what keeps the check from going on; damage is in the report.
    fn check(&self) -> Result<CheckReport>;

    /// Makes everything durable and leaves the store ready for the next owner.
    ///
    /// # Errors
    /// Those of the store; what was flushed before is safe.
    fn close(&self) -> Result<()>;
}

/// Knows how to open the stores of a kind.
pub trait StoreKind: Send + Sync + fmt::Debug {
    /// Opens the store at `dir` and owns it from now on; tells where it has to wait for that.
    ///
    /// # Errors
    /// `NotFound` (2) where there is none, `Busy` (16) where another process owns it, `ReadOnly` (30), `Corrupt`.
    fn open(
        &self,
        dir: &Path,
        env: &Env,
        missing: IfMissing,
        events: &dyn Events,
    ) -> Result<Arc<dyn OwnedStore>>;

    /// Connects to a Ceph cluster.
    ///
    /// # Errors
    /// `Unsupported` (95) where there is no librados; `NotFound`, `Denied`, `TimedOut` as the cluster says.
    fn connect(&self, cluster: &Cluster) -> Result<Arc<dyn OwnedStore>>;
}

/// The stores a command has opened, each once.
#[derive(Debug)]
pub(crate) struct Stores {
    kind: Arc<dyn StoreKind>,
    env: Env,
    open: Mutex<BTreeMap<PathBuf, Arc<dyn OwnedStore>>>,
    cluster: Mutex<Option<Arc<dyn OwnedStore>>>,
}

impl Stores {
    /// No store yet.
    pub(crate) fn new(kind: Arc<dyn StoreKind>, env: Env) -> Self {
        Self { kind, env, open: Mutex::default(), cluster: Mutex::default() }
    }

    /// The store at `dir`, opened at first use.
    pub(crate) fn get(
        &self,
        dir: &Path,
        missing: IfMissing,
        events: &dyn Events,
    ) -> Result<Arc<dyn OwnedStore>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // The same directory by another name would wait for itself.
        let key = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
        if let Some(store) = open.get(&key) {
            return Ok(Arc::clone(store));
        }
        let store = self.kind.open(dir, &self.env, missing, events)?;
        let key = dir.canonicalize().unwrap_or(key);
        open.insert(key, Arc::clone(&store));
        Ok(store)
    }

    /// The cluster, connected to at first use.
    pub(crate) fn connect(&self, cluster: &Cluster) -> Result<Arc<dyn OwnedStore>> {
        let mut connected = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = &*connected {
            return Ok(Arc::clone(store));
        }
        let store = self.kind.connect(cluster)?;
        *connected = Some(Arc::clone(&store));
        Ok(store)
    }

    /// Closes all of them; the first error, after all were tried.
    pub(crate) fn close(&self) -> Result<()> {
        let open = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        let cluster = self.cluster.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut first = Ok(());
        for store in open.into_values().chain(cluster) {
            first = first.and(store.close());
        }
        first
    }
}
