//! Time and randomness from a seed.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use crate::env::{Clock, Env, Rng, Timestamp};
use crate::reply::Reply;

/// How often others on the same thread are looked at while a test sleeps.
const SLEEP_TURNS: u32 = 16;

/// A clock that advances a millisecond each time it is asked, and by hand.
#[derive(Debug)]
pub struct TestClock {
    nanos: AtomicU64,
}

impl TestClock {
    /// A clock standing at `seconds` since 1970.
    #[must_use]
    pub fn at(seconds: u64) -> Self {
        Self { nanos: AtomicU64::new(seconds * 1_000_000_000) }
    }

    /// Lets time pass.
    ///
    /// # Panics
    /// If it is more than 500 years.
    pub fn advance(&self, by: Duration) {
        self.nanos.fetch_add(u64::try_from(by.as_nanos()).expect("centuries fit"), Ordering::Relaxed);
    }

    fn tick(&self) -> u64 {
        self.nanos.fetch_add(1_000_000, Ordering::Relaxed)
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        let nanos = self.tick();
        Timestamp {
            seconds: u32::try_from(nanos / 1_000_000_000).expect("before 2106"),
            nanoseconds: u32::try_from(nanos % 1_000_000_000).expect("below a billion"),
        }
    }

    fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.tick())
    }

    /// Lets the time pass at once, and others on the same thread get on a little.
    fn sleep(&self, time: Duration) -> Reply<()> {
        self.advance(time);
        let mut turns = SLEEP_TURNS;
        Reply::pending(poll_fn(move |cx| {
            if turns == 0 {
                return Poll::Ready(Ok(()));
            }
            turns -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        }))
    }
}

/// SplitMix64: the same numbers for the same seed.
#[derive(Debug)]
pub struct TestRng(AtomicU64);

impl TestRng {
    /// Numbers determined by `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// A number below `n`.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(&self, n: u64) -> u64 {
        assert!(n > 0, "nothing is below zero");
        self.next_u64() % n
    }

    /// True once in `n` times.
    pub fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }
}

impl Rng for TestRng {
    fn next_u64(&self) -> u64 {
        let mut z =
            self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// Time from late 2026 on and randomness from `seed`.
#[must_use]
pub fn test_env(seed: u64) -> Env {
    Env { clock: Arc::new(TestClock::at(1_795_000_000)), rng: Arc::new(TestRng::new(seed)) }
}
