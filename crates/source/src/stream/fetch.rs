//! What network streams have in common: patience, attempts, pieces of a large read, counting.
//!
//! Invariants
//! - Every wait is bounded: without progress a request ends within [`Patience::retry`] and one attempt.
//! - A read is answered with exactly the bytes that were asked for, or with an error.
//! - The bytes of an attempt that broke are kept: the next one starts behind them.

#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ferry_core::{Buffer, Errno, Error, ErrorKind, Reply, Result};
use futures_util::future::try_join_all;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Longest piece of a read that is fetched by one request; longer reads go in several at once. Large enough that a round trip
/// of 20 ms is not felt at 4 connections, small enough that a cut body costs little. Bytes.
pub(super) const PIECE_MAX: u64 = 1 << 20;
/// Reads up to this do not wait behind longer ones. Bytes.
const SMALL_MAX: u64 = 256 << 10;
/// First pause between attempts; doubled each time.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause between attempts that the server did not ask for.
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// How long a network stream waits for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a connection, with what is said before the first request.
    pub connect: Duration,
    /// For [`Patience::progress`] more bytes of an answer, or its end.
    pub idle: Duration,
    /// What must come within [`Patience::idle`] for an answer to count as moving. Bytes.
    pub progress: u64,
    /// For a server that was opened and fails since, counted from the last byte it sent.
    pub retry: Duration,
    /// For a server that says, while it is opened, that it is busy.
    pub open: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(20),
            progress: 16 << 10,
            retry: Duration::from_secs(30),
            open: Duration::from_secs(5),
        }
    }
}

/// Counts what a network stream does.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    bytes: AtomicU64,
    requests: AtomicU64,
    failures: AtomicU64,
    connections: AtomicU64,
}

/// What a network stream has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficCount {
    /// Bytes of content that came, those of broken attempts too.
    pub bytes: u64,
    /// Requests sent.
    pub requests: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Connections made.
    pub connections: u64,
}

impl Traffic {
    /// What there is now.
    pub(super) fn count(&self) -> TrafficCount {
        TrafficCount {
            bytes: self.bytes.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
        }
    }

    pub(super) fn came(&self, bytes: usize) {
        self.bytes.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn asked(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }
}

/// What was found to be changed since the opening: once something was, for good.
#[derive(Debug, Default)]
pub(super) struct Changed(Mutex<Option<String>>);

impl Changed {
    pub(super) fn found(&self, what: String) {
        self.0.lock().expect("no thread panics with it").get_or_insert(what);
    }

    /// # Errors
    /// `Conflict` where something was.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let changed = self.0.lock().expect("no thread panics with it");
        changed.as_ref().map_or(Ok(()), |what| {
            let error = Error::new(ErrorKind::Conflict, "the source is not what was opened");
            Err(Failure::never(error.with("changed", what)))
        })
    }
}

/// Whether another attempt may succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// It would be the same.
    Never,
    /// Where it has worked before; while it is opened this is an answer like any other.
    Later,
    /// The server is there and busy; after a while, where it said so.
    Soon(Option<Duration>),
    /// At once: a connection that had been kept was gone.
    Now,
}

/// An attempt that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) again: Again,
}

impl Failure {
    pub(super) fn never(error: Error) -> Self {
        Self { error, again: Again::Never }
    }

    pub(super) fn later(error: Error) -> Self {
        Self { error, again: Again::Later }
    }

    pub(super) fn soon(error: Error) -> Self {
        Self { error, again: Again::Soon(None) }
    }
}

/// Whether the stream has been open already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is being opened: what is wrong is told at once.
    Opening,
    /// It was opened: what is wrong may pass.
    Open,
}

/// Attempts at one thing.
#[derive(Debug)]
pub(super) struct Attempts<'a> {
    phase: Phase,
    patience: Duration,
    traffic: &'a Traffic,
    progress: u64,
    gained: u64,
    since: Instant,
    pause: Duration,
    made: u32,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(phase: Phase, patience: &Patience, traffic: &'a Traffic) -> Self {
        let whole = match phase {
            Phase::Opening => patience.open,
            Phase::Open => patience.retry,
        };
        let (progress, since) = (patience.progress, Instant::now());
        Self { phase, patience: whole, traffic, progress, gained: 0, since, pause: PAUSE_MIN, made: 0 }
    }

    /// So many bytes came. When they are enough to be called progress, the server gets all the time again; a drop now and
    /// then does not do.
    pub(super) fn came(&mut self, bytes: usize) {
        self.gained += u64::try_from(bytes).unwrap_or(u64::MAX);
        if self.gained >= self.progress {
            self.gained = 0;
            self.since = Instant::now();
            self.pause = PAUSE_MIN;
        }
    }

    /// Waits until the next attempt.
    ///
    /// # Errors
    /// That of the failure, where another attempt is of no use or the time is up. Once a stream was opened it is never
    /// `NotFound`: what vanished then is `Unavailable` (5), not absent.
    pub(super) async fn after(&mut self, failure: Failure) -> Result<()> {
        self.traffic.failed();
        self.made += 1;
        let wait = match (failure.again, self.phase) {
            (Again::Never, _) | (Again::Later, Phase::Opening) => return Err(failure.error),
            (Again::Now, _) => return Ok(()),
            (Again::Later, Phase::Open) => None,
            (Again::Soon(wait), _) => wait,
        };
        let left = self.patience.saturating_sub(self.since.elapsed());
        if left.is_zero() {
            return Err(self.given_up(failure.error));
        }
        tracing::debug!(error = %failure.error, attempt = self.made, "a request to a source failed; it is repeated");
        tokio::time::sleep(wait.unwrap_or(self.pause).min(left)).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }

    fn given_up(&self, error: Error) -> Error {
        match self.phase {
            Phase::Opening => error,
            Phase::Open => Error::new(ErrorKind::Unavailable, "the source does not answer as it should")
                .errno_is(Errno::EIO)
                .with("attempts", self.made)
                .because(error),
        }
    }
}

