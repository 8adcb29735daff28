//! The file system: a directory and a file.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use ferry_core::{Error, ErrorKind, ExtentState, Reply, Result};
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::errno::errno;
use super::limits::{BACKGROUND_MAX, BLOCK_SIZE, EXTENT_STEP, REQUEST_MAX, ZERO_PIECE};
use super::{FILE_NAME, since};
use crate::export::{Attached, Entered, Export};
use crate::traffic::{Sort, Tally};

/// The file. The directory is the root.
const FILE: INodeNo = INodeNo(2);

/// Attributes are never kept: the size may change at any time.
const FRESH: Duration = Duration::ZERO;

/// Ways of `fallocate`, as `linux/falloc.h` numbers them.
const KEEP_SIZE: i32 = 0x01;
const PUNCH_HOLE: i32 = 0x02;
const ZERO_RANGE: i32 = 0x10;

/// Ways of `lseek`, as `unistd.h` numbers them.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// What may be done with the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    ReadOnly,
    /// Read and write it.
    ReadWrite,
}

/// See the module.
#[derive(Debug)]
pub(super) struct DiskFileSystem {
    export: Arc<Export>,
    access: Access,
    mounted: SystemTime,
    /// It counts as a client for as long as it is served.
    _attached: Attached,
}

impl DiskFileSystem {
    /// One for `export`, which may be read-only itself.
    pub(super) fn new(export: &Arc<Export>, access: Access) -> Self {
        let access = if export.is_read_only() { Access::ReadOnly } else { access };
        let _attached = export.attach();
        Self { export: Arc::clone(export), access, mounted: SystemTime::now(), _attached }
    }

    /// Does one request, and counts it.
    fn ask<T>(&self, sort: Sort, bytes: u64, request: impl FnOnce(&Entered) -> Reply<T>) -> Result<T> {
        let began = Instant::now();
        let entered =
            self.export.try_enter().unwrap_or_else(|| futures_executor::block_on(self.export.enter()));
        let answer = request(&entered).wait();
        drop(entered);
        let mut tally = Tally::default();
        tally.count(sort, answer.is_ok().then_some(bytes), since(began));
        self.export.traffic().add(&tally);
        if let Err(e) = &answer {
            tracing::warn!(export = self.export.name(), error = %e, "request of the kernel failed");
        }
        answer
    }

    /// Refuses changes where they are not allowed.
    fn check_writable(&self) -> Result<()> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(Error::new(ErrorKind::ReadOnly, "the device is mapped read-only")),
        }
    }

    /// Zeroes or gives back a range, in pieces that end where the next one begins on a round number.
    fn zero(&self, offset: u64, length: u64, mode: i32) -> Result<()> {
        self.check_writable()?;
        let unsupported = || Error::new(ErrorKind::Unsupported, "the file cannot be changed in this way");
        let is_discard = match mode {
            mode if mode == PUNCH_HOLE | KEEP_SIZE => true,
            mode if mode == ZERO_RANGE | KEEP_SIZE => false,
            _ => return Err(unsupported().with("mode", mode)),
        };
        let end = offset.saturating_add(length).min(self.export.size());
        let mut at = offset;
        while at < end {
            let to = ((at / ZERO_PIECE + 1) * ZERO_PIECE).min(end);
            self.ask(Sort::Zero, to - at, |device| {
                if is_discard { device.discard(at, to - at) } else { device.write_zeroes(at, to - at) }
            })?;
            at = to;
        }
        Ok(())
    }

    /// The next byte at or behind `offset` that is of `wanted`; None where there is none.
    fn seek(&self, offset: u64, wanted: ExtentState) -> Result<Option<u64>> {
        let end = self.export.size();
        let mut at = offset;
        while at < end {
            let step = EXTENT_STEP.min(end - at);
            let extents = self.ask(Sort::Other, step, |device| device.extents(at, step))?;
            if let Some(found) = extents.iter().find(|e| e.state == wanted) {
                return Ok(Some(found.offset.max(at)));
            }
            at += step;
        }
        Ok(None)
    }

    fn attributes(&self, of: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match (of, self.access) {
            (INodeNo::ROOT, _) => (FileType::Directory, 0o500, 0),
            (FILE, Access::ReadOnly) => (FileType::RegularFile, 0o400, self.export.size()),
            (FILE, Access::ReadWrite) => (FileType::RegularFile, 0o600, self.export.size()),
            _ => return None,
        };
        Some(FileAttr {
            ino: of,
            size,
            blocks: size / 512,
            atime: self.mounted,
            mtime: self.mounted,
            ctime: self.mounted,
            crtime: self.mounted,
            kind,
            perm,
            nlink: 1,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: BLOCK_SIZE,
            flags: 0,
        })
    }
}

