//! Listeners and clients: who may come in, who is there, and how all of it ends.
//!
//! Invariants
//! - A client is listed from its connection until nothing of it is under way any more.
//! - A client that attaches to an export that is being removed is ended like those who came before it.

mod listen;
pub(super) mod threads;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ferry_core::{Error, ErrorKind, Result};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use self::listen::{Arrived, Listening};
pub use self::listen::{Listener, Security};
use self::threads::{THREADS, Threads};
use super::budget::Budget;
use super::channel::Channel;
use super::client::{Client, ClientInfo, Peer};
use super::connection::{Connection, Shared};
use super::handshake::{Agreed, Encryption, Handshake, Step};
use super::limits::{BUDGET_BYTES, CONNECTIONS_MAX, HANDSHAKE_TIMEOUT, STOP_TIMEOUT};
use super::tls::Demand;
use crate::export::{Export, Exports};
use crate::traffic::Traffic;

/// Where TCP without TLS may be listened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// On addresses that only this machine reaches.
    Loopback,
    /// Everywhere: whoever reaches the port reads and writes all exports.
    Anywhere,
}

/// What may be told a server.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Connections at once; more are closed at once.
    pub connections_max: usize,
    /// Memory for requests in flight of all connections. Bytes. Beside it each connection has 64 KiB of its own at most, and
    /// one request of that size.
    pub budget_bytes: usize,
    /// Longest negotiation.
    pub handshake_timeout: Duration,
    /// How long clients that do not take their replies are waited for when they are ended.
    pub stop_timeout: Duration,
    /// Where TCP without TLS may be listened for.
    pub plain: Plain,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections_max: CONNECTIONS_MAX,
            budget_bytes: BUDGET_BYTES,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            stop_timeout: STOP_TIMEOUT,
            plain: Plain::Loopback,
        }
    }
}

/// Clients that were turned away, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// There were too many.
    pub too_many: u64,
    /// They did not finish negotiating: too slow, nonsense, gone.
    pub handshake: u64,
    /// They broke the protocol, or the connection broke, after that.
    pub broken: u64,
}

/// A server of exports.
#[derive(Debug)]
pub struct Server {
    exports: Arc<Exports>,
    options: Options,
    runtime: Handle,
    /// Where connections live; started for the first one.
    threads: OnceLock<Threads>,
    shared: Arc<Shared>,
    clients: Mutex<Clients>,
    /// Rung when a client is gone.
    gone: Notify,
    listening: Mutex<Vec<Listening>>,
    is_stopping: AtomicBool,
    refused: [AtomicU64; 3],
}

#[derive(Debug, Default)]
struct Clients {
    ever: u64,
    by_id: BTreeMap<u64, (Arc<Client>, Option<AbortHandle>)>,
}

/// Strikes a client off the list, however its task ends.
struct Listed {
    server: Arc<Server>,
    client: Arc<Client>,
    id: u64,
}

/// A negotiation with one client, and until when.
struct Talk<'a> {
    client: &'a Arc<Client>,
    deadline: Instant,
    handshake: Handshake<'a>,
}

/// What came of it.
enum Met<S> {
    /// The client wants an export.
    Attached(S, Agreed),
    /// It wants TLS.
    Encrypt(S),
    /// It or the server goes.
    Left,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.server.clients().by_id.remove(&self.id);
        self.server.gone.notify_waiters();
    }
}

impl Server {
    /// A server of `exports`: `runtime` takes clients in, and threads of its own serve them, as devices keep their caller waiting.
    #[must_use]
    pub fn new(exports: Arc<Exports>, options: Options, runtime: Handle) -> Arc<Self> {
        // One thread is left for everybody else where flushes keep the others waiting.
        let shared = Shared {
            budget: Arc::new(Budget::new(options.budget_bytes)),
            traffic: Traffic::default(),
            blockable: Semaphore::new(THREADS - 1),
        };
        Arc::new(Self {
            exports,
            options,
            runtime,
            threads: OnceLock::new(),
            shared: Arc::new(shared),
            clients: Mutex::default(),
            gone: Notify::new(),
            listening: Mutex::default(),
            is_stopping: AtomicBool::new(false),
            refused: Default::default(),
        })
    }

