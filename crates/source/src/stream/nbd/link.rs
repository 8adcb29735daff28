//! One connection with an export: requests go out as they come, a task takes the replies in any order.
//!
//! Invariants
//! - A reply is believed only where it fits its request: data inside the range asked for, each byte once, none left out.
//! - What the server sends is never stored beyond what was asked for.
//! - When the connection breaks every request on it fails, and no new one is taken.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use ferry_core::{Errno, Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, WriteHalf};
use tokio::sync::oneshot;

use super::super::fetch::{Failure, Patience, Traffic};
use super::handshake::{Agreement, broken, senseless};
use super::wire::{self, ChunkKind, Command, Head};

/// Most chunks in the reply to one request.
const CHUNKS_MAX: usize = 1 << 16;
/// Longest chunk that is no data. Bytes.
const CHUNK_MAX: usize = 1 << 20;
/// Most bytes of a message of the server's that are kept.
const MESSAGE_MAX: usize = 200;

/// Carries a connection.
pub(super) trait Carrier: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Carrier for S {}

/// An extent of the context of holes: length, and whether it reads as zeros.
pub(super) type Status = Vec<(u32, bool)>;

/// A connection with an export.
pub(super) struct Link {
    pub(super) agreement: Agreement,
    writer: tokio::sync::Mutex<WriteHalf<Box<dyn Carrier>>>,
    waiting: Arc<Waiting>,
    task: tokio::task::AbortHandle,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("agreement", &self.agreement).finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is waited for.
struct Waiting {
    /// By cookie.
    requests: Mutex<HashMap<u64, Pending>>,
    next: AtomicU64,
    /// Bytes that came.
    came: AtomicU64,
    is_broken: AtomicBool,
    agreement: Agreement,
}

/// A request whose reply has not ended.
struct Pending {
    offset: u64,
    length: usize,
    outcome: Outcome,
    chunks: usize,
    error: Option<Error>,
}

/// What has come for it.
enum Outcome {
    Bytes { buffer: BytesMut, parts: Vec<(usize, usize)>, done: oneshot::Sender<Result<BytesMut>> },
    Status { extents: Status, done: oneshot::Sender<Result<Status>> },
}

impl Link {
    pub(super) fn new(stream: Box<dyn Carrier>, agreement: Agreement, traffic: Arc<Traffic>) -> Arc<Self> {
        let (reader, writer) = tokio::io::split(stream);
        let waiting = Arc::new(Waiting {
            requests: Mutex::default(),
            next: AtomicU64::new(1),
            came: AtomicU64::new(0),
            is_broken: AtomicBool::new(false),
            agreement,
        });
        let shared = Arc::clone(&waiting);
        let task = tokio::spawn(async move {
            let mut replies = Replies { reader, waiting: &shared, traffic: &traffic };
            let error = loop {
                if let Err(e) = replies.take().await {
                    break e;
                }
            };
            shared.fail(error);
        });
        let task = task.abort_handle();
        Arc::new(Self { agreement, writer: tokio::sync::Mutex::new(writer), waiting, task })
    }

    pub(super) fn is_broken(&self) -> bool {
        self.waiting.is_broken.load(Ordering::Acquire)
    }

    /// Requests under way.
    pub(super) fn load(&self) -> usize {
        self.waiting.requests.lock().expect("no thread panics with it").len()
    }

    /// Reads a range that keeps to the agreement.
    ///
    /// # Cancel safety
    /// The reply is taken and forgotten.
    pub(super) async fn read(
        &self,
        offset: u64,
        length: u32,
        patience: &Patience,
    ) -> Result<BytesMut, Failure> {
        let size =
            usize::try_from(length).map_err(|_| Failure::never(Error::invalid("a range is too long")))?;
        let (done, reply) = oneshot::channel();
        // Zeros at first: holes are left as they are.
        let outcome = Outcome::Bytes { buffer: BytesMut::zeroed(size), parts: Vec::new(), done };
        self.ask(Command::Read, offset, length, outcome, reply, patience).await
    }

    /// What a range holds, from its start as far as the server tells.
    ///
    /// # Cancel safety
    /// The reply is taken and forgotten.
    pub(super) async fn status(
        &self,
        offset: u64,
        length: u32,
        patience: &Patience,
    ) -> Result<Status, Failure> {
        let (done, reply) = oneshot::channel();
        let outcome = Outcome::Status { extents: Status::new(), done };
        self.ask(Command::BlockStatus, offset, length, outcome, reply, patience).await
    }

