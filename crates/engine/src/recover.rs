//! Opening a store: superblock, segment table, then the log's tail. Layout: `docs/format/recovery.md`.
//!
//! Invariants
//! - What is replayed is a prefix of the batches written since the checkpoint, in their order.
//! - A batch at or before a `durable_upto` found in any valid batch is never given up as a torn tail: if it is missing or
//!   damaged the store is corrupt and says so.

use std::collections::BTreeMap;
use std::sync::Arc;

use ferry_core::checksum::crc32c;
use ferry_core::{Error, Result};

use crate::address::Address;
use crate::checkpoint::table_blocks;
use crate::core::Core;
use crate::disk::{Disk, FileId, SegmentNo};
use crate::format::{BatchHeader, SegmentHeader, Superblock};
use crate::freed::Heard;
use crate::limits::BLOCK;
use crate::read::{byte_of, read_run};
use crate::record::Record;
use crate::space::{Space, State};

/// What opening a store found behind its last checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Batches replayed.
    pub batches: u64,
    /// Bytes of log replayed.
    pub bytes: u64,
    /// Bytes of valid batches behind the end of the tail, given up because one before them was never made durable.
    pub dropped_bytes: u64,
    /// Segments that a record freed and that were used again before the next checkpoint.
    pub reused_segments: u64,
    /// Whether something else than batches to replay was left behind the checkpoint: pieces of one that was not finished.
    pub(crate) left_behind: bool,
    /// Whether a superblock slot was damaged; the other was used, and the next checkpoint writes both.
    pub damaged_superblock_slot: bool,
}

/// The tail of the log.
#[derive(Debug, Default)]
struct Tail {
    batches: Vec<BatchHeader>,
    durable_upto: u64,
    epoch_seen: u64,
    /// Segments with anything of this store's in them.
    touched: Vec<(SegmentNo, u64, u32)>,
    /// Segments that batches free.
    heard: Heard,
    /// Of those, the ones still to be looked into.
    queue: Vec<SegmentNo>,
    /// Of those, the ones that are in another life than the table says, and where that ends.
    reborn: BTreeMap<SegmentNo, Option<(u64, u32)>>,
}

/// Refuses a place where segments are and no superblock: a store without it is damaged, and a new one would take its segments.
///
/// # Errors
/// `Corrupt`.
pub(crate) fn need_no_segments(disk: &dyn Disk) -> Result<()> {
    if disk.segments()?.is_empty() {
        return Ok(());
    }
    Err(Error::corrupt("the superblock of a store is missing, and its segments are there")
        .with("directory", disk.describe()))
}

/// Whether what is there is the superblock of a store whose making was cut short, and so of none: there are no segments yet, neither slot is
/// right, and nothing was written to the second, which comes after the first is durable.
///
/// # Errors
/// Those of the disk.
pub(crate) fn was_never_made(disk: &dyn Disk) -> Result<bool> {
    if !disk.has_superblock()? || !disk.segments()?.is_empty() {
        return Ok(false);
    }
    // The file comes into being before it has its length.
    let length = disk.length(FileId::Superblock)?.min(2 * BLOCK as u64);
    let mut bytes = vec![0; usize::try_from(length).expect("two blocks")];
    disk.read(FileId::Superblock, 0, &mut bytes)?;
    bytes.resize(2 * BLOCK, 0);
    let (first, second) = bytes.split_at(BLOCK);
    Ok(Superblock::decode(first, 0).is_err() && second.iter().all(|byte| *byte == 0))
}

fn no_store(disk: &dyn Disk) -> Error {
    Error::not_found("no store here").with("directory", disk.describe())
}

