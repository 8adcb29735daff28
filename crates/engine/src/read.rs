//! Reading data: what to fetch is decided under the lock, the fetching is done outside it.

use std::sync::Arc;

use bytes::Bytes;
use ferry_core::checksum::crc32c;
use ferry_core::limits::BLOCK_SIZE;
use ferry_core::{Buffer, Error, Result, SparseData};
use smallvec::SmallVec;

use crate::address::{Address, Block};
use crate::core::Core;
use crate::disk::{Disk, FileId};
use crate::index::pieces;
use crate::limits::BLOCK;
use crate::plan::Found;
use crate::record::HEAD;

/// Bytes from which a read in one piece is announced too: the kernel's own window is smaller.
const READ_AHEAD_BYTES: usize = 256 << 10;

/// Blocks that lie together on disk.
#[derive(Debug)]
struct Run {
    first: Address,
    count: usize,
    /// Where they go in the buffer.
    at: usize,
}

impl Run {
    fn bytes(&self) -> usize {
        self.count * BLOCK
    }
}

/// What a read must fetch.
#[derive(Debug)]
pub(crate) struct ReadJob {
    /// Byte of the object the buffer begins at, and its length.
    start: u64,
    length: usize,
    runs: SmallVec<[Run; 1]>,
    /// Of all blocks of all runs, in order.
    crcs: SmallVec<[u32; 2]>,
    in_memory: Vec<(usize, Bytes)>,
    /// `(offset, end)` of the extents, in bytes of the object.
    extents: SmallVec<[(u64, u64); 1]>,
    /// Keeps segments from being used again meanwhile.
    _era: Arc<()>,
}

impl Core {
    /// Plans reading `[offset, offset + length)` of what was found of an object.
    pub(crate) fn plan_read(&mut self, found: &Found, offset: u64, length: u64) -> Result<ReadJob> {
        let Found { inode, version, size, .. } = *found;
        let end = offset.saturating_add(length).min(size);
        let first = u32::try_from(offset.min(size) / BLOCK_SIZE).expect("objects are bounded");
        let last = u32::try_from(end.div_ceil(BLOCK_SIZE)).expect("objects are bounded").max(first);
        let mut job = ReadJob {
            start: u64::from(first) * BLOCK_SIZE,
            length: (last - first) as usize * BLOCK,
            runs: SmallVec::new(),
            crcs: SmallVec::new(),
            in_memory: Vec::new(),
            extents: SmallVec::new(),
            _era: Arc::clone(&self.era),
        };
        if end <= offset {
            return Ok(job);
        }
        for (chunk, block, from, n) in pieces(first, last - first) {
            let table = if version == HEAD {
                if n == 1 {
                    let found = self.head_block(inode, chunk, from)?;
                    self.add_block(&mut job, block, found, (offset, end));
                    continue;
                }
                let entry = self.chunk((inode, HEAD, chunk))?;
                if entry.is_empty() {
                    continue;
                }
                entry.clone()
            } else {
                self.resolved_chunk(inode, version, chunk)?
            };
            for (i, slot) in (0..).zip(from..from + n) {
                self.add_block(&mut job, block + i, table.get(slot), (offset, end));
            }
        }
        Ok(job)
    }

    /// What a block of HEAD is.
    fn head_block(&mut self, inode: u64, chunk: u32, slot: usize) -> Result<Block> {
        let at = (inode, HEAD, chunk);
        // As most reads are of tables used lately: one look instead of two.
        if !self.sharing.concerns(inode, chunk)
            && let Some(kept) = self.chunks.young(&at)
        {
            return Ok(kept.value.get(slot));
        }
        Ok(self.chunk(at)?.get(slot))
    }

    fn add_block(&self, job: &mut ReadJob, block: u32, found: Block, (from, end): (u64, u64)) {
        let Block::Data(address, crc) = found else { return };
        let offset = u64::from(block) * BLOCK_SIZE;
        let (low, high) = (offset.max(from), (offset + BLOCK_SIZE).min(end));
        match job.extents.last_mut() {
            Some(last) if last.1 == low => last.1 = high,
            _ => job.extents.push((low, high)),
        }
        let at = usize::try_from(offset - job.start).expect("a read fits memory");
        if let Some(bytes) = self.log.pending(address) {
            job.in_memory.push((at, bytes));
            return;
        }
        job.crcs.push(crc);
        if let Some(run) = job.runs.last_mut()
            && run.at + run.bytes() == at
            && run.first.segment() == address.segment()
            && run.first.block() as usize + run.count == address.block() as usize
        {
            run.count += 1;
            return;
        }
        job.runs.push(Run { first: address, count: 1, at });
    }