    async fn ask<T>(
        &self,
        command: Command,
        offset: u64,
        length: u32,
        outcome: Outcome,
        mut reply: oneshot::Receiver<Result<T>>,
        patience: &Patience,
    ) -> Result<T, Failure> {
        let gone = || Failure::soon(broken(std::io::ErrorKind::ConnectionReset.into()));
        let cookie = self.waiting.next.fetch_add(1, Ordering::Relaxed);
        let size = usize::try_from(length).map_err(|_| gone())?;
        let pending = Pending { offset, length: size, outcome, chunks: 0, error: None };
        self.waiting.requests.lock().expect("no thread panics with it").insert(cookie, pending);
        if self.is_broken() {
            self.waiting.fail(broken(std::io::ErrorKind::ConnectionReset.into()));
        }
        self.send(cookie, &wire::request(command, cookie, offset, length), patience).await?;
        loop {
            let before = self.waiting.came.load(Ordering::Relaxed);
            match tokio::time::timeout(patience.idle, &mut reply).await {
                Ok(Ok(Ok(value))) => return Ok(value),
                Ok(Ok(Err(e))) => return Err(self.judged(e)),
                Ok(Err(_)) => return Err(gone()),
                Err(_) => {}
            }
            if self.waiting.came.load(Ordering::Relaxed) - before < patience.progress {
                let text = "the NBD server does not answer, or far too slowly";
                self.break_off(Error::new(ErrorKind::TimedOut, text));
                let error = Error::new(ErrorKind::TimedOut, text);
                return Err(Failure::later(error.with("seconds", patience.idle.as_secs_f32())));
            }
        }
    }

    /// Sends all of a request or ends the connection: half a request would make nonsense of what follows.
    async fn send(&self, cookie: u64, request: &[u8], patience: &Patience) -> Result<(), Failure> {
        let mut unsent = Unsent { link: self, cookie, has_begun: false };
        let sent = tokio::time::timeout(patience.idle, async {
            let mut writer = self.writer.lock().await;
            unsent.has_begun = true;
            writer.write_all(request).await?;
            writer.flush().await
        });
        match sent.await {
            Ok(Ok(())) => {
                std::mem::forget(unsent);
                Ok(())
            }
            Ok(Err(e)) => Err(Failure::soon(broken(e))),
            Err(_) => {
                Err(Failure::later(Error::new(ErrorKind::TimedOut, "the NBD server takes no requests")))
            }
        }
    }

    /// Whether an error of the server's may pass.
    fn judged(&self, error: Error) -> Failure {
        match error.kind() {
            ErrorKind::Invalid | ErrorKind::Unsupported | ErrorKind::Denied => Failure::never(error),
            _ => Failure::later(error),
        }
    }

    /// Ends the connection.
    pub(super) fn break_off(&self, error: Error) {
        self.task.abort();
        self.waiting.fail(error);
    }

    /// Takes leave, as far as that can be done without waiting for long.
    pub(super) async fn leave(&self) {
        let goodbye = wire::request(Command::Disconnect, 0, 0, 0);
        let sent = tokio::time::timeout(Duration::from_millis(200), async {
            self.writer.lock().await.write_all(&goodbye).await
        });
        if !matches!(sent.await, Ok(Ok(()))) {
            tracing::trace!("an NBD server was left without a word");
        }
    }
}

/// A request that is not sent: forgotten where nothing of it went out, the end of the connection where a part did.
struct Unsent<'a> {
    link: &'a Link,
    cookie: u64,
    has_begun: bool,
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        if self.has_begun {
            self.link.break_off(broken(std::io::ErrorKind::Interrupted.into()));
        } else {
            self.link.waiting.requests.lock().expect("no thread panics with it").remove(&self.cookie);
        }
    }
}

impl Waiting {
    /// Fails all that is waited for. Its error is that of the connection, told once; the others know only that it broke.
    fn fail(&self, error: Error) {
        self.is_broken.store(true, Ordering::Release);
        let all = std::mem::take(&mut *self.requests.lock().expect("no thread panics with it"));
        let mut error = Some(error);
        for pending in all.into_values() {
            let of_all = || broken(std::io::ErrorKind::ConnectionReset.into());
            pending.end(Some(error.take().unwrap_or_else(of_all)));
        }
    }
}

