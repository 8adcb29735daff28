//! Where an image holds bytes, as finely as its stores can tell without reading them.

use ferry_core::Result;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::{Ancestor, Revision, is_missing};
use crate::layout::{ImageExtent, ObjectExtent};
use crate::limits::OBJECTS_IN_FLIGHT;

/// How finely to tell where bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// As stores tell at once, and `rbd`.
    Told,
    /// As stores can find out without reading bytes.
    Found,
}

impl Revision {
    /// The parts of a range that the image or an ancestor holds bytes for, ascending; the others read as zeros.
    ///
    /// # Errors
    /// Those of the store.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub fn held(&self, offset: u64, length: u64, detail: Detail) -> BoxFuture<'_, Result<Vec<ImageExtent>>> {
        Box::pin(async move {
            let extents: Vec<_> = self.layout.extents(offset, length).collect();
            let looks = stream::iter(extents).map(|extent| self.held_in_object(extent, detail));
            let parts: Vec<Vec<ImageExtent>> =
                looks.buffer_unordered(OBJECTS_IN_FLIGHT).try_collect().await?;
            let mut found: Vec<ImageExtent> = parts.into_iter().flatten().collect();
            found.sort_unstable_by_key(|part| part.offset);
            Ok(found)
        })
    }

    /// As [`Self::held`], for a part of one object, or what shows through in its place.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn held_in_object(
        &self,
        extent: ObjectExtent,
        detail: Detail,
    ) -> Result<Vec<ImageExtent>> {
        if self.is_target {
            // What it does not have yet may be written aside.
            let pieces = self.locate_in_object(extent).await?.into_iter();
            return Ok(pieces.map(|p| ImageExtent { offset: p.image_offset, length: p.length }).collect());
        }
        if let Some(found) = self.held_here(extent, detail).await? {
            return Ok(found);
        }
        let mut found = Vec::new();
        if let Some(parent) = &self.parent {
            for part in self.below_overlap(extent) {
                found.extend(parent.ancestor.held(part.offset, part.length, detail).await?);
            }
        }
        Ok(found)
    }

    /// As [`Self::held_in_object`], of the image's own object; `None` where it does not exist here. Not for the target of a
    /// migration.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn held_here(
        &self,
        extent: ObjectExtent,
        detail: Detail,
    ) -> Result<Option<Vec<ImageExtent>>> {
        let ObjectExtent { object, offset, length } = extent;
        let id = self.object_id(object);
        let told = match detail {
            Detail::Told => self.store.extents(&id, self.snap, offset, length),
            Detail::Found => self.store.find_extents(&id, self.snap, offset, length),
        };
        let ranges = match told.await {
            Ok(ranges) => ranges,
            Err(e) if is_missing(&e) => return Ok(None),
            Err(e) => return Err(e.with("image_object", object.0)),
        };
        let in_image = |(offset, length)| self.layout.image_extents(ObjectExtent { object, offset, length });
        Ok(Some(ranges.into_iter().flat_map(in_image).collect()))
    }
}

impl Ancestor {
    /// See [`Revision::held`].
    ///
    /// # Errors
    /// Those of the store or the source.
    async fn held(&self, offset: u64, length: u64, detail: Detail) -> Result<Vec<ImageExtent>> {
        match self {
            Self::Image(revision) => revision.held(offset, length, detail).await,
            Self::Foreign(point) => {
                let found = point.data_in(offset, length).await?;
                Ok(found.into_iter().map(|e| ImageExtent { offset: e.offset, length: e.length }).collect())
            }
        }
    }
}