    /// Listens on a unix socket, which is there when this returns and gone after [`Self::stop`]. A socket that nobody listens
    /// on any more is replaced.
    ///
    /// # Errors
    /// `Busy` (16) where somebody listens there; those of the file system.
    pub fn listen_unix(self: &Arc<Self>, path: &Path, security: Security) -> Result<()> {
        let listener = listen::bind_unix(path)?;
        self.listen(Listener::Unix(listener), security, Some(path.to_owned()))
    }

    /// Listens on a TCP port; the address, with the port that was chosen where it was 0.
    ///
    /// # Errors
    /// `Denied` (13) without TLS where others than this machine reach the address, unless [`Plain::Anywhere`] says so; those of
    /// the system.
    pub fn listen_tcp(
        self: &Arc<Self>,
        address: std::net::SocketAddr,
        security: Security,
    ) -> Result<std::net::SocketAddr> {
        listen::check_address(address, &security, self.options.plain)?;
        let bound = std::net::TcpListener::bind(address)
            .and_then(|listener| Ok((listener.local_addr()?, listener)))
            .map_err(|e| Error::io("cannot listen on the address", e).with("address", address))?;
        self.listen(Listener::Tcp(bound.1), security, None)?;
        Ok(bound.0)
    }

    /// Listens on a socket that somebody else opened, such as systemd.
    ///
    /// # Errors
    /// As [`Self::listen_tcp`].
    pub fn listen_on(self: &Arc<Self>, listener: Listener, security: Security) -> Result<()> {
        if let Listener::Tcp(tcp) = &listener {
            let address = tcp.local_addr().map_err(|e| Error::io("a socket has no address", e))?;
            listen::check_address(address, &security, self.options.plain)?;
        }
        self.listen(listener, security, None)
    }

    /// Who is connected, oldest first.
    #[must_use]
    pub fn list_clients(&self) -> Vec<ClientInfo> {
        self.clients().by_id.values().map(|(client, _)| client.info()).collect()
    }

    /// What went through all exports.
    #[must_use]
    pub fn traffic(&self) -> &Traffic {
        &self.shared.traffic
    }

    /// Clients turned away so far.
    #[must_use]
    pub fn refusals(&self) -> Refusals {
        let [too_many, handshake, broken] = std::array::from_fn(|i| self.refused[i].load(Ordering::Relaxed));
        Refusals { too_many, handshake, broken }
    }

    /// Memory that requests in flight hold, beyond what each connection has anyway. Bytes.
    #[must_use]
    pub fn bytes_in_flight(&self) -> usize {
        self.shared.budget.held()
    }

    /// Ends the clients of an export: they finish what is under way, and are cut off where that takes longer than
    /// [`Options::stop_timeout`]. Remove it from the exports first, or new ones come. Returns when all are gone.
    ///
    /// # Cancel safety
    /// Clients end all the same, but those that do not finish stay.
    pub async fn end_clients(&self, export: &Export) {
        self.end(|client| client.export().is_some_and(|e| std::ptr::eq(&raw const **e, export))).await;
    }

