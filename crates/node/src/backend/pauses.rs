//! What a store of the engine is given to do while nobody changes it.
//!
//! Invariants
//! - No more is written for its own sake than clients wrote: segments are made ahead as many as clients filled, and no more
//!   blocks are written anew than clients wrote.
//! - A store that nobody wrote since it was opened is left alone.

use std::time::{Duration, Instant};

use ferry_engine::Activity;
use ferry_engine::limits::BLOCK;

/// A pause after which segments are made ahead: the flushes that come next cost half.
const PREPARE_AFTER: Duration = Duration::from_millis(300);

/// A pause after which what clients left behind is cleaned away.
const TIDY_AFTER: Duration = Duration::from_secs(1);

/// A pause after which a checkpoint is written, so that the next opening has nothing to replay.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(10);

/// A pause after which what was written at random is written in order.
const DEFRAGMENT_AFTER: Duration = Duration::from_secs(60);

/// Segments made ahead at most. A quarter of a gibibyte, as many as are kept for use again when they become free.
const PREPARED_MAX: u64 = 4;

/// Something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Make one segment, unless there are so many.
    Prepare(usize),
    /// Clean a little.
    Tidy,
    /// Begin a checkpoint.
    Checkpoint,
    /// Write objects in order, from this one on.
    Defragment(u64),
}

/// How long a store has not been changed, and what was done since.
#[derive(Debug)]
pub(super) struct Pauses {
    seen: Activity,
    since: Instant,
    is_prepared: bool,
    is_tidy: bool,
    is_checkpointed: bool,
    /// Where writing in order goes on; nowhere, if it is done.
    next: Option<u64>,
    /// Bytes written in order so far.
    moved: u64,
    segment_bytes: u64,
}

impl Pauses {
    /// Nothing was written yet.
    pub(super) fn new(now: Instant, segment_bytes: u64) -> Self {
        Self {
            seen: Activity::default(),
            since: now,
            is_prepared: true,
            is_tidy: true,
            is_checkpointed: true,
            next: None,
            moved: 0,
            segment_bytes,
        }
    }

    /// What to do now, if anything, where clients did `activity` so far.
    pub(super) fn work(&mut self, now: Instant, activity: Activity) -> Option<Work> {
        if activity != self.seen {
            self.seen = activity;
            self.since = now;
            self.is_prepared = false;
            self.is_tidy = false;
            self.is_checkpointed = false;
            self.next = Some(0);
        }
        let pause = now.saturating_duration_since(self.since);
        if pause < PREPARE_AFTER {
            return None;
        }
        let count = (activity.bytes / self.segment_bytes.max(1)).min(PREPARED_MAX);
        if !self.is_prepared && count > 0 {
            return Some(Work::Prepare(usize::try_from(count).unwrap_or(usize::MAX)));
        }
        if pause >= TIDY_AFTER && !self.is_tidy {
            return Some(Work::Tidy);
        }
        if let Some(from) = self.next
            && pause >= DEFRAGMENT_AFTER
            && self.moved < activity.bytes
        {
            return Some(Work::Defragment(from));
        }
        (pause >= CHECKPOINT_AFTER && !self.is_checkpointed).then_some(Work::Checkpoint)
    }

    /// As many segments as there may be are made.
    pub(super) fn prepared(&mut self) {
        self.is_prepared = true;
    }

    /// What clients left behind is little enough.
    pub(super) fn tidied(&mut self) {
        self.is_tidy = true;
    }

    /// A checkpoint is begun, or there is nothing to write in one.
    pub(super) fn checkpointed(&mut self) {
        self.is_checkpointed = true;
    }

    /// So many blocks were written in order, and it goes on at `next`.
    pub(super) fn defragmented(&mut self, blocks: u64, next: Option<u64>) {
        self.moved += blocks * BLOCK as u64;
        self.next = next;
        // What that emptied is free after a checkpoint; one for all of it.
        self.is_checkpointed &= blocks == 0;
    }

    /// Something failed: nothing more is done until clients change something, who hear of it then.
    pub(super) fn give_up(&mut self) {
        self.is_prepared = true;
        self.is_tidy = true;
        self.is_checkpointed = true;
        self.next = None;
    }
}

#[cfg(test)]
mod tests {
    use super::{Activity, Duration, Instant, Pauses, Work};

    const SEGMENT: u64 = 64 << 20;

    #[test]
    fn a_store_that_nobody_wrote_is_left_alone() {
        let now = Instant::now();
        let mut pauses = Pauses::new(now, SEGMENT);
        for seconds in [0, 1, 20, 100, 100_000] {
            assert_eq!(pauses.work(now + Duration::from_secs(seconds), Activity::default()), None);
        }
    }

    #[test]
    fn the_longer_the_pause_the_more_is_done() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut pauses = Pauses::new(start, SEGMENT);
        let activity = Activity { changes: 7, bytes: 3 * SEGMENT };
        assert_eq!(pauses.work(at(0), activity), None);
        assert_eq!(pauses.work(at(250), activity), None);
        assert_eq!(pauses.work(at(300), activity), Some(Work::Prepare(3)));
        assert_eq!(pauses.work(at(400), activity), Some(Work::Prepare(3)), "until there are as many");
        pauses.prepared();
        assert_eq!(pauses.work(at(900), activity), None);
        assert_eq!(pauses.work(at(1_000), activity), Some(Work::Tidy));
        assert_eq!(pauses.work(at(1_100), activity), Some(Work::Tidy), "until nothing is left to do");
        pauses.tidied();
        assert_eq!(pauses.work(at(9_000), activity), None);
        assert_eq!(pauses.work(at(10_000), activity), Some(Work::Checkpoint));
        pauses.checkpointed();
        assert_eq!(pauses.work(at(59_000), activity), None);
        assert_eq!(pauses.work(at(60_000), activity), Some(Work::Defragment(0)));
        pauses.defragmented(10, Some(17));
        assert_eq!(pauses.work(at(60_100), activity), Some(Work::Defragment(17)));
        pauses.defragmented(10, None);
        assert_eq!(pauses.work(at(60_200), activity), Some(Work::Checkpoint), "what became empty is freed");
        pauses.checkpointed();
        assert_eq!(pauses.work(at(999_000), activity), None);
        // A change is the end of the pause.
        let activity = Activity { changes: 8, ..activity };
        assert_eq!(pauses.work(at(1_000_000), activity), None);
        assert_eq!(pauses.work(at(1_000_300), activity), Some(Work::Prepare(3)));
    }

    #[test]
    fn no_more_is_written_than_clients_wrote() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut pauses = Pauses::new(start, SEGMENT);
        let few = Activity { changes: 1, bytes: 8192 };
        pauses.work(at(0), few);
        assert_eq!(pauses.work(at(1), few), Some(Work::Tidy), "nothing to prepare: less than a segment");
        pauses.tidied();
        assert_eq!(pauses.work(at(11), few), Some(Work::Checkpoint));
        pauses.checkpointed();
        assert_eq!(pauses.work(at(61), few), Some(Work::Defragment(0)));
        pauses.defragmented(2, Some(5));
        assert_eq!(pauses.work(at(62), few), Some(Work::Checkpoint), "what became empty is freed");
        pauses.checkpointed();
        assert_eq!(pauses.work(at(63), few), None);
        pauses.work(at(64), Activity { changes: 2, bytes: 8192 });
        pauses.give_up();
        assert_eq!(pauses.work(at(999), Activity { changes: 2, bytes: 8192 }), None);
    }
}
