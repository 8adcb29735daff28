//! How long the device keeps a reader waiting: whether reads had better go to other threads, several at once.
//!
//! A read from memory is done sooner than it is handed over; one that waits for a disk keeps all behind it waiting.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A read that keeps its caller longer than this, beyond what its bytes take, was not from memory. Nanoseconds.
const SLOW: u64 = 20_000;
/// What bytes take from memory at the least, checksums included: 2 a nanosecond.
const BYTES_PER_NANOSECOND: u64 = 2;
/// One read counts for one part in so many.
const WEIGHT: u64 = 8;
/// What one read counts for at most: one that waited for a second does not make the next thousand slow. Nanoseconds.
const LONGEST: u64 = 1_000_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pace(AtomicU64);

impl Pace {
    /// Whether reads of late were slow.
    pub(super) fn is_slow(&self) -> bool {
        self.0.load(Ordering::Relaxed) > SLOW
    }

    /// Takes in how long `reads` reads of `bytes` bytes in all took, one after the other. Two threads at once may lose one of
    /// their readings.
    pub(super) fn took(&self, reads: u64, bytes: u64, took: Duration) {
        if reads == 0 {
            return;
        }
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let each = (took.saturating_sub(bytes / BYTES_PER_NANOSECOND) / reads).min(LONGEST);
        let mut average = self.0.load(Ordering::Relaxed);
        for _ in 0..reads.min(4 * WEIGHT) {
            average = (average * (WEIGHT - 1) + each) / WEIGHT;
        }
        self.0.store(average, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Pace;

    #[test]
    fn a_disk_is_told_from_memory() {
        let pace = Pace::default();
        let micros = Duration::from_micros;
        (0..100).for_each(|_| pace.took(1, 4096, micros(5)));
        assert!(!pace.is_slow());
        // A single one may have had bad luck.
        pace.took(1, 4096, micros(120));
        assert!(!pace.is_slow());
        (0..8).for_each(|_| pace.took(1, 4096, micros(80)));
        assert!(pace.is_slow());
        (0..20).for_each(|_| pace.took(1, 4096, micros(5)));
        assert!(!pace.is_slow());
        // Large ones may take longer.
        (0..100).for_each(|_| pace.took(1, 1 << 20, micros(400)));
        assert!(!pace.is_slow());
        // However long one took, it is soon forgotten.
        pace.took(1, 4096, Duration::from_secs(9));
        assert!(pace.is_slow());
        pace.took(40, 40 * 4096, micros(200));
        assert!(!pace.is_slow());
    }
}
