//! Asynchronous requests: a callback on librados' thread hands the outcome to a oneshot.

use std::ffi::{c_int, c_void};
use std::pin::Pin;
use std::ptr::null_mut;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll};

use ferry_core::{Error, ErrorKind, Result};
use futures_channel::oneshot;

use super::IoCtx;
use crate::errno::check;
use crate::ffi::{Api, rados_completion_t};

/// Counts the requests of an I/O context that have not come back.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    count: Mutex<usize>,
    changed: Condvar,
}

impl InFlight {
    /// Waits until all have come back.
    pub(super) fn wait_until_none(&self) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count > 0 {
            count = self.changed.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// One request that has not come back.
pub(super) struct Ticket(Arc<InFlight>);

impl Ticket {
    pub(super) fn new(in_flight: &Arc<InFlight>) -> Self {
        *in_flight.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Self(Arc::clone(in_flight))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut count = self.0.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        // Waking costs a system call, also where nobody waits.
        if *count == 0 {
            self.0.changed.notify_all();
        }
    }
}

/// How a request ended.
#[derive(Debug)]
pub(crate) struct Outcome<T> {
    /// Negative errno, or what the request gives.
    pub(crate) result: c_int,
    /// The object's version.
    pub(crate) version: u64,
    /// What librados wrote to.
    pub(crate) payload: T,
}

/// What the callback needs. Freed by it, or here where the request was never accepted.
struct Carrier<T> {
    api: &'static Api,
    sender: oneshot::Sender<Outcome<T>>,
    payload: T,
    /// Goes last: after it the I/O context may be destroyed.
    _ticket: Ticket,
}

/// Runs on librados' thread.
unsafe extern "C" fn completed<T>(completion: rados_completion_t, arg: *mut c_void) {
    // SAFETY: `arg` is the carrier `submit` made for this completion, which calls back once.
    let carrier = unsafe { Box::from_raw(arg.cast::<Carrier<T>>()) };
    let Carrier { api, sender, payload, _ticket } = *carrier;
    // SAFETY: the completion is valid during its callback.
    let result = unsafe { (api.rados_aio_get_return_value)(completion) };
    // SAFETY: as above.
    let version = unsafe { (api.rados_aio_get_version)(completion) };
    // Nobody waits for a reply that was dropped; what librados wrote to goes with it.
    drop(sender.send(Outcome { result, version, payload }));
}

/// Submits a request: `start` hands the completion to librados. What it makes librados write to must live in `payload`.
///
/// # Errors
/// What librados says at once.
///
/// # Cancel safety
/// Dropping the future leaves the request going; the payload stays until it is back.
pub(super) fn submit<T: Send + 'static>(
    io: &Arc<IoCtx>,
    payload: T,
    start: impl FnOnce(rados_completion_t) -> c_int,
) -> Result<Pending<T>> {
    let api = io.api();
    let (sender, receiver) = oneshot::channel();
    let carrier = Box::new(Carrier { api, sender, payload, _ticket: Ticket::new(&io.in_flight) });
    let arg = Box::into_raw(carrier).cast::<c_void>();
    let mut completion = null_mut();
    // SAFETY: the callback takes the carrier that `arg` is.
    let made = unsafe { (api.rados_aio_create_completion2)(arg, completed::<T>, &raw mut completion) };
    let started = if made < 0 { made } else { start(completion) };
    if made >= 0 {
        // SAFETY: librados keeps its own reference to a completion it has accepted.
        unsafe { (api.rados_aio_release)(completion) };
    }
    if let Err(e) = check(started, "submitting a request") {
        // SAFETY: librados refused the request, so the callback will not take the carrier.
        drop(unsafe { Box::from_raw(arg.cast::<Carrier<T>>()) });
        return Err(e);
    }
    Ok(Pending { receiver, _io: Arc::clone(io) })
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Pending<T> {
    receiver: oneshot::Receiver<Outcome<T>>,
    /// Kept, so that it is not on librados' thread that the last owner goes.
    _io: Arc<IoCtx>,
}

impl<T> Future for Pending<T> {
    type Output = Result<Outcome<T>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let forgotten = |_| Error::new(ErrorKind::Internal, "librados forgot a request");
        Pin::new(&mut self.receiver).poll(cx).map_err(forgotten)
    }
}
