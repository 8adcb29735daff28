//! Named answers about ranges of an export, beside whether they are allocated.

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
