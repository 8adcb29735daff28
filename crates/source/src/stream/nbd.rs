//! An export of an NBD server: `nbd`, `nbds`, `nbd+unix`, `nbds+unix`.
//!
//! Invariants
//! - What comes after a connection broke is of an export of the same name and size, or the stream fails with `Conflict` for good.
//!   NBD has nothing else to tell exports apart.

mod handshake;
mod link;
#[cfg(test)]
mod tests;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use ferry_core::{DeviceExtent, Error, ErrorKind, ExtentState, Reply, Result};
use tokio::net::UnixStream;
use tokio::runtime::Handle;

use self::handshake::Agreement;
use self::link::{Carrier, Link, Status};
use super::Stream;
use super::fetch::{
    self, Attempts, Changed, Failure, Lanes, Patience, Phase, Piece, Pieces, Traffic, TrafficCount,
};
use super::reach::reach;
use super::tls::Trust;
use crate::env::Env;
use crate::spec::NbdSpec;
use crate::spec::url::decoded;

/// Connections, where the server lets several see the same; and long reads at once on one connection.
const CONNECTIONS: usize = 4;
/// The port of NBD.
const PORT: u16 = 10809;
/// Longest name of an export. Bytes; that of the protocol.
const NAME_MAX: usize = 4096;
/// What lies between two ranges is fetched with them up to this: less than a round trip costs. Bytes.
const GAP: u64 = 64 << 10;
/// Most extents told for one question; the rest is called data.
const EXTENTS_MAX: usize = 1 << 16;
/// Longest range of one question about extents. Bytes.
const STATUS_MAX: u64 = 1 << 31;

/// An export, and how to get at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdOptions {
    /// Where the server is.
    pub place: NbdPlace,
    /// The export; an empty name is the server's default.
    pub export: String,
    /// Whether TLS is spoken. The server shows a certificate, the client none.
    pub is_encrypted: bool,
    /// Authorities to trust beside the system's, in PEM.
    pub authorities: Option<PathBuf>,
    /// How long to wait.
    pub patience: Patience,
}

/// Where an NBD server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdPlace {
    /// Host and port.
    Tcp(String, u16),
    /// A socket of this machine.
    Unix(PathBuf),
}

