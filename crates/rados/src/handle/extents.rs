//! Where objects have data. librados has this request in no asynchronous form, so each waits on a thread of its own.

use std::ffi::{CStr, c_int};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use ferry_core::{Errno, Result};
use futures_channel::oneshot;

use super::IoCtx;
use super::completion::Ticket;
use crate::errno::error;
use crate::ffi::rados_ioctx_t;
use crate::limits::{EXTENT_THREADS_MAX, FULL_STREAK};

#[cfg(test)]
mod tests;

/// `(offset, length)` in bytes, ascending.
pub(crate) type Extents = Vec<(u64, u64)>;

/// Threads that wait.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// One of them.
struct Waiting;

impl Waiting {
    /// `None` where there are enough.
    fn begin() -> Option<Self> {
        let more = |waiting| (waiting < EXTENT_THREADS_MAX).then_some(waiting + 1);
        WAITING.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok().map(|_| Self)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        WAITING.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How many objects in a row were long and had no holes.
#[derive(Debug, Default)]
pub(crate) struct Streak(AtomicUsize);

impl Streak {
    /// Whether to look for holes in the next object: in images that have none it costs two requests for each. Where several in a row had
    /// none, only one of so many is looked at, to see when that ends.
    pub(crate) fn wants_look(&self) -> bool {
        let before = self.0.fetch_add(1, Ordering::AcqRel);
        before < FULL_STREAK || before.is_multiple_of(FULL_STREAK)
    }

    /// Says how much of `length` bytes was data.
    pub(crate) fn note(&self, data: usize, length: usize) {
        // A few holes do not pay.
        if data < length / 4 * 3 {
            self.0.store(0, Ordering::Release);
        }
    }
}

/// A handle that a ticket keeps open.
struct Handle(rados_ioctx_t);

// SAFETY: as of `IoCtx`.
unsafe impl Send for Handle {}

impl IoCtx {
    /// Asks for the parts of a range, `(offset, length)`, of an object that have data: ascending, apart, inside the range and the
    /// object. All else of the object are holes. The reply is `None` where it cannot be told, as in erasure-coded pools; so is this where
    /// it cannot be asked, or too many ask already.
    ///
    /// # Errors
    /// Of the reply: `NotFound` (2) where the object does not exist.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the request going; the context waits for it.
    pub(crate) fn find_extents(
        self: &Arc<Self>,
        object: &CStr,
        range: (u64, usize),
    ) -> Option<impl Future<Output = Result<Option<Extents>>> + Send + use<>> {
        let map_extents = self.api().map_extents.as_ref()?;
        if self.lacks_extents.load(Ordering::Acquire) {
            return None;
        }
        let waiting = Waiting::begin()?;
        let (sender, receiver) = oneshot::channel();
        let (name, handle, ticket) = (object.to_owned(), Handle(self.raw), Ticket::new(&self.in_flight));
        let ask = move || {
            let handle = handle;
            // SAFETY: the context is not closed while it has a ticket out.
            let told = unsafe { map_extents.ask(handle.0, name.to_bytes(), range) };
            drop((ticket, waiting));
            // Nobody waits for a reply that was dropped.
            drop(sender.send(told));
        };
        thread::Builder::new().name("ferry-extents".into()).spawn(ask).ok()?;
        let io = Arc::clone(self);
        Some(async move {
            // Without an answer nothing is known.
            let told = receiver.await.unwrap_or(Err(0));
            told.map_or_else(|result| io.untold(result), |extents| Ok(Some(extents)))
        })
    }

    /// What it means that extents were not told.
    fn untold(&self, result: c_int) -> Result<Option<Extents>> {
        let e = error(result, "asking where an object has data");
        match e.errno() {
            Errno::ENOENT => Err(e),
            errno => {
                if errno == Errno::EOPNOTSUPP {
                    self.lacks_extents.store(true, Ordering::Release);
                }
                // Whatever else it is, a read of all bytes meets it too, and tells of it.
                Ok(None)
            }
        }
    }
}
