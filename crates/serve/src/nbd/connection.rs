//! Requests and replies of one client, on one task.
//!
//! What the device answers at once is answered on the spot, and all replies to what one read of the socket brought go out in
//! one write. What it does not answer at once waits beside the others.
//!
//! Invariants
//! - Replies that nobody takes stop requests from being taken in: what waits for the socket, and what the device has not
//!   answered, is bounded for each connection, and by the budget for all of them together.
//! - Whatever a client was told is done is done; a flush is begun after it came in.
//! - One flush runs at a time; those that come meanwhile share the next one.
//! - Nothing comes between the pieces of a read that was promised in one: no other reply, and no flush that would be answered.
//! - Nothing is under way once [`Connection::run`] returned.

mod gather;
mod input;
mod large;
mod output;
mod pace;
mod reply;
mod request;
mod work;

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, Stream};
use tokio::time::Sleep;

use self::gather::{Gather, NAP};
use self::input::Input;
use self::large::{LargeRead, LargeWrite, Receiving, SplitRead};
use self::output::Output;
use self::pace::Pace;
use self::reply::{Failure, Style};
use self::work::{Answer, Elsewhere, Held, Owner, Work};
use super::budget::{Budget, Lease};
use super::channel::{Channel, Room};
use super::client::Client;
use super::handshake::{Agreed, Selected};
use super::limits::{BUSY_SHARE, IDLE_AFTER, OUTPUT_BUSY, OUTPUT_MIN, PENDING_MAX, PIECE_MAX, SEND_ROOM};
use super::wire::Request;
use crate::export::{Attached, Entered, Export};
use crate::traffic::{Tally, Traffic};

/// How a connection came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The client said so, or closed between two requests.
    Left,
    /// The server said so.
    Asked,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Connection<S> {
    stream: S,
    export: Arc<Export>,
    _attached: Attached,
    contexts: Arc<[Selected]>,
    style: Style,
    refuses_writes: bool,
    client: Arc<Client>,
    shared: Arc<Shared>,
    input: Input,
    output: Output,
    stage: Stage,
    work: FuturesUnordered<Work>,
    /// Answers that came while a promised read went out; told when it is over.
    aside: Vec<(Held, Answer)>,
    /// Payload of what is under way without a lease. Bytes.
    unleased: usize,
    /// How many requests are done by other threads.
    elsewhere: usize,
    large_writes: BTreeMap<u64, LargeWrite>,
    split_reads: BTreeMap<u64, SplitRead>,
    /// Large writes and split reads so far: the next one's number.
    large_ever: u64,
    flushes: Flushes,
    /// Memory of a busy connection, while it has it.
    busy: Option<Lease>,
    /// Memory of a socket with room for large replies, while it has it.
    room: Option<Lease>,
    idle: Idle,
    entering: Option<Entering>,
    /// Whether no request is taken in any more, and why.
    ending: Option<End>,
    tally: Option<Tally>,
    gather: Gather,
    /// Requests answered since the last look at what came in.
    answered: u32,
    /// When the last request was done.
    now: Instant,
    pace: Arc<Pace>,
    /// Reads of the round that were answered on this task: how many, and how many bytes.
    reads: (u64, u64),
    /// Whether the device let the last write wait.
    writes_wait: bool,
    /// Whether the device let the last read wait, without keeping this task.
    reads_wait: bool,
    /// Why the connection must be cut.
    fault: Option<io::Error>,
}

/// What all connections of a server have in common.
#[derive(Debug)]
pub(super) struct Shared {
    /// Memory.
    pub(super) budget: Arc<Budget>,
    /// Counts.
    pub(super) traffic: Traffic,
    /// Threads of the runtime that may be kept waiting by a flush at once.
    pub(super) blockable: tokio::sync::Semaphore,
}

/// An export that is paused, waited for.
struct Entering(Pin<Box<dyn Future<Output = Entered> + Send>>);

/// What the next bytes of the stream are.
#[derive(Debug)]
enum Stage {
    /// A request.
    Head,
    /// Payload of a large write.
    Receiving(Receiving),
    /// Payload nobody wants, and what to say then.
    Skipping { left: u64, request: Request, failure: Failure },
    /// A large read is answered first.
    Reading(LargeRead),
}

