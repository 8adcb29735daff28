//! Faults on request, for tests of what notices or survives them: `FERRY_FAULT` in the environment of the process that owns the
//! stores.
//!
//! - `flip-copied-byte`: while a migration is executed, a byte of the first data that is copied is wrong.
//! - `die-after-change:N`: the process is killed with SIGKILL after the change number N to its stores, from its start.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use ferry_core::{Effect, Error, Layer, Layered, ObjectId, Reply, Result, Store, WriteOp, WriteReply};
use ferry_image::history;
use rustix::process::{Signal, getpid, kill_process};

use super::OwnedStore;
use crate::api::CheckReport;

/// The variable that asks for a fault.
const VARIABLE: &str = "FERRY_FAULT";

/// Data shorter than this is not made wrong: it is not an image's.
const FLIPPED_MIN: usize = 4096;

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Faults {
    /// Whether copied bytes are to be flipped.
    flips: bool,
    /// Whether the next copied byte is.
    flips_next: AtomicBool,
    /// After which change to die; zero for never.
    dies_after: u64,
    /// Changes so far.
    changes: AtomicU64,
}

impl Faults {
    /// Those that the environment asks for, if it does.
    ///
    /// # Errors
    /// `Invalid` (22) for one there is not.
    pub(crate) fn from_environment() -> Result<Option<Arc<Self>>> {
        let Some(asked) = std::env::var_os(VARIABLE).filter(|v| !v.is_empty()) else { return Ok(None) };
        let asked = asked.to_string_lossy();
        let dies_after = asked.strip_prefix("die-after-change:").map(|n| n.parse().unwrap_or(0));
        let flips = asked == "flip-copied-byte";
        if !flips && dies_after.is_none_or(|n| n == 0) {
            return Err(Error::invalid("there is no such fault").with(VARIABLE, &*asked));
        }
        tracing::warn!(fault = &*asked, "a fault is asked for");
        Ok(Some(Arc::new(Self {
            flips,
            flips_next: AtomicBool::new(false),
            dies_after: dies_after.unwrap_or(0),
            changes: AtomicU64::new(0),
        })))
    }

    /// A migration is executed from now on.
    pub(crate) fn copying(&self) {
        if self.flips {
            tracing::warn!("a byte of the copy is made wrong, as {VARIABLE} asks");
            self.flips_next.store(true, Ordering::Release);
        }
    }

    /// The op, wrong in one byte if that is due.
    fn flipped(&self, mut op: WriteOp) -> WriteOp {
        if !self.flips_next.load(Ordering::Acquire) || !history::is_step(&op) {
            return op;
        }
        for effect in &mut op.effects {
            let (Effect::Write { data, .. } | Effect::WriteFull(data)) = effect else { continue };
            if data.len() >= FLIPPED_MIN && self.flips_next.swap(false, Ordering::AcqRel) {
                let mut wrong = data.to_vec();
                let middle = wrong.len() / 2;
                wrong[middle] ^= 0x10;
                *data = Bytes::from(wrong);
            }
        }
        op
    }

    /// Counts a change once it is done.
    fn counted<T: Send + Unpin + 'static>(self: &Arc<Self>, change: Reply<T>) -> Reply<T> {
        if self.dies_after == 0 {
            return change;
        }
        let faults = Arc::clone(self);
        Reply::pending(async move {
            let done = change.await;
            if done.is_ok() && faults.changes.fetch_add(1, Ordering::AcqRel) + 1 == faults.dies_after {
                // As `kill -9`: nothing is cleared away, nothing is said.
                kill_process(getpid(), Signal::KILL)
                    .map_err(|e| Error::io("cannot die as asked to", e.into()))?;
                std::future::pending::<()>().await;
            }
            done
        })
    }
}

/// A store whose owner has faults.
#[derive(Debug)]
pub(super) struct FaultyOwned {
    inner: Arc<dyn OwnedStore>,
    store: Arc<dyn Store>,
}

impl FaultyOwned {
    pub(super) fn new(inner: Arc<dyn OwnedStore>, faults: &Arc<Faults>) -> Self {
        let store = Arc::new(Layered(FaultyLayer { store: inner.store(), faults: Arc::clone(faults) }));
        Self { inner, store }
    }
}

impl OwnedStore for FaultyOwned {
    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store)
    }

    fn check(&self) -> Result<CheckReport> {
        self.inner.check()
    }

    fn door(&self) -> Option<&Path> {
        self.inner.door()
    }

    fn tend(&self) -> Result<bool> {
        self.inner.tend()
    }

    fn kept_value(&self, key: &str) -> Result<Option<String>> {
        self.inner.kept_value(key)
    }

    fn close(&self) -> Result<()> {
        self.inner.close()
    }
}

#[derive(Debug)]
struct FaultyLayer {
    store: Arc<dyn Store>,
    faults: Arc<Faults>,
}

impl Layer for FaultyLayer {
    fn below(&self) -> &dyn Store {
        &*self.store
    }

    fn change<T: Send + Unpin + 'static>(&self, request: impl FnOnce(&dyn Store) -> Reply<T>) -> Reply<T> {
        self.faults.counted(request(&*self.store))
    }

    fn write(&self, object: &ObjectId, op: WriteOp) -> Reply<WriteReply> {
        self.change(|s| s.write(object, self.faults.flipped(op)))
    }
}
