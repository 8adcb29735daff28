//! Copying a range of one image to the same range of another.

use ferry_core::{Effect, ErrorKind, Guard, Result, WriteOp};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::copyup::{can_share, share_effects, write_effects};
use crate::io::Io;
use crate::layout::{ImageExtent, ObjectExtent};
use crate::limits::OBJECTS_IN_FLIGHT;
use crate::revision::{Piece, Revision};

impl Io {
    /// Makes a range read what it reads in `source`, shared, or objects copied by the store, where possible. Holes become holes.
    ///
    /// # Errors
    /// `Invalid` (22) outside either image; those of the stores.
    ///
    /// # Crash safety
    /// Each object of this image takes all of its part or nothing.
    pub async fn copy_range(&self, source: &Revision, offset: u64, length: u64) -> Result<()> {
        source.check_range(offset, length)?;
        self.revision().check_range(offset, length)?;
        let extents = stream::iter(self.revision().layout.extents(offset, length));
        let work = extents.map(|extent| self.copy_object_range(source, extent));
        work.buffer_unordered(OBJECTS_IN_FLIGHT).try_collect::<()>().await
    }

    /// As [`Self::copy_range`], for a part of one object.
    pub(super) async fn copy_object_range(&self, source: &Revision, extent: ObjectExtent) -> Result<()> {
        let is_fresh = self.history().is_none()
            && self.revision().overlap_in(extent.object) == 0
            && self.map().is_some_and(|map| !map.get(extent.object).may_exist());
        if is_fresh && let Some(effects) = self.copied_from(source, extent).await? {
            // Another range of the object may be copied at the same time, and would be lost.
            let op = WriteOp { effects, ..WriteOp::new() }.guard(Guard::CreateExclusive);
            match self.announced(vec![extent.object], self.apply(extent.object, op)).await {
                // It was, or the store found out that it copies nothing.
                Err(e) if matches!(e.kind(), ErrorKind::Exists | ErrorKind::Unsupported) => {}
                done => return done,
            }
        }
        let effects = self.content_of(source, extent).await?;
        if effects.is_empty() {
            return self.discard_part(extent).await;
        }
        let mut all = Vec::new();
        if !is_fresh {
            // What the source has as holes must not keep what was here.
            all.push(Effect::Zero { offset: extent.offset, length: extent.length });
        }
        all.extend(effects);
        if self.history().is_some() {
            return self.announced(vec![extent.object], self.change_target(extent.object, &all)).await;
        }
        if self.revision().overlap_in(extent.object) > 0 {
            // What is around the range must go on showing the parent.
            return self.announced(vec![extent.object], self.change_or_copy_up(extent.object, all)).await;
        }
        let op = WriteOp { effects: all, ..WriteOp::new() };
        self.announced(vec![extent.object], self.apply(extent.object, op)).await
    }

    /// The effects that give a part of an object, holding nothing there, what `source` shows, shared where possible.
    pub(super) async fn content_of(&self, source: &Revision, extent: ObjectExtent) -> Result<Vec<Effect>> {
        let layout = self.revision().layout;
        let parts: Vec<ImageExtent> = layout.image_extents(extent).collect();
        if can_share(source, self.revision()) {
            let mut pieces: Vec<Piece> = Vec::new();
            for part in &parts {
                pieces.extend(source.locate(part.offset, part.length).await?);
            }
            if let Some(effects) = share_effects(layout, extent, pieces).filter(|e| !ends_short(e)) {
                return Ok(effects);
            }
        }
        let mut effects = Vec::new();
        for part in &parts {
            let data = source.read(part.offset, part.length).await?;
            effects.extend(write_effects(layout, extent.object, data));
        }
        Ok(effects)
    }
}

/// Whether sharing would cut the object behind the range, which may hold data already.
fn ends_short(effects: &[Effect]) -> bool {
    effects.iter().any(|e| matches!(e, Effect::Truncate(_)))
}
