//! Requests counted: how many, how large, how long, how many failed. Readable at any time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Sorts of requests that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Bytes out.
    Read,
    /// Bytes in.
    Write,
    /// Durability.
    Flush,
    /// Zeroing and giving space back.
    Zero,
    /// What is left: block status, read-ahead, nonsense.
    Other,
}

/// All of them, in the order of [`Traffic::counts`].
pub const SORTS: [Sort; 5] = [Sort::Read, Sort::Write, Sort::Flush, Sort::Zero, Sort::Other];

/// Classes of durations: class `i` is below 2^i microseconds, the last one is all the rest.
pub const DURATION_CLASSES: usize = 24;

/// Counts of one sort of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests answered.
    pub requests: u64,
    /// Those that failed, among them.
    pub errors: u64,
    /// What those that succeeded moved, or covered. Bytes.
    pub bytes: u64,
    /// Time between taking the request in and having its answer, all in all. Microseconds.
    pub microseconds: u64,
    /// Requests by duration; see [`DURATION_CLASSES`].
    pub durations: [u64; DURATION_CLASSES],
}

impl Sort {
    fn index(self) -> usize {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Flush => 2,
            Self::Zero => 3,
            Self::Other => 4,
        }
    }
}

/// Counts that one task makes and gives to the shared ones from time to time.
#[derive(Debug, Default)]
pub struct Tally {
    counts: [Counts; SORTS.len()],
    /// Requests of the round that had not waited before it.
    fresh: [u64; SORTS.len()],
    is_touched: [bool; SORTS.len()],
}

impl Tally {
    /// Counts a request that was answered: `bytes` of it succeeded, or it failed. `waited` is what it took before the round of
    /// requests that is on; for most that is nothing.
    pub fn count(&mut self, sort: Sort, bytes: Option<u64>, waited: Duration) {
        let counts = &mut self.counts[sort.index()];
        self.is_touched[sort.index()] = true;
        counts.requests += 1;
        match bytes {
            Some(bytes) => counts.bytes += bytes,
            None => counts.errors += 1,
        }
        if waited.is_zero() {
            self.fresh[sort.index()] += 1;
        } else {
            counts.lasted(1, waited);
        }
    }

    /// Ends the round, which took so long; so did the requests that came and went in it.
    pub fn end_round(&mut self, took: Duration) {
        for (counts, fresh) in self.counts.iter_mut().zip(&mut self.fresh) {
            counts.lasted(std::mem::take(fresh), took);
        }
    }
}

impl Counts {
    fn lasted(&mut self, requests: u64, took: Duration) {
        if requests == 0 {
            return;
        }
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let class = usize::try_from(u64::BITS - microseconds.leading_zeros()).unwrap_or(usize::MAX);
        self.microseconds = self.microseconds.saturating_add(microseconds.saturating_mul(requests));
        self.durations[class.min(DURATION_CLASSES - 1)] += requests;
    }
}

/// Shared counts of one sort.
#[derive(Debug, Default)]
struct Shared {
    requests: AtomicU64,
    errors: AtomicU64,
    bytes: AtomicU64,
    microseconds: AtomicU64,
    durations: [AtomicU64; DURATION_CLASSES],
}

/// Shared counts.
#[derive(Debug, Default)]
pub struct Traffic([Shared; SORTS.len()]);

impl Traffic {
    /// Adds what a task counted.
    pub fn add(&self, tally: &Tally) {
        for ((shared, counts), is_touched) in self.0.iter().zip(&tally.counts).zip(tally.is_touched) {
            if !is_touched {
                continue;
            }
            let add = |to: &AtomicU64, n: u64| {
                if n != 0 {
                    to.fetch_add(n, Ordering::Relaxed);
                }
            };
            add(&shared.requests, counts.requests);
            add(&shared.errors, counts.errors);
            add(&shared.bytes, counts.bytes);
            add(&shared.microseconds, counts.microseconds);
            for (to, n) in shared.durations.iter().zip(counts.durations) {
                add(to, n);
            }
        }
    }

    /// How many requests of one sort were answered so far.
    #[must_use]
    pub fn requests(&self, sort: Sort) -> u64 {
        self.0[sort.index()].requests.load(Ordering::Relaxed)
    }

    /// What was counted so far of one sort.
    #[must_use]
    pub fn counts(&self, sort: Sort) -> Counts {
        let shared = &self.0[sort.index()];
        let read = |from: &AtomicU64| from.load(Ordering::Relaxed);
        Counts {
            requests: read(&shared.requests),
            errors: read(&shared.errors),
            bytes: read(&shared.bytes),
            microseconds: read(&shared.microseconds),
            durations: std::array::from_fn(|i| read(&shared.durations[i])),
        }
    }
}
