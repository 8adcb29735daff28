//! An image that is offered, over NBD or as a device of the kernel, and how another takes its place while its clients wait.

mod changes;
mod source;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ferry_core::{BlockDevice, BlockSource, DeviceExtent, Error, ErrorKind, Reply, Result};
use ferry_image::image::Image;
use ferry_serve::export::{Attendance, Export, Paused};
use ferry_serve::traffic::SORTS;

use crate::shared::{OpenDevice, SharedDevices};
use crate::spec::SnapSpec;
use changes::Changes;

/// An image that is offered.
#[derive(Debug)]
pub(crate) struct Offered {
    export: Arc<Export>,
    is_read_only: bool,
    below: Arc<Below>,
}

/// The image below an export; another one after a switch.
#[derive(Debug)]
struct Below {
    devices: Arc<SharedDevices>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` for a foreign source.
    image: Option<SnapSpec>,
    /// `None` while it is switched, and once it is closed.
    open: Option<OpenDevice>,
    /// Whether the exclusive lock is taken ahead of the first write.
    keeps_lock: bool,
}

impl Below {
    /// The image as last read; `None` while there is none.
    fn image(&self) -> Option<Image> {
        self.state().open.as_ref().map(|open| open.device().image())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attendance for Below {
    fn attached(&self) {}

    /// Gives the lock of an image back when its last client is gone, so that others need not ask for it.
    fn left(&self) {
        let state = self.state();
        let idle = |open: &&OpenDevice| !open.has_others() && !state.keeps_lock;
        let Some(open) = state.open.as_ref().filter(idle) else { return };
        let device = open.device().clone();
        self.devices.runtime().spawn(async move {
            if let Err(e) = device.release().await {
                tracing::warn!(error = %e.chain(), "the lock of an image without clients is not given back");
            }
        });
    }
}

impl Offered {
    /// Offers `image` under `name`.
    ///
    /// # Errors
    /// Those of opening it for input and output.
    pub(crate) async fn open(
        devices: &Arc<SharedDevices>,
        spec: &SnapSpec,
        image: Image,
        name: &str,
        is_read_only: bool,
    ) -> Result<Self> {
        let open = devices.open(image).await?;
        let device = Arc::new(open.device().clone());
        let state = Mutex::new(State { image: Some(spec.clone()), open: Some(open), keeps_lock: false });
        let below = Arc::new(Below { devices: Arc::clone(devices), state });
        let attendance = Arc::<Below>::clone(&below);
        let export = Export::new(name, spec.to_string(), device, is_read_only)
            .attended_by(attendance)
            .answering(Arc::new(Changes(Arc::clone(&below))));
        Ok(Self { export: Arc::new(export), is_read_only, below })
    }

    /// Offers a foreign source under `name`, to be read only.
    pub(crate) fn of_source(devices: &Arc<SharedDevices>, source: Arc<dyn BlockSource>, name: &str) -> Self {
        let state = Mutex::new(State { image: None, open: None, keeps_lock: false });
        let below = Arc::new(Below { devices: Arc::clone(devices), state });
        let (description, device) = (source.describe(), Arc::new(source::SourceDevice(source)));
        Self { export: Arc::new(Export::new(name, description, device, true)), is_read_only: true, below }
    }

    /// What clients attach to.
    pub(crate) fn export(&self) -> &Arc<Export> {
        &self.export
    }

    /// Takes the image's exclusive lock ahead of the first write, also after a switch.
    ///
    /// # Errors
    /// Those of [`ferry_image::device::ImageDevice::acquire`].
    pub(crate) async fn acquire(&self) -> Result<()> {
        let device = {
            let mut state = self.below.state();
            state.keeps_lock = true;
            state.open.as_ref().map(|open| open.device().clone())
        };
        match device {
            Some(device) => device.acquire().await,
            None => Ok(()),
        }
    }

    /// Flushes the image and gives it back. Its clients are gone.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn close(self) -> Result<()> {
        let open = self.below.state().open.take();
        match open {
            Some(open) => open.close().await,
            None => Ok(()),
        }
    }

    /// The image it offers now; while it is switched, the one before; `None` for a foreign source.
    pub(crate) fn image(&self) -> Option<SnapSpec> {
        self.below.state().image.clone()
    }

    /// How many requests were answered so far.
    pub(crate) fn requests(&self) -> u64 {
        SORTS.iter().map(|sort| self.export.traffic().requests(*sort)).sum()
    }

    /// What is needed to switch it; `way` is how it is offered.
    pub(crate) fn offering(&self, way: Way) -> Offering {
        let (export, below) = (Arc::clone(&self.export), Arc::clone(&self.below));
        Offering { export, below, is_read_only: self.is_read_only, way }
    }
}

/// How an image is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Over NBD, by this name.
    Export(String),
    /// As a device of the kernel.
    Device(PathBuf),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Export(name) => write!(f, "export {name}"),
            Self::Device(path) => write!(f, "device {}", path.display()),
        }
    }
}

/// An image that is offered, to be switched.
#[derive(Debug)]
pub(crate) struct Offering {
    export: Arc<Export>,
    below: Arc<Below>,
    is_read_only: bool,
    way: Way,
}

impl Offering {
    /// Whether it refuses writes.
    pub(crate) fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// Makes durable what was written.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn flush(&self) -> Result<()> {
        let device = self.below.state().open.as_ref().map(|open| open.device().clone());
        match device.filter(|_| !self.is_read_only) {
            Some(device) => device.flush().await,
            None => Ok(()),
        }
    }
}

/// Takes the image away from all that offer it, to be given another with [`Taken::go_on`]. Their clients wait from now on. `quiet`
/// is done before the image is closed, when no request is under way any more.
///
/// # Errors
/// `TimedOut` (110) where requests under way take until `limit` is over; those of `quiet` and of closing the image. All go on then
/// with what they had, or, where the image could not be closed, with errors.
pub(crate) async fn take<Q>(
    offerings: Vec<Offering>,
    limit: Duration,
    quiet: impl AsyncFnOnce() -> Result<Q>,
) -> Result<(Vec<Taken>, Q)> {
    let began = Instant::now();
    let mut paused = Vec::new();
    for offering in offerings {
        paused.push((offering.export.pause(limit.saturating_sub(began.elapsed())).await?, offering));
    }
    let prepared = quiet().await?;
    let mut taken = Vec::new();
    for (paused, Offering { below, is_read_only, way, .. }) in paused {
        let (open, image) = {
            let mut state = below.state();
            let (Some(open), Some(image)) = (state.open.take(), state.image.clone()) else { continue };
            (open, image)
        };
        // The export's own hold on the device goes too: what holds it holds the image's watch.
        paused.replace(Arc::new(Nothing(paused.export().size())))?;
        open.close().await?;
        taken.push(Taken { paused, below, is_read_only, way, image });
    }
    Ok((taken, prepared))
}

/// An export whose clients wait while the image below it is another process's, or nobody's.
#[derive(Debug)]
pub(crate) struct Taken {
    paused: Paused,
    below: Arc<Below>,
    is_read_only: bool,
    way: Way,
    image: SnapSpec,
}

impl Taken {
    /// What it offered.
    pub(crate) fn image(&self) -> &SnapSpec {
        &self.image
    }

    /// How it is offered.
    pub(crate) fn way(&self) -> &Way {
        &self.way
    }

    /// Whether it refuses writes.
    pub(crate) fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// Lets clients go on with `image`; how long they waited.
    ///
    /// # Errors
    /// Those of opening it; clients then get errors until the export is removed or switched again.
    pub(crate) async fn go_on(self, spec: &SnapSpec, image: Image) -> Result<Duration> {
        let open = self.below.devices.open(image).await?;
        let keeps_lock = {
            let mut state = self.below.state();
            state.image = Some(spec.clone());
            state.keeps_lock
        };
        let taken = if keeps_lock { open.device().acquire().await } else { Ok(()) };
        if let Err(e) = taken {
            // The next write tries again.
            tracing::warn!(image = %spec, error = %e.chain(), "the lock is not taken ahead");
        }
        self.paused.replace(Arc::new(open.device().clone()))?;
        self.below.state().open = Some(open);
        Ok(self.paused.waited())
    }
}

/// A device that is no more: every request fails.
#[derive(Debug)]
struct Nothing(u64);

impl Nothing {
    fn refuse<T>() -> Reply<T> {
        Reply::ready(Err(Error::new(ErrorKind::Fenced, "the image below the export was taken away")))
    }
}

impl BlockDevice for Nothing {
    fn size(&self) -> u64 {
        self.0
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, _: u64, _: u64) -> Reply<Bytes> {
        Self::refuse()
    }

    fn write(&self, _: u64, _: Bytes) -> Reply<()> {
        Self::refuse()
    }

    fn write_zeroes(&self, _: u64, _: u64) -> Reply<()> {
        Self::refuse()
    }

    fn discard(&self, _: u64, _: u64) -> Reply<()> {
        Self::refuse()
    }

    fn flush(&self) -> Reply<()> {
        Self::refuse()
    }

    fn extents(&self, _: u64, _: u64) -> Reply<Vec<DeviceExtent>> {
        Self::refuse()
    }
}