    /// Listens no more, ends all clients as [`Self::end_clients`] does, and flushes all exports.
    ///
    /// # Errors
    /// The first that a flush gives; all exports are tried.
    ///
    /// # Cancel safety
    /// Clients end all the same; call it again for the rest.
    pub async fn stop(&self) -> Result<()> {
        self.is_stopping.store(true, Ordering::Release);
        let listening = std::mem::take(&mut *self.listening.lock().unwrap_or_else(PoisonError::into_inner));
        for one in listening {
            one.close().await;
        }
        self.end(|_| true).await;
        let mut outcome = Ok(());
        for export in self.exports.list() {
            if export.is_read_only() {
                continue;
            }
            let entered = export.enter().await;
            let flushed = self.runtime.spawn_blocking(move || entered.flush().wait()).await;
            let lost = |e| Error::new(ErrorKind::Internal, "a flush was lost").because(e);
            let flushed = flushed.map_err(lost).and_then(|flushed| flushed);
            outcome = outcome.and(flushed.map_err(|e| e.with("export", export.name())));
        }
        outcome
    }

    /// Serves one client over a stream that is there already. Returns when it is gone.
    ///
    /// # Cancel safety
    /// The client is cut off; requests under way may still happen.
    pub async fn serve_stream<S>(self: &Arc<Self>, stream: S)
    where
        S: Channel,
    {
        if let Some(listed) = self.admit(Peer::Inside) {
            self.serve(stream, &Security::Plain, &listed.client).await;
        }
    }

    async fn end(&self, which: impl Fn(&Client) -> bool) {
        for (client, _) in self.clients().by_id.values().filter(|c| which(&c.0)) {
            client.end();
        }
        let none_left = async {
            loop {
                let gone = self.gone.notified();
                if !self.clients().by_id.values().any(|c| which(&c.0)) {
                    return;
                }
                gone.await;
            }
        };
        tokio::pin!(none_left);
        if tokio::time::timeout(self.options.stop_timeout, none_left.as_mut()).await.is_ok() {
            return;
        }
        for (_, task) in self.clients().by_id.values().filter(|c| which(&c.0)) {
            task.iter().for_each(AbortHandle::abort);
        }
        none_left.await;
    }

    fn listen(
        self: &Arc<Self>,
        listener: Listener,
        security: Security,
        path: Option<std::path::PathBuf>,
    ) -> Result<()> {
        let one = Listening::start(self, listener, security, path, &self.runtime)?;
        self.listening.lock().unwrap_or_else(PoisonError::into_inner).push(one);
        Ok(())
    }

