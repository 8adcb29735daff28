//! How much of an image is used, as `rbd du` counts it: per snapshot what changed since the one before, and for HEAD what
//! changed since the last.

use ferry_core::{ExtentState, Result, SnapId};
use futures_util::TryStreamExt;

use crate::diff::{Diff, DiffRequest, Granularity, ParentData};
use crate::image::Image;
use crate::progress::Progress;

/// A line of the count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The snapshot, or HEAD.
    pub at: SnapId,
    /// The snapshot's name.
    pub snap_name: Option<String>,
    /// Size at that point. Bytes.
    pub provisioned_bytes: u64,
    /// What was written since the line before. Bytes.
    pub used_bytes: u64,
}

/// Counts the users' snapshots of an image, oldest first, and HEAD; what a clone shows of its parent is not counted.
/// `after` leaves out the snapshots up to and with that one.
///
/// # Errors
/// `NotFound` (2) where a snapshot is gone; those of the store.
pub async fn usage(
    image: &Image,
    after: Option<SnapId>,
    granularity: Granularity,
    progress: Progress<'_>,
) -> Result<Vec<Usage>> {
    let users = image.header.snaps.values().filter(|s| s.namespace.is_user());
    let mut points: Vec<(SnapId, Option<String>)> = users
        .filter(|s| after.is_none_or(|after| s.id > after))
        .filter(|s| image.at == SnapId::HEAD || s.id <= image.at)
        .map(|s| (s.id, Some(s.name.clone())))
        .collect();
    if image.at == SnapId::HEAD {
        points.push((SnapId::HEAD, None));
    }
    let (mut from, total) = (after, points.len() as u64);
    let mut lines = Vec::new();
    for (n, (at, snap_name)) in points.into_iter().enumerate() {
        let request = DiffRequest { from, to: at, granularity, parent: ParentData::Excluded };
        let diff = Diff::open(image, request).await?;
        let mut used_bytes = 0;
        let mut changes = std::pin::pin!(diff.changes());
        while let Some(batch) = changes.try_next().await? {
            let data = batch.iter().filter(|c| c.state == ExtentState::Data);
            used_bytes += data.map(|c| c.length).sum::<u64>();
        }
        lines.push(Usage { at, snap_name, provisioned_bytes: image.header.size_at(at)?, used_bytes });
        from = Some(at);
        progress(n as u64 + 1, total);
    }
    Ok(lines)
}
