//! The pace of a copy in the background: as fast as the limits of its command say now, and giving way to clients; and the threads a
//! comparison has.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ferry_core::{Env, Reply};
use ferry_migrate::{Pace, Threads};
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;

use crate::cancel::Cancel;
use crate::host::Host;

/// Objects at once where nobody says.
const IN_FLIGHT: usize = 8;

/// Objects at once while clients of this process are busy.
const IN_FLIGHT_BESIDE: usize = 1;

/// Clients are busy where they ask for more than one thing in so long.
const BUSY: Duration = Duration::from_millis(1);

/// What a copy waits at most for busy clients before an object.
const GIVEN_WAY_MAX: Duration = Duration::from_millis(100);

/// How often a paused copy looks whether it may go on.
const LOOK: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug)]
pub(super) struct Throttle {
    env: Env,
    /// Threads with a clock that wakes.
    threads: Handle,
    cancel: Cancel,
    /// Whose clients the copy gives way to.
    host: Arc<Host>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the next object may begin by the rate, on the clock that never goes back.
    next: Duration,
    /// When the last one could begin, and what clients had asked for then.
    last: Duration,
    requests: u64,
    is_busy: bool,
}

impl State {
    /// How long to give way before the next object, `now` that clients have asked for `requests` things: while they are busy, half as long
    /// again as the last one took, so that the copy has two fifths of the time.
    fn give_way(&mut self, now: Duration, requests: u64) -> Duration {
        let (took, asked) = (now.saturating_sub(self.last), requests.saturating_sub(self.requests));
        let is_first = self.last.is_zero();
        self.is_busy = !is_first && u128::from(asked) * BUSY.as_nanos() > took.as_nanos();
        let wait = if self.is_busy { (took * 3 / 2).min(GIVEN_WAY_MAX) } else { Duration::ZERO };
        (self.last, self.requests) = (now + wait, requests);
        wait
    }
}

impl Throttle {
    pub(super) fn new(env: &Env, threads: &Handle, cancel: &Cancel, host: &Arc<Host>) -> Self {
        let (env, threads, cancel, host) = (env.clone(), threads.clone(), cancel.clone(), Arc::clone(host));
        Self { env, threads, cancel, host, state: Mutex::default() }
    }

    /// How long to wait before an object of so many bytes.
    fn wait(&self, bytes: u64) -> Duration {
        let (now, requests) = (self.env.clock.elapsed(), self.host.requests());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(rate) = self.cancel.limits().rate() else { return state.give_way(now, requests) };
        // The rate alone counts.
        state.is_busy = false;
        let begin = now.max(state.next);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        state.next = begin + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
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
        let is_busy = self.state.lock().unwrap_or_else(PoisonError::into_inner).is_busy;
        let usual = if is_busy { IN_FLIGHT_BESIDE } else { IN_FLIGHT };
        self.cancel.limits().in_flight().unwrap_or(usual)
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

#[cfg(test)]
mod tests {
    use super::{Duration, GIVEN_WAY_MAX, State};

    #[test]
    fn a_copy_gives_way_while_clients_are_busy_and_only_then() {
        let ms = Duration::from_millis;
        let mut state = State::default();
        assert_eq!(state.give_way(ms(1000), 50_000), ms(0), "what clients did before it began");
        assert_eq!(state.give_way(ms(1008), 50_003), ms(0), "three requests in 8 ms");
        assert!(!state.is_busy);
        assert_eq!(state.give_way(ms(1018), 50_103), ms(15), "a hundred in 10 ms");
        assert!(state.is_busy);
        // What was given is not what the next one took.
        assert_eq!(state.give_way(ms(1039), 50_203), ms(9));
        assert_eq!(state.give_way(ms(3000), 90_000), GIVEN_WAY_MAX);
        assert_eq!(state.give_way(ms(3200), 90_000), ms(0));
        assert!(!state.is_busy);
    }
}
