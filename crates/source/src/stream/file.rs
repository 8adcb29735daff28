//! Files and block devices of this machine.
//!
//! Invariants
//! - Opened for reading only; times of access are left alone where the system lets us.
//! - Whatever is handed out was read before the file's size and time of change were seen to be the ones it was opened with. A
//!   file that was changed or cut off in between is a `Conflict`, and stays one.
//! - A path that leads to another file later does not matter to an open stream: it keeps the file it opened.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use ferry_core::{Buffer, DeviceExtent, Errno, Error, ErrorKind, ExtentState, Reply, Result};
use rustix::fs::{FileType, Mode, OFlags, SeekFrom, Stat};

use super::Stream;
use crate::env::Env;
use crate::format::{inside, push_extent};
use crate::spec::FileSpec;

/// Reading what lies between two ranges takes less time than another hop to a thread and a system call. Bytes.
const GAP: u64 = 64 << 10;

/// What tells one state of a file from another. Not the time of the last change of its attributes: that moves when somebody
/// gives the file away or links to it, and the bytes stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    size: u64,
    /// Seconds and nanoseconds of the last change of the contents; a device has none that says something.
    changed: Option<(i64, u64)>,
}

/// What the threads that read share.
#[derive(Debug)]
struct Opened {
    file: File,
    path: PathBuf,
    state: State,
    /// Number of the file in its file system; of a device nothing is known that lasts.
    inode: Option<u64>,
    /// It was seen to be another file than the one that was opened.
    spoilt: AtomicBool,
}

/// A file or block device, open.
#[derive(Debug)]
struct FileStream {
    opened: Arc<Opened>,
    env: Env,
}

/// Opens a file or block device.
///
/// # Errors
/// Those of the system, with the texts `rbd` has for them; `Invalid` for a directory and other things without bytes.
pub fn open(spec: &FileSpec, env: &Env) -> Reply<Arc<dyn Stream>> {
    let (path, reader) = (spec.path.clone(), env.clone());
    env.blocking(move || {
        let opened = Arc::new(Opened::new(path)?);
        Ok(Arc::new(FileStream { opened, env: reader }) as Arc<dyn Stream>)
    })
}

/// `failed to open file stream '/x': (2) No such file or directory`
fn cannot_open(path: &Path, errno: rustix::io::Errno) -> Error {
    let number = Errno(errno.raw_os_error());
    Error::io(format!("failed to open file stream '{}': {number}", path.display()), errno.into())
}

/// A descriptor for reading that leaves the time of access alone; only the owner of a file may ask for that.
fn descriptor(path: &Path) -> Result<OwnedFd> {
    // Without waiting for the writer of a pipe: it is refused below.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::open(path, flags | OFlags::NOATIME, Mode::empty()) {
        Err(rustix::io::Errno::PERM) => rustix::fs::open(path, flags, Mode::empty()),
        other => other,
    }
    .map_err(|e| cannot_open(path, e))
}

impl Opened {
    fn new(path: PathBuf) -> Result<Self> {
        let file = descriptor(&path)?;
        let stat = rustix::fs::fstat(&file).map_err(|e| cannot_open(&path, e))?;
        let inode = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Some(stat.st_ino),
            FileType::BlockDevice => None,
            FileType::Directory => {
                return Err(Error::invalid("the source is a directory").with("file", path.display()));
            }
            FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::Unknown => {
                let refused = "the source is neither a file nor a block device";
                return Err(Error::invalid(refused).with("file", path.display()));
            }
        };
        let state = Self::state_of(&file, &stat, inode.is_some()).map_err(|e| cannot_open(&path, e))?;
        Ok(Self { file: File::from(file), path, state, inode, spoilt: AtomicBool::new(false) })
    }

    fn state_of(
        file: impl std::os::fd::AsFd,
        stat: &Stat,
        is_regular: bool,
    ) -> Result<State, rustix::io::Errno> {
        if is_regular {
            let size = u64::try_from(stat.st_size).map_err(|_| rustix::io::Errno::OVERFLOW)?;
            return Ok(State { size, changed: Some((stat.st_mtime, stat.st_mtime_nsec)) });
        }
        Ok(State { size: rustix::fs::seek(file, SeekFrom::End(0))?, changed: None })
    }

    /// Whether it is still what was opened.
    ///
    /// # Errors
    /// `Conflict` where it is not, or was not once.
    fn check(&self) -> Result<()> {
        let now = rustix::fs::fstat(&self.file)
            .and_then(|stat| Self::state_of(&self.file, &stat, self.inode.is_some()))
            .map_err(|e| {
                Error::io("cannot look at the source", e.into()).with("file", self.path.display())
            })?;
        if now != self.state {
            self.spoilt.store(true, Ordering::Relaxed);
        }
        if self.spoilt.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Conflict, "the source was changed after it was opened")
                .with("file", self.path.display())
                .with("size_then", self.state.size)
                .with("size_now", now.size));
        }
        Ok(())
    }

    fn read(&self, offset: u64, length: u64) -> Result<Bytes> {
        let length = usize::try_from(length)
            .map_err(|_| Error::invalid("the range does not fit memory").with("length", length))?;
        let mut buffer = Buffer::take(length);
        let read = self.file.read_exact_at(&mut buffer, offset);
        // A file that became shorter is a changed file in the first place.
        self.check()?;
        read.map_err(|e| {
            Error::io("cannot read the source", e).with("file", self.path.display()).with("offset", offset)
        })?;
        Ok(buffer.freeze())
    }

    /// Data and holes of a range, as the file system tells.
    fn extents(&self, offset: u64, length: u64) -> Result<Vec<DeviceExtent>> {
        let end = offset + length;
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end {
            let data = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data.clamp(at, end),
                Err(rustix::io::Errno::NXIO) => end,
                // Not every file system knows; then everything is data.
                Err(_) => at,
            };
            push_extent(&mut extents, at, data - at, ExtentState::Zero);
            if data == end {
                break;
            }
            let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(data)).map_or(end, |hole| hole.min(end));
            let hole = if hole <= data { end } else { hole };
            push_extent(&mut extents, data, hole - data, ExtentState::Data);
            at = hole;
        }
        self.check()?;
        Ok(extents)
    }
}

impl Stream for FileStream {
    fn size(&self) -> u64 {
        self.opened.state.size
    }

    fn read(&self, offset: u64, length: u64) -> Reply<Bytes> {
        if let Err(e) = inside(offset, length, self.size()) {
            return Reply::ready(Err(e));
        }
        let opened = Arc::clone(&self.opened);
        self.env.blocking(move || opened.read(offset, length))
    }

    fn extents(&self, offset: u64, length: u64) -> Reply<Vec<DeviceExtent>> {
        if let Err(e) = inside(offset, length, self.size()) {
            return Reply::ready(Err(e));
        }
        if self.opened.inode.is_none() {
            let mut extents = Vec::new();
            push_extent(&mut extents, offset, length, ExtentState::Data);
            return Reply::ready(Ok(extents));
        }
        let opened = Arc::clone(&self.opened);
        self.env.blocking(move || opened.extents(offset, length))
    }

    fn gap(&self) -> u64 {
        GAP
    }

    fn is_near(&self) -> bool {
        true
    }

    fn pin(&self) -> String {
        let State { size, changed } = self.opened.state;
        match (self.opened.inode, changed) {
            (Some(inode), Some((seconds, nanoseconds))) => {
                format!("file inode={inode} size={size} changed={seconds}.{nanoseconds:09}")
            }
            (Some(_) | None, _) => format!("device size={size}"),
        }
    }

    fn describe(&self) -> String {
        self.opened.path.display().to_string()
    }
}
