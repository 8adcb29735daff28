//! The log: batches appended to segments by three heads. Layout: `docs/format/batch.md`.
//!
//! Invariants
//! - At most one batch is open, so the order of records is the order of batch sequences over the heads that have any.
//! - Batches of the index and the cold head have no sequence: nothing in them is replayed. They are durable before a superblock, or
//!   a record of the main head, names them.
//! - A transaction's records and payload are in one batch.
//! - A batch that was begun has its place in its segment: finishing it cannot run out of space.
//! - After a failed write or sync nothing more is written: what reached the disk is unknown until recovery.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use ferry_core::denc::Encoder;
use ferry_core::{Env, Error, ErrorKind, Result};

use crate::address::Address;
use crate::disk::{Disk, FileId, SegmentNo};
use crate::format::{BATCH_FIXED_BYTES, BatchHeader, SegmentHeader, UNSEQUENCED};
use crate::limits::{BATCH_HEADER_BLOCKS_MAX, BATCH_PAYLOAD_BLOCKS, BLOCK};
use crate::record::Record;
use crate::space::{Head, Purpose, Space, State};

/// Bytes of a batch from which it is sent to the medium at once: bulk data, which a later flush need not wait for.
const WRITE_BACK_BYTES: u64 = 512 << 10;

/// What [`Log::write_ahead`] writes.
static ZEROS: [u8; AHEAD_PIECE_BLOCKS as usize * BLOCK] = [0; AHEAD_PIECE_BLOCKS as usize * BLOCK];

/// Bytes of a sync up to which it counts as one of those that [`Log::write_ahead`] is for: a client's few blocks.
const SMALL_SYNC_BYTES: u64 = 32 << 10;

/// How many of them in a row there must be: a command or two does not make it worth while.
const SMALL_SYNCS_MIN: u32 = 8;

/// Blocks written ahead each time: 1 MiB, so that one sync in a hundred or so pays for it.
const AHEAD_BLOCKS: u32 = 256;

/// Blocks written ahead with the lock held: what takes some 50 microseconds.
const AHEAD_PIECE_BLOCKS: u32 = 64;

/// A batch that grows in memory.
#[derive(Debug)]
struct OpenBatch {
    segment: SegmentNo,
    /// First block of the header.
    start: u32,
    header_blocks: u32,
    records: Encoder,
    record_bytes: usize,
    /// `(first block, bytes)` of the payload so far.
    payload: Vec<(u32, Bytes)>,
    payload_blocks: u32,
}

/// Where the next batch of a head whose batches are not replayed will lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Its first header block.
    header: Address,
    /// Its first payload block.
    pub(crate) payload: Address,
    /// Block of the segment behind its last.
    pub(crate) end: u32,
}

impl Room {
    /// Where it begins.
    pub(crate) fn header(self) -> Address {
        self.header
    }

    /// Byte of its file it begins at.
    pub(crate) fn offset(self) -> u64 {
        u64::from(self.header.block()) * BLOCK as u64
    }

    /// The segment it will lie in.
    pub(crate) fn segment(self) -> SegmentNo {
        self.payload.segment()
    }
}

/// The log of a store.
#[derive(Debug)]
pub(crate) struct Log {
    disk: Arc<dyn Disk>,
    store: [u8; 16],
    /// Epoch of the batches written.
    pub(crate) epoch: u64,
    /// Sequence of the next batch.
    pub(crate) next_sequence: u64,
    /// Last batch known durable.
    pub(crate) durable_upto: u64,
    open: Option<OpenBatch>,
    heads: [Option<SegmentNo>; 3],
    unsynced: BTreeSet<SegmentNo>,
    /// Segments of the index head with something un-synced: only checkpoints need them durable.
    unsynced_index: BTreeSet<SegmentNo>,
    /// Segments the index head has had since the last checkpoint began.
    pub(crate) of_index: BTreeSet<SegmentNo>,
    /// Bytes appended to the main head since the last sync of it began.
    since_sync: u64,
    /// Small syncs of the main head, in a row.
    small_syncs: u32,
    /// Blocks still to be written ahead of the main head.
    ahead_left: u32,
    /// Whether the main head went on to another segment since somebody asked.
    pub(crate) rolled: bool,
    /// Set by the first failed write or sync.
    pub(crate) poisoned: bool,
    /// Bytes appended since the last checkpoint.
    pub(crate) tail_bytes: u64,
    /// Bytes appended since open.
    pub(crate) written_bytes: u64,
}

