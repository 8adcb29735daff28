//! `rbd export`: a raw image, or an image stream with its snapshots.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use ferry_core::{Error, ExtentState, Reply, Result, SnapId, SparseData};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::export_diff::write_changes;
use crate::diff::{Diff, DiffRequest, Granularity, ParentData};
use crate::encoding::Protection;
use crate::image::Image;
use crate::limits::{OBJECTS_IN_FLIGHT, SPARSE_BLOCK};
use crate::progress::{Progress, silent};
use crate::stream::{DiffHeader, ImageStreamHeader, ImageStreamWriter};
use crate::zeroes::runs;

/// Where a raw image goes, from its start to its end without gaps: a file, a pipe.
pub trait RawTarget: Send {
    /// Takes the next bytes. They may be written later, in their turn: then an error comes with a later call.
    ///
    /// # Errors
    /// Those of writing.
    fn data(&mut self, bytes: Bytes) -> Result<()>;

    /// Takes that many zeros, best as a hole.
    ///
    /// # Errors
    /// Those of writing.
    fn hole(&mut self, length: u64) -> Result<()>;
}

/// Where the objects of an export are read. A store may do all of a read on the thread that asks; on threads of their own,
/// several reads wait for the disk at once, and while others are being written.
pub trait Readers: Send + Sync {
    /// Begins `read`, at once or when a reader is free.
    fn begin(&self, read: BoxFuture<'static, Result<SparseData>>) -> Reply<SparseData>;
}

/// Reads on the thread that exports.
#[derive(Clone, Copy, Debug)]
pub struct ReadHere;

impl Readers for ReadHere {
    fn begin(&self, read: BoxFuture<'static, Result<SparseData>>) -> Reply<SparseData> {
        Reply::Pending(read)
    }
}

/// A raw image into anything that can be written; holes are written as zeros.
#[derive(Debug)]
pub struct WriteTarget<W>(pub W);

impl<W: Write + Send> RawTarget for WriteTarget<W> {
    fn data(&mut self, bytes: Bytes) -> Result<()> {
        self.0.write_all(&bytes).map_err(|e| Error::io("cannot write the exported image", e))
    }

    fn hole(&mut self, length: u64) -> Result<()> {
        let mut left = length;
        while left > 0 {
            const BLOCK: &[u8] = &[0; 65536];
            let n = usize::try_from(left).map_or(BLOCK.len(), |left| left.min(BLOCK.len()));
            self.data(Bytes::from_static(&BLOCK[..n]))?;
            left -= n as u64;
        }
        Ok(())
    }
}

/// Writes what is read through `source` (HEAD or a snapshot) as a raw image. Objects nobody has become holes without being
/// read; blocks of zeros in others do too.
///
/// # Errors
/// Those of the store and of the target.
pub async fn export_raw(
    source: &Image,
    readers: &dyn Readers,
    target: &mut dyn RawTarget,
    progress: Progress<'_>,
) -> Result<()> {
    let revision = Arc::new(source.revision().await?);
    let (size, step) = (revision.size, revision.layout.object_size());
    let starts = stream::iter((0..size.div_ceil(step)).map(|n| n * step));
    let reads = starts.map(|offset| {
        let (length, revision) = (step.min(size - offset), Arc::clone(&revision));
        let begun = readers.begin(Box::pin(async move { revision.read(offset, length).await }));
        async move { begun.await.map(|data| (offset, length, data)) }
    });
    let mut reads = std::pin::pin!(reads.buffered(OBJECTS_IN_FLIGHT));
    while let Some((offset, length, data)) = reads.try_next().await? {
        let mut at = offset;
        for (start, bytes) in data.extents {
            put_hole(target, start - at)?;
            put_data(target, start, &bytes)?;
            at = start + bytes.len() as u64;
        }
        put_hole(target, offset + length - at)?;
        progress(offset + length, size);
    }
    Ok(())
}

/// Zeros, if any.
fn put_hole(target: &mut dyn RawTarget, length: u64) -> Result<()> {
    if length == 0 { Ok(()) } else { target.hole(length) }
}

/// Bytes, blocks of zeros as holes.
fn put_data(target: &mut dyn RawTarget, offset: u64, bytes: &Bytes) -> Result<()> {
    for run in runs(offset, bytes, SPARSE_BLOCK) {
        if run.is_zero {
            target.hole(run.length as u64)?;
        } else {
            target.data(bytes.slice(run.start..run.start + run.length))?;
        }
    }
    Ok(())
}

/// Writes an image with all its users' snapshots (or, opened at a snapshot, those up to it) as an image stream: the first
/// snapshot whole, then what changed to each next one, and to HEAD.
///
/// # Errors
/// Those of the store and of the stream.
pub async fn export_stream<W: Write + Send>(source: &Image, target: W, progress: Progress<'_>) -> Result<W> {
    let header = &source.header;
    let users = header.snaps.values().filter(|s| s.namespace.is_user() && s.id <= source.at);
    let snaps: Vec<_> = users.collect();
    let with_head = source.at == SnapId::HEAD;
    let total = snaps.len() as u64 + u64::from(with_head);
    let metadata = header.metadata.iter();
    let properties = ImageStreamHeader {
        order: Some(u64::from(header.order)),
        features: Some(header.features.0),
        stripe_unit: Some(header.stripe_unit),
        stripe_count: Some(header.stripe_count),
        metadata: metadata.map(|(k, v)| (k.clone(), String::from_utf8_lossy(v).into_owned())).collect(),
    };
    let mut stream = ImageStreamWriter::new(target, &properties, total)?;
    let points = snaps.iter().map(|s| Some(*s)).chain(with_head.then_some(None));
    let mut from: Option<(SnapId, &str)> = None;
    for (n, snap) in points.enumerate() {
        let at = snap.map_or(SnapId::HEAD, |s| s.id);
        let diff_header = DiffHeader {
            from_snap: from.map(|(_, name)| name.to_owned()),
            to_snap: snap.map(|s| s.name.clone()),
            is_protected: snap.is_some_and(|s| s.protection == Protection::Protected),
            size: Some(header.size_at(at)?),
        };
        let request = DiffRequest {
            from: from.map(|(id, _)| id),
            to: at,
            granularity: Granularity::Exact,
            parent: ParentData::Included,
        };
        let diff = Diff::open(source, request).await?;
        let mut writer = stream.diff(&diff_header)?;
        write_changes(&diff, &mut writer, &mut silent).await?;
        writer.finish()?;
        progress(n as u64 + 1, total);
        from = snap.map(|s| (s.id, s.name.as_str()));
    }
    Ok(stream.finish())
}

/// What an extent of a diff is in a stream.
pub(super) fn is_data(state: ExtentState) -> bool {
    state == ExtentState::Data
}
