//! A store's files in a directory.

use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use ferry_core::{Error, Result};
use rustc_hash::FxHashMap;
use rustix::fs::{Advice, FallocateFlags, OFlags, fadvise, fallocate, fdatasync, fsync, statvfs};
use rustix::io::ReadWriteFlags;

use super::{Disk, FileId, SegmentNo};

/// Most parts one `pwritev` takes: Linux's `IOV_MAX`.
const PARTS_MAX: usize = 1024;

/// Whether the store may be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// A [`Disk`] of files: `superblock` and `segments/NNNNNNNN`.
#[derive(Debug)]
pub struct FileDisk {
    directory: PathBuf,
    access: Access,
    open: RwLock<FxHashMap<FileId, Arc<File>>>,
}

impl FileDisk {
    /// The store in `directory`, which is made if it does not exist.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn create(directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory.join("segments")).map_err(|e| {
            Error::io("cannot make the store's directory", e).with("directory", directory.display())
        })?;
        let disk = Self::open(directory)?;
        disk.sync_directory(directory)?;
        Ok(disk)
    }

    /// The store in `directory`, for reading and writing.
    ///
    /// # Errors
    /// `NotFound` (2) where there is none.
    pub fn open(directory: &Path) -> Result<Self> {
        Self::at(directory, Access::Write)
    }

    /// The store in `directory`, for reading only: no file is written.
    ///
    /// # Errors
    /// `NotFound` (2) where there is none.
    pub fn open_read_only(directory: &Path) -> Result<Self> {
        Self::at(directory, Access::Read)
    }

    fn at(directory: &Path, access: Access) -> Result<Self> {
        if !directory.join("segments").is_dir() {
            if directory.join("superblock").exists() {
                return Err(Error::corrupt("the directory of the store's segments is missing")
                    .with("directory", directory.join("segments").display()));
            }
            return Err(Error::not_found("no store here").with("directory", directory.display()));
        }
        Ok(Self { directory: directory.to_owned(), access, open: RwLock::default() })
    }

    fn path(&self, file: FileId) -> PathBuf {
        match file {
            FileId::Superblock => self.directory.join("superblock"),
            FileId::Segment(no) => self.directory.join("segments").join(format!("{:08}", no.0)),
        }
    }

    fn handle(&self, file: FileId) -> Result<Arc<File>> {
        if let Some(handle) = self.open.read().unwrap_or_else(PoisonError::into_inner).get(&file) {
            return Ok(Arc::clone(handle));
        }
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let path = self.path(file);
        let mut options = OpenOptions::new();
        options.read(true).write(self.access == Access::Write);
        let handle = open_quietly(&mut options, &path)
            .map(Arc::new)
            .map_err(|e| cannot_open(file, e).with("file", path.display()))?;
        open.insert(file, Arc::clone(&handle));
        Ok(handle)
    }

    #[expect(clippy::disallowed_methods, reason = "this is the disk")]
    fn sync_directory(&self, directory: &Path) -> Result<()> {
        let handle = File::open(directory).map_err(|e| {
            Error::io("cannot open a directory of the store", e).with("directory", directory.display())
        })?;
        fsync(&handle)
            .map_err(|e| self.failed("cannot sync a directory of the store", e.into(), FileId::Superblock))
    }

    fn failed(&self, clause: &'static str, error: std::io::Error, file: FileId) -> Error {
        Error::io(clause, error).with("file", self.path(file).display())
    }

    /// The directory that holds `file`.
    fn parent(&self, file: FileId) -> PathBuf {
        match file {
            FileId::Superblock => self.directory.clone(),
            FileId::Segment(_) => self.directory.join("segments"),
        }
    }
}

/// Opens a file so that reads do not look at its access time, which nobody asks for; where that is not allowed (the file is
/// somebody else's), so that they do.
fn open_quietly(options: &mut OpenOptions, path: &Path) -> std::io::Result<File> {
    let quiet = i32::try_from(OFlags::NOATIME.bits()).expect("flags fit an int");
    match options.custom_flags(quiet).open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => options.custom_flags(0).open(path),
        opened => opened,
    }
}

/// Why a file cannot be opened. A segment that is missing is damage: as `NotFound` it would look like an object that does not
/// exist, which reads as zeros.
fn cannot_open(file: FileId, error: std::io::Error) -> Error {
    match file {
        FileId::Segment(_) if error.kind() == std::io::ErrorKind::NotFound => {
            Error::corrupt("a file of the store is missing").because(error)
        }
        FileId::Segment(_) | FileId::Superblock => Error::io("cannot open a file of the store", error),
    }
}

