//! A client: where it comes from, what it uses, and how it is told to go.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::SystemTime;

use futures_util::task::AtomicWaker;

use crate::export::Export;

/// Where a client comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A process of this machine, over a unix socket.
    Local {
        /// Its number, where the system tells.
        pid: Option<i32>,
        /// Its user.
        uid: u32,
    },
    /// An address of the network.
    Remote(SocketAddr),
    /// This very process.
    Inside,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { pid: Some(pid), uid } => write!(f, "pid {pid} (uid {uid})"),
            Self::Local { pid: None, uid } => write!(f, "uid {uid}"),
            Self::Remote(address) => address.fmt(f),
            Self::Inside => f.write_str("this process"),
        }
    }
}

/// What is known of a client that is connected.
#[derive(Clone, Debug)]
pub struct ClientInfo {
    /// Counts up within a server.
    pub id: u64,
    /// Where it comes from.
    pub peer: Peer,
    /// When it connected.
    pub since: SystemTime,
    /// What it uses, once it has chosen.
    pub export: Option<Arc<Export>>,
    /// Whether nobody between can read along.
    pub is_encrypted: bool,
}

/// A client, for its task and for whoever ends it.
#[derive(Debug)]
pub(super) struct Client {
    id: u64,
    peer: Peer,
    since: SystemTime,
    export: OnceLock<Arc<Export>>,
    is_encrypted: AtomicBool,
    is_ending: AtomicBool,
    waker: AtomicWaker,
}

impl Client {
    /// A client that just connected.
    pub(super) fn new(id: u64, peer: Peer) -> Self {
        Self {
            id,
            peer,
            since: SystemTime::now(),
            export: OnceLock::new(),
            is_encrypted: AtomicBool::new(false),
            is_ending: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        }
    }

    /// Notes what it chose.
    pub(super) fn uses(&self, export: &Arc<Export>) {
        // It chooses once.
        self.export.get_or_init(|| Arc::clone(export));
    }

    /// Notes that it went on encrypted.
    pub(super) fn is_encrypted_now(&self) {
        self.is_encrypted.store(true, Ordering::Relaxed);
    }

    /// What it chose.
    pub(super) fn export(&self) -> Option<&Arc<Export>> {
        self.export.get()
    }

    /// Asks it to finish what is under way and go.
    pub(super) fn end(&self) {
        self.is_ending.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Ready once it was asked to go. One task waits at a time.
    pub(super) fn poll_ended(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_ending.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        if self.is_ending.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// What is known of it.
    pub(super) fn info(&self) -> ClientInfo {
        ClientInfo {
            id: self.id,
            peer: self.peer,
            since: self.since,
            export: self.export().cloned(),
            is_encrypted: self.is_encrypted.load(Ordering::Relaxed),
        }
    }
}
