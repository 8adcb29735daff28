//! Objects that a store copies by itself: those that one of another image's fills from its beginning to its end, without
//! holes.
//!
//! - What the store copies is not read, so there is no digest of it: a verification of a migration reads both ends.
//! - The store may fill holes, so an object that has any is read and written.

use std::sync::atomic::{AtomicUsize, Ordering};

use ferry_core::{Effect, Result, SnapId};

use super::can_copy;
use crate::history::MARK;
use crate::io::Io;
use crate::layout::ObjectExtent;
use crate::limits::OBJECTS_IN_FLIGHT;
use crate::revision::{Held, Piece, Revision};

/// How many objects in a row have holes before only one of so many is looked at, to see when that ends: more than are looked at
/// at once.
const SPARSE_STREAK: usize = 16;
const _: () = assert!(SPARSE_STREAK > OBJECTS_IN_FLIGHT);

/// What is known of the objects of the image that is copied.
#[derive(Debug, Default)]
pub(crate) struct Inside {
    /// Objects looked at, or not, since one was full.
    sparse: AtomicUsize,
}

impl Io {
    /// The effects that make an object, whose range from its beginning is `extent`, what `point` shows of the parent there, the store
    /// copying it; `None` where it cannot, or where it would fill holes.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn copied_by_store(
        &self,
        point: &Revision,
        extent: ObjectExtent,
    ) -> Result<Option<Vec<Effect>>> {
        let Some(source) = point.parent.as_ref().and_then(|p| p.ancestor.image()) else { return Ok(None) };
        let Some(least) = self.worth_copying(source, extent) else { return Ok(None) };
        let pieces = point.locate_in_parent(extent).await?;
        self.one_full_object(extent, &pieces, least).await
    }

    /// As [`Self::copied_by_store`], what `source` shows, which is another image.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn copied_from(
        &self,
        source: &Revision,
        extent: ObjectExtent,
    ) -> Result<Option<Vec<Effect>>> {
        let Some(least) = self.worth_copying(source, extent) else { return Ok(None) };
        let mut pieces = Vec::new();
        for part in self.revision().layout.image_extents(extent) {
            pieces.extend(source.locate(part.offset, part.length).await?);
        }
        self.one_full_object(extent, &pieces, least).await
    }

    /// From which length on an object is copied; `None` where this one is not worth a look.
    fn worth_copying(&self, source: &Revision, extent: ObjectExtent) -> Option<u64> {
        let least = can_copy(source, self.revision())?;
        // Of a striped image, one object holds parts of the image that lie apart.
        let is_striped = self.revision().layout.image_extents(extent).nth(1).is_some();
        let is_worth = extent.offset == 0 && extent.length >= least && !is_striped;
        (is_worth && self.inside().wants_look()).then_some(least)
    }

    /// The effects, where `pieces` are one object without holes.
    async fn one_full_object(
        &self,
        extent: ObjectExtent,
        pieces: &[Piece],
        least: u64,
    ) -> Result<Option<Vec<Effect>>> {
        let [Piece { held: Held::Object { object, at, offset: 0, size }, image_offset, length }] = pieces
        else {
            return Ok(None);
        };
        let before = self.revision().layout.bytes_before(extent.object, *image_offset);
        if before != 0 || length != size || *size < least {
            return Ok(None);
        }
        if !self.revision().store.is_full(object, *at, *size).await? {
            return Ok(None);
        }
        self.inside().found_full();
        let copy = Effect::CopyObject { source: object.clone(), at: *at, length: *size };
        // Whatever its source is in, the copy is finished, unless a later effect says otherwise.
        let mut effects = vec![copy, Effect::XattrRemove(MARK.to_owned())];
        if *at == SnapId::HEAD {
            // It may have grown since it was looked at.
            effects.push(Effect::Truncate(*size));
        }
        Ok(Some(effects))
    }
}

impl Inside {
    /// Says that an object has no holes.
    fn found_full(&self) {
        self.sparse.store(0, Ordering::Release);
    }

    fn wants_look(&self) -> bool {
        let before = self.sparse.fetch_add(1, Ordering::AcqRel);
        before < SPARSE_STREAK || before.is_multiple_of(SPARSE_STREAK)
    }
}
