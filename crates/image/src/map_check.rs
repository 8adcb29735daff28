//! Comparing object maps with the objects, and making them anew from those.

use ferry_core::{Effect, Error, ErrorKind, Result, SnapId, SnapSet, WriteOp};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::diff::reads_same;
use crate::features::{Features, Flags};
use crate::image::Image;
use crate::layout::{Layout, ObjectNo};
use crate::limits::OBJECTS_IN_FLIGHT;
use crate::live_map::load_stored;
use crate::object_map::{Loaded, ObjectMap, ObjectState};
use crate::progress::Progress;
use crate::revision::Revision;
use crate::rollback::exists_at;

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapCheck {
    /// No map denies an object that is there.
    Valid,
    /// One does, or could not be read; it is flagged as invalid now.
    Invalid,
}

/// Looks for objects that the map of HEAD, or of the snapshot the image was opened at, denies.
///
/// # Errors
/// `Invalid` (22) without the feature; `ReadOnly` (30) where the map must be flagged and the image is not writable; those of
/// the store.
pub async fn check(image: &mut Image, progress: Progress<'_>) -> Result<MapCheck> {
    need_map(image)?;
    let at = image.at;
    let revision = image.revision().await?;
    let count = revision.object_count();
    let stored = load_stored(&*image.pool.store, &image.object_map_object(at), count).await?;
    let mut is_valid = !image.header.flags_at(at)?.contains(Flags::OBJECT_MAP_INVALID);
    if let Loaded::Valid(map) = stored {
        let denied = (0..count).map(ObjectNo).filter(|o| !map.get(*o).may_exist());
        let work = stream::iter(denied).map(|object| exists_at(&revision, object));
        let mut work = std::pin::pin!(work.buffer_unordered(OBJECTS_IN_FLIGHT));
        let mut done = 0;
        while let Some(exists) = work.try_next().await? {
            is_valid &= !exists;
            done += 1;
            progress(done, count);
        }
    } else {
        is_valid = false;
    }
    if is_valid {
        return Ok(MapCheck::Valid);
    }
    let invalid = Flags::OBJECT_MAP_INVALID.with(Flags::FAST_DIFF_INVALID);
    if image.header.flags_at(at)?.contains(invalid) {
        return Ok(MapCheck::Invalid);
    }
    if image.session.is_some() {
        image.update_header(|h| h.set_flags(at, invalid, Flags::NONE)).await?;
    } else {
        return Err(Error::new(
            ErrorKind::ReadOnly,
            "the object map is wrong, and the image is open read-only",
        ));
    }
    Ok(MapCheck::Invalid)
}

/// Makes the maps of all snapshots and of HEAD anew from the objects, and clears their flags.
///
/// # Errors
/// `Invalid` (22) without the feature; `ReadOnly` (30); those of the store.
///
/// # Crash safety
/// A map's flag is cleared only after the map is durable. Not to be run while this client writes the image.
pub async fn rebuild(image: &mut Image, progress: Progress<'_>) -> Result<()> {
    image.acquire().await?;
    need_map(image)?;
    let mut points: Vec<SnapId> = image.header.snaps.keys().copied().collect();
    points.push(SnapId::HEAD);
    let has_fast_diff = image.header.features.contains(Features::FAST_DIFF);
    let total: u64 = points.len() as u64;
    let mut before = None;
    for (n, at) in points.iter().enumerate() {
        let revision = image.revision_at(*at).await?;
        let map = build(&revision, before.as_ref().filter(|_| has_fast_diff)).await?;
        let op = WriteOp::new().effect(Effect::WriteFull(map.encode()));
        image.pool.store.write(&image.object_map_object(*at), op).await?;
        before = Some(revision);
        progress(n as u64 + 1, total);
    }
    image.pool.store.flush().await?;
    let invalid = Flags::OBJECT_MAP_INVALID.with(Flags::FAST_DIFF_INVALID);
    image
        .update_header(|h| {
            h.set_all_flags(Flags::NONE, invalid);
            Ok(())
        })
        .await
}

/// Refuses an image without object maps.
fn need_map(image: &Image) -> Result<()> {
    if !image.header.features.contains(Features::OBJECT_MAP) {
        return Err(Error::invalid("the image has no object map").with("image", &image.name));
    }
    Ok(())
}

/// The map of a revision. With the revision before it, objects that have not changed in between are clean.
async fn build(revision: &Revision, before: Option<&Revision>) -> Result<ObjectMap> {
    let mut map = ObjectMap::new(revision.object_count())?;
    let objects = stream::iter((0..revision.object_count()).map(ObjectNo));
    let states = objects.map(|object| async move { Ok((object, state_of(revision, before, object).await?)) });
    let mut states = std::pin::pin!(states.buffer_unordered(OBJECTS_IN_FLIGHT));
    while let Some((object, state)) = states.try_next().await.map_err(|e: Error| e)? {
        map.set(object, state);
    }
    Ok(map)
}

/// What there is of one object.
async fn state_of(revision: &Revision, before: Option<&Revision>, object: ObjectNo) -> Result<ObjectState> {
    if !exists_at(revision, object).await? {
        return Ok(ObjectState::Absent);
    }
    let Some(before) = before.filter(|b| is_same_length(b.layout, b, revision, object)) else {
        return Ok(ObjectState::Exists);
    };
    let id = revision.object_id(object);
    let is_same = if revision.store.capabilities().list_snaps {
        let set: SnapSet = revision.store.list_snaps(&id).await?;
        reads_same(&set, before.snap, revision.snap)
    } else {
        revision.store.is_same_at(&id, before.snap, revision.snap).await?
    };
    Ok(if is_same { ObjectState::Clean } else { ObjectState::Exists })
}

/// Whether both revisions have the same part of an object.
fn is_same_length(layout: Layout, before: &Revision, now: &Revision, object: ObjectNo) -> bool {
    layout.bytes_before(object, before.size) == layout.bytes_before(object, now.size)
}
