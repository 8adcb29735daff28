//! Segments freed by a record of the log, without waiting for a checkpoint. Layout: `docs/format/records.md`; why: ADR 0020.
//!
//! Invariants
//! - A segment is freed this way only if replaying from the last durable checkpoint needs nothing that lies in it: in that
//!   checkpoint's table it is sealed, in the life it still has, and no page of that checkpoint's index, nor its table, is in it. So
//!   it happens once between two checkpoints.
//! - The record comes behind whatever emptied the segment. The segment is used again once the record is durable, and a later batch
//!   that says so is durable too: so whatever is written into it afterwards can be found, or missed, whichever block is damaged.
//! - None is freed while a checkpoint is being written, and only by who has the turn: nobody copies out of it meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::MutexGuard;

use ferry_core::{Error, ErrorKind, Result};

use crate::core::Core;
use crate::disk::SegmentNo;
use crate::engine::Engine;
use crate::key::{Key, Tag};
use crate::record::Record;
use crate::space::{Purpose, Segment, Space, State};

/// Most segments one record frees: it fits a few blocks.
const FREED_MAX: usize = 4096;

/// What records of the log free, or may.
#[derive(Debug, Default)]
pub(crate) struct Freed {
    /// By segment, the life of each that a record may free; 0 for the others.
    settled: Vec<u64>,
    /// Freed, but not to be used yet.
    waiting: Vec<Waiting>,
    /// While the log is replayed: the segments of the table that have another life on disk, and where that ends.
    reborn: BTreeMap<SegmentNo, Option<(u64, u32)>>,
}

/// Segments that a record freed.
#[derive(Debug)]
struct Waiting {
    /// Of the batch with the record.
    sequence: u64,
    /// The first batch that says that this one is durable.
    witness: Option<u64>,
    segments: Vec<SegmentNo>,
}

impl Freed {
    /// Nothing freed yet since the checkpoint that `space` was read from.
    pub(crate) fn new(space: &Space) -> Self {
        Self { settled: Self::settled_by(&space.segments()), ..Self::default() }
    }

    /// The lives of the segments that records may free once the checkpoint with this table is durable. The table itself is in an
    /// open one.
    pub(crate) fn settled_by(table: &[Segment]) -> Vec<u64> {
        table.iter().map(|s| if s.state == State::Sealed && s.nodes == 0 { s.life } else { 0 }).collect()
    }

    /// Takes note of a durable checkpoint; returns what was waiting, which it frees as well.
    pub(crate) fn checkpointed(&mut self, settled: Vec<u64>) -> Vec<SegmentNo> {
        self.settled = settled;
        std::mem::take(&mut self.waiting).into_iter().flat_map(|w| w.segments).collect()
    }

    /// Segments freed that are not to be used yet.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.iter().map(|w| w.segments.len() as u64).sum()
    }

    /// Before the log is replayed: the segments found in another life than the table's, and where that ends.
    pub(crate) fn set_reborn(&mut self, reborn: BTreeMap<SegmentNo, Option<(u64, u32)>>) {
        self.reborn = reborn;
    }

    /// After the log was replayed.
    ///
    /// # Errors
    /// `Corrupt` where a segment was used again and what freed it is not in the log.
    pub(crate) fn replayed(&mut self) -> Result<()> {
        match self.reborn.first_key_value() {
            None => Ok(()),
            Some((no, _)) => {
                Err(Error::corrupt("a segment was used again, and what freed it is missing from the log")
                    .with("segment", no))
            }
        }
    }

    fn may_free(&self, no: SegmentNo, segment: &Segment) -> bool {
        let settled = self.settled.get(no.0 as usize - 1);
        segment.life != 0 && settled == Some(&segment.life)
    }

    /// Takes what may be used now, the log being durable up to `durable`; `next` is the batch that will be written next.
    fn take_usable(&mut self, durable: u64, next: u64) -> Vec<SegmentNo> {
        let mut usable = Vec::new();
        for mut waiting in std::mem::take(&mut self.waiting) {
            if waiting.witness.is_none() && durable >= waiting.sequence {
                waiting.witness = Some(next);
            }
            if waiting.witness.is_some_and(|witness| durable >= witness) {
                usable.append(&mut waiting.segments);
            } else {
                self.waiting.push(waiting);
            }
        }
        usable
    }
}

impl Core {
    /// The segments that hold nothing and that a record may free now.
    fn freeable(&self) -> Vec<SegmentNo> {
        if self.checkpointing.is_some() || self.tree.has_apart() {
            return Vec::new();
        }
        let at_work = self.cleaning.as_ref().map(crate::cleaner::Cleaning::segment);
        let is_freeable = |no: &SegmentNo| {
            at_work != Some(*no) && self.space.get(*no).is_some_and(|s| self.freed.may_free(*no, s))
        };
        self.space.empty().into_iter().filter(is_freeable).take(FREED_MAX).collect()
    }

