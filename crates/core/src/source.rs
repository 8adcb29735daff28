//! The `BlockSource` contract: the read half of anything foreign, with the points in time it holds.
//!
//! Invariants
//! - What was opened never changes: a source that notices that its bytes are not the ones that were opened fails with
//!   `Conflict`, for good. It never answers with a mixture, and never with zeros for what it could not get.
//! - A point's bytes end at its size; nothing shows behind it.

use crate::device::DeviceExtent;
use crate::env::Timestamp;
use crate::reply::Reply;
use crate::store::SparseData;

/// A point in time of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourcePoint {
    /// One of [`BlockSource::snapshots`], by its place there.
    Snapshot(usize),
    /// The newest.
    Head,
}

/// A snapshot of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSnapshot {
    /// Its name; not empty, and no other snapshot's.
    pub name: String,
    /// Size of the device then. Bytes.
    pub size: u64,
    /// When it was taken, where the source tells.
    pub taken: Option<Timestamp>,
}

/// A foreign image, open for reading only. Requests in flight at once may complete in any order.
///
/// # Cancel safety
/// Dropping a pending reply has no effect but that what was fetched may be fetched again.
pub trait BlockSource: Send + Sync + std::fmt::Debug {
    /// The snapshots, oldest first.
    fn snapshots(&self) -> &[SourceSnapshot];
    /// Size of the device at its head. Bytes.
    fn size(&self) -> u64;
    /// Reads a range that lies inside the size at that point; `Invalid` otherwise. Extents come in order, none overlapping;
    /// gaps read as zeros.
    fn read(&self, at: SourcePoint, offset: u64, length: u64) -> Reply<SparseData>;
    /// What a range holds, in order and without gaps. `Data` where that is not known.
    fn extents(&self, at: SourcePoint, offset: u64, length: u64) -> Reply<Vec<DeviceExtent>>;
    /// Where `newer` may differ from `older` in a range that lies inside the size of both: in order, none overlapping, with
    /// what `newer` holds there. It may name what is the same, never leave out what is not.
    fn changes(
        &self,
        older: SourcePoint,
        newer: SourcePoint,
        offset: u64,
        length: u64,
    ) -> Reply<Vec<DeviceExtent>>;
    /// What tells these bytes from any others the same spec could open later: size and times of a file, the tag of an object
    /// of a server. One line, no secrets. Who opens the source again compares.
    fn pin(&self) -> String;
    /// Where it is, for people. No secrets.
    fn describe(&self) -> String;
}

impl dyn BlockSource {
    /// Size of the device at a point. Bytes; 0 for a snapshot that is not there.
    #[must_use]
    pub fn size_at(&self, at: SourcePoint) -> u64 {
        match at {
            SourcePoint::Head => self.size(),
            SourcePoint::Snapshot(n) => self.snapshots().get(n).map_or(0, |s| s.size),
        }
    }
}