/// Why no more requests were taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blocked {
    /// More bytes of the client are needed.
    Input,
    /// Replies must go out first, or the device answer.
    Room,
}

/// Who waits to hear that all is durable.
#[derive(Debug, Default)]
struct Flushes {
    /// For the flush that runs.
    running: Vec<(Request, Instant)>,
    /// For the next one.
    waiting: Vec<(Request, Instant)>,
    /// How long the last one took.
    took: Duration,
}

/// Notices that a connection has had nothing to do for a while.
#[derive(Debug)]
struct Idle {
    timer: Pin<Box<Sleep>>,
    is_armed: bool,
    was_active: bool,
}

/// One go at the requests that are there: the device as it is now.
#[derive(Debug)]
struct Round {
    device: Arc<Entered>,
    size: u64,
    is_read_only: bool,
}

impl std::fmt::Debug for Entering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entering")
    }
}

impl<S: Channel> Connection<S> {
    /// A connection that agreed on what it uses.
    pub(super) fn new(stream: S, agreed: Agreed, client: Arc<Client>, shared: Arc<Shared>) -> Self {
        let output = Output::new(stream.is_write_vectored());
        Self {
            stream,
            export: agreed.export,
            _attached: agreed.attached,
            contexts: agreed.contexts.into(),
            style: Style { is_structured: agreed.is_structured },
            refuses_writes: agreed.refuses_writes,
            client,
            shared,
            input: Input::default(),
            output,
            stage: Stage::Head,
            work: FuturesUnordered::new(),
            aside: Vec::new(),
            unleased: 0,
            elsewhere: 0,
            large_writes: BTreeMap::new(),
            split_reads: BTreeMap::new(),
            large_ever: 0,
            flushes: Flushes::default(),
            busy: None,
            room: None,
            idle: Idle {
                timer: Box::pin(tokio::time::sleep(IDLE_AFTER)),
                is_armed: false,
                was_active: false,
            },
            entering: None,
            ending: None,
            tally: None,
            gather: Gather::new(Instant::now()),
            answered: 0,
            now: Instant::now(),
            pace: Arc::default(),
            reads: (0, 0),
            writes_wait: false,
            reads_wait: false,
            fault: None,
        }
    }

    /// Serves until the client leaves or is asked to; what is under way is finished then, whether the client still hears of it
    /// or not.
    ///
    /// # Errors
    /// Those of the stream; `InvalidData` where the client does not keep to the protocol; `UnexpectedEof` where it went in the
    /// middle of something.
    ///
    /// # Cancel safety
    /// Requests under way may still happen.
    pub(super) async fn run(mut self) -> io::Result<End> {
        let ended = std::future::poll_fn(|cx| self.poll_run(cx)).await;
        std::future::poll_fn(|cx| self.poll_settle(cx)).await;
        self.count_up();
        ended
    }

    fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<End>> {
        if self.ending.is_none() && self.client.poll_ended(cx).is_ready() {
            self.ending = Some(End::Asked);
        }
        loop {
            let mut is_moving = self.poll_work(cx);
            let blocked = self.serve(cx)?;
            let is_full = !self.has_room();
            let is_written = self.output.poll_write(Pin::new(&mut self.stream), cx)?;
            is_moving |= is_full && self.has_room() && self.ending.is_none();
            if let Some(end) = self.ending
                && is_written.is_ready()
                && self.work.is_empty()
                && self.flushes.is_quiet()
                && !matches!(self.stage, Stage::Reading(_))
            {
                self.count_up();
                return Poll::Ready(Ok(end));
            }
            if blocked == Blocked::Input && self.ending.is_none() {
                if is_written.is_ready() && self.naps(cx) {
                    return Poll::Pending;
                }
                match self.poll_input(cx)? {
                    Poll::Ready(true) => is_moving = true,
                    Poll::Ready(false) => {
                        // Gone, or half gone: what it asked for may still be heard.
                        self.ending = Some(End::Left);
                        is_moving = true;
                    }
                    Poll::Pending => {}
                }
            }
            if !is_moving {
                self.count_up();
                self.poll_idle(cx);
                return Poll::Pending;
            }
        }
    }

