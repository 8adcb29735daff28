//! Execute: what the source holds at any point goes to the target. See [`crate::execute`].

use ferry_core::{Error, Result, SnapId};
use ferry_image::device::ImageDevice;
use ferry_image::io::open_origin;
use ferry_image::layout::ObjectNo;
use ferry_image::progress::Progress;
use ferry_image::revision::Ancestor;

use super::Import;
use crate::digests::Keeper;
use crate::execute::{Copied, Pace, begin, candidates_of, copy_objects, finish, tidy};

/// How much of a source is asked at once where its data is. Bytes.
const ASKED_AT_ONCE: u64 = 1 << 30;

/// Copies everything to the target, which is open as `device`; clients may use it meanwhile.
///
/// # Errors
/// As [`crate::execute()`]; `Conflict` (125) where the source is not what it was at prepare.
///
/// # Crash safety
/// Killed, the same call goes on: what is below the cursor of the note is not asked for again.
///
/// # Cancel safety
/// As killed.
pub async fn execute_import(
    import: &mut Import,
    device: &ImageDevice,
    pace: &dyn Pace,
    progress: Progress<'_>,
) -> Result<Copied> {
    let state = import.state();
    begin(&mut [&mut import.target], state).await?;
    device.refresh().await?;
    device.acquire().await?;
    let objects = match import.source_image().await? {
        Some(source) => {
            source.header.as_ref().ok_or_else(|| {
                Error::not_found("the image imported from is gone").with("image", &source.name)
            })?;
            candidates_of(&source, true, device).await?
        }
        None => candidates(import, device, pace).await?,
    };
    let cursor = import.target.intent().map_or(0, |i| i.cursor);
    let keeper = Keeper::open(&import.target).await?;
    let copied =
        copy_objects(&mut [&mut import.target], keeper, device, objects, cursor, pace, progress).await?;
    finish(None, &mut import.target, device).await?;
    Ok(copied)
}

/// The objects of the target that a foreign source may have something for. Ascending.
async fn candidates(import: &Import, device: &ImageDevice, pace: &dyn Pace) -> Result<Vec<ObjectNo>> {
    let io = device.io();
    let Some(history) = io.history() else { return Ok(Vec::new()) };
    let (layout, count) = (io.revision().layout, history.object_count());
    let mut wanted = Vec::new();
    for snap in points(import)? {
        let header = import.target.need_header()?;
        let Ancestor::Foreign(point) = open_origin(&import.target.pool, header, snap).await? else {
            return Err(Error::invalid("the source of the import is an image"));
        };
        let mut offset = 0;
        while offset < point.size() {
            // Stops where told to.
            pace.admit(0).await?;
            let length = ASKED_AT_ONCE.min(point.size() - offset);
            for data in point.data_in(offset, length).await? {
                wanted.extend(layout.extents(data.offset, data.length).map(|e| e.object));
            }
            wanted.retain(|o: &ObjectNo| o.0 < count);
            tidy(&mut wanted);
            offset += length;
        }
    }
    Ok(wanted)
}

/// The points of the source that the target still shows, as `snap_seqs` names them; HEAD last.
fn points(import: &Import) -> Result<Vec<SnapId>> {
    let header = import.target.need_header()?;
    let mapped = header.migration.iter().flat_map(|m| m.snap_seqs.keys().map(|s| SnapId(*s)));
    Ok(mapped.chain([header.source_head()]).collect())
}
