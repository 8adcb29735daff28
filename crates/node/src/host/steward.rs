//! Tends the stores of a process: cleans while nobody waits, and lets others in once the process has stayed for a while.

use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{Host, Stay};

/// How long a process that executes one command keeps its stores to itself. Most commands are over by then.
const SHORT_COMMAND: Duration = Duration::from_millis(200);

/// How often stores are looked after that had nothing to do. A store written at full speed fills a segment in less than 100 ms.
const INTERVAL: Duration = Duration::from_millis(20);

/// Pieces of work done at once, between looks at whether the process ends.
const PIECES_MAX: usize = 16;

/// A thread that does it. Stopped when dropped.
#[derive(Debug)]
pub(super) struct Steward {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Stop {
    is_asked: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Waits; whether it is time to stop.
    fn wait(&self, time: Duration) -> bool {
        let asked = self.is_asked.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(asked, time, |asked| !*asked);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Steward {
    /// Looks after the stores of `host`.
    pub(super) fn start(host: Weak<Host>) -> Self {
        let stop = Arc::new(Stop::default());
        let asked = Arc::clone(&stop);
        let thread = thread::Builder::new().name("steward".to_owned()).spawn(move || work(&host, &asked));
        // Without a thread stores are cleaned when they need space, and others wait for us as for a short command.
        Self { stop, thread: thread.ok() }
    }
}

impl Drop for Steward {
    fn drop(&mut self) {
        *self.stop.is_asked.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // One that panicked has ended as well.
            thread.join().ok();
        }
    }
}

fn work(host: &Weak<Host>, stop: &Stop) {
    if stop.wait(SHORT_COMMAND) {
        return;
    }
    if let Some(host) = host.upgrade()
        && host.stay == Stay::Command
    {
        // Where nobody can come in, others wait until this command is over, and are told so.
        host.open_doors().ok();
    }
    let mut has_more = false;
    while !stop.wait(if has_more { Duration::ZERO } else { INTERVAL }) {
        let Some(host) = host.upgrade() else { return };
        has_more = false;
        for store in host.stores.all() {
            for piece in 1..=PIECES_MAX {
                // What keeps a store from being cleaned, the next command that writes meets and reports.
                if !matches!(store.tend(), Ok(true)) || stop.wait(Duration::ZERO) {
                    break;
                }
                has_more |= piece == PIECES_MAX;
            }
        }
    }
}
