//! Answering the other clients of the image for as long as it is open.

use std::pin::pin;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use ferry_core::watch::{Notification, WatchEvent};
use ferry_core::{Errno, Error, ErrorKind, Result};
use futures_util::future::{Either, select};

use super::ImageDevice;
use crate::encoding::{Message, encode_response};
use crate::image::Image;
use crate::session::Session;

impl ImageDevice {
    /// Answers other clients until the watch is lost: reads the header again before it says that it has, and hands the
    /// exclusive lock over when asked. Whoever keeps a device open keeps this running beside the requests; without it others
    /// wait in vain.
    ///
    /// # Errors
    /// `Fenced` when the watch is lost: the device refuses everything from then on. `Invalid` for an image opened to be read,
    /// which watches nothing.
    ///
    /// # Cancel safety
    /// A message being answered may stay unanswered.
    pub async fn attend(&self) -> Result<()> {
        let Some(session) = self.image().session else {
            return Err(Error::invalid("an image open for reading only has nobody to answer"));
        };
        let gate = &self.inner.gate;
        loop {
            // While the gate is closed, whoever closed it waits for answers and for the lock by the same watch.
            let closings = gate.closings();
            gate.until_open().await;
            // They may have promised the lock without giving it back.
            if session.owes_lock() && self.hand_over().await.is_err() {
                self.inner.is_lost.store(true, Ordering::Release);
            }
            let event =
                match select(pin!(gate.until_closed_beyond(closings)), pin!(session.next_event())).await {
                    Either::Left(((), _)) => continue,
                    Either::Right((event, _)) => event,
                };
            match event {
                WatchEvent::Notify(notification) => self.answer(&session, notification).await,
                WatchEvent::Lost => {
                    self.inner.is_lost.store(true, Ordering::Release);
                    return Err(Error::new(ErrorKind::Fenced, "the watch on the image was lost"));
                }
            }
        }
    }

    /// Gives the lock to somebody who asked for it.
    async fn hand_over(&self) -> Result<()> {
        self.inner.handed_over.fetch_add(1, Ordering::AcqRel);
        self.release().await
    }

    /// Does what a message asks for and answers it.
    async fn answer(&self, session: &Session, notification: Notification) {
        let gate = &self.inner.gate;
        let message = Message::decode(&notification.payload).ok();
        if let Some(Message::HeaderUpdate) = message {
            // Whoever closes the gate may wait for the very client that waits for this answer (it has the lock). So it must not wait
            // for them: nobody is inside any more, and the header is read again before the gate opens.
            if let Some(closed) = gate.close_unless_closed().await
                && self.reopen_closed(&closed, async |_: &mut Image| Ok(())).await.is_err()
            {
                // Without the new header nothing may be written any more, or a snapshot would be.
                self.inner.is_lost.store(true, Ordering::Release);
            }
            return notification.answer(Bytes::new());
        }
        if !gate.settled().await {
            // As whoever closed it would.
            return session.answer(notification);
        }
        match message {
            Some(Message::RequestLock { .. }) if session.is_owner() => {
                // Promised first: the asker then waits for the release, which waits for requests under way.
                notification.answer(encode_response(0));
                if self.hand_over().await.is_err() {
                    self.inner.is_lost.store(true, Ordering::Release);
                }
            }
            Some(m) if m.wants_owner() && session.is_owner() => {
                notification.answer(encode_response(-Errno::EOPNOTSUPP.0));
            }
            Some(_) | None => notification.answer(Bytes::new()),
        }
    }
}