impl NbdOptions {
    /// Takes an address: `nbd://host[:port]/export`, `nbd+unix:///export?socket=PATH`, and the same with `nbds`. Without a host it
    /// is this machine.
    ///
    /// # Errors
    /// `Invalid` (22).
    pub fn parse(uri: &str) -> Result<Self> {
        let invalid = |what: &'static str| Error::invalid("invalid URI").with("why", what);
        let url = url::Url::parse(uri).map_err(|e| Error::invalid("invalid URI").because(e))?;
        let is_unix = matches!(url.scheme(), "nbd+unix" | "nbds+unix");
        if !is_unix && !matches!(url.scheme(), "nbd" | "nbds") {
            return Err(invalid("its scheme is not nbd, nbds, nbd+unix or nbds+unix"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("NBD knows no users"));
        }
        let text = |bytes| String::from_utf8(bytes).map_err(|_| invalid("it is not text"));
        let export = text(decoded(url.path().strip_prefix('/').unwrap_or_default()))?;
        if export.len() > NAME_MAX {
            return Err(invalid("the name of the export is too long"));
        }
        let host = url.host_str().unwrap_or_default();
        let place = if is_unix {
            let socket =
                url.query_pairs().find(|(key, _)| key == "socket").map(|(_, value)| value.into_owned());
            let socket = socket.filter(|s| !s.is_empty()).ok_or_else(|| invalid("it names no socket"))?;
            if !host.is_empty() {
                return Err(invalid("a socket has no host"));
            }
            NbdPlace::Unix(PathBuf::from(socket))
        } else if host.is_empty() {
            NbdPlace::Tcp("localhost".to_owned(), PORT)
        } else {
            NbdPlace::Tcp(text(decoded(host))?, url.port().unwrap_or(PORT))
        };
        let is_encrypted = url.scheme().starts_with("nbds");
        Ok(Self { place, export, is_encrypted, authorities: None, patience: Patience::default() })
    }

    /// The export for people.
    fn shown(&self) -> String {
        let scheme = if self.is_encrypted { "nbds" } else { "nbd" };
        match &self.place {
            NbdPlace::Tcp(host, port) => format!("{scheme}://{host}:{port}/{}", self.export),
            NbdPlace::Unix(path) => format!("{scheme}+unix:///{}?socket={}", self.export, path.display()),
        }
    }
}

/// Opens what a spec names.
///
/// # Errors
/// Those of [`open_with`].
pub(super) fn open(spec: &NbdSpec, env: &Env) -> Reply<Arc<dyn Stream>> {
    let mut options = match NbdOptions::parse(&spec.uri) {
        Ok(options) => options,
        Err(e) => return Reply::ready(Err(e)),
    };
    options.authorities.clone_from(&spec.ca_file);
    let opened = open_with(options, &env.runtime);
    Reply::pending(async move {
        let stream: Arc<dyn Stream> = opened.await?;
        Ok(stream)
    })
}

/// Opens an export.
///
/// # Errors
/// `NotFound` (2) where there is no such host, socket or export; `Unavailable` (111) where nobody listens; `Denied` (13) where
/// the server refuses or is not trusted; `Unsupported` where it speaks no NBD of today.
pub fn open_with(options: NbdOptions, runtime: &Handle) -> Reply<Arc<NbdStream>> {
    let handle = runtime.clone();
    let inner = Inner::new(options);
    fetch::run(runtime, async move {
        let opened = inner.open().await;
        let agreement = opened.map_err(|e| e.with("uri", inner.options.shown()))?;
        let inner = Arc::new(Inner { agreement: Some(agreement), ..inner });
        Ok(Arc::new(NbdStream { inner, size: agreement.size, runtime: handle }))
    })
}

/// An export of an NBD server, open.
#[derive(Debug)]
pub struct NbdStream {
    inner: Arc<Inner>,
    size: u64,
    runtime: Handle,
}

impl NbdStream {
    /// What was fetched so far.
    #[must_use]
    pub fn traffic(&self) -> TrafficCount {
        self.inner.traffic.count()
    }
}

impl Drop for NbdStream {
    fn drop(&mut self) {
        for slot in &self.inner.links {
            let Some(link) = slot.try_lock().ok().and_then(|mut l| l.take()) else { continue };
            self.runtime.spawn(async move { link.leave().await });
        }
    }
}

impl Stream for NbdStream {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, length: u64) -> Reply<Bytes> {
        if let Err(e) = fetch::check_inside(offset, length, self.size) {
            return Reply::ready(Err(e));
        }
        if length == 0 {
            return Reply::ready(Ok(Bytes::new()));
        }
        let inner = Arc::clone(&self.inner);
        fetch::run(&self.runtime, async move {
            let read = fetch::read(&*inner, &inner.lanes, offset, length).await;
            read.map_err(|e| e.with("uri", inner.options.shown()).with("offset", offset))
        })
    }

    fn extents(&self, offset: u64, length: u64) -> Reply<Vec<DeviceExtent>> {
        if let Err(e) = fetch::check_inside(offset, length, self.size) {
            return Reply::ready(Err(e));
        }
        let has_context = self.inner.agreement.is_some_and(|a| a.context.is_some());
        if length == 0 || !has_context {
            let all = DeviceExtent { offset, length, state: ExtentState::Data };
            return Reply::ready(Ok(if length == 0 { Vec::new() } else { vec![all] }));
        }
        let inner = Arc::clone(&self.inner);
        fetch::run(&self.runtime, async move {
            let extents = inner.extents(offset, length).await;
            extents.map_err(|e| e.with("uri", inner.options.shown()).with("offset", offset))
        })
    }

    fn gap(&self) -> u64 {
        GAP
    }