    /// Lists a new client, unless there are too many.
    fn admit(self: &Arc<Self>, peer: Peer) -> Option<Listed> {
        let mut clients = self.clients();
        if self.is_stopping.load(Ordering::Acquire) {
            return None;
        }
        if clients.by_id.len() >= self.options.connections_max {
            self.refused[0].fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let id = clients.ever;
        clients.ever += 1;
        let client = Arc::new(Client::new(id, peer));
        clients.by_id.insert(id, (Arc::clone(&client), None));
        Some(Listed { server: Arc::clone(self), client, id })
    }

    /// Serves one client on a task of its own, and a thread that it shares with few.
    fn spawn<A: Arrived>(self: &Arc<Self>, arrived: A, peer: Peer, security: Security) {
        let Some(listed) = self.admit(peer) else { return };
        let (server, id) = (Arc::clone(self), listed.id);
        let seat = self.threads().and_then(Threads::seat);
        let runtime = seat.as_ref().map_or_else(|| self.runtime.clone(), |seat| seat.runtime.clone());
        let task = runtime.spawn(async move {
            let _seat = seat;
            match arrived.settle() {
                Ok(stream) => server.serve(stream, &security, &listed.client).await,
                Err(_) => drop(server.refused[1].fetch_add(1, Ordering::Relaxed)),
            }
        });
        // Where it ended already there is nothing to abort.
        if let Some((_, abort)) = self.clients().by_id.get_mut(&id) {
            *abort = Some(task.abort_handle());
        }
    }

    async fn serve<S>(&self, stream: S, security: &Security, client: &Arc<Client>)
    where
        S: Channel,
    {
        let deadline = Instant::now() + self.options.handshake_timeout;
        let mut talk = Talk {
            client,
            deadline,
            handshake: Handshake::new(&self.exports, client, security.encryption()),
        };
        let is_served = match (talk.open(stream).await, security) {
            (Ok(Met::Attached(stream, agreed)), _) => {
                self.attached(stream, agreed, client).await;
                true
            }
            (Ok(Met::Left), _) => true,
            (Ok(Met::Encrypt(stream)), Security::Tls(tls, _)) => {
                match talk.within(tls.accept(stream)).await {
                    Ok(Some(stream)) => {
                        client.is_encrypted_now();
                        talk.handshake.is_encrypted_now();
                        self.serve_encrypted(talk, stream).await
                    }
                    Ok(None) => true,
                    Err(_) => false,
                }
            }
            (Ok(Met::Encrypt(_)), Security::Plain) | (Err(_), _) => false,
        };
        if !is_served {
            self.refused[1].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Goes on over TLS; whether the negotiation came to its end.
    async fn serve_encrypted<S>(&self, mut talk: Talk<'_>, stream: S) -> bool
    where
        S: Channel,
    {
        match talk.go_on(stream).await {
            Ok(Met::Attached(stream, agreed)) => {
                self.attached(stream, agreed, talk.client).await;
                true
            }
            Ok(Met::Left) => true,
            Ok(Met::Encrypt(_)) | Err(_) => false,
        }
    }

    async fn attached<S>(&self, stream: S, agreed: Agreed, client: &Arc<Client>)
    where
        S: Channel,
    {
        let export = Arc::clone(&agreed.export);
        let is_offered = self.exports.get(export.name()).is_some_and(|e| Arc::ptr_eq(&e, &export));
        if !is_offered {
            // Removed meanwhile, by somebody who did not see this client.
            return;
        }
        let connection = Connection::new(stream, agreed, Arc::clone(client), Arc::clone(&self.shared));
        if Box::pin(connection.run()).await.is_err() {
            self.refused[2].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The threads of connections, unless the system has none to give: they live on the runtime then.
    fn threads(&self) -> Option<&Threads> {
        if self.threads.get().is_none() {
            // Two at once make them twice, and one of them is dropped.
            self.threads.set(Threads::start(THREADS).ok()?).ok();
        }
        self.threads.get()
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Talk<'a> {
    /// Greets, then as [`Self::go_on`].
    async fn open<S>(&mut self, mut stream: S) -> io::Result<Met<S>>
    where
        S: Channel,
    {
        let (client, deadline) = (self.client, self.deadline);
        match within(client, deadline, self.handshake.greet(&mut stream)).await? {
            Some(()) => self.go_on(stream).await,
            None => Ok(Met::Left),
        }
    }

    /// Negotiates.
    async fn go_on<S>(&mut self, mut stream: S) -> io::Result<Met<S>>
    where
        S: Channel,
    {
        let (client, deadline) = (self.client, self.deadline);
        Ok(match within(client, deadline, self.handshake.negotiate(&mut stream)).await? {
            Some(Step::Attached(agreed)) => Met::Attached(stream, agreed),
            Some(Step::Encrypt) => Met::Encrypt(stream),
            Some(Step::Left) | None => Met::Left,
        })
    }

    async fn within<T>(&self, work: impl Future<Output = io::Result<T>>) -> io::Result<Option<T>> {
        within(self.client, self.deadline, work).await
    }
}

/// What comes of `work` until the deadline; nothing where the client is asked to go.
async fn within<T>(
    client: &Client,
    deadline: Instant,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<Option<T>> {
    tokio::select! {
        done = tokio::time::timeout_at(deadline, work) => done?.map(Some),
        () = std::future::poll_fn(|cx| client.poll_ended(cx)) => Ok(None),
    }
}

impl Security {
    fn encryption(&self) -> Encryption {
        match self {
            Self::Plain => Encryption::Never,
            Self::Tls(_, Demand::Required) => Encryption::Demanded,
            Self::Tls(_, Demand::Allowed) => Encryption::Offered,
        }
    }
}
