//! Removes the data objects of an image that has no snapshots.

use ferry_core::{Effect, ErrorKind, Guard, Result, SnapId, WriteOp};
use futures_util::stream::{self, StreamExt};

use crate::features::{Features, Flags};
use crate::history::early;
use crate::image::Image;
use crate::io::layout_of;
use crate::layout::ObjectNo;
use crate::limits::OBJECTS_IN_FLIGHT;
use crate::live_map::load_stored;
use crate::object_map::Loaded;
use crate::progress::Progress;

/// Removes all data objects; those that the object map knows to be absent are not asked for.
///
/// The stored object map is left as it is: until the header goes it says of removed objects that they may exist, which is
/// always right.
pub(super) async fn remove_data(image: &Image, progress: Progress<'_>) -> Result<()> {
    early::remove_all(image).await?;
    let count = layout_of(&image.header)?.object_count(image.header.size);
    let map = if image.header.features.contains(Features::OBJECT_MAP)
        && !image.header.flags.contains(Flags::OBJECT_MAP_INVALID)
    {
        match load_stored(&*image.pool.store, &image.object_map_object(SnapId::HEAD), count).await? {
            Loaded::Valid(map) => Some(map),
            Loaded::Invalid { .. } => None,
        }
    } else {
        None
    };
    let there = (0..count).filter(|n| map.as_ref().is_none_or(|m| m.get(ObjectNo(*n)).may_exist()));
    let mut removals = stream::iter(there)
        .map(|number| async move {
            let op = WriteOp::new().guard(Guard::AssertExists).effect(Effect::Remove);
            match image.pool.store.write(&image.data_object(number), op).await {
                Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
                _ => Ok(number),
            }
        })
        .buffered(OBJECTS_IN_FLIGHT);
    while let Some(number) = removals.next().await {
        progress(number? + 1, count);
    }
    progress(count, count);
    Ok(())
}
