//! The threads that connections live on: each has a reactor of its own, and a connection stays where it came in.
//!
//! A runtime that moves tasks between threads wakes another thread for every request that comes in while one is being done; a
//! request for 4 KiB costs less than that. With a thread each, connections share nothing but the device.

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Threads of one server that may wait for devices at once. More than there are cores: a device keeps its caller waiting while it
/// reads from a disk.
pub(super) const THREADS: usize = 8;

/// Threads for what must not keep a connection waiting, for each thread of connections.
const BLOCKING_MAX: usize = 64;

/// How much later than it should a nap may end. Nanoseconds. Usual are 50 microseconds, twice as long as the nap.
const TIMER_SLACK: NonZeroU64 = NonZeroU64::new(1000).expect("not zero");

/// See the module. They end when it is dropped, after the task they are at.
#[derive(Debug)]
pub(in crate::nbd) struct Threads(Vec<Thread>);

#[derive(Debug)]
struct Thread {
    runtime: Handle,
    /// Held by each connection on it too.
    count: Arc<()>,
    /// Dropped, it ends the thread.
    _stay: oneshot::Sender<()>,
}

/// A connection's place on a thread.
#[derive(Debug)]
pub(in crate::nbd) struct Seat {
    /// The thread.
    pub(in crate::nbd) runtime: Handle,
    _count: Arc<()>,
}

impl Threads {
    /// Starts so many.
    ///
    /// # Errors
    /// Those of the system.
    pub(in crate::nbd) fn start(count: usize) -> io::Result<Self> {
        (0..count).map(|_| Thread::start()).collect::<io::Result<_>>().map(Self)
    }

    /// A place where the fewest connections are.
    pub(in crate::nbd) fn seat(&self) -> Option<Seat> {
        let thread = self.0.iter().min_by_key(|thread| Arc::strong_count(&thread.count))?;
        Some(Seat { runtime: thread.runtime.clone(), _count: Arc::clone(&thread.count) })
    }
}

impl Thread {
    fn start() -> io::Result<Self> {
        let runtime =
            Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING_MAX).build()?;
        let handle = runtime.handle().clone();
        let (stay, stop) = oneshot::channel();
        std::thread::Builder::new().name("nbd".to_owned()).spawn(move || {
            // Naps are longer where the system does not take it, and no more than that.
            rustix::thread::set_current_timer_slack(Some(TIMER_SLACK)).ok();
            // Nothing is ever sent: it ends when the sender goes.
            drop(runtime.block_on(stop));
            // What other threads are still at for connections that were cut off is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Self { runtime: handle, count: Arc::default(), _stay: stay })
    }
}
