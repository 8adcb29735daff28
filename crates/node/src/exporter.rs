//! Images offered over NBD by this process: opened, answered for, given back.
//!
//! Invariants
//! - An image that is offered answers its other clients (`attend`) for as long as it is open.
//! - An export is taken out of the list before its clients are ended, and its image is closed after the last one is gone.

mod changes;
mod count;
mod source;

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use ferry_core::{BlockDevice, BlockSource, DeviceExtent, Error, ErrorKind, Reply, Result};
use ferry_image::device::ImageDevice;
use ferry_image::image::Image;
use ferry_serve::export::{Attendance, Export, Exports, Paused};
use ferry_serve::nbd::{Demand, Listener, Options, Peer, Plain, Security, Server, Tls};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::api::{ExportClient, ExportLine, NbdListen, TlsFiles};
use crate::spec::{ImageSpec, SnapSpec};
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
    runtime: Handle,
    open: Mutex<Option<Open>>,
}

/// An image that is open.
#[derive(Debug)]
struct Open {
    image: SnapSpec,
    device: ImageDevice,
    attending: Option<JoinHandle<()>>,
}

impl Open {
    async fn new(runtime: &Handle, spec: &SnapSpec, image: Image) -> Result<Self> {
        let watches = image.session.is_some();
        let device = ImageDevice::open(image).await?;
        let attending = watches.then(|| {
            let (device, image) = (device.clone(), spec.to_string());
            runtime.spawn(async move {
                if let Err(e) = device.attend().await {
                    tracing::error!(image, error = %e.chain(), "image is cut off: its watch is lost");
                }
            })
        });
        Ok(Self { image: spec.clone(), device, attending })
    }

    /// Flushes the image and gives it back. Nobody uses it any more.
    async fn close(self) -> Result<()> {
        let closed = self.device.close().await;
        if let Some(attending) = self.attending {
            attending.abort();
            // Ended by the abort, or because the watch was lost before.
            attending.await.ok();
        }
        closed
    }
}

/// Where a unix socket is; `None` for one without a name.
fn path_of(socket: &UnixListener) -> Option<PathBuf> {
    socket.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned))
}

impl Below {
    /// The image as last read; `None` while there is none.
    fn image(&self) -> Option<Image> {
        self.open().as_ref().map(|open| open.device.image())
    }

    fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attendance for Below {
    fn attached(&self) {}

    /// Gives the lock of an image back when its last client is gone, so that others need not ask for it.
    fn left(&self) {
        let Some(device) = self.open().as_ref().map(|open| open.device.clone()) else { return };
        self.runtime.spawn(async move {
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
        runtime: &Handle,
        spec: &SnapSpec,
        image: Image,
        name: &str,
        is_read_only: bool,
    ) -> Result<Self> {
        let open = Open::new(runtime, spec, image).await?;
        let device = Arc::new(open.device.clone());
        let below = Arc::new(Below { runtime: runtime.clone(), open: Mutex::new(Some(open)) });
        let attendance = Arc::<Below>::clone(&below);
        let export = Export::new(name, spec.to_string(), device, is_read_only)
            .attended_by(attendance)
            .answering(Arc::new(Changes(Arc::clone(&below))));
        Ok(Self { export: Arc::new(export), is_read_only, below })
    }

    /// Offers a foreign source under `name`, to be read only.
    pub(crate) fn of_source(runtime: &Handle, source: Arc<dyn BlockSource>, name: &str) -> Self {
        let below = Arc::new(Below { runtime: runtime.clone(), open: Mutex::new(None) });
        let (description, device) = (source.describe(), Arc::new(source::SourceDevice(source)));
        Self { export: Arc::new(Export::new(name, description, device, true)), is_read_only: true, below }
    }

    /// What clients attach to.
    pub(crate) fn export(&self) -> &Arc<Export> {
        &self.export
    }

    /// Takes the image's exclusive lock ahead of the first write.
    ///
    /// # Errors
    /// Those of [`ImageDevice::acquire`].
    pub(crate) async fn acquire(&self) -> Result<()> {
        let device = self.below.open().as_ref().map(|open| open.device.clone());
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
        let open = self.below.open().take();
        match open {
            Some(open) => open.close().await,
            None => Ok(()),
        }
    }

    /// The image it offers now.
    fn image(&self) -> Option<SnapSpec> {
        self.below.open().as_ref().map(|open| open.image.clone())
    }
}

/// An export whose clients wait while the image below it is another process's, or nobody's.
#[derive(Debug)]
pub(crate) struct Taken {
    paused: Paused,
    below: Arc<Below>,
    is_read_only: bool,
    image: SnapSpec,
}

impl Taken {
    /// What it offered.
    pub(crate) fn image(&self) -> &SnapSpec {
        &self.image
    }

    /// The export's name.
    pub(crate) fn name(&self) -> &str {
        self.paused.export().name()
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
        let open = Open::new(&self.below.runtime, spec, image).await?;
        self.paused.replace(Arc::new(open.device.clone()))?;
        *self.below.open() = Some(open);
        Ok(self.paused.waited())
    }
}

/// Exports and the server for them.
#[derive(Debug)]
pub(crate) struct Exporter {
    runtime: Handle,
    exports: Arc<Exports>,
    server: Arc<Server>,
    offered: Mutex<BTreeMap<String, Offered>>,
    /// Where clients come in, as URIs say it, to which a name is added.
    places: Mutex<Vec<Place>>,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Unix(PathBuf),
    Tcp { address: std::net::SocketAddr, is_encrypted: bool },
}

impl Exporter {
    /// Exports nothing yet, and lets nobody in yet.
    pub(crate) fn new(runtime: &Handle, listen: &NbdListen) -> Self {
        let exports = Arc::new(Exports::default());
        let plain = if listen.plain_anywhere { Plain::Anywhere } else { Plain::Loopback };
        let options = Options { plain, ..Options::default() };
        let server = Server::new(Arc::clone(&exports), options, runtime.clone());
        let (offered, places) = (Mutex::default(), Mutex::default());
        Self { runtime: runtime.clone(), exports, server, offered, places }
    }

    /// The threads it works on.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Lets clients in, through sockets of its own and those it is given.
    ///
    /// # Errors
    /// `Busy` (16) where somebody listens there; `Denied` (13) for TCP without TLS that others than this machine reach; those of
    /// the files that TLS needs.
    pub(crate) fn listen(&self, listen: &NbdListen, given: Vec<Listener>) -> Result<()> {
        let tls = match &listen.tls {
            None => None,
            Some(TlsFiles::Certificates(dir)) => Some(Arc::new(Tls::from_directory(dir)?)),
            Some(TlsFiles::SharedKeys(file)) => Some(Arc::new(Tls::from_key_file(file)?)),
        };
        let security = |demand| tls.clone().map_or(Security::Plain, |tls| Security::Tls(tls, demand));
        if let Some(path) = &listen.socket {
            self.server.listen_unix(path, security(Demand::Allowed))?;
            self.places().push(Place::Unix(path.clone()));
        }
        if let Some(address) = listen.address {
            let demand = if listen.tls_optional { Demand::Allowed } else { Demand::Required };
            let address = self.server.listen_tcp(address, security(demand))?;
            self.places().push(Place::Tcp { address, is_encrypted: tls.is_some() });
        }
        for listener in given {
            let (place, demand) = match &listener {
                Listener::Unix(unix) => (path_of(unix).map(Place::Unix), Demand::Allowed),
                Listener::Tcp(tcp) => {
                    let demand = if listen.tls_optional { Demand::Allowed } else { Demand::Required };
                    let address = tcp.local_addr().map_err(|e| Error::io("a socket has no address", e))?;
                    (Some(Place::Tcp { address, is_encrypted: tls.is_some() }), demand)
                }
            };
            self.server.listen_on(listener, security(demand))?;
            self.places().extend(place);
        }
        Ok(())
    }

    /// Offers an image.
    ///
    /// # Errors
    /// `Exists` (17) where the name is taken; the image is given back then.
    pub(crate) async fn add(&self, offered: Offered) -> Result<ExportLine> {
        if let Err(e) = self.exports.add_shared(Arc::clone(&offered.export)) {
            offered.close().await?;
            return Err(e);
        }
        let line = self.line(&offered);
        tracing::info!(export = line.name, image = line.image, "export added");
        self.offered().insert(line.name.clone(), offered);
        Ok(line)
    }

    /// Whether somebody is attached to an export; `None` where there is none of that name.
    pub(crate) fn clients_of(&self, name: &str) -> Option<usize> {
        self.offered().get(name).map(|offered| offered.export.clients())
    }

    /// Offers an image no more: ends its clients and gives it back.
    ///
    /// # Errors
    /// `NotFound` (2); those of the store.
    pub(crate) async fn remove(self: &Arc<Self>, name: &str) -> Result<()> {
        let (exporter, name) = (Arc::clone(self), name.to_owned());
        on(&self.runtime, async move { exporter.remove_now(&name).await }).await
    }

    async fn remove_now(&self, name: &str) -> Result<()> {
        let offered = self.offered().remove(name);
        let offered =
            offered.ok_or_else(|| Error::not_found("there is no such export").with("export", name))?;
        self.exports.remove(name);
        self.server.end_clients(&offered.export).await;
        tracing::info!(export = name, "export removed");
        offered.close().await
    }

    /// The device of an image that is offered to be written.
    pub(crate) fn device_of(&self, image: &ImageSpec) -> Option<ImageDevice> {
        let offered = self.offered();
        let mut devices = offered.values().filter(|o| !o.is_read_only).filter_map(|o| {
            let open = o.below.open();
            let open =
                open.as_ref().filter(|open| open.image.image == *image && open.image.snap.is_none())?;
            Some(open.device.clone())
        });
        devices.next()
    }

    /// All of them, by name.
    pub(crate) fn list(&self) -> Vec<ExportLine> {
        self.offered().values().map(|offered| self.line(offered)).collect()
    }

    /// Listens no more, ends all clients and gives all images back.
    ///
    /// # Errors
    /// The first there is; all are tried.
    pub(crate) async fn stop(self: &Arc<Self>) -> Result<()> {
        let exporter = Arc::clone(self);
        on(&self.runtime, async move { exporter.stop_now().await }).await
    }

    async fn stop_now(&self) -> Result<()> {
        let mut outcome = self.server.stop().await;
        let offered = std::mem::take(&mut *self.offered());
        for (name, offered) in offered {
            self.exports.remove(&name);
            outcome = outcome.and(offered.close().await);
        }
        outcome
    }

    /// Takes an image away from all exports that offer it or a snapshot of it, to be given another with [`Taken::go_on`]. Their
    /// clients wait from now on.
    ///
    /// # Errors
    /// `TimedOut` (110) where requests under way take longer than `limit`; those of closing the image. All exports go on then
    /// with what they had, or, where the image could not be closed, with errors.
    pub(crate) async fn take(&self, image: &ImageSpec, limit: Duration) -> Result<Vec<Taken>> {
        let offering: Vec<_> = {
            let offered = self.offered();
            let same = |o: &&Offered| o.image().is_some_and(|spec| spec.image == *image);
            let these = offered.values().filter(same);
            these.map(|o| (Arc::clone(&o.export), Arc::clone(&o.below), o.is_read_only)).collect()
        };
        let mut paused = Vec::new();
        for (export, below, is_read_only) in offering {
            paused.push((export.pause(limit).await?, below, is_read_only));
        }
        let mut taken = Vec::new();
        for (paused, below, is_read_only) in paused {
            let Some(open) = below.open().take() else { continue };
            let image = open.image.clone();
            // The export's own hold on the device goes too: what holds it holds the image's watch.
            paused.replace(Arc::new(Nothing(paused.export().size())))?;
            open.close().await?;
            taken.push(Taken { paused, below, is_read_only, image });
        }
        Ok(taken)
    }

    fn line(&self, offered: &Offered) -> ExportLine {
        let export = &offered.export;
        let clients = self
            .server
            .list_clients()
            .into_iter()
            .filter(|client| client.export.as_ref().is_some_and(|e| Arc::ptr_eq(e, export)));
        let clients = clients.map(|client| ExportClient {
            peer: peer(&client.peer),
            since: client.since.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            is_encrypted: client.is_encrypted,
        });
        ExportLine {
            name: export.name().to_owned(),
            image: offered.image().map_or_else(String::new, |spec| spec.to_string()),
            is_read_only: export.is_read_only(),
            size: export.size(),
            clients: clients.collect(),
            uris: self.places().iter().map(|place| place.uri(export.name())).collect(),
        }
    }

    fn offered(&self) -> MutexGuard<'_, BTreeMap<String, Offered>> {
        self.offered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn places(&self) -> MutexGuard<'_, Vec<Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Runs `work` on the threads of `runtime`, whose clock it needs.
async fn on(runtime: &Handle, work: impl Future<Output = Result<()>> + Send + 'static) -> Result<()> {
    let done = runtime.spawn(work).await;
    done.unwrap_or_else(|e| Err(Error::new(ErrorKind::Internal, "work on an export broke off").because(e)))
}

/// Where a client comes from, for people.
fn peer(peer: &Peer) -> String {
    peer.to_string()
}

impl Place {
    /// What a client is told to connect to for an export.
    fn uri(&self, name: &str) -> String {
        let name = escaped(name, "-._~/");
        match self {
            Self::Unix(path) => {
                format!("nbd+unix:///{name}?socket={}", escaped(&path.to_string_lossy(), "-._~/"))
            }
            Self::Tcp { address, is_encrypted: false } => format!("nbd://{address}/{name}"),
            Self::Tcp { address, is_encrypted: true } => format!("nbds://{address}/{name}"),
        }
    }
}

/// A text as it stands in a URI.
fn escaped(text: &str, plain: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || plain.contains(c) {
            out.push(c);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::Place;

    #[test]
    fn a_uri_says_where_and_what_in_characters_of_uris() {
        let place = Place::Unix("/run/a b/nbd.sock".into());
        assert_eq!(place.uri("rbd/vm@1"), "nbd+unix:///rbd/vm%401?socket=/run/a%20b/nbd.sock");
        let place = Place::Tcp { address: "127.0.0.1:10809".parse().unwrap(), is_encrypted: true };
        assert_eq!(place.uri("a"), "nbds://127.0.0.1:10809/a");
    }
}
