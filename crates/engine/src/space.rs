//! Which segment is in what state, and how much of it is in use. Layout: `docs/format/checkpoint.md`.
//!
//! Invariants
//! - `references` counts the table entries of all versions of all objects that point into the segment; `nodes` the index
//!   pages of the current tree (and the blocks of the segment table) in it. A segment where both are 0 holds nothing.
//! - A segment emptied since the last checkpoint is not used again before the next one is durable, or a record that frees it is
//!   (`freed.rs`).

use std::collections::{BTreeMap, BTreeSet};

use ferry_core::denc::{Decoder, Encoder};
use ferry_core::{Error, ErrorKind, Result};

use crate::address::{Address, Block};
use crate::disk::{Disk, FileId, SegmentNo};
use crate::limits::{BLOCK, RESERVE_PERCENT, RESERVE_SEGMENTS};

/// What a segment is for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing; its file may be there for recycling.
    Free,
    /// A log head appends to it.
    Open(Head),
    /// Full, or left behind.
    Sealed,
}

/// A place where the log grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Head {
    /// What clients write.
    Main,
    /// What the cleaner keeps: colder data.
    Cold,
    /// What checkpoints write: pages that die together at a later checkpoint.
    Index,
}

/// Who asks for space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A client's new data: leaves the reserve alone.
    Client,
    /// Small changes without data: may take half of the reserve.
    Metadata,
    /// Deleting, cleaning, checkpoints: what gives space back.
    Reclaim,
}

/// One segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// What it is for now.
    pub(crate) state: State,
    /// Table entries that point into it.
    pub(crate) references: u32,
    /// Index pages and segment table blocks in it.
    pub(crate) nodes: u32,
    /// Blocks written, header included.
    pub(crate) used: u32,
    /// Random number of its present life.
    pub(crate) life: u64,
    /// Sequence of the last batch written to it: its age.
    pub(crate) last_sequence: u64,
    /// Whether recovery left something half-written in it.
    pub(crate) torn: bool,
}

impl Default for Segment {
    fn default() -> Self {
        Self { state: State::Free, references: 0, nodes: 0, used: 0, life: 0, last_sequence: 0, torn: false }
    }
}

impl Segment {
    /// Whether it holds nothing and waits for a checkpoint to free it.
    fn is_empty(&self) -> bool {
        self.state == State::Sealed && self.references == 0 && self.nodes == 0
    }
}

/// Bytes of an entry of the segment table on disk.
const ENTRY_BYTES: usize = 32;

/// All segments.
#[derive(Debug)]
pub(crate) struct Space {
    segments: Vec<Segment>,
    /// Free and usable; the table knows them.
    free: BTreeSet<SegmentNo>,
    /// Free segments whose file exists.
    files: BTreeSet<SegmentNo>,
    /// A free segment whose file is being removed.
    removing: Option<SegmentNo>,
    /// Blocks of files, from the first one, that were written in this life of the process, be it with zeros.
    written: BTreeMap<SegmentNo, u32>,
    segment_blocks: u32,
    capacity_bytes: u64,
}

impl Space {
    /// No segments yet.
    pub(crate) fn new(segment_blocks: u32, capacity_bytes: u64) -> Self {
        Self {
            segments: Vec::new(),
            free: BTreeSet::new(),
            files: BTreeSet::new(),
            removing: None,
            written: BTreeMap::new(),
            segment_blocks,
            capacity_bytes,
        }
    }

    /// Blocks of a segment's file, from the first one, that are known to be written.
    pub(crate) fn written(&self, no: SegmentNo) -> u32 {
        let used = self.get(no).map_or(0, |s| s.used);
        self.written.get(&no).map_or(used, |written| used.max(*written))
    }

    /// Says that so many blocks of a segment's file are written.
    pub(crate) fn set_written(&mut self, no: SegmentNo, blocks: u32) {
        self.written.insert(no, blocks);
    }

