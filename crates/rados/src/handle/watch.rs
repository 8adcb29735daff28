//! Watch and notify: callbacks find their watch by number and put what came into its queue.
//!
//! # Invariants
//! - librados gets a number, never a pointer: a callback after the end of a watch finds nothing and does nothing.
//! - A watch stays registered until librados has confirmed its end, so that what comes in between is still answered.
//! - I/O contexts that a callback was the last to hold are buried, not dropped there (see [`super`]).
//! - A registration dropped while under way is kept until librados has answered it, and ended then: by whoever watches or ends a
//!   watch next, at the latest by the end of the store ([`end`]). Nothing of a store is left when the last of its owners is gone:
//!   librados aborts a process that ends under a connection.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::pin::Pin;
use std::ptr::{null_mut, without_provenance_mut};
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use ferry_core::denc::Decoder;
use ferry_core::watch::{Notification, NotifyReply, WatchEvent, WatchHandle, WatchReceiver, WatchSender};
use ferry_core::{ClientId, Errno, Error, Result};

use super::completion::{Pending, submit};
use super::{Cluster, IoCtx, copied};
use crate::errno::check;
use crate::ffi::Api;
use crate::limits::NOTIFY_SECONDS_MAX;

/// Where a watch's events go.
#[derive(Debug)]
enum Inbox {
    /// Nobody can take them yet: the registration is under way.
    Early(Vec<WatchEvent>),
    /// To the receiver.
    Open(WatchSender),
    /// Nobody wants them: they answer for themselves when dropped.
    Closed,
}

/// One watch.
#[derive(Debug)]
struct Watching {
    io: Arc<IoCtx>,
    object: CString,
    inbox: Mutex<Inbox>,
}

static WATCHES: Mutex<BTreeMap<usize, Arc<Watching>>> = Mutex::new(BTreeMap::new());
/// Never dropped on librados' threads; emptied by whoever comes next on one of ours.
static BURIED: Mutex<Vec<Arc<Watching>>> = Mutex::new(Vec::new());
/// Registrations that were dropped before librados had answered them.
static ABANDONED: Mutex<Vec<Registering>> = Mutex::new(Vec::new());
static NUMBER_LAST: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether this thread is one of librados': nothing is waited for on it.
    static IS_LIBRADOS: Cell<bool> = const { Cell::new(false) };
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watching {
    /// Passes an event on. What nobody takes is dropped, and so answered, outside the lock.
    fn deliver(&self, event: WatchEvent) {
        let mut inbox = locked(&self.inbox);
        let left = match &mut *inbox {
            Inbox::Early(events) => {
                events.push(event);
                None
            }
            Inbox::Open(sender) => sender.send(event).err(),
            Inbox::Closed => Some(event),
        };
        drop(inbox);
        drop(left);
    }

    /// Lets nothing in any more.
    fn close(&self) {
        let old = std::mem::replace(&mut *locked(&self.inbox), Inbox::Closed);
        drop(old);
    }
}

/// Runs on librados' thread.
unsafe extern "C" fn on_notify(
    arg: *mut c_void,
    notify_id: u64,
    handle: u64,
    notifier: u64,
    data: *mut c_void,
    length: usize,
) {
    IS_LIBRADOS.set(true);
    let found = locked(&WATCHES).get(&arg.addr()).cloned();
    let Some(watching) = found else { return };
    let payload = copied(data.cast(), length);
    let answered = Arc::clone(&watching);
    let ack = Box::new(move |answer: Bytes| {
        acknowledge(&answered, notify_id, handle, &answer);
        let_go(answered);
    });
    watching.deliver(WatchEvent::Notify(Notification::new(ClientId(notifier), payload.into(), ack)));
    let_go(watching);
}

/// Runs on librados' thread.
unsafe extern "C" fn on_loss(arg: *mut c_void, _cookie: u64, _error: c_int) {
    IS_LIBRADOS.set(true);
    let found = locked(&WATCHES).get(&arg.addr()).cloned();
    if let Some(watching) = found {
        watching.deliver(WatchEvent::Lost);
        let_go(watching);
    }
}

/// Sends an answer off. Any thread may; librados waits for nothing here.
fn acknowledge(watching: &Watching, notify_id: u64, handle: u64, answer: &[u8]) {
    let (io, object) = (&watching.io, watching.object.as_ptr());
    // An answer is some hundred bytes; one too long for C is sent as none.
    let length = c_int::try_from(answer.len()).unwrap_or(0);
    // SAFETY: the handle is open, the name ends in NUL, the answer has the length given and is copied.
    unsafe {
        (io.api().rados_notify_ack)(io.raw, object, notify_id, handle, answer.as_ptr().cast(), length);
    };
}

