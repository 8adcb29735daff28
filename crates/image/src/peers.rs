//! How an image finds what it reads from beyond its own store: the other end of a migration, or a foreign source.

use std::fmt;
use std::sync::Arc;

use ferry_core::source::BlockSource;
use ferry_core::{Error, ErrorKind, Reply, Result, Store};

/// Opens stores other than the one an image is in, and foreign sources. Whoever opens pools gives it along ([`crate::pool::Pool::with_peers`]).
pub trait Peers: Send + Sync + fmt::Debug {
    /// The store with this identity; `place` is where it was last seen ([`Store::describe`]).
    ///
    /// # Errors
    /// `NotFound` (2) where it cannot be found; those of opening it.
    fn store(&self, identity: [u8; 16], place: &str) -> Reply<Arc<dyn Store>>;

    /// The foreign source that the source spec of a record names. It was `pin` when it was opened first
    /// ([`BlockSource::pin`]); where that is not known, anything is accepted.
    ///
    /// # Errors
    /// `Conflict` (125) where it is another now; those of the spec and of opening it.
    fn source(&self, spec: &str, pin: Option<&str>) -> Reply<Arc<dyn BlockSource>>;
}

/// Refuses a source that is not the one whose pin was noted.
///
/// # Errors
/// `Conflict` (125).
pub fn check_pin(source: &dyn BlockSource, noted: Option<&str>) -> Result<()> {
    if noted.is_some_and(|noted| source.pin() != noted) {
        return Err(Error::new(
            ErrorKind::Conflict,
            "the source of the import has changed since it was prepared",
        )
        .with("source", source.describe()));
    }
    Ok(())
}

/// Knows no other store and no source.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPeers;

impl Peers for NoPeers {
    fn store(&self, _identity: [u8; 16], place: &str) -> Reply<Arc<dyn Store>> {
        Reply::ready(Err(Error::not_found("the store of the other end of the migration is not known here")
            .with("store", place)))
    }

    fn source(&self, _spec: &str, _pin: Option<&str>) -> Reply<Arc<dyn BlockSource>> {
        Reply::ready(Err(Error::unsupported("foreign sources cannot be opened here")))
    }
}

/// The store with `identity`, which may be `own`.
///
/// # Errors
/// As [`Peers::store`]; `NotFound` (2) where another store is in its place.
pub async fn find_store(
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
