//! Threads that read the objects of an export ahead of the one being written.

use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use ferry_core::{Error, Reply, Result, SparseData};
use ferry_image::limits::OBJECTS_IN_FLIGHT;
use ferry_image::transfer::export::Readers;
use futures_channel::oneshot;
use futures_util::future::BoxFuture;

/// Threads: as many keep a disk busy whose answers take a while, and few enough for two processors.
const THREADS: usize = 4;

/// A read, and who waits for it.
type Job = (BoxFuture<'static, Result<SparseData>>, oneshot::Sender<Result<SparseData>>);

/// The threads. Dropped, they end after the reads that were begun.
#[derive(Debug)]
pub(super) struct ReadThreads {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl ReadThreads {
    /// Starts them. Where the system gives no threads, reads run where they are waited for.
    pub(super) fn start() -> Self {
        let (jobs, queue) = mpsc::sync_channel::<Job>(OBJECTS_IN_FLIGHT);
        let queue = Arc::new(Mutex::new(queue));
        let threads: Vec<_> = (0..THREADS)
            .map_while(|_| {
                let queue = Arc::clone(&queue);
                thread::Builder::new().name("read".to_owned()).spawn(move || work(&queue)).ok()
            })
            .collect();
        Self { jobs: (!threads.is_empty()).then_some(jobs), threads }
    }
}

/// Does jobs until there are no more.
fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((read, reply)) = job else { return };
        // Nobody waits any more where the export failed.
        reply.send(futures_executor::block_on(read)).ok();
    }
}

impl Readers for ReadThreads {
    fn begin(&self, read: BoxFuture<'static, Result<SparseData>>) -> Reply<SparseData> {
        let Some(jobs) = &self.jobs else { return Reply::Pending(read) };
        let (reply, answer) = oneshot::channel();
        jobs.send((read, reply)).expect("the threads take jobs for as long as this can send them");
        Reply::pending(async move {
            answer.await.map_err(|_| {
                Error::new(ferry_core::ErrorKind::Internal, "a read of the export was given up")
            })?
        })
    }
}

impl Drop for ReadThreads {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}
