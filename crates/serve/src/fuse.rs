//! An export as a file: a FUSE mount with one regular file, `disk`.
//!
//! - A thread serves a request from its beginning to its end, since a device may do all of it on the thread that asks: as many
//!   requests as there are threads are under way, the kernel keeps the others.
//! - Nothing is cached above the export: files are opened for direct I/O and attributes are asked for each time.

mod errno;
mod file_system;
mod limits;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ferry_core::{Error, ErrorKind, Result};
use fuser::{BackgroundSession, Config, MountOption, Session};
use rustix::mount::{UnmountFlags, unmount};

use crate::export::Export;
use file_system::DiskFileSystem;
use limits::{POLL, THREADS, UNMOUNT_WAIT};

pub use file_system::Access;

/// The file's name in its mount.
pub const FILE_NAME: &str = "disk";

/// Source of these mounts, as `/proc/self/mountinfo` shows it.
pub const MOUNT_SOURCE: &str = "ferry";

/// A mount that is being served. Dropped, it is ended by force.
#[derive(Debug)]
pub struct Mount {
    directory: PathBuf,
    /// None once it is unmounted.
    session: Option<BackgroundSession>,
}

impl Mount {
    /// Mounts `export` at `directory`, which exists and is empty, and serves it with threads of its own. Counts as a client of the
    /// export.
    ///
    /// # Errors
    /// `Denied` without the right to mount; `NotFound` without `/dev/fuse`; others of the operating system.
    pub fn new(export: &Arc<Export>, directory: &Path, access: Access) -> Result<Self> {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(MOUNT_SOURCE.to_owned()),
            MountOption::DefaultPermissions,
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::NoExec,
        ];
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        let file_system = DiskFileSystem::new(export, access);
        let session = Session::new(file_system, directory, &config).and_then(Session::spawn);
        let session = session
            .map_err(|e| Error::io("cannot mount a file system", e).with("directory", directory.display()))?;
        Ok(Self { directory: directory.to_owned(), session: Some(session) })
    }

    /// The file that is the device.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.directory.join(FILE_NAME)
    }

    /// Unmounts it and waits until it is not served any more. Where the file stays in use, whoever has it open loses it.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn end(mut self) -> Result<()> {
        let until = Instant::now() + UNMOUNT_WAIT;
        while let Err(e) = unmount(&self.directory, UnmountFlags::empty()) {
            if e == rustix::io::Errno::BUSY && Instant::now() < until {
                thread::sleep(POLL);
                continue;
            }
            break;
        }
        self.abort()
    }

    /// Ends it at once: requests under way and later ones fail.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn abort(&mut self) -> Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        if !session.guard.is_finished() && is_mounted(&self.directory) {
            // Forced, so that the threads end also where somebody has the file open.
            let flags = UnmountFlags::FORCE | UnmountFlags::DETACH;
            unmount(&self.directory, flags).map_err(|e| {
                Error::io("cannot unmount a file system", e.into())
                    .with("directory", self.directory.display())
            })?;
        }
        served_to_the_end(session.join())
    }
}

/// What a session that is over says of itself. Once a mount goes, the kernel answers threads that wait for a request with "no such
/// device", which a session takes for its end, and one that is just being given a request with "connection aborted": that is the
/// same end.
fn served_to_the_end(ended: io::Result<()>) -> Result<()> {
    match ended {
        Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
        ended => ended.map_err(|e| Error::io("a file system was not served to its end", e)),
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(e) = self.abort() {
            tracing::warn!(directory = %self.directory.display(), error = %e, "file system not ended");
        }
    }
}

/// Whether something of this module is mounted at `directory`.
pub(crate) fn is_mounted(directory: &Path) -> bool {
    let Ok(table) = std::fs::read_to_string("/proc/self/mountinfo") else { return true };
    let wanted = directory.to_string_lossy();
    table.lines().any(|line| {
        // `36 35 98:0 / /mount/point options - type source options`
        let place = line.split(' ').nth(4).map(unescape);
        place.is_some_and(|place| place == wanted) && line.contains(&format!(" - fuse {MOUNT_SOURCE} "))
    })
}

/// A path of the table of mounts: blanks are written in octal there.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                out.push_str(&part[3..]);
            }
            None => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

/// Whether this system can mount it: a reason why not.
///
/// # Errors
/// `Unsupported` where there is no FUSE.
pub fn check() -> Result<()> {
    if Path::new("/dev/fuse").exists() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unsupported, "this system has no FUSE").with("missing", "/dev/fuse"))
}

/// Time since a moment.
fn since(began: Instant) -> Duration {
    began.elapsed()
}
