//! One request: whether it may be done, doing it, and answering.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use ferry_core::Reply;
use futures_util::FutureExt;

use super::reply::{Failure, OTHER_LENGTH};
use super::work::{Answer, Coming, Held, Owner, Work, elsewhere, read_ahead, status, zero};
use super::{Blocked, Connection, End, Round, Stage};
use crate::export::Entered;
use crate::nbd::channel::Channel;
use crate::nbd::limits::{
    ELSEWHERE_MAX, FLUSH_INLINE_MAX, OUTPUT_MIN, PAYLOAD_MAX, PIECE_HOT, PIECE_MAX, READS_AHEAD_MAX,
    READS_ELSEWHERE_MAX, STATUS_STEP, WHOLE_MAX, ZERO_INLINE_MAX,
};
use crate::nbd::wire::{Command, REQUEST_SIZE, Request, WireError, command_flag};
use crate::traffic::Sort;

impl Command {
    /// Under what it is counted.
    fn sort(self) -> Sort {
        match self {
            Self::Read => Sort::Read,
            Self::Write => Sort::Write,
            Self::Flush => Sort::Flush,
            Self::Trim | Self::WriteZeroes => Sort::Zero,
            Self::Disconnect | Self::Cache | Self::BlockStatus | Self::Unknown => Sort::Other,
        }
    }
}

/// Whether a request may take long even on a fast device.
fn is_heavy(request: &Request) -> bool {
    let length = u64::from(request.length);
    match request.command {
        Command::Trim | Command::WriteZeroes => length > ZERO_INLINE_MAX,
        Command::Cache => true,
        Command::BlockStatus => length > STATUS_STEP && !request.has(command_flag::REQ_ONE),
        Command::Read | Command::Write | Command::Flush | Command::Disconnect | Command::Unknown => false,
    }
}

impl<S: Channel> Connection<S> {
    /// Takes in the next request; says what is missing where it cannot.
    pub(super) fn step_request(
        &mut self,
        round: &Round,
        cx: &mut Context<'_>,
    ) -> io::Result<Option<Blocked>> {
        let Some(request) = self.input.peek()? else { return Ok(Some(Blocked::Input)) };
        if request.command == Command::Disconnect {
            self.input.skip(REQUEST_SIZE);
            self.ending = Some(End::Left);
            return Ok(Some(Blocked::Room));
        }
        self.input.expect_large(false);
        let payload = usize::try_from(request.length).expect("32 bits fit memory");
        let checked = self.check(&request, round);
        if request.command == Command::Write && checked.is_ok() && self.input.fits(payload) {
            if self.input.len() < REQUEST_SIZE + payload {
                return Ok(Some(Blocked::Input));
            }
            self.input.skip(REQUEST_SIZE);
            self.write(request, payload, round, cx);
            return Ok(None);
        }
        if checked.is_ok() && is_heavy(&request) && self.elsewhere >= ELSEWHERE_MAX {
            return Ok(Some(Blocked::Room));
        }
        self.input.skip(REQUEST_SIZE);
        match checked {
            Err(failure) if request.command == Command::Write => {
                self.stage = Stage::Skipping { left: u64::from(request.length), request, failure };
            }
            Err(failure) => self.fail(&request, &failure, self.now),
            Ok(()) => self.dispatch(request, payload, round, cx),
        }
        Ok(None)
    }

    /// Forgets payload that nobody wants; whether all of it is here and answered.
    pub(super) fn skip(&mut self) -> bool {
        let Stage::Skipping { left, request, failure } = &mut self.stage else { return true };
        let here = u64::try_from(self.input.len()).expect("a buffer is small").min(*left);
        self.input.skip(usize::try_from(here).expect("it is in the buffer"));
        *left -= here;
        if *left > 0 {
            return false;
        }
        let (request, failure) = (*request, failure.clone());
        self.stage = Stage::Head;
        self.fail(&request, &failure, self.now);
        true
    }

