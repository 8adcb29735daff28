//! What images of a migration reach into besides their own store: other stores of the home, and foreign sources.

use std::path::PathBuf;
use std::sync::Arc;

use ferry_core::{BlockSource, Error, ErrorKind, Reply, Result, Store};
use ferry_image::peers::{Peers, check_pin};

use super::{Run, Silent};
use crate::api::Cluster;
use crate::backend::{Got, IfMissing, Names, Reached, Stoppable};
use crate::cancel::Cancel;
use crate::config::Home;
use crate::host::Host;
use crate::sources;

/// The stores a home names.
#[derive(Debug)]
pub(super) struct HomePeers {
    host: Arc<Host>,
    home: Home,
    dirs: Vec<PathBuf>,
    /// Clusters, and what the home calls their pools.
    clusters: Vec<(Cluster, Names)>,
}

impl Run<'_> {
    /// The stores this home names.
    pub(super) fn peers(&self) -> Arc<HomePeers> {
        let mut dirs: Vec<PathBuf> =
            self.config.pools.keys().filter_map(|pool| self.home.store_of(&self.config, pool)).collect();
        dirs.push(self.home.default_store());
        dirs.sort();
        dirs.dedup();
        let mut clusters: Vec<Cluster> = self
            .config
            .rados_places()
            .map(|(_, place)| place.cluster())
            .chain(self.cluster.clone())
            .collect();
        clusters.dedup();
        let named = |cluster: Cluster| (cluster.clone(), self.config.names_in(&cluster));
        let clusters = clusters.into_iter().map(named).collect();
        Arc::new(HomePeers { host: Arc::clone(self.host), home: self.home.clone(), dirs, clusters })
    }
}

impl HomePeers {
    fn find(&self, identity: [u8; 16], place: &str) -> Result<Arc<dyn Store>> {
        let mut failure = None;
        let mut dirs: Vec<PathBuf> = self.dirs.clone();
        // Where it was last is looked at first.
        dirs.sort_by_key(|dir| !place.contains(&*dir.to_string_lossy()));
        for dir in dirs {
            match self.open(&dir) {
                Ok(store) if store.identity() == identity => return Ok(store),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        // A cluster that does not answer takes its time; it is asked only where it may be the one.
        let of_cluster = |place: &str| place.starts_with("ceph ");
        for (cluster, names) in self.clusters.iter().filter(|_| of_cluster(place)) {
            match self.host.stores.connect(cluster) {
                Ok(owned) if owned.store().identity() == identity => {
                    return Ok(Stoppable::over(owned.store(), Cancel::new(), names.clone()));
                }
                Ok(_) => {}
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        let lost = || Error::not_found("the store of the other end of a migration is not one of this home");
        Err(failure.unwrap_or_else(lost).with("other_end", place))
    }

    fn open(&self, dir: &std::path::Path) -> Result<Arc<dyn Store>> {
        match self.host.stores.get(dir, IfMissing::Fail, &Silent)? {
            Got::Open(store) => Ok(store.store()),
            Got::Opened(store) => {
                self.host.opened()?;
                Ok(store.store())
            }
            Got::Theirs(served) => Err(served.busy()),
        }
    }
}

impl Peers for HomePeers {
    fn store(&self, identity: [u8; 16], place: &str) -> Reply<Arc<dyn Store>> {
        let Some(cluster) = Reached::cluster_of(place) else {
            return Reply::ready(self.find(identity, place));
        };
        let (host, home) = (Arc::clone(&self.host), self.home.clone());
        Reply::pending(async move {
            let store = sources::connect(&host, &home, &cluster).await?;
            Ok(Stoppable::over(store, Cancel::new(), Names::new()))
        })
    }

    fn source(&self, spec: &str, pin: Option<&str>) -> Reply<Arc<dyn BlockSource>> {
        let (host, home) = (Arc::clone(&self.host), self.home.clone());
        let (spec, pin) = (spec.to_owned(), pin.map(str::to_owned));
        Reply::pending(async move {
            let keys = host.keys(&home)?;
            let source = host.sources.get(keys, &spec, pin.as_deref()).await?;
            check_pin(&*source, pin.as_deref())?;
            Ok(source)
        })
    }
}
