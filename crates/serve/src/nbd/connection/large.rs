//! Requests that are served in pieces, as memory allows.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use ferry_core::Buffer;
use tokio::io::{AsyncRead, ReadBuf};

use super::reply::{Failure, OTHER_LENGTH, Part};
use super::work::{Answer, Coming, Held, Owner, Range, elsewhere};
use super::{Blocked, Connection, Round, Stage};
use crate::nbd::budget::Lease;
use crate::nbd::channel::Channel;
use crate::nbd::limits::{PIECE_MAX, PIECE_MIN, PIECES_UNDER_WAY_MAX};
use crate::nbd::wire::{Request, WireError, command_flag};

/// Pieces from this size on are written by another thread, while the next one arrives. Bytes.
const ELSEWHERE_MIN: usize = 256 << 10;

/// The large write whose payload arrives.
#[derive(Debug)]
pub(super) struct Receiving {
    /// Its number among the large writes.
    id: u64,
    /// Where the next piece goes.
    offset: u64,
    /// Payload that did not arrive yet, beyond the piece. Bytes.
    left: usize,
    piece: Option<Piece>,
}

/// A piece that arrives.
#[derive(Debug)]
struct Piece {
    bytes: Buffer,
    /// How much of it is here. Bytes.
    filled: usize,
    lease: Option<Lease>,
}

/// A large write of which pieces arrive or are being written.
#[derive(Debug)]
pub(super) struct LargeWrite {
    request: Request,
    began: Instant,
    under_way: usize,
    is_received: bool,
    failure: Option<Failure>,
}

/// The large read that is being answered.
#[derive(Debug)]
pub(super) struct LargeRead {
    request: Request,
    began: Instant,
    /// What is not read yet. Bytes.
    left: u64,
    /// Largest piece. Bytes.
    piece_max: usize,
    /// Whether the client was promised all of it in one.
    is_promised: bool,
    is_under_way: bool,
}

/// A large read of which parts are being read, all at once, from a device that lets them wait.
#[derive(Debug)]
pub(super) struct SplitRead {
    request: Request,
    began: Instant,
    under_way: usize,
    failure: Option<Failure>,
}

impl Receiving {
    /// Reads what is there of the piece.
    pub(super) fn poll_fill<S>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<usize>>
    where
        S: AsyncRead + Unpin,
    {
        let Some(piece) = &mut self.piece else { return Poll::Pending };
        let mut rest = ReadBuf::new(&mut piece.bytes[piece.filled..]);
        ready!(Pin::new(stream).poll_read(cx, &mut rest))?;
        let count = rest.filled().len();
        piece.filled += count;
        Poll::Ready(Ok(count))
    }
}

impl<S: Channel> Connection<S> {
    /// Starts to receive a write that is too large to be received whole.
    pub(super) fn receive(&mut self, request: Request) {
        let id = self.large_ever;
        self.large_ever += 1;
        let began = self.now;
        let state = LargeWrite { request, began, under_way: 0, is_received: false, failure: None };
        self.large_writes.insert(id, state);
        let left = usize::try_from(request.length).expect("a payload fits memory");
        self.stage = Stage::Receiving(Receiving { id, offset: request.offset, left, piece: None });
    }

    /// Starts to answer a read that is not answered whole.
    pub(super) fn read_in_pieces(&mut self, request: Request, piece_max: usize) {
        let left = u64::from(request.length);
        self.stage = Stage::Reading(LargeRead {
            request,
            began: self.now,
            left,
            piece_max,
            is_promised: false,
            is_under_way: false,
        });
    }

    /// Reads all parts of a request at once, each to be answered in a chunk of its own; `lease` is for all of it.
    pub(super) fn read_in_parts(
        &mut self,
        request: Request,
        mut lease: Lease,
        round: &Round,
        cx: &mut Context<'_>,
    ) {
        let (piece, end) = (PIECE_MAX as u64, request.offset.saturating_add(u64::from(request.length)));
        let next = |at: u64| (at / piece + 1).saturating_mul(piece);
        let starts = std::iter::successors(Some(request.offset), |at| Some(next(*at)));
        let parts: Vec<Range> = starts
            .take_while(|at| *at < end)
            .map(|at| Range { offset: at, length: next(at).min(end) - at })
            .collect();
        let id = self.large_ever;
        self.large_ever += 1;
        let began = self.now;
        self.split_reads.insert(id, SplitRead { request, began, under_way: parts.len(), failure: None });
        for part in parts {
            let coming = Coming::Data(round.device.read(part.offset, part.length));
            let lease = Some(lease.split(usize::try_from(part.length).expect("a piece is small")));
            self.start(
                coming,
                Held { owner: Owner::ReadPart(id, part), began, lease, unleased: 0 },
                round,
                cx,
            );
        }
    }

