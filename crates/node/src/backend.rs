//! Opening stores. The only room that names a concrete one.

mod engine;
mod faults;
mod owner;
mod pauses;
mod rados;
mod reached;
mod stoppable;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ferry_core::{Env, Error, Result, Store};

use crate::api::{CheckReport, Cluster, Events};
use crate::control::Server;
use faults::FaultyOwned;

pub use engine::RealStores;
pub(crate) use faults::Faults;
pub use owner::{OWNER_WAIT_MAX, Owner, Taken};
pub(crate) use reached::Reached;
pub(crate) use stoppable::{Names, Stoppable};

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

    /// Where other processes look for the owner of this store; nowhere, if only this process can have it.
    fn door(&self) -> Option<&Path> {
        None
    }

    /// Does a bounded piece of the work that is best done while nobody waits: cleaning, checkpoints. Whether there may be more.
    ///
    /// # Errors
    /// Those of the store; the next command that writes meets them too.
    fn tend(&self) -> Result<bool> {
        Ok(false)
    }

    /// The value that the store's own servers keep under a key, apart from its pools; `None` where they keep none.
    ///
    /// # Errors
    /// Those of asking them.
    fn kept_value(&self, _key: &str) -> Result<Option<String>> {
        Ok(None)
    }

    /// Makes everything durable and leaves the store ready for the next owner.
    ///
    /// # Errors
    /// Those of the store; what was flushed before is safe.
    fn close(&self) -> Result<()>;
}

/// What came of asking for a store.
#[derive(Debug)]
pub enum Claim {
    /// This process owns it from now on.
    Ours(Arc<dyn OwnedStore>),
    /// Another process owns it, and executes commands for others.
    Theirs(Served),
}

/// A process that owns a store and executes commands for others.
#[derive(Debug)]
pub struct Served {
    /// Where to send commands.
    pub(crate) server: Server,
    /// The store.
    pub(crate) dir: PathBuf,
    /// The process.
    pub(crate) process: String,
}

impl Served {
    /// Why the store cannot be had here, for a command that cannot be sent there.
    pub(crate) fn busy(&self) -> Error {
        Error::busy("another process serves the store")
            .with("store", self.dir.display())
            .with("process", &self.process)
    }
}

/// Knows how to open the stores of a kind.
pub trait StoreKind: Send + Sync + fmt::Debug {
    /// Opens the store at `dir` and owns it from now on, unless its owner serves others; tells where it has to wait for that.
    ///
    /// # Errors
    /// `NotFound` (2) where there is none, `Busy` (16) where another process owns it, `ReadOnly` (30), `Corrupt`.
    fn open(&self, dir: &Path, env: &Env, missing: IfMissing, events: &dyn Events) -> Result<Claim>;

    /// Connects to a Ceph cluster.
    ///
    /// # Errors
    /// `Unsupported` (95) where there is no librados; `NotFound`, `Denied`, `TimedOut` as the cluster says.
    fn connect(&self, cluster: &Cluster) -> Result<Arc<dyn OwnedStore>>;
}

/// The stores of a process, each once.
#[derive(Debug)]
pub(crate) struct Stores {
    kind: Arc<dyn StoreKind>,
    env: Env,
    open: Mutex<BTreeMap<PathBuf, Slot>>,
    clusters: Mutex<Vec<(Cluster, Arc<dyn OwnedStore>)>>,
    /// Read when the first store is opened.
    faults: OnceLock<Option<Arc<Faults>>>,
}

/// A store that is open, or that somebody is opening.
type Slot = Arc<Mutex<Option<Arc<dyn OwnedStore>>>>;

/// What [`Stores::get`] found.
#[derive(Debug)]
pub(crate) enum Got {
    /// It was open already.
    Open(Arc<dyn OwnedStore>),
    /// It was opened.
    Opened(Arc<dyn OwnedStore>),
    /// Somebody else has it.
    Theirs(Served),
}

impl Stores {
    /// No store yet.
    pub(crate) fn new(kind: Arc<dyn StoreKind>, env: Env) -> Self {
        Self { kind, env, open: Mutex::default(), clusters: Mutex::default(), faults: OnceLock::new() }
    }

    /// The store at `dir`, opened at first use.
    pub(crate) fn get(&self, dir: &Path, missing: IfMissing, events: &dyn Events) -> Result<Got> {
        if missing == IfMissing::Create {
            // So that it has one name only from the start.
            std::fs::create_dir_all(dir).map_err(|e| {
                Error::io("cannot make the store's directory", e).with("store", dir.display())
            })?;
        }
        // The same directory by another name would wait for itself.
        let key = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
        let slot = Arc::clone(self.slots().entry(key).or_default());
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = &*slot {
            return Ok(Got::Open(Arc::clone(store)));
        }
        match self.kind.open(dir, &self.env, missing, events)? {
            Claim::Ours(store) => {
                let store = self.with_faults(store)?;
                *slot = Some(Arc::clone(&store));
                Ok(Got::Opened(store))
            }
            Claim::Theirs(served) => Ok(Got::Theirs(served)),
        }
    }

    /// A store with the faults that are asked for.
    fn with_faults(&self, store: Arc<dyn OwnedStore>) -> Result<Arc<dyn OwnedStore>> {
        Ok(match self.faults()? {
            Some(faults) => Arc::new(FaultyOwned::new(store, faults)),
            None => store,
        })
    }

    /// The faults this process has on request.
    ///
    /// # Errors
    /// `Invalid` (22) for one there is not.
    pub(crate) fn faults(&self) -> Result<Option<&Arc<Faults>>> {
        if let Some(faults) = self.faults.get() {
            return Ok(faults.as_ref());
        }
        let asked = Faults::from_environment()?;
        Ok(self.faults.get_or_init(|| asked).as_ref())
    }

    /// Those that are open now.
    pub(crate) fn all(&self) -> Vec<Arc<dyn OwnedStore>> {
        // One that is being opened is not open.
        let open = |slot: &Slot| slot.try_lock().ok().and_then(|store| store.clone());
        self.slots().values().filter_map(open).collect()
    }

    /// A cluster, connected to at first use.
    pub(crate) fn connect(&self, cluster: &Cluster) -> Result<Arc<dyn OwnedStore>> {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, store)) = clusters.iter().find(|(known, _)| known.is_same_client(cluster)) {
            return Ok(Arc::clone(store));
        }
        let store = self.with_faults(self.kind.connect(cluster)?)?;
        clusters.push((cluster.clone(), Arc::clone(&store)));
        Ok(store)
    }

    /// The clusters that there is a connection to.
    pub(crate) fn connected(&self) -> Vec<Arc<dyn OwnedStore>> {
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.iter().map(|(_, store)| Arc::clone(store)).collect()
    }

    /// Closes all of them; the first error, after all were tried.
    pub(crate) fn close(&self) -> Result<()> {
        let open = std::mem::take(&mut *self.slots());
        let clusters = std::mem::take(&mut *self.clusters.lock().unwrap_or_else(PoisonError::into_inner));
        let open = open.into_values().filter_map(|s| s.lock().unwrap_or_else(PoisonError::into_inner).take());
        let mut first = Ok(());
        for store in open.chain(clusters.into_iter().map(|(_, store)| store)) {
            first = first.and(store.close());
        }
        first
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Slot>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