/// Reads the superblock, whichever slot is newer.
pub(crate) fn read_superblock(disk: &dyn Disk) -> Result<(Superblock, bool)> {
    if !disk.has_superblock()? {
        need_no_segments(disk)?;
        return Err(no_store(disk));
    }
    let mut found: Vec<Superblock> = Vec::new();
    let mut errors = Vec::new();
    for slot in 0..2 {
        let mut bytes = vec![0; BLOCK];
        let read = disk.read(FileId::Superblock, u64::from(slot) * BLOCK as u64, &mut bytes);
        match read.and_then(|()| Superblock::decode(&bytes, slot)) {
            Ok(superblock) => found.push(superblock),
            Err(e) => errors.push(e),
        }
    }
    found.sort_by_key(|s| s.generation);
    match found.pop() {
        Some(superblock) => Ok((superblock, !errors.is_empty())),
        None if was_never_made(disk)? => Err(no_store(disk)),
        None => Err(errors.pop().expect("neither slot was right").with("store", disk.describe())),
    }
}

/// Reads the segment table a superblock names.
pub(crate) fn read_table(disk: &dyn Disk, superblock: &Superblock) -> Result<Space> {
    let Some((address, bytes, crc)) = superblock.table else {
        return Ok(Space::new(superblock.segment_blocks, superblock.capacity_bytes));
    };
    if bytes > u64::from(superblock.segment_blocks) * BLOCK as u64 {
        return Err(Error::corrupt("the segment table is larger than a segment"));
    }
    let mut table =
        vec![0; usize::try_from(bytes).map_err(|_| Error::corrupt("a segment table past all memory"))?];
    disk.read(FileId::Segment(address.segment()), byte_of(address), &mut table)?;
    if crc32c(&table) != crc {
        return Err(Error::corrupt("the segment table does not match its checksum").with("address", address));
    }
    let mut space = Space::decode(&table, superblock.segment_blocks, superblock.capacity_bytes)?;
    for address in table_blocks((address, bytes, crc)) {
        space.add_node(address)?;
    }
    Ok(space)
}

/// Reads the valid batch at `at`, or says what is wrong with it. The payload is not looked at.
pub(crate) fn read_batch(
    disk: &dyn Disk,
    at: Address,
    life: u64,
    segment_blocks: u32,
) -> Result<BatchHeader> {
    let file = FileId::Segment(at.segment());
    let mut bytes = vec![0; BLOCK];
    disk.read(file, byte_of(at), &mut bytes)?;
    let blocks = BatchHeader::peek(&bytes, at, life)
        .filter(|n| at.block() + n <= segment_blocks)
        .ok_or_else(|| Error::corrupt("no batch here").with("address", at))?;
    if blocks > 1 {
        bytes.resize(blocks as usize * BLOCK, 0);
        disk.read(file, byte_of(at), &mut bytes)?;
    }
    let header = BatchHeader::decode(&bytes, at, life)?;
    if u64::from(at.block()) + u64::from(header.header_blocks) + u64::from(header.payload_blocks)
        > u64::from(segment_blocks)
    {
        return Err(Error::corrupt("a batch reaches past its segment").with("address", at));
    }
    Ok(header)
}

/// Fails unless every payload block of a batch matches its CRC.
pub(crate) fn verify_payload(disk: &dyn Disk, header: &BatchHeader, records: &[Record]) -> Result<()> {
    let crcs: Vec<u32> = records.iter().flat_map(|r| r.payload_crcs().iter().copied()).collect();
    if crcs.len() != header.payload_blocks as usize {
        return Err(
            Error::corrupt("a batch's records do not match its payload").with("address", header.address)
        );
    }
    if crcs.is_empty() {
        return Ok(());
    }
    let mut bytes = vec![0; crcs.len() * BLOCK];
    read_run(disk, header.address.plus(header.header_blocks), &crcs, &mut bytes)
}

