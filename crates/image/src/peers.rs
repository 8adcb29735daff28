//! How an image finds what it reads from beyond its own store: the other end of a migration.

use std::fmt;
use std::sync::Arc;

use ferry_core::{Error, Reply, Result, Store};

/// Opens stores other than the one an image is in. Whoever opens pools gives it along ([`crate::pool::Pool::with_peers`]).
pub trait Peers: Send + Sync + fmt::Debug {
    /// The store with this identity; `place` is where it was last seen ([`Store::describe`]).
    ///
    /// # Errors
    /// `NotFound` (2) where it cannot be found; those of opening it.
    fn store(&self, identity: [u8; 16], place: &str) -> Reply<Arc<dyn Store>>;
}

/// Knows no other store.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPeers;

impl Peers for NoPeers {
    fn store(&self, _identity: [u8; 16], place: &str) -> Reply<Arc<dyn Store>> {
        Reply::ready(Err(Error::not_found("the store of the other end of the migration is not known here")
            .with("store", place)))
    }
}

/// The store with `identity`, which may be `own`.
pub(crate) async fn find_store(
    own: &Arc<dyn Store>,
    peers: &dyn Peers,
    identity: [u8; 16],
    place: &str,
) -> Result<Arc<dyn Store>> {
    if own.identity() == identity {
        return Ok(Arc::clone(own));
    }
    let store = peers.store(identity, place).await?;
    if store.identity() != identity {
        return Err(Error::not_found("another store is where that of the other end of the migration was")
            .with("store", place));
    }
    Ok(store)
}