    /// Whether a request may be done at all.
    fn check(&self, request: &Request, round: &Round) -> Result<(), Failure> {
        let invalid = |text| Err(Failure::new(WireError::Invalid, text));
        let command = request.command;
        if command == Command::Unknown {
            return invalid("this server does not know the request");
        }
        if request.flags & !command.flags_allowed(self.style.is_structured) != 0 {
            return invalid("the request carries flags that do not belong to it");
        }
        if command == Command::Flush {
            let is_plain = request.offset == 0 && request.length == 0;
            return if is_plain { Ok(()) } else { invalid("a flush has no range") };
        }
        let is_change = matches!(command, Command::Write | Command::Trim | Command::WriteZeroes);
        if is_change && round.is_read_only {
            return Err(Failure::new(WireError::Permission, "the export is read-only"));
        }
        if request.length == 0 {
            return invalid("the request has no length");
        }
        if matches!(command, Command::Read | Command::Write) && request.length > PAYLOAD_MAX {
            return invalid("the request is larger than 32 MiB");
        }
        if request.end().is_none_or(|end| end > round.size) {
            let text = "the request goes past the end of the export";
            return match command {
                Command::Write | Command::WriteZeroes => Err(Failure::new(WireError::NoSpace, text)),
                Command::Read
                | Command::Trim
                | Command::Cache
                | Command::BlockStatus
                | Command::Flush
                | Command::Disconnect
                | Command::Unknown => invalid(text),
            };
        }
        if command == Command::BlockStatus && self.contexts.is_empty() {
            return invalid("no meta context was selected");
        }
        Ok(())
    }

    /// Writes a payload that is here as a whole.
    fn write(&mut self, request: Request, payload: usize, round: &Round, cx: &mut Context<'_>) {
        let data = if self.writes_wait {
            // A write that waits must not keep a whole input buffer alive.
            let data = Bytes::copy_from_slice(self.input.front(payload));
            self.input.skip(payload);
            data
        } else {
            self.input.take(payload)
        };
        let waiting = self.work.len();
        self.start_whole(request, Coming::Unit(round.device.write(request.offset, data)), payload, round, cx);
        self.writes_wait = self.work.len() > waiting;
    }

    fn dispatch(&mut self, request: Request, length: usize, round: &Round, cx: &mut Context<'_>) {
        let (device, offset) = (&round.device, request.offset);
        let long = u64::from(request.length);
        let coming = match request.command {
            Command::Read if length <= WHOLE_MAX => {
                let coming = self.read(device, offset, long);
                return self.start_whole(request, coming, length, round, cx);
            }
            Command::Read => return self.read_large(request, length, round, cx),
            Command::Write => return self.receive(request),
            Command::Flush => return self.flushes.waiting.push((request, self.now)),
            Command::Trim | Command::WriteZeroes if is_heavy(&request) => {
                elsewhere(device, move |device| zero(device, &request))
            }
            Command::Trim => Coming::Unit(device.discard(offset, long)),
            Command::WriteZeroes => Coming::Unit(device.write_zeroes(offset, long)),
            Command::Cache => elsewhere(device, move |device| read_ahead(device, &request)),
            Command::BlockStatus => {
                let contexts = Arc::clone(&self.contexts);
                if is_heavy(&request) {
                    elsewhere(device, move |device| {
                        Answer::Status(Reply::pending(status(Arc::clone(device), contexts, request)).wait())
                    })
                } else {
                    Coming::Status(Reply::pending(status(Arc::clone(device), contexts, request)))
                }
            }
            Command::Disconnect | Command::Unknown => unreachable!("answered before"),
        };
        self.start_whole(request, coming, 0, round, cx);
    }

