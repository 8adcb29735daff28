//! Verify: whether the target holds what the source holds, at every snapshot and at prepare.
//!
//! The target is looked at as it will be once the source is gone: nothing is read through. What was written to it since
//! prepare lies above its point of prepare and does not count.

use std::sync::Arc;

use ferry_core::checksum::crc32c_of_two;
use ferry_core::{Error, Result, SnapId, SparseData};
use ferry_image::encoding::MigrationState;
use ferry_image::image::Image;
use ferry_image::io::layout_of;
use ferry_image::layout::{ObjectExtent, ObjectNo};
use ferry_image::limits::OBJECTS_IN_FLIGHT;
use ferry_image::progress::Progress;
use ferry_image::revision::{Ancestor, Revision};
use ferry_image::zeroes::is_zero;
use futures_util::stream::{self, StreamExt};

use crate::children::as_image;
use crate::ends::{End, Ends};
use crate::execute::allocated;

/// Bytes compared at once.
pub(crate) const STEP: u64 = 4 << 20;

/// What came of comparing one point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointReport {
    /// Name of the snapshot; `None` for the image as it was at prepare.
    pub snap: Option<String>,
    /// Size there. Bytes.
    pub size: u64,
    /// Bytes that are not zero, in blocks of 4 KiB.
    pub data_bytes: u64,
    /// CRC-32C over those blocks of the source, each after its offset (u64, little-endian).
    pub source_digest: u32,
    /// The same of the target.
    pub target_digest: u32,
    /// Where the first byte is that differs.
    pub first_difference: Option<u64>,
}

/// What came of comparing the two ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// One for each snapshot, oldest first, and one for the image as it was at prepare.
    pub points: Vec<PointReport>,
}

impl Verification {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.points.iter().all(|p| p.first_difference.is_none())
    }
}

/// Compares both ends of a migration that has been executed, byte by byte. Snapshots taken or removed since prepare are left
/// out, and so is HEAD where another program prepared the migration.
///
/// # Errors
/// `Invalid` (22) in another state; those of the stores. A difference is no error.
///
/// # Cancel safety
/// Nothing is changed.
pub async fn verify(ends: &Ends, progress: Progress<'_>) -> Result<Verification> {
    if ends.state() != MigrationState::Executed {
        return Err(Error::invalid("current migration state is another").with("state", ends.state()));
    }
    let (source, target) = (as_image(&ends.source)?, as_image(&ends.target)?);
    let record = target.header.migration.as_ref();
    let mut points: Vec<(Option<String>, SnapId, SnapId)> = Vec::new();
    for (snap, name) in source.header.snaps.values().map(|s| (s.id, &s.name)) {
        let to = record.and_then(|r| r.snap_seqs.get(&snap.0)).map(|t| SnapId(*t));
        if let Some(to) = to.filter(|t| target.header.snaps.contains_key(t)) {
            points.push((Some(name.clone()), snap, to));
        }
    }
    // Where another program prepared it, nothing tells what was written since, and only snapshots can be compared.
    points.extend(target.header.base().map(|base| (None, SnapId::HEAD, base.snap)));
    let ranges = ranges(ends, &source, &target).await?;
    let total = points.len() as u64;
    let mut verification = Verification::default();
    for (snap, from, to) in points {
        let a = Ancestor::Image(Arc::new(source.revision_at(from).await?));
        let b = target.revision_at(to).await?;
        verification.points.push(compare(snap, &a, &b, ranges.as_deref()).await?);
        progress(verification.points.len() as u64, total);
    }
    Ok(verification)
}

/// Numbers of the steps in which either end may have something; `None` for all.
pub(crate) async fn ranges(ends: &Ends, source: &Image, target: &Image) -> Result<Option<Vec<u64>>> {
    let mut steps = Vec::new();
    for (end, image) in [(&ends.source, source), (&ends.target, target)] {
        if image.header.parent_spec().is_some() {
            return Ok(None);
        }
        let Some(objects) = allocated(end, &image.header).await? else { return Ok(None) };
        steps.extend(steps_of(end, &objects)?);
        steps.sort_unstable();
        steps.dedup();
    }
    Ok(Some(steps))
}

pub(crate) fn steps_of(end: &End, objects: &[ObjectNo]) -> Result<Vec<u64>> {
    let layout = layout_of(end.need_header()?)?;
    let mut steps: Vec<u64> = Vec::new();
    for object in objects {
        let whole = ObjectExtent { object: *object, offset: 0, length: layout.object_size() };
        for part in layout.image_extents(whole) {
            for step in part.offset / STEP..=(part.end() - 1) / STEP {
                if steps.last() != Some(&step) {
                    steps.push(step);
                }
            }
        }
    }
    Ok(steps)
}

/// Compares one point.
pub(crate) async fn compare(
    snap: Option<String>,
    source: &Ancestor,
    target: &Revision,
    ranges: Option<&[u64]>,
) -> Result<PointReport> {
    let size = source.size();
    let mut report = PointReport {
        snap,
        size,
        data_bytes: 0,
        source_digest: 0,
        target_digest: 0,
        first_difference: (target.size != size).then(|| target.size.min(size)),
    };
    let all = 0..size.div_ceil(STEP);
    let steps: Box<dyn Iterator<Item = u64> + Send> = match ranges {
        Some(steps) => Box::new(steps.iter().copied().filter(move |s| s * STEP < size)),
        None => Box::new(all),
    };
    let reads = stream::iter(steps).map(|step| async move {
        let offset = step * STEP;
        let length = STEP.min(size - offset);
        let there = length.min(target.size.saturating_sub(offset));
        let a = source.read(offset, length).await?;
        let b = if there == 0 { SparseData::default() } else { target.read(offset, there).await? };
        if a.extents.is_empty() && b.extents.is_empty() {
            return Ok::<_, Error>(None);
        }
        Ok(Some((offset, a.to_vec(offset, length), b.to_vec(offset, length))))
    });
    let mut reads = std::pin::pin!(reads.buffered(OBJECTS_IN_FLIGHT));
    while let Some(read) = reads.next().await {
        if let Some((offset, a, b)) = read? {
            report.add(offset, &a, &b);
        }
    }
    Ok(report)
}

impl PointReport {
    /// Takes a range into account; ascending.
    fn add(&mut self, offset: u64, source: &[u8], target: &[u8]) {
        let mut at = offset;
        for (a, b) in source.chunks(4096).zip(target.chunks(4096)) {
            let digest = |before: u32, block: &[u8]| {
                let mut head = [0; 12];
                head[..4].copy_from_slice(&before.to_le_bytes());
                head[4..].copy_from_slice(&at.to_le_bytes());
                crc32c_of_two(&head, block)
            };
            let were_equal = self.source_digest == self.target_digest;
            if !is_zero(a) {
                self.data_bytes += a.len() as u64;
                self.source_digest = digest(self.source_digest, a);
            }
            if were_equal && a == b {
                // What is equal is summed up once.
                self.target_digest = self.source_digest;
            } else if !is_zero(b) {
                self.target_digest = digest(self.target_digest, b);
            }
            if a != b && self.first_difference.is_none_or(|d| d > at) {
                let inside = a.iter().zip(b).position(|(x, y)| x != y).unwrap_or(0);
                self.first_difference = Some(at + inside as u64);
            }
            at += a.len() as u64;
        }
    }
}