    /// A part of a split read is here, or not. One that fails ends the reply in an error once the others are over.
    pub(super) fn part_read(&mut self, id: u64, range: Range, lease: Option<Lease>, answer: Answer) {
        let read = self.split_reads.get_mut(&id).expect("it lives while parts are under way");
        read.under_way -= 1;
        let is_last = read.under_way == 0;
        match answer {
            Answer::Data(Ok(data)) if data.len() as u64 == range.length => {
                if read.failure.is_none() {
                    let part = Part { offset: range.offset, is_last };
                    self.style.chunk(&mut self.output, &read.request, part, data, lease);
                }
            }
            Answer::Data(Err(e)) | Answer::Unit(Err(e)) | Answer::Status(Err(e)) => {
                read.failure.get_or_insert_with(|| Failure::of(&e));
            }
            Answer::Data(Ok(_)) | Answer::Unit(Ok(())) | Answer::Status(Ok(_)) => {
                read.failure.get_or_insert_with(|| Failure::new(WireError::Io, OTHER_LENGTH));
            }
        }
        if is_last && let Some(read) = self.split_reads.remove(&id) {
            match read.failure {
                Some(failure) => self.fail(&read.request, &failure, read.began),
                None => self.count(&read.request, true, read.began),
            }
        }
    }

    /// Goes on with the payload that arrives, as far as it is here.
    pub(super) fn step_receiving(&mut self, round: &Round, cx: &mut Context<'_>) -> Option<Blocked> {
        let Stage::Receiving(receiving) = &mut self.stage else { return None };
        let write = self.large_writes.get_mut(&receiving.id).expect("it lives until it is received");
        if receiving.piece.is_none() {
            if receiving.left == 0 {
                write.is_received = true;
                let id = receiving.id;
                self.stage = Stage::Head;
                self.finish_write(id);
                return None;
            }
            if write.under_way >= PIECES_UNDER_WAY_MAX {
                return Some(Blocked::Room);
            }
            let want = receiving.left.min(PIECE_MAX);
            let lease = self.shared.budget.take(want.min(PIECE_MIN), want);
            let size = lease.as_ref().map_or(want.min(PIECE_MIN), Lease::bytes);
            let mut bytes = Buffer::take(size);
            let filled = self.input.move_to(&mut bytes);
            self.input.expect_large(true);
            receiving.left -= size;
            receiving.piece = Some(Piece { bytes, filled, lease });
        }
        let piece = receiving.piece.take_if(|p| p.filled == p.bytes.len());
        let Some(Piece { bytes, filled: size, lease }) = piece else { return Some(Blocked::Input) };
        let (offset, id) = (receiving.offset, receiving.id);
        receiving.offset += u64::try_from(size).expect("a piece is small");
        if write.failure.is_some() {
            // Nobody will hear of the rest.
            return None;
        }
        write.under_way += 1;
        let data = bytes.freeze();
        let coming = if size >= ELSEWHERE_MIN {
            elsewhere(&round.device, move |device| Answer::Unit(device.write(offset, data).wait()))
        } else {
            Coming::Unit(round.device.write(offset, data))
        };
        let unleased = if lease.is_some() { 0 } else { size };
        let owner = Owner::WritePiece(id);
        self.start(coming, Held { owner, began: self.now, lease, unleased }, round, cx);
        None
    }

