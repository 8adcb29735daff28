//! A client that was told by other means what a negotiation would tell it: the NBD client of this machine's kernel.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};

use ferry_core::{Error, ErrorKind, Result};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::budget::Budget;
use super::client::{Client, Peer};
use super::connection::{Connection, Shared};
use super::handshake::Agreed;
use super::limits::{INSIDE_BYTES, STOP_TIMEOUT};
use super::server::threads::Threads;
use super::wire::export_flag;
use crate::export::Export;
use crate::fuse::Access;
use crate::traffic::Traffic;

/// A connection that is being served on a thread of its own. Dropped, it is cut off.
#[derive(Debug)]
pub(crate) struct Inside {
    client: Arc<Client>,
    task: JoinHandle<()>,
    /// Hangs up when the connection is over.
    over: mpsc::Receiver<()>,
    /// Last: it ends what is on it.
    _thread: Threads,
}

/// What the client may ask for, as the protocol tells it.
pub(crate) fn transmission_flags(access: Access) -> u16 {
    use export_flag as f;
    let writable = f::SEND_FUA | f::SEND_TRIM | f::SEND_WRITE_ZEROES;
    f::HAS_FLAGS | f::SEND_FLUSH | if access == Access::ReadOnly { f::READ_ONLY } else { writable }
}

impl Inside {
    /// Serves `export` over `stream`, from the first request on. Counts as a client of the export.
    ///
    /// # Errors
    /// Those of the system, which has no thread or no descriptor to give.
    pub(crate) fn start(export: &Arc<Export>, access: Access, stream: UnixStream) -> Result<Self> {
        let cannot = |e| Error::io("cannot serve a device", e);
        stream.set_nonblocking(true).map_err(cannot)?;
        let thread = Threads::start(1).map_err(cannot)?;
        let seat = thread.seat().ok_or_else(|| Error::new(ErrorKind::Internal, "a thread without a seat"))?;
        let shared = Shared {
            budget: Arc::new(Budget::new(INSIDE_BYTES)),
            traffic: Traffic::default(),
            // Nobody else is on the thread.
            blockable: Semaphore::new(1),
        };
        let agreed = Agreed {
            attached: export.attach(),
            export: Arc::clone(export),
            is_structured: false,
            refuses_writes: access == Access::ReadOnly,
            contexts: Vec::new(),
        };
        let client = Arc::new(Client::new(0, Peer::Inside));
        client.uses(export);
        let (alive, over) = mpsc::channel();
        let served = Arc::clone(&client);
        let task = seat.runtime.spawn(async move {
            let _alive: mpsc::Sender<()> = alive;
            let name = agreed.export.name().to_owned();
            let ended = match tokio::net::UnixStream::from_std(stream) {
                Ok(stream) => Box::pin(Connection::new(stream, agreed, served, Arc::new(shared)).run()).await,
                Err(e) => Err(e),
            };
            if let Err(e) = ended {
                tracing::warn!(export = name, error = %e, "a device of the kernel was cut off");
            }
        });
        Ok(Self { client, task, over, _thread: thread })
    }

    /// Waits until all that the kernel asked for is done, and it is no client any more. It must have hung up, or be about to.
    pub(crate) fn end(self) {
        self.client.end();
        if self.over.recv_timeout(STOP_TIMEOUT) == Err(mpsc::RecvTimeoutError::Timeout) {
            self.task.abort();
            // What is aborted is over as soon as the thread comes to it.
            self.over.recv_timeout(STOP_TIMEOUT).ok();
        }
    }
}
