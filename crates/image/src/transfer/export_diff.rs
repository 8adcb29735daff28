//! `rbd export-diff`: what changed between two snapshots, or from one to HEAD, or since the beginning.

use std::io::Write;

use ferry_core::{DeviceExtent, Result, SparseData};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::export::is_data;
use crate::diff::{Diff, DiffRequest, Granularity, ParentData};
use crate::image::Image;
use crate::limits::{OBJECTS_IN_FLIGHT, SPARSE_BLOCK};
use crate::progress::Progress;
use crate::stream::{DiffHeader, DiffVersion, DiffWriter, PIECE_MAX};
use crate::zeroes::runs;

/// Writes what changed from the user's snapshot `from` (or the beginning) to the point `source` was opened at.
///
/// # Errors
/// `NotFound` (2) where there is no such snapshot; those of the store and of the stream.
pub async fn export_diff<W: Write + Send>(
    source: &Image,
    from: Option<&str>,
    granularity: Granularity,
    target: W,
    progress: Progress<'_>,
) -> Result<W> {
    let header = &source.header;
    let from_id = from.map(|name| header.user_snap(name).map(|s| s.id)).transpose()?;
    let to_snap = header.snaps.get(&source.at).map(|s| s.name.clone());
    let diff_header = DiffHeader {
        from_snap: from.map(str::to_owned),
        to_snap,
        is_protected: false,
        size: Some(header.size_at(source.at)?),
    };
    let request = DiffRequest { from: from_id, to: source.at, granularity, parent: ParentData::Included };
    let diff = Diff::open(source, request).await?;
    let mut writer = DiffWriter::new(target, DiffVersion::V1, &diff_header)?;
    write_changes(&diff, &mut writer, progress).await?;
    writer.finish()
}

/// Writes all changes of a diff, ascending. Blocks of zeros in what changed become zero records.
pub(super) async fn write_changes<W: Write + Send>(
    diff: &Diff,
    writer: &mut DiffWriter<W>,
    progress: Progress<'_>,
) -> Result<()> {
    let total = diff.steps();
    let mut batches = std::pin::pin!(diff.changes());
    let mut done = 0;
    while let Some(batch) = batches.try_next().await? {
        let parts: Vec<DeviceExtent> = batch.into_iter().flat_map(pieces).collect();
        let reads = stream::iter(parts).map(|part| async move {
            let data = if is_data(part.state) {
                diff.to().read(part.offset, part.length).await?
            } else {
                SparseData::default()
            };
            Ok::<_, ferry_core::Error>((part, data))
        });
        let mut reads = std::pin::pin!(reads.buffered(OBJECTS_IN_FLIGHT));
        while let Some((part, data)) = reads.try_next().await? {
            write_part(writer, part, &data)?;
        }
        done += 1;
        progress(done, total);
    }
    Ok(())
}

/// Cuts a change to what is held in memory at once.
fn pieces(change: DeviceExtent) -> Vec<DeviceExtent> {
    let step = if is_data(change.state) { PIECE_MAX as u64 } else { change.length.max(1) };
    let starts = (0..change.length.div_ceil(step)).map(|n| n * step);
    let piece =
        |at| DeviceExtent { offset: change.offset + at, length: step.min(change.length - at), ..change };
    starts.map(piece).collect()
}

/// Writes one change whose data has been read.
fn write_part<W: Write>(writer: &mut DiffWriter<W>, part: DeviceExtent, data: &SparseData) -> Result<()> {
    let mut at = part.offset;
    for (start, bytes) in &data.extents {
        zero(writer, at, start - at)?;
        for run in runs(*start, bytes, SPARSE_BLOCK) {
            let offset = start + run.start as u64;
            if run.is_zero {
                zero(writer, offset, run.length as u64)?;
            } else {
                writer.write(offset, &bytes[run.start..run.start + run.length])?;
            }
        }
        at = start + bytes.len() as u64;
    }
    zero(writer, at, part.offset + part.length - at)
}

/// A zero record, if any.
fn zero<W: Write>(writer: &mut DiffWriter<W>, offset: u64, length: u64) -> Result<()> {
    if length == 0 { Ok(()) } else { writer.zero(offset, length) }
}
