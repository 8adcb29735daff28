//! Watch and notify inside one process: who listens to an object and how they answer.
//!
//! Used by the engine and the in-memory store. A store on a cluster feeds the same [`WatchReceiver`] from its callbacks.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use bytes::Bytes;

use crate::ident::{ClientId, ObjectId};

/// Number of a watch, unique among those of its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchHandle(pub u64);

/// One who watches an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatcherInfo {
    /// Who.
    pub client: ClientId,
    /// Which of the client's watches.
    pub handle: WatchHandle,
    /// Where from.
    pub address: String,
}

/// What comes to a watcher.
#[derive(Debug)]
pub enum WatchEvent {
    /// Somebody notified; answer through it. Dropping it unanswered answers with an empty payload.
    Notify(Notification),
    /// The watch is lost (the store was closed, the client fenced); nothing follows.
    Lost,
}

/// Answers of the watchers to one notify.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotifyReply {
    /// `(who, which watch, payload)` of each that answered.
    pub answers: Vec<(ClientId, WatchHandle, Bytes)>,
    /// Those that did not in time.
    pub timed_out: Vec<(ClientId, WatchHandle)>,
}

/// Carries a watcher's answer back to whoever notified.
pub type AckFn = Box<dyn FnOnce(Bytes) + Send>;

/// One notify as a watcher sees it.
pub struct Notification {
    /// Who sent it.
    pub notifier: ClientId,
    /// What was sent.
    pub payload: Bytes,
    ack: Option<AckFn>,
}

impl Notification {
    /// A notify whose answer goes to `ack`.
    #[must_use]
    pub fn new(notifier: ClientId, payload: Bytes, ack: AckFn) -> Self {
        Self { notifier, payload, ack: Some(ack) }
    }

    /// Answers.
    pub fn answer(mut self, payload: Bytes) {
        if let Some(ack) = self.ack.take() {
            ack(payload);
        }
    }
}

impl Drop for Notification {
    fn drop(&mut self) {
        if let Some(ack) = self.ack.take() {
            ack(Bytes::new());
        }
    }
}

impl fmt::Debug for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notification")
            .field("notifier", &self.notifier)
            .field("payload", &self.payload)
            .finish()
    }
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<WatchEvent>,
    waker: Option<Waker>,
    closed: bool,
}

/// The sending end of a watch's queue.
#[derive(Clone, Debug)]
pub struct WatchSender(Arc<Mutex<Queue>>);

impl WatchSender {
    /// Adds an event. Returns it where the receiver is gone.
    ///
    /// # Errors
    /// The event, where nobody will see it.
    pub fn send(&self, event: WatchEvent) -> Result<(), WatchEvent> {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.closed {
            return Err(event);
        }
        queue.events.push_back(event);
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
        Ok(())
    }
}

/// The receiving end: dropping it ends the watch.
pub struct WatchReceiver {
    /// The watch's number, for locks.
    pub handle: WatchHandle,
    queue: Arc<Mutex<Queue>>,
    on_drop: Option<Box<dyn FnOnce() + Send>>,
}

impl WatchReceiver {
    /// A queue whose receiver calls `on_drop` when it goes.
    #[must_use]
    pub fn new(handle: WatchHandle, on_drop: Box<dyn FnOnce() + Send>) -> (WatchSender, Self) {
        let queue = Arc::new(Mutex::new(Queue::default()));
        (WatchSender(Arc::clone(&queue)), Self { handle, queue, on_drop: Some(on_drop) })
    }

