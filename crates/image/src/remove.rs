//! Removes images: out of sight first, then the data, the link to the parent, the header.
//!
//! Order and what a crash leaves (the same call again finishes each):
//!
//! ```text
//!   trash entry Moving · names gone · Normal · Removing      found by its entry in the trash from here on
//!   data objects                                             the header still tells where they are
//!   link on the parent's side                                before the header, or the parent could never go
//!   object maps · header · trash entry                       the entry last: it is what is found again
//! ```

mod data;
#[cfg(test)]
mod tests;

use std::time::Duration;

use ferry_core::{Errno, Error, ErrorKind, Result, SnapId};

use crate::clone;
use crate::encoding::{TrashSource, TrashState, format1_name, header_object, object_map_object};
use crate::header::Opening;
use crate::image::Image;
use crate::pool::Pool;
use crate::progress::Progress;
use crate::snapshot;
use crate::status;
use crate::trash;

/// What becomes of an image whose removed snapshots clones still use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UsedParent {
    /// It is not removed.
    #[default]
    Refuse,
    /// It goes to the trash and is removed with its last clone (`rbd_move_parent_to_trash_on_remove`).
    MoveToTrash,
}

/// Removes the image called `name`.
///
/// # Errors
/// `NotFound` (2); `NotEmpty` (39) where it has snapshots; `Busy` (16) where others have it open or it is migrating; (31)
/// where it is in a consistency group; `ReadOnly` (30).
///
/// # Crash safety
/// Durable when it returns. After a crash midway the same call finishes: what is left of an image (a directory entry, an
/// id object, a trash entry, an object map) is found by its name and cleaned.
pub async fn remove(pool: &Pool, name: &str, used: UsedParent, progress: Progress<'_>) -> Result<()> {
    let id = match pool.find_id(name).await? {
        Some(id) => id,
        None => match trash::find_by_name(pool, name, TrashSource::Removing).await? {
            Some((id, _)) => return finish(pool, name, &id, progress).await,
            None => return Err(Error::not_found("no such image").with("image", name)),
        },
    };
    let image = match Image::open_by_id(pool, &id, Opening::ReadWrite).await {
        Ok(image) => Some(image),
        // Only names are left.
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    let Some(mut image) = image else {
        trash::unlink(pool, name, &id, TrashSource::Removing, Duration::ZERO).await?;
        remove_unlinked(pool, &id, progress).await?;
        return pool.store.flush().await;
    };
    name.clone_into(&mut image.name);
    let source = match check(&mut image).await {
        Ok(()) => TrashSource::Removing,
        Err(e) if used == UsedParent::MoveToTrash && e.fact("clones").is_some() => TrashSource::UserParent,
        Err(e) => return close_with(image, Err(e)).await,
    };
    let unlinked = trash::unlink(pool, name, &id, source, Duration::ZERO).await;
    if unlinked.is_err() || source == TrashSource::UserParent {
        close_with(image, unlinked).await?;
    } else {
        // The lock is kept from the check on, so that nobody takes a snapshot of what is being removed.
        remove_open(image, progress).await?;
    }
    pool.store.flush().await
}

/// Gives the lock back, then says what went wrong.
async fn close_with<T>(image: Image, result: Result<T>) -> Result<T> {
    let closed = image.close().await;
    let value = result?;
    closed?;
    Ok(value)
}

/// Finishes a removal that was cut off after the name was gone.
async fn finish(pool: &Pool, name: &str, id: &str, progress: Progress<'_>) -> Result<()> {
    trash::remove_names(pool, name, id).await?;
    match trash::set_state(pool, id, TrashState::Normal, &[TrashState::Moving]).await {
        Err(e) if e.errno() != Errno::ESTALE => return Err(e),
        _ => {}
    }
    remove_unlinked(pool, id, progress).await?;
    pool.store.flush().await
}

/// Refuses what must not be removed, and drops removed snapshots that nothing uses any more.
async fn check(image: &mut Image) -> Result<()> {
    if image.header.migration.is_some() {
        return Err(Error::busy("image is migrating").with("image", &image.name));
    }
    if image.header.group.is_some() {
        return Err(Error::busy("image is in a consistency group").errno_is(Errno::EMLINK));
    }
    check_watchers(image).await?;
    image.acquire().await?;
    snapshot::drop_unused_trash(image).await?;
    if image.header.snaps.is_empty() {
        return Ok(());
    }
    let error = Error::busy("image has snapshots").errno_is(Errno::ENOTEMPTY);
    if image.header.snaps.values().all(|s| s.namespace.is_trash()) {
        let clones: u32 = image.header.snaps.values().map(|s| s.child_count).sum();
        return Err(error.with("clones", clones));
    }
    Err(error.with("snapshots", image.header.snaps.len()))
}

/// Refuses an image that somebody else has open to write.
///
/// # Errors
/// `Busy` (16).
pub async fn check_watchers(image: &Image) -> Result<()> {
    let watchers = status::watchers(image).await?;
    let mine = image.session.as_ref().map(|s| s.handle());
    let client = image.pool.store.client();
    match watchers.iter().find(|w| w.client != client || Some(w.handle.0) != mine) {
        None => Ok(()),
        Some(other) => {
            let error = Error::busy("image still has watchers").with("watcher", other.client);
            let is_known = !other.address.is_empty();
            Err(if is_known { error.with("address", &other.address) } else { error })
        }
    }
}

/// Removes all that is left of an image that has no name any more and stands in the trash.
///
/// # Errors
/// As [`remove`].
pub async fn remove_unlinked(pool: &Pool, id: &str, progress: Progress<'_>) -> Result<()> {
    let image = match Image::open_by_id(pool, id, Opening::ReadWrite).await {
        Ok(image) => Some(image),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    let Some(mut image) = image else {
        trash::set_state(pool, id, TrashState::Removing, &[TrashState::Normal]).await?;
        return remove_rest(pool, id).await;
    };
    if let Err(e) = check(&mut image).await {
        return close_with(image, Err(e)).await;
    }
    remove_open(image, progress).await
}

/// Removes an image that may be removed and stands in the trash.
async fn remove_open(mut image: Image, progress: Progress<'_>) -> Result<()> {
    let (pool, id) = (image.pool.clone(), image.id.clone());
    let contents = async {
        trash::set_state(&pool, &id, TrashState::Removing, &[TrashState::Normal]).await?;
        remove_contents(&mut image, progress).await
    };
    if let Err(e) = contents.await {
        // What went wrong first is what is told.
        drop(trash::set_state(&pool, &id, TrashState::Normal, &[TrashState::Removing]).await);
        return close_with(image, Err(e)).await;
    }
    if let Some(session) = &image.session {
        session.release().await?;
    }
    drop(image);
    pool.remove_object(&pool.object(&header_object(&id))).await?;
    remove_rest(&pool, &id).await
}

/// Removes what is left of an image whose header is gone.
async fn remove_rest(pool: &Pool, id: &str) -> Result<()> {
    if format1_name(id).is_some() {
        return Ok(());
    }
    pool.remove_object(&pool.object(&object_map_object(id, SnapId::HEAD))).await?;
    trash::forget(pool, id).await
}

/// Removes the data and the link on the parent's side.
async fn remove_contents(image: &mut Image, progress: Progress<'_>) -> Result<()> {
    data::remove_data(image, progress).await?;
    if let Some(parent) = image.header.parent_spec().cloned() {
        clone::detach_from_parent(image, &parent).await?;
    }
    Ok(())
}
