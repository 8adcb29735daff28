//! A foreign source in memory, with what may go wrong with one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;

use crate::device::{DeviceExtent, ExtentState};
use crate::error::{Error, ErrorKind, Result};
use crate::reply::Reply;
use crate::source::{BlockSource, SourcePoint, SourceSnapshot};
use crate::store::SparseData;

/// How closely a source knows where its data is and what changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// To the block of 512 bytes.
    Exact,
    /// It takes everything for data, and everything for changed.
    Nothing,
}

/// What a source holds: shared by all that opened it.
#[derive(Debug)]
pub struct MemSource {
    snapshots: Vec<SourceSnapshot>,
    bytes: Vec<Vec<u8>>,
    head: Vec<u8>,
    knowledge: Knowledge,
    is_unreadable: AtomicBool,
    is_changed: AtomicBool,
    bytes_read: AtomicU64,
}

/// Bytes of the blocks a source that knows its holes knows them by.
const BLOCK: usize = 512;

impl MemSource {
    /// A source with these bytes at each snapshot, oldest first, and at its head.
    #[must_use]
    pub fn new(snapshots: Vec<(String, Vec<u8>)>, head: Vec<u8>, knowledge: Knowledge) -> Arc<Self> {
        let (snapshots, bytes) = snapshots
            .into_iter()
            .map(|(name, bytes)| (SourceSnapshot { name, size: bytes.len() as u64, taken: None }, bytes))
            .unzip();
        let (is_unreadable, is_changed) = (AtomicBool::new(false), AtomicBool::new(false));
        let bytes_read = AtomicU64::new(0);
        Arc::new(Self { snapshots, bytes, head, knowledge, is_unreadable, is_changed, bytes_read })
    }

    /// From now on reads fail, or no longer.
    pub fn set_unreadable(&self, unreadable: bool) {
        self.is_unreadable.store(unreadable, Ordering::Release);
    }

    /// From now on it holds other bytes than when it was opened, or no longer.
    pub fn set_changed(&self, changed: bool) {
        self.is_changed.store(changed, Ordering::Release);
    }

    /// Bytes read so far, but for holes it knows of.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Acquire)
    }

    /// All bytes of a point.
    #[must_use]
    pub fn at(&self, at: SourcePoint) -> &[u8] {
        match at {
            SourcePoint::Head => &self.head,
            SourcePoint::Snapshot(n) => self.bytes.get(n).map_or(&[], Vec::as_slice),
        }
    }

    fn range(&self, at: SourcePoint, offset: u64, length: u64) -> Result<&[u8]> {
        if self.is_unreadable.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Io, "the source cannot be read"));
        }
        if self.is_changed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Conflict, "the source has changed"));
        }
        let range = usize::try_from(offset).ok().zip(usize::try_from(length).ok());
        range
            .and_then(|(offset, length)| self.at(at).get(offset..offset.checked_add(length)?))
            .ok_or_else(|| Error::invalid("a range is not inside the source"))
    }

    /// A range in runs of blocks for which `is_data` says the same.
    fn extents_of(offset: u64, bytes: &[u8], is_data: impl Fn(usize, &[u8]) -> bool) -> Vec<DeviceExtent> {
        let mut extents: Vec<DeviceExtent> = Vec::new();
        for (n, block) in bytes.chunks(BLOCK).enumerate() {
            let state = if is_data(n, block) { ExtentState::Data } else { ExtentState::Zero };
            match extents.last_mut() {
                Some(last) if last.state == state => last.length += block.len() as u64,
                Some(_) | None => extents.push(DeviceExtent {
                    offset: offset + (n * BLOCK) as u64,
                    length: block.len() as u64,
                    state,
                }),
            }
        }
        extents
    }
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|b| *b == 0)
}

impl BlockSource for MemSource {
    fn snapshots(&self) -> &[SourceSnapshot] {
        &self.snapshots
    }

    fn size(&self) -> u64 {
        self.head.len() as u64
    }

    fn read(&self, at: SourcePoint, offset: u64, length: u64) -> Reply<SparseData> {
        let read = self.range(at, offset, length).map(|bytes| {
            let whole = |e: DeviceExtent| {
                let from = usize::try_from(e.offset - offset).unwrap_or(usize::MAX);
                let to = from + usize::try_from(e.length).unwrap_or(usize::MAX);
                (e.offset, Bytes::copy_from_slice(&bytes[from..to]))
            };
            let extents = Self::extents_of(offset, bytes, |_, block| {
                self.knowledge == Knowledge::Nothing || !is_zero(block)
            });
            let data = extents.into_iter().filter(|e| e.state == ExtentState::Data);
            let data: Vec<DeviceExtent> = data.collect();
            self.bytes_read.fetch_add(data.iter().map(|e| e.length).sum(), Ordering::AcqRel);
            SparseData { extents: data.into_iter().map(whole).collect() }
        });
        Reply::ready(read)
    }

    fn extents(&self, at: SourcePoint, offset: u64, length: u64) -> Reply<Vec<DeviceExtent>> {
        Reply::ready(self.range(at, offset, length).map(|bytes| {
            Self::extents_of(offset, bytes, |_, block| {
                self.knowledge == Knowledge::Nothing || !is_zero(block)
            })
        }))
    }

    fn changes(
        &self,
        older: SourcePoint,
        newer: SourcePoint,
        offset: u64,
        length: u64,
    ) -> Reply<Vec<DeviceExtent>> {
        let both =
            self.range(older, offset, length).and_then(|a| Ok((a, self.range(newer, offset, length)?)));
        Reply::ready(both.map(|(was, is)| {
            let was: Vec<&[u8]> = was.chunks(BLOCK).collect();
            let mut changes = Vec::new();
            for (n, block) in is.chunks(BLOCK).enumerate() {
                if self.knowledge == Knowledge::Nothing || was.get(n) != Some(&block) {
                    let at = offset + (n * BLOCK) as u64;
                    let state = if is_zero(block) { ExtentState::Zero } else { ExtentState::Data };
                    changes.push(DeviceExtent { offset: at, length: block.len() as u64, state });
                }
            }
            changes
        }))
    }

    fn pin(&self) -> String {
        let changed = self.is_changed.load(Ordering::Acquire);
        format!("{} bytes, {}", self.head.len(), if changed { "other ones" } else { "as they were" })
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }
}
