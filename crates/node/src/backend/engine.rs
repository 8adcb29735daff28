//! Stores of the embedded engine: directories.

use std::path::Path;
use std::sync::Arc;

use ferry_core::{Env, Error, ErrorKind, Result, Store};
use ferry_engine::disk::FileDisk;
use ferry_engine::{Engine, Options};

use super::{IfMissing, OWNER_WAIT_MAX, OwnedStore, Owner, StoreKind, rados};
use crate::api::{CheckReport, Cluster, Events};

/// Directories as stores of the engine, and Ceph clusters.
#[derive(Debug)]
pub struct RealStores;

impl StoreKind for RealStores {
    fn connect(&self, cluster: &Cluster) -> Result<Arc<dyn OwnedStore>> {
        rados::connect(cluster)
    }

    fn open(
        &self,
        dir: &Path,
        env: &Env,
        missing: IfMissing,
        events: &dyn Events,
    ) -> Result<Arc<dyn OwnedStore>> {
        if missing == IfMissing::Create {
            std::fs::create_dir_all(dir).map_err(|e| {
                Error::io("cannot make the store's directory", e).with("store", dir.display())
            })?;
        } else if !dir.is_dir() {
            return Err(Error::not_found("there is no store").with("store", dir.display()));
        }
        // Before anything is read: the owner before us may still be writing.
        let owner = Owner::take(dir, OWNER_WAIT_MAX, &|line| events.advise(line))?;
        let opened = FileDisk::open(dir)
            .and_then(|disk| Engine::open(Arc::new(disk), env.clone(), Options::default()));
        let engine = match opened {
            Err(e) if e.kind() == ErrorKind::NotFound && missing == IfMissing::Create => {
                Engine::create(Arc::new(FileDisk::create(dir)?), env.clone(), Options::default())?
            }
            opened => opened.map_err(|e| e.with("store", dir.display()))?,
        };
        Ok(Arc::new(EngineStore { engine, _owner: owner }))
    }
}

/// One of them, owned.
#[derive(Debug)]
struct EngineStore {
    engine: Arc<Engine>,
    /// Given up when the last handle goes.
    _owner: Owner,
}

impl OwnedStore for EngineStore {
    fn store(&self) -> Arc<dyn Store> {
        Arc::<Engine>::clone(&self.engine)
    }

    fn check(&self) -> Result<CheckReport> {
        let found = self.engine.check()?;
        let counts = [
            ("objects", found.objects),
            ("data blocks", found.data_blocks),
            ("index pages", found.index_pages),
            ("errors", found.errors),
        ];
        let mut damage = found.findings;
        if damage.is_empty() && found.errors > 0 {
            damage.push(format!("{} errors", found.errors));
        }
        Ok(CheckReport {
            store: self.engine.describe(),
            counts: counts.map(|(name, n)| (name.to_owned(), n)).to_vec(),
            damage,
        })
    }

    fn close(&self) -> Result<()> {
        self.engine.close()
    }
}