    fn pin(&self) -> String {
        format!("nbd size={} export={:?}", self.size, self.inner.options.export)
    }

    fn describe(&self) -> String {
        self.inner.options.shown()
    }
}

/// What it takes to ask the server.
#[derive(Debug)]
struct Inner {
    options: NbdOptions,
    trust: Trust,
    /// What was agreed on when the stream was opened.
    agreement: Option<Agreement>,
    /// Connections, made when they are needed.
    links: Vec<tokio::sync::Mutex<Option<Arc<Link>>>>,
    lanes: Lanes,
    traffic: Arc<Traffic>,
    changed: Changed,
}

impl Inner {
    fn new(options: NbdOptions) -> Self {
        Self {
            trust: Trust::new(options.authorities.clone()),
            options,
            agreement: None,
            links: (0..CONNECTIONS).map(|_| tokio::sync::Mutex::default()).collect(),
            lanes: Lanes::new(CONNECTIONS),
            traffic: Arc::default(),
            changed: Changed::default(),
        }
    }

    async fn open(&self) -> Result<Agreement> {
        let mut attempts = Attempts::new(Phase::Opening, &self.options.patience, &self.traffic);
        loop {
            match self.connect().await {
                Ok(link) => {
                    let agreement = link.agreement;
                    *self.links[0].lock().await = Some(link);
                    return Ok(agreement);
                }
                Err(failure) => attempts.after(failure).await?,
            }
        }
    }

    /// Makes a connection.
    async fn connect(&self) -> Result<Arc<Link>, Failure> {
        let connected = tokio::time::timeout(self.options.patience.connect, self.connect_now()).await;
        self.traffic.connected();
        let late = |_| Err(Error::new(ErrorKind::TimedOut, "the NBD server cannot be connected to in time"));
        let (stream, agreement) = connected.unwrap_or_else(late).map_err(Failure::later)?;
        Ok(Link::new(stream, agreement, Arc::clone(&self.traffic)))
    }

