//! The cleaner: takes segments that are mostly dead and writes what lives in them elsewhere.
//!
//! Invariants
//! - A block is live if a table entry points at it. Who may own one is found from the segment itself (the records that wrote
//!   it) and from the notes about sharers; each is looked at before it is believed.
//! - Moving is a record like any other, so a crash at any point leaves either place right.
//! - A cleaned segment becomes free through the next checkpoint.

use std::collections::{BTreeMap, VecDeque};
use std::sync::MutexGuard;

use bytes::Bytes;
use ferry_core::{Error, ErrorKind, Result};

use crate::address::{Address, Block};
use crate::core::Core;
use crate::disk::{FileId, SegmentNo};
use crate::engine::Engine;
use crate::index::split;
use crate::key::{Key, KeyReader, Tag};
use crate::limits::BLOCK;
use crate::read::read_run;
use crate::record::{BlockRef, HEAD, Record};
use crate::recover::read_batch;
use crate::space::{Head, Purpose, Segment, State};
use crate::tree::After;

/// Blocks one step moves: 1 MiB, so that a writer never waits for more.
const STEP_BLOCKS: usize = 256;

/// Free segments beyond the reserve below which the cleaner works. Few: what is kept free is not used, and the fuller the rest
/// is the more a segment costs to clean. A step moves more than a writer writes meanwhile.
const LOW_WATER_SEGMENTS: u64 = 3;

/// Share of dead blocks (hundredths of those used) above which the cleaner works though there is room. Above what a store
/// kept 70 % live can have, so that such a one is cleaned only for need.
const DEAD_PERCENT: u64 = 40;

/// Emptied segments that are worth a checkpoint by themselves.
const EMPTY_SEGMENTS: u64 = 4;

/// Free segments the cleaner leaves to the checkpoint that must follow it.
const KEPT_FREE: u64 = 2;

/// Victims emptied in a row without one segment fewer in use, after which there is nothing to be gained.
const FRUITLESS_MAX: u32 = 40;

/// Dead segments' worth that is not worth cleaning for.
const DEAD_SEGMENTS: u64 = 4;

/// A live block of a victim: everyone who points at it, and the CRC.
pub(crate) type Live = (Vec<BlockRef>, Address, u32);

/// The victim that is being emptied, and what was found to live in it. Looked at again before it is moved.
#[derive(Debug)]
pub(crate) struct Cleaning {
    segment: SegmentNo,
    live: VecDeque<Live>,
}

impl Engine {
    /// Cleans a little if the store needs it. `true` where there is more to do.
    pub(crate) fn clean_step(&self, turn: &MutexGuard<'_, ()>) -> Result<bool> {
        let victim = {
            let mut core = self.lock_behind();
            if core.read_only || core.log.poisoned {
                return Ok(false);
            }
            core.release_retired()?;
            let frees = core.frees_enough()?;
            if frees && core.changed {
                core.begin_checkpoint()?;
                return Ok(true);
            }
            if !core.wants_cleaning()? || core.space.available(&*self.disk)? <= KEPT_FREE {
                return Ok(false);
            }
            core.cleaning.as_ref().map(|c| c.segment).or_else(|| core.victim())
        };
        let Some(no) = victim else { return Ok(false) };
        self.clean_segment(turn, no)?;
        Ok(true)
    }

    /// Empties the segment whose cleaning pays best, needed or not. `false` where no segment has a twentieth of it dead.
    ///
    /// Not for a loop until `false`: emptying ends in checkpoints, whose own pages make new dead ones.
    ///
    /// # Errors
    /// As [`Engine::sync`].
    pub fn clean_one(&self) -> Result<bool> {
        let turn = self.turn();
        self.free_emptied(&turn)?;
        let victim = {
            let core = self.lock_behind();
            core.check_writable()?;
            core.victim()
        };
        let Some(no) = victim else { return Ok(false) };
        while self.clean_segment(&turn, no)? {}
        Ok(true)
    }

