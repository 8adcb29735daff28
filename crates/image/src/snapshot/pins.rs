//! Pins of imports that ended without taking them away: a crash came between.

use ferry_core::{ErrorKind, Result, SnapId};

use crate::encoding::ImportPin;
use crate::header;
use crate::image::Image;
use crate::peers::find_store;

/// Takes away the pins on `snap`, or on any, whose imports are over.
///
/// # Errors
/// Those of the stores. A store that cannot be found is none: the pin stays.
pub(super) async fn drop_stale(image: &mut Image, snap: Option<SnapId>) -> Result<()> {
    for (uuid, pin) in image.header.pins()? {
        if snap.is_none_or(|s| pin.snaps.contains(&s)) && is_over(image, &uuid, &pin).await? {
            image
                .update_header(|h| {
                    h.remove_pin(&uuid);
                    Ok(())
                })
                .await?;
        }
    }
    Ok(())
}

/// Whether the target of an import does not read this image any more.
async fn is_over(image: &Image, uuid: &[u8; 16], pin: &ImportPin) -> Result<bool> {
    let (own, target) = (&image.pool.store, &pin.target);
    let store = match find_store(own, &*image.pool.peers, target.store, &target.place).await {
        Ok(store) => store,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    let object = header::object(target.pool, &target.namespace, &target.id);
    match header::load(&*store, &object).await {
        Ok(header) => Ok(header.migration.is_none() || header.intent.is_none_or(|i| i.uuid != *uuid)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(true),
        Err(e) => Err(e),
    }
}
