//! Time and randomness, handed in from outside so that a seed can replay a run.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::reply::Reply;

/// A point in time: seconds and nanoseconds since 1970 UTC, as Ceph's `utime`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds; Ceph has 32 bits for them.
    pub seconds: u32,
    /// Nanoseconds within the second.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// The time `later` after this one; the far end of the clock where that is past it.
    #[must_use]
    pub fn after(self, later: Duration) -> Self {
        let nanos = u64::from(self.nanoseconds) + u64::from(later.subsec_nanos());
        let carry = nanos / 1_000_000_000;
        let seconds = u64::from(self.seconds).saturating_add(later.as_secs()).saturating_add(carry);
        Self {
            seconds: u32::try_from(seconds).unwrap_or(u32::MAX),
            nanoseconds: u32::try_from(nanos % 1_000_000_000).expect("below a billion"),
        }
    }
}

/// Tells the time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The wall clock, for timestamps people read.
    fn now(&self) -> Timestamp;
    /// A clock that never goes back, for measuring how long something took.
    fn elapsed(&self) -> Duration;
    /// Answers once `time` has passed.
    fn sleep(&self, time: Duration) -> Reply<()>;
}

/// Gives random numbers.
pub trait Rng: Send + Sync + fmt::Debug {
    /// 64 random bits.
    fn next_u64(&self) -> u64;
}

/// What a room needs from the world outside it.
#[derive(Clone, Debug)]
pub struct Env {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Random numbers.
    pub rng: Arc<dyn Rng>,
}