    /// The bytes of one block.
    ///
    /// # Errors
    /// `Corrupt` where they do not match their CRC.
    pub(crate) fn block_bytes_at(&self, address: Address, crc: u32) -> Result<Vec<u8>> {
        if let Some(bytes) = self.log.pending(address) {
            return Ok(bytes.to_vec());
        }
        let mut bytes = vec![0; BLOCK];
        read_run(&*self.disk, address, &[crc], &mut bytes)?;
        Ok(bytes)
    }
}

impl ReadJob {
    /// Fetches and verifies.
    ///
    /// # Errors
    /// `Corrupt` where bytes do not match their CRC: never wrong data.
    pub(crate) fn run(self, disk: &dyn Disk) -> Result<SparseData> {
        if self.extents.is_empty() {
            return Ok(SparseData::default());
        }
        // All that the extents show is filled in; the rest of the buffer is nobody's.
        let mut buffer = Buffer::take(self.length);
        // For a single small run there is nothing to overlap.
        let at_once = self.runs.len() > 1 || self.length >= READ_AHEAD_BYTES;
        let mut is_announced = !at_once;
        let mut crcs = &self.crcs[..];
        for (n, run) in self.runs.iter().enumerate() {
            let bytes = &mut buffer[run.at..run.at + run.bytes()];
            // What the kernel has in memory needs no advice, which costs a call for each run.
            let file = FileId::Segment(run.first.segment());
            if is_announced || !disk.read_now(file, byte_of(run.first), bytes)? {
                if !is_announced {
                    disk.will_read(&self.ranges_from(n));
                    is_announced = true;
                }
                disk.read(file, byte_of(run.first), bytes)?;
            }
            let (wanted, others) = crcs.split_at(run.count);
            verify_run(run.first, wanted, bytes)?;
            crcs = others;
        }
        for (at, bytes) in &self.in_memory {
            buffer[*at..*at + BLOCK].copy_from_slice(bytes);
        }
        let buffer = buffer.freeze();
        if let [(from, end)] = self.extents[..]
            && (from, end - from) == (self.start, buffer.len() as u64)
        {
            // Without a count of parts.
            return Ok(SparseData { extents: vec![(from, buffer)] });
        }
        let place = |offset: u64| usize::try_from(offset - self.start).expect("a read fits memory");
        let extents = self.extents.iter().map(|(a, b)| (*a, buffer.slice(place(*a)..place(*b)))).collect();
        Ok(SparseData { extents })
    }
}

impl ReadJob {
    /// What there is to fetch, as `(offset, length)` in bytes of the object.
    pub(crate) fn into_extents(self) -> Vec<(u64, u64)> {
        self.extents.into_iter().map(|(from, end)| (from, end - from)).collect()
    }

    /// Has the disk bring all of it to memory, without waiting for that.
    pub(crate) fn announce(self, disk: &dyn Disk) {
        if !self.runs.is_empty() {
            disk.will_read(&self.ranges_from(0));
        }
    }

    /// Where the runs from number `first` on lie.
    fn ranges_from(&self, first: usize) -> Vec<(FileId, u64, u64)> {
        let range = |r: &Run| (FileId::Segment(r.first.segment()), byte_of(r.first), r.bytes() as u64);
        self.runs[first..].iter().map(range).collect()
    }
}

/// Byte of its file a block begins at.
pub(crate) fn byte_of(address: Address) -> u64 {
    Core::block_bytes(address.block())
}

/// Reads blocks that lie together and verifies each.
pub(crate) fn read_run(disk: &dyn Disk, first: Address, crcs: &[u32], bytes: &mut [u8]) -> Result<()> {
    disk.read(FileId::Segment(first.segment()), byte_of(first), bytes)?;
    verify_run(first, crcs, bytes)
}

/// Verifies blocks that lie together.
fn verify_run(first: Address, crcs: &[u32], bytes: &[u8]) -> Result<()> {
    for (i, (block, crc)) in bytes.chunks_exact(BLOCK).zip(crcs).enumerate() {
        if crc32c(block) != *crc {
            let at = first.plus(u32::try_from(i).expect("a run is inside a segment"));
            return Err(Error::corrupt("stored bytes do not match their checksum").with("address", at));
        }
    }
    Ok(())
}
