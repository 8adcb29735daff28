//! Images offered over NBD by this process: opened, answered for, given back.
//!
//! Invariants
//! - An export is taken out of the list before its clients are ended, and its image is closed after the last one is gone.

mod count;

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use ferry_core::{Error, ErrorKind, Result};
use ferry_serve::export::Exports;
use ferry_serve::nbd::{Demand, Listener, Options, Peer, Plain, Security, Server, Tls};
use tokio::runtime::Handle;

use crate::api::{ExportClient, ExportLine, NbdListen, TlsFiles};
use crate::offered::{Offered, Offering, Way};
use crate::spec::ImageSpec;

/// Where a unix socket is; `None` for one without a name.
fn path_of(socket: &UnixListener) -> Option<PathBuf> {
    socket.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned))
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
        if let Err(e) = self.exports.add_shared(Arc::clone(offered.export())) {
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
        self.offered().get(name).map(|offered| offered.export().clients())
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
        self.server.end_clients(offered.export()).await;
        tracing::info!(export = name, "export removed");
        offered.close().await
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

    /// The exports of an image or of a snapshot of it.
    pub(crate) fn offerings(&self, image: &ImageSpec) -> Vec<Offering> {
        let offered = self.offered();
        let these = offered.iter().filter(|(_, o)| o.image().is_some_and(|spec| spec.image == *image));
        these.map(|(name, o)| o.offering(Way::Export(name.clone()))).collect()
    }

    /// How much clients have asked for so far.
    pub(crate) fn requests(&self) -> u64 {
        self.offered().values().map(Offered::requests).sum()
    }

    fn line(&self, offered: &Offered) -> ExportLine {
        let export = offered.export();
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
            source: offered.image().is_none().then(|| export.description().to_owned()),
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