    async fn connect_now(&self) -> Result<(Box<dyn Carrier>, Agreement)> {
        match &self.options.place {
            NbdPlace::Tcp(host, port) => {
                let stream = reach(host, *port).await?;
                self.agree(stream, host).await
            }
            NbdPlace::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|e| {
                    let error = Error::io("the NBD server cannot be connected to", e);
                    error.with("socket", path.display())
                })?;
                self.agree(stream, "localhost").await
            }
        }
    }

    async fn agree<S: Carrier + 'static>(
        &self,
        mut stream: S,
        host: &str,
    ) -> Result<(Box<dyn Carrier>, Agreement)> {
        let flags = handshake::greet(&mut stream).await?;
        let mut stream: Box<dyn Carrier> = Box::new(stream);
        if self.options.is_encrypted {
            handshake::ask_for_tls(&mut stream).await?;
            stream = Box::new(self.trust.connect(host, stream).await?);
        }
        let agreement = handshake::agree(&mut stream, flags, &self.options.export).await?;
        Ok((stream, agreement))
    }

    /// A connection, the one with the least to do; a new one where there are too few.
    async fn link(&self) -> Result<Arc<Link>, Failure> {
        self.changed.check()?;
        let opened =
            self.agreement.ok_or_else(|| Failure::never(Error::new(ErrorKind::Internal, "not open")))?;
        let slots = if opened.is_shared { &self.links[..] } else { &self.links[..1] };
        let mut best: Option<(usize, usize)> = None;
        for (i, slot) in slots.iter().enumerate() {
            // Somebody is connecting there.
            let Ok(link) = slot.try_lock() else { continue };
            let load = link.as_ref().filter(|l| !l.is_broken()).map_or(0, |l| l.load());
            // One that is there is as good as a new one with as much to do.
            if best.is_none_or(|(_, least)| load < least) {
                best = Some((i, load));
            }
        }
        let slot = &slots[best.map_or(0, |(i, _)| i)];
        let mut link = slot.lock().await;
        if let Some(link) = link.as_ref().filter(|l| !l.is_broken()) {
            return Ok(Arc::clone(link));
        }
        *link = None;
        let made = self.connect().await?;
        if made.agreement.size != opened.size {
            let what = format!("its size, from {} to {}", opened.size, made.agreement.size);
            self.changed.found(what);
        }
        self.changed.check()?;
        *link = Some(Arc::clone(&made));
        Ok(made)
    }

    /// What a range holds, as far as the server tells; the rest is called data.
    async fn extents(&self, offset: u64, length: u64) -> Result<Vec<DeviceExtent>> {
        let mut found: Vec<DeviceExtent> = Vec::new();
        let (mut at, end) = (offset, offset + length);
        let mut attempts = Attempts::new(Phase::Open, &self.options.patience, &self.traffic);
        while at < end {
            let told = match self.status(at, end).await {
                Ok(told) if found.len() < EXTENTS_MAX => told,
                // The server may refuse to tell; it does not say that there is nothing.
                Ok(_) => vec![(at, end, ExtentState::Data)],
                Err(failure) if failure.error.fact("number").is_some() => vec![(at, end, ExtentState::Data)],
                Err(failure) => {
                    attempts.after(failure).await?;
                    continue;
                }
            };
            for (start, stop, state) in told {
                let (start, stop) = (start.max(at), stop.min(end));
                if start >= stop {
                    continue;
                }
                match found.last_mut().filter(|last| last.state == state) {
                    Some(last) => last.length += stop - start,
                    None => found.push(DeviceExtent { offset: start, length: stop - start, state }),
                }
                at = stop;
            }
        }
        Ok(found)
    }

    /// Asks for the extents from `at`: one at least, and it holds `at`.
    async fn status(&self, at: u64, end: u64) -> Result<Vec<(u64, u64, ExtentState)>, Failure> {
        let link = self.link().await?;
        let unit = u64::from(link.agreement.unit);
        let size = link.agreement.size;
        let start = at / unit * unit;
        let stop = end.min(start + STATUS_MAX).next_multiple_of(unit).min(size);
        let length =
            u32::try_from(stop - start).map_err(|_| Failure::never(Error::invalid("too long a range")))?;
        self.traffic.asked();
        let told: Status = link.status(start, length, &self.options.patience).await?;
        let mut position = start;
        let extents = told.into_iter().map(|(length, is_zero)| {
            let from = position;
            position = position.saturating_add(u64::from(length));
            (from, position, if is_zero { ExtentState::Zero } else { ExtentState::Data })
        });
        let extents: Vec<_> = extents.collect();
        if position <= at {
            return Err(Failure::later(handshake::senseless("extents that end before the range")));
        }
        Ok(extents)
    }
}

impl Pieces for Inner {
    async fn fetch(&self, offset: u64, piece: &mut Piece<'_>) -> Result<(), Failure> {
        while piece.room() > 0 {
            let link = self.link().await?;
            let (unit, most) = (u64::from(link.agreement.unit), u64::from(link.agreement.request_max));
            let (at, end) = (offset + piece.filled() as u64, offset + piece.whole() as u64);
            let start = at / unit * unit;
            let stop = end.min(start + most).next_multiple_of(unit).min(link.agreement.size);
            let size = u32::try_from(stop - start)
                .map_err(|_| Failure::never(Error::invalid("too long a range")))?;
            self.traffic.asked();
            let bytes = link.read(start, size, &self.options.patience).await?;
            let wrong = |_| Failure::never(Error::invalid("too long a range"));
            let (skip, keep) = (
                usize::try_from(at - start).map_err(wrong)?,
                usize::try_from(stop.min(end) - at).map_err(wrong)?,
            );
            piece.append(&bytes[skip..skip + keep]);
        }
        Ok(())
    }

    fn patience(&self) -> &Patience {
        &self.options.patience
    }

    fn traffic(&self) -> &Traffic {
        &self.traffic
    }
}
