//! Copying images inside a store or between stores.
//!
//! - Holes stay holes. Inside one store that can share, ranges on block boundaries are shared instead of copied, whatever the
//!   two layouts are.
//! - The target is made by the caller, empty and of its own layout; nobody else writes it meanwhile.
//! - A target that is a clone of the same snapshot as the source stays one, and gets what the source holds itself.

mod linked;
mod range;

use ferry_core::{DeviceExtent, Error, ExtentState, Result, SnapId};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::diff::{Diff, DiffRequest, Granularity, ParentData};
use crate::encoding::{ParentRecord, Protection};
use crate::image::Image;
use crate::io::Io;
use crate::limits::OBJECTS_IN_FLIGHT;
use crate::progress::{Progress, silent};
use crate::resize::{Shrinking, resize};
use crate::revision::Revision;
use crate::snapshot;

/// Copies what is read through `source` (HEAD or one snapshot) to HEAD of an empty `target` of at least its size.
///
/// # Errors
/// `Invalid` (22) where the target is smaller; `ReadOnly` (30); those of the stores.
///
/// # Crash safety
/// The target is durable when it returns; before, it holds some of the data.
pub async fn copy(source: &Image, target: &mut Image, progress: Progress<'_>) -> Result<()> {
    let io = Io::open(target).await?;
    copy_changes(source, None, source.at, &io, progress).await?;
    io.flush().await
}

/// The parent that a copy with snapshots would share with `source` (opened at HEAD or at a snapshot): the one that any point
/// to be copied shows. `None` for an image that shows none, and for the target of a migration under way, which shows its source.
///
/// # Errors
/// `NotFound` (2) where the snapshot `source` was opened at is gone.
pub fn parent_to_share(source: &Image) -> Result<Option<ParentRecord>> {
    if source.header.redirects() {
        return Ok(None);
    }
    for at in points_of(source) {
        if let Some(link) = source.header.parent_at(at)? {
            return Ok(Some(link.parent));
        }
    }
    Ok(None)
}

/// The users' snapshots up to the point `source` was opened at, oldest first, and HEAD where it is that.
fn points_of(source: &Image) -> impl Iterator<Item = SnapId> {
    let users = source.header.snaps.values().filter(|s| s.namespace.is_user() && s.id <= source.at);
    users.map(|s| s.id).chain((source.at == SnapId::HEAD).then_some(SnapId::HEAD))
}

/// Copies an image with the users' snapshots up to the point `source` was opened at, protection included, to an empty
/// `target`. A target that is a clone of what `source` is a clone of (see [`parent_to_share`]) shows at each point as much of
/// it as the source does; any other owns all its data, what a clone shows of its parent included.
///
/// # Errors
/// As [`copy`]; those of making snapshots.
///
/// # Crash safety
/// As [`copy`]; snapshots made so far are complete.
pub async fn deep_copy(source: &Image, target: &mut Image, progress: Progress<'_>) -> Result<()> {
    let shared = parent_to_share(source)?;
    let is_linked = match (&shared, target.header.parent_spec()) {
        (_, None) => false,
        (Some(parent), Some(of_target)) if parent.is_same_snapshot(of_target) => true,
        (Some(_) | None, Some(_)) => {
            return Err(Error::invalid("the target of a copy is a clone of something else"));
        }
    };
    let points: Vec<SnapId> = points_of(source).collect();
    let mut from = None;
    for (n, at) in points.iter().copied().enumerate() {
        resize(target, source.header.size_at(at)?, Shrinking::Allowed, &mut silent).await?;
        if is_linked {
            let overlap = source.header.parent_at(at)?.map(|link| link.overlap);
            show_parent(target, overlap).await?;
            let io = Io::open(target).await?;
            linked::copy_changes(source, from, at, &io).await?;
        } else {
            let io = Io::open(target).await?;
            copy_changes(source, from, at, &io, &mut silent).await?;
        }
        if let Some(snap) = source.header.snaps.get(&at) {
            snapshot::create(target, &snap.name).await?;
            if snap.protection == Protection::Protected {
                snapshot::protect(target, &snap.name).await?;
            }
        }
        from = Some(at);
        progress(n as u64 + 1, points.len() as u64);
    }
    target.pool.store.flush().await
}

/// Makes HEAD show this much of its parent; `None` ends its link, and leaves those of snapshots.
async fn show_parent(target: &mut Image, overlap: Option<u64>) -> Result<()> {
    target
        .update_header(|h| {
            if let Some(parent) = &mut h.parent {
                parent.head_overlap = overlap;
            }
            Ok(())
        })
        .await
}

/// Copies what changed in the source between two points to HEAD of the target.
async fn copy_changes(
    source: &Image,
    from: Option<SnapId>,
    to: SnapId,
    target: &Io,
    progress: Progress<'_>,
) -> Result<()> {
    let request = DiffRequest { from, to, granularity: Granularity::Exact, parent: ParentData::Included };
    let diff = Diff::open(source, request).await?;
    if diff.to().size > target.size() {
        return Err(Error::invalid("the target is smaller than the source")
            .with("source", diff.to().size)
            .with("target", target.size()));
    }
    let total = diff.steps();
    let mut batches = std::pin::pin!(diff.changes());
    let mut done = 0;
    while let Some(batch) = batches.try_next().await? {
        let parts: Vec<DeviceExtent> = batch.into_iter().flat_map(|c| by_object(target, c)).collect();
        let work = stream::iter(parts).map(|part| copy_part(diff.to(), target, part));
        work.buffer_unordered(OBJECTS_IN_FLIGHT).try_collect::<()>().await?;
        done += 1;
        progress(done, total);
    }
    Ok(())
}

/// Cuts a change so that no two parts share an object of the target, unless it is striped.
fn by_object(target: &Io, change: DeviceExtent) -> Vec<DeviceExtent> {
    let step = target.revision().layout.period();
    let end = change.offset + change.length;
    let mut parts = Vec::new();
    let mut at = change.offset;
    while at < end {
        let next = (at / step + 1).saturating_mul(step).min(end);
        parts.push(DeviceExtent { offset: at, length: next - at, state: change.state });
        at = next;
    }
    parts
}

/// Copies one change.
async fn copy_part(source: &Revision, target: &Io, part: DeviceExtent) -> Result<()> {
    match part.state {
        ExtentState::Zero => target.discard(part.offset, part.length).await,
        ExtentState::Data => target.copy_range(source, part.offset, part.length).await,
    }
}
