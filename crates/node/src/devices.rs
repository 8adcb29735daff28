//! Images mapped as block devices by this process.
//!
//! Invariants
//! ```text
//!           hold              begun                close_if_unused, stop
//!   Unkept ──────► Beginning ───────► Kept ───────────────────────────────► Closed
//!      ▲               │ not begun
//!      └───────────────┘
//! ```
//!
//! - An image is closed after its device is gone.
//! - A mapping is taken while somebody keeps the process for it, and never after it was decided to end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use ferry_core::{Error, Result};
use ferry_serve::kernel::{self, Mapped, Unmap};

use crate::api::{DeviceLine, MappedBy};
use crate::backend::Owner;
use crate::offered::{Offered, Offering, Way};
use crate::spec::{ImageSpec, SnapSpec};

/// How often devices are looked at: whether their images changed their size, and whether they are still there.
const INTERVAL: Duration = Duration::from_millis(200);

/// See the module.
#[derive(Debug)]
pub(crate) struct Devices {
    directory: PathBuf,
    state: Mutex<State>,
    /// Whether the process is kept has changed.
    changed: Condvar,
    /// Held while others find this process at `directory`.
    owner: OnceLock<Owner>,
}

#[derive(Debug, Default)]
struct State {
    mapped: BTreeMap<PathBuf, Arc<MappedImage>>,
    /// Mappings being made.
    coming: usize,
    stage: Stage,
}

/// Whether the process stays for mappings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Nobody has asked for that.
    #[default]
    Unkept,
    /// If the first mapping succeeds.
    Beginning,
    /// It does.
    Kept,
    /// It is about to end.
    Closed,
}

/// An image and its device.
#[derive(Debug)]
struct MappedImage {
    mapped: Mapped,
    /// None once it is closed.
    offered: Mutex<Option<Offered>>,
    /// The size the kernel was told last. Bytes.
    size: Mutex<u64>,
}

impl MappedImage {
    /// What it shows now; `None` once it is closed.
    fn image(&self) -> Option<SnapSpec> {
        self.offered().as_ref().and_then(Offered::image)
    }

    fn offered(&self) -> MutexGuard<'_, Option<Offered>> {
        self.offered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A mapping being made. Dropped, it is none.
#[derive(Debug)]
pub(crate) struct Coming {
    devices: Arc<Devices>,
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.devices.state().coming -= 1;
    }
}

impl Devices {
    /// Devices whose files are mounted in `directory`.
    pub(crate) fn new(directory: PathBuf) -> Arc<Self> {
        let (state, changed, owner) = (Mutex::default(), Condvar::new(), OnceLock::new());
        let devices = Arc::new(Self { directory, state, changed, owner });
        let watched = Arc::downgrade(&devices);
        let watch = move || {
            while let Some(devices) = watched.upgrade() {
                devices.look();
                drop(devices);
                thread::sleep(INTERVAL);
            }
        };
        // Without the thread sizes do not follow; nothing else is lost.
        if let Err(e) = thread::Builder::new().name("devices".to_owned()).spawn(watch) {
            tracing::warn!(error = %e, "sizes of devices do not follow their images");
        }
        devices
    }

    /// Clears away what a dead process left, so that nobody waits for it. Where that fails, the next mapping tries again.
    pub(crate) fn clean(&self) {
        if let Err(e) = kernel::clean_stale(&self.directory) {
            tracing::warn!(error = %e.chain(), "devices of a dead process were not cleared away");
        }
    }

    /// Whether the caller is the one who keeps the process until nothing is mapped: the first who asks. Others wait for [`Self::begun`].
    pub(crate) fn hold(&self) -> bool {
        let mut state = self.state();
        let is_first = state.stage == Stage::Unkept;
        if is_first {
            state.stage = Stage::Beginning;
        }
        is_first
    }

    /// Whether the one who keeps the process has a reason to: it is kept from now on, or else nobody keeps it.
    pub(crate) fn begun(&self, is_kept: bool) {
        let mut state = self.state();
        // One that is told to end ends.
        if state.stage == Stage::Beginning {
            state.stage = if is_kept { Stage::Kept } else { Stage::Unkept };
        }
        self.changed.notify_all();
    }

    /// Keeps the process from ending until the mapping is made; `None` where it does not stay for it. Blocks while that is not known.
    pub(crate) fn begin(self: &Arc<Self>) -> Option<Coming> {
        let waited = self.changed.wait_while(self.state(), |state| state.stage == Stage::Beginning);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.stage != Stage::Kept {
            return None;
        }
        state.coming += 1;
        Some(Coming { devices: Arc::clone(self) })
    }

    /// Others find this process at the directory for as long as it lives.
    pub(crate) fn own_directory(&self, owner: Owner) {
        // The same directory has no second owner.
        self.owner.set(owner).ok();
    }

    /// Whether others find this process at the directory.
    pub(crate) fn is_at_directory(&self) -> bool {
        self.owner.get().is_some()
    }

