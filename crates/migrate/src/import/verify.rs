//! Verify: whether the target holds what the source holds. See [`crate::verify`].

use ferry_core::{Error, Result, SnapId};
use ferry_image::encoding::MigrationState;
use ferry_image::io::{layout_of, open_origin};
use ferry_image::layout::{Layout, ObjectNo};
use ferry_image::progress::Progress;
use ferry_image::revision::Ancestor;

use super::{Import, header_of};
use crate::children::as_image;
use crate::execute::{allocated, overlapping, tidy};
use crate::verify::{Comparing, Traces, Verification, compare, kept};

/// How much of a source is asked at once where its data is. Bytes.
const ASKED_AT_ONCE: u64 = 1 << 30;

/// Compares source and target of an import that has been executed. Snapshots taken or removed since prepare are left out.
///
/// # Errors
/// `Invalid` (22) in another state; `Unsupported` where another program prepared it; `Conflict` (125) where the source is not
/// what it was; those of the stores and the source. A difference is no error.
///
/// # Cancel safety
/// Nothing is changed.
pub async fn verify_import(
    import: &Import,
    how: Comparing<'_>,
    progress: Progress<'_>,
) -> Result<Verification> {
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
    let layout = layout_of(&header)?;
    let of_ends = objects(import, layout).await?;
    let kept = kept(&import.target, how.against).await?;
    let total = points.len() as u64;
    let mut verification = Verification::default();
    // A foreign source is opened, and so is known to be what it was, also where nothing of it is read.
    let newest = open_origin(&import.target.pool, &header, header.source_head()).await?;
    for (snap, from, to) in points {
        let source = match &newest {
            Ancestor::Foreign(open) => Ancestor::Foreign(open.at(from)?),
            Ancestor::Image(_) => open_origin(&import.target.pool, &header, from).await?,
        };
        let objects = match &of_ends {
            Some(objects) => {
                let mut all = objects.clone();
                all.extend(with_data(&source, layout).await?);
                tidy(&mut all);
                Some(all)
            }
            None => None,
        };
        let there = target.revision_at(to).await?;
        let row = kept.row(to).await?;
        let ends = (source, there, row, Traces::of(&target).await?);
        verification.points.push(compare(snap, ends, objects.as_deref(), how.threads).await?);
        progress(verification.points.len() as u64, total);
    }
    Ok(verification)
}

/// The objects of the target in which it, or an image that is imported, may have something; `None` for all.
async fn objects(import: &Import, layout: Layout) -> Result<Option<Vec<ObjectNo>>> {
    let header = header_of(&import.target)?;
    let Some(mut all) = allocated(&import.target, &header).await? else { return Ok(None) };
    if let Some(end) = import.source_image().await? {
        let source = end.need_header()?;
        let is_whole = source.parent_spec().is_none();
        let of_source = if is_whole { allocated(&end, source).await? } else { None };
        let Some(of_source) = of_source else { return Ok(None) };
        let from = layout_of(source)?;
        all.extend(of_source.into_iter().flat_map(|object| overlapping(from, object, layout)));
        tidy(&mut all);
    }
    Ok(Some(all))
}

/// The objects in which a foreign source has something at a point.
async fn with_data(source: &Ancestor, layout: Layout) -> Result<Vec<ObjectNo>> {
    let Ancestor::Foreign(point) = source else { return Ok(Vec::new()) };
    let mut objects = Vec::new();
    let mut offset = 0;
    while offset < point.size() {
        let length = ASKED_AT_ONCE.min(point.size() - offset);
        for data in point.data_in(offset, length).await? {
            objects.extend(layout.extents(data.offset, data.length).map(|e| e.object));
        }
        tidy(&mut objects);
        offset += length;
    }
    Ok(objects)
}
