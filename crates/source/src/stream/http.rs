//! An object on a web server, by ranges over HTTP/1.1: `http` and `https`.
//!
//! Invariants
//! - A range is taken from an answer 206 that names exactly that range of an object of the length that was opened, and the
//!   tag (or, where the server has none, the time) that was opened. Everything else is refused.
//! - Once the tag, time or length was another one, every later read fails with `Conflict`.
//! - What authorises goes to the origin that was named, and to no other a redirect leads to.

mod answer;
mod connection;
mod target;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ferry_core::{DeviceExtent, Errno, Error, ErrorKind, ExtentState, Reply, Result};
use hyper::header::HeaderMap;
use hyper::{Method, StatusCode};
use tokio::runtime::Handle;

use self::answer::{Pin, Range};
use self::connection::{Answer, Pool};
pub(super) use self::target::{Authority, Target};
use super::Stream;
use super::fetch::{
    self, Attempts, Changed, Failure, Lanes, Patience, Phase, Piece, Pieces, Traffic, TrafficCount,
};
use super::tls::Trust;
use crate::env::Env;
use crate::spec::HttpSpec;

/// Connections for long reads, and as many again for short ones.
pub const CONNECTIONS: usize = 4;
/// Most connections that may be asked for.
const CONNECTIONS_MAX: usize = 64;
/// Redirects followed for one request.
const REDIRECTS_MAX: usize = 10;
/// What lies between two ranges is fetched with them up to this: less than what comes in a round trip of 5 ms at 25 MB/s. Bytes.
const GAP: u64 = 128 << 10;

/// An object on a web server, and how to get it. Secrets are resolved.
#[derive(Clone)]
pub struct HttpOptions {
    /// Where it is, with its query, without a user. Without a scheme it is `http`.
    pub url: String,
    /// Headers for each request.
    pub headers: Vec<(String, String)>,
    /// The value of the header `Authorization`.
    pub authorization: Option<String>,
    /// Authorities to trust beside the system's, in PEM.
    pub authorities: Option<PathBuf>,
    /// Connections for long reads, and as many again for short ones.
    pub connections: usize,
    /// How long to wait.
    pub patience: Patience,
}

impl std::fmt::Debug for HttpOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("HttpOptions")
            .field("headers", &names)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

impl HttpOptions {
    /// An object that needs nothing but its address.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            headers: Vec::new(),
            authorization: None,
            authorities: None,
            connections: CONNECTIONS,
            patience: Patience::default(),
        }
    }
}

/// Opens what a spec names.
///
/// # Errors
/// Those of [`open_with`], and those of its secrets.
pub(super) fn open(spec: &HttpSpec, env: &Env) -> Reply<Arc<dyn Stream>> {
    let (spec, env) = (spec.clone(), env.clone());
    Reply::pending(async move {
        let mut options = HttpOptions::new(spec.url);
        if let Some(query) = &spec.query {
            options.url = format!("{}?{}", options.url, query.value(&env).await?);
        }
        if let Some(authorization) = &spec.authorization {
            options.authorization = Some(authorization.value(&env).await?);
        }
        for (name, value) in spec.headers {
            options.headers.push((name, value.value(&env).await?));
        }
        options.authorities = spec.ca_file;
        let stream: Arc<dyn Stream> = open_with(&options, &env.runtime).await?;
        Ok(stream)
    })
}

/// Opens an object on a web server.
///
/// # Errors
/// `Invalid` (22) for an address that is none; `NotFound` (2) for an unknown host, and where the server says so; `Denied` (13)
/// where it refuses, or is not trusted; `Unavailable` (111) where nobody listens; `Unsupported` (5) where it does not serve
/// ranges; `Unavailable` (5) for any other answer.
pub fn open_with(options: &HttpOptions, runtime: &Handle) -> Reply<Arc<HttpStream>> {
    match Authority::headers(options) {
        Ok(authority) => open_as(options, authority, "http", runtime),
        Err(e) => Reply::ready(Err(e)),
    }
}

/// Opens an object with an authority of another kind.
pub(super) fn open_as(
    options: &HttpOptions,
    authority: Authority,
    kind: &'static str,
    runtime: &Handle,
) -> Reply<Arc<HttpStream>> {
    let shared = match Shared::new(options, authority) {
        Ok(shared) => shared,
        Err(e) => return Reply::ready(Err(e)),
    };
    let handle = runtime.clone();
    fetch::run(runtime, async move {
        let pin = shared.find_out().await.map_err(|e| e.with("url", shared.origin.shown()))?;
        let inner = Arc::new(Inner { shared, pin, kind });
        Ok(Arc::new(HttpStream { inner, runtime: handle }))
    })
}

/// An object on a web server, open.
#[derive(Debug)]
pub struct HttpStream {
    inner: Arc<Inner>,
    runtime: Handle,
}