    /// Goes on with the read that is being answered.
    pub(super) fn step_reading(&mut self, round: &Round, cx: &mut Context<'_>) -> Option<Blocked> {
        let Stage::Reading(read) = &mut self.stage else { return None };
        if read.is_under_way {
            return Some(Blocked::Room);
        }
        read.is_under_way = true;
        let want = usize::try_from(read.left).expect("a read fits memory").min(read.piece_max);
        let lease = self.shared.budget.take(want.min(PIECE_MIN), want);
        let size = lease.as_ref().map_or(want.min(PIECE_MIN), Lease::bytes);
        let length = u64::try_from(size).expect("a piece is small");
        let coming = Coming::Data(round.device.read(read.at(), length));
        let unleased = if lease.is_some() { 0 } else { size };
        let held = Held { owner: Owner::ReadPiece, began: self.now, lease, unleased };
        self.start(coming, held, round, cx);
        None
    }

    /// A piece of a large write is written, or not.
    pub(super) fn piece_written(&mut self, id: u64, answer: Answer) {
        let write = self.large_writes.get_mut(&id).expect("it lives while pieces are under way");
        write.under_way -= 1;
        if let Answer::Unit(Err(e)) | Answer::Data(Err(e)) | Answer::Status(Err(e)) = answer {
            write.failure.get_or_insert_with(|| Failure::of(&e));
        }
        self.finish_write(id);
    }

    /// Answers a large write of which nothing is left to do.
    fn finish_write(&mut self, id: u64) {
        let is_done = |w: &LargeWrite| w.is_received && w.under_way == 0;
        if !self.large_writes.get(&id).is_some_and(is_done) {
            return;
        }
        let Some(write) = self.large_writes.remove(&id) else { return };
        match write.failure {
            Some(failure) => self.fail(&write.request, &failure, write.began),
            None => self.written(&write.request, write.began),
        }
    }

    /// A piece of the large read is here, or not.
    pub(super) fn piece_read(&mut self, lease: Option<Lease>, answer: Answer) {
        let Stage::Reading(mut read) = std::mem::replace(&mut self.stage, Stage::Head) else {
            unreachable!("a piece is read while its read is being answered");
        };
        read.is_under_way = false;
        let (request, offset) = (read.request, read.at());
        let data = match answer {
            Answer::Data(Ok(data)) => data,
            Answer::Data(Err(e)) | Answer::Unit(Err(e)) | Answer::Status(Err(e)) => {
                return self.read_failed(&read, &Failure::of(&e));
            }
            Answer::Unit(Ok(())) | Answer::Status(Ok(_)) => {
                return self.read_failed(&read, &Failure::new(WireError::Io, "a read gave no data"));
            }
        };
        read.left -= u64::try_from(data.len()).expect("a piece is small");
        let is_last = read.left == 0;
        if self.style.is_structured && !request.has(command_flag::DF) {
            self.style.chunk(&mut self.output, &request, Part { offset, is_last }, data, lease);
        } else {
            if !std::mem::replace(&mut read.is_promised, true) {
                self.style.promise(&mut self.output, &request);
            }
            self.output.data(data, lease);
            if is_last && self.style.is_structured {
                self.style.done(&mut self.output, request.cookie);
            }
        }
        if is_last {
            self.count(&request, true, read.began);
            self.tell_aside();
        } else {
            self.stage = Stage::Reading(read);
        }
    }

    /// Tells what was answered while a read had the stream for itself.
    fn tell_aside(&mut self) {
        for (held, answer) in std::mem::take(&mut self.aside) {
            self.settle(held, answer);
        }
    }

    fn read_failed(&mut self, read: &LargeRead, failure: &Failure) {
        if !read.is_promised {
            return self.fail(&read.request, failure, read.began);
        }
        self.count(&read.request, false, read.began);
        if self.style.is_structured {
            self.style.broken(&mut self.output, &read.request, read.left, failure);
            self.tell_aside();
        } else {
            // A simple reply has said that all is well: only hanging up says otherwise.
            self.fault = Some(io::Error::other("a read failed after its reply had begun"));
        }
    }
}

impl LargeRead {
    /// How much may wait to be sent before the next piece is read. A piece on its way out is hot; more of them would not be.
    pub(super) fn leased_max(&self) -> usize {
        self.piece_max
    }

    /// Whether the client takes whatever is sent next for its data.
    pub(super) fn is_promised(&self) -> bool {
        self.is_promised
    }

    /// Where the next piece starts.
    fn at(&self) -> u64 {
        self.request.offset + u64::from(self.request.length) - self.left
    }
}