    /// Frees at least `wanted` segments beyond the reserve, if that is possible at all.
    pub(crate) fn reclaim(&self, wanted: u64) -> Result<()> {
        while self.trim_step()? {}
        let turn = self.turn();
        // Segments with something in them, at the fewest so far, and victims emptied since without getting fewer.
        let (mut fewest, mut fruitless) = (u64::MAX, 0);
        loop {
            let (available, empty, enough, victim) = {
                let mut core = self.lock();
                core.release_retired()?;
                let available = core.space.available(&*self.disk)?;
                let empty = core.space.empty().len() as u64;
                let enough = u64::from(core.space.reserve()) + wanted;
                if available > enough
                    || core.hopeless.is_some_and(|h| empty == 0 && core.space.usage().1 >= h)
                {
                    return Ok(());
                }
                let holding = core.space.in_use() - empty;
                fruitless = if holding < fewest { 0 } else { fruitless + 1 };
                fewest = fewest.min(holding);
                (available, empty, enough, core.victim().filter(|_| fruitless < FRUITLESS_MAX))
            };
            match victim {
                Some(no) if available > KEPT_FREE && available + empty <= enough + EMPTY_SEGMENTS => {
                    while self.clean_segment(&turn, no)? {}
                }
                _ if empty > 0 => self.checkpoint_in(&turn)?,
                _ => {
                    // What is dead is too thinly spread to pay: only removals help. Not tried again before there were some.
                    let mut core = self.lock();
                    core.hopeless = Some(core.space.usage().1);
                    return Ok(());
                }
            }
        }
    }

    /// Lets a checkpoint free the segments that hold nothing.
    fn free_emptied(&self, turn: &MutexGuard<'_, ()>) -> Result<bool> {
        let due = self.lock_behind().space.has_empty();
        if due {
            self.checkpoint_in(turn)?;
        }
        Ok(due)
    }

    /// Moves up to a step's worth of live blocks out of a segment. `true` where more are left in it.
    pub(crate) fn clean_segment(&self, turn: &MutexGuard<'_, ()>, no: SegmentNo) -> Result<bool> {
        // Emptying one marks index pages, which a checkpoint that is being written has frozen; and both need the same room.
        while self.checkpoint_piece(turn)? {}
        let mut core = self.lock_behind();
        core.check_writable()?;
        core.log_seal()?;
        core.settle_all()?;
        if core.cleaning.as_ref().is_none_or(|c| c.segment != no || c.live.is_empty()) {
            let mut live = core.live_blocks(no)?;
            if live.is_empty() {
                core.cleaning = None;
                core.evict_pages(no)?;
                core.counters.cleaned_segments += 1;
                core.set_cleaned(no);
                return Ok(false);
            }
            // In the order of the objects, so that what was written scattered is read back together.
            live.sort_by(|a, b| a.0[0].cmp(&b.0[0]));
            core.cleaning = Some(Cleaning { segment: no, live: live.into() });
        }
        let step = core.next_moves(STEP_BLOCKS)?;
        let written = core.log.written_bytes;
        core.move_blocks(&step)?;
        core.log_seal()?;
        core.counters.cleaner_bytes += core.log.written_bytes - written;
        if core.checkpoint_due() {
            core.begin_checkpoint()?;
        }
        Ok(true)
    }
}

impl Core {
    /// Whether segments should be emptied: free ones run low, or too much of what is used is dead.
    fn wants_cleaning(&self) -> Result<bool> {
        let free = self.space.available(&*self.disk)?.saturating_sub(u64::from(self.space.reserve()));
        let free = free + self.space.empty().len() as u64;
        let (used, live) = self.space.usage();
        let dead = used.saturating_sub(live);
        let much =
            dead * 100 > used * DEAD_PERCENT && dead > DEAD_SEGMENTS * u64::from(self.space.segment_blocks());
        Ok(much || free < LOW_WATER_SEGMENTS)
    }

