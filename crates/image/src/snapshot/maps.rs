//! Object maps when a snapshot comes and goes.

use ferry_core::{Effect, Result, SnapId, WriteOp};

use crate::features::{Features, Flags};
use crate::image::Image;
use crate::io::layout_of;
use crate::live_map::load_stored;
use crate::object_map::{Loaded, ObjectMap, ObjectState};

/// Copies HEAD's map to the new snapshot, then calls HEAD's objects clean. Where that cannot be trusted, both are marked so, and
/// the snapshot gets one that denies nothing: `rbd` opens the map of every snapshot, whatever its flags say.
pub(super) async fn created(image: &mut Image, snap: SnapId) -> Result<()> {
    if !image.header.features.contains(Features::OBJECT_MAP) {
        return Ok(());
    }
    let Some(mut map) = trusted(image, SnapId::HEAD).await? else {
        let count = layout_of(&image.header)?.object_count(image.header.size_at(snap)?);
        store(image, snap, &ObjectMap::all(count, ObjectState::Exists)?).await?;
        let bad = Flags::OBJECT_MAP_INVALID.with(Flags::FAST_DIFF_INVALID);
        return image
            .update_header(|h| {
                h.set_flags(SnapId::HEAD, bad, Flags::NONE)?;
                h.set_flags(snap, bad, Flags::NONE)
            })
            .await;
    };
    store(image, snap, &map).await?;
    map.mark_clean();
    store(image, SnapId::HEAD, &map).await
}

/// Tells the next newer map what the map of a snapshot that is being removed knew, then removes that.
pub(super) async fn removed(image: &mut Image, snap: SnapId) -> Result<()> {
    if image.header.features.contains(Features::OBJECT_MAP) {
        let newer = image.header.snaps.range(SnapId(snap.0 + 1)..).next().map_or(SnapId::HEAD, |(id, _)| *id);
        if let Some(mut map) = trusted(image, newer).await? {
            match trusted(image, snap).await? {
                Some(old) => {
                    let before = map.clone();
                    map.absorb_removed(&old);
                    if map != before {
                        store(image, newer, &map).await?;
                    }
                }
                None => {
                    image
                        .update_header(|h| h.set_flags(newer, Flags::FAST_DIFF_INVALID, Flags::NONE))
                        .await?;
                }
            }
        }
    }
    image.pool.remove_object(&image.object_map_object(snap)).await.map(drop)
}

/// The stored map, unless flags or its own bytes say that it is wrong.
async fn trusted(image: &Image, at: SnapId) -> Result<Option<ObjectMap>> {
    if image.header.flags_at(at)?.contains(Flags::OBJECT_MAP_INVALID) {
        return Ok(None);
    }
    let count = layout_of(&image.header)?.object_count(image.header.size_at(at)?);
    match load_stored(&*image.pool.store, &image.object_map_object(at), count).await? {
        Loaded::Valid(map) => Ok(Some(map)),
        Loaded::Invalid { .. } => Ok(None),
    }
}

async fn store(image: &Image, at: SnapId, map: &ObjectMap) -> Result<()> {
    // Small, once per snapshot, and part of removing one: it may use what a full store keeps in reserve.
    let op = WriteOp::new().effect(Effect::WriteFull(map.encode())).full_try();
    image.pool.store.write(&image.object_map_object(at), op).await.map(drop)
}