    /// Lets requests come together where that is better; whether it did. The task is polled again once the reactor has looked
    /// at what came in.
    fn naps(&mut self, cx: &mut Context<'_>) -> bool {
        let answered = std::mem::take(&mut self.answered);
        if answered == 0 || !self.work.is_empty() || !matches!(self.stage, Stage::Head) {
            return false;
        }
        if !self.gather.round(self.now, answered) {
            return false;
        }
        self.count_up();
        std::thread::sleep(NAP);
        let again = std::pin::pin!(tokio::task::yield_now());
        again.poll(cx).is_pending()
    }

    /// Waits for what is under way.
    fn poll_settle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.work.is_empty() {
            if !self.poll_work(cx) {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// Takes in what the device answered by now; whether there was any.
    fn poll_work(&mut self, cx: &mut Context<'_>) -> bool {
        let mut is_any = false;
        while !self.work.is_empty() {
            let Poll::Ready(Some(done)) = Pin::new(&mut self.work).poll_next(cx) else { break };
            let (held, answer, Elsewhere(was_elsewhere)) = done;
            if !is_any {
                self.now = Instant::now();
                is_any = true;
            }
            self.unleased -= held.unleased;
            self.elsewhere -= usize::from(was_elsewhere);
            if self.is_promised() && held.owner != Owner::ReadPiece {
                self.aside.push((held, answer));
            } else {
                self.settle(held, answer);
            }
        }
        is_any
    }

    /// Takes in requests until bytes, room or the device are missing, then flushes if somebody waits for it.
    fn serve(&mut self, cx: &mut Context<'_>) -> io::Result<Blocked> {
        let mut round = None;
        let blocked = self.serve_requests(&mut round, cx)?;
        let (reads, bytes) = std::mem::take(&mut self.reads);
        if reads > 0 {
            self.pace.took(reads, bytes, self.now.elapsed());
        }
        if self.flushes.is_due()
            && !self.is_promised()
            && let Some(round) = self.enter(&mut round, cx)
        {
            self.flush(round, cx);
        }
        match self.fault.take() {
            Some(fault) => Err(fault),
            None => Ok(blocked),
        }
    }

    fn serve_requests(&mut self, round: &mut Option<Round>, cx: &mut Context<'_>) -> io::Result<Blocked> {
        while self.has_room() && self.fault.is_none() {
            if self.ending.is_some() && !matches!(self.stage, Stage::Reading(_)) {
                return Ok(Blocked::Room);
            }
            if matches!(self.stage, Stage::Head) && !self.input.has_request() {
                return Ok(Blocked::Input);
            }
            if matches!(self.stage, Stage::Skipping { .. }) {
                if !self.skip() {
                    return Ok(Blocked::Input);
                }
                continue;
            }
            let Some(round) = self.enter(round, cx) else { return Ok(Blocked::Room) };
            if let Some(blocked) = self.step(round, cx)? {
                return Ok(blocked);
            }
        }
        Ok(Blocked::Room)
    }

    /// The round that is on, or a new one, unless the export is paused.
    fn enter<'r>(&mut self, round: &'r mut Option<Round>, cx: &mut Context<'_>) -> Option<&'r Round> {
        if round.is_none()
            && let Poll::Ready(entered) = self.poll_enter(cx)
        {
            *round = Some(entered);
        }
        round.as_ref()
    }

    /// Takes in one request or one piece; says what is missing where it cannot.
    fn step(&mut self, round: &Round, cx: &mut Context<'_>) -> io::Result<Option<Blocked>> {
        match &self.stage {
            Stage::Head => self.step_request(round, cx),
            Stage::Receiving(_) => Ok(self.step_receiving(round, cx)),
            Stage::Reading(_) => Ok(self.step_reading(round, cx)),
            Stage::Skipping { .. } => Ok(None),
        }
    }

    /// Whether the bytes that follow those in the output are a client's data, and must be nothing else.
    fn is_promised(&self) -> bool {
        matches!(&self.stage, Stage::Reading(read) if read.is_promised())
    }

    /// Whether another request may be taken in.
    fn has_room(&self) -> bool {
        let most = if self.busy.is_some() { OUTPUT_BUSY } else { OUTPUT_MIN };
        let leased_max = if let Stage::Reading(read) = &self.stage { read.leased_max() } else { PIECE_MAX };
        self.output.queued() + self.unleased < most
            && self.output.leased() < leased_max
            && self.work.len() < PENDING_MAX
    }

    /// Whether there is nothing to do but what the client asks for next: it waits for each reply.
    fn is_alone(&self) -> bool {
        self.work.is_empty() && self.output.is_empty() && !self.input.has_request()
    }

    /// Lets large replies wait in the socket, where there is memory for it: the fewer times the client empties it before it hears
    /// of more, the fewer times each wakes the other.
    fn make_room(&mut self) {
        if self.room.is_none()
            && let Some(lease) = self.shared.budget.take(SEND_ROOM, SEND_ROOM)
            && self.stream.make_room(Room::Large)
        {
            self.room = Some(lease);
        }
    }

    /// The device, once the export is not paused.
    fn poll_enter(&mut self, cx: &mut Context<'_>) -> Poll<Round> {
        let entered = match &mut self.entering {
            None => self.export.try_enter(),
            Some(entering) => match entering.0.as_mut().poll(cx) {
                Poll::Ready(entered) => Some(entered),
                Poll::Pending => return Poll::Pending,
            },
        };
        if let Some(entered) = entered {
            self.entering = None;
            let is_read_only = self.refuses_writes || entered.refuses_writes();
            let now = Instant::now();
            if let Some(tally) = &mut self.tally {
                tally.end_round(now.saturating_duration_since(self.now));
            }
            self.now = now;
            let size = entered.size();
            return Poll::Ready(Round { device: Arc::new(entered), size, is_read_only });
        }
        let export = Arc::clone(&self.export);
        self.entering = Some(Entering(Box::pin(async move { export.enter().await })));
        self.poll_enter(cx)
    }

    /// Reads from the stream; false at its end.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let stream = &mut self.stream;
        let (count, is_filled) = if let Stage::Receiving(receiving) = &mut self.stage {
            (ready!(receiving.poll_fill(stream, cx))?, false)
        } else {
            ready!(self.input.poll_fill(stream, cx))?
        };
        self.idle.was_active = true;
        if is_filled && self.busy.is_none() {
            self.busy = self.shared.budget.take(BUSY_SHARE, BUSY_SHARE);
            self.input.may_grow(self.busy.is_some());
        }
        if count == 0 {
            let is_between = matches!(self.stage, Stage::Head) && self.input.is_empty();
            let in_between = || io::Error::from(io::ErrorKind::UnexpectedEof);
            return Poll::Ready(if is_between { Ok(false) } else { Err(in_between()) });
        }
        Poll::Ready(Ok(true))
    }

    /// Gives memory back after a while without requests.
    fn poll_idle(&mut self, cx: &mut Context<'_>) {
        if self.busy.is_none() && self.room.is_none() {
            return;
        }
        if !self.idle.is_armed {
            self.idle.is_armed = true;
            self.idle.timer.as_mut().reset(tokio::time::Instant::now() + IDLE_AFTER);
        }
        while self.idle.timer.as_mut().poll(cx).is_ready() {
            let is_quiet = !std::mem::take(&mut self.idle.was_active)
                && self.work.is_empty()
                && self.output.is_empty()
                && matches!(self.stage, Stage::Head);
            if is_quiet {
                self.input.may_grow(false);
                self.output.shrink();
                self.busy = None;
                if self.room.take().is_some() {
                    self.stream.make_room(Room::Usual);
                }
                self.idle.is_armed = false;
                return;
            }
            self.idle.timer.as_mut().reset(tokio::time::Instant::now() + IDLE_AFTER);
        }
    }

    /// Hands over what was counted since.
    fn count_up(&mut self) {
        if let Some(mut tally) = self.tally.take() {
            tally.end_round(self.now.elapsed());
            self.shared.traffic.add(&tally);
            self.export.traffic().add(&tally);
        }
    }
}

impl Flushes {
    /// Whether somebody waits and none runs.
    fn is_due(&self) -> bool {
        self.running.is_empty() && !self.waiting.is_empty()
    }

    /// Whether nobody waits.
    fn is_quiet(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }
}