impl Disk for FileDisk {
    fn segments(&self) -> Result<Vec<SegmentNo>> {
        let directory = self.directory.join("segments");
        let list = std::fs::read_dir(&directory)
            .map_err(|e| Error::io("cannot list the segments", e).with("directory", directory.display()))?;
        let mut found = Vec::new();
        for entry in list {
            let entry = entry.map_err(|e| {
                Error::io("cannot list the segments", e).with("directory", directory.display())
            })?;
            let name = entry.file_name();
            if let Some(no) = name.to_str().and_then(|n| n.parse::<u32>().ok()).filter(|n| *n > 0) {
                found.push(SegmentNo(no));
            }
        }
        Ok(found)
    }

    fn has_superblock(&self) -> Result<bool> {
        Ok(self.path(FileId::Superblock).exists())
    }

    fn create(&self, file: FileId, length: u64) -> Result<()> {
        let path = self.path(file);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let handle = open_quietly(&mut options, &path)
            .map_err(|e| self.failed("cannot make a file of the store", e, file))?;
        let allocated = fallocate(&handle, FallocateFlags::empty(), 0, length);
        if let Err(e) = allocated {
            drop(handle);
            // The space that is not there is not held by a half-made file.
            std::fs::remove_file(&path)
                .map_err(|e| self.failed("cannot remove a file of the store", e, file))?;
            return Err(self.failed("no room for a file of the store", e.into(), file));
        }
        fsync(&handle).map_err(|e| self.failed("cannot sync a file of the store", e.into(), file))?;
        self.sync_directory(&self.parent(file))?;
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(file, Arc::new(handle));
        Ok(())
    }

    fn remove(&self, file: FileId) -> Result<()> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&file);
        std::fs::remove_file(self.path(file))
            .map_err(|e| self.failed("cannot remove a file of the store", e, file))?;
        self.sync_directory(&self.parent(file))
    }

    fn length(&self, file: FileId) -> Result<u64> {
        let meta = self.handle(file)?.metadata();
        meta.map(|m| m.len()).map_err(|e| self.failed("cannot look at a file of the store", e, file))
    }

    fn read(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match self.handle(file)?.read_exact_at(buffer, offset) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(Error::corrupt("a file of the store is too short")
                    .with("file", self.path(file).display())
                    .with("offset", offset)
                    .with("wanted", buffer.len()))
            }
            Err(e) => Err(self.failed("cannot read a file of the store", e, file).with("offset", offset)),
        }
    }

    fn read_now(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> Result<bool> {
        let handle = self.handle(file)?;
        let whole = buffer.len();
        let mut into = [std::io::IoSliceMut::new(buffer)];
        // Whatever it says, the read that follows says it better.
        let now = rustix::io::preadv2(&handle, &mut into, offset, ReadWriteFlags::NOWAIT);
        Ok(now.is_ok_and(|n| n == whole))
    }

    fn will_read(&self, ranges: &[(FileId, u64, u64)]) {
        for (file, offset, length) in ranges {
            if let Ok(handle) = self.handle(*file) {
                // Advice only: a kernel that ignores it costs time, not correctness.
                fadvise(&handle, *offset, std::num::NonZeroU64::new(*length), Advice::WillNeed).ok();
            }
        }
    }

    fn write(&self, file: FileId, offset: u64, parts: &[Bytes]) -> Result<()> {
        let handle = self.handle(file)?;
        let mut at = offset;
        for group in parts.chunks(PARTS_MAX) {
            let mut slices: Vec<IoSlice<'_>> = group.iter().map(|p| IoSlice::new(p)).collect();
            let mut left = slices.as_mut_slice();
            while !left.is_empty() {
                let n = rustix::io::pwritev(&handle, left, at).map_err(|e| {
                    self.failed("cannot write a file of the store", e.into(), file).with("offset", at)
                })?;
                if n == 0 {
                    return Err(Error::new(
                        ferry_core::ErrorKind::Io,
                        "a write of the store made no progress",
                    )
                    .with("file", self.path(file).display()));
                }
                at += n as u64;
                IoSlice::advance_slices(&mut left, n);
            }
        }
        Ok(())
    }

    fn begin_write_back(&self, file: FileId, offset: u64, length: u64) {
        if let Ok(handle) = self.handle(file) {
            // Linux starts writing dirty pages of such a range, and keeps them cached while it does. Advice only, as above.
            fadvise(&handle, offset, std::num::NonZeroU64::new(length), Advice::DontNeed).ok();
        }
    }

    fn sync(&self, file: FileId) -> Result<()> {
        fdatasync(&*self.handle(file)?)
            .map_err(|e| self.failed("cannot sync a file of the store", e.into(), file))
    }

    fn forget(&self, file: FileId) {
        if let Ok(handle) = self.handle(file) {
            // Advice only, as above.
            fadvise(&handle, 0, None, Advice::DontNeed).ok();
        }
    }

    fn free_bytes(&self) -> Result<u64> {
        let stat = statvfs(&self.directory)
            .map_err(|e| self.failed("cannot ask for free space", e.into(), FileId::Superblock))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn describe(&self) -> String {
        self.directory.display().to_string()
    }
}
