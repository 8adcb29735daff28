//! Sockets that clients connect to.

use std::io;
use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ferry_core::{Error, ErrorKind, Result};
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::{Plain, Server};
use crate::nbd::channel::Channel;
use crate::nbd::client::Peer;
use crate::nbd::limits::{KEEPALIVE_COUNT, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, USER_TIMEOUT};
use crate::nbd::tls::{Demand, Tls};

/// How long accepting rests where the system cannot open another socket.
const REST: Duration = Duration::from_millis(100);

/// A socket to listen on.
#[derive(Debug)]
pub enum Listener {
    /// Of this machine.
    Unix(std::os::unix::net::UnixListener),
    /// Of the network.
    Tcp(std::net::TcpListener),
}

/// How clients of a listener are kept apart from eavesdroppers.
#[derive(Clone, Debug)]
pub enum Security {
    /// Not at all.
    Plain,
    /// By TLS.
    Tls(Arc<Tls>, Demand),
}

/// A socket that is listened on.
#[derive(Debug)]
pub(super) struct Listening {
    task: JoinHandle<()>,
    path: Option<PathBuf>,
}

/// The same for the runtime.
enum Accepting {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listening {
    /// Starts to listen.
    pub(super) fn start(
        server: &Arc<Server>,
        listener: Listener,
        security: Security,
        path: Option<PathBuf>,
        runtime: &Handle,
    ) -> Result<Self> {
        let _inside = runtime.enter();
        let accepting = accepting(listener).map_err(|e| Error::io("cannot listen on a socket", e))?;
        let server = Arc::downgrade(server);
        let task = runtime.spawn(async move {
            loop {
                let accepted = accepting.accept().await;
                let Some(server) = server.upgrade() else { return };
                match accepted {
                    Ok(Accepted::Unix(arrived, peer)) => server.spawn(arrived, peer, security.clone()),
                    Ok(Accepted::Tcp(arrived, peer)) => server.spawn(arrived, peer, security.clone()),
                    // Out of descriptors, or a client that was gone before it was there: neither is for ever.
                    Err(_) => tokio::time::sleep(REST).await,
                }
            }
        });
        Ok(Self { task, path })
    }

    /// Listens no more.
    pub(super) async fn close(mut self) {
        self.task.abort();
        // It was aborted, or it panicked: gone either way.
        drop((&mut self.task).await);
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(path) = &self.path {
            // Somebody may have removed it already.
            drop(std::fs::remove_file(path));
        }
    }
}

/// A client that connected.
enum Accepted {
    Unix(StdUnixStream, Peer),
    Tcp(StdTcpStream, Peer),
}

/// A stream between the reactor that took it in and the one that serves it.
pub(super) trait Arrived: Send + 'static {
    /// What it is served as.
    type Stream: Channel + 'static;

    /// Takes its place in the runtime that this is called in.
    fn settle(self) -> io::Result<Self::Stream>;
}

impl Arrived for StdUnixStream {
    type Stream = UnixStream;

    fn settle(self) -> io::Result<UnixStream> {
        UnixStream::from_std(self)
    }
}

impl Arrived for StdTcpStream {
    type Stream = TcpStream;

    fn settle(self) -> io::Result<TcpStream> {
        TcpStream::from_std(self)
    }
}

impl Accepting {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let who = stream.peer_cred()?;
                Ok(Accepted::Unix(stream.into_std()?, Peer::Local { pid: who.pid(), uid: who.uid() }))
            }
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                watch_over(&stream)?;
                Ok(Accepted::Tcp(stream.into_std()?, Peer::Remote(address)))
            }
        }
    }
}

/// Sends replies at once, and notices a peer that is no more.
fn watch_over(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_COUNT)?;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(USER_TIMEOUT.as_millis()).expect("seconds"))?;
    Ok(())
}

fn accepting(listener: Listener) -> io::Result<Accepting> {
    match listener {
        Listener::Unix(listener) => {
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener).map(Accepting::Unix)
        }
        Listener::Tcp(listener) => {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener).map(Accepting::Tcp)
        }
    }
}

/// Makes a unix socket, in the place of one that nobody listens on.
pub(super) fn bind_unix(path: &Path) -> Result<std::os::unix::net::UnixListener> {
    let wrong = |clause: &'static str, e| Error::io(clause, e).with("socket", path.display());
    let is_socket = |m: std::fs::Metadata| m.file_type().is_socket();
    if std::fs::symlink_metadata(path).is_ok_and(is_socket) {
        match StdUnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(|e| wrong("cannot replace an old socket", e))?;
            }
            Ok(_) => {
                return Err(Error::busy("somebody listens on the socket").with("socket", path.display()));
            }
            Err(e) => return Err(wrong("cannot tell whether the socket is in use", e)),
        }
    }
    std::os::unix::net::UnixListener::bind(path).map_err(|e| wrong("cannot listen on the socket", e))
}

/// Refuses to show exports to a network without TLS.
pub(super) fn check_address(address: SocketAddr, security: &Security, plain: Plain) -> Result<()> {
    let is_local = address.ip().to_canonical().is_loopback();
    let is_guarded = match security {
        Security::Tls(_, Demand::Required) => true,
        Security::Plain | Security::Tls(_, Demand::Allowed) => false,
    };
    if is_local || is_guarded || plain == Plain::Anywhere {
        return Ok(());
    }
    let text = "whoever reaches this address could read and write all exports: demand TLS, or say in so many words that \
                it is meant";
    Err(Error::new(ErrorKind::Denied, text).with("address", address))
}