    /// A read that may be too large for the memory there is.
    fn read_large(&mut self, request: Request, length: usize, round: &Round, cx: &mut Context<'_>) {
        self.make_room();
        let is_large = length > PIECE_HOT;
        let can_break_off = self.style.is_structured && !request.has(command_flag::DF);
        // Sending takes as long as reading. Who has other requests under way gains by both at once; who has none waits less for
        // the first bytes of a read in pieces. A device that lets reads wait does several at once by itself.
        let is_kept = is_large && !self.reads_wait;
        let is_ahead = is_kept && !self.is_alone() && self.elsewhere < READS_AHEAD_MAX;
        if can_break_off && is_kept && !is_ahead && !self.pace.is_slow() {
            return self.read_in_pieces(request, PIECE_HOT);
        }
        if can_break_off
            && length > PIECE_MAX
            && self.reads_wait
            && let Some(lease) = self.shared.budget.take(length, length)
        {
            return self.read_in_parts(request, lease, round, cx);
        }
        let lease = if length <= PIECE_MAX { self.shared.budget.take(length, length) } else { None };
        if lease.is_none() {
            return self.read_in_pieces(request, PIECE_MAX);
        }
        let (offset, length) = (request.offset, u64::from(request.length));
        let coming = if is_ahead {
            self.read_elsewhere(&round.device, offset, length)
        } else {
            self.read(&round.device, offset, length)
        };
        let held = Held { owner: Owner::Whole(request), began: self.now, lease, unleased: 0 };
        self.start(coming, held, round, cx);
    }

    /// Reads here, or where the device keeps its readers waiting and there is something else to do, elsewhere.
    fn read(&self, device: &Arc<Entered>, offset: u64, length: u64) -> Coming {
        let is_alone = self.work.is_empty() && !self.input.has_request();
        if is_alone || self.elsewhere >= READS_ELSEWHERE_MAX || !self.pace.is_slow() {
            return Coming::Data(device.read(offset, length));
        }
        self.read_elsewhere(device, offset, length)
    }

    /// Reads on another thread.
    fn read_elsewhere(&self, device: &Arc<Entered>, offset: u64, length: u64) -> Coming {
        let pace = Arc::clone(&self.pace);
        elsewhere(device, move |device| {
            let began = Instant::now();
            let mut reply = device.read(offset, length);
            let at_once = (&mut reply).now_or_never();
            // As long would it have kept the connection's own task; it may come later without keeping anybody.
            pace.took(1, length, began.elapsed());
            Answer::Data(at_once.unwrap_or_else(|| reply.wait()))
        })
    }

    fn start_whole(
        &mut self,
        request: Request,
        coming: Coming,
        unleased: usize,
        round: &Round,
        cx: &mut Context<'_>,
    ) {
        let held = Held { owner: Owner::Whole(request), began: self.now, lease: None, unleased };
        self.start(coming, held, round, cx);
    }

    /// Answers what is answered already, and lets the rest wait.
    pub(super) fn start(&mut self, mut coming: Coming, mut held: Held, round: &Round, cx: &mut Context<'_>) {
        let polled = coming.poll(cx);
        if matches!(coming, Coming::Data(_)) {
            self.reads_wait = polled.is_pending();
        }
        if let Poll::Ready(answer) = polled {
            // Reads that wait without a thread, such as those of a cluster, keep nobody behind them waiting.
            if let (Coming::Data(_), Answer::Data(Ok(data))) = (&coming, &answer) {
                self.reads = (self.reads.0 + 1, self.reads.1 + data.len() as u64);
            }
            return self.settle(held, answer);
        }
        self.cover(&mut held);
        self.unleased += held.unleased;
        self.elsewhere += usize::from(coming.is_elsewhere());
        self.work.push(Work::new(coming, held, Arc::clone(&round.device)));
    }

    /// Takes memory of the server's for what waits, so that a device that takes its time is asked for more meanwhile than the
    /// connection's own memory has room for.
    fn cover(&self, held: &mut Held) {
        if held.unleased > 0 && self.unleased + held.unleased > OUTPUT_MIN / 2 {
            held.lease = self.shared.budget.take(held.unleased, held.unleased);
            if held.lease.is_some() {
                held.unleased = 0;
            }
        }
    }