/// A piece of a read as far as it has come: a part of a buffer, filled from its start.
#[derive(Debug)]
pub(super) struct Piece<'a> {
    bytes: &'a mut [u8],
    filled: usize,
}

impl<'a> Piece<'a> {
    /// One of which nothing has come; what `bytes` holds is of no interest.
    pub(super) fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, filled: 0 }
    }

    /// Bytes that came.
    pub(super) fn filled(&self) -> usize {
        self.filled
    }

    /// Bytes of all of it.
    pub(super) fn whole(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes that are to come.
    pub(super) fn room(&self) -> usize {
        self.bytes.len() - self.filled
    }

    /// Takes what came next: no more than there is room for.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        let end = self.filled + bytes.len();
        self.bytes[self.filled..end].copy_from_slice(bytes);
        self.filled = end;
    }

    /// Forgets what came behind the first `filled` bytes.
    pub(super) fn truncate(&mut self, filled: usize) {
        self.filled = self.filled.min(filled);
    }
}

/// Where pieces come from.
pub(super) trait Pieces: Send + Sync {
    /// Appends what follows `offset + piece.filled()` until the piece is whole; what it appended stays valid when it fails.
    fn fetch(&self, offset: u64, piece: &mut Piece<'_>) -> impl Future<Output = Result<(), Failure>> + Send;
    /// The patience of the stream.
    fn patience(&self) -> &Patience;
    /// Its count.
    fn traffic(&self) -> &Traffic;
}

/// Who may ask at once. Small reads have a lane of their own: the first sector of a disk is not to wait for a copy of all of it.
#[derive(Debug)]
pub(super) struct Lanes {
    small: Semaphore,
    large: Semaphore,
}

impl Lanes {
    pub(super) fn new(width: usize) -> Self {
        Self { small: Semaphore::new(width), large: Semaphore::new(width) }
    }

    fn of(&self, length: u64) -> &Semaphore {
        if length <= SMALL_MAX { &self.small } else { &self.large }
    }
}

/// Reads a range, in pieces at once where it is long.
///
/// # Errors
/// Those of [`Pieces::fetch`] when patience is over.
pub(super) async fn read(from: &impl Pieces, lanes: &Lanes, offset: u64, length: u64) -> Result<Bytes> {
    let wrong = |_| Error::invalid("a range is too long for this machine's memory").with("length", length);
    let total = usize::try_from(length).map_err(wrong)?;
    let piece = usize::try_from(PIECE_MAX).map_err(wrong)?;
    // Fresh memory costs more than what comes over the loopback.
    let mut whole = Buffer::take(total);
    let offsets = (offset..).step_by(piece);
    let parts = whole.chunks_mut(piece).zip(offsets);
    let parts = parts.map(|(bytes, at)| read_piece(from, lanes.of(length), at, Piece::new(bytes)));
    try_join_all(parts).await?;
    Ok(whole.freeze())
}

/// Reads one piece, however many attempts it takes.
async fn read_piece(from: &impl Pieces, lane: &Semaphore, offset: u64, mut piece: Piece<'_>) -> Result<()> {
    let _turn =
        lane.acquire().await.map_err(|e| Error::new(ErrorKind::Internal, "a lane is closed").because(e))?;
    let mut attempts = Attempts::new(Phase::Open, from.patience(), from.traffic());
    loop {
        let before = piece.filled();
        let outcome = from.fetch(offset, &mut piece).await;
        attempts.came(piece.filled().saturating_sub(before));
        match outcome {
            Ok(()) => break,
            Err(failure) => attempts.after(failure).await?,
        }
    }
    assert!(piece.room() == 0, "a piece is fetched whole or fails");
    Ok(())
}

/// Runs a request on the runtime of network streams; it starts at once, and ends when its reply is dropped.
pub(super) fn run<T: Send + 'static>(
    runtime: &Handle,
    request: impl Future<Output = Result<T>> + Send + 'static,
) -> Reply<T> {
    let task = Task(runtime.spawn(request));
    Reply::pending(async move {
        task.await.unwrap_or_else(|e| {
            let (kind, text) = if e.is_panic() {
                (ErrorKind::Internal, "a request to a source broke off")
            } else {
                (ErrorKind::Unavailable, "the process is ending")
            };
            Err(Error::new(kind, text).because(e))
        })
    })
}

/// A task that ends with whoever waits for it.
struct Task<T>(JoinHandle<T>);

impl<T> Future for Task<T> {
    type Output = Result<T, tokio::task::JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// `Invalid` where a range does not lie inside `size`.
pub(super) fn check_inside(offset: u64, length: u64, size: u64) -> Result<()> {
    if offset.checked_add(length).is_some_and(|end| end <= size) {
        return Ok(());
    }
    let text = "a range does not lie inside the source";
    Err(Error::invalid(text).with("offset", offset).with("length", length).with("size", size))
}