    /// Maps an open image. What dead processes left is cleared away first. Blocks; on failure the image comes back.
    pub(crate) fn map(
        &self,
        offered: Offered,
        options: &kernel::Options,
    ) -> std::result::Result<PathBuf, (Error, Box<Offered>)> {
        let mapped =
            kernel::clean_stale(&self.directory).and_then(|_| kernel::map(offered.export(), options));
        let mapped = match mapped {
            Ok(mapped) => mapped,
            Err(e) => return Err((e, Box::new(offered))),
        };
        let path = mapped.device().to_path_buf();
        let size = Mutex::new(offered.export().size());
        let one = MappedImage { mapped, offered: Mutex::new(Some(offered)), size };
        self.state().mapped.insert(path.clone(), Arc::new(one));
        Ok(path)
    }

    /// Where their files are mounted.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// What is mapped.
    pub(crate) fn list(&self) -> Vec<DeviceLine> {
        let state = self.state();
        let lines = state.mapped.iter();
        lines.filter_map(|(path, one)| one.image().map(|image| DeviceLine::new(path, &image))).collect()
    }

    /// The mappings of an image or of a snapshot of it.
    pub(crate) fn offerings(&self, image: &ImageSpec) -> Vec<Offering> {
        let state = self.state();
        let offered = |one: &Arc<MappedImage>| {
            let offered = one.offered();
            let this = offered.as_ref().filter(|o| o.image().is_some_and(|spec| spec.image == *image));
            this.map(|o| o.offering(Way::Device(one.mapped.device().to_path_buf())))
        };
        state.mapped.values().filter_map(offered).collect()
    }

    /// How much was asked for so far.
    pub(crate) fn requests(&self) -> u64 {
        let mapped: Vec<_> = self.state().mapped.values().cloned().collect();
        mapped.iter().map(|one| one.offered().as_ref().map_or(0, Offered::requests)).sum()
    }

    /// Takes one away. Blocks.
    ///
    /// # Errors
    /// `NotFound` (2); `Busy` (16) where it is in use, or its image is mapped more than once; those of the store.
    pub(crate) fn unmap(&self, which: &MappedBy, how: Unmap) -> Result<()> {
        let found: Vec<_> = {
            let state = self.state();
            let matches = |path: &Path, one: &MappedImage| match which {
                MappedBy::Device(device) => device == path,
                MappedBy::Image(image) => one.image().as_ref() == Some(image),
            };
            state.mapped.iter().filter(|(p, one)| matches(p, one)).map(|(_, one)| Arc::clone(one)).collect()
        };
        match &found[..] {
            [] => Err(Error::not_found("it is not mapped")),
            [one] => self.take_away(one, how),
            [..] => Err(Error::busy("the image is mapped more than once: name the device")),
        }
    }

    /// Whether nothing is mapped any more; then nothing will be.
    pub(crate) fn close_if_unused(&self) -> bool {
        let mut state = self.state();
        if state.mapped.is_empty() && state.coming == 0 {
            state.stage = Stage::Closed;
        }
        state.stage == Stage::Closed
    }

    /// Takes all away, from those who use them too. Blocks.
    ///
    /// # Errors
    /// The first there is; all are tried.
    pub(crate) fn stop(&self) -> Result<()> {
        let all: Vec<_> = {
            let mut state = self.state();
            state.stage = Stage::Closed;
            self.changed.notify_all();
            state.mapped.values().cloned().collect()
        };
        let mut outcome = Ok(());
        for one in all {
            let mut ended = self.take_away(&one, Unmap::IfUnused);
            if let Err(e) = &ended {
                let device = one.mapped.device().display();
                tracing::error!(%device, error = %e.chain(), "device is taken from those who use it");
                ended = self.take_away(&one, Unmap::ByForce);
            }
            outcome = outcome.and(ended);
        }
        outcome
    }

    fn take_away(&self, one: &Arc<MappedImage>, how: Unmap) -> Result<()> {
        one.mapped.unmap(how)?;
        self.state().mapped.remove(one.mapped.device());
        let offered = one.offered().take();
        offered.map_or(Ok(()), |offered| futures_executor::block_on(offered.close()))
    }

    /// Tells the kernel of images that changed their size, and forgets devices that somebody detached.
    fn look(&self) {
        let all: Vec<_> = self.state().mapped.values().cloned().collect();
        for one in all {
            if !one.mapped.is_live() {
                if let Err(e) = self.take_away(&one, Unmap::IfUnused) {
                    tracing::warn!(device = %one.mapped.device().display(), error = %e.chain(), "device ended badly");
                }
                continue;
            }
            let mut told = one.size.lock().unwrap_or_else(PoisonError::into_inner);
            let size = one.mapped.export().size();
            if *told == size {
                continue;
            }
            *told = size;
            if let Err(e) = one.mapped.resized() {
                tracing::warn!(device = %one.mapped.device().display(), error = %e.chain(), "device has its old size");
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs what blocks on a thread of its own: one thread runs one command.
pub(crate) fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests;
