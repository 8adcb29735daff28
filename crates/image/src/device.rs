//! An image as a block device.
//!
//! - Requests run on the header as last read. [`ImageDevice::refresh`] waits until the requests under way are done, reads the
//!   header and the object map again, and lets the next ones go on with those: so once it returns, nothing is written under
//!   an older snapshot context.
//! - Requests that come while a refresh waits wait for it.
//! - The exclusive lock is taken by the first write and kept until somebody asks for it ([`ImageDevice::attend`]) or it is
//!   given back; the next write takes it again. Whoever takes it does at least one change before it goes: of two devices that
//!   write all the time both get on.
//! - A device whose watch was lost refuses everything: another client may own the image.

mod attend;
mod gate;
mod recording;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use ferry_core::{BlockDevice, DeviceExtent, Error, ErrorKind, Reply, Result};
use futures_util::lock::Mutex as AsyncMutex;

use self::gate::{Closed, Entered, Gate};
use self::recording::Record;
pub use self::recording::Recording;
use crate::history::Migrated;
use crate::image::Image;
use crate::io::Io;
use crate::layout::ObjectNo;
use crate::limits::LOCK_ROUNDS_MAX;
use crate::times::{Times, Used};

/// An open image that offers itself as a device. Cheap to clone; all clones are the same device.
#[derive(Clone, Debug)]
pub struct ImageDevice {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Held by requests while they run; closed while the image is opened again.
    gate: Gate,
    /// Held by whoever takes the exclusive lock.
    acquiring: AsyncMutex<()>,
    state: Mutex<State>,
    /// Whether the watch is gone, or the device closed.
    is_lost: AtomicBool,
    /// How often the lock was given to somebody who asked for it.
    handed_over: AtomicU64,
    /// Whether it was read or written.
    times: Times,
    /// What is written, for whoever copies it meanwhile.
    record: Arc<Record>,
}

/// The image and how it is read and written now.
#[derive(Debug)]
struct State {
    image: Image,
    io: Arc<Io>,
}

impl ImageDevice {
    /// Opens an image for input and output.
    ///
    /// # Errors
    /// Those of [`Io::open`].
    pub async fn open(mut image: Image) -> Result<Self> {
        let io = Arc::new(Io::open_as_is(&mut image).await?);
        let state = Mutex::new(State { image, io });
        let (gate, acquiring) = (Gate::default(), AsyncMutex::default());
        let (is_lost, handed_over) = (AtomicBool::new(false), AtomicU64::new(0));
        let (times, record) = (Times::default(), Arc::default());
        Ok(Self { inner: Arc::new(Inner { gate, acquiring, state, is_lost, handed_over, times, record }) })
    }

    /// The image as last read.
    #[must_use]
    pub fn image(&self) -> Image {
        self.inner.state().image.clone()
    }

    /// How it is read and written now.
    #[must_use]
    pub fn io(&self) -> Arc<Io> {
        Arc::clone(&self.inner.state().io)
    }

    /// Reads the header again once all requests under way are done.
    ///
    /// # Errors
    /// Those of [`Image::refresh`] and [`Io::open`]; requests then go on as before.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the device as it was.
    pub async fn refresh(&self) -> Result<()> {
        self.reopen(async |_: &mut Image| Ok(())).await
    }

    /// Gives an object of the target of a migration its history, beside the requests of clients.
    ///
    /// # Errors
    /// As [`Io::migrate_object`].
    ///
    /// # Cancel safety
    /// As [`Io::migrate_object`].
    pub async fn migrate_object(&self, object: ObjectNo) -> Result<Migrated> {
        self.run_change(move |io| async move { io.migrate_object(object).await }).await
    }

