//! A gate that many pass at once, and that one may close when nobody is inside. Passing it costs two atomic additions.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, Semaphore};

/// Somebody wants the gate closed, or has it closed.
const CLOSING: usize = 1;
/// Somebody inside.
const ONE: usize = 2;

/// See the module.
#[derive(Debug)]
pub(super) struct Gate {
    /// How many are inside, in units of [`ONE`], and [`CLOSING`].
    state: AtomicUsize,
    /// Rung when the last one left a closing gate.
    emptied: Notify,
    /// Rung when the gate opens.
    opened: Notify,
    /// Taken by whoever closes it.
    closer: Semaphore,
}

impl Default for Gate {
    fn default() -> Self {
        let (emptied, opened) = (Notify::new(), Notify::new());
        Self { state: AtomicUsize::new(0), emptied, opened, closer: Semaphore::new(1) }
    }
}

/// The gate being closed; opens when dropped, unless it is kept.
#[derive(Debug)]
pub(super) struct Closed<'a>(&'a Gate);

impl Closed<'_> {
    /// Keeps the gate closed until [`Gate::open`].
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Gate {
    /// Goes in, unless the gate is closed or about to be; pair it with [`Self::leave`].
    pub(super) fn try_enter(&self) -> bool {
        if self.state.fetch_add(ONE, Ordering::AcqRel) & CLOSING == 0 {
            return true;
        }
        self.leave();
        false
    }

    /// Goes in, once the gate is open; pair it with [`Self::leave`].
    pub(super) async fn enter(&self) {
        loop {
            let opened = self.opened.notified();
            if self.try_enter() {
                return;
            }
            opened.await;
        }
    }

    /// Goes out.
    pub(super) fn leave(&self) {
        if self.state.fetch_sub(ONE, Ordering::AcqRel) == ONE | CLOSING {
            self.emptied.notify_one();
        }
    }

    /// Closes the gate and waits until everybody has left.
    ///
    /// # Cancel safety
    /// Dropping the future opens the gate again.
    pub(super) async fn close(&self) -> Closed<'_> {
        let closer = self.closer.acquire().await.expect("the semaphore is never closed");
        closer.forget();
        self.state.fetch_or(CLOSING, Ordering::AcqRel);
        let closed = Closed(self);
        while self.state.load(Ordering::Acquire) != CLOSING {
            // One permit is kept, so a ring between the look and the wait is not missed.
            self.emptied.notified().await;
        }
        closed
    }

    /// Opens a gate that was closed and kept.
    pub(super) fn open(&self) {
        self.state.fetch_and(!CLOSING, Ordering::AcqRel);
        self.opened.notify_waiters();
        self.closer.add_permits(1);
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}
