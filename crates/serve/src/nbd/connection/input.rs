//! Bytes of a client that were not looked at yet.

use std::io;
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::nbd::limits::{INPUT_BUSY, INPUT_MIN};
use crate::nbd::wire::{REQUEST_SIZE, Request};

/// See the module.
#[derive(Debug)]
pub(super) struct Input {
    bytes: BytesMut,
    size_max: usize,
    /// Whether to read no more than requests at once, as large payloads follow them that go elsewhere.
    is_short: bool,
}

impl Default for Input {
    fn default() -> Self {
        Self { bytes: BytesMut::new(), size_max: INPUT_MIN, is_short: false }
    }
}

impl Input {
    /// Whether nothing is here.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes that are here.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether a whole request is here, but for its payload.
    pub(super) fn has_request(&self) -> bool {
        self.bytes.len() >= REQUEST_SIZE
    }

    /// Looks at the next request.
    ///
    /// # Errors
    /// `InvalidData` where there is something else.
    pub(super) fn peek(&self) -> io::Result<Option<Request>> {
        let Some(head) = self.bytes.first_chunk() else { return Ok(None) };
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "a request does not start as one");
        Request::parse(head).map(Some).ok_or_else(wrong)
    }

    /// Whether a request with a payload of that size fits as a whole.
    pub(super) fn fits(&self, payload: usize) -> bool {
        REQUEST_SIZE + payload <= self.size_max
    }

    /// Takes bytes off the front without a copy.
    pub(super) fn take(&mut self, count: usize) -> Bytes {
        self.bytes.split_to(count).freeze()
    }

    /// Bytes at the front; so many must be here.
    pub(super) fn front(&self, count: usize) -> &[u8] {
        &self.bytes[..count]
    }

    /// Forgets bytes at the front.
    pub(super) fn skip(&mut self, count: usize) {
        self.bytes.advance(count);
    }

    /// Moves bytes from the front, as many as there are and fit; how many it was.
    pub(super) fn move_to(&mut self, to: &mut [u8]) -> usize {
        let count = to.len().min(self.bytes.len());
        to[..count].copy_from_slice(&self.bytes[..count]);
        self.bytes.advance(count);
        count
    }

    /// Whether the client sends large payloads: what is read here of them must be copied.
    pub(super) fn expect_large(&mut self, is_large: bool) {
        self.is_short = is_large;
    }

    /// Whether there is memory for a busy connection; gives it back where there is not.
    pub(super) fn may_grow(&mut self, may: bool) {
        self.size_max = if may { INPUT_BUSY } else { INPUT_MIN };
        if !may && self.bytes.is_empty() {
            self.bytes = BytesMut::new();
        }
    }

    /// Reads what is there; how much it was, and whether it filled the buffer.
    pub(super) fn poll_fill<S>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(usize, bool)>>
    where
        S: AsyncRead + Unpin,
    {
        let most = if self.is_short { INPUT_MIN } else { self.size_max };
        let room = most.max(self.bytes.len() + REQUEST_SIZE) - self.bytes.len();
        let is_short = self.is_short;
        // Moves what is left to the front where nobody else uses the buffer, and takes a new one otherwise.
        self.bytes.reserve(room);
        let mut buffer = (&mut self.bytes).limit(room);
        pin!(stream.read_buf(&mut buffer)).poll(cx).map_ok(|count| (count, count == room && !is_short))
    }
}
