//! An export as a block device of this machine's kernel: of its NBD client where it has one, otherwise a FUSE file with a loop
//! device on it.
//!
//! ```text
//!   export ◄─ NBD, a pair of sockets ◄─ /dev/nbdN                                      ◄─┐
//!   export ◄─ FUSE file `disk` (this process) ◄─ /dev/loopN (direct I/O)               ◄─┴─ ext4, xfs, dd
//! ```
//!
//! - What the block layer flushes is flushed in the export before the block layer hears of it; discards and zeroed ranges arrive
//!   as such (zeroed ranges as written zeros where the kernel's NBD client does not know them, which it does since Linux 6.12).
//! - A device that somebody has mounted or open is not taken away, except by force.
//! - A killed process leaves a device whose every request fails, and a dead mount: [`clean_stale`] clears both away.

mod file;
mod nbd;
mod netlink;
mod openers;
mod setup;
mod stale;
mod watchdog;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use ferry_core::{Error, Result};
use rustix::process::configure_io_flusher_behavior;

use crate::export::Export;
use crate::fuse::Access;
use file::FileDevice;
use nbd::NbdDevice;
use setup::Directories;

pub use setup::make_directory;
pub use stale::{Cleaned, clean_stale};
pub use watchdog::{Watchdog, be_watchdog};

/// How to map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where the files are mounted, and devices of the NBD client told of: a directory of which each mapping takes a numbered
    /// one. Made where it is missing.
    pub directory: PathBuf,
    /// Whether the device may be written.
    pub access: Access,
    /// Bytes of a logical block; 512 where none is given.
    pub sector_size: Option<u32>,
    /// Whether partitions of the device become devices too. Those of the kernel's NBD client always do.
    pub scan_partitions: bool,
    /// Who takes a device of the kernel's NBD client away from a process that died. Without one, that client is not used.
    pub watchdog: Option<Watchdog>,
}

impl Options {
    /// A device to be read and written, with its file under `directory`.
    #[must_use]
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        let directory = directory.into();
        Self {
            directory,
            access: Access::ReadWrite,
            sector_size: None,
            scan_partitions: false,
            watchdog: None,
        }
    }
}

/// Whether to mind those who use a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmap {
    /// Refuse while somebody uses it.
    IfUnused,
    /// Take it away: requests under way and later ones fail, and what was not flushed may be lost.
    ByForce,
}

/// A device of the kernel. Dropped, it is taken away by force.
#[derive(Debug)]
pub struct Mapped {
    export: Arc<Export>,
    device: PathBuf,
    live: Mutex<Option<Live>>,
}

/// What there is of a mapping.
#[derive(Debug)]
struct Live {
    device: Device,
    directory: PathBuf,
    directories: Directories,
}

/// The ways there are.
#[derive(Debug)]
enum Device {
    File(FileDevice),
    Nbd(NbdDevice),
}

/// Makes a block device of `export`. Blocks; not for threads of an async runtime.
///
/// # Errors
/// `Unsupported` (95) where the system lacks an NBD client, and FUSE, loop devices or `losetup` too; `Denied` without the rights of
/// root; `Invalid` for a sector size that the kernel does not take; others of the operating system. Nothing is left behind then.
pub fn map(export: &Arc<Export>, options: &Options) -> Result<Mapped> {
    let directories = Directories::open(&options.directory)?;
    let lock = directories.lock()?;
    let directory = directories.make_one()?;
    let attached = flushing(|| Device::attach(export, options, &directory));
    drop(lock);
    match attached {
        Ok(device) => {
            let path = device.path().to_owned();
            tracing::info!(export = export.name(), device = %path.display(), "device mapped");
            let live = Live { device, directory, directories };
            Ok(Mapped { export: Arc::clone(export), device: path, live: Mutex::new(Some(live)) })
        }
        Err(e) => {
            // The mount ended when it was dropped; what is left behind is taken for stale, now or later.
            nbd::clear_stale(&directory).ok();
            std::fs::remove_dir(&directory).ok();
            Err(e)
        }
    }
}