impl HttpStream {
    /// What was fetched so far.
    #[must_use]
    pub fn traffic(&self) -> TrafficCount {
        self.inner.shared.traffic.count()
    }
}

impl Stream for HttpStream {
    fn size(&self) -> u64 {
        self.inner.pin.size
    }

    fn read(&self, offset: u64, length: u64) -> Reply<Bytes> {
        if let Err(e) = fetch::check_inside(offset, length, self.size()) {
            return Reply::ready(Err(e));
        }
        if length == 0 {
            return Reply::ready(Ok(Bytes::new()));
        }
        let inner = Arc::clone(&self.inner);
        fetch::run(&self.runtime, async move {
            let read = fetch::read(&*inner, &inner.shared.lanes, offset, length).await;
            read.map_err(|e| e.with("url", inner.shared.origin.shown()).with("offset", offset))
        })
    }

    fn extents(&self, offset: u64, length: u64) -> Reply<Vec<DeviceExtent>> {
        Reply::ready(fetch::check_inside(offset, length, self.size()).map(|()| {
            let all = DeviceExtent { offset, length, state: ExtentState::Data };
            if length == 0 { Vec::new() } else { vec![all] }
        }))
    }

    fn gap(&self) -> u64 {
        GAP
    }

    fn pin(&self) -> String {
        format!("{} {}", self.inner.kind, self.inner.pin)
    }

    fn describe(&self) -> String {
        self.inner.shared.origin.shown()
    }
}

/// What it takes to ask the server.
#[derive(Debug)]
struct Shared {
    /// What was named.
    origin: Arc<Target>,
    /// Where redirects led the last time.
    place: Mutex<Arc<Target>>,
    authority: Authority,
    pool: Pool,
    lanes: Lanes,
    patience: Patience,
    traffic: Arc<Traffic>,
    changed: Changed,
}

/// An open object.
#[derive(Debug)]
struct Inner {
    shared: Shared,
    pin: Pin,
    kind: &'static str,
}

impl Shared {
    fn new(options: &HttpOptions, authority: Authority) -> Result<Self> {
        if !(1..=CONNECTIONS_MAX).contains(&options.connections) {
            return Err(
                Error::invalid("the number of connections is out of range").with("most", CONNECTIONS_MAX)
            );
        }
        let origin = Arc::new(Target::parse(&options.url)?);
        let trust = Trust::new(options.authorities.clone());
        let traffic = Arc::new(Traffic::default());
        Ok(Self {
            place: Mutex::new(Arc::clone(&origin)),
            origin,
            authority,
            pool: Pool::new(trust, options.connections * 2, options.patience, Arc::clone(&traffic)),
            lanes: Lanes::new(options.connections),
            patience: options.patience,
            traffic,
            changed: Changed::default(),
        })
    }

    /// Finds out what the object is.
    async fn find_out(&self) -> Result<Pin> {
        let mut attempts = Attempts::new(Phase::Opening, &self.patience, &self.traffic);
        loop {
            match self.look().await {
                Ok(pin) => return Ok(pin),
                Err(failure) => attempts.after(failure).await?,
            }
        }
    }

    /// Looks at the object: what HEAD says, where it says anything, and what the answer to a range says.
    ///
    /// Both are asked: servers that sign addresses allow only GET, and whether ranges are served shows only when one is asked.
    async fn look(&self) -> Result<Pin, Failure> {
        let answer = self.ask(&Method::HEAD, &HeaderMap::new()).await?;
        let head = answer.head();
        let claimed = match head.status {
            status if status.is_success() => answer::length_of(head),
            StatusCode::NOT_FOUND | StatusCode::GONE => return Err(answer::refusal(head)),
            status if answer::is_passing(status) => return Err(answer::refusal(head)),
            _ => None,
        };
        if claimed == Some(0) {
            return answer::pin_of(head, 0).map_err(Failure::never);
        }
        drop(answer);
        let first = Range { first: 0, last: 0 };
        let answer = self.ask(&Method::GET, &first.headers()).await?;
        let head = answer.head();
        if head.status == StatusCode::RANGE_NOT_SATISFIABLE && answer::total_of(head) == Some(0) {
            return answer::pin_of(head, 0).map_err(Failure::never);
        }
        if head.status != StatusCode::PARTIAL_CONTENT {
            let failure = answer::refusal(head);
            return Err(self.explain(answer, failure).await);
        }
        let size = answer::total_of(head).ok_or_else(|| Failure::never(answer::wrong_range(head, first)))?;
        if claimed.is_some_and(|c| c != size) {
            let text = "the server names two lengths for one object";
            return Err(Failure::later(
                Error::new(ErrorKind::Unavailable, text).errno_is(Errno::EIO).with("length", size),
            ));
        }
        let pin = answer::pin_of(head, size).map_err(Failure::never)?;
        answer::check(head, first, &pin)?;
        self.take(answer, &mut Piece::new(&mut [0])).await?;
        Ok(pin)
    }

