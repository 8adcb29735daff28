//! A writer's standing with an image: its watch on the header, and the exclusive lock while it holds it.
//!
//! ```text
//!   watching ── acquire ──► owner ── release ──► watching
//! ```
//!
//! Invariants
//! - The lock's cookie names the watch of the same client, so that others can see whether the owner lives.
//! - A lock whose owner no longer watches is broken, after the owner was cut off from the store: it may live on where nobody
//!   reaches it, with writes under way. One whose owner lives is asked for; one that a person took by hand (`lock add`) is left alone.
//! - Nobody is waited for who does not watch any more, promised or not.
//! - While a message is sent, messages that come in are answered: a client waits for itself too.

#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use ferry_core::lock::{LockKind, LockRequest, Locker, UnlockRequest};
use ferry_core::watch::{Notification, NotifyReply, WatchEvent, WatchReceiver};
use ferry_core::{ClientId, Clock, Errno, Error, ErrorKind, ObjectId, Result, Store};
use futures_util::future::{Either, select};
use futures_util::lock::Mutex;

use crate::encoding::{LOCK_NAME, LOCK_TAG, Message, NotifyClient, decode_response, encode_response};

/// How long others have to answer a message: librbd's `rbd_notify_timeout` plus half.
pub(crate) const NOTIFY_TIMEOUT: Duration = Duration::from_secs(15);
/// How often the lock is tried for before giving up; each round waits for an owner to let go, who may be faster to take it again.
const ACQUIRE_ROUNDS_MAX: usize = 1024;
/// How often an owner may leave a request unanswered before it is told as busy. The watch of one that died ends after 30 seconds
/// (`osd_client_watch_timeout`), so this sees the end of it.
const SILENT_ROUNDS_MAX: usize = 4;

/// How often an owner that has promised its lock is looked at: it may die before it lets go.
const PROMISE_LOOK: Duration = Duration::from_secs(5);

/// What came of trying to have the lock freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// It may be free now.
    Made,
    /// Its owner is registered and says nothing.
    Silent,
}

#[derive(Debug, Default)]
struct Heard {
    changes: u64,
    waiting: Vec<Waker>,
}

/// A watch on an image's header and the lock that goes with it.
#[derive(Debug)]
pub struct Session {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    header: ObjectId,
    handle: u64,
    /// Whoever waits for messages holds it; of several, one answers for all.
    watch: Mutex<WatchReceiver>,
    owner: AtomicBool,
    /// How often the lock was said to change hands, and who waits for the next time, whoever takes the message.
    heard: std::sync::Mutex<Heard>,
    /// Whether the lock was promised to somebody while a message was sent, and is still held.
    promised: AtomicBool,
}

impl Session {
    /// Registers with an image.
    ///
    /// # Errors
    /// `NotFound` (2) where the header does not exist.
    pub async fn open(store: &Arc<dyn Store>, clock: &Arc<dyn Clock>, header: &ObjectId) -> Result<Self> {
        let watch = store.watch(header).await?;
        Ok(Self {
            store: Arc::clone(store),
            clock: Arc::clone(clock),
            header: header.clone(),
            handle: watch.handle.0,
            watch: Mutex::new(watch),
            owner: AtomicBool::new(false),
            promised: AtomicBool::new(false),
            heard: std::sync::Mutex::default(),
        })
    }

    /// Number of the watch.
    #[must_use]
    pub fn handle(&self) -> u64 {
        self.handle
    }

    /// Whether this session holds the exclusive lock.
    #[must_use]
    pub fn is_owner(&self) -> bool {
        self.owner.load(Ordering::Acquire)
    }

    /// Whether somebody was promised the lock that this session still holds: it is to be given back soon.
    #[must_use]
    pub fn owes_lock(&self) -> bool {
        self.is_owner() && self.promised.load(Ordering::Acquire)
    }

    /// The next message from others, for whoever keeps an image open for long; answer it with [`Session::answer`].
    ///
    /// # Cancel safety
    /// No message is lost.
    pub async fn next_event(&self) -> WatchEvent {
        let watch = self.watch.lock().await;
        // The receiver's own future borrows it, which would tie all callers to one thread; made anew for each poll it does
        // not, and loses nothing.
        let event = poll_fn(move |cx| pin!(watch.next()).poll(cx)).await;
        let tells_of_lock = match &event {
            WatchEvent::Lost => true,
            WatchEvent::Notify(notification) => matches!(
                Message::decode(&notification.payload),
                Ok(Message::AcquiredLock(_) | Message::ReleasedLock(_))
            ),
        };
        if tells_of_lock {
            let waiting = {
                let mut heard = self.heard();
                heard.changes += 1;
                std::mem::take(&mut heard.waiting)
            };
            waiting.into_iter().for_each(Waker::wake);
        }
        event
    }

