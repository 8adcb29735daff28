//! Ceph clusters as stores. Each process is a client of its own, and the cluster mediates: nobody owns it.

use std::sync::Arc;

use ferry_core::{Error, ErrorKind, Result, Store};
use ferry_rados::{Options, RadosStore};

use super::OwnedStore;
use crate::api::{CheckReport, Cluster};

/// Connects to a cluster.
pub(super) fn connect(cluster: &Cluster) -> Result<Arc<dyn OwnedStore>> {
    let options = Options {
        config_file: cluster.conf.clone(),
        user: cluster.user.clone(),
        settings: cluster.settings.clone(),
    };
    Ok(Arc::new(Connected(RadosStore::connect(&options)?)))
}

/// A connection.
#[derive(Debug)]
struct Connected(Arc<RadosStore>);

impl OwnedStore for Connected {
    fn store(&self) -> Arc<dyn Store> {
        Arc::<RadosStore>::clone(&self.0)
    }

    fn check(&self) -> Result<CheckReport> {
        Err(Error::unsupported(
            "a cluster is not checked from here: Ceph scrubs its placement groups by itself",
        ))
    }

    fn kept_value(&self, key: &str) -> Result<Option<String>> {
        match self.0.kept_value(key) {
            Ok(value) => Ok(Some(value)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}