    /// Bytes of a segment.
    pub(crate) fn segment_bytes(&self) -> u64 {
        u64::from(self.segment_blocks) * BLOCK as u64
    }

    /// Blocks of a segment.
    pub(crate) fn segment_blocks(&self) -> u32 {
        self.segment_blocks
    }

    /// The segments as they are now.
    pub(crate) fn segments(&self) -> Vec<Segment> {
        self.segments.clone()
    }

    /// The table a checkpoint writes: the segments as they were when it began, but the index pages and the segments they are
    /// written to (`of_index`) as they are now.
    pub(crate) fn table_of(&self, before: &[Segment], of_index: &BTreeSet<SegmentNo>) -> Vec<Segment> {
        self.iter()
            .map(|(no, now)| {
                if of_index.contains(&no) {
                    return *now;
                }
                let then = before.get(Self::index(no)).copied().unwrap_or_default();
                Segment { nodes: now.nodes, ..then }
            })
            .collect()
    }

    /// Bytes of the table, should one more segment be opened.
    pub(crate) fn table_bytes_max(&self) -> usize {
        (self.segments.len() + 2) * ENTRY_BYTES
    }

    /// A table's bytes.
    pub(crate) fn encode(table: &[Segment]) -> Vec<u8> {
        let mut e = Encoder::new();
        for s in table {
            e.u8(match s.state {
                State::Free => 0,
                State::Open(Head::Main) => 1,
                State::Open(Head::Cold) => 2,
                State::Sealed => 3,
                State::Open(Head::Index) => 4,
            });
            e.bool(s.torn);
            e.raw(&[0; 2]);
            e.u32(s.references);
            e.u32(s.nodes);
            e.u32(s.used);
            e.u64(s.life);
            e.u64(s.last_sequence);
        }
        e.finish().to_vec()
    }

    /// Reads the table of a checkpoint.
    ///
    /// # Errors
    /// `Corrupt` where it is none.
    pub(crate) fn decode(bytes: &[u8], segment_blocks: u32, capacity_bytes: u64) -> Result<Self> {
        let mut space = Self::new(segment_blocks, capacity_bytes);
        if !bytes.len().is_multiple_of(ENTRY_BYTES) {
            return Err(Error::corrupt("the segment table has a wrong length"));
        }
        let mut d = Decoder::new(bytes);
        while !d.rest().is_empty() {
            let state = match d.u8()? {
                0 => State::Free,
                1 => State::Open(Head::Main),
                2 => State::Open(Head::Cold),
                3 => State::Sealed,
                4 => State::Open(Head::Index),
                other => return Err(Error::corrupt("unknown state of a segment").with("state", other)),
            };
            let torn = d.bool()?;
            d.raw(2)?;
            let (references, nodes, used) = (d.u32()?, d.u32()?, d.u32()?);
            let (life, last_sequence) = (d.u64()?, d.u64()?);
            if used > segment_blocks {
                return Err(Error::corrupt("a segment is fuller than it can be"));
            }
            space.segments.push(Segment { state, references, nodes, used, life, last_sequence, torn });
            if state == State::Free {
                let no = space.last();
                space.free.insert(no);
            }
        }
        Ok(space)
    }

    fn last(&self) -> SegmentNo {
        SegmentNo(u32::try_from(self.segments.len()).expect("32-bit segment numbers"))
    }

    fn index(no: SegmentNo) -> usize {
        no.0 as usize - 1
    }

