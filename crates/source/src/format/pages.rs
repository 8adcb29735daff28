//! Tables of an image, in pages that are fetched when they are needed and kept for a while.
//!
//! Invariants
//! - There are never more than [`PAGES_MAX`] pages in memory, however large the tables say they are.
//! - A page that is being fetched is not fetched a second time.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use ferry_core::{Error, Result};
use futures_channel::oneshot;

use crate::limits::{PAGE_SIZE, PAGES_MAX};
use crate::stream::Stream;

/// A page, or who waits for it.
#[derive(Debug)]
enum Slot {
    /// It is here; when it was last wanted.
    Here(Bytes, u64),
    /// Somebody fetches it and wakes these.
    Coming(Vec<oneshot::Sender<()>>),
}

#[derive(Debug, Default)]
struct Kept {
    slots: HashMap<u64, Slot>,
    /// Grows with every page wanted.
    clock: u64,
}

/// Pages of a stream.
#[derive(Debug)]
pub(crate) struct Pages {
    stream: Arc<dyn Stream>,
    kept: Mutex<Kept>,
}

/// What to do for a page.
enum Turn {
    Take(Bytes),
    Wait(oneshot::Receiver<()>),
    Fetch,
}

/// Wakes who waits for a page, whether it came or not: they look again.
struct Fetching<'a> {
    pages: &'a Pages,
    page: u64,
    /// The page, once it is here.
    came: Option<Bytes>,
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        let mut kept = self.pages.kept();
        let clock = kept.clock;
        let before = match self.came.take() {
            Some(bytes) => kept.slots.insert(self.page, Slot::Here(bytes, clock)),
            None => kept.slots.remove(&self.page),
        };
        kept.forget_oldest();
        drop(kept);
        if let Some(Slot::Coming(waiting)) = before {
            // One that does not wait any more is no loss.
            waiting.into_iter().for_each(|waiter| waiter.send(()).unwrap_or_default());
        }
    }
}

impl Kept {
    fn forget_oldest(&mut self) {
        while self.slots.len() > PAGES_MAX {
            let here = self.slots.iter().filter_map(|(page, slot)| match slot {
                Slot::Here(_, used) => Some((*used, *page)),
                Slot::Coming(_) => None,
            });
            let Some((_, oldest)) = here.min() else { return };
            self.slots.remove(&oldest);
        }
    }
}

impl Pages {
    /// Pages of `stream`, none of them fetched.
    pub(crate) fn new(stream: Arc<dyn Stream>) -> Self {
        Self { stream, kept: Mutex::new(Kept::default()) }
    }

    /// What they are pages of.
    pub(crate) fn stream(&self) -> &Arc<dyn Stream> {
        &self.stream
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing that holds it can stop half-way.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, page: u64) -> Turn {
        let mut kept = self.kept();
        kept.clock += 1;
        let now = kept.clock;
        match kept.slots.get_mut(&page) {
            Some(Slot::Here(bytes, used)) => {
                *used = now;
                Turn::Take(bytes.clone())
            }
            Some(Slot::Coming(waiting)) => {
                let (wake, woken) = oneshot::channel();
                waiting.push(wake);
                Turn::Wait(woken)
            }
            None => {
                kept.slots.insert(page, Slot::Coming(Vec::new()));
                Turn::Fetch
            }
        }
    }

    /// A page; the last one of a stream may be shorter.
    async fn page(&self, page: u64) -> Result<Bytes> {
        loop {
            match self.turn(page) {
                Turn::Take(bytes) => return Ok(bytes),
                // Whoever fetched it is done or has given up; either way it is looked for again.
                Turn::Wait(woken) => woken.await.unwrap_or_default(),
                Turn::Fetch => {
                    let mut fetching = Fetching { pages: self, page, came: None };
                    let offset = page * PAGE_SIZE;
                    let length = PAGE_SIZE.min(self.stream.size() - offset);
                    let bytes = self.stream.read(offset, length).await?;
                    fetching.came = Some(bytes.clone());
                    return Ok(bytes);
                }
            }
        }
    }

    /// `length` bytes at `offset`, for what is small: headers and names.
    ///
    /// # Errors
    /// `Corrupt` where the file ends before; those of the stream.
    pub(crate) async fn bytes(&self, offset: u64, length: u64) -> Result<Vec<u8>> {
        self.inside(offset, length)?;
        let mut bytes = Vec::new();
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let page = self.page(at / PAGE_SIZE).await?;
            let from = usize::try_from(at % PAGE_SIZE).expect("below a page");
            let wanted = usize::try_from(end - at).unwrap_or(usize::MAX);
            let part = &page[from..page.len().min(from.saturating_add(wanted))];
            bytes.extend_from_slice(part);
            at += super::length_of(part);
        }
        Ok(bytes)
    }

    fn inside(&self, offset: u64, length: u64) -> Result<()> {
        if offset.checked_add(length).is_some_and(|end| end <= self.stream.size()) {
            return Ok(());
        }
        Err(Error::corrupt("the file ends before a table of the image does")
            .with("file", self.stream.describe())
            .with("offset", offset)
            .with("length", length)
            .with("size", self.stream.size()))
    }

    /// Looks at entries of tables one after the other.
    pub(crate) fn entries(&self) -> Entries<'_> {
        Entries { pages: self, held: None }
    }
}

/// Reads entries of tables; holds on to the page it is in.
#[derive(Debug)]
pub(crate) struct Entries<'a> {
    pages: &'a Pages,
    held: Option<(u64, Bytes)>,
}

impl Entries<'_> {
    /// The big-endian number at `offset`.
    ///
    /// # Errors
    /// `Corrupt` where the file ends before; those of the stream.
    pub(crate) async fn u64(&mut self, offset: u64) -> Result<u64> {
        let (page, skip) = (offset / PAGE_SIZE, offset % PAGE_SIZE);
        if self.held.as_ref().is_none_or(|(held, _)| *held != page) {
            self.pages.inside(offset, 8)?;
            self.held = Some((page, self.pages.page(page).await?));
        }
        let from = usize::try_from(skip).expect("below a page");
        let held = self.held.as_ref().and_then(|(_, bytes)| bytes.get(from..)?.first_chunk::<8>());
        if let Some(entry) = held {
            return Ok(u64::from_be_bytes(*entry));
        }
        // It lies across two pages, or behind the end.
        let bytes = self.pages.bytes(offset, 8).await?;
        Ok(u64::from_be_bytes(*bytes.first_chunk::<8>().expect("eight bytes were asked for")))
    }
}
