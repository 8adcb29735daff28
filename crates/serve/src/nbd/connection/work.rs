//! Requests that the device has not answered yet.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use ferry_core::{Error, ErrorKind, ExtentState, Reply, Result};
use tokio::task::JoinHandle;

use super::reply::Extents;
use crate::export::Entered;
use crate::nbd::budget::Lease;
use crate::nbd::handshake::{Selected, context_id};
use crate::nbd::limits::{PIECE_MIN, STATUS_EXTENTS, STATUS_STEP, ZERO_PIECE};
use crate::nbd::wire::{Command, Request, allocation, command_flag};

/// A range of the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    /// Where it starts.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) length: u64,
}

/// What a request, or a piece of one, belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The whole request.
    Whole(Request),
    /// A piece of the large write of that number.
    WritePiece(u64),
    /// A piece of the large read under way.
    ReadPiece,
    /// A part of the split read of that number.
    ReadPart(u64, Range),
    /// A flush, for all who wait for it.
    Flush,
}

/// What the device said.
#[derive(Debug)]
pub(super) enum Answer {
    /// To a read.
    Data(Result<Bytes>),
    /// To what gives nothing back.
    Unit(Result<()>),
    /// To a block status.
    Status(Result<Vec<Extents>>),
}

/// An answer that may not be there yet.
#[derive(Debug)]
pub(super) enum Coming {
    /// To a read.
    Data(Reply<Bytes>),
    /// To what gives nothing back.
    Unit(Reply<()>),
    /// To a block status.
    Status(Reply<Vec<Extents>>),
    /// From another thread.
    Elsewhere(JoinHandle<Answer>),
}

impl Coming {
    /// The answer, if it is there.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Answer> {
        match self {
            Self::Data(reply) => Pin::new(reply).poll(cx).map(Answer::Data),
            Self::Unit(reply) => Pin::new(reply).poll(cx).map(Answer::Unit),
            Self::Status(reply) => Pin::new(reply).poll(cx).map(Answer::Status),
            Self::Elsewhere(task) => {
                let lost = |e: tokio::task::JoinError| {
                    let e = Error::new(ErrorKind::Internal, "a request was lost").because(e);
                    Answer::Unit(Err(e))
                };
                Pin::new(task).poll(cx).map(|joined| joined.unwrap_or_else(lost))
            }
        }
    }

    /// Whether another thread does it.
    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(self, Self::Elsewhere(_))
    }
}

/// What a request holds on to while it is under way.
#[derive(Debug)]
pub(super) struct Held {
    /// What it belongs to.
    pub(super) owner: Owner,
    /// When it came in.
    pub(super) began: Instant,
    /// Its memory.
    pub(super) lease: Option<Lease>,
    /// Its memory, where it has no lease. Bytes.
    pub(super) unleased: usize,
}

/// A request under way. Ready with what came of it.
#[derive(Debug)]
pub(super) struct Work {
    coming: Coming,
    /// Taken once.
    held: Option<Held>,
    /// Keeps the device from being taken away.
    _entered: Arc<Entered>,
}

impl Work {
    /// A request that is not answered yet.
    pub(super) fn new(coming: Coming, held: Held, entered: Arc<Entered>) -> Self {
        Self { coming, held: Some(held), _entered: entered }
    }
}

impl Future for Work {
    type Output = (Held, Answer, Elsewhere);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = std::task::ready!(self.coming.poll(cx));
        let held = self.held.take().expect("it is ready once");
        Poll::Ready((held, answer, Elsewhere(self.coming.is_elsewhere())))
    }
}

/// Whether another thread did it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Elsewhere(pub(super) bool);

/// Does `work` with the device on a thread that may block.
pub(super) fn elsewhere(
    entered: &Arc<Entered>,
    work: impl FnOnce(&Arc<Entered>) -> Answer + Send + 'static,
) -> Coming {
    let entered = Arc::clone(entered);
    Coming::Elsewhere(tokio::task::spawn_blocking(move || work(&entered)))
}

/// Zeroes or discards a long range.
pub(super) fn zero(device: &Entered, request: &Request) -> Answer {
    let end = request.offset + u64::from(request.length);
    let mut at = request.offset;
    while at < end {
        // Whole steps end where the next one starts on a round number, so that objects are not cut.
        let to = ((at / ZERO_PIECE + 1) * ZERO_PIECE).min(end);
        let done = match request.command {
            Command::Trim => device.discard(at, to - at).wait(),
            Command::Read
            | Command::Write
            | Command::Disconnect
            | Command::Flush
            | Command::Cache
            | Command::WriteZeroes
            | Command::BlockStatus
            | Command::Unknown => device.write_zeroes(at, to - at).wait(),
        };
        if done.is_err() {
            return Answer::Unit(done);
        }
        at = to;
    }
    Answer::Unit(Ok(()))
}

/// Reads a range for the sake of caches below.
pub(super) fn read_ahead(device: &Entered, request: &Request) -> Answer {
    let end = request.offset + u64::from(request.length);
    let step = u64::try_from(PIECE_MIN).expect("a piece is small");
    let mut at = request.offset;
    while at < end {
        let length = step.min(end - at);
        if let Err(e) = device.read(at, length).wait() {
            return Answer::Unit(Err(e));
        }
        at += length;
    }
    Answer::Unit(Ok(()))
}

/// What each of the contexts says of a range: from its start, as far as is quickly known, and never past its end.
pub(super) async fn status(
    device: Arc<Entered>,
    contexts: Arc<[Selected]>,
    request: Request,
) -> Result<Vec<Extents>> {
    let mut all = Vec::with_capacity(contexts.len());
    for (place, context) in contexts.iter().enumerate() {
        let parts = parts(&device, context, &request).await?;
        all.push(Extents { id: context_id(place), parts });
    }
    Ok(all)
}

async fn parts(device: &Entered, context: &Selected, request: &Request) -> Result<Vec<(u32, u32)>> {
    let end = request.offset + u64::from(request.length);
    let is_one = request.has(command_flag::REQ_ONE);
    let mut parts: Vec<(u32, u32)> = Vec::new();
    let mut at = request.offset;
    while at < end {
        let step = STATUS_STEP.min(end - at);
        let from = at;
        for (length, flags) in step_of(device, context, at, step).await? {
            let length = u32::try_from(length.min(end - at)).expect("inside a request");
            if length == 0 {
                continue;
            }
            let count = parts.len();
            match parts.last_mut() {
                Some(last) if last.1 == flags => last.0 += length,
                Some(_) if is_one || count >= STATUS_EXTENTS => return Ok(parts),
                Some(_) | None => parts.push((length, flags)),
            }
            at += u64::from(length);
        }
        if at == from {
            let text = "a device does not say what a range holds";
            return Err(Error::new(ErrorKind::Internal, text).with("offset", at));
        }
    }
    Ok(parts)
}

/// Lengths and flags of one step.
async fn step_of(device: &Entered, context: &Selected, offset: u64, length: u64) -> Result<Vec<(u64, u32)>> {
    match context {
        Selected::Allocation => {
            let extents = device.extents(offset, length).await?;
            let flags = |state| match state {
                ExtentState::Data => allocation::DATA,
                ExtentState::Zero => allocation::HOLE_ZERO,
            };
            Ok(extents.into_iter().map(|e| (e.length, flags(e.state))).collect())
        }
        Selected::Own(own) => {
            Ok(own.status(offset, length).await?.into_iter().map(|s| (s.length, s.flags)).collect())
        }
    }
}