impl Tail {
    /// Looks for batches newer than the checkpoint in every segment that may have some; `files` are in order.
    fn find(disk: &dyn Disk, superblock: &Superblock, space: &Space, files: &[SegmentNo]) -> Result<Self> {
        let mut tail = Self { epoch_seen: superblock.epoch, ..Self::default() };
        for no in files {
            if space.get(*no).is_none_or(|s| s.state != State::Sealed) {
                tail.look_into(disk, superblock, space, *no)?;
            }
        }
        // A sealed one may have been freed since, and used again; what frees it may lie in such a one.
        while let Some(no) = tail.queue.pop() {
            let is_sealed = space.get(no).is_some_and(|s| s.state == State::Sealed);
            if is_sealed && files.binary_search(&no).is_ok() {
                tail.look_into(disk, superblock, space, no)?;
            }
        }
        tail.batches.sort_by_key(|b| b.sequence);
        Ok(tail)
    }

    fn look_into(
        &mut self,
        disk: &dyn Disk,
        superblock: &Superblock,
        space: &Space,
        no: SegmentNo,
    ) -> Result<()> {
        let known = space.get(no).copied().unwrap_or_default();
        let length = disk.length(FileId::Segment(no))?;
        let mut bytes = vec![0; BLOCK];
        if length >= BLOCK as u64 {
            disk.read(FileId::Segment(no), 0, &mut bytes)?;
        }
        let header = SegmentHeader::decode(&bytes, &superblock.store, no);
        if length < space.segment_bytes() && header.is_err() {
            // A file that was being made when a process died: nothing durable is in it. (Stores were written by programs that took
            // such a file for a whole one, and those have headers.)
            return Ok(());
        }
        let is_whole = |h: &SegmentHeader| h.blocks == superblock.segment_blocks;
        match (known.state, header) {
            (State::Open(_), Ok(h)) if h.life == known.life => {
                self.scan_segment(disk, superblock, no, h.life, known.used)
            }
            (State::Open(_), _) => {
                Err(Error::corrupt("the header of an open segment is damaged").with("segment", no))
            }
            // Freed, if that was made durable, but not used again.
            (State::Sealed, Ok(h)) if h.life == known.life => Ok(()),
            (State::Free | State::Sealed, Ok(h)) if is_whole(&h) => {
                self.epoch_seen = self.epoch_seen.max(h.epoch);
                let before = self.touched.len();
                self.scan_segment(disk, superblock, no, h.life, 1)?;
                if known.state == State::Sealed {
                    let touched = self.touched.split_off(before).pop();
                    self.reborn.insert(no, touched.map(|(_, life, end)| (life, end)));
                    self.touched.extend(touched);
                }
                Ok(())
            }
            (State::Free | State::Sealed, _) => self.hear_witnesses(disk, superblock, no),
        }
    }

    /// Looks into a segment whose header is not valid. If a crash tore the header, nothing in it was durable; but if a batch in
    /// it says that it or others like it were, the header was damaged later, and what the segment holds must not be given up.
    fn hear_witnesses(&mut self, disk: &dyn Disk, superblock: &Superblock, no: SegmentNo) -> Result<()> {
        let mut bytes = vec![0; BLOCK];
        for block in 1..superblock.segment_blocks {
            let at = Address::new(no, block);
            disk.read(FileId::Segment(no), byte_of(at), &mut bytes)?;
            let Some(life) = BatchHeader::claimed_life(&bytes, at) else { continue };
            let Ok(header) = read_batch(disk, at, life, superblock.segment_blocks) else { continue };
            if header.epoch == superblock.epoch {
                self.hear(&header);
                self.durable_upto = self.durable_upto.max(header.durable_upto);
            }
        }
        Ok(())
    }

    /// Takes note of the segments a batch frees.
    fn hear(&mut self, header: &BatchHeader) {
        self.queue.extend(self.heard.add(&header.records));
    }

