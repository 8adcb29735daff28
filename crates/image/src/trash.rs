//! The trash of a namespace: images without a name, to be brought back or removed later.
//!
//! ```text
//!   named ── move_in ──► Moving ──► Normal ── restore ──► Restoring ──► named
//!                                     └──── remove ──► Removing ──► (gone)
//! ```
//!
//! Invariants
//! - An image is found by `rbd_id.<name>` or by its entry here or, midway, by both; never by neither.
//! - `Normal` is written after the name is gone. A crash midway leaves `Moving` or `Restoring`, and the same command
//!   again finishes.

#[cfg(test)]
mod tests;

use std::time::Duration;

use ferry_core::{Errno, Error, ErrorKind, Result, Timestamp};

use crate::encoding::{
    TRASH_OBJECT, TrashEntry, TrashNotice, TrashSource, TrashState, directory_id, format1_name, trash_key,
};
use crate::header::Opening;
use crate::image::Image;
use crate::pool::Pool;
use crate::progress::{Progress, silent};
use crate::remove;

/// How long watchers of the trash have to answer.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(5);

/// All entries of the namespace's trash, by id.
///
/// # Errors
/// Those of the store; `Corrupt`.
pub async fn list(pool: &Pool) -> Result<Vec<(String, TrashEntry)>> {
    let entries = pool.read_entries(&pool.object(TRASH_OBJECT), "id_").await?;
    entries
        .iter()
        .map(|(key, value)| {
            let id = std::str::from_utf8(&key["id_".len()..])
                .map_err(|e| Error::corrupt("an id in the trash is not UTF-8").because(e))?;
            Ok((id.to_owned(), TrashEntry::decode(value)?))
        })
        .collect()
}

/// The entry of the image with this id.
///
/// # Errors
/// Those of the store; `Corrupt`.
pub async fn get(pool: &Pool, id: &str) -> Result<Option<TrashEntry>> {
    let value = pool.read_key(&pool.object(TRASH_OBJECT), &trash_key(id)).await?;
    value.map(|v| TrashEntry::decode(&v)).transpose()
}

/// The first entry with this name and source.
///
/// # Errors
/// Those of the store; `Corrupt`.
pub async fn find_by_name(
    pool: &Pool,
    name: &str,
    source: TrashSource,
) -> Result<Option<(String, TrashEntry)>> {
    Ok(all_by_name(pool, name, source).await?.into_iter().next())
}

/// As [`find_by_name`], of several all.
///
/// # Errors
/// Those of the store; `Corrupt`.
pub async fn all_by_name(pool: &Pool, name: &str, source: TrashSource) -> Result<Vec<(String, TrashEntry)>> {
    let all = list(pool).await?;
    Ok(all.into_iter().filter(|(_, e)| e.name == name && e.source == source).collect())
}

/// Puts an image into the trash and protects it from removal for `delay`. Returns its id.
///
/// # Errors
/// `NotFound` (2); `Busy` (16) while it is migrating; `ReadOnly` (30).
///
/// # Crash safety
/// Durable when it returns. After a crash midway the same call finishes.
pub async fn move_in(pool: &Pool, name: &str, source: TrashSource, delay: Duration) -> Result<String> {
    let id = match pool.find_id(name).await? {
        Some(id) => id,
        None => return finish_moving(pool, name, source).await,
    };
    match Image::open_by_id(pool, &id, Opening::ReadWrite).await {
        Ok(mut image) => {
            if image.header.migration.is_some() {
                return Err(Error::busy("cannot move migrating image to trash").with("image", name));
            }
            if let Err(e) = image.header.need_format2() {
                image.close().await?;
                return Err(e);
            }
            image.acquire().await?;
            unlink(pool, name, &id, source, delay).await?;
            image.close().await?;
        }
        Err(e) => return Err(e),
    }
    Ok(id)
}

/// Finishes a move that was cut off after the name was gone.
async fn finish_moving(pool: &Pool, name: &str, source: TrashSource) -> Result<String> {
    match find_by_name(pool, name, source).await? {
        Some((id, entry)) if entry.state == TrashState::Moving => {
            set_state(pool, &id, TrashState::Normal, &[TrashState::Moving]).await?;
            pool.store.flush().await?;
            Ok(id)
        }
        Some(_) | None => Err(Error::not_found("no such image").with("image", name)),
    }
}

/// Takes an image's names away and puts it into the trash. One of format 1 only leaves the directory: nothing else finds it by
/// another name.
///
/// # Errors
/// Those of the store.
///
/// # Crash safety
/// After a crash midway the same call finishes.
pub async fn unlink(pool: &Pool, name: &str, id: &str, source: TrashSource, delay: Duration) -> Result<()> {
    if let Some(name) = format1_name(id) {
        return pool.delist_format1(name).await;
    }
    let now = pool.env.clock.now();
    let entry = TrashEntry {
        source,
        name: name.to_owned(),
        deleted: now,
        deferred_until: now.after(delay),
        state: TrashState::Moving,
        newer: false,
    };
    put(pool, id, &entry).await?;
    remove_names(pool, name, id).await?;
    set_state(pool, id, TrashState::Normal, &[TrashState::Moving]).await?;
    notify(pool, &TrashNotice::Added { id: id.to_owned(), entry }).await
}