    /// Does `work` under the exclusive lock, which is not given to anybody before it is done: keep it short. For what would
    /// otherwise ask for the lock again for every step, beside a writer in another process.
    ///
    /// # Errors
    /// Those of `work` and of taking the lock.
    ///
    /// # Cancel safety
    /// That of `work`; the lock may have been taken.
    pub async fn holding<T: Send + Unpin + 'static, F: Future<Output = Result<T>> + Send>(
        &self,
        work: impl FnOnce(Arc<Io>) -> F + Send + 'static,
    ) -> Result<T> {
        self.run_change(work).await
    }

    /// How often the exclusive lock was given to somebody who asked for it: others write the image, too, where that grows.
    #[must_use]
    pub fn hand_overs(&self) -> u64 {
        self.inner.handed_over.load(Ordering::Acquire)
    }

    /// Whether requests are refused because it was closed, or its watch lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.inner.is_lost.load(Ordering::Acquire)
    }

    /// Takes the exclusive lock, where the image has one, ahead of the first write.
    ///
    /// # Errors
    /// Those of [`Image::acquire`].
    ///
    /// # Cancel safety
    /// The lock may have been taken; the next write finds out.
    pub async fn acquire(&self) -> Result<()> {
        self.enter_with_lock().await.map(drop)
    }

    /// Takes the exclusive lock and goes in with it: it is not given away before what comes back is dropped, unless it was
    /// taken by another request meanwhile.
    async fn enter_with_lock(&self) -> Result<Entered<'_>> {
        // One takes it for all that wait, so that the gate is closed once.
        let acquiring = self.inner.acquiring.lock().await;
        if !self.io().lacks_lock() {
            drop(acquiring);
            return Ok(self.inner.gate.enter().await);
        }
        let closed = self.inner.gate.close().await;
        self.inner.record.lose_track();
        self.reopen_closed(&closed, async |image: &mut Image| image.acquire().await).await?;
        Ok(closed.enter())
    }

    /// Makes everything durable and gives the exclusive lock back, once all requests under way are done. The next write takes
    /// it again.
    ///
    /// # Errors
    /// Those of the store.
    ///
    /// # Cancel safety
    /// The lock may have been given back; the next write finds out.
    pub async fn release(&self) -> Result<()> {
        self.inner.record.lose_track();
        self.reopen(async |image: &mut Image| give_back(image).await).await
    }

    /// Puts into the header when the image was last read and written, where that is due. To be called now and then by whoever
    /// keeps a device open for long.
    ///
    /// # Errors
    /// `Fenced` after the watch was lost; those of the store. The next call tries again.
    ///
    /// # Cancel safety
    /// As an error.
    pub async fn note_times(&self) -> Result<()> {
        self.inner.check()?;
        self.inner.times.note(&self.image()).await
    }

    /// Makes everything durable, gives the lock back once all requests under way are done, and refuses all that come later. The
    /// watch ends when the last clone of the device is dropped.
    ///
    /// # Errors
    /// Those of the store.
    ///
    /// # Cancel safety
    /// The device may be closed or still open.
    pub async fn close(self) -> Result<()> {
        let _closed = self.inner.gate.close().await;
        // What keeps the times from being written, the image meets when it is closed, or it does no harm.
        self.note_times().await.ok();
        self.inner.is_lost.store(true, Ordering::Release);
        self.inner.record.lose_track();
        self.image().close().await
    }

    /// Runs `change` on the image while no request is under way, then reads the header and opens it again. For what must not
    /// meet a write: taking a snapshot, rolling back, resizing.
    ///
    /// # Errors
    /// Those of `change`, of [`Image::refresh`] and of [`Io::open_as_is`]. The image is opened again also where `change`
    /// failed.
    ///
    /// # Cancel safety
    /// Dropping the future leaves requests running on the header as it was before: refresh.
    pub async fn exclusively<T>(&self, change: impl AsyncFnOnce(&mut Image) -> Result<T>) -> Result<T> {
        self.inner.record.lose_track();
        self.reopen(async |image: &mut Image| {
            let outcome = change(image).await?;
            let_others_in(image).await?;
            Ok(outcome)
        })
        .await
    }

    /// As [`Self::exclusively`], keeping the lock.
    async fn reopen<T>(&self, change: impl AsyncFnOnce(&mut Image) -> Result<T>) -> Result<T> {
        let closed = self.inner.gate.close().await;
        self.reopen_closed(&closed, change).await
    }

    /// As [`Self::reopen`], while nobody is inside.
    async fn reopen_closed<T>(
        &self,
        closed: &Closed<'_>,
        change: impl AsyncFnOnce(&mut Image) -> Result<T>,
    ) -> Result<T> {
        let mut image = self.image();
        let outcome = change(&mut image).await;
        // What others told until now, while `change` was telling them, is in the header.
        closed.begin_reading();
        let reopened = match image.refresh().await {
            Ok(()) => Io::open_as_is(&mut image).await,
            Err(e) => Err(e),
        };
        let result = match (outcome, reopened) {
            (outcome, Ok(mut io)) => {
                io.follow(&self.io());
                *self.inner.state() = State { image, io: Arc::new(io) };
                outcome
            }
            (Err(e), Err(_)) | (Ok(_), Err(e)) => Err(e),
        };
        if result.as_ref().is_err_and(|e| e.kind() == ErrorKind::Fenced) {
            self.inner.is_lost.store(true, Ordering::Release);
        }
        result
    }

    /// Runs a read on the image as it is now.
    fn run<T, F>(&self, request: impl FnOnce(Arc<Io>) -> F + Send + 'static) -> Reply<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send,
    {
        let device = self.clone();
        Reply::pending(async move {
            let _open = device.inner.gate.enter().await;
            let io = device.io();
            device.inner.check()?;
            request(io).await
        })
    }

    /// Runs a change of a range, which is noted where somebody wants to know.
    fn run_write<F>(
        &self,
        offset: u64,
        length: u64,
        request: impl FnOnce(Arc<Io>) -> F + Send + 'static,
    ) -> Reply<()>
    where
        F: Future<Output = Result<()>> + Send,
    {
        self.inner.times.mark(Used::Written);
        let device = self.clone();
        self.run_change(move |io| {
            device.inner.record.note(offset, length);
            request(io)
        })
    }

    /// Runs a change on the image as it is now, having taken the exclusive lock.
    fn run_change<T, F>(&self, request: impl FnOnce(Arc<Io>) -> F + Send + 'static) -> Reply<T>
    where
        T: Send + Unpin + 'static,
        F: Future<Output = Result<T>> + Send,
    {
        let device = self.clone();
        Reply::pending(async move {
            let mut open = device.inner.gate.enter().await;
            for _ in 0..LOCK_ROUNDS_MAX {
                let io = device.io();
                device.inner.check()?;
                if !io.lacks_lock() {
                    return request(io).await;
                }
                drop(open);
                open = device.enter_with_lock().await?;
            }
            Err(Error::busy("the image's exclusive lock is taken away all the time"))
        })
    }
}

/// A request that is inside the gate; leaves when dropped.
#[derive(Debug)]
struct Inside(ImageDevice);

impl Inside {
    /// Goes in, if the gate is open.
    fn try_enter(device: &ImageDevice) -> Option<Self> {
        device.inner.gate.try_enter().then(|| Self(device.clone()))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.inner.gate.leave();
    }
}

/// Gives the lock back where others have the image open: one of them may have asked for it while a change was being told to
/// all, and been promised it.
async fn let_others_in(image: &Image) -> Result<()> {
    let store = &image.pool.store;
    let is_alone =
        store.capabilities().list_watchers && store.list_watchers(&image.header_object()).await?.len() <= 1;
    if is_alone { Ok(()) } else { give_back(image).await }
}

/// Makes everything durable and gives the lock back, if it is held.
async fn give_back(image: &Image) -> Result<()> {
    match &image.session {
        Some(session) if session.is_owner() => {
            image.pool.store.flush().await?;
            session.release().await
        }
        Some(_) | None => Ok(()),
    }
}

impl Inner {
    /// The state; a thread that panicked while holding it left it whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses to go on without a watch.
    fn check(&self) -> Result<()> {
        if self.is_lost.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Fenced, "the device was closed, or its watch was lost"));
        }
        Ok(())
    }
}

