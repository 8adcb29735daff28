//! Takes one end of a migration away for good: snapshots, data, names, header.

use std::time::Duration;

use ferry_core::{Effect, ErrorKind, Guard, ReadOp, Result, SnapId, WriteOp};
use ferry_image::encoding::{Protection, TrashSource, TrashState};
use ferry_image::history::MARK;
use ferry_image::image::Image;
use ferry_image::io::layout_of;
use ferry_image::progress::Progress;
use ferry_image::{remove, snapshot, trash};

use crate::ends::End;

/// Removes an end that nothing needs any more, under whatever names are left of it.
///
/// # Errors
/// `Busy` (16) where clones still hang on it; those of the store.
///
/// # Crash safety
/// After a crash midway the same call finishes; it is found by its id.
pub(crate) async fn remove_end(end: &mut End, source: TrashSource, progress: Progress<'_>) -> Result<()> {
    end.reload().await?;
    unlink(end, source).await?;
    end.pool.store.flush().await?;
    if end.header.is_some() {
        let mut image = end.open().await?;
        let stripped = strip(&mut image).await;
        image.close().await?;
        stripped?;
        end.pool.store.flush().await?;
    }
    if end.header.is_some() || trash::get(&end.pool, &end.id).await?.is_some() {
        remove::remove_unlinked(&end.pool, &end.id, progress).await?;
    }
    end.pool.store.flush().await?;
    end.header = None;
    Ok(())
}

/// Puts it into the trash, where it is not there yet.
pub(crate) async fn unlink(end: &End, source: TrashSource) -> Result<()> {
    let (pool, name, id) = (&end.pool, &end.name, &end.id);
    let named = pool.image_name(id).await?;
    let has_name = named.is_some() || pool.read_id(name).await?.as_ref() == Some(id);
    let entry = trash::get(pool, id).await?;
    if has_name {
        let name = named.as_ref().unwrap_or(name);
        trash::unlink(pool, name, id, source, Duration::ZERO).await
    } else if entry.as_ref().is_some_and(|e| e.state == TrashState::Moving) {
        trash::set_state(pool, id, TrashState::Normal, &[TrashState::Moving]).await
    } else if entry.is_none() && end.header.is_some() {
        // It never had a name.
        trash::unlink(pool, name, id, source, Duration::ZERO).await
    } else {
        Ok(())
    }
}

/// What [`sweep`] removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swept {
    /// Objects that were not finished before their snapshot was removed.
    Unfinished,
    /// Those, and, on a store that cannot tell otherwise what has been copied, empty ones that say so.
    All,
}

/// Removes what a copy leaves behind the end of a target that is, or was, smaller than one of its snapshots, where no object
/// map knows of it.
///
/// # Errors
/// Those of the store.
pub(crate) async fn sweep(image: &Image, what: Swept) -> Result<()> {
    let (header, store) = (&image.header, &image.pool.store);
    let Some(base) = header.base() else { return Ok(()) };
    let layout = layout_of(header)?;
    let lowest = header.migration.as_ref().map_or(base.size, |m| m.overlap);
    for object in layout.object_count(lowest)..layout.object_count(base.largest) {
        let id = image.data_object(object);
        let op = ReadOp { xattrs: true, ..ReadOp::default() };
        let found = match store.read(&id, SnapId::HEAD, op).await {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            found => found?,
        };
        let is_inside = object < layout.object_count(header.size);
        let is_unfinished = found.xattrs.contains_key(MARK);
        if !is_unfinished && (what == Swept::Unfinished || is_inside && found.size > 0) {
            continue;
        }
        let op = WriteOp::new().guard(Guard::AssertVersion(found.version)).effect(Effect::Remove).full_try();
        // What an unfinished one holds is none of any snapshot that is left.
        let op = if is_unfinished { op } else { op.under(header.snap_context()) };
        match store.write(&id, op).await {
            // Written by a client meanwhile, who announced it.
            Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Conflict) => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Makes it an image without snapshots that is not migrating.
async fn strip(image: &mut Image) -> Result<()> {
    image.acquire().await?;
    sweep(image, Swept::All).await?;
    let ids: Vec<SnapId> = image.header.snaps.keys().rev().copied().collect();
    for id in ids {
        if image.header.snap(id)?.protection != Protection::Unprotected {
            image.update_header(|h| h.set_protection(id, Protection::Unprotected)).await?;
        }
        match snapshot::remove_by_id(image, id).await {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    if let Some(base) = image.header.base() {
        image.pool.store.release_snap(image.data_pool(), base.snap).await?;
    }
    image
        .update_header(|h| {
            h.end_migration();
            if let Some(intent) = &mut h.intent {
                intent.base = None;
            }
            Ok(())
        })
        .await
}
