//! An export as a block device of this machine's kernel: a FUSE file with a loop device on it.
//!
//! ```text
//!   export ◄─ FUSE file `disk` (this process) ◄─ /dev/loopN (direct I/O) ◄─ ext4, xfs, dd
//! ```
//!
//! - What the block layer flushes is flushed in the export before the block layer hears of it; discards and zeroed ranges arrive
//!   as such.
//! - A device that somebody has mounted or open is not taken away, except by force.
//! - A killed process leaves a device whose every request fails, and a dead mount: [`clean_stale`] clears both away.

mod openers;
mod setup;
mod stale;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferry_core::{Error, Result};

use crate::export::Export;
use crate::fuse::{self, Access, Mount};
use openers::Claim;
use setup::{Directories, LoopDevice};

pub use setup::make_directory;
pub use stale::{Cleaned, clean_stale};

/// How to map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where the files are mounted: a directory of which each mapping takes a numbered one. Made where it is missing.
    pub directory: PathBuf,
    /// Whether the device may be written.
    pub access: Access,
    /// Bytes of a logical block; the kernel's own choice (512) where none is given.
    pub sector_size: Option<u32>,
    /// Whether partitions of the device become devices too.
    pub scan_partitions: bool,
}

impl Options {
    /// A device to be read and written, with its file under `directory`.
    #[must_use]
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        let directory = directory.into();
        Self { directory, access: Access::ReadWrite, sector_size: None, scan_partitions: false }
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
    device: LoopDevice,
    mount: Mount,
    directory: PathBuf,
    directories: Directories,
}

/// Makes a block device of `export`. Blocks; not for threads of an async runtime.
///
/// # Errors
/// `Unsupported` (95) where the system lacks FUSE, loop devices or `losetup`; `Denied` without the rights of root; `Invalid` for
/// a sector size that the kernel does not take; others of the operating system. Nothing is left behind then.
pub fn map(export: &Arc<Export>, options: &Options) -> Result<Mapped> {
    fuse::check()?;
    setup::check()?;
    let directories = Directories::open(&options.directory)?;
    let lock = directories.lock()?;
    let directory = directories.make_one()?;
    let mapped = Mount::new(export, &directory, options.access).and_then(|mount| {
        let device = LoopDevice::attach(&mount.file(), options)?;
        Ok((mount, device))
    });
    drop(lock);
    match mapped {
        Ok((mount, device)) => {
            let path = device.path().to_owned();
            tracing::info!(export = export.name(), device = %path.display(), "device mapped");
            let live = Live { device, mount, directory, directories };
            Ok(Mapped { export: Arc::clone(export), device: path, live: Mutex::new(Some(live)) })
        }
        Err(e) => {
            // The mount ended when it was dropped; an empty directory left behind is taken for stale.
            std::fs::remove_dir(&directory).ok();
            Err(e)
        }
    }
}

impl Mapped {
    /// The device, `/dev/loopN`.
    #[must_use]
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// What is mapped.
    #[must_use]
    pub fn export(&self) -> &Arc<Export> {
        &self.export
    }

    /// Whether it is there: nobody unmapped it, here or with `losetup -d`.
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
        live.device.resize(&live.mount.file())
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
            Unmap::IfUnused if live.device.is_attached() => {
                let claim = Claim::take(&self.device)?;
                live.device.detach()?;
                drop(claim);
                live.device.wait_until_gone()?;
            }
            Unmap::IfUnused => {}
            Unmap::ByForce => {
                let is_attached = live.device.is_attached();
                // The requests under way must fail first: letting go of a device waits for them.
                live.mount.abort()?;
                if is_attached {
                    live.device.let_go()?;
                }
            }
        }
        let Some(live) = slot.take() else { return Ok(()) };
        let flushed = match how {
            Unmap::IfUnused => self.flush(),
            Unmap::ByForce => Ok(()),
        };
        let Live { mount, directory, directories, .. } = live;
        let ended = mount.end();
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
