//! Named answers about ranges of an export, beside whether they are allocated.

use std::sync::Arc;

use ferry_core::Reply;

/// A part of a range, and what a context says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Length. Bytes, not zero.
    pub length: u64,
    /// What it means is the context's own.
    pub flags: u32,
}

/// A meta context of NBD: says something about each byte of an export, such as whether it changed since a snapshot.
pub trait MetaContext: Send + Sync + std::fmt::Debug {
    /// `namespace:leaf`.
    fn name(&self) -> &str;
    /// Says it for a range that lies inside the export: in order, without gaps, to its end.
    fn status(&self, offset: u64, length: u64) -> Reply<Vec<Status>>;
}

/// The contexts of an export, asked for whenever a client wants to know them: they come and go.
pub trait MetaContexts: Send + Sync + std::fmt::Debug {
    /// Those there are now.
    fn list(&self) -> Vec<Arc<dyn MetaContext>>;
}

impl MetaContexts for Vec<Arc<dyn MetaContext>> {
    fn list(&self) -> Vec<Arc<dyn MetaContext>> {
        self.clone()
    }
}
