//! The pace of a copy in the background: as fast as the limits of its command say now; and the threads a comparison has.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ferry_core::{Env, Reply};
use ferry_migrate::{Pace, Threads};
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;

use crate::cancel::Cancel;

/// Objects at once where nobody says.
const IN_FLIGHT: usize = 8;

/// How often a paused copy looks whether it may go on.
const LOOK: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug)]
pub(super) struct Throttle {
    env: Env,
    /// Threads with a clock that wakes.
    threads: Handle,
    cancel: Cancel,
    /// When the next object may begin, on the clock that never goes back.
    next: Mutex<Duration>,
}

impl Throttle {
    pub(super) fn new(env: &Env, threads: &Handle, cancel: &Cancel) -> Self {
        Self { env: env.clone(), threads: threads.clone(), cancel: cancel.clone(), next: Mutex::default() }
    }

    /// How long to wait before an object of so many bytes.
    fn wait(&self, bytes: u64) -> Duration {
        let Some(rate) = self.cancel.limits().rate() else { return Duration::ZERO };
        let now = self.env.clock.elapsed();
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = now.max(*next);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        *next = begin + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        begin.saturating_sub(now)
    }
}

impl Pace for Throttle {
    fn admit(&self, bytes: u64) -> Reply<()> {
        if let Err(e) = self.cancel.check() {
            return Reply::ready(Err(e));
        }
        let wait = self.wait(bytes);
        if wait.is_zero() && !self.cancel.limits().is_paused() {
            return Reply::ready(Ok(()));
        }
        let (cancel, threads) = (self.cancel.clone(), self.threads.clone());
        Reply::pending(async move {
            let waiting = {
                let cancel = cancel.clone();
                threads.spawn(async move {
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = cancel.asked() => {}
                    }
                    while cancel.limits().is_paused() && !cancel.is_asked() {
                        tokio::time::sleep(LOOK).await;
                    }
                })
            };
            // Threads that end take the wait with them; the next step finds out why.
            waiting.await.ok();
            cancel.check()
        })
    }

    fn objects_in_flight(&self) -> usize {
        self.cancel.limits().in_flight().unwrap_or(IN_FLIGHT)
    }
}

/// Threads for work that ends by itself, but those that serve clients: stores may answer late.
#[derive(Debug)]
pub(super) struct Beside(pub(super) Handle);

impl Threads for Beside {
    fn start(&self, work: BoxFuture<'static, ()>) {
        // Where the threads end, the work ends with them, and who waits for it hears of that.
        drop(self.0.spawn_blocking(move || futures_executor::block_on(work)));
    }
}