    /// Walks the batches of a segment; behind the first that is not valid, only looks for what later ones say is durable.
    fn scan_segment(
        &mut self,
        disk: &dyn Disk,
        superblock: &Superblock,
        no: SegmentNo,
        life: u64,
        from: u32,
    ) -> Result<()> {
        let mut block = from;
        let mut end = from;
        while block < superblock.segment_blocks {
            let at = Address::new(no, block);
            match read_batch(disk, at, life, superblock.segment_blocks) {
                Ok(header) => {
                    self.epoch_seen = self.epoch_seen.max(header.epoch);
                    block += header.total_blocks();
                    end = block;
                    if header.epoch == superblock.epoch {
                        self.durable_upto = self.durable_upto.max(header.durable_upto);
                        if header.sequence > superblock.checkpoint_sequence {
                            self.hear(&header);
                            self.batches.push(header);
                        }
                    }
                }
                Err(e) if e.kind() == ferry_core::ErrorKind::Corrupt => block += 1,
                Err(e) => return Err(e),
            }
        }
        if end > from {
            self.touched.push((no, life, end));
        }
        Ok(())
    }
}

impl Core {
    /// Replays the tail. Returns what was found, and the epoch the next writes must have.
    pub(crate) fn replay(&mut self, files: &[SegmentNo], damaged_slot: bool) -> Result<(Recovery, u64)> {
        let disk = Arc::clone(&self.disk);
        let tail = if self.superblock.clean {
            Tail { epoch_seen: self.superblock.epoch, ..Tail::default() }
        } else {
            Tail::find(&*disk, &self.superblock, &self.space, files)?
        };
        let mut recovery = Recovery { damaged_superblock_slot: damaged_slot, ..Recovery::default() };
        let mut expected = self.superblock.checkpoint_sequence + 1;
        recovery.reused_segments = tail.reborn.len() as u64;
        self.freed.set_reborn(tail.reborn.clone());
        for (no, life, end) in tail.touched.iter().filter(|(no, ..)| !tail.reborn.contains_key(no)) {
            let entry = self.space.entry(*no);
            entry.used = entry.used.max(*end);
            entry.life = *life;
        }
        for header in &tail.batches {
            let bytes = Self::block_bytes(header.total_blocks());
            if header.sequence < expected {
                return Err(Error::corrupt("two batches of the log have one sequence")
                    .with("address", header.address));
            }
            if header.sequence > expected || recovery.dropped_bytes > 0 {
                recovery.dropped_bytes += bytes;
                continue;
            }
            let records = Record::decode_all(&header.records)?;
            if header.sequence > tail.durable_upto && verify_payload(&*disk, header, &records).is_err() {
                recovery.dropped_bytes += bytes;
                continue;
            }
            self.replay_batch(header, records)?;
            recovery.batches += 1;
            recovery.bytes += bytes;
            expected += 1;
        }
        if expected <= tail.durable_upto {
            return Err(Error::corrupt("a batch of the log that was durable is missing or damaged")
                .with("sequence", expected)
                .with("durable up to", tail.durable_upto)
                .with("store", disk.describe()));
        }
        self.freed.replayed()?;
        recovery.left_behind = self.seal_touched(&tail);
        self.log.next_sequence = expected;
        self.log.durable_upto = expected - 1;
        Ok((recovery, tail.epoch_seen + 1))
    }

    fn replay_batch(&mut self, header: &BatchHeader, records: Vec<Record>) -> Result<()> {
        let entry = self.space.entry(header.address.segment());
        self.log.read_back(header.address.segment());
        entry.last_sequence = entry.last_sequence.max(header.sequence);
        if entry.state == State::Free {
            entry.state = State::Sealed;
        }
        let payload = header.address.block() + header.header_blocks;
        let first = Address::new(header.address.segment(), payload.min(self.superblock.segment_blocks - 1));
        self.apply_all(records, first)
    }

    /// Segments with a tail are not written again in this life. Those whose batches were all given up stay free. `true` where an
    /// open one had something behind its end.
    fn seal_touched(&mut self, tail: &Tail) -> bool {
        let mut left = false;
        for (no, _, _) in &tail.touched {
            let entry = self.space.entry(*no);
            match entry.state {
                State::Open(_) => {
                    left = true;
                    entry.state = State::Sealed;
                    entry.torn = true;
                }
                // Nothing of it was applied.
                State::Free => *entry = crate::space::Segment::default(),
                State::Sealed => entry.torn = true,
            }
        }
        self.space.retake_free();
        left
    }
}