    /// Makes everything acknowledged durable, for all who wait for it.
    pub(super) fn flush(&mut self, round: &Round, cx: &mut Context<'_>) {
        self.now = Instant::now();
        self.flushes.running = std::mem::take(&mut self.flushes.waiting);
        let began = self.now;
        let is_alone = self.work.is_empty() && !self.input.has_request();
        let shared = Arc::clone(&self.shared);
        let permit = if is_alone && self.flushes.took < FLUSH_INLINE_MAX {
            shared.blockable.try_acquire().ok()
        } else {
            None
        };
        let coming = if permit.is_some() {
            Coming::Unit(round.device.flush())
        } else {
            elsewhere(&round.device, |device| Answer::Unit(device.flush().wait()))
        };
        let held = Held { owner: Owner::Flush, began, lease: None, unleased: 0 };
        self.start(coming, held, round, cx);
    }

    /// Takes in what the device answered.
    pub(super) fn settle(&mut self, held: Held, answer: Answer) {
        match held.owner {
            Owner::Whole(request) => self.settle_whole(&request, held, answer),
            Owner::WritePiece(id) => self.piece_written(id, answer),
            Owner::ReadPiece => self.piece_read(held.lease, answer),
            Owner::ReadPart(id, range) => self.part_read(id, range, held.lease, answer),
            Owner::Flush => self.flushed(held.began, answer),
        }
    }

    fn settle_whole(&mut self, request: &Request, held: Held, answer: Answer) {
        let began = held.began;
        match answer {
            Answer::Data(Ok(data)) if u64::try_from(data.len()) == Ok(u64::from(request.length)) => {
                self.style.data(&mut self.output, request, data, held.lease);
                self.count(request, true, began);
            }
            Answer::Data(Ok(_)) => {
                self.fail(request, &Failure::new(WireError::Io, OTHER_LENGTH), began);
            }
            Answer::Unit(Ok(())) => self.written(request, began),
            Answer::Status(Ok(extents)) => {
                self.style.status(&mut self.output, request.cookie, &extents);
                self.count(request, true, began);
            }
            Answer::Data(Err(e)) | Answer::Unit(Err(e)) | Answer::Status(Err(e)) => {
                self.fail(request, &Failure::of(&e), began);
            }
        }
    }

    /// A request without an answer of its own is done, but for its durability.
    pub(super) fn written(&mut self, request: &Request, began: Instant) {
        let is_change = matches!(request.command, Command::Write | Command::Trim | Command::WriteZeroes);
        if is_change && request.has(command_flag::FUA) {
            self.flushes.waiting.push((*request, began));
        } else {
            self.style.done(&mut self.output, request.cookie);
            self.count(request, true, began);
        }
    }

    fn flushed(&mut self, began: Instant, answer: Answer) {
        self.now = Instant::now();
        self.flushes.took = self.now.saturating_duration_since(began);
        let failure = match answer {
            Answer::Unit(Ok(())) | Answer::Data(Ok(_)) | Answer::Status(Ok(_)) => None,
            Answer::Unit(Err(e)) | Answer::Data(Err(e)) | Answer::Status(Err(e)) => Some(Failure::of(&e)),
        };
        for (request, began) in std::mem::take(&mut self.flushes.running) {
            match &failure {
                Some(failure) => self.fail(&request, failure, began),
                None => {
                    self.style.done(&mut self.output, request.cookie);
                    self.count(&request, true, began);
                }
            }
        }
    }

    /// Answers that a request failed.
    pub(super) fn fail(&mut self, request: &Request, failure: &Failure, began: Instant) {
        self.style.failed(&mut self.output, request.cookie, failure);
        self.count(request, false, began);
    }

    /// Counts a request that is answered: how long it took is known when the round is over, as its reply goes out no sooner.
    pub(super) fn count(&mut self, request: &Request, is_well: bool, began: Instant) {
        let bytes = is_well.then_some(u64::from(request.length));
        self.answered = self.answered.saturating_add(1);
        let waited = self.now.saturating_duration_since(began);
        self.tally.get_or_insert_default().count(request.command.sort(), bytes, waited);
    }
}
