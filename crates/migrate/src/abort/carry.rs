//! What was written to the target since prepare goes back to the source.

use std::sync::Arc;

use bytes::Bytes;
use ferry_core::{ExtentState, Result, SnapId};
use ferry_image::diff::Diff;
use ferry_image::encoding::MigrationState;
use ferry_image::image::Image;
use ferry_image::io::Io;
use ferry_image::progress::Progress;
use ferry_image::zeroes::is_zero;
use futures_util::TryStreamExt;

use super::{WAS_EXECUTED, is_carried_ahead};
use crate::children;
use crate::ends::Ends;
use crate::verify::{self, STEP};

/// What is compared and written at once where nothing tells what was written. Bytes.
const BLOCK: usize = 4096;

/// Whether the target tells what was written to it since prepare. On a cluster `rbd` may have written too, and does not preserve the
/// point of prepare: what is there may be newer.
pub(super) fn tells_changes(target: &Image) -> bool {
    !verify::others_may_write(&*target.pool.store) && target.header.base().is_some()
}

/// Copies to the source what was written to the target.
pub(super) async fn carry_back(ends: &Ends, progress: Progress<'_>) -> Result<()> {
    let target = children::as_image(&ends.target)?;
    if !tells_changes(&target) || is_carried_ahead(ends) {
        return carry_back_differences(ends, target, progress).await;
    }
    let diff = Diff::since_prepare(&target).await?;
    let mut source = ends.source.open().await?;
    let io = Io::open(&mut source).await?;
    let copied = async {
        let total = diff.steps();
        let mut batches = std::pin::pin!(diff.changes());
        let mut done = 0;
        while let Some(batch) = batches.try_next().await? {
            for change in batch {
                let end = (change.offset + change.length).min(io.size());
                let length = end.saturating_sub(change.offset);
                if length == 0 {
                    continue;
                }
                match change.state {
                    ExtentState::Data => io.copy_range(diff.to(), change.offset, length).await?,
                    ExtentState::Zero => io.discard(change.offset, length).await?,
                }
            }
            done += 1;
            progress(done, total);
        }
        Ok(())
    };
    let copied: Result<()> = copied.await;
    let closed = source.close().await;
    copied.and(closed)
}

/// Copies to the source what differs on a target where nothing tells what was written since: another program prepared it, or may
/// have written to it; or the source has some of it, and nothing tells what.
pub(super) async fn carry_back_differences(
    ends: &Ends,
    mut target: Image,
    progress: Progress<'_>,
) -> Result<()> {
    let was_executed = ends.target.record().is_some_and(|r| r.description == WAS_EXECUTED);
    let steps = verify::ranges(ends, &children::as_image(&ends.source)?, &target).await?;
    let header = Arc::make_mut(&mut target.header);
    if let Some(record) = header.migration.as_mut().filter(|_| !was_executed) {
        // What is missing on it is shown by the source.
        record.state = MigrationState::Executing;
    }
    let shown = target.revision_at(SnapId::HEAD).await?;
    let mut source = ends.source.open().await?;
    let copied = async {
        let before = children::as_image(&ends.source)?.revision_at(SnapId::HEAD).await?;
        let io = Io::open(&mut source).await?;
        let size = io.size().min(shown.size);
        let steps = steps.unwrap_or_else(|| (0..size.div_ceil(STEP)).collect());
        let total = steps.len() as u64;
        for (done, step) in (1..).zip(steps) {
            let offset = step * STEP;
            let length = STEP.min(size.saturating_sub(offset));
            if length > 0 {
                let old = before.read(offset, length).await?.to_vec(offset, length);
                let new = Bytes::from(shown.read(offset, length).await?.to_vec(offset, length));
                write_differences(&io, offset, &old, &new).await?;
            }
            progress(done, total);
        }
        Ok(())
    };
    let copied: Result<()> = copied.await;
    let closed = source.close().await;
    copied.and(closed)
}

/// Writes the blocks of `new` that are not as in `old`.
async fn write_differences(io: &Io, offset: u64, old: &[u8], new: &Bytes) -> Result<()> {
    let mut at = 0;
    for (a, b) in old.chunks(BLOCK).zip(new.chunks(BLOCK)) {
        let place = offset + at as u64;
        if a != b && is_zero(b) {
            io.discard(place, b.len() as u64).await?;
        } else if a != b {
            io.write(place, new.slice(at..at + b.len())).await?;
        }
        at += b.len();
    }
    Ok(())
}
