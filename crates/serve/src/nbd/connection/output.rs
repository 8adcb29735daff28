//! Replies on their way out: heads in one buffer, payloads as they came from the device, written together.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

use crate::nbd::budget::Lease;

/// Payloads up to this size are copied behind their head. Bytes.
const COPY_MAX: usize = 1024;
/// The same where the stream takes one piece at a time, such as TLS: a record holds 16 KiB.
const COPY_MAX_SINGLE: usize = 16 << 10;
/// Pieces handed to the kernel at once.
const SLICES: usize = 96;

/// Written heads are forgotten when there are so many. Bytes.
const HEADS_MAX: usize = 64 << 10;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// All heads, one after the other.
    heads: Vec<u8>,
    /// How much of them is written. Bytes.
    heads_at: usize,
    /// What is to be written, in order.
    queue: VecDeque<Segment>,
    queued: usize,
    leased: usize,
    is_flushed: bool,
    copy_max: usize,
}

/// A run of bytes to write.
#[derive(Debug)]
enum Segment {
    /// So many of the heads.
    Heads(usize),
    /// A payload; gives its lease back when it is written.
    Data(Bytes, Option<Lease>),
}

impl Output {
    /// For a stream that takes several pieces at once, or one.
    pub(super) fn new(takes_several: bool) -> Self {
        Self { copy_max: if takes_several { COPY_MAX } else { COPY_MAX_SINGLE }, ..Self::default() }
    }

    /// Nothing is left to write.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.is_flushed
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
    pub(super) fn head(&mut self, put: impl FnOnce(&mut Vec<u8>)) {
        let before = self.heads.len();
        put(&mut self.heads);
        self.appended(before);
    }

    /// Appends a payload.
    pub(super) fn data(&mut self, data: Bytes, lease: Option<Lease>) {
        if data.len() <= self.copy_max && lease.is_none() {
            let before = self.heads.len();
            self.heads.extend_from_slice(&data);
            self.appended(before);
            return;
        }
        self.is_flushed = false;
        *(if lease.is_some() { &mut self.leased } else { &mut self.queued }) += data.len();
        self.queue.push_back(Segment::Data(data, lease));
    }

    /// Counts what was appended to the heads.
    fn appended(&mut self, before: usize) {
        let count = self.heads.len() - before;
        self.is_flushed = false;
        self.queued += count;
        if let Some(Segment::Heads(last)) = self.queue.back_mut() {
            *last += count;
        } else {
            self.queue.push_back(Segment::Heads(count));
        }
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
        while !self.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut heads = &self.heads[self.heads_at..];
            let mut count = 0;
            for (segment, slice) in self.queue.iter().zip(&mut slices) {
                count += 1;
                *slice = IoSlice::new(match segment {
                    Segment::Heads(length) => {
                        let (now, later) = heads.split_at(*length);
                        heads = later;
                        now
                    }
                    Segment::Data(data, _) => data,
                });
            }
            let written = ready!(stream.as_mut().poll_write_vectored(cx, &slices[..count]))?;
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
        if self.queue.is_empty() {
            self.heads = Vec::new();
            self.queue = VecDeque::new();
        }
    }

    fn advance(&mut self, mut written: usize) {
        while written > 0 {
            let Some(segment) = self.queue.front_mut() else { break };
            let is_done = match segment {
                Segment::Heads(length) => {
                    let part = written.min(*length);
                    self.queued -= part;
                    self.heads_at += part;
                    *length -= part;
                    written -= part;
                    *length == 0
                }
                Segment::Data(data, lease) => {
                    let part = written.min(data.len());
                    *(if lease.is_some() { &mut self.leased } else { &mut self.queued }) -= part;
                    data.advance(part);
                    written -= part;
                    data.is_empty()
                }
            };
            if is_done {
                self.queue.pop_front();
            }
        }
        if self.queue.is_empty() {
            self.heads.clear();
            self.heads_at = 0;
        } else if self.heads_at > HEADS_MAX {
            self.heads.drain(..self.heads_at);
            self.heads_at = 0;
        }
    }
}
