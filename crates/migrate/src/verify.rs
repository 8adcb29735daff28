//! Verify: whether the target holds what the source holds, at every snapshot and at prepare.
//!
//! The target is looked at as it will be once the source is gone: nothing is read through. What was written to it since
//! prepare lies above its point of prepare and does not count. On a cluster `rbd` may have written too: it knows no point of prepare
//! and writes over it, so objects that it wrote are left out there, and counted.
//!
//! Invariants
//! - All of the target is read, and compared with what was read of the source: when it was copied, where a digest of that was
//!   kept, or now.
//! - A digest that the target does not have decides nothing: both ends are read then. So what is refused differs in a byte.

mod compare;

use std::sync::Arc;

use ferry_core::{Error, Result, SnapId};
use ferry_image::digest::Digest;
use ferry_image::encoding::MigrationState;
use ferry_image::image::Image;
use ferry_image::io::layout_of;
use ferry_image::layout::{Layout, ObjectExtent, ObjectNo};
use ferry_image::progress::Progress;
use ferry_image::revision::Ancestor;
use futures_util::future::BoxFuture;

use crate::children::as_image;
use crate::digests::Kept;
use crate::ends::Ends;
use crate::execute::{allocated, overlapping, tidy};
pub(crate) use compare::{Traces, compare, others_may_write};

/// Bytes compared at once.
pub(crate) const STEP: u64 = 4 << 20;

/// What the target is compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Against {
    /// The digests of what was read of the source to be copied; the source where there is none, or another.
    #[default]
    Kept,
    /// The source, all of it read again.
    Source,
}

/// Threads that there may be to compare on: reading and hashing are most of the work.
pub trait Threads: Send + Sync + std::fmt::Debug {
    /// Runs work to its end beside the caller.
    fn start(&self, work: BoxFuture<'static, ()>);
}

/// How to compare.
#[derive(Clone, Copy, Debug, Default)]
pub struct Comparing<'a> {
    /// With what.
    pub against: Against,
    /// Where; on the caller's thread alone where there are none.
    pub threads: Option<&'a dyn Threads>,
}

/// What came of comparing one point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointReport {
    /// Name of the snapshot; `None` for the image as it was at prepare.
    pub snap: Option<String>,
    /// Size there. Bytes.
    pub size: u64,
    /// Bytes of the source that are not zero, in blocks of 4 KiB.
    pub data_bytes: u64,
    /// As many of them were not read again: the target has the digest that was kept when they were copied.
    pub digest_bytes: u64,
    /// Sum of the hashes of those blocks of the source.
    pub source_digest: Digest,
    /// The same of the target.
    pub target_digest: Digest,
    /// Where the first byte is that differs.
    pub first_difference: Option<u64>,
    /// At the point of prepare: bytes of objects that another program has written to since, which cannot be compared.
    pub overwritten: u64,
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

/// Compares both ends of a migration that has been executed. Snapshots taken or removed since prepare are left out, and so is
/// HEAD where another program prepared the migration.
///
/// # Errors
/// `Invalid` (22) in another state; those of the stores. A difference is no error.
///
/// # Cancel safety
/// Nothing is changed.
pub async fn verify(ends: &Ends, how: Comparing<'_>, progress: Progress<'_>) -> Result<Verification> {
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
    let objects = objects(ends, &source, &target).await?;
    let kept = kept(&ends.target, how.against).await?;
    let total = points.len() as u64;
    let mut verification = Verification::default();
    for (snap, from, to) in points {
        let a = Ancestor::Image(Arc::new(source.revision_at(from).await?));
        let b = target.revision_at(to).await?;
        let row = kept.row(to).await?;
        let ends = (a, b, row, Traces::of(&target).await?);
        verification.points.push(compare(snap, ends, objects.as_deref(), how.threads).await?);
        progress(verification.points.len() as u64, total);
    }
    Ok(verification)
}

/// The digests that count.
pub(crate) async fn kept(target: &crate::ends::End, against: Against) -> Result<Kept> {
    match against {
        Against::Kept => Kept::open(target).await,
        Against::Source => Ok(Kept::none()),
    }
}

/// Numbers of the steps in which either end may have something; `None` for all.
pub(crate) async fn ranges(ends: &Ends, source: &Image, target: &Image) -> Result<Option<Vec<u64>>> {
    let layout = layout_of(&target.header)?;
    Ok(objects(ends, source, target).await?.map(|objects| steps_of(layout, &objects)))
}

/// Numbers of the steps that some objects have a part in. Ascending.
fn steps_of(layout: Layout, objects: &[ObjectNo]) -> Vec<u64> {
    let mut steps: Vec<u64> = Vec::new();
    for object in objects {
        let whole = ObjectExtent { object: *object, offset: 0, length: layout.object_size() };
        for part in layout.image_extents(whole) {
            steps.extend(part.offset / STEP..=(part.end() - 1) / STEP);
        }
        steps.dedup();
    }
    steps.sort_unstable();
    steps.dedup();
    steps
}

/// The objects of the target in which either end may have something; `None` for all.
async fn objects(ends: &Ends, source: &Image, target: &Image) -> Result<Option<Vec<ObjectNo>>> {
    if source.header.parent_spec().is_some() || target.header.parent_spec().is_some() {
        return Ok(None);
    }
    let Some(mut all) = allocated(&ends.target, &target.header).await? else { return Ok(None) };
    let Some(of_source) = allocated(&ends.source, &source.header).await? else { return Ok(None) };
    let (from, to) = (layout_of(&source.header)?, layout_of(&target.header)?);
    all.extend(of_source.into_iter().flat_map(|object| overlapping(from, object, to)));
    tidy(&mut all);
    Ok(Some(all))
}