impl Pending {
    /// Ends the request: with an error, or with what came if that is all.
    fn end(self, error: Option<Error>) {
        let error = error.or(self.error);
        // Whoever asked may be gone.
        match self.outcome {
            Outcome::Bytes { buffer, parts, done } => {
                let whole = || {
                    if is_whole(parts, self.length) { Ok(buffer) } else { Err(senseless("bytes left out")) }
                };
                drop(done.send(error.map_or_else(whole, Err)));
            }
            Outcome::Status { extents, done } => {
                let some = || if extents.is_empty() { Err(senseless("no extents")) } else { Ok(extents) };
                drop(done.send(error.map_or_else(some, Err)));
            }
        }
    }
}

/// Whether parts, of which none is empty, cover a length with no byte twice.
fn is_whole(mut parts: Vec<(usize, usize)>, length: usize) -> bool {
    parts.sort_unstable();
    let end = parts.iter().try_fold(0, |at, &(start, end)| (start == at).then_some(end));
    end == Some(length)
}

/// Takes replies.
struct Replies<'a, R> {
    reader: R,
    waiting: &'a Waiting,
    traffic: &'a Traffic,
}

impl<R: AsyncRead + Unpin> Replies<'_, R> {
    /// Takes a simple reply or a chunk.
    ///
    /// # Errors
    /// The connection cannot be used any more.
    async fn take(&mut self) -> Result<()> {
        let mut head = [0; wire::REPLY_HEAD];
        self.fill(&mut head).await?;
        let (cookie, is_last) = match wire::head(&head).ok_or_else(|| senseless("no reply"))? {
            Head::Simple { cookie, error } => {
                let mut pending = self.pending(cookie)?;
                let outcome = self.simple(&mut pending, error).await;
                self.give_back(cookie, pending, outcome)?;
                (cookie, true)
            }
            Head::Chunk { cookie, kind, is_last } => {
                let mut length = [0; wire::CHUNK_LENGTH];
                self.fill(&mut length).await?;
                let length =
                    usize::try_from(u32::from_be_bytes(length)).map_err(|_| senseless("a length"))?;
                let mut pending = self.pending(cookie)?;
                pending.chunks += 1;
                let outcome = self.chunk(&mut pending, kind, length).await;
                let outcome = outcome.and(if pending.chunks > CHUNKS_MAX {
                    Err(senseless("it never ends"))
                } else {
                    Ok(())
                });
                self.give_back(cookie, pending, outcome)?;
                (cookie, is_last)
            }
        };
        if is_last {
            self.pending(cookie)?.end(None);
        }
        Ok(())
    }

    /// Takes a request out of those waited for: while its reply is read nobody else needs it.
    fn pending(&self, cookie: u64) -> Result<Pending> {
        let mut requests = self.waiting.requests.lock().expect("no thread panics with it");
        requests.remove(&cookie).ok_or_else(|| senseless("a reply to no request"))
    }

    /// Puts it back, or ends it where the connection is at its end.
    fn give_back(&self, cookie: u64, pending: Pending, outcome: Result<()>) -> Result<()> {
        if let Err(e) = outcome {
            pending.end(Some(e));
            return Err(broken(std::io::ErrorKind::ConnectionAborted.into()));
        }
        if self.waiting.is_broken.load(Ordering::Acquire) {
            pending.end(Some(broken(std::io::ErrorKind::ConnectionAborted.into())));
            return Err(broken(std::io::ErrorKind::ConnectionAborted.into()));
        }
        self.waiting.requests.lock().expect("no thread panics with it").insert(cookie, pending);
        Ok(())
    }

    async fn simple(&mut self, pending: &mut Pending, error: u32) -> Result<()> {
        if error != 0 {
            pending.error = Some(told(error, ""));
            return Ok(());
        }
        let Outcome::Bytes { buffer, parts, .. } = &mut pending.outcome else {
            return Err(senseless("a simple reply to a question about extents"));
        };
        if self.waiting.agreement.is_structured {
            return Err(senseless("a simple reply where chunks were agreed on"));
        }
        parts.push((0, buffer.len()));
        self.fill_counted(buffer).await
    }

    async fn chunk(&mut self, pending: &mut Pending, kind: ChunkKind, length: usize) -> Result<()> {
        match (kind, &mut pending.outcome) {
            (ChunkKind::Nothing, _) if length == 0 => Ok(()),
            (ChunkKind::Data, Outcome::Bytes { buffer, parts, .. }) if length > 8 => {
                let start = self.start(pending.offset).await?;
                let room = start.and_then(|s| Some((s, s.checked_add(length - 8)?)));
                let (start, end) =
                    room.filter(|r| r.1 <= buffer.len()).ok_or_else(|| senseless("bytes outside"))?;
                parts.push((start, end));
                self.fill_counted(&mut buffer[start..end]).await
            }
            (ChunkKind::Hole, Outcome::Bytes { buffer, parts, .. }) if length == 12 => {
                let start = self.start(pending.offset).await?;
                let mut hole = [0; 4];
                self.fill(&mut hole).await?;
                let hole = usize::try_from(u32::from_be_bytes(hole)).ok().filter(|h| *h > 0);
                let room = start.zip(hole).and_then(|(s, h)| Some((s, s.checked_add(h)?)));
                let (start, end) =
                    room.filter(|r| r.1 <= buffer.len()).ok_or_else(|| senseless("a hole outside"))?;
                parts.push((start, end));
                Ok(())
            }
            (ChunkKind::Status, Outcome::Status { extents, .. })
                if length % 8 == 4 && length <= CHUNK_MAX =>
            {
                let mut payload = vec![0; length];
                self.fill(&mut payload).await?;
                let mut payload = &payload[..];
                if Some(payload.get_u32()) != self.waiting.agreement.context || !extents.is_empty() {
                    return Err(senseless("extents of another context"));
                }
                while payload.has_remaining() {
                    extents.push((payload.get_u32(), payload.get_u32() & wire::READS_AS_ZEROS != 0));
                }
                let is_sound = extents.iter().all(|e| e.0 > 0);
                if is_sound { Ok(()) } else { Err(senseless("an empty extent")) }
            }
            (ChunkKind::Error, _) if (6..=CHUNK_MAX).contains(&length) => {
                let mut payload = vec![0; length];
                self.fill(&mut payload).await?;
                let mut payload = &payload[..];
                let number = payload.get_u32();
                let size = usize::from(payload.get_u16()).min(payload.len());
                pending.error.get_or_insert_with(|| told(number, &String::from_utf8_lossy(&payload[..size])));
                Ok(())
            }
            _ => Err(senseless("a chunk that does not fit its request")),
        }
    }

    /// Where a chunk starts, from the start of the request; none before it.
    async fn start(&mut self, offset: u64) -> Result<Option<usize>> {
        let mut start = [0; 8];
        self.fill(&mut start).await?;
        Ok(u64::from_be_bytes(start).checked_sub(offset).and_then(|s| usize::try_from(s).ok()))
    }

    async fn fill_counted(&mut self, target: &mut [u8]) -> Result<()> {
        self.traffic.came(target.len());
        self.fill(target).await
    }

    async fn fill(&mut self, mut target: &mut [u8]) -> Result<()> {
        while !target.is_empty() {
            let count = self.reader.read(target).await.map_err(broken)?;
            if count == 0 {
                return Err(broken(std::io::ErrorKind::UnexpectedEof.into()));
            }
            self.waiting.came.fetch_add(u64::try_from(count).unwrap_or(0), Ordering::Relaxed);
            target = &mut target[count..];
        }
        Ok(())
    }
}

/// An error the server told, with what it said.
fn told(number: u32, message: &str) -> Error {
    let errno = i32::try_from(number).map_or(Errno::EIO, Errno);
    let kind = match errno {
        Errno::EPERM | Errno::EACCES => ErrorKind::Denied,
        Errno::EINVAL | Errno::EOVERFLOW => ErrorKind::Invalid,
        Errno::EOPNOTSUPP => ErrorKind::Unsupported,
        Errno::ESHUTDOWN => ErrorKind::Unavailable,
        _ => ErrorKind::Io,
    };
    let error = Error::new(kind, "the NBD server reports an error").errno_is(errno).with("number", number);
    let message: String = message.chars().filter(|c| !c.is_control()).take(MESSAGE_MAX).collect();
    if message.is_empty() { error } else { error.with("message", message) }
}