    /// All segments with their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SegmentNo, &Segment)> {
        (1..).map(SegmentNo).zip(&self.segments)
    }

    /// One segment, if the table knows it.
    pub(crate) fn get(&self, no: SegmentNo) -> Option<&Segment> {
        self.segments.get(Self::index(no))
    }

    /// One segment, the table extended to it if need be.
    pub(crate) fn entry(&mut self, no: SegmentNo) -> &mut Segment {
        while self.segments.len() < no.0 as usize {
            self.segments.push(Segment::default());
            let last = self.last();
            self.free.insert(last);
        }
        &mut self.segments[Self::index(no)]
    }

    /// Finds the free segments again, after recovery changed states.
    pub(crate) fn retake_free(&mut self) {
        self.free = self.iter().filter(|(_, s)| s.state == State::Free).map(|(no, _)| no).collect();
    }

    /// Says which files of free segments are there to be used, at open.
    pub(crate) fn set_files(&mut self, files: impl IntoIterator<Item = SegmentNo>) {
        self.files = files.into_iter().collect();
    }

    /// Whether `no` is free in the table, or unknown to it.
    pub(crate) fn is_free(&self, no: SegmentNo) -> bool {
        self.get(no).is_none_or(|s| s.state == State::Free)
    }

    /// Counts a table entry that points to `block`.
    pub(crate) fn add(&mut self, block: Block) -> Result<()> {
        if let Some(address) = block.address() {
            let s = self.at(address)?;
            s.references += 1;
        }
        Ok(())
    }

    /// Counts one less.
    pub(crate) fn sub(&mut self, block: Block) -> Result<()> {
        if let Some(address) = block.address() {
            let s = self.at(address)?;
            s.references = s.references.checked_sub(1).ok_or_else(|| {
                Error::corrupt("a segment has fewer references than it lost").with("address", address)
            })?;
        }
        Ok(())
    }

    /// Counts an index page at `address`.
    pub(crate) fn add_node(&mut self, address: Address) -> Result<()> {
        self.at(address)?.nodes += 1;
        Ok(())
    }

    /// Counts one less.
    pub(crate) fn sub_node(&mut self, address: Address) -> Result<()> {
        let s = self.at(address)?;
        s.nodes = s.nodes.checked_sub(1).ok_or_else(|| {
            Error::corrupt("a segment has fewer index pages than it lost").with("address", address)
        })?;
        Ok(())
    }

    fn at(&mut self, address: Address) -> Result<&mut Segment> {
        self.segments.get_mut(Self::index(address.segment())).ok_or_else(|| {
            Error::corrupt("an address in a segment that does not exist").with("address", address)
        })
    }

    /// Segments kept for what gives space back.
    pub(crate) fn reserve(&self) -> u32 {
        let by_share = self.capacity_bytes / self.segment_bytes() * u64::from(RESERVE_PERCENT) / 100;
        RESERVE_SEGMENTS.max(u32::try_from(by_share).unwrap_or(u32::MAX))
    }

    /// Segments that could be opened now, the reserve included.
    pub(crate) fn available(&self, disk: &dyn Disk) -> Result<u64> {
        let leaving = self.removing.iter().filter(|no| self.get(**no).is_some()).count();
        let in_use = self.segments.len() as u64 - self.free.len() as u64 - leaving as u64;
        let files = self.files.len() + usize::from(self.removing.is_some());
        let of_medium = disk.free_bytes()? / self.segment_bytes() + files as u64;
        if self.capacity_bytes == 0 {
            return Ok(of_medium);
        }
        Ok((self.capacity_bytes / self.segment_bytes()).saturating_sub(in_use).min(of_medium))
    }

    /// Whether emptied segments wait for a checkpoint to become usable.
    pub(crate) fn has_empty(&self) -> bool {
        self.segments.iter().any(Segment::is_empty)
    }

    /// Opens a segment for `head`: recycles a file or makes one. The header is not written yet.
    ///
    /// # Errors
    /// `NoSpace` (28): nothing changed.
    pub(crate) fn open(
        &mut self,
        disk: &dyn Disk,
        head: Head,
        purpose: Purpose,
        life: u64,
    ) -> Result<SegmentNo> {
        let available = self.available(disk)?;
        let needed = match purpose {
            Purpose::Client => u64::from(self.reserve()) + 1,
            Purpose::Metadata => u64::from(self.reserve() / 2) + 1,
            Purpose::Reclaim => 1,
        };
        if available < needed {
            return Err(Error::new(ErrorKind::NoSpace, "the store is full").with("store", disk.describe()));
        }
        let recycled = self.files.first().copied();
        let no = match recycled {
            Some(no) => no,
            None => self.free.first().copied().unwrap_or(SegmentNo(self.last().0 + 1)),
        };
        if recycled.is_none() {
            disk.create(FileId::Segment(no), self.segment_bytes())?;
            self.written.remove(&no);
        }
        let segment = Segment { state: State::Open(head), life, used: 1, ..Segment::default() };
        *self.entry(no) = segment;
        self.free.remove(&no);
        self.files.remove(&no);
        Ok(no)
    }

    /// The segments that hold nothing and wait for a checkpoint.
    pub(crate) fn empty(&self) -> Vec<SegmentNo> {
        Self::empty_of(&self.segments)
    }

    /// The segments of a table that hold nothing.
    pub(crate) fn empty_of(table: &[Segment]) -> Vec<SegmentNo> {
        (1..).map(SegmentNo).zip(table).filter(|(_, s)| s.is_empty()).map(|(no, _)| no).collect()
    }

    /// Marks segments free in a table.
    pub(crate) fn free_in(table: &mut [Segment], empty: &[SegmentNo]) {
        for no in empty {
            table[Self::index(*no)] = Segment::default();
        }
    }

    /// Marks segments free in the table a checkpoint writes; they become usable through [`Space::release`].
    pub(crate) fn mark_free(&mut self, empty: &[SegmentNo]) {
        for no in empty {
            self.set_written(*no, self.written(*no));
            *self.entry(*no) = Segment::default();
        }
    }

    /// Makes segments usable again, once the checkpoint that frees them is durable.
    pub(crate) fn release(&mut self, empty: &[SegmentNo]) {
        self.free.extend(empty);
        self.files.extend(empty);
    }

    /// Takes a free segment whose file is to be removed, where there are more than `keep`: nobody opens it before
    /// [`Space::removed`], and nobody misses its room meanwhile.
    pub(crate) fn take_spare(&mut self, keep: usize) -> Option<SegmentNo> {
        if self.files.len() <= keep || self.removing.is_some() {
            return None;
        }
        let no = self.files.pop_last()?;
        self.free.remove(&no);
        self.written.remove(&no);
        self.removing = Some(no);
        Some(no)
    }

    /// Says that the file is gone, or that it stays for whoever opens its segment next.
    pub(crate) fn removed(&mut self) {
        // One that the table does not know (an opening that was cut off made its file) is no segment once its file is gone.
        let known = self.removing.take().filter(|no| self.get(*no).is_some());
        self.free.extend(known);
    }

    /// Takes a free segment without a file, for one to be made ahead of need: nobody else opens it meanwhile.
    pub(crate) fn take_unmade(&mut self) -> SegmentNo {
        let found = self.free.iter().find(|no| !self.files.contains(no)).copied();
        let no = found.unwrap_or(SegmentNo(self.last().0 + 1));
        self.entry(no);
        self.free.remove(&no);
        no
    }

    /// Gives back a segment that was taken and whose file was not made.
    pub(crate) fn give_back(&mut self, no: SegmentNo) {
        self.free.insert(no);
    }

    /// Free segments whose files are ready.
    pub(crate) fn ready(&self) -> usize {
        self.files.len()
    }

    /// Says that the file of a free segment is there now, and written from end to end.
    pub(crate) fn add_file(&mut self, no: SegmentNo) {
        self.set_written(no, self.segment_blocks);
        self.free.insert(no);
        self.files.insert(no);
    }

    /// Segments that are not free.
    pub(crate) fn in_use(&self) -> u64 {
        self.segments.iter().filter(|s| s.state != State::Free).count() as u64
    }

    /// Blocks written in segments that are not free, and blocks of them in use.
    pub(crate) fn usage(&self) -> (u64, u64) {
        self.segments.iter().filter(|s| s.state != State::Free).fold((0, 0), |(used, live), s| {
            (used + u64::from(s.used), live + u64::from((s.references + s.nodes).min(s.used)))
        })
    }
}