impl BlockDevice for ImageDevice {
    fn size(&self) -> u64 {
        self.inner.state().io.size()
    }

    fn is_read_only(&self) -> bool {
        self.inner.state().io.is_read_only()
    }

    fn read(&self, offset: u64, length: u64) -> Reply<Bytes> {
        self.inner.times.mark(Used::Read);
        // Most reads are of one object, and answered at once: those need no future.
        if let Some(inside) = Inside::try_enter(self) {
            let io = self.io();
            if let Ok(()) = self.inner.check()
                && let Some(single) = io.revision().read_single(offset, length)
            {
                return match single.reply {
                    Reply::Ready(reply) => Reply::Ready(reply.map(|r| single.extent.finish(r))),
                    Reply::Pending(reply) => Reply::pending(async move {
                        let _inside = inside;
                        single.extent.finish(reply.await)
                    }),
                };
            }
        }
        self.run(move |io| async move { io.read_bytes(offset, length).await })
    }

    fn write(&self, offset: u64, data: Bytes) -> Reply<()> {
        let length = data.len() as u64;
        self.run_write(offset, length, move |io| async move { io.write(offset, data).await })
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Reply<()> {
        self.run_write(offset, length, move |io| async move { io.write_zeroes(offset, length).await })
    }

    fn discard(&self, offset: u64, length: u64) -> Reply<()> {
        self.run_write(offset, length, move |io| async move { io.discard(offset, length).await })
    }

    fn flush(&self) -> Reply<()> {
        self.run(|io| async move { io.flush().await })
    }

    fn extents(&self, offset: u64, length: u64) -> Reply<Vec<DeviceExtent>> {
        self.run(move |io| async move { io.extents(offset, length).await })
    }
}
