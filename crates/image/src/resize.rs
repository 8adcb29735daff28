//! Growing and shrinking.
//!
//! - Growing: the object map first, then the header. A crash in between leaves a map that is too large, which is allowed.
//! - Shrinking: the data first, then the header, then the object map. A crash in between leaves an image of the old size whose
//!   end is gone already; shrinking again finishes it.
//! - The overlap with the parent only ever shrinks: grown again, the range reads as zeros.

use ferry_core::{Effect, Error, ErrorKind, Guard, Result, SnapId, WriteOp};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::create::check_size;
use crate::features::Flags;
use crate::history::Migrated;
use crate::image::Image;
use crate::io::Io;
use crate::layout::{ObjectExtent, ObjectNo};
use crate::limits::OBJECTS_IN_FLIGHT;
use crate::object_map::OBJECTS_MAX;
use crate::progress::Progress;

/// Whether data may be cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shrinking {
    /// The request fails where the image is larger than asked for.
    Refused,
    /// What lies behind the new end is lost at HEAD; snapshots keep it.
    Allowed,
}

/// Gives an image another size. Bytes. The size it has is no error.
///
/// # Errors
/// `Invalid` (22) where it would shrink and may not, or could not be addressed, (27) where it would have too many objects for its object map;
/// `ReadOnly` (30); those of the store.
///
/// # Crash safety
/// See the module.
pub async fn resize(
    image: &mut Image,
    size: u64,
    shrinking: Shrinking,
    progress: Progress<'_>,
) -> Result<()> {
    check_size(size)?;
    image.acquire().await?;
    let before = image.header.size;
    if size < before && shrinking == Shrinking::Refused {
        return Err(Error::invalid("shrinking an image is only allowed when asked for")
            .with("size", before)
            .with("wanted", size));
    }
    let io = Io::open(image).await?;
    let count = io.revision().layout.object_count(size);
    if io.map().is_some() && count > OBJECTS_MAX {
        return Err(Error::invalid("the image would have too many objects for its object map")
            .errno_is(ferry_core::Errno::EFBIG)
            .with("objects", count));
    }
    if size > before {
        resize_map(image, &io, count).await?;
        set_size(image, size).await?;
    } else if size < before {
        io.trim(size, progress).await?;
        set_size(image, size).await?;
        io.remove_emptied(count).await?;
        resize_map(image, &io, count).await?;
    }
    progress(1, 1);
    image.pool.store.flush().await
}

/// Puts the size into the header.
async fn set_size(image: &mut Image, size: u64) -> Result<()> {
    image
        .update_header(|h| {
            h.set_size(size);
            Ok(())
        })
        .await
}

/// Gives the object map another number of objects. A map that claims objects behind the end is flagged as not to be trusted.
async fn resize_map(image: &mut Image, io: &Io, count: u64) -> Result<()> {
    let Some(live) = io.map() else { return Ok(()) };
    let mut map = live.snapshot();
    match map.resize(count) {
        Ok(()) => live.replace(map).await,
        Err(e) if e.kind() == ErrorKind::Conflict => {
            let invalid = Flags::OBJECT_MAP_INVALID.with(Flags::FAST_DIFF_INVALID);
            image.update_header(|h| h.set_flags(SnapId::HEAD, invalid, Flags::NONE)).await
        }
        Err(e) => Err(e),
    }
}

impl Io {
    /// Removes everything behind byte `size`: whole objects, and the ends of those the new end cuts.
    ///
    /// # Errors
    /// Those of the store.
    async fn trim(&self, size: u64, progress: Progress<'_>) -> Result<()> {
        let layout = self.revision().layout;
        let total = self.revision().object_count() - layout.object_count(size);
        let cuts = stream::iter(layout.extents(size, self.size() - size)).map(|cut| self.trim_object(cut));
        let mut cuts = std::pin::pin!(cuts.buffer_unordered(OBJECTS_IN_FLIGHT));
        let mut done = 0;
        while cuts.try_next().await?.is_some() {
            done += 1;
            progress(done.min(total), total);
        }
        Ok(())
    }

    /// As [`Self::trim_object`], on the target of a migration. What is removed here must be known to have been there, or its
    /// history would be brought in a second time.
    async fn trim_target(&self, cut: ObjectExtent) -> Result<()> {
        if self.migrate_object(cut.object).await? != Migrated::There {
            return Ok(());
        }
        let forgets = || self.history().is_some_and(|h| h.never_shows(cut.object));
        if cut.offset == 0 && (self.revision().store.capabilities().list_snaps || forgets()) {
            return self.remove_object(cut.object).await;
        }
        self.announced(vec![cut.object], self.change_target(cut.object, &[Effect::Truncate(cut.offset)]))
            .await
    }

    /// Removes the objects from number `count` on that [`Self::trim_target`] could only empty. Now that the overlap with the source
    /// is smaller, nothing would bring them in again.
    async fn remove_emptied(&self, count: u64) -> Result<()> {
        if self.history().is_none() || self.revision().store.capabilities().list_snaps {
            return Ok(());
        }
        let mut there: Vec<ObjectNo> = (count..self.revision().object_count()).map(ObjectNo).collect();
        there.retain(|object| self.map().is_none_or(|map| map.get(*object).may_exist()));
        let removals = stream::iter(there).map(|object| self.remove_object(object));
        let mut removals = std::pin::pin!(removals.buffer_unordered(OBJECTS_IN_FLIGHT));
        while removals.try_next().await?.is_some() {}
        Ok(())
    }

    /// Cuts one object off. What showed through of the parent goes with the overlap.
    async fn trim_object(&self, cut: ObjectExtent) -> Result<()> {
        if self.history().is_some() {
            return self.trim_target(cut).await;
        }
        if self.map().is_some_and(|map| !map.get(cut.object).may_exist()) {
            return Ok(());
        }
        if cut.offset == 0 {
            return self.remove_object(cut.object).await;
        }
        let op = WriteOp::new().guard(Guard::AssertExists).effect(Effect::Truncate(cut.offset));
        let cutting = async {
            match self.apply(cut.object, op).await {
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
                done => done,
            }
        };
        self.announced(vec![cut.object], cutting).await
    }
}
