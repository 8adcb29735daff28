//! A gate that many pass at once, and that one may close when nobody is inside.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<State>);

/// # Invariants
/// While `is_closed`, nobody enters; `inside` only falls.
#[derive(Debug, Default)]
struct State {
    inside: usize,
    is_closed: bool,
    /// Whether whoever closed it reads the header again by now: what is told from here on may be newer than what they read.
    is_reading: bool,
    /// How often it was closed.
    closings: u64,
    waiting: Vec<Waker>,
}

/// Somebody inside; leaves when dropped.
#[derive(Debug)]
pub(super) struct Entered<'a>(&'a Gate);

/// The gate being closed; opens when dropped.
#[derive(Debug)]
pub(super) struct Closed<'a>(&'a Gate);

impl<'a> Closed<'a> {
    /// Opens the gate and is the first inside: nobody closes it in between.
    pub(super) fn enter(self) -> Entered<'a> {
        let gate = self.0;
        gate.state().inside += 1;
        Entered(gate)
    }

    /// Says that the header is about to be read: what was told before will be seen, what is told later may not be.
    pub(super) fn begin_reading(&self) {
        self.0.state().is_reading = true;
    }
}

impl Gate {
    /// Goes in, once the gate is open.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub(super) async fn enter(&self) -> Entered<'_> {
        poll_fn(|cx| {
            let mut state = self.state();
            if state.is_closed {
                state.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
            state.inside += 1;
            Poll::Ready(())
        })
        .await;
        Entered(self)
    }

    /// Goes in, if the gate is open; whoever went in says so with [`Self::leave`].
    pub(super) fn try_enter(&self) -> bool {
        let mut state = self.state();
        if !state.is_closed {
            state.inside += 1;
        }
        !state.is_closed
    }

    /// Somebody who went in is out again.
    pub(super) fn leave(&self) {
        let waiting = {
            let mut state = self.state();
            state.inside -= 1;
            // Nobody waits for one of many to leave an open gate.
            if !state.is_closed || state.inside > 0 {
                return;
            }
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Closes the gate and waits until everybody has left.
    ///
    /// # Cancel safety
    /// Dropping the future opens the gate again.
    pub(super) async fn close(&self) -> Closed<'_> {
        poll_fn(|cx| {
            let mut state = self.state();
            if state.is_closed {
                state.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
            state.is_closed = true;
            state.closings += 1;
            Poll::Ready(())
        })
        .await;
        self.emptied().await
    }

    /// Closes the gate and waits until everybody has left, unless somebody else has closed it, nobody is inside, and they have yet
    /// to read the header: `None` then. Looking and closing are one step: between them nobody closes it who waits for the caller.
    ///
    /// # Cancel safety
    /// As [`Self::close`].
    pub(super) async fn close_unless_closed(&self) -> Option<Closed<'_>> {
        let is_mine = poll_fn(|cx| {
            let mut state = self.state();
            if !state.is_closed {
                state.is_closed = true;
                state.closings += 1;
                return Poll::Ready(true);
            }
            if state.inside == 0 && !state.is_reading {
                return Poll::Ready(false);
            }
            state.waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
        if is_mine { Some(self.emptied().await) } else { None }
    }

    /// The gate, closed just now, once everybody has left.
    async fn emptied(&self) -> Closed<'_> {
        let closed = Closed(self);
        // Whoever waits for the gate to close wants to know.
        self.change(|_| {});
        poll_fn(|cx| {
            let mut state = self.state();
            if state.inside > 0 {
                state.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        closed
    }

    /// Waits until the gate is open.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub(super) async fn until_open(&self) {
        self.until(|state| !state.is_closed).await;
    }

    /// How often the gate was closed.
    pub(super) fn closings(&self) -> u64 {
        self.state().closings
    }

    /// Waits until somebody closes the gate, or has closed it since it was closed `seen` times.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub(super) async fn until_closed_beyond(&self, seen: u64) {
        self.until(|state| state.closings > seen).await;
    }

    /// Waits until the gate is open, or closed with nobody inside; whether it is open.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub(super) async fn settled(&self) -> bool {
        poll_fn(|cx| {
            let mut state = self.state();
            if !state.is_closed {
                return Poll::Ready(true);
            }
            if state.inside == 0 {
                return Poll::Ready(false);
            }
            state.waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Waits until the state is as wanted.
    async fn until(&self, is_wanted: impl Fn(&State) -> bool) {
        poll_fn(|cx| {
            let mut state = self.state();
            if is_wanted(&state) {
                return Poll::Ready(());
            }
            state.waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// The state; a thread that panicked while holding it left it whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes whoever waits for a change.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let waiting = {
            let mut state = self.state();
            change(&mut state);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.change(|state| (state.is_closed, state.is_reading) = (false, false));
    }
}

#[cfg(test)]
mod tests {
    use futures_executor::block_on;
    use futures_util::FutureExt;
    use futures_util::future::join;

    use super::Gate;

    #[test]
    fn closing_waits_for_those_inside_and_holds_back_those_outside() {
        let gate = Gate::default();
        let inside = gate.enter().now_or_never().expect("an open gate lets in");
        let mut closing = Box::pin(gate.close());
        assert!(closing.as_mut().now_or_never().is_none(), "somebody is inside");
        assert!(gate.enter().now_or_never().is_none(), "nobody gets in any more");
        drop(inside);
        let closed = closing.as_mut().now_or_never().expect("nobody is inside");
        assert!(gate.enter().now_or_never().is_none());
        drop(closed);
        drop(closing);
        assert!(gate.enter().now_or_never().is_some());
    }

    #[test]
    fn whoever_opens_the_gate_may_be_the_first_inside() {
        let gate = Gate::default();
        let closed = block_on(gate.close());
        let mut next = Box::pin(gate.close());
        assert!(next.as_mut().now_or_never().is_none());
        let inside = closed.enter();
        assert!(next.as_mut().now_or_never().is_none(), "whoever opened it is inside");
        drop(inside);
        assert!(next.as_mut().now_or_never().is_some());
    }

    #[test]
    fn whoever_waits_is_woken() {
        let gate = Gate::default();
        let inside = block_on(gate.enter());
        block_on(join(
            async {
                let closed = gate.close().await;
                drop(closed);
                gate.enter().await;
            },
            async { drop(inside) },
        ));
    }

    #[test]
    fn it_is_not_closed_twice_while_what_is_told_will_still_be_read() {
        let gate = Gate::default();
        let closed = block_on(gate.close());
        assert!(gate.close_unless_closed().now_or_never().expect("nobody is inside").is_none());
        closed.begin_reading();
        let mut next = Box::pin(gate.close_unless_closed());
        assert!(next.as_mut().now_or_never().is_none(), "what is told now may not be read any more");
        drop(closed);
        let closed = next.as_mut().now_or_never().expect("the gate was opened");
        assert!(closed.is_some() && gate.enter().now_or_never().is_none());
        drop(closed);
        drop(next);
        let inside = block_on(gate.enter());
        let mut next = Box::pin(gate.close_unless_closed());
        assert!(next.as_mut().now_or_never().is_none(), "somebody is inside");
        drop(inside);
        assert!(next.as_mut().now_or_never().expect("nobody is inside").is_some());
    }

    #[test]
    fn giving_up_on_closing_opens_the_gate_again() {
        let gate = Gate::default();
        let inside = block_on(gate.enter());
        {
            let mut closing = Box::pin(gate.close());
            assert!(closing.as_mut().now_or_never().is_none());
        }
        assert!(gate.enter().now_or_never().is_some());
        drop(inside);
    }
}
