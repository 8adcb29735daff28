//! Stores of the embedded engine: directories.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ferry_core::{Env, Error, ErrorKind, Result, Store};
use ferry_engine::disk::FileDisk;
use ferry_engine::{Engine, Options};

use super::pauses::{Pauses, Work};
use super::{Claim, IfMissing, OWNER_WAIT_MAX, OwnedStore, Owner, StoreKind, Taken, rados};
use crate::api::{CheckReport, Cluster, Events};

/// Directories as stores of the engine, and Ceph clusters.
#[derive(Debug)]
pub struct RealStores;

impl StoreKind for RealStores {
    fn connect(&self, cluster: &Cluster) -> Result<Arc<dyn OwnedStore>> {
        rados::connect(cluster)
    }

    fn open(&self, dir: &Path, env: &Env, missing: IfMissing, events: &dyn Events) -> Result<Claim> {
        if !dir.is_dir() {
            return Err(Error::not_found("there is no store").with("store", dir.display()));
        }
        // Before anything is read: the owner before us may still be writing.
        let owner = match Owner::take(dir, OWNER_WAIT_MAX, &|line| events.advise(line))? {
            Taken::Ours(owner) => owner,
            Taken::Served(served) => return Ok(Claim::Theirs(served)),
        };
        let opened = FileDisk::open(dir)
            .and_then(|disk| Engine::open(Arc::new(disk), env.clone(), Options::default()));
        let engine = match opened {
            Err(e) if e.kind() == ErrorKind::NotFound && missing == IfMissing::Create => {
                Engine::create(Arc::new(FileDisk::create(dir)?), env.clone(), Options::default())?
            }
            opened => opened.map_err(|e| e.with("store", dir.display()))?,
        };
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
        let pauses = Mutex::new(Pauses::new(Instant::now(), engine.segment_bytes()));
        Ok(Claim::Ours(Arc::new(EngineStore { engine, dir, pauses, _owner: owner })))
    }
}

/// One of them, owned.
#[derive(Debug)]
struct EngineStore {
    engine: Arc<Engine>,
    dir: PathBuf,
    pauses: Mutex<Pauses>,
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

    fn door(&self) -> Option<&Path> {
        Some(&self.dir)
    }

    fn tend(&self) -> Result<bool> {
        if self.engine.maintain()? {
            return Ok(true);
        }
        let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(work) = pauses.work(Instant::now(), self.engine.activity()) else { return Ok(false) };
        // One piece, and not at once another: those who read go first.
        let done = match work {
            Work::Prepare(count) => self.engine.prepare_one(count).map(|is_made| {
                if !is_made {
                    pauses.prepared();
                }
            }),
            Work::Tidy => self.engine.tidy().map(|has_more| {
                if !has_more {
                    pauses.tidied();
                }
            }),
            Work::Checkpoint => self.engine.begin_checkpoint().map(|_| pauses.checkpointed()),
            Work::Defragment(from) => {
                self.engine.defragment_piece(from).map(|p| pauses.defragmented(p.moved_blocks, p.next))
            }
        };
        done.inspect_err(|_| pauses.give_up())?;
        Ok(false)
    }

    fn close(&self) -> Result<()> {
        self.engine.close()
    }
}
