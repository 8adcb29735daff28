//! Replies on their way out: heads in one buffer, payloads as they came from the device, written together.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use crate::nbd::budget::Lease;

/// Payloads up to this size are copied behind their head. Bytes.
const COPY_MAX: usize = 1024;
/// The same where the stream takes one piece at a time, such as TLS: a record holds 16 KiB.
const COPY_MAX_SINGLE: usize = 16 << 10;
/// Pieces handed to the kernel at once.
const SLICES: usize = 96;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// What was appended last.
    tail: BytesMut,
    /// What comes before it. A payload with a lease gives it back when it is written.
    queue: VecDeque<(Bytes, Option<Lease>)>,
    queued: usize,
    leased: usize,
    is_flushed: bool,
    copy_max: usize,
}

impl Output {
    /// For a stream that takes several pieces at once, or one.
    pub(super) fn new(takes_several: bool) -> Self {
        Self { copy_max: if takes_several { COPY_MAX } else { COPY_MAX_SINGLE }, ..Self::default() }
    }

    /// Nothing is left to write.
    pub(super) fn is_empty(&self) -> bool {
        self.queued == 0 && self.leased == 0 && self.is_flushed
    }

    /// Bytes waiting without a lease.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// Bytes waiting under a lease.
    pub(super) fn leased(&self) -> usize {
        self.leased
    }

    /// Appends what `put` puts.
    pub(super) fn head(&mut self, put: impl FnOnce(&mut BytesMut)) {
        let before = self.tail.len();
        put(&mut self.tail);
        self.queued += self.tail.len() - before;
        self.is_flushed = false;
    }

    /// Appends a payload.
    pub(super) fn data(&mut self, data: Bytes, lease: Option<Lease>) {
        self.is_flushed = false;
        if data.len() <= self.copy_max && lease.is_none() {
            self.queued += data.len();
            self.tail.extend_from_slice(&data);
            return;
        }
        if !self.tail.is_empty() {
            let head = self.tail.split().freeze();
            self.queue.push_back((head, None));
        }
        let count = if lease.is_some() { &mut self.leased } else { &mut self.queued };
        *count += data.len();
        self.queue.push_back((data, lease));
    }

    /// Writes until all is written or the stream takes no more.
    pub(super) fn poll_write<S>(
        &mut self,
        mut stream: Pin<&mut S>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>>
    where
        S: AsyncWrite,
    {
        loop {
            let written = if self.queue.is_empty() {
                if self.tail.is_empty() {
                    break;
                }
                ready!(stream.as_mut().poll_write(cx, &self.tail))?
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let mut count = 0;
                for ((bytes, _), slice) in self.queue.iter().zip(&mut slices) {
                    *slice = IoSlice::new(bytes);
                    count += 1;
                }
                if count < SLICES && !self.tail.is_empty() {
                    slices[count] = IoSlice::new(&self.tail);
                    count += 1;
                }
                ready!(stream.as_mut().poll_write_vectored(cx, &slices[..count]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        if !self.is_flushed {
            ready!(stream.poll_flush(cx))?;
            self.is_flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Gives the memory of a busy connection back.
    pub(super) fn shrink(&mut self) {
        if self.tail.is_empty() && self.queue.is_empty() {
            self.tail = BytesMut::new();
            self.queue = VecDeque::new();
        }
    }

    fn advance(&mut self, mut written: usize) {
        while let Some((bytes, lease)) = self.queue.front_mut() {
            let part = written.min(bytes.len());
            let count = if lease.is_some() { &mut self.leased } else { &mut self.queued };
            *count -= part;
            written -= part;
            bytes.advance(part);
            if !bytes.is_empty() {
                return;
            }
            self.queue.pop_front();
        }
        self.queued -= written;
        if written == self.tail.len() {
            self.tail.clear();
        } else {
            self.tail.advance(written);
        }
    }
}
