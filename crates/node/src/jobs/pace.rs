//! How fast a step moves.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::api::CopyProgress;

/// How far back it is looked for a rate.
const WINDOW: Duration = Duration::from_secs(10);

/// Least time between two looks that are kept.
const APART: Duration = Duration::from_millis(50);

/// How far a step was when.
#[derive(Debug, Default)]
pub(super) struct Pace {
    seen: VecDeque<(Instant, u64)>,
}

impl Pace {
    /// So much is done now. Less than before: it is another step.
    pub(super) fn at(&mut self, now: Instant, done: u64) {
        if self.seen.back().is_some_and(|(_, before)| done < *before) {
            self.seen.clear();
        }
        if self.seen.back().is_none_or(|(at, _)| now.duration_since(*at) >= APART) {
            self.seen.push_back((now, done));
        }
        self.forget(now);
    }

    /// Keeps one look that is older than the window.
    fn forget(&mut self, now: Instant) {
        while self.seen.get(1).is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.seen.pop_front();
        }
    }

    /// How far it is, and how fast it gets on.
    pub(super) fn progress(&self, now: Instant, done: u64, total: u64) -> CopyProgress {
        let oldest = self.seen.iter().find(|(at, _)| now.duration_since(*at) <= WINDOW).or(self.seen.back());
        let rate = oldest.map_or(0, |(at, before)| {
            let millis = now.duration_since(*at).as_millis().max(1);
            u64::try_from(u128::from(done.saturating_sub(*before)) * 1000 / millis).unwrap_or(u64::MAX)
        });
        let left = total.saturating_sub(done);
        let seconds_left = (rate > 0).then(|| left.div_ceil(rate.max(1)));
        CopyProgress {
            done_bytes: done,
            total_bytes: total,
            bytes_per_second: rate,
            seconds_left,
            rate_limit: None,
            in_flight: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Pace;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let (began, mut pace) = (Instant::now(), Pace::default());
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        for n in 0..=20 {
            pace.at(at(n), n * 1000);
        }
        let now = pace.progress(at(20), 20_000, 30_000);
        assert_eq!((now.bytes_per_second, now.seconds_left), (1000, Some(10)));
        // It stands still: the rate falls, and in the end nothing is left of it.
        assert!(pace.progress(at(25), 20_000, 30_000).bytes_per_second < 700);
        let later = pace.progress(at(100), 20_000, 30_000);
        assert_eq!((later.bytes_per_second, later.seconds_left), (0, None));
    }
}