    /// Waits until the lock was said to change hands more than `seen` times, whoever took the message.
    async fn heard_beyond(&self, seen: u64) {
        poll_fn(|cx| {
            let mut heard = self.heard();
            if heard.changes > seen {
                return Poll::Ready(());
            }
            heard.waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cookie(&self) -> String {
        format!("auto {}", self.handle())
    }

    fn client(&self) -> NotifyClient {
        NotifyClient { client: self.store.client().0, handle: self.handle() }
    }

    /// Takes the exclusive lock; at once where this session holds it.
    ///
    /// # Errors
    /// `Busy` (16) where a person took it by hand or its owner does not give it back; `ReadOnly` (30) where its owner
    /// refuses or the pool is read-only.
    pub async fn acquire(&self) -> Result<()> {
        if self.is_owner() {
            return Ok(());
        }
        let request = LockRequest {
            name: LOCK_NAME.to_owned(),
            kind: LockKind::Exclusive,
            cookie: self.cookie(),
            tag: LOCK_TAG.to_owned(),
            description: String::new(),
            renew: false,
        };
        let mut silent = 0;
        for _ in 0..ACQUIRE_ROUNDS_MAX {
            match self.store.lock(&self.header, request.clone()).await {
                Ok(()) => {
                    self.owner.store(true, Ordering::Release);
                    self.notify(&Message::AcquiredLock(self.client())).await?;
                    return Ok(());
                }
                Err(e) if e.kind() == ErrorKind::Exists => {
                    self.owner.store(true, Ordering::Release);
                    return Ok(());
                }
                Err(e) if e.kind() == ErrorKind::Busy => {
                    silent += usize::from(self.make_room().await? == Room::Silent);
                    if silent >= SILENT_ROUNDS_MAX {
                        let text = "the image's owner does not answer for its lock";
                        return Err(Error::busy(text).with("object", &self.header));
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Err(Error::busy("the image's lock is not given back").with("object", &self.header))
    }

    /// Sees to it that the lock may be free: breaks a dead owner's, asks a living one.
    async fn make_room(&self) -> Result<Room> {
        let info = self.store.lock_info(&self.header, LOCK_NAME).await?;
        let Some(locker) = info.lockers.first() else { return Ok(Room::Made) };
        let handle = locker.cookie.strip_prefix("auto ").and_then(|n| n.parse::<u64>().ok());
        let (Some(handle), true) = (handle, info.tag == LOCK_TAG) else {
            return Err(Error::busy("image is locked by hand")
                .with("locker", locker.client)
                .with("cookie", &locker.cookie));
        };
        if self.store.capabilities().list_watchers && !self.is_registered(locker, handle).await? {
            return self.break_dead(locker).await;
        }
        self.request_lock(locker, handle).await
    }

    /// Breaks the lock of an owner that is gone.
    async fn break_dead(&self, locker: &Locker) -> Result<Room> {
        // What another session of this client left behind has no requests under way.
        if locker.client != self.store.client() {
            self.store.cut_off(&locker.address).await?;
        }
        let request = UnlockRequest { name: LOCK_NAME.to_owned(), cookie: locker.cookie.clone() };
        match self.store.break_lock(&self.header, request, locker.client).await {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            // Or it was gone already.
            Ok(()) | Err(_) => Ok(Room::Made),
        }
    }

    /// Whether `locker` still holds the lock.
    async fn is_held_by(&self, locker: &Locker) -> Result<bool> {
        let info = self.store.lock_info(&self.header, LOCK_NAME).await?;
        Ok(info.lockers.iter().any(|l| l.client == locker.client && l.cookie == locker.cookie))
    }

    /// Asks the owner for the lock and waits until it lets go.
    async fn request_lock(&self, locker: &Locker, handle: u64) -> Result<Room> {
        let seen = self.heard().changes;
        let reply = self.notify(&Message::RequestLock { client: self.client(), force: false }).await?;
        let mut agreed = false;
        for (_, _, payload) in &reply.answers {
            match decode_response(payload)? {
                None => {}
                Some(0) => agreed = true,
                Some(code) if code == -Errno::EROFS.0 => {
                    return Err(Error::new(ErrorKind::ReadOnly, "the image's owner keeps its lock")
                        .with("owner", &locker.address));
                }
                Some(_) => {
                    return Err(
                        Error::busy("the image's owner keeps its lock").with("owner", &locker.address)
                    );
                }
            }
        }
        if !agreed {
            let is_owner = |client: ClientId, watch: u64| client == locker.client && watch == handle;
            if reply.timed_out.iter().any(|(client, watch)| is_owner(*client, watch.0)) {
                return Ok(Room::Silent);
            }
            // A message reaches all who watch: one who neither answered nor was waited for does not watch any more.
            let is_watching = reply.answers.iter().any(|(client, watch, _)| is_owner(*client, watch.0));
            if !is_watching && self.is_held_by(locker).await? {
                return self.break_dead(locker).await;
            }
            // It let go while it was asked, or does not know yet that it is the owner: the next round finds out.
            return Ok(Room::Made);
        }
        self.await_release(locker, handle, seen).await
    }

    /// Waits until an owner that has promised its lock lets go. One that dies before it does has it taken away; one that lives is
    /// waited for, as it may have much to write.
    async fn await_release(&self, locker: &Locker, handle: u64, seen: u64) -> Result<Room> {
        let mut look = self.clock.sleep(PROMISE_LOOK);
        loop {
            let is_theirs = self.is_held_by(locker).await?;
            // They may have let go and taken it again already: then they are asked again.
            if !is_theirs || self.heard().changes > seen {
                return Ok(Room::Made);
            }
            // Whoever attends the image may take the message that the lock is free.
            let is_time_to_look = {
                // These hold the watch, which looking needs.
                let (event, heard) = (pin!(self.next_event()), pin!(self.heard_beyond(seen)));
                match select(select(event, heard), &mut look).await {
                    Either::Left((Either::Left((WatchEvent::Lost, _)), _)) => return Err(lost(&self.header)),
                    Either::Left((Either::Left((WatchEvent::Notify(notification), _)), _)) => {
                        self.answer(notification);
                        false
                    }
                    Either::Left((Either::Right(((), _)), _)) => false,
                    Either::Right((slept, _)) => slept.map(|()| true)?,
                }
            };
            if is_time_to_look {
                if !self.is_registered(locker, handle).await? && self.is_held_by(locker).await? {
                    return self.break_dead(locker).await;
                }
                look = self.clock.sleep(PROMISE_LOOK);
            }
        }
    }

    /// Whether the owner still watches the image.
    async fn is_registered(&self, locker: &Locker, handle: u64) -> Result<bool> {
        let is_owner = |client: ClientId, watch: u64| client == locker.client && watch == handle;
        if self.store.capabilities().list_watchers {
            let watchers = self.store.list_watchers(&self.header).await?;
            return Ok(watchers.iter().any(|w| is_owner(w.client, w.handle.0)));
        }
        // A message reaches all who watch, and waits for them.
        let reply = self.notify(&Message::RequestLock { client: self.client(), force: false }).await?;
        Ok(reply.answers.iter().any(|(client, watch, _)| is_owner(*client, watch.0))
            || reply.timed_out.iter().any(|(client, watch)| is_owner(*client, watch.0)))
    }

    /// Gives the lock back; nothing where this session does not hold it.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn release(&self) -> Result<()> {
        if !self.is_owner() {
            return Ok(());
        }
        let request = UnlockRequest { name: LOCK_NAME.to_owned(), cookie: self.cookie() };
        match self.store.unlock(&self.header, request).await {
            Ok(()) => {}
            // Broken by another, or gone with the header.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        self.owner.store(false, Ordering::Release);
        self.promised.store(false, Ordering::Release);
        match self.notify(&Message::ReleasedLock(self.client())).await {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Forgets the lock without telling the store: the header is about to be removed.
    pub fn forget_lock(&self) {
        self.owner.store(false, Ordering::Release);
    }

    /// Tells everybody who watches the image, and waits for their answers; one who does not answer in time is not waited
    /// for any longer.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn notify(&self, message: &Message) -> Result<NotifyReply> {
        let mut sent = pin!(self.store.notify(&self.header, message.encode(), NOTIFY_TIMEOUT));
        loop {
            match select(sent.as_mut(), pin!(self.next_event())).await {
                Either::Left((reply, _)) => return reply,
                Either::Right((WatchEvent::Notify(notification), _)) => self.answer(notification),
                Either::Right((WatchEvent::Lost, _)) => return Err(lost(&self.header)),
            }
        }
    }

    /// Answers a message in the way of a client that does one thing and then leaves: the lock is promised to whoever wants
    /// it, and operations are left to the asker.
    pub fn answer(&self, notification: Notification) {
        let message = Message::decode(&notification.payload).ok();
        let answer = match message {
            Some(Message::RequestLock { .. }) if self.is_owner() => {
                self.promised.store(true, Ordering::Release);
                encode_response(0)
            }
            Some(m) if m.wants_owner() && self.is_owner() => encode_response(-Errno::EOPNOTSUPP.0),
            Some(_) | None => Bytes::new(),
        };
        notification.answer(answer);
    }
}

/// The watch is gone.
fn lost(header: &ObjectId) -> Error {
    Error::new(ErrorKind::Fenced, "the watch on the image was lost").with("object", header)
}
