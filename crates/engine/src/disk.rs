//! What the engine believes of the medium: a few files that can be read, written and synced.
//!
//! Everything the engine stores goes through [`Disk`], so that the simulated disk sees every write and every sync.
//! `docs/format/media.md` states what is assumed of it.

use std::fmt;

use bytes::Bytes;
use ferry_core::Result;

mod file;
#[cfg(feature = "testing")]
pub mod sim;

pub use file::FileDisk;

/// Number of a segment; its file carries it. Never 0, so that a zeroed address points nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNo(pub u32);

impl fmt::Display for SegmentNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A file of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileId {
    /// The two superblock slots.
    Superblock,
    /// A segment of the log.
    Segment(SegmentNo),
}

/// The files of one store. Offsets and lengths are bytes.
///
/// A write is not durable before [`Disk::sync`] of its file returned; until then a crash may keep any 512-byte sectors of
/// it. Files made or removed are so durably before the call returns.
pub trait Disk: Send + Sync + fmt::Debug {
    /// The segments that exist, in any order.
    fn segments(&self) -> Result<Vec<SegmentNo>>;
    /// Whether the superblock file exists.
    fn has_superblock(&self) -> Result<bool>;
    /// Makes a file of `length` bytes with its space allocated. `NoSpace` (28) changes nothing.
    fn create(&self, file: FileId, length: u64) -> Result<()>;
    /// Removes a file.
    fn remove(&self, file: FileId) -> Result<()>;
    /// Length of a file.
    fn length(&self, file: FileId) -> Result<u64>;
    /// Fills `buffer` from `offset`; a file that ends before is `Corrupt`.
    fn read(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> Result<()>;
    /// As [`Self::read`], if that needs no waiting; whether it was done. Where not, the buffer may hold anything.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn read_now(&self, _file: FileId, _offset: u64, _buffer: &mut [u8]) -> Result<bool> {
        Ok(false)
    }
    /// Says that these ranges `(file, offset, length)` will be read at once or soon, so that the waits overlap.
    fn will_read(&self, ranges: &[(FileId, u64, u64)]);
    /// Writes `parts` one behind the other from `offset`.
    fn write(&self, file: FileId, offset: u64, parts: &[Bytes]) -> Result<()>;
    /// Says that a range just written may go to the medium now, so that a sync later has less to wait for.
    fn begin_write_back(&self, _file: FileId, _offset: u64, _length: u64) {}
    /// Makes all writes to the file durable.
    fn sync(&self, file: FileId) -> Result<()>;
    /// Says that the cached bytes of a file are not needed soon.
    fn forget(&self, file: FileId);
    /// Bytes the medium has free for new files.
    fn free_bytes(&self) -> Result<u64>;
    /// A text naming the place, for messages.
    fn describe(&self) -> String;
}