/// Notes an image that is about to be made, so that it is found by its name and can be taken away where that is cut off.
///
/// # Errors
/// Those of the store.
///
/// # Crash safety
/// The entry goes with [`forget`] once the image is whole, or as part of its removal.
pub async fn announce(pool: &Pool, name: &str, id: &str) -> Result<()> {
    let now = pool.env.clock.now();
    let entry = TrashEntry {
        source: TrashSource::Removing,
        name: name.to_owned(),
        deleted: now,
        deferred_until: now,
        state: TrashState::Moving,
        newer: false,
    };
    put(pool, id, &entry).await
}

/// Takes all names of an image away: the one given, and the one the directory has where a rename was cut off.
pub(crate) async fn remove_names(pool: &Pool, name: &str, id: &str) -> Result<()> {
    if let Some(name) = format1_name(id) {
        return pool.delist_format1(name).await;
    }
    let listed = pool.image_name(id).await?;
    pool.remove_id(name, id).await?;
    if let Some(other) = listed.filter(|n| n != name) {
        pool.remove_id(&other, id).await?;
        pool.directory_remove(&other, id).await?;
    }
    pool.directory_remove(name, id).await.map(drop)
}

/// Writes an entry, over one that is there for an image that still has its name.
async fn put(pool: &Pool, id: &str, entry: &TrashEntry) -> Result<()> {
    let value = entry.encode()?;
    pool.change_key(&pool.object(TRASH_OBJECT), &trash_key(id), |before| {
        if let Some(before) = before
            && TrashEntry::decode(before)?.state == TrashState::Removing
        {
            return Err(Error::busy("image is being removed"));
        }
        Ok(Some(value.clone()))
    })
    .await
}

/// Changes an entry's state from one of `expected`; nothing where it has the new one, or for an image of format 1.
///
/// # Errors
/// `NotFound` (2) where there is no entry; `Conflict` (116) where it is in another state.
pub async fn set_state(pool: &Pool, id: &str, state: TrashState, expected: &[TrashState]) -> Result<()> {
    if format1_name(id).is_some() {
        return Ok(());
    }
    pool.change_key(&pool.object(TRASH_OBJECT), &trash_key(id), |before| {
        let Some(before) = before else {
            return Err(Error::not_found("image is not in the trash").with("id", id));
        };
        let entry = TrashEntry::decode(before)?;
        if entry.state == state {
            return Ok(Some(before.clone()));
        }
        if !expected.contains(&entry.state) {
            return Err(Error::new(ErrorKind::Conflict, "image in the trash is in another state")
                .errno_is(Errno::ESTALE));
        }
        TrashEntry { state, ..entry }.encode().map(Some)
    })
    .await
}

/// Drops an entry; nothing where there is none.
///
/// # Errors
/// Those of the store.
pub async fn forget(pool: &Pool, id: &str) -> Result<()> {
    if format1_name(id).is_some() {
        return Ok(());
    }
    pool.change_key(&pool.object(TRASH_OBJECT), &trash_key(id), |_| Ok(None)).await?;
    notify(pool, &TrashNotice::Removed { id: id.to_owned() }).await
}

