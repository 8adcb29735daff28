//! The cleaner: takes segments that are mostly dead and writes what lives in them elsewhere.
//!
//! Invariants
//! - A block is live if a table entry points at it. Who may own one is found from the segment itself (the records that wrote
//!   it) and from the notes about sharers; each is looked at before it is believed.
//! - Blocks are copied first, and the copies are durable before a record of the log adopts them; so a crash at any point leaves
//!   either place right, and no flush waits for copies.
//! - Adopting is conditional: who has something else by then keeps it.
//! - A cleaned segment becomes free through a record where that is enough (`freed.rs`), or through the next checkpoint.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, MutexGuard};

use bytes::Bytes;
use ferry_core::{Error, ErrorKind, Result};

use crate::address::{Address, Block};
use crate::core::Core;
use crate::disk::{Disk, FileId, SegmentNo};
use crate::engine::Engine;
use crate::format::BatchHeader;
use crate::index::split;
use crate::key::{Key, KeyReader, Tag};
use crate::limits::BLOCK;
use crate::read::{byte_of, read_run};
use crate::record::{BlockRef, HEAD, Record};
use crate::recover::read_batch;
use crate::space::{Head, Purpose, Segment, State};
use crate::tree::After;

/// Blocks one step looks at and moves: a writer waits for the looking, about 0.1 ms. So many scattered ones fill two blocks of
/// header.
const STEP_BLOCKS: usize = 179;

/// Blocks below which the rest of a segment is not worth a batch of its own.
const STEP_BLOCKS_MIN: usize = 16;

/// Index pages one step marks.
const STEP_PAGES: usize = 64;

/// Free segments beyond the reserve below which the cleaner works. Few: what is kept free is not used, and the fuller the rest
/// is the more a segment costs to clean. A step moves more than a writer writes meanwhile.
const LOW_WATER_SEGMENTS: u64 = 3;

/// Share of dead blocks (hundredths of those used) above which it pays to clean in a pause though there is room. Above what a store
/// kept 70 % live can have, so that such a one is cleaned only for need.
const DEAD_PERCENT: u64 = 40;

/// The same while clients go on writing: they pay for the copies, which get fewer the longer it waits.
const DEAD_PERCENT_AMID_WRITES: u64 = 60;

/// One part in so many of a segment: fewer index pages than that, and nothing else, are written elsewhere before any data is moved.
const INDEX_LEFT_BEHIND: u64 = 8;

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

/// Whether clients change the store meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// They may.
    AmidWrites,
    /// They have not for a while.
    Paused,
}

/// What may be cleaned before others change something again.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// Changes by others when it began.
    changes: u64,
    /// Segments written from this sequence on are not cleaned in it.
    before: u64,
    /// Segments cleaned in it.
    tried: BTreeSet<SegmentNo>,
}

/// A block of a victim, and who may have it: object and its block.
type Candidate = (Vec<(u64, u32)>, Address);

/// The victim that is being emptied, and what may live in it.
#[derive(Debug)]
pub(crate) struct Cleaning {
    segment: SegmentNo,
    candidates: VecDeque<Candidate>,
    /// Index pages in it: address, level, a key in the page.
    pages: Vec<(Address, u8, Bytes)>,
}

impl Cleaning {
    /// The victim.
    pub(crate) fn segment(&self) -> SegmentNo {
        self.segment
    }
}

impl Engine {
    /// Cleans a little if the store needs it. `true` where there is more to do.
    pub(crate) fn clean_step(&self, turn: &MutexGuard<'_, ()>, when: When) -> Result<bool> {
        self.remove_spares(turn)?;
        let victim = {
            let mut core = self.lock_behind();
            if core.read_only || core.log.poisoned {
                return Ok(false);
            }
            core.release_retired()?;
            core.release_freed()?;
            if core.wants_segments()? && core.free_by_record(turn)? {
                return Ok(true);
            }
            // Where writers flush, they are usable soon enough by themselves.
            if core.freed.waiting() > 0 && core.is_nearly_short()? {
                drop(core);
                self.settle_freed(turn)?;
                return Ok(true);
            }
            if core.frees_enough()? && core.changed {
                core.begin_checkpoint_amid_writes()?;
                return Ok(true);
            }
            if !core.wants_cleaning(when)? || core.space.available(&*self.disk)? <= KEPT_FREE {
                return Ok(false);
            }
            core.cleaning.as_ref().map(|c| c.segment).or_else(|| core.next_victim())
        };
        let Some(no) = victim else { return Ok(false) };
        self.clean_segment(turn, no)?;
        Ok(true)
    }

