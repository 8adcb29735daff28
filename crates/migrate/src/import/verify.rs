//! Verify: whether the target holds what the source holds. See [`crate::verify`].

use ferry_core::{Error, Result, SnapId};
use ferry_image::encoding::MigrationState;
use ferry_image::io::open_origin;
use ferry_image::progress::Progress;
use ferry_image::revision::Ancestor;

use super::{Import, header_of};
use crate::children::as_image;
use crate::execute::allocated;
use crate::verify::{STEP, Verification, compare, steps_of};

/// How much of a source is asked at once where its data is. Bytes.
const ASKED_AT_ONCE: u64 = 1 << 30;

/// Compares source and target of an import that has been executed, byte by byte. Snapshots taken or removed since prepare are
/// left out.
///
/// # Errors
/// `Invalid` (22) in another state; `Unsupported` where another program prepared it; `Conflict` (125) where the source is not
/// what it was; those of the stores and the source. A difference is no error.
///
/// # Cancel safety
/// Nothing is changed.
pub async fn verify_import(import: &Import, progress: Progress<'_>) -> Result<Verification> {
    if import.state() != MigrationState::Executed {
        return Err(Error::invalid("current migration state is another").with("state", import.state()));
    }
    let target = as_image(&import.target)?;
    let header = header_of(&import.target)?;
    let base = header.base().ok_or_else(|| Error::unsupported("not prepared by ferry"))?;
    let mut points: Vec<(Option<String>, SnapId, SnapId)> = Vec::new();
    for (from, to) in header.migration.iter().flat_map(|m| &m.snap_seqs) {
        if let Ok(snap) = header.snap(SnapId(*to)) {
            points.push((Some(snap.name.clone()), SnapId(*from), SnapId(*to)));
        }
    }
    points.push((None, header.source_head(), base.snap));
    let of_target = match allocated(&import.target, &header).await? {
        Some(objects) => Some(steps_of(&import.target, &objects)?),
        None => None,
    };
    let of_source = match (import.source_image().await?, &of_target) {
        (Some(end), Some(_)) => {
            let source = end.need_header()?;
            let is_whole = source.parent_spec().is_none();
            let objects = if is_whole { allocated(&end, source).await? } else { None };
            objects.map(|objects| steps_of(&end, &objects)).transpose()?
        }
        (None, _) => Some(Vec::new()),
        (Some(_), None) => None,
    };
    let total = points.len() as u64;
    let mut verification = Verification::default();
    for (snap, from, to) in points {
        let source = open_origin(&import.target.pool, &header, from).await?;
        let ranges = match (&of_target, &of_source) {
            (Some(a), Some(b)) => {
                let mut all: Vec<u64> = a.iter().chain(b).copied().collect();
                all.extend(steps_with_data(&source).await?);
                all.sort_unstable();
                all.dedup();
                Some(all)
            }
            _ => None,
        };
        let there = target.revision_at(to).await?;
        verification.points.push(compare(snap, &source, &there, ranges.as_deref()).await?);
        progress(verification.points.len() as u64, total);
    }
    Ok(verification)
}

/// Numbers of the steps in which a foreign source has something at a point.
async fn steps_with_data(source: &Ancestor) -> Result<Vec<u64>> {
    let Ancestor::Foreign(point) = source else { return Ok(Vec::new()) };
    let mut steps = Vec::new();
    let mut offset = 0;
    while offset < point.size() {
        let length = ASKED_AT_ONCE.min(point.size() - offset);
        for data in point.data_in(offset, length).await? {
            steps.extend(data.offset / STEP..=(data.offset + data.length - 1) / STEP);
        }
        offset += length;
    }
    Ok(steps)
}
