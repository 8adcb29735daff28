//! An image a command has open. Whatever becomes of the command, the image's lock is given back.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use ferry_core::Result;
use ferry_image::image::Image;
use ferry_image::session::Session;

/// Sessions of images that a failure left open: to be ended before the command is over. On a cluster a lock outlives its
/// holder.
#[derive(Debug, Default)]
pub(super) struct Leftovers(Mutex<Vec<Arc<Session>>>);

impl Leftovers {
    /// Ends them.
    ///
    /// # Errors
    /// Those of the stores; all are tried.
    pub(super) async fn end(&self) -> Result<()> {
        let sessions = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut first = Ok(());
        for session in sessions {
            first = first.and(session.release().await);
        }
        first
    }
}

/// An image that is open.
#[derive(Debug)]
pub(super) struct Opened<'a> {
    image: Option<Image>,
    leftovers: &'a Leftovers,
}

impl<'a> Opened<'a> {
    /// Keeps an eye on `image`.
    pub(super) fn new(image: Image, leftovers: &'a Leftovers) -> Self {
        Self { image: Some(image), leftovers }
    }

    /// Flushes it, gives its lock back and ends its watch.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn close(mut self) -> Result<()> {
        match self.image.take() {
            Some(image) => image.close().await,
            None => Ok(()),
        }
    }
}

impl Deref for Opened<'_> {
    type Target = Image;

    fn deref(&self) -> &Image {
        self.image.as_ref().expect("it is taken only when it is closed")
    }
}

impl DerefMut for Opened<'_> {
    fn deref_mut(&mut self) -> &mut Image {
        self.image.as_mut().expect("it is taken only when it is closed")
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.image.take().and_then(|image| image.session) {
            self.leftovers.0.lock().unwrap_or_else(PoisonError::into_inner).push(session);
        }
    }
}
