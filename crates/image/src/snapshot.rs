//! Snapshots of an image: made, named, protected, counted, removed.
//!
//! Invariants
//! - A snapshot is in the header before `create` returns, and all watchers have read it: whoever writes, writes under the
//!   new snapshot context.
//! - A snapshot that v2 clones use is not removed but moved to the trash namespace; it goes with the last clone.
//! - The object map of a snapshot is a copy of HEAD's, whose objects are clean afterwards.

mod maps;
mod pins;
#[cfg(test)]
mod tests;

use ferry_core::{Errno, Error, ErrorKind, Result, SnapId};

use crate::clone;
use crate::encoding::{Protection, SnapshotNamespace, SnapshotRecord};
use crate::features::Features;
use crate::id::new_uuid;
use crate::image::Image;
use crate::progress::Progress;

/// How often an id that turns out not to be new is replaced by another.
const ID_RETRIES_MAX: usize = 64;

/// Makes a user's snapshot of HEAD and returns its id.
///
/// # Errors
/// `Exists` (17); `NoSpace` (122) at the image's limit; `Invalid` (22) for an empty name; `ReadOnly` (30).
///
/// # Crash safety
/// Durable when it returns. A crash midway leaves either nothing but a used-up id, or the snapshot.
pub async fn create(image: &mut Image, name: &str) -> Result<SnapId> {
    create_in(image, name, &SnapshotNamespace::User).await
}

/// As [`create`], in any namespace.
///
/// # Errors
/// As [`create`].
pub async fn create_in(image: &mut Image, name: &str, namespace: &SnapshotNamespace) -> Result<SnapId> {
    image.acquire().await?;
    image.header.check_new_snapshot(name, namespace)?;
    let (store, pool) = (std::sync::Arc::clone(&image.pool.store), image.data_pool());
    for _ in 0..ID_RETRIES_MAX {
        let id = store.allocate_snap(pool).await?;
        let now = image.pool.env.clock.now();
        let object = image.header_object();
        let added =
            crate::header::update(&*store, &object, |h| h.add_snapshot(id, name, namespace.clone(), now))
                .await;
        match added {
            Ok((header, ())) => {
                image.header = std::sync::Arc::new(header);
                maps::created(image, id).await?;
                image.notify_header().await?;
                store.flush().await?;
                return Ok(id);
            }
            Err(e) => {
                store.release_snap(pool, id).await?;
                if e.errno() != Errno::ESTALE {
                    return Err(e);
                }
            }
        }
    }
    Err(Error::busy("no snapshot id above the image's could be had").with("image", &image.name))
}

/// Renames a user's snapshot.
///
/// # Errors
/// `NotFound` (2); `Exists` (17); `Invalid` (22) for an empty name.
pub async fn rename(image: &mut Image, from: &str, to: &str) -> Result<()> {
    image
        .update_header(|h| {
            let id = h.user_snap(from)?.id;
            h.rename_snapshot(id, to)
        })
        .await?;
    image.pool.store.flush().await
}

/// Protects a user's snapshot from removal, so that v1 clones may be made of it.
///
/// # Errors
/// `NotFound` (2); `Busy` (16) where it is protected; `Unsupported` (38) without layering.
pub async fn protect(image: &mut Image, name: &str) -> Result<()> {
    if !image.header.features.contains(Features::LAYERING) {
        return Err(Error::unsupported("image must support layering").errno_is(Errno::ENOSYS));
    }
    image
        .update_header(|h| {
            let snap = h.user_snap(name)?;
            if snap.protection == Protection::Protected {
                return Err(Error::busy("snap is already protected").with("snapshot", name));
            }
            let id = snap.id;
            h.set_protection(id, Protection::Protected)
        })
        .await?;
    image.pool.store.flush().await
}

/// Ends the protection of a user's snapshot that no v1 clone uses.
///
/// # Errors
/// `NotFound` (2); `Invalid` (22) where it is not protected; `Busy` (16) where v1 clones use it, with the facts `children`
/// and `pool`.
///
/// # Crash safety
/// A crash midway leaves it in between, neither to be cloned nor removed; this or [`protect`] again finishes.
pub async fn unprotect(image: &mut Image, name: &str) -> Result<()> {
    let id = image
        .update_header(|h| {
            let snap = h.user_snap(name)?;
            if snap.protection == Protection::Unprotected {
                return Err(Error::invalid("snap is already unprotected").with("snapshot", name));
            }
            let id = snap.id;
            h.set_protection(id, Protection::Unprotecting)?;
            Ok(id)
        })
        .await?;
    let children = clone::v1_children(&image.pool, &image.id, id).await;
    let found = match children {
        Ok(found) => found,
        Err(e) => {
            image.update_header(|h| h.set_protection(id, Protection::Protected)).await?;
            return Err(e);
        }
    };
    if let Some((pool, ids)) = found.first() {
        image.update_header(|h| h.set_protection(id, Protection::Protected)).await?;
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        return Err(Error::busy("cannot unprotect: snapshot has clones")
            .with("count", ids.len())
            .with("children", ids.join(","))
            .with("pool", &pool.info.name));
    }
    image.update_header(|h| h.set_protection(id, Protection::Unprotected)).await?;
    image.pool.store.flush().await
}