    /// The next event, if one is there.
    #[must_use]
    pub fn try_next(&self) -> Option<WatchEvent> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).events.pop_front()
    }

    /// Waits for the next event.
    ///
    /// # Cancel safety
    /// No event is lost.
    pub async fn next(&self) -> WatchEvent {
        std::future::poll_fn(|cx| {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(event) = queue.events.pop_front() {
                return Poll::Ready(event);
            }
            queue.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl Drop for WatchReceiver {
    fn drop(&mut self) {
        let left = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.closed = true;
            std::mem::take(&mut queue.events)
        };
        drop(left); // answers pending notifies, outside the lock
        if let Some(on_drop) = self.on_drop.take() {
            on_drop();
        }
    }
}

impl fmt::Debug for WatchReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchReceiver").field("handle", &self.handle).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Watcher {
    info: WatcherInfo,
    sender: WatchSender,
}

#[derive(Debug, Default)]
struct Registry {
    next_handle: u64,
    watchers: HashMap<ObjectId, Vec<Watcher>>,
}

/// All watches of a store that lives in one process.
#[derive(Clone, Debug, Default)]
pub struct WatchRegistry(Arc<Mutex<Registry>>);

/// Collects the answers of one notify.
#[derive(Debug, Default)]
struct Gathering {
    missing: Vec<(ClientId, WatchHandle)>,
    reply: NotifyReply,
    waker: Option<Waker>,
}

impl WatchRegistry {
    /// Adds a watch on `object`.
    #[must_use]
    pub fn watch(&self, object: &ObjectId, client: ClientId, address: String) -> WatchReceiver {
        let mut registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        registry.next_handle += 1;
        let handle = WatchHandle(registry.next_handle);
        let (all, key) = (self.clone(), object.clone());
        let (sender, receiver) = WatchReceiver::new(handle, Box::new(move || all.forget(&key, handle)));
        let info = WatcherInfo { client, handle, address };
        registry.watchers.entry(object.clone()).or_default().push(Watcher { info, sender });
        receiver
    }

    fn forget(&self, object: &ObjectId, handle: WatchHandle) {
        let mut registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(list) = registry.watchers.get_mut(object) {
            list.retain(|w| w.info.handle != handle);
            if list.is_empty() {
                registry.watchers.remove(object);
            }
        }
    }

    /// Who watches `object`.
    #[must_use]
    pub fn list(&self, object: &ObjectId) -> Vec<WatcherInfo> {
        let registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        registry.watchers.get(object).map_or_else(Vec::new, |l| l.iter().map(|w| w.info.clone()).collect())
    }

    /// Sends `payload` to all watchers of `object`; the future gives their answers when all have come.
    ///
    /// Watchers live in this process and answer or drop, so no timeout is needed here.
    ///
    /// # Panics
    /// Never: the locks recover from a panic elsewhere.
    pub fn notify(
        &self,
        object: &ObjectId,
        notifier: ClientId,
        payload: &Bytes,
    ) -> impl Future<Output = NotifyReply> + Send + use<> {
        let targets: Vec<(WatcherInfo, WatchSender)> = {
            let registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            registry
                .watchers
                .get(object)
                .map_or_else(Vec::new, |l| l.iter().map(|w| (w.info.clone(), w.sender.clone())).collect())
        };
        let missing = targets.iter().map(|(i, _)| (i.client, i.handle)).collect();
        let gathering = Arc::new(Mutex::new(Gathering { missing, ..Gathering::default() }));
        for (info, sender) in targets {
            let (gathering, who) = (Arc::clone(&gathering), (info.client, info.handle));
            let ack = Box::new(move |answer: Bytes| {
                let mut g = gathering.lock().unwrap_or_else(PoisonError::into_inner);
                g.missing.retain(|m| *m != who);
                g.reply.answers.push((who.0, who.1, answer));
                if let Some(waker) = g.waker.take() {
                    waker.wake();
                }
            });
            // A receiver that is gone hands the event back; dropping it answers for it.
            drop(sender.send(WatchEvent::Notify(Notification::new(notifier, payload.clone(), ack))));
        }
        std::future::poll_fn(move |cx| {
            let mut g = gathering.lock().unwrap_or_else(PoisonError::into_inner);
            if g.missing.is_empty() {
                return Poll::Ready(std::mem::take(&mut g.reply));
            }
            g.waker = Some(cx.waker().clone());
            Poll::Pending
        })
    }
}
