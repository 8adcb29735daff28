//! An image as a block device.
//!
//! - Requests run on the header as last read. [`ImageDevice::refresh`] waits until the requests under way are done, reads the
//!   header and the object map again, and lets the next ones go on with those: so once it returns, nothing is written under
//!   an older snapshot context.
//! - Requests that come while a refresh waits wait for it.

mod gate;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use ferry_core::{BlockDevice, DeviceExtent, Reply, Result};

use self::gate::Gate;
use crate::image::Image;
use crate::io::Io;

/// An open image that offers itself as a device. Cheap to clone; all clones are the same device.
#[derive(Clone, Debug)]
pub struct ImageDevice {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Held by requests while they run; closed while the image is opened again.
    gate: Gate,
    state: Mutex<State>,
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
        let io = Arc::new(Io::open(&mut image).await?);
        let state = Mutex::new(State { image, io });
        Ok(Self { inner: Arc::new(Inner { gate: Gate::default(), state }) })
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
        self.exclusively(async |image: &mut Image| image.refresh().await).await
    }

    /// Runs `change` on the image while no request is under way, and opens it again as `change` left it. For what must not
    /// meet a write: taking a snapshot, rolling back, resizing.
    ///
    /// # Errors
    /// Those of `change` and of [`Io::open`]. The image is opened again also where `change` failed.
    ///
    /// # Cancel safety
    /// Dropping the future leaves requests running on the header as it was before: refresh.
    pub async fn exclusively<T>(&self, change: impl AsyncFnOnce(&mut Image) -> Result<T>) -> Result<T> {
        let _closed = self.inner.gate.close().await;
        let mut image = self.image();
        let outcome = change(&mut image).await;
        let reopened = Io::open(&mut image).await;
        if let Ok(io) = reopened {
            *self.inner.state() = State { image, io: Arc::new(io) };
            return outcome;
        }
        outcome.and(reopened.map(|_| ()))?;
        unreachable!("one of the two failed")
    }

    /// Runs a request on the image as it is now.
    fn run<T, F>(&self, request: impl FnOnce(Arc<Io>) -> F + Send + 'static) -> Reply<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send,
    {
        let inner = Arc::clone(&self.inner);
        Reply::pending(async move {
            let _open = inner.gate.enter().await;
            let io = Arc::clone(&inner.state().io);
            request(io).await
        })
    }
}

impl Inner {
    /// The state; a thread that panicked while holding it left it whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.run(move |io| async move { io.read_bytes(offset, length).await })
    }

    fn write(&self, offset: u64, data: Bytes) -> Reply<()> {
        self.run(move |io| async move { io.write(offset, data).await })
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Reply<()> {
        self.run(move |io| async move { io.write_zeroes(offset, length).await })
    }

    fn discard(&self, offset: u64, length: u64) -> Reply<()> {
        self.run(move |io| async move { io.discard(offset, length).await })
    }

    fn flush(&self) -> Reply<()> {
        self.run(|io| async move { io.flush().await })
    }

    fn extents(&self, offset: u64, length: u64) -> Reply<Vec<DeviceExtent>> {
        self.run(move |io| async move { io.extents(offset, length).await })
    }
}