impl Log {
    /// The log of `store`, whose last batch had the sequence `sequence`. Heads are taken from the open segments of `space`.
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        store: [u8; 16],
        epoch: u64,
        sequence: u64,
        space: &Space,
    ) -> Self {
        let mut heads = [None; 3];
        for (no, segment) in space.iter() {
            if let State::Open(head) = segment.state {
                heads[head as usize] = Some(no);
            }
        }
        Self {
            disk,
            store,
            epoch,
            next_sequence: sequence + 1,
            durable_upto: sequence,
            open: None,
            heads,
            unsynced: BTreeSet::new(),
            unsynced_index: BTreeSet::new(),
            of_index: BTreeSet::new(),
            since_sync: 0,
            small_syncs: 0,
            ahead_left: 0,
            rolled: false,
            poisoned: false,
            tail_bytes: 0,
            written_bytes: 0,
        }
    }

    /// Fails if an earlier failure made the log unusable.
    pub(crate) fn check(&self) -> Result<()> {
        if self.poisoned {
            return Err(Error::new(
                ErrorKind::Poisoned,
                "an earlier write to the store failed; open it again to recover",
            )
            .with("store", self.disk.describe()));
        }
        Ok(())
    }

    /// Appends a transaction. Its payload lies in consecutive blocks from the address returned.
    ///
    /// # Errors
    /// `NoSpace` (28) with nothing appended; `Poisoned`; `Invalid` where it is larger than a segment.
    pub(crate) fn append(
        &mut self,
        space: &mut Space,
        env: &Env,
        purpose: Purpose,
        records: &[Record],
        payload: Vec<Bytes>,
    ) -> Result<Address> {
        self.check()?;
        let mut encoded = Encoder::new();
        records.iter().for_each(|r| r.encode(&mut encoded));
        let encoded = encoded.finish();
        let blocks: usize = payload.iter().map(|p| p.len() / BLOCK).sum();
        let blocks =
            u32::try_from(blocks).map_err(|_| Error::invalid("a transaction is larger than a segment"))?;
        self.reserve(space, env, purpose, encoded.len(), blocks)?;
        let batch = self.open.as_mut().expect("a batch was just reserved");
        let first = batch.start + batch.header_blocks + batch.payload_blocks;
        batch.records.raw(&encoded);
        batch.record_bytes += encoded.len();
        let mut at = first;
        for part in payload {
            assert!(part.len().is_multiple_of(BLOCK), "payload is whole blocks");
            let n = u32::try_from(part.len() / BLOCK).expect("bounded above");
            batch.payload.push((at, part));
            at += n;
        }
        batch.payload_blocks += blocks;
        let address = Address::new(batch.segment, first.min(space.segment_blocks() - 1));
        if batch.payload_blocks >= BATCH_PAYLOAD_BLOCKS {
            self.seal(space)?;
        }
        Ok(address)
    }

    /// Blocks left in a head's segment; 0 where there is none.
    pub(crate) fn left(&self, space: &Space, head: Head) -> u32 {
        let no = self.heads[head as usize];
        no.and_then(|no| space.get(no)).map_or(0, |s| space.segment_blocks() - s.used)
    }

    /// Makes room for a batch of the index or the cold head and says where it will lie, if it is the next one there.
    ///
    /// # Errors
    /// `NoSpace` (28) with nothing changed; `Invalid` where it is larger than a segment.
    pub(crate) fn room(
        &mut self,
        space: &mut Space,
        env: &Env,
        head: Head,
        record_bytes: usize,
        payload_blocks: usize,
    ) -> Result<Room> {
        self.check()?;
        let header_blocks = BatchHeader::blocks_for(record_bytes);
        let blocks = u32::try_from(payload_blocks).map_err(|_| Error::invalid("larger than a segment"))?;
        let total = header_blocks + blocks;
        if header_blocks > BATCH_HEADER_BLOCKS_MAX || total > space.segment_blocks() - 1 {
            return Err(Error::invalid("a batch is larger than a segment").with("blocks", total));
        }
        let no = match self.heads[head as usize] {
            Some(no) if self.left(space, head) >= total => no,
            before => {
                let fresh = self.open_segment(space, env, (head, Purpose::Reclaim))?;
                if let Some(old) = before {
                    space.entry(old).state = State::Sealed;
                }
                self.heads[head as usize] = Some(fresh);
                if head == Head::Index {
                    self.of_index.insert(fresh);
                }
                fresh
            }
        };
        let start = space.get(no).map_or(1, |s| s.used);
        let payload = Address::new(no, start + header_blocks);
        Ok(Room { header: Address::new(no, start), payload, end: start + total })
    }

    /// Writes a batch of the index head where [`Log::room`] said.
    pub(crate) fn write_index(
        &mut self,
        space: &mut Space,
        room: Room,
        records: &[Record],
        payload: Vec<Bytes>,
    ) -> Result<()> {
        let parts = self.unsequenced(space, room, records, payload);
        self.unsynced_index.insert(room.segment());
        let written = self.disk.write(FileId::Segment(room.segment()), room.offset(), &parts);
        self.wrote_unsequenced(room, &parts, &written);
        written
    }

    /// The bytes of a batch that is not replayed, to be written where [`Log::room`] said; its place is taken from now on.
    pub(crate) fn unsequenced(
        &self,
        space: &mut Space,
        room: Room,
        records: &[Record],
        payload: Vec<Bytes>,
    ) -> Vec<Bytes> {
        let mut encoded = Encoder::new();
        records.iter().for_each(|r| r.encode(&mut encoded));
        let entry = space.entry(room.segment());
        entry.used = room.end;
        entry.last_sequence = self.next_sequence;
        let header = BatchHeader {
            address: room.header,
            header_blocks: room.payload.block() - room.header.block(),
            payload_blocks: room.end - room.payload.block(),
            life: entry.life,
            epoch: self.epoch,
            sequence: UNSEQUENCED,
            durable_upto: self.durable_upto,
            records: encoded.finish().to_vec(),
        };
        let mut parts = vec![Bytes::from(header.encode())];
        parts.extend(payload);
        parts
    }

    /// Counts a batch that is not replayed, or takes note that writing it failed. It is no part of the tail.
    pub(crate) fn wrote_unsequenced(&mut self, room: Room, parts: &[Bytes], result: &Result<()>) {
        self.poisoned |= result.is_err();
        let bytes: u64 = parts.iter().map(|p| p.len() as u64).sum();
        self.written_bytes += bytes;
        if bytes >= WRITE_BACK_BYTES {
            self.disk.begin_write_back(FileId::Segment(room.segment()), room.offset(), bytes);
        }
    }

    /// Says that a checkpoint begins: [`Log::of_index`] is the segment of the index head now and those it has from now on.
    pub(crate) fn begin_index(&mut self) {
        self.of_index = self.heads[Head::Index as usize].into_iter().collect();
    }

    /// Makes sure the open batch has room for a transaction: goes on with it, or begins another.
    fn reserve(
        &mut self,
        space: &mut Space,
        env: &Env,
        purpose: Purpose,
        record_bytes: usize,
        payload_blocks: u32,
    ) -> Result<()> {
        if let Some(batch) = &self.open {
            let room = batch.header_blocks as usize * BLOCK - BATCH_FIXED_BYTES - batch.record_bytes;
            let end = batch.start + batch.header_blocks + batch.payload_blocks + payload_blocks;
            if record_bytes <= room && end <= space.segment_blocks() {
                return Ok(());
            }
        }
        let header_blocks = BatchHeader::blocks_for(record_bytes);
        let total = header_blocks + payload_blocks;
        if header_blocks > BATCH_HEADER_BLOCKS_MAX || total > space.segment_blocks() - 1 {
            return Err(Error::invalid("a transaction is larger than a segment").with("blocks", total));
        }
        let segment = match self.heads[Head::Main as usize] {
            Some(no) if self.end_of(space, no) + total <= space.segment_blocks() => no,
            _ => {
                // Nothing is sealed before the new segment is there: running out of space changes nothing.
                let fresh = self.open_segment(space, env, (Head::Main, purpose))?;
                self.seal(space)?;
                if let Some(old) = self.heads[Head::Main as usize].replace(fresh) {
                    space.entry(old).state = State::Sealed;
                }
                fresh
            }
        };
        self.seal(space)?;
        let start = space.get(segment).map_or(1, |s| s.used);
        self.open = Some(OpenBatch {
            segment,
            start,
            header_blocks,
            records: Encoder::new(),
            record_bytes: 0,
            payload: Vec::new(),
            payload_blocks: 0,
        });
        Ok(())
    }

    /// First block of `no` behind what is written and what the open batch will take.
    fn end_of(&self, space: &Space, no: SegmentNo) -> u32 {
        match &self.open {
            Some(b) if b.segment == no => b.start + b.header_blocks + b.payload_blocks,
            _ => space.get(no).map_or(u32::MAX / 2, |s| s.used),
        }
    }

    fn open_segment(
        &mut self,
        space: &mut Space,
        env: &Env,
        (head, purpose): (Head, Purpose),
    ) -> Result<SegmentNo> {
        let life = env.rng.next_u64();
        let no = space.open(&*self.disk, head, purpose, life)?;
        let header = SegmentHeader {
            store: self.store,
            segment: no,
            blocks: space.segment_blocks(),
            life,
            epoch: self.epoch,
        };
        match head {
            Head::Main => {
                self.unsynced.insert(no);
                self.rolled = true;
            }
            Head::Index => {
                self.unsynced_index.insert(no);
            }
            // Whoever writes there syncs it.
            Head::Cold => {}
        }
        self.write(no, 0, &[Bytes::from(header.encode())])?;
        Ok(no)
    }

    fn write(&mut self, segment: SegmentNo, block: u32, parts: &[Bytes]) -> Result<()> {
        let result = self.disk.write(FileId::Segment(segment), u64::from(block) * BLOCK as u64, parts);
        if result.is_err() {
            self.poisoned = true;
        }
        let bytes: u64 = parts.iter().map(|p| p.len() as u64).sum();
        self.tail_bytes += bytes;
        self.written_bytes += bytes;
        self.since_sync += bytes;
        if bytes >= WRITE_BACK_BYTES {
            self.disk.begin_write_back(FileId::Segment(segment), u64::from(block) * BLOCK as u64, bytes);
        }
        result
    }

    /// Writes the open batch out, if there is one.
    pub(crate) fn seal(&mut self, space: &mut Space) -> Result<()> {
        self.check()?;
        let Some(batch) = self.open.take() else { return Ok(()) };
        let life = space.get(batch.segment).map_or(0, |s| s.life);
        let header = BatchHeader {
            address: Address::new(batch.segment, batch.start),
            header_blocks: batch.header_blocks,
            payload_blocks: batch.payload_blocks,
            life,
            epoch: self.epoch,
            sequence: self.next_sequence,
            durable_upto: self.durable_upto,
            records: batch.records.finish().to_vec(),
        };
        self.next_sequence += 1;
        let entry = space.entry(batch.segment);
        entry.used = batch.start + header.total_blocks();
        entry.last_sequence = header.sequence;
        let mut parts = vec![Bytes::from(header.encode())];
        parts.extend(batch.payload.into_iter().map(|(_, bytes)| bytes));
        self.unsynced.insert(batch.segment);
        self.write(batch.segment, batch.start, &parts)
    }

    /// The block at `address` where it is still in memory.
    pub(crate) fn pending(&self, address: Address) -> Option<Bytes> {
        let batch = self.open.as_ref().filter(|b| b.segment == address.segment())?;
        let i = batch.payload.partition_point(|(first, _)| *first <= address.block()).checked_sub(1)?;
        let (first, bytes) = &batch.payload[i];
        let from = (address.block() - first) as usize * BLOCK;
        (from < bytes.len()).then(|| bytes.slice(from..from + BLOCK))
    }

    /// Last batch that was written out.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.next_sequence - 1
    }

    /// Whether the main head's segment has a batch's worth of room left, so that no new one is needed soon.
    pub(crate) fn has_room(&self, space: &Space) -> bool {
        self.heads[Head::Main as usize]
            .is_some_and(|no| self.end_of(space, no) + 2 * BATCH_PAYLOAD_BLOCKS < space.segment_blocks())
    }

    /// Says that a batch was read from a segment: it may be there without being durable.
    pub(crate) fn read_back(&mut self, no: SegmentNo) {
        self.unsynced.insert(no);
    }

    /// Writes zeros behind the main head, where clients sync every few blocks and the head comes to where its file was never
    /// written: whether there are more to write. On most file systems a sync that writes a block for the first time must write the
    /// file's allocation too, which doubles its cost; so one sync does it for the next hundred. What is appended later is written over
    /// the zeros, and what was appended before is never touched.
    ///
    /// # Errors
    /// Those of the disk; the log is poisoned.
    pub(crate) fn write_ahead(&mut self, space: &mut Space) -> Result<bool> {
        self.check()?;
        let Some(no) = self.heads[Head::Main as usize] else { return Ok(false) };
        let end = self.end_of(space, no);
        let from = space.written(no).max(end);
        if self.ahead_left == 0 {
            let is_near = u64::from(from - end) * BLOCK as u64 <= SMALL_SYNC_BYTES;
            if self.small_syncs < SMALL_SYNCS_MIN || !is_near {
                return Ok(false);
            }
            self.ahead_left = AHEAD_BLOCKS;
        }
        let blocks = self.ahead_left.min(AHEAD_PIECE_BLOCKS).min(space.segment_blocks().saturating_sub(from));
        self.ahead_left = if blocks == 0 { 0 } else { self.ahead_left - blocks };
        if blocks > 0 {
            let zeros = Bytes::from_static(&ZEROS).slice(..blocks as usize * BLOCK);
            let written = self.disk.write(
                FileId::Segment(no),
                u64::from(from) * BLOCK as u64,
                std::slice::from_ref(&zeros),
            );
            self.poisoned |= written.is_err();
            self.written_bytes += zeros.len() as u64;
            written?;
            space.set_written(no, from + blocks);
        }
        Ok(self.ahead_left > 0)
    }

    /// Takes the segments a sync must cover.
    pub(crate) fn take_unsynced(&mut self) -> BTreeSet<SegmentNo> {
        match std::mem::take(&mut self.since_sync) {
            0 => {}
            1..=SMALL_SYNC_BYTES => self.small_syncs = self.small_syncs.saturating_add(1),
            _ => self.small_syncs = 0,
        }
        std::mem::take(&mut self.unsynced)
    }

    /// Takes the segments of the index head a checkpoint must sync.
    pub(crate) fn take_unsynced_index(&mut self) -> BTreeSet<SegmentNo> {
        std::mem::take(&mut self.unsynced_index)
    }

    /// Leaves the heads behind: the next batch begins a new segment. After recovery, whose tail may be torn.
    pub(crate) fn abandon_heads(&mut self, space: &mut Space) {
        for head in &mut self.heads {
            if let Some(no) = head.take() {
                space.entry(no).state = State::Sealed;
            }
        }
    }
}