/// Does something on a thread of its own, which the system takes for one that writes back what others dirtied, as it does all
/// threads that come of it: where memory is short they do not wait for that very writing back.
fn flushing<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let work = || {
        // A wish: in some containers root has no such right, and maps all the same.
        configure_io_flusher_behavior(true).ok();
        work()
    };
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl Device {
    fn attach(export: &Arc<Export>, options: &Options, directory: &Path) -> Result<Self> {
        if let Some(watchdog) = &options.watchdog
            && let Some(device) = NbdDevice::attach(export, options, watchdog, directory)?
        {
            return Ok(Self::Nbd(device));
        }
        FileDevice::attach(export, options, directory).map(Self::File)
    }

    /// Where it is.
    fn path(&self) -> &Path {
        match self {
            Self::File(device) => device.path(),
            Self::Nbd(device) => device.path(),
        }
    }

    /// Whether nobody took it away.
    fn is_attached(&self) -> bool {
        match self {
            Self::File(device) => device.is_attached(),
            Self::Nbd(device) => device.is_attached(),
        }
    }

    /// Gives it the size of the export.
    fn resize(&self) -> Result<()> {
        match self {
            Self::File(device) => device.resize(),
            Self::Nbd(device) => device.resize(),
        }
    }

    /// Takes it away unless somebody uses it.
    fn detach(&self) -> Result<()> {
        match self {
            Self::File(device) => device.detach(),
            Self::Nbd(device) => device.detach(),
        }
    }

    /// Takes it away from those who use it.
    fn abort(&mut self) -> Result<()> {
        match self {
            Self::File(device) => device.abort(),
            Self::Nbd(device) => device.abort(),
        }
    }

    /// Serves it no more.
    fn end(self) -> Result<()> {
        match self {
            Self::File(device) => device.end(),
            Self::Nbd(device) => device.end(),
        }
    }
}

impl Mapped {
    /// The device, `/dev/nbdN` or `/dev/loopN`.
    #[must_use]
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// What is mapped.
    #[must_use]
    pub fn export(&self) -> &Arc<Export> {
        &self.export
    }

    /// Whether it is there: nobody unmapped it, here or with `losetup -d` or `nbd-client -d`.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live().as_ref().is_some_and(|live| live.device.is_attached())
    }

    /// Gives the device the size the export has now. Blocks.
    ///
    /// # Errors
    /// `NotFound` where it is not mapped any more; those of the operating system.
    pub fn resized(&self) -> Result<()> {
        let live = self.live();
        let Some(live) = live.as_ref() else {
            return Err(Error::not_found("the device is not mapped").with("device", self.device.display()));
        };
        live.device.resize()
    }

    /// Takes the device away, with everything written to it durable in the export. Blocks. Done again, it changes nothing.
    ///
    /// # Errors
    /// `Busy` (16) where somebody has it mounted or open, and nothing changed, or where somebody opened it meanwhile: then it goes
    /// when they close it, and unmapping again succeeds. Those of the flush and of the operating system; the device is gone then.
    pub fn unmap(&self, how: Unmap) -> Result<()> {
        let mut slot = self.live();
        let Some(live) = slot.as_mut() else { return Ok(()) };
        match how {
            Unmap::IfUnused if live.device.is_attached() => live.device.detach()?,
            Unmap::IfUnused => {}
            Unmap::ByForce => live.device.abort()?,
        }
        let Some(live) = slot.take() else { return Ok(()) };
        let flushed = match how {
            Unmap::IfUnused => self.flush(),
            Unmap::ByForce => Ok(()),
        };
        let Live { device, directory, directories } = live;
        let ended = device.end();
        let removed = directories.remove_one(&directory);
        tracing::info!(export = self.export.name(), device = %self.device.display(), "device unmapped");
        flushed.and(ended).and(removed)
    }

    /// Makes durable what the kernel handed over.
    fn flush(&self) -> Result<()> {
        if self.export.is_read_only() {
            return Ok(());
        }
        futures_executor::block_on(async { self.export.enter().await.flush().await })
    }

    fn live(&self) -> MutexGuard<'_, Option<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if let Err(e) = self.unmap(Unmap::ByForce) {
            tracing::warn!(device = %self.device.display(), error = %e, "device not taken away");
        }
    }
}
