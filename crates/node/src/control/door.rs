//! The owner's side: sockets in the stores' directories, and a thread for each call.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use ferry_core::{Error, Result};

use super::SOCKET;
use super::wire::Channel;

/// What is done with somebody who came in.
type Receive = Arc<dyn Fn(Channel) + Send + Sync>;

/// Where others come in. Closed when dropped.
pub(crate) struct Door {
    receive: Receive,
    inner: Arc<Inner>,
    listening: Mutex<Vec<Listening>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Calls under way, and whether new ones are taken.
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    inside: usize,
    is_closed: bool,
}

#[derive(Debug)]
struct Listening {
    socket: PathBuf,
    listener: UnixListener,
    thread: JoinHandle<()>,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").field("listening", &self.listening).finish_non_exhaustive()
    }
}

impl Door {
    /// A door behind which `receive` deals with each caller, on a thread of its own.
    pub(crate) fn new(receive: impl Fn(Channel) + Send + Sync + 'static) -> Self {
        Self { receive: Arc::new(receive), inner: Arc::default(), listening: Mutex::default() }
    }

    /// Listens in the directory of a store that this process owns, if it does not yet.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(crate) fn open_at(&self, dir: &Path) -> Result<()> {
        let cannot =
            |e: io::Error| Error::io("cannot listen on the control socket", e).with("store", dir.display());
        let socket = dir.join(SOCKET);
        let mut all = self.listening();
        if all.iter().any(|l| l.socket == socket) {
            return Ok(());
        }
        // The owner before us was killed: nobody else may listen here.
        match fs::remove_file(&socket) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(cannot(e)),
            Ok(()) | Err(_) => {}
        }
        let listener = bind(dir).map_err(cannot)?;
        let accepting = listener.try_clone().map_err(cannot)?;
        let (receive, inner) = (Arc::clone(&self.receive), Arc::clone(&self.inner));
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || accept(&accepting, &receive, &inner))
            .map_err(cannot)?;
        all.push(Listening { socket, listener, thread });
        Ok(())
    }

    /// Lets nobody in any more, and waits until all that are inside have left.
    pub(crate) fn close(&self) {
        self.inner.state().is_closed = true;
        for listening in std::mem::take(&mut *self.listening()) {
            // Gone with the directory, or never made: nobody can find it either way.
            fs::remove_file(&listening.socket).ok();
            // Wakes the thread that waits for callers; a socket that cannot be shut down has no callers.
            rustix::net::shutdown(&listening.listener, rustix::net::Shutdown::Both).ok();
            // A thread that panicked has ended too.
            listening.thread.join().ok();
        }
        let state = self.inner.state();
        let left = self.inner.changed.wait_while(state, |s| s.inside > 0);
        drop(left.unwrap_or_else(PoisonError::into_inner));
    }

    fn listening(&self) -> MutexGuard<'_, Vec<Listening>> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.close();
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a caller in, unless the door is closed.
    fn enter(self: &Arc<Self>) -> Option<Inside> {
        let mut state = self.state();
        if state.is_closed {
            return None;
        }
        state.inside += 1;
        Some(Inside(Arc::clone(self)))
    }
}

/// A caller inside.
#[derive(Debug)]
struct Inside(Arc<Inner>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.state().inside -= 1;
        self.0.changed.notify_all();
    }
}

/// Lets callers in until the socket is shut down.
fn accept(listener: &UnixListener, receive: &Receive, inner: &Arc<Inner>) {
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(_) if inner.state().is_closed => return,
            // Too many open files, or a caller that went at once: others may still come.
            Err(_) => {
                thread::sleep(std::time::Duration::from_millis(10));
                continue;
            }
        };
        let Some(inside) = inner.enter() else { return };
        let receive = Arc::clone(receive);
        let Ok(channel) = Channel::new(stream) else { continue };
        // A caller for whom there is no thread is not taken, and looks for the owner again.
        let spawned = thread::Builder::new().name("call".to_owned()).spawn(move || {
            receive(channel);
            drop(inside);
        });
        drop(spawned);
    }
}

/// Binds the socket in a directory, by the directory's descriptor: its path may be longer than a socket's name can be.
fn bind(dir: &Path) -> io::Result<UnixListener> {
    let handle = File::open(dir)?;
    UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", handle.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::super::client::Server;
    use super::{Door, SOCKET};

    #[test]
    fn a_door_lets_in_until_it_is_closed_and_waits_for_those_inside() {
        let dir = tempfile::tempdir().unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&done);
        let door = Door::new(move |mut channel| {
            assert!(channel.is_gone());
            std::thread::sleep(Duration::from_millis(50));
            counted.fetch_add(1, Ordering::SeqCst);
        });
        assert!(Server::of_store(dir.path()).is_none());
        door.open_at(dir.path()).unwrap();
        let first = Server::of_store(dir.path()).unwrap();
        let second = Server::of_store(dir.path()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        drop((first, second));
        door.close();
        assert_eq!(done.load(Ordering::SeqCst), 2);
        assert!(Server::of_store(dir.path()).is_none());
        assert!(!dir.path().join(SOCKET).exists());
    }

    #[test]
    fn a_socket_left_by_a_killed_owner_is_replaced_and_paths_may_be_long() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("d".repeat(200));
        std::fs::create_dir(&long).unwrap();
        std::fs::write(long.join(SOCKET), "").unwrap();
        let door = Door::new(|_| {});
        door.open_at(&long).unwrap();
        assert!(Server::of_store(&long).is_some());
    }
}