    /// Whether the emptied segments are worth the checkpoint that frees them: many of them, or nothing else left.
    pub(crate) fn frees_enough(&self) -> Result<bool> {
        let empty = self.space.empty().len() as u64;
        let many = (self.space.in_use() / 24).max(EMPTY_SEGMENTS);
        let short = u64::from(self.space.reserve()) + 2;
        Ok(empty >= many || (empty > 0 && self.space.available(&*self.disk)? <= short))
    }

    /// The segment whose cleaning pays best: free space gained, weighed by age, per block to move.
    pub(crate) fn victim(&self) -> Option<SegmentNo> {
        let now = self.log.next_sequence;
        let blocks = self.space.segment_blocks();
        let score = |s: &Segment| {
            let live = u64::from((s.references + s.nodes).min(blocks));
            let dead = u64::from(blocks) - live;
            let age = now.saturating_sub(s.last_sequence) + 1;
            u128::from(dead) * u128::from(age) * 1000 / u128::from(u64::from(blocks) + live)
        };
        self.space
            .iter()
            .filter(|(no, s)| {
                s.state == State::Sealed && s.references + s.nodes > 0 && !self.cleaned.contains(no)
            })
            // A segment with almost nothing dead in it costs more than it gives.
            .filter(|(_, s)| u64::from(s.references + s.nodes) * 20 < u64::from(blocks) * 19)
            .max_by_key(|(_, s)| score(s))
            .map(|(no, _)| no)
    }

    /// Remembers that only index pages are left in a segment: the next checkpoint frees it.
    fn set_cleaned(&mut self, no: SegmentNo) {
        self.cleaned.insert(no);
        self.changed = true;
    }

    /// The records of every batch in a segment, with the address of each one's payload.
    pub(crate) fn segment_records(&self, no: SegmentNo) -> Result<Vec<(Address, Record)>> {
        let segment =
            *self.space.get(no).ok_or_else(|| Error::corrupt("no such segment").with("segment", no))?;
        let mut found = Vec::new();
        let mut block = 1;
        while block < segment.used {
            let at = Address::new(no, block);
            let header = match read_batch(&*self.disk, at, segment.life, self.space.segment_blocks()) {
                Ok(header) => header,
                // What recovery gave up in the middle of a segment stays as it is: step over it.
                Err(e) if e.kind() == ErrorKind::Corrupt && segment.state == State::Sealed => {
                    block += 1;
                    continue;
                }
                Err(e) => return Err(e),
            };
            let mut payload = header.address.block() + header.header_blocks;
            for record in Record::decode_all(&header.records)? {
                let n = u32::try_from(record.payload_crcs().len()).expect("bounded by a segment");
                if n > 0 {
                    found.push((Address::new(no, payload), record));
                }
                payload += n;
            }
            block += header.total_blocks();
        }
        Ok(found)
    }

    /// Every live data block of a segment.
    pub(crate) fn live_blocks(&mut self, no: SegmentNo) -> Result<Vec<Live>> {
        let mut candidates: BTreeMap<u32, Vec<(u64, u32)>> = BTreeMap::new();
        for (at, record) in self.segment_records(no)? {
            let owners: Vec<(u64, u32)> = match &record {
                Record::Data { inode, block, .. } => vec![(*inode, *block)],
                Record::Move { refs, .. } => refs.iter().map(|r| (r.inode, r.block)).collect(),
                _ => continue,
            };
            for i in 0..u32::try_from(record.payload_crcs().len()).expect("bounded") {
                candidates.entry(at.block() + i).or_default().extend(owners.iter().map(|(o, b)| (*o, b + i)));
            }
        }
        let prefix = Key::new(Tag::Sharer).u32(no.0);
        for (key, value) in self.tree.scan(prefix.bytes(), After::Including, prefix.bytes(), usize::MAX)? {
            let mut r = KeyReader::new(&key);
            let (_, from, inode, block) = (r.u32()?, u32::from(r.u16()?), r.u64()?, r.u32()?);
            let length = value.first_chunk::<2>().map_or(0, |b| u16::from_le_bytes(*b));
            for i in 0..u32::from(length) {
                candidates.entry(from + i).or_default().push((inode, block + i));
            }
        }
        let mut live = Vec::new();
        for (block, mut owners) in candidates {
            owners.sort_unstable();
            owners.dedup();
            let at = Address::new(no, block);
            let mut refs = Vec::new();
            let mut crc = 0;
            for (inode, b) in owners {
                self.references_to(at, inode, b, &mut refs, &mut crc)?;
            }
            if !refs.is_empty() {
                live.push((refs, at, crc));
            }
        }
        Ok(live)
    }