    /// Sends a request to where the object is, and follows redirects.
    async fn ask(&self, method: &Method, headers: &HeaderMap) -> Result<Answer, Failure> {
        let mut target = Arc::clone(&self.place.lock().expect("no thread panics with it"));
        for _ in 0..=REDIRECTS_MAX {
            let is_home = target.has_same_origin(&self.origin);
            let answer = self.pool.send(&target, method, headers, is_home.then_some(&self.authority)).await;
            let answer = match answer {
                Ok(answer) => answer,
                Err(failure) => {
                    self.start_over(&target);
                    return Err(failure);
                }
            };
            let Some(location) = answer::redirect_of(answer.head()) else {
                if answer.head().status.is_success() {
                    // A place that a redirect signed for HEAD may be good for nothing else.
                    if *method != Method::GET {
                        return Ok(answer);
                    }
                    *self.place.lock().expect("no thread panics with it") = target;
                } else {
                    // What a redirect led to may have been for a time only.
                    self.start_over(&target);
                }
                return Ok(answer);
            };
            let next = target.join(&location, &self.authority).map_err(Failure::never)?;
            target = Arc::new(next);
        }
        Err(Failure::later(
            Error::new(ErrorKind::Unavailable, "the server redirects in circles").errno_is(Errno::EIO),
        ))
    }

    fn start_over(&self, failed: &Arc<Target>) {
        let mut place = self.place.lock().expect("no thread panics with it");
        if Arc::ptr_eq(&place, failed) {
            *place = Arc::clone(&self.origin);
        }
    }

    /// Adds what an object store says of why it refuses.
    async fn explain(&self, answer: Answer, failure: Failure) -> Failure {
        let Authority::Signature(_) = &self.authority else { return failure };
        let region =
            answer.head().headers.get("x-amz-bucket-region").and_then(|v| v.to_str().ok()).map(str::to_owned);
        let mut error = failure.error;
        if let Some(code) = answer.error_code(&self.patience).await {
            error = error.with("code", code);
        }
        if let Some(region) = region.filter(|r| r.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')) {
            error = error.with("region of the bucket", region);
        }
        Failure { error, again: failure.again }
    }

    /// Appends the body of an answer until the piece is whole. A body that ends sooner fails and what came of it stays; one
    /// that does not end then fails and nothing of it stays.
    async fn take(&self, answer: Answer, piece: &mut Piece<'_>) -> Result<(), Failure> {
        let before = piece.filled();
        let mut body = answer.into_body();
        let (mut since, mut gained) = (Instant::now(), 0u64);
        loop {
            let left = self.patience.idle.saturating_sub(since.elapsed()).max(Duration::from_millis(1));
            let came = match tokio::time::timeout(left, body.next()).await {
                Err(_) => return Err(Failure::later(too_slow(&self.patience))),
                Ok(came) => came?,
            };
            let Some(came) = came else { break };
            self.traffic.came(came.len());
            if came.len() > piece.room() {
                // What came before is of a body that is not what its head says.
                piece.truncate(before);
                let text = "the server sends more than it was asked for";
                return Err(Failure::later(Error::new(ErrorKind::Unavailable, text).errno_is(Errno::EIO)));
            }
            piece.append(&came);
            gained += u64::try_from(came.len()).unwrap_or(u64::MAX);
            if gained >= self.patience.progress {
                (since, gained) = (Instant::now(), 0);
            }
        }
        if piece.room() == 0 {
            return Ok(());
        }
        let text = "the server ended its answer too soon";
        Err(Failure::soon(Error::new(ErrorKind::Unavailable, text).errno_is(Errno::EIO)))
    }
}

impl Pieces for Inner {
    async fn fetch(&self, offset: u64, piece: &mut Piece<'_>) -> Result<(), Failure> {
        let shared = &self.shared;
        shared.changed.check()?;
        let (have, whole) = (piece.filled() as u64, piece.whole() as u64);
        let range = Range { first: offset + have, last: offset + whole - 1 };
        let mut headers = range.headers();
        self.pin.demand(&mut headers);
        let answer = shared.ask(&Method::GET, &headers).await?;
        if let Some(what) = self.pin.difference(answer.head()) {
            shared.changed.found(what);
        }
        shared.changed.check()?;
        if let Err(failure) = answer::check(answer.head(), range, &self.pin) {
            return Err(shared.explain(answer, failure).await);
        }
        shared.take(answer, piece).await
    }

    fn patience(&self) -> &Patience {
        &self.shared.patience
    }

    fn traffic(&self) -> &Traffic {
        &self.shared.traffic
    }
}

fn too_slow(patience: &Patience) -> Error {
    let text = "the server does not send, or far too slowly";
    Error::new(ErrorKind::TimedOut, text).with("seconds", patience.idle.as_secs_f32())
}