    /// Empties the segment whose cleaning pays best, needed or not. `false` where no segment has a twentieth of it dead, apart from
    /// those it emptied, or filled, since the last change by others: so a loop until `false` ends, after a call for each
    /// segment there was at the most.
    ///
    /// # Errors
    /// As [`Engine::sync`].
    pub fn clean_one(&self) -> Result<bool> {
        let turn = self.turn();
        let is_due = {
            let mut core = self.lock_behind();
            let (freed, _) = core.free_emptied(&turn)?;
            !freed && core.frees_enough()?
        };
        if is_due {
            self.checkpoint_in(&turn)?;
        }
        let victim = self.lock_behind().next_victim();
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
                core.release_freed()?;
                core.remove_spares()?;
                let available = core.space.available(&*self.disk)?;
                let empty = core.space.empty().len() as u64 + core.freed.waiting();
                let enough = u64::from(core.space.reserve()) + wanted;
                if available > enough
                    || core.hopeless.is_some_and(|h| empty == 0 && core.space.usage().1 >= h)
                {
                    return Ok(());
                }
                let holding = core.space.in_use() - empty;
                fruitless = if holding < fewest { 0 } else { fruitless + 1 };
                fewest = fewest.min(holding);
                (available, empty, enough, core.victim(|_, _| true).filter(|_| fruitless < FRUITLESS_MAX))
            };
            match victim {
                Some(no) if available > KEPT_FREE && available + empty <= enough + EMPTY_SEGMENTS => {
                    while self.clean_segment(&turn, no)? {}
                }
                _ if empty > 0 => self.make_usable(&turn)?,
                _ => {
                    // What is dead is too thinly spread to pay: only removals help. Not tried again before there were some.
                    let mut core = self.lock();
                    core.hopeless = Some(core.space.usage().1);
                    return Ok(());
                }
            }
        }
    }

    /// Makes segments that hold nothing usable at once: by a record if that is enough for some of them, else by a checkpoint.
    fn make_usable(&self, turn: &MutexGuard<'_, ()>) -> Result<()> {
        let (freed, is_due) = self.lock_behind().free_emptied(turn)?;
        if freed {
            self.settle_freed(turn)
        } else if is_due {
            self.checkpoint_in(turn)
        } else {
            Ok(())
        }
    }

    /// Moves up to a step's worth of live blocks out of a segment. `true` where more are left in it.
    ///
    /// The lock is held to find who has the blocks and to say where they are now; reading and writing them, and making them
    /// durable, is done without it.
    pub(crate) fn clean_segment(&self, turn: &MutexGuard<'_, ()>, no: SegmentNo) -> Result<bool> {
        // Emptying one marks index pages, which a checkpoint that is being written has frozen; and both need the same room.
        while self.checkpoint_piece(turn)? {}
        let begun = self.lock_behind().cleaning.as_ref().is_some_and(|c| c.segment == no);
        if !begun {
            self.begin_cleaning(no)?;
        }
        let live = {
            let mut core = self.lock_behind();
            core.check_writable()?;
            match core.next_live()? {
                Some(live) => live,
                None if core.evict_pages()? => return Ok(true),
                None => {
                    core.cleaning = None;
                    core.counters.cleaned_segments += 1;
                    core.set_cleaned(no);
                    return Ok(false);
                }
            }
        };
        self.move_blocks(turn, &live)?;
        let mut core = self.lock_behind();
        if core.checkpoint_due() {
            core.begin_checkpoint()?;
        }
        Ok(true)
    }

    /// Finds who may have blocks of a segment, and the index pages in it.
    fn begin_cleaning(&self, no: SegmentNo) -> Result<()> {
        let (segment, sharers) = {
            let mut core = self.lock_behind();
            core.check_writable()?;
            core.settle_all()?;
            let segment = core.space.get(no).copied();
            (
                segment.ok_or_else(|| Error::corrupt("no such segment").with("segment", no))?,
                core.sharers_of(no)?,
            )
        };
        // A sealed segment does not change.
        let records = segment_records(&*self.disk, no, &segment)?;
        let mut candidates: BTreeMap<u32, Vec<(u64, u32)>> = sharers;
        let mut pages = Vec::new();
        for (at, record) in records {
            let owners: Vec<(u64, u32)> = match &record {
                Record::Data { inode, block, .. } => vec![(*inode, *block)],
                Record::Copied { refs, .. } => refs.iter().map(|r| (r.inode, r.block)).collect(),
                Record::Node { level, key, .. } => {
                    pages.push((at, *level, key.clone()));
                    continue;
                }
                _ => continue,
            };
            for i in 0..u32::try_from(record.payload_crcs().len()).expect("bounded") {
                candidates.entry(at.block() + i).or_default().extend(owners.iter().map(|(o, b)| (*o, b + i)));
            }
        }
        let mut candidates: Vec<Candidate> =
            candidates.into_iter().map(|(block, o)| (o, Address::new(no, block))).collect();
        for (owners, _) in &mut candidates {
            owners.sort_unstable();
            owners.dedup();
        }
        // In the order of the objects, so that what was written scattered is read back together.
        candidates.sort_unstable();
        let mut core = self.lock_behind();
        core.cleaning = Some(Cleaning { segment: no, candidates: candidates.into(), pages });
        Ok(())
    }

    /// Copies live blocks to the cold head, neighbours of one object together, and points whoever still has them then to the
    /// copies.
    ///
    /// # Crash safety
    /// The copies are durable before the record that adopts them is written; without it nobody has them.
    pub(crate) fn move_blocks(&self, _turn: &MutexGuard<'_, ()>, mut live: &[Live]) -> Result<()> {
        while !live.is_empty() {
            live = self.move_some(live)?;
        }
        Ok(())
    }

    /// Moves as many as fit one batch; returns the others.
    fn move_some<'a>(&self, live: &'a [Live]) -> Result<&'a [Live]> {
        let (room, records, count, era) = {
            let mut core = self.lock_behind();
            core.check_writable()?;
            let left = core.log.left(&core.space, Head::Cold) as usize;
            let most = if left > STEP_BLOCKS_MIN { left } else { core.space.segment_blocks() as usize - 1 };
            let (records, bytes) = copies(live, most.min(STEP_BLOCKS));
            let count: usize = records.iter().map(|r| r.payload_crcs().len()).sum();
            let Core { log, space, env, .. } = &mut *core;
            let room = log.room(space, env, Head::Cold, bytes, count)?;
            (room, records, count, Arc::clone(&core.era))
        };
        let (now, later) = live.split_at(count);
        let payload = self.fetch(now);
        drop(era);
        let parts = {
            let mut core = self.lock_behind();
            let Core { log, space, .. } = &mut *core;
            payload.map(|payload| log.unsequenced(space, room, &records, payload))?
        };
        let file = FileId::Segment(room.segment());
        let written = self.disk.write(file, room.offset(), &parts);
        let synced = written.and_then(|()| self.disk.sync(file));
        let mut core = self.lock_behind();
        core.log.wrote_unsequenced(room, &parts, &synced);
        synced?;
        core.counters.cleaner_bytes += parts.iter().map(|p| p.len() as u64).sum::<u64>();
        core.commit(Purpose::Reclaim, vec![Record::Adopt { batch: room.header() }], Vec::new())?;
        Ok(later)
    }

    /// Reads blocks and verifies them.
    fn fetch(&self, live: &[Live]) -> Result<Vec<Bytes>> {
        let place = |at: &Address| (FileId::Segment(at.segment()), byte_of(*at), BLOCK as u64);
        let ranges: Vec<(FileId, u64, u64)> = live.iter().map(|(_, at, _)| place(at)).collect();
        self.disk.will_read(&ranges);
        live.iter()
            .map(|(_, at, crc)| {
                let mut bytes = vec![0; BLOCK];
                read_run(&*self.disk, *at, &[*crc], &mut bytes)?;
                Ok(Bytes::from(bytes))
            })
            .collect()
    }
}