/// Answers a request that gives nothing back.
fn answer(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(&e)),
    }
}

impl Filesystem for DiskFileSystem {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Each of these is an offer of the kernel: where it makes none, requests are smaller or fewer.
        config.set_max_write(REQUEST_MAX).ok();
        config.set_max_readahead(REQUEST_MAX).ok();
        config.set_max_background(BACKGROUND_MAX).ok();
        for capability in [InitFlags::FUSE_ASYNC_READ, InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_MAX_PAGES] {
            config.add_capabilities(capability).ok();
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(FILE) {
            Some(attributes) if parent == INodeNo::ROOT && name == FILE_NAME => {
                reply.entry(&FRESH, &attributes, Generation(0));
            }
            Some(_) | None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, of: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(of) {
            Some(attributes) => reply.attr(&FRESH, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        of: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // A device has the size it has. Times are not kept, and setting them is not worth an error.
        let is_change = mode.is_some() || uid.is_some() || gid.is_some();
        match self.attributes(of) {
            Some(attributes) if !is_change && size.is_none_or(|s| s == attributes.size) => {
                reply.attr(&FRESH, &attributes);
            }
            Some(_) => reply.error(Errno::EPERM),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, of: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if of != FILE {
            return reply.error(Errno::EISDIR);
        }
        let reads = flags.acc_mode() == OpenAccMode::O_RDONLY;
        if !reads && self.access == Access::ReadOnly {
            return reply.error(Errno::EROFS);
        }
        // Closing it asks for nothing: a process that ends with the file open must not wait for a server that ends with it.
        let flags = FopenFlags::FOPEN_DIRECT_IO
            | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
            | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let length = self.export.size().saturating_sub(offset).min(u64::from(size));
        if length == 0 {
            return reply.data(&[]);
        }
        match self.ask(Sort::Read, length, |device| device.read(offset, length)) {
            Ok(data) => reply.data(&data),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let length = u32::try_from(data.len()).expect("a request is small");
        let data = Bytes::copy_from_slice(data);
        let written = self
            .check_writable()
            .and_then(|()| self.ask(Sort::Write, u64::from(length), |device| device.write(offset, data)));
        match written {
            Ok(()) => reply.written(length),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // A file is being closed; nothing is kept here, and durability is what fsync is for.
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        if self.access == Access::ReadOnly {
            return reply.ok();
        }
        answer(reply, self.ask(Sort::Flush, 0, |device| device.flush()));
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        answer(reply, self.zero(offset, length, mode));
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let size = self.export.size();
        let Some(from) = u64::try_from(offset).ok().filter(|from| *from < size) else {
            return reply.error(Errno::ENXIO);
        };
        let found = match whence {
            SEEK_DATA => self.seek(from, ExtentState::Data),
            // Behind the last byte there is a hole.
            SEEK_HOLE => self.seek(from, ExtentState::Zero).map(|found| found.or(Some(size))),
            _ => return reply.error(Errno::EINVAL),
        };
        match found.map(|at| at.and_then(|at| i64::try_from(at).ok())) {
            Ok(Some(at)) => reply.offset(at),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn readdir(&self, _: &Request, of: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if of != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (FILE, FileType::RegularFile, FILE_NAME),
        ];
        for (next, (of, kind, name)) in (1..).zip(entries).skip(usize::try_from(offset).unwrap_or(usize::MAX))
        {
            if reply.add(of, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = self.export.size().div_ceil(u64::from(BLOCK_SIZE));
        reply.statfs(blocks, 0, 0, 1, 0, BLOCK_SIZE, 255, BLOCK_SIZE);
    }
}
