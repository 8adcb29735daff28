//! Switches features of an existing image on and off.
//!
//! Order: an object map is stored before the header says that there is one (all absent, and marked invalid until it is
//! rebuilt), and removed after the header says that there is none. A crash in between leaves maps that nobody reads.

#[cfg(test)]
mod tests;

use ferry_core::{Effect, Error, Result, SnapId, WriteOp};

use crate::features::Features;
use crate::image::Image;
use crate::io::layout_of;
use crate::object_map::ObjectMap;

/// HEAD and all snapshots.
fn revisions(image: &Image) -> Vec<SnapId> {
    image.header.snaps.keys().copied().chain([SnapId::HEAD]).collect()
}

/// Refuses an image of format 1, which has no features.
fn check_format(image: &Image) -> Result<()> {
    image
        .header
        .need_format2()
        .map_err(|e| Error::invalid("old-format images do not support features").because(e))
}

/// Switches features on. Object map and fast diff come together; their maps are invalid until they are rebuilt.
///
/// # Errors
/// `Invalid` (22) where one cannot be switched on later, is on already, or needs another; `ReadOnly` (30).
///
/// # Crash safety
/// Durable when it returns. After a crash midway the same call works.
pub async fn enable(image: &mut Image, features: Features) -> Result<()> {
    check_format(image)?;
    image.acquire().await?;
    let mut trial = (*image.header).clone();
    trial.enable_features(features)?;
    let gets_map = trial.features.contains(Features::OBJECT_MAP)
        && !image.header.features.contains(Features::OBJECT_MAP);
    if gets_map {
        for at in revisions(image) {
            let count = layout_of(&image.header)?.object_count(image.header.size_at(at)?);
            let op = WriteOp::new().effect(Effect::WriteFull(ObjectMap::new(count)?.encode()));
            image.pool.store.write(&image.object_map_object(at), op).await?;
        }
    }
    image.update_header(|h| h.enable_features(features)).await?;
    // An exclusive lock that was just switched on is taken for what follows.
    image.acquire().await?;
    image.pool.store.flush().await
}

/// Switches features off. Object map and fast diff go together.
///
/// # Errors
/// `Invalid` (22) where one cannot be switched off, is off already, or another needs it; `ReadOnly` (30).
///
/// # Crash safety
/// Durable when it returns.
pub async fn disable(image: &mut Image, features: Features) -> Result<()> {
    check_format(image)?;
    image.acquire().await?;
    let had_map = image.header.features.contains(Features::OBJECT_MAP);
    image.update_header(|h| h.disable_features(features)).await?;
    if had_map && !image.header.features.contains(Features::OBJECT_MAP) {
        for at in revisions(image) {
            image.pool.remove_object(&image.object_map_object(at)).await?;
        }
    }
    if let (false, Some(session)) = (image.header.features.contains(Features::EXCLUSIVE_LOCK), &image.session)
    {
        session.release().await?;
    }
    image.pool.store.flush().await
}
