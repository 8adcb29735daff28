//! What others may ask of a command under way: to end, to pause, to go slower.
//!
//! A command that was asked ends at its next step on a store, as if it had been killed there: every step is safe to be the last
//! one. What it holds (locks, watches) is given back afterwards.

use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use ferry_core::{Errno, Error, ErrorKind, Result};

/// A wish that a command may end. All clones are the same wish.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Inner>);

#[derive(Default)]
struct Inner {
    is_asked: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
    hooks: Mutex<Vec<Hook>>,
    limits: Limits,
}

/// How fast a command may copy. Only those that copy in the background look at it; they look before each object.
#[derive(Debug, Default)]
pub struct Limits {
    is_paused: AtomicBool,
    /// Zero for no limit.
    bytes_per_second: AtomicU64,
    /// Zero for the command's own number.
    in_flight: AtomicUsize,
}

impl Limits {
    /// Whether nothing more shall be begun.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.is_paused.load(Ordering::Acquire)
    }

    /// Begins nothing more, or goes on.
    pub fn pause(&self, is_paused: bool) {
        self.is_paused.store(is_paused, Ordering::Release);
    }

    /// Bytes in a second, if they are limited.
    #[must_use]
    pub fn rate(&self) -> Option<u64> {
        Some(self.bytes_per_second.load(Ordering::Acquire)).filter(|r| *r > 0)
    }

    /// Sets how many bytes in a second; zero lifts the limit.
    pub fn set_rate(&self, bytes_per_second: u64) {
        self.bytes_per_second.store(bytes_per_second, Ordering::Release);
    }

    /// Objects at once, if they were set.
    #[must_use]
    pub fn in_flight(&self) -> Option<usize> {
        Some(self.in_flight.load(Ordering::Acquire)).filter(|n| *n > 0)
    }

    /// Sets how many objects at once; zero for the command's own number.
    pub fn set_in_flight(&self, objects: usize) {
        self.in_flight.store(objects, Ordering::Release);
    }
}

/// What is done when somebody asks.
type Hook = Box<dyn FnOnce() + Send>;

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancel").field("is_asked", &self.is_asked).finish_non_exhaustive()
    }
}

impl Cancel {
    /// Nobody asks yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks.
    pub fn ask(&self) {
        self.0.is_asked.store(true, Ordering::Release);
        let waiting = std::mem::take(&mut *self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(Waker::wake);
        let hooks = std::mem::take(&mut *self.0.hooks.lock().unwrap_or_else(PoisonError::into_inner));
        hooks.into_iter().for_each(|hook| hook());
    }

    /// Does `hook` when somebody asks; at once, if somebody has.
    pub fn when_asked(&self, hook: impl FnOnce() + Send + 'static) {
        let mut hooks = self.0.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_asked() {
            drop(hooks);
            hook();
        } else {
            hooks.push(Box::new(hook));
        }
    }

    /// How fast the command may copy.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.0.is_asked.load(Ordering::Acquire)
    }

    /// Waits until somebody asks.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn asked(&self) {
        poll_fn(|cx| {
            let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if self.is_asked() {
                return Poll::Ready(());
            }
            if !waiting.iter().any(|w| w.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// Goes on, unless somebody asked.
    ///
    /// # Errors
    /// `Unavailable` with errno `EINTR` (4).
    pub fn check(&self) -> Result<()> {
        if self.is_asked() { Err(interrupted()) } else { Ok(()) }
    }
}

/// The error of a command that was asked to end.
pub(crate) fn interrupted() -> Error {
    Error::new(ErrorKind::Unavailable, "the command was stopped").errno_is(Errno::EINTR)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ferry_core::Errno;

    use super::Cancel;

    #[test]
    fn whoever_waits_hears_the_wish() {
        let cancel = Cancel::new();
        cancel.check().unwrap();
        std::thread::scope(|s| {
            let waiting = s.spawn(|| futures_executor::block_on(cancel.asked()));
            std::thread::sleep(Duration::from_millis(5));
            cancel.ask();
            waiting.join().unwrap();
        });
        assert_eq!(cancel.check().unwrap_err().errno(), Errno::EINTR);
    }
}
