//! What is changed while somebody copies a device that is in use.
//!
//! Invariants
//! - A change is noted before it begins, by whoever is inside the gate. So what was noted before the gate was closed once is done,
//!   and what is done and not noted was done before the recording began.
//! - Where somebody else may have changed the image (it was under nobody's lock, or its snapshots were changed), the recording
//!   says that it does not know all.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferry_core::{Error, ErrorKind, Result};

use super::ImageDevice;
use crate::features::Features;

/// Changed ranges that are kept apart; with more, a recording gives up. About 50 MB.
const RANGES_MAX: usize = 1 << 19;

/// The changes of a device since a moment, until it is dropped.
#[derive(Debug)]
pub struct Recording {
    record: Arc<Record>,
}

/// What a device notes.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Looked at by each change.
    is_on: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ranges: Ranges,
    is_incomplete: bool,
}

impl Record {
    /// Notes a change that is about to begin.
    pub(super) fn note(&self, offset: u64, length: u64) {
        if self.is_on.load(Ordering::Acquire) {
            let mut state = self.state();
            state.ranges.add(offset..offset.saturating_add(length));
            state.give_up_beyond(RANGES_MAX);
        }
    }

    /// Others may change the image, or did.
    pub(super) fn lose_track(&self) {
        if self.is_on.load(Ordering::Acquire) {
            self.state().is_incomplete = true;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn give_up_beyond(&mut self, max: usize) {
        if self.ranges.0.len() > max {
            self.ranges.0.clear();
            self.is_incomplete = true;
        }
    }
}

impl ImageDevice {
    /// Notes from now on which ranges of the image are changed. The lock is taken first, as it is only known what this device
    /// changes.
    ///
    /// # Errors
    /// `Unsupported` (38) for an image without an exclusive lock; `Busy` (16) where that is being done already; those of taking the
    /// lock.
    ///
    /// # Cancel safety
    /// Dropping the future ends it.
    pub async fn record(&self) -> Result<Recording> {
        if !self.image().header.features.contains(Features::EXCLUSIVE_LOCK) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "others may write an image without exclusive lock",
            ));
        }
        self.acquire().await?;
        let record = Arc::clone(&self.inner.record);
        if record.is_on.swap(true, Ordering::AcqRel) {
            return Err(Error::busy("the changes of the image are being recorded already"));
        }
        let recording = Recording { record };
        // What is under way now was not noted.
        self.settle().await;
        Ok(recording)
    }

    /// Waits until the requests under way are done; those that come meanwhile wait for it.
    async fn settle(&self) {
        drop(self.inner.gate.close().await);
    }

    /// What was changed since the recording began or was taken last, once all of it is done. Ascending, apart from each other.
    ///
    /// # Cancel safety
    /// What was changed is lost, and the recording does not know all any more.
    pub async fn take_changes(&self, recording: &Recording) -> Vec<Range<u64>> {
        let unsettled = Unsettled(&recording.record);
        let ranges = recording.take();
        self.settle().await;
        std::mem::forget(unsettled);
        ranges
    }

    /// Whether nothing was changed since the recording began but what it knows, nor can be before the next request.
    #[must_use]
    pub fn has_recorded_all(&self, recording: &Recording) -> bool {
        !self.io().lacks_lock() && !recording.record.state().is_incomplete
    }
}

/// Changes that were taken away before they were done.
struct Unsettled<'a>(&'a Record);

impl Drop for Unsettled<'_> {
    fn drop(&mut self) {
        self.0.lose_track();
    }
}

impl Recording {
    /// Bytes changed since the recording began or was taken last.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.record.state().ranges.bytes()
    }

    /// Notes a range as if it had been changed.
    pub fn note(&self, range: Range<u64>) {
        self.record.note(range.start, range.end.saturating_sub(range.start));
    }

    /// As [`ImageDevice::take_changes`], when nobody uses the device any more.
    #[must_use]
    pub fn take(&self) -> Vec<Range<u64>> {
        let ranges = std::mem::take(&mut self.record.state().ranges);
        ranges.0.into_iter().map(|(start, end)| start..end).collect()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.record.is_on.store(false, Ordering::Release);
        *self.record.state() = State::default();
    }
}

/// Ranges, by their starts; apart from each other.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Those that overlap it or touch it, from the last on.
        while let Some((s, e)) =
            self.0.range(..=end).next_back().map(|(s, e)| (*s, *e)).filter(|(_, e)| *e >= start)
        {
            self.0.remove(&s);
            (start, end) = (start.min(s), end.max(e));
        }
        self.0.insert(start, end);
    }

    fn bytes(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_what_was_added_and_nothing_else() {
        let rng = ferry_core::testing::TestRng::new(5);
        for _ in 0..300 {
            let (mut ranges, mut cells) = (Ranges::default(), [false; 64]);
            for _ in 0..rng.below(24) {
                let start = rng.below(60);
                let end = (start + rng.below(6)).min(64);
                ranges.add(start..end);
                (start..end).for_each(|at| cells[usize::try_from(at).unwrap()] = true);
            }
            let mut shown = [false; 64];
            let mut last = None;
            for (start, end) in &ranges.0 {
                assert!(last.is_none_or(|last| last < *start), "{ranges:?}");
                last = Some(*end);
                (*start..*end).for_each(|at| shown[usize::try_from(at).unwrap()] = true);
            }
            assert_eq!(shown, cells);
            let count = cells.iter().filter(|c| **c).count() as u64;
            assert_eq!(ranges.bytes(), count);
        }
    }
}