/// Ends the registration when librados has confirmed the end of the watch, or the request was dropped.
struct Registered(usize);

impl Drop for Registered {
    fn drop(&mut self) {
        let gone = locked(&WATCHES).remove(&self.0);
        if let Some(watching) = gone {
            watching.close();
            // The completion's callback may be who drops this.
            locked(&BURIED).push(watching);
        }
    }
}

/// Drops what was held for a callback: at once on a thread of ours, later on one of librados'.
fn let_go(watching: Arc<Watching>) {
    if IS_LIBRADOS.get() {
        locked(&BURIED).push(watching);
    } else {
        drop(watching);
    }
}

/// Drops what callbacks could not, and ends the watches that came to be when nobody waited for them any more.
pub(crate) fn bury() {
    let all = std::mem::take(&mut *locked(&BURIED));
    drop(all);
    let mut answered = Vec::new();
    locked(&ABANDONED).retain_mut(|registering| {
        let now = Pin::new(registering).poll(&mut Context::from_waker(Waker::noop()));
        let is_pending = now.is_pending();
        if let Poll::Ready(outcome) = now {
            answered.push(outcome);
        }
        is_pending
    });
    for (watching, handle, registered) in answered.into_iter().flatten() {
        submit_unwatch(&watching, registered, handle);
    }
}

/// Ends what a store leaves behind: registrations nobody waited for, and what callbacks held. Waits for librados; `settle`
/// waits for the store's requests.
pub(crate) fn end(cluster: &Cluster, settle: impl Fn()) {
    settle();
    bury();
    settle();
    cluster.wait_for_callbacks();
    bury();
}

/// A registration that librados has not answered yet. Dropped before, it goes on among the abandoned ones.
struct Registering {
    pending: Option<Pending<Arc<AtomicU64>>>,
    watching: Option<Arc<Watching>>,
    registered: Option<Registered>,
}

/// A watch that librados has confirmed.
type Confirmed = (Arc<Watching>, WatchHandle, Registered);

impl Future for Registering {
    type Output = Result<Confirmed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let pending = self.pending.as_mut().expect("polled until it is ready");
        let Poll::Ready(outcome) = Pin::new(pending).poll(cx) else { return Poll::Pending };
        self.pending = None;
        let watching = self.watching.take().expect("taken once");
        let registered = self.registered.take().expect("taken once");
        Poll::Ready(outcome.and_then(|outcome| {
            check(outcome.result, "watching an object")?;
            Ok((watching, WatchHandle(outcome.payload.load(Ordering::Acquire)), registered))
        }))
    }
}

impl Drop for Registering {
    fn drop(&mut self) {
        let Some(pending) = self.pending.take() else { return };
        let watching = self.watching.take();
        if let Some(watching) = &watching {
            watching.close();
        }
        let left = Self { pending: Some(pending), watching, registered: self.registered.take() };
        locked(&ABANDONED).push(left);
    }
}

impl IoCtx {
    /// Watches an object. A registration dropped while under way answers by itself until it is ended.
    pub(crate) fn watch(
        self: &Arc<Self>,
        object: &CStr,
    ) -> Result<impl Future<Output = Result<WatchReceiver>> + Send + use<>> {
        bury();
        let watching = Arc::new(Watching {
            io: Arc::clone(self),
            object: object.to_owned(),
            inbox: Mutex::new(Inbox::Early(Vec::new())),
        });
        let number = NUMBER_LAST.fetch_add(1, Ordering::Relaxed) + 1;
        locked(&WATCHES).insert(number, Arc::clone(&watching));
        let registered = Registered(number);
        let cookie = Arc::new(AtomicU64::new(0));
        let (place, arg) = (cookie.as_ptr(), without_provenance_mut(number));
        let pending = submit(self, cookie, |completion| {
            // SAFETY: the number outlives the request; callbacks take `arg` as a number. Timeout 0 is the cluster's.
            unsafe {
                (self.api().rados_aio_watch2)(
                    self.raw,
                    object.as_ptr(),
                    completion,
                    place,
                    on_notify,
                    on_loss,
                    0,
                    arg,
                )
            }
        })?;
        let registering =
            Registering { pending: Some(pending), watching: Some(watching), registered: Some(registered) };
        Ok(async move {
            let (watching, handle, registered) = registering.await?;
            let ending = Arc::clone(&watching);
            let (sender, receiver) =
                WatchReceiver::new(handle, Box::new(move || unwatch(&ending, registered, handle)));
            let mut inbox = locked(&watching.inbox);
            if let Inbox::Early(events) = &mut *inbox {
                for event in events.drain(..) {
                    drop(sender.send(event));
                }
            }
            *inbox = Inbox::Open(sender);
            drop(inbox);
            Ok(receiver)
        })
    }