/// Sets how many snapshots the image may have; `None` for any number.
///
/// # Errors
/// `ReadOnly` (30).
pub async fn set_limit(image: &mut Image, limit: Option<u64>) -> Result<()> {
    image
        .update_header(|h| {
            h.snap_limit = limit;
            Ok(())
        })
        .await?;
    image.pool.store.flush().await
}

/// Removes a user's snapshot; with v2 clones, moves it to the trash namespace.
///
/// # Errors
/// `NotFound` (2); `Busy` (16) where it is protected; `ReadOnly` (30).
///
/// # Crash safety
/// Durable when it returns. After a crash midway the same call finishes.
pub async fn remove(image: &mut Image, name: &str) -> Result<()> {
    image.acquire().await?;
    let id = match image.header.user_snap(name) {
        Ok(snap) => snap.id,
        Err(e) => {
            // Cut off after the move to the trash: nothing else leaves one there that nothing uses.
            let left = image.header.snaps.values().find(|s| {
                s.child_count == 0
                    && matches!(&s.namespace, SnapshotNamespace::Trash { original_name, .. } if original_name == name)
            });
            left.ok_or(e)?.id
        }
    };
    remove_by_id(image, id).await
}

/// As [`remove`], by id and in any namespace.
///
/// # Errors
/// As [`remove`]; `Busy` (16) for one in the trash that clones use, or one that an import reads.
pub async fn remove_by_id(image: &mut Image, id: SnapId) -> Result<()> {
    image.acquire().await?;
    pins::drop_stale(image, Some(id)).await?;
    image.header.check_unpinned(id)?;
    let in_trash = image.header.snap(id)?.namespace.is_trash();
    // Without clones there is none in the trash.
    if !in_trash && image.header.format1.is_none() {
        let uuid = new_uuid(&*image.pool.env.rng);
        image.update_header(|h| h.trash_snapshot(id, &uuid)).await?;
    }
    if image.header.snap(id)?.child_count > 0 {
        if in_trash {
            return Err(Error::busy("snapshot has clones").with("id", id));
        }
        return image.pool.store.flush().await;
    }
    if let Some(parent) = image.header.parent_only_of(id) {
        clone::detach_from_parent(image, &parent).await?;
    }
    maps::removed(image, id).await?;
    image.pool.store.release_snap(image.data_pool(), id).await?;
    image.update_header(|h| h.remove_snapshot(id).map(drop)).await?;
    image.pool.store.flush().await
}

/// Takes away the pins of imports that are over; a crash may leave some.
///
/// # Errors
/// Those of the stores.
pub async fn drop_stale_pins(image: &mut Image) -> Result<()> {
    pins::drop_stale(image, None).await
}

/// Removes snapshots in the trash namespace that nothing uses any more; a crash may leave some.
///
/// # Errors
/// As [`remove_by_id`], but for `NotFound`.
pub async fn drop_unused_trash(image: &mut Image) -> Result<()> {
    let unused = |s: &&SnapshotRecord| s.namespace.is_trash() && s.child_count == 0;
    let ids: Vec<SnapId> = image.header.snaps.values().filter(unused).map(|s| s.id).collect();
    for id in ids {
        match remove_by_id(image, id).await {
            // Whoever was at it has come to the end of it.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// What a purge left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Names of the snapshots removed.
    pub removed: Vec<String>,
    /// Names of those that are protected.
    pub protected: Vec<String>,
}

/// Removes all users' snapshots that are not protected, newest first.
///
/// # Errors
/// As [`remove`].
pub async fn purge(image: &mut Image, progress: Progress<'_>) -> Result<Purged> {
    image.acquire().await?;
    let users: Vec<SnapshotRecord> =
        image.header.snaps.values().rev().filter(|s| s.namespace.is_user()).cloned().collect();
    let is_open = |s: &SnapshotRecord| s.protection == Protection::Unprotected;
    let mut purged = Purged::default();
    purged.protected.extend(users.iter().filter(|s| !is_open(s)).map(|s| s.name.clone()));
    let total = users.iter().filter(|s| is_open(s)).count() as u64;
    for snap in users.iter().filter(|s| is_open(s)) {
        match remove_by_id(image, snap.id).await {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        purged.removed.push(snap.name.clone());
        progress(purged.removed.len() as u64, total);
    }
    Ok(purged)
}