/// The records that describe copies of the first of `live`, in order, as many as `blocks` blocks hold with their header, and
/// the bytes of the records.
fn copies(live: &[Live], blocks: usize) -> (Vec<Record>, usize) {
    let mut records: Vec<Record> = Vec::new();
    let mut bytes = 0;
    for (i, (refs, at, crc)) in live.iter().enumerate() {
        let joins = i > 0 && follows(&live[i - 1].0, refs);
        let more = if joins { 12 } else { 1 + 3 * 4 + refs.len() * 20 + 12 };
        if i > 0 && BatchHeader::blocks_for(bytes + more) as usize + i + 1 > blocks {
            break;
        }
        bytes += more;
        match records.last_mut() {
            Some(Record::Copied { from, crcs, .. }) if joins => {
                from.push(*at);
                crcs.push(*crc);
            }
            _ => records.push(Record::Copied { refs: refs.clone(), from: vec![*at], crcs: vec![*crc] }),
        }
    }
    (records, bytes)
}

/// The records with payload of every batch in a segment, with the address of each one's payload.
fn segment_records(disk: &dyn Disk, no: SegmentNo, segment: &Segment) -> Result<Vec<(Address, Record)>> {
    let mut found = Vec::new();
    let mut block = 1;
    while block < segment.used {
        let at = Address::new(no, block);
        let header = match read_batch(disk, at, segment.life, segment.used) {
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

impl Core {
    /// Frees by a record what holds nothing. Whether some of it waits to be usable, and whether a checkpoint would free more.
    fn free_emptied(&mut self, turn: &MutexGuard<'_, ()>) -> Result<(bool, bool)> {
        self.check_writable()?;
        self.release_freed()?;
        let freed = self.free_by_record(turn)?;
        Ok((freed || self.freed.waiting() > 0, self.space.has_empty()))
    }

    /// Whether segments should be emptied: free ones run low, or too much of what is used is dead. Clients that write may leave
    /// more behind than there is in a pause, as long as it is less than what is free.
    fn wants_cleaning(&self, when: When) -> Result<bool> {
        // What is emptied and waits for a checkpoint is not at hand.
        let free = self.beyond_reserve()? + self.freed.waiting();
        let (used, live) = self.space.usage();
        let dead = used.saturating_sub(live);
        let segments = dead / u64::from(self.space.segment_blocks());
        let percent = match when {
            When::AmidWrites if segments < free => DEAD_PERCENT_AMID_WRITES,
            When::AmidWrites | When::Paused => DEAD_PERCENT,
        };
        let much = dead * 100 > used * percent && segments >= DEAD_SEGMENTS;
        Ok(much || free < LOW_WATER_SEGMENTS)
    }

    /// Segments that writers may open now.
    fn beyond_reserve(&self) -> Result<u64> {
        Ok(self.space.available(&*self.disk)?.saturating_sub(u64::from(self.space.reserve())))
    }

    /// Whether writers will find no segment, or the one they find is the last.
    pub(crate) fn is_nearly_short(&self) -> Result<bool> {
        Ok(self.beyond_reserve()? <= 1)
    }

    /// Whether free segments run low, so that emptied ones should be free soon.
    fn wants_segments(&self) -> Result<bool> {
        Ok(self.beyond_reserve()? <= LOW_WATER_SEGMENTS)
    }

    /// Whether the emptied segments are worth the checkpoint that frees them: many of them, or some while free ones run low, or
    /// nothing else left. It leaves about as many behind as it writes pages to.
    pub(crate) fn frees_enough(&self) -> Result<bool> {
        let empty = self.space.empty().len() as u64;
        let in_use = self.space.in_use();
        let many = if self.wants_segments()? { in_use / 128 } else { in_use / 24 };
        Ok(empty >= many.max(EMPTY_SEGMENTS)
            || (empty > 0 && self.space.available(&*self.disk)? <= KEPT_FREE + 1))
    }

    /// The segment whose cleaning pays best: free space gained, weighed by age, per block to move.
    pub(crate) fn victim(&self, eligible: impl Fn(SegmentNo, &Segment) -> bool) -> Option<SegmentNo> {
        let now = self.log.next_sequence;
        let blocks = self.space.segment_blocks();
        let score = |s: &Segment| {
            let live = u64::from((s.references + s.nodes).min(blocks));
            let dead = u64::from(blocks) - live;
            // Few index pages left behind are worth the least work and the whole segment, however young.
            let left_behind = s.references == 0 && live * INDEX_LEFT_BEHIND < u64::from(blocks);
            let written = if left_behind { 0 } else { s.last_sequence };
            let age = now.saturating_sub(written) + 1;
            u128::from(dead) * u128::from(age) * 1000 / u128::from(u64::from(blocks) + live)
        };
        self.space
            .iter()
            .filter(|(no, s)| {
                s.state == State::Sealed && s.references + s.nodes > 0 && !self.cleaned.contains(no)
            })
            // A segment with almost nothing dead in it costs more than it gives.
            .filter(|(_, s)| u64::from(s.references + s.nodes) * 20 < u64::from(blocks) * 19)
            .filter(|(no, s)| eligible(*no, s))
            .max_by_key(|(_, s)| score(s))
            .map(|(no, _)| no)
    }

    /// The victim that pays best of those that were there at the last change by others and have not been tried since. What the
    /// cleaner and checkpoints write themselves is never one, so without changes by others there is an end of victims.
    fn next_victim(&mut self) -> Option<SegmentNo> {
        if self.round.changes != self.changes {
            self.round =
                Round { changes: self.changes, before: self.log.next_sequence, tried: BTreeSet::new() };
        }
        let round = &self.round;
        let found = self.victim(|no, s| s.last_sequence < round.before && !round.tried.contains(&no));
        self.round.tried.extend(found);
        found
    }

    /// Remembers that only index pages are left in a segment: the next checkpoint frees it.
    fn set_cleaned(&mut self, no: SegmentNo) {
        self.cleaned.insert(no);
        self.changed = true;
    }

    /// Who shares blocks of a segment, by the notes: block, then object and its block.
    pub(crate) fn sharers_of(&mut self, no: SegmentNo) -> Result<BTreeMap<u32, Vec<(u64, u32)>>> {
        let mut found: BTreeMap<u32, Vec<(u64, u32)>> = BTreeMap::new();
        let prefix = Key::new(Tag::Sharer).u32(no.0);
        for (key, value) in self.tree.scan(prefix.bytes(), After::Including, prefix.bytes(), usize::MAX)? {
            let mut r = KeyReader::new(&key);
            let (_, from, inode, block) = (r.u32()?, u32::from(r.u16()?), r.u64()?, r.u32()?);
            let length = value.first_chunk::<2>().map_or(0, |b| u16::from_le_bytes(*b));
            for i in 0..u32::from(length) {
                found.entry(from + i).or_default().push((inode, block + i));
            }
        }
        Ok(found)
    }

    /// The live blocks among the next few of the victim; `None` where it has no more.
    fn next_live(&mut self) -> Result<Option<Vec<Live>>> {
        let Some(cleaning) = &mut self.cleaning else { return Ok(None) };
        if cleaning.candidates.is_empty() {
            return Ok(None);
        }
        let count = cleaning.candidates.len().min(STEP_BLOCKS);
        let next: Vec<Candidate> = cleaning.candidates.drain(..count).collect();
        let mut live = Vec::new();
        for (owners, at) in next {
            let (mut refs, mut crc) = (Vec::new(), 0);
            for (inode, block) in owners {
                self.references_to(at, inode, block, &mut refs, &mut crc)?;
            }
            if !refs.is_empty() {
                live.push((refs, at, crc));
            }
        }
        Ok(Some(live))
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

    /// Marks some of the victim's index pages changed, so that the next checkpoint writes them elsewhere. `false` where there are no
    /// more.
    fn evict_pages(&mut self) -> Result<bool> {
        for _ in 0..STEP_PAGES {
            let Some((at, level, key)) = self.cleaning.as_mut().and_then(|c| c.pages.pop()) else {
                return Ok(false);
            };
            self.tree.evict_page(level, &key, at)?;
            self.settle_tree()?;
        }
        Ok(true)
    }
}

/// Whether the block with `b` comes right behind the one with `a` for everyone who points at them.
fn follows(a: &[BlockRef], b: &[BlockRef]) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|(x, y)| x.inode == y.inode && x.version == y.version && x.block + 1 == y.block)
}
