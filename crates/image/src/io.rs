//! Reading and writing an open image.
//!
//! - A write goes to each object it touches as one atomic op; several objects are written at once, in any order.
//! - An object of a clone that does not exist yet is made by a copy-up (see [`crate::copyup`]).
//! - Discarding a whole object removes it, except below the overlap: there an empty object stays, so that the parent does not
//!   show through again.
//! - With a valid object map, the map says `Exists` before an object is written and `Absent` only after it is gone.

mod open;
#[cfg(test)]
mod tests;
mod write;

use std::sync::Arc;

use bytes::Bytes;
use ferry_core::{
    DeviceExtent, Error, ErrorKind, ExtentState, ObjectId, ReadOp, Result, SnapContext, SnapId, SparseData,
    Stamp,
};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::copyup::inside::Inside;
use crate::history::History;
use crate::layout::ObjectExtent;
use crate::limits::OBJECTS_IN_FLIGHT;
use crate::live_map::LiveMap;
use crate::revision::{Detail, Revision};

pub use open::{layout_of, open_origin, open_revision};

/// A snapshot that shows a part of the parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapLink {
    /// Which.
    pub snap: SnapId,
    /// Bytes of the parent it shows.
    pub overlap: u64,
    /// Its object map, where that is valid.
    pub map_object: Option<ObjectId>,
}

/// An image opened for input and output, as its header was at that moment. After a change of the header another one takes
/// its place.
#[derive(Clone, Debug)]
pub struct Io {
    revision: Arc<Revision>,
    context: SnapContext,
    links: Arc<[SnapLink]>,
    is_deep: bool,
    has_fast_diff: bool,
    map: Option<Arc<LiveMap>>,
    read_only: bool,
    /// What a migration still has to fill in, where this is its target.
    history: Option<Arc<History>>,
    /// What is left on objects that are copied.
    copy_stamp: Option<Stamp>,
    /// Which objects the store is asked to copy.
    inside: Arc<Inside>,
    /// Whether the image has an exclusive lock that was not held when this was opened: there is no map then, and no writing.
    lacks_lock: bool,
}

impl Io {
    /// What is read.
    #[must_use]
    pub fn revision(&self) -> &Revision {
        &self.revision
    }

    /// What is read, to be kept.
    #[must_use]
    pub fn shared_revision(&self) -> Arc<Revision> {
        Arc::clone(&self.revision)
    }

    /// Which objects the store is asked to copy.
    pub(crate) fn inside(&self) -> &Inside {
        &self.inside
    }

    /// What writes preserve.
    #[must_use]
    pub fn context(&self) -> &SnapContext {
        &self.context
    }

    /// The snapshots that show a part of the parent, oldest first.
    #[must_use]
    pub fn links(&self) -> &[SnapLink] {
        &self.links
    }

    /// Whether flattening frees the snapshots from the parent too.
    #[must_use]
    pub fn is_deep(&self) -> bool {
        self.is_deep
    }

    /// Whether the object map tells what changed since the last snapshot.
    #[must_use]
    pub fn has_fast_diff(&self) -> bool {
        self.has_fast_diff
    }

    /// The object map, where the image has a valid one and is open for writing.
    #[must_use]
    pub fn map(&self) -> Option<&Arc<LiveMap>> {
        self.map.as_ref()
    }

    /// What a migration still has to fill in, where this is its target.
    #[must_use]
    pub fn history(&self) -> Option<&Arc<History>> {
        self.history.as_ref()
    }

    /// What is left on objects of the target of a migration that are copied; `None` where none was agreed on at prepare.
    pub(crate) fn copy_stamp(&self) -> Option<Stamp> {
        self.copy_stamp
    }

    /// Goes on with what an earlier state of the same image kept in memory.
    pub(crate) fn follow(&mut self, earlier: &Self) {
        if let (Some(history), Some(earlier)) = (&mut self.history, &earlier.history) {
            Arc::make_mut(history).follow(earlier);
        }
        self.inside = Arc::clone(&earlier.inside);
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether the exclusive lock must be taken, and the image opened again, before it is written.
    #[must_use]
    pub fn lacks_lock(&self) -> bool {
        self.lacks_lock
    }

    /// Size. Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.revision.size
    }

    /// The extents of a range that hold bytes; gaps read as zeros.
    ///
    /// # Errors
    /// `Invalid` (22) outside the image; those of the store.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn read(&self, offset: u64, length: u64) -> Result<SparseData> {
        self.revision.read(offset, length).await
    }

    /// Exactly the bytes of a range.
    ///
    /// # Errors
    /// As [`Self::read`].
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn read_bytes(&self, offset: u64, length: u64) -> Result<Bytes> {
        self.revision.read_bytes(offset, length).await
    }

    /// Makes everything acknowledged so far durable.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn flush(&self) -> Result<()> {
        self.revision.store.flush().await
    }

    /// What a range holds, in order and without gaps, as finely as the store can tell.
    ///
    /// # Errors
    /// `Invalid` (22) outside the image; those of the store.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn extents(&self, offset: u64, length: u64) -> Result<Vec<DeviceExtent>> {
        self.revision.check_range(offset, length)?;
        let mut extents: Vec<DeviceExtent> = Vec::new();
        let mut at = offset;
        for held in self.revision.held(offset, length, Detail::Found).await? {
            push_extent(&mut extents, at, held.offset - at, ExtentState::Zero);
            push_extent(&mut extents, held.offset, held.length, ExtentState::Data);
            at = held.offset + held.length;
        }
        push_extent(&mut extents, at, offset + length - at, ExtentState::Zero);
        Ok(extents)
    }

    /// Whether an object exists here, whatever its ancestors hold.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn object_exists(&self, extent: ObjectExtent) -> Result<bool> {
        Ok(self.revision.look(extent.object, ReadOp::stat()).await?.is_some())
    }

    /// Refuses to write a snapshot or what is open for reading only.
    fn check_writable(&self) -> Result<()> {
        if self.read_only || self.revision.snap != SnapId::HEAD {
            return Err(Error::new(ErrorKind::ReadOnly, "the image is open for reading only"));
        }
        if self.lacks_lock {
            return Err(Error::new(ErrorKind::Unavailable, "the image's exclusive lock is not held"));
        }
        Ok(())
    }

    /// Does `work` for each object of a range, several at once.
    async fn for_each_object<'a, F>(
        &'a self,
        offset: u64,
        length: u64,
        work: impl Fn(ObjectExtent) -> F + 'a,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>> + 'a,
    {
        let extents = stream::iter(self.revision.layout.extents(offset, length));
        extents.map(work).buffer_unordered(OBJECTS_IN_FLIGHT).try_collect::<()>().await
    }
}

/// Appends an extent, joined with the last one where it is alike.
fn push_extent(extents: &mut Vec<DeviceExtent>, offset: u64, length: u64, state: ExtentState) {
    if length == 0 {
        return;
    }
    match extents.last_mut() {
        Some(last) if last.state == state && last.offset + last.length == offset => last.length += length,
        Some(_) | None => extents.push(DeviceExtent { offset, length, state }),
    }
}