    /// Takes the next live blocks of the victim, as they are now: who points at each may have changed since they were found.
    fn next_moves(&mut self, max: usize) -> Result<Vec<Live>> {
        let mut step = Vec::new();
        while step.len() < max {
            let Some((refs, at, crc)) = self.cleaning.as_mut().and_then(|c| c.live.pop_front()) else {
                break;
            };
            let mut still = Vec::with_capacity(refs.len());
            for r in refs {
                if !self.has_object(r.inode)? {
                    continue;
                }
                let object = self.object(r.inode)?;
                let exists = r.version == HEAD || object.clones.iter().any(|c| c.id == r.version);
                let (chunk, i) = split(r.block);
                if exists && self.chunk((r.inode, r.version, chunk))?.get(i) == Block::Data(at, crc) {
                    still.push(r);
                }
            }
            if !still.is_empty() {
                step.push((still, at, crc));
            }
        }
        Ok(step)
    }

    /// Adds the versions of an object that have block `block` at `at`.
    pub(crate) fn references_to(
        &mut self,
        at: Address,
        inode: u64,
        block: u32,
        refs: &mut Vec<BlockRef>,
        crc: &mut u32,
    ) -> Result<()> {
        if !self.has_object(inode)? {
            return Ok(());
        }
        let object = self.object(inode)?;
        let versions: Vec<u64> = std::iter::once(HEAD).chain(object.clones.iter().map(|c| c.id)).collect();
        let (chunk, i) = split(block);
        for version in versions {
            if let Block::Data(found, sum) = self.chunk((inode, version, chunk))?.get(i)
                && found == at
            {
                refs.push(BlockRef { inode, version, block });
                *crc = sum;
            }
        }
        Ok(())
    }

    /// Copies live blocks to the cold head, neighbours of one object together.
    pub(crate) fn move_blocks(&mut self, live: &[Live]) -> Result<()> {
        let ranges: Vec<(FileId, u64, u64)> = live
            .iter()
            .map(|(_, at, _)| (FileId::Segment(at.segment()), crate::read::byte_of(*at), BLOCK as u64))
            .collect();
        self.disk.will_read(&ranges);
        let mut from = 0;
        while from < live.len() {
            let mut to = from + 1;
            while to < live.len() && follows(&live[to - 1].0, &live[to].0) {
                to += 1;
            }
            let mut payload = Vec::with_capacity(to - from);
            for (_, at, crc) in &live[from..to] {
                let mut bytes = vec![0; BLOCK];
                read_run(&*self.disk, *at, &[*crc], &mut bytes)?;
                payload.push(Bytes::from(bytes));
            }
            let record = Record::Move {
                refs: live[from].0.clone(),
                crcs: live[from..to].iter().map(|l| l.2).collect(),
            };
            self.commit_at((Head::Cold, Purpose::Reclaim), vec![record], payload)?;
            from = to;
        }
        Ok(())
    }

    /// Marks the index pages of a segment changed, so that the next checkpoint writes them elsewhere.
    fn evict_pages(&mut self, no: SegmentNo) -> Result<()> {
        for (at, record) in self.segment_records(no)? {
            if let Record::Node { level, key, .. } = record {
                self.tree.evict_page(level, &key, at)?;
                self.settle_tree()?;
            }
        }
        Ok(())
    }
}

/// Whether the block with `b` comes right behind the one with `a` for everyone who points at them.
fn follows(a: &[BlockRef], b: &[BlockRef]) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|(x, y)| x.inode == y.inode && x.version == y.version && x.block + 1 == y.block)
}
