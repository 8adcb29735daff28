//! Decompressed clusters of which only a part was wanted: the next read usually wants the rest.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::limits::UNPACKED_MAX;

/// The clusters used last, newest last, by where they begin in the file.
#[derive(Debug, Default)]
pub(crate) struct Unpacked(Mutex<Vec<(u64, Bytes)>>);

impl Unpacked {
    /// The cluster that begins at `host` of the file.
    pub(super) fn get(&self, host: u64) -> Option<Bytes> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(key, _)| *key == host)?;
        let found = kept.remove(at);
        let cluster = found.1.clone();
        kept.push(found);
        Some(cluster)
    }

    /// Keeps a cluster, and forgets what was not used for longest.
    pub(super) fn put(&self, host: u64, cluster: Bytes) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(key, _)| *key != host);
        kept.push((host, cluster));
        let mut total: usize = kept.iter().map(|(_, cluster)| cluster.len()).sum();
        while total > UNPACKED_MAX {
            total -= kept.remove(0).1.len();
        }
    }
}
