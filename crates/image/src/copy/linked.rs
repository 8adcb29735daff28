//! Copying what a clone holds itself to another clone of the same parent.
//!
//! - The copy has an object exactly where the source has one, so that both show the same of their parent; where the layouts
//!   differ, where the source has one in any part of its range. An object that holds nothing hides the parent, too.
//! - Nothing is copied up: what the copy brings is all that an object shows.

use std::collections::BTreeMap;

use ferry_core::{DeviceExtent, Effect, ExtentState, ReadOp, Result, SnapId, WriteOp};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::diff::{Diff, DiffRequest, Granularity, ParentData};
use crate::image::Image;
use crate::io::Io;
use crate::layout::{ObjectExtent, ObjectNo};
use crate::limits::OBJECTS_IN_FLIGHT;
use crate::revision::Revision;

/// Gives `target` at HEAD what changed in the objects of `source` between two points. The target shows as much of the parent
/// as the source does at `to`, and is as large.
///
/// # Errors
/// Those of the store.
///
/// # Crash safety
/// Each object takes a change whole or not at all.
pub(super) async fn copy_changes(
    source: &Image,
    from: Option<SnapId>,
    to: SnapId,
    target: &Io,
) -> Result<()> {
    let request = DiffRequest { from, to, granularity: Granularity::Exact, parent: ParentData::Excluded };
    let diff = Diff::open(source, request).await?;
    bring_all(&diff, target, lost_of_parent(source, from, to)?.as_slice()).await?;
    let mut batches = std::pin::pin!(diff.changes());
    while let Some(batch) = batches.try_next().await? {
        bring_all(&diff, target, &batch).await?;
    }
    Ok(())
}

/// What the source no longer shows of the parent. A rollback may have put the same bytes into objects of the source: a diff
/// that compares bytes does not see that, and the target lacks them.
fn lost_of_parent(source: &Image, from: Option<SnapId>, to: SnapId) -> Result<Option<DeviceExtent>> {
    let Some(from) = from else { return Ok(None) };
    let overlap_at = |at| -> Result<u64> { Ok(source.header.parent_at(at)?.map_or(0, |link| link.overlap)) };
    let (offset, end) = (overlap_at(to)?, overlap_at(from)?.min(source.header.size_at(to)?));
    let length = end.saturating_sub(offset);
    Ok((length > 0).then_some(DeviceExtent { offset, length, state: ExtentState::Data }))
}

/// Makes the target show what the source does in all that changed.
async fn bring_all(diff: &Diff, target: &Io, changes: &[DeviceExtent]) -> Result<()> {
    let work = stream::iter(by_object(target, changes))
        .map(|(object, changed)| async move { bring(diff.to(), target, object, &changed).await });
    work.buffer_unordered(OBJECTS_IN_FLIGHT).try_collect::<()>().await
}

/// The parts of each object of the target that changes lie in.
fn by_object(target: &Io, changes: &[DeviceExtent]) -> BTreeMap<ObjectNo, Vec<ObjectExtent>> {
    let mut parts: BTreeMap<ObjectNo, Vec<ObjectExtent>> = BTreeMap::new();
    for change in changes {
        for extent in target.revision().layout.extents(change.offset, change.length) {
            parts.entry(extent.object).or_default().push(extent);
        }
    }
    parts
}

/// Makes one object of the target show what the source does, `changed` being where it may not.
async fn bring(source: &Revision, target: &Io, object: ObjectNo, changed: &[ObjectExtent]) -> Result<()> {
    let there = target.revision().look(object, ReadOp::stat()).await?.is_some();
    let whole = ObjectExtent { object, offset: 0, length: target.revision().length_of(object) };
    if !owns_any(source, target, whole).await? {
        return if there { target.remove_object(object).await } else { Ok(()) };
    }
    if !there {
        return make(source, target, whole).await;
    }
    for part in changed {
        target.copy_object_range(source, *part).await?;
    }
    Ok(())
}

/// Makes an object that is not there, with all that the source shows in its place.
async fn make(source: &Revision, target: &Io, whole: ObjectExtent) -> Result<()> {
    let content = target.content_of(source, whole).await?;
    if content.is_empty() && target.revision().overlap_in(whole.object) == 0 {
        return Ok(());
    }
    let effects = std::iter::once(Effect::Create).chain(content).collect();
    let op = WriteOp { effects, ..WriteOp::new() };
    target.announced(vec![whole.object], target.apply(whole.object, op)).await
}

/// Whether the source has an object of its own anywhere in the range of one of the target's.
async fn owns_any(source: &Revision, target: &Io, whole: ObjectExtent) -> Result<bool> {
    for part in target.revision().layout.image_extents(whole) {
        for extent in source.layout.extents(part.offset, part.length) {
            if source.look(extent.object, ReadOp::stat()).await?.is_some() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