    /// Notifies the watchers of an object.
    pub(crate) fn notify(
        self: &Arc<Self>,
        object: &CStr,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<impl Future<Output = Result<NotifyReply>> + Send + use<>> {
        let answers = Arc::new(Answers {
            api: self.api(),
            start: AtomicPtr::new(null_mut()),
            length: AtomicUsize::new(0),
        });
        let (start, length) = (answers.start.as_ptr(), answers.length.as_ptr());
        // Whole seconds reach the cluster, and none would mean its default.
        let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
        let timeout_ms = seconds.clamp(1, NOTIFY_SECONDS_MAX) * 1000;
        let bytes = c_int::try_from(payload.len()).map_err(|_| Error::invalid("a notify too long"))?;
        let pending = submit(self, answers, |completion| {
            // SAFETY: the name ends in NUL, the payload has the length given and is copied, the answers' place outlives
            // the request.
            unsafe {
                (self.api().rados_aio_notify)(
                    self.raw,
                    object.as_ptr(),
                    completion,
                    payload.as_ptr().cast(),
                    bytes,
                    timeout_ms,
                    start,
                    length,
                )
            }
        })?;
        Ok(async move {
            let outcome = pending.await?;
            let answers = outcome.payload;
            let bytes = copied(answers.start.load(Ordering::Acquire), answers.length.load(Ordering::Acquire));
            match check(outcome.result, "notifying watchers") {
                // Some did not answer in time; the reply names them.
                Err(e) if e.errno() == Errno::ETIMEDOUT && !bytes.is_empty() => decode_answers(&bytes),
                Err(e) => Err(e),
                Ok(_) => decode_answers(&bytes),
            }
        })
    }
}

/// Ends a watch; the registration lasts until librados says it is over. Where the store has ended before, this waits for that:
/// there is nobody else who would.
fn unwatch(watching: &Arc<Watching>, registered: Registered, handle: WatchHandle) {
    submit_unwatch(watching, registered, handle);
    if watching.io.cluster.has_ended() && !IS_LIBRADOS.get() {
        watching.io.settle();
        watching.io.cluster.wait_for_callbacks();
    }
    bury();
}

/// Asks librados to end a watch.
fn submit_unwatch(watching: &Arc<Watching>, registered: Registered, handle: WatchHandle) {
    watching.close();
    let io = &watching.io;
    let pending = submit(io, registered, |completion| {
        // SAFETY: handles are open; the watch was registered under this number.
        unsafe { (io.api().rados_aio_unwatch)(io.raw, handle.0, completion) }
    });
    // A client that was cut off has nothing to end.
    drop(pending);
}

/// What librados writes a notify's answers to.
#[derive(Debug)]
struct Answers {
    api: &'static Api,
    start: AtomicPtr<c_char>,
    length: AtomicUsize,
}

impl Drop for Answers {
    fn drop(&mut self) {
        let start = *self.start.get_mut();
        if !start.is_null() {
            // SAFETY: librados made the buffer for us, and it is not used after.
            unsafe { (self.api.rados_buffer_free)(start) };
        }
    }
}

/// Reads `map<(gid, cookie), answer>` and the list of those that did not answer.
fn decode_answers(bytes: &[u8]) -> Result<NotifyReply> {
    let mut reply = NotifyReply::default();
    if bytes.is_empty() {
        return Ok(reply);
    }
    let mut d = Decoder::new(bytes);
    for _ in 0..d.u32()? {
        let who = (ClientId(d.u64()?), WatchHandle(d.u64()?));
        reply.answers.push((who.0, who.1, Bytes::copy_from_slice(d.blob()?)));
    }
    for _ in 0..d.u32()? {
        reply.timed_out.push((ClientId(d.u64()?), WatchHandle(d.u64()?)));
    }
    Ok(reply)
}