async fn notify(pool: &Pool, notice: &TrashNotice) -> Result<()> {
    match pool.store.notify(&pool.object(TRASH_OBJECT), notice.encode(), NOTIFY_TIMEOUT).await {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Gives an image in the trash its name back, or `name`. The sources accepted are those `rbd trash restore` accepts,
/// unless `source` asks for one.
///
/// # Errors
/// `NotFound` (2) where it is not in the trash; `Exists` (17) where the name is taken; `Invalid` (22) for an entry of
/// another source; `Busy` (16) where it is on its way in or being removed.
///
/// # Crash safety
/// Durable when it returns. After a crash midway the same call finishes.
pub async fn restore(pool: &Pool, id: &str, name: Option<&str>, source: Option<TrashSource>) -> Result<()> {
    let missing = || Error::not_found("image is not in the trash").with("id", id);
    let entry = get(pool, id).await?.ok_or_else(missing)?;
    let accepted = match source {
        Some(source) => entry.source == source,
        None => matches!(entry.source, TrashSource::User | TrashSource::Mirroring | TrashSource::UserParent),
    };
    if !accepted {
        return Err(Error::invalid("image is in the trash for another reason").with("id", id));
    }
    if !matches!(entry.state, TrashState::Normal | TrashState::Restoring) {
        return Err(Error::busy("image in the trash is being moved or removed").with("id", id));
    }
    let name = name.unwrap_or(&entry.name);
    check_name(name)?;
    set_state(pool, id, TrashState::Restoring, &[TrashState::Normal]).await?;
    if name != entry.name {
        // What a restore under the old name left when it was cut off.
        pool.remove_id(&entry.name, id).await?;
    }
    if let Err(e) = link(pool, name, id).await {
        if e.kind() == ErrorKind::Exists {
            set_state(pool, id, TrashState::Normal, &[TrashState::Restoring]).await?;
        }
        return Err(e);
    }
    forget(pool, id).await?;
    pool.store.flush().await
}

/// Gives an image a name; nothing where it has it.
async fn link(pool: &Pool, name: &str, id: &str) -> Result<()> {
    if pool.listed_id(name).await?.is_some_and(|other| other != id) {
        return Err(Error::exists("an image of this name exists").with("image", name));
    }
    pool.create_id(name, id).await?;
    match pool.directory_add(name, id).await {
        Err(e) if e.kind() == ErrorKind::Exists && pool.listed_id(name).await?.as_deref() == Some(id) => {
            Ok(())
        }
        Err(e) if e.errno() == Errno::EBADF => {
            // Cut off before under another name: that name goes.
            let other =
                pool.read_key(&pool.object(crate::encoding::DIRECTORY_OBJECT), &directory_id(id)).await?;
            if let Some(other) = other.map(|v| crate::encoding::decode_string(&v)).transpose()? {
                pool.remove_id(&other, id).await?;
                pool.directory_remove(&other, id).await?;
            }
            pool.directory_add(name, id).await
        }
        other => other,
    }
}

/// Refuses what cannot be the name of an image.
///
/// # Errors
/// `Invalid` (22).
pub(crate) fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.contains(['/', '@', '\0']) {
        return Err(Error::invalid("not a name of an image").with("image", name));
    }
    Ok(())
}

/// Whether the time until which an image may not be removed is over.
#[must_use]
pub fn is_expired(entry: &TrashEntry, now: Timestamp) -> bool {
    entry.deferred_until <= now
}

/// Removes an image that is in the trash, its data too.
///
/// # Errors
/// `NotFound` (2) where it is not in the trash; `Denied` (1) where it is protected by time and `force` is not given;
/// `Corrupt` (117) where it is on its way in, `Busy` (16) where it is on its way out; `ReadOnly` (30) for the source of
/// a migration; those of [`remove::remove`].
///
/// # Crash safety
/// After a crash midway the same call finishes.
pub async fn remove(pool: &Pool, id: &str, force: Force, progress: Progress<'_>) -> Result<()> {
    let Some(entry) = get(pool, id).await? else {
        return Err(Error::not_found("image is not in the trash").with("id", id));
    };
    match entry.state {
        TrashState::Normal | TrashState::Removing => {}
        TrashState::Moving => {
            return Err(Error::corrupt("image was not wholly moved to the trash").errno_is(Errno::EUCLEAN));
        }
        TrashState::Restoring | TrashState::Unknown(_) => {
            return Err(Error::busy("image in the trash is being restored"));
        }
    }
    if entry.source == TrashSource::Migration {
        // Also where its header does not say so: a prepare that was cut off has not come to that yet.
        return Err(Error::new(ErrorKind::ReadOnly, "image being migrated").with("id", id));
    }
    if force == Force::No && !is_expired(&entry, pool.env.clock.now()) {
        return Err(Error::new(ErrorKind::Denied, "deferment time has not expired").errno_is(Errno::EPERM));
    }
    remove::remove_unlinked(pool, id, progress).await?;
    pool.store.flush().await
}

/// Whether something protected is done all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// It is refused.
    No,
    /// It is done.
    Yes,
}

/// What a purge did.
#[derive(Debug, Default)]
pub struct Purged {
    /// Ids removed.
    pub removed: Vec<String>,
    /// Ids left because something uses them, and why.
    pub failed: Vec<(String, Error)>,
}

/// Removes all images a user put into the trash whose protection ended before `expired_before`. Images that depend on each
/// other go in the order that works.
///
/// # Errors
/// Those of the store. An image that cannot be removed is no error but listed.
pub async fn purge(pool: &Pool, expired_before: Timestamp, progress: Progress<'_>) -> Result<Purged> {
    let mut waiting: Vec<String> = list(pool)
        .await?
        .into_iter()
        .filter(|(_, e)| e.source == TrashSource::User && e.deferred_until <= expired_before)
        .map(|(id, _)| id)
        .collect();
    let (mut purged, total) = (Purged::default(), waiting.len() as u64);
    loop {
        let before = waiting.len();
        purged.failed.clear();
        for id in std::mem::take(&mut waiting) {
            match remove(pool, &id, Force::Yes, &mut silent).await {
                Ok(()) => purged.removed.push(id),
                // Went with another: a parent whose last clone was removed.
                Err(e) if e.kind() == ErrorKind::NotFound => purged.removed.push(id),
                Err(e) if matches!(e.kind(), ErrorKind::Busy | ErrorKind::Unsupported) => {
                    purged.failed.push((id, e));
                }
                Err(e) => return Err(e),
            }
            progress(purged.removed.len() as u64, total);
        }
        if purged.failed.is_empty() || purged.failed.len() == before {
            return Ok(purged);
        }
        waiting = purged.failed.iter().map(|(id, _)| id.clone()).collect();
    }
}
