//! Images open to be written in this process for long, each once: all that offer one, map one or copy one use the same device.
//!
//! Invariants
//! - Of an image there is one such device: two would take the exclusive lock from each other, write by write.
//! - A device answers the image's other clients (`attend`) for as long as it is open.
//! - The last one to close it flushes the image and gives it back.
//! - When it was read and written is put into its header now and then.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ferry_core::{BlockDevice, Namespace, PoolId, Result};
use ferry_image::device::ImageDevice;
use ferry_image::image::Image;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// How often it is noted when an image was used; the times in its header are good to about a minute.
const TIMES_INTERVAL: Duration = Duration::from_secs(10);

/// An image, whatever it is called now: its store, pool, namespace and id.
type Key = ([u8; 16], PoolId, Namespace, String);

/// The devices of a process.
#[derive(Debug)]
pub(crate) struct SharedDevices {
    runtime: Handle,
    open: Mutex<BTreeMap<Key, Weak<Shared>>>,
}

/// An image that is open.
#[derive(Debug)]
struct Shared {
    device: ImageDevice,
    /// Answers others, and notes when it was read and written.
    attending: JoinHandle<()>,
}

impl Shared {
    /// Flushes the image and gives it back.
    async fn end(mut self) -> Result<()> {
        let closed = self.device.clone().close().await;
        self.attending.abort();
        // Ended by the abort, or because the watch was lost before.
        (&mut self.attending).await.ok();
        closed
    }

    /// Opens an image and attends to it on the threads of `runtime`.
    async fn begin(image: Image, runtime: &Handle) -> Result<Self> {
        let (name, is_watched) = (image.name.clone(), image.session.is_some());
        let device = ImageDevice::open(image).await?;
        let attended = device.clone();
        let attending = runtime.spawn(async move {
            tokio::select! {
                outcome = attended.attend(), if is_watched => if let Err(e) = outcome {
                    tracing::error!(image = name, error = %e.chain(), "image is cut off: its watch is lost");
                },
                () = note_times(&attended, &name) => {}
            }
        });
        Ok(Self { device, attending })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.attending.abort();
    }
}

/// Notes now and then when an image was read and written, for ever.
async fn note_times(device: &ImageDevice, image: &str) {
    loop {
        tokio::time::sleep(TIMES_INTERVAL).await;
        if let Err(e) = device.note_times().await {
            tracing::debug!(image, error = %e.chain(), "cannot note when the image was used");
        }
    }
}

/// A hold on an image that is open.
#[derive(Debug)]
pub(crate) struct OpenDevice {
    shared: Arc<Shared>,
}

impl OpenDevice {
    /// The device.
    pub(crate) fn device(&self) -> &ImageDevice {
        &self.shared.device
    }

    /// Whether others hold it, too.
    pub(crate) fn has_others(&self) -> bool {
        self.holders() > 1
    }

    /// How many hold it.
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.shared)
    }

    /// Makes everything durable; the last one gives the image back.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn close(self) -> Result<()> {
        match Arc::try_unwrap(self.shared) {
            Ok(shared) => shared.end().await,
            Err(shared) if shared.device.is_read_only() => Ok(()),
            Err(shared) => {
                let flushed = shared.device.flush().await;
                // The others may have gone meanwhile.
                match Arc::into_inner(shared) {
                    Some(shared) => shared.end().await.and(flushed),
                    None => flushed,
                }
            }
        }
    }
}

impl SharedDevices {
    /// None yet; those that come answer others on the threads of `runtime`.
    pub(crate) fn new(runtime: &Handle) -> Self {
        Self { runtime: runtime.clone(), open: Mutex::default() }
    }

    /// The threads they work on.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// The device of an image. One opened to be written is given back at once where it is open already.
    ///
    /// # Errors
    /// Those of opening it for input and output.
    pub(crate) async fn open(&self, image: Image) -> Result<OpenDevice> {
        if image.session.is_none() {
            let shared = Shared::begin(image, &self.runtime).await?;
            return Ok(OpenDevice { shared: Arc::new(shared) });
        }
        let key =
            (image.pool.store.identity(), image.pool.id(), image.pool.namespace.clone(), image.id.clone());
        let open = find(&self.table(), &key);
        if let Some(open) = open {
            image.close().await?;
            return Ok(open);
        }
        let made = Shared::begin(image, &self.runtime).await?;
        let faster = {
            let mut table = self.table();
            match find(&table, &key) {
                Some(open) => open,
                None => {
                    let shared = Arc::new(made);
                    table.retain(|_, open| open.strong_count() > 0);
                    table.insert(key, Arc::downgrade(&shared));
                    return Ok(OpenDevice { shared });
                }
            }
        };
        made.end().await?;
        Ok(faster)
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<Key, Weak<Shared>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One that is open and works.
fn find(table: &BTreeMap<Key, Weak<Shared>>, key: &Key) -> Option<OpenDevice> {
    let shared = table.get(key)?.upgrade()?;
    (!shared.device.is_lost()).then_some(OpenDevice { shared })
}