    /// Frees the emptied segments that need no checkpoint for it. `false` where there is none, or no room to say so.
    ///
    /// # Crash safety
    /// They are not used before the record, and with it whatever emptied them, is durable.
    pub(crate) fn free_by_record(&mut self, _turn: &MutexGuard<'_, ()>) -> Result<bool> {
        let segments = self.freeable();
        if segments.is_empty() {
            return Ok(false);
        }
        let count = segments.len() as u64;
        // A batch of its own: recovery looks for such before it knows where the tail ends.
        self.log_seal()?;
        match self.commit(Purpose::Reclaim, vec![Record::Freed { segments }], Vec::new()) {
            Err(e) if e.kind() == ErrorKind::NoSpace && !self.log.poisoned => return Ok(false),
            done => done?,
        }
        self.log_seal()?;
        self.counters.freed_segments += count;
        Ok(true)
    }

    /// Applies the record: nothing is known about the segments any more.
    pub(crate) fn apply_freed(&mut self, segments: &[SegmentNo]) -> Result<()> {
        for no in segments {
            let is_empty = self
                .space
                .get(*no)
                .is_some_and(|s| s.state == State::Sealed && s.references == 0 && s.nodes == 0);
            if !is_empty {
                return Err(
                    Error::corrupt("the log frees a segment that has something in it").with("segment", no)
                );
            }
            self.delete_all(&Key::new(Tag::Sharer).u32(no.0))?;
            self.cleaned.remove(no);
            self.space.mark_free(&[*no]);
            if let Some(Some((life, used))) = self.freed.reborn.remove(no) {
                let entry = self.space.entry(*no);
                (entry.life, entry.used) = (life, used);
            }
        }
        if !segments.is_empty() {
            let waiting =
                Waiting { sequence: self.log.next_sequence, witness: None, segments: segments.to_vec() };
            self.freed.waiting.push(waiting);
        }
        Ok(())
    }

    /// Makes usable what may be used by now.
    pub(crate) fn release_freed(&mut self) -> Result<()> {
        let usable = self.freed.take_usable(self.log.durable_upto, self.log.next_sequence);
        self.release(&usable)
    }

    /// After a replay, before anything is written: makes durable what it found, which a killed process may only have written. What
    /// it freed was found free, and everything written from now on says that the tail is durable.
    pub(crate) fn settle_replay(&mut self) -> Result<()> {
        self.sync_log()?;
        self.freed.waiting.clear();
        Ok(())
    }
}

impl Engine {
    /// Makes durable what the segments freed by records wait for, and takes them back.
    ///
    /// # Errors
    /// As [`Engine::sync`].
    pub(crate) fn settle_freed(&self, _turn: &MutexGuard<'_, ()>) -> Result<()> {
        self.sync()?;
        {
            let mut core = self.lock_behind();
            core.release_freed()?;
            if core.freed.waiting() == 0 {
                return Ok(());
            }
            // A batch that says what is durable, whatever else may be in it.
            core.commit(Purpose::Reclaim, vec![Record::Freed { segments: Vec::new() }], Vec::new())?;
        }
        self.sync()?;
        self.lock_behind().release_freed()
    }
}

/// Segments that batches of the log's tail say they free: recovery has to look into them.
#[derive(Debug, Default)]
pub(crate) struct Heard(BTreeSet<SegmentNo>);

impl Heard {
    /// Adds what a batch with these records frees; returns what is new.
    pub(crate) fn add(&mut self, records: &[u8]) -> Vec<SegmentNo> {
        let freed = Record::freed_in(records).unwrap_or_default();
        freed.into_iter().filter(|no| self.0.insert(*no)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Freed, Waiting};
    use crate::disk::SegmentNo;

    #[test]
    fn a_segment_is_usable_once_a_batch_that_tells_of_its_record_is_durable() {
        let waiting = Waiting { sequence: 7, witness: None, segments: vec![SegmentNo(3)] };
        let mut freed = Freed { waiting: vec![waiting], ..Freed::default() };
        assert!(freed.take_usable(6, 9).is_empty(), "the record is not durable");
        assert!(freed.take_usable(8, 10).is_empty(), "no batch after it is known to tell of it");
        assert!(freed.take_usable(9, 12).is_empty(), "the batch that does was written, not made durable");
        assert_eq!(freed.waiting(), 1);
        assert_eq!(freed.take_usable(10, 12), [SegmentNo(3)]);
        assert_eq!(freed.waiting(), 0);
    }
}
