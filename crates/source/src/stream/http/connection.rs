//! Connections that are kept, and one request on one of them.
//!
//! Invariants
//! - A connection carries one request at a time, and is kept only when its answer was read to the end.
//! - A request on a kept connection that the server had closed is repeated on another one at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ferry_core::{Errno, Error, ErrorKind, Result};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{HeaderMap, HeaderValue, USER_AGENT};
use hyper::http::response::Parts;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::fetch::{Again, Failure, Patience, Traffic};
use super::super::reach::reach;
use super::super::tls::Trust;
use super::target::{Authority, Target};

/// How long an idle connection is kept; servers close theirs after a minute or so.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Largest head of an answer. Bytes.
const HEAD_MAX: usize = 64 << 10;
/// Largest body of a refusal that is looked into. Bytes.
const REFUSAL_MAX: usize = 4 << 10;

type Sender = SendRequest<Empty<Bytes>>;
type Origin = (bool, String, u16);

/// The connections to servers.
#[derive(Debug)]
pub(super) struct Pool {
    trust: Trust,
    patience: Patience,
    traffic: Arc<Traffic>,
    idle: Arc<Idle>,
}

/// Connections nobody uses, the oldest first.
#[derive(Debug)]
struct Idle {
    most: usize,
    kept: Mutex<VecDeque<Kept>>,
}

#[derive(Debug)]
struct Kept {
    origin: Origin,
    since: Instant,
    sender: Sender,
}

impl Idle {
    fn take(&self, origin: &Origin) -> Option<Sender> {
        let mut kept = self.kept.lock().expect("no thread panics with it");
        kept.retain(|k| !k.sender.is_closed() && k.since.elapsed() < IDLE_MAX);
        let newest = kept.iter().rposition(|k| k.origin == *origin)?;
        kept.remove(newest).map(|k| k.sender)
    }

    fn give(&self, origin: Origin, sender: Sender) {
        if sender.is_closed() {
            return;
        }
        let mut kept = self.kept.lock().expect("no thread panics with it");
        kept.push_back(Kept { origin, since: Instant::now(), sender });
        if kept.len() > self.most {
            kept.pop_front();
        }
    }
}

impl Pool {
    pub(super) fn new(trust: Trust, most: usize, patience: Patience, traffic: Arc<Traffic>) -> Self {
        Self { trust, patience, traffic, idle: Arc::new(Idle { most, kept: Mutex::default() }) }
    }

    /// Sends a request and waits for the head of the answer.
    ///
    /// # Cancel safety
    /// The connection is closed.
    pub(super) async fn send(
        &self,
        target: &Target,
        method: &Method,
        headers: &HeaderMap,
        authority: Option<&Authority>,
    ) -> Result<Answer, Failure> {
        let origin = target.origin();
        let (mut sender, is_fresh) = match self.idle.take(&origin) {
            Some(sender) => (sender, false),
            None => (self.connect(target).await?, true),
        };
        let (path, mut all) = target.request(authority, method);
        all.extend(headers.clone());
        all.insert(USER_AGENT, HeaderValue::from_static(concat!("ferry/", env!("CARGO_PKG_VERSION"))));
        let mut request =
            Request::builder().method(method).uri(path).body(Empty::new()).map_err(|e| {
                Failure::never(Error::invalid("invalid url: it cannot be asked for").because(e))
            })?;
        *request.headers_mut() = all;
        self.traffic.asked();
        let answer = tokio::time::timeout(self.patience.idle, async {
            sender.ready().await?;
            sender.send_request(request).await
        });
        let answer = answer.await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => {
                let again = if is_fresh { Again::Soon(None) } else { Again::Now };
                let error =
                    Error::new(ErrorKind::Unavailable, "the connection broke before the server answered");
                return Err(Failure { error: error.errno_is(Errno::EIO).because(e), again });
            }
            Err(_) => {
                let error = Error::new(ErrorKind::TimedOut, "the server does not answer");
                return Err(Failure::later(error.with("seconds", self.patience.idle.as_secs_f32())));
            }
        };
        let (head, body) = answer.into_parts();
        let back = Back { origin, sender, idle: Arc::downgrade(&self.idle) };
        Ok(Answer { head, body: Body { is_at_end: body.is_end_stream(), incoming: body, back: Some(back) } })
    }

    async fn connect(&self, target: &Target) -> Result<Sender, Failure> {
        let connected = tokio::time::timeout(self.patience.connect, self.connect_now(target)).await;
        let sender = connected.unwrap_or_else(|_| {
            let error = Error::new(ErrorKind::TimedOut, "the server cannot be connected to in time");
            Err(error.with("seconds", self.patience.connect.as_secs_f32()))
        });
        self.traffic.connected();
        sender.map_err(|e| Failure::later(e.with("host", target.host()).with("port", target.port())))
    }

    async fn connect_now(&self, target: &Target) -> Result<Sender> {
        let stream = reach(target.host(), target.port()).await?;
        if target.is_encrypted() {
            let stream = self.trust.connect(target.host(), stream).await?;
            return shake_hands(stream).await;
        }
        shake_hands(stream).await
    }
}

async fn shake_hands<S>(stream: S) -> Result<Sender>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_MAX.max(256 << 10));
    let (sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| Error::new(ErrorKind::Unavailable, "the connection cannot be used").because(e))?;
    // It ends when the sender and the body of its answer are gone.
    tokio::spawn(async move {
        if let Err(e) = connection.await {
            tracing::trace!(error = %e, "a connection to a source ended");
        }
    });
    Ok(sender)
}

/// An answer whose body has not been read.
#[derive(Debug)]
pub(super) struct Answer {
    head: Parts,
    body: Body,
}

impl Answer {
    pub(super) fn head(&self) -> &Parts {
        &self.head
    }

    pub(super) fn into_body(self) -> Body {
        self.body
    }

    /// The `Code` in the refusal of an object store.
    pub(super) async fn error_code(self, patience: &Patience) -> Option<String> {
        let mut body = self.body;
        let text = tokio::time::timeout(patience.connect, async {
            let mut text = Vec::new();
            while let Ok(Some(piece)) = body.next().await {
                text.extend_from_slice(&piece[..piece.len().min(REFUSAL_MAX - text.len())]);
                if text.len() == REFUSAL_MAX {
                    break;
                }
            }
            text
        });
        let text = String::from_utf8(text.await.ok()?).ok()?;
        let (code, _) = text.split_once("<Code>")?.1.split_once("</Code>")?;
        let is_plain = code.len() <= 100 && code.bytes().all(|b| b.is_ascii_alphanumeric());
        is_plain.then(|| code.to_owned())
    }
}

/// The body of an answer, in pieces.
#[derive(Debug)]
pub(super) struct Body {
    incoming: Incoming,
    is_at_end: bool,
    back: Option<Back>,
}

/// Where a connection belongs when its answer was read.
#[derive(Debug)]
struct Back {
    origin: Origin,
    sender: Sender,
    idle: Weak<Idle>,
}

impl Body {
    /// The next piece; none at the end.
    ///
    /// # Cancel safety
    /// No piece is lost.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            match self.incoming.frame().await {
                None => {
                    self.is_at_end = true;
                    return Ok(None);
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(e)) => {
                    self.back = None;
                    let error =
                        Error::new(ErrorKind::Unavailable, "the connection broke in the middle of an answer");
                    return Err(Failure::soon(error.errno_is(Errno::EIO).because(e)));
                }
            }
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let Some(back) = self.back.take().filter(|_| self.is_at_end) else { return };
        if let Some(idle) = back.idle.upgrade() {
            idle.give(back.origin, back.sender);
        }
    }
}
