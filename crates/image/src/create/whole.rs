//! Makes an image out of a header that is complete already, snapshots and all.

use ferry_core::{Effect, Error, ReadOp, Result, SnapId, WriteOp};

use crate::encoding::{MigrationRecord, header_object, id_object, object_map_object, v1_header_object};
use crate::features::Features;
use crate::header::{Header, create_op};
use crate::io::layout_of;
use crate::object_map::ObjectMap;
use crate::pool::Pool;
use crate::trash::check_name;

/// Refuses a name that is taken, or none.
///
/// # Errors
/// `Exists` (17); `Invalid` (22); `NotFound` (2) where the namespace does not exist.
pub async fn check_free(pool: &Pool, name: &str) -> Result<()> {
    check_free_but(pool, name, "").await
}

/// As [`check_free`], where the name may be that of the image `but`, which gives it up.
async fn check_free_but(pool: &Pool, name: &str, but: &str) -> Result<()> {
    check_name(name)?;
    pool.check_namespace().await?;
    for object in [v1_header_object(name), id_object(name)] {
        if object != but && pool.read_or_absent(&pool.object(&object), ReadOp::stat()).await?.is_some() {
            return Err(Error::exists("an image of this name exists").with("image", name));
        }
    }
    if pool.listed_id(name).await?.is_some() {
        return Err(Error::exists("an image of this name exists").with("image", name));
    }
    Ok(())
}

/// Makes the image `id` with this header, called `name`. Its object maps know of no object.
///
/// # Errors
/// `Exists` (17); `ReadOnly` (30).
///
/// # Crash safety
/// The header first, as one op: what is found of the image is told by it. The names last: what has a name is complete.
pub async fn create_whole(pool: &Pool, name: &str, id: &str, header: &Header) -> Result<()> {
    // A source of format 1 keeps its header under its name, also where the target has the same.
    let source = header.migration.as_ref().filter(|m| m.pool == pool.id() && m.namespace == pool.namespace);
    check_free_but(pool, name, &source.map(MigrationRecord::peer_id).unwrap_or_default()).await?;
    pool.ensure_init().await?;
    if let Some(data_pool) = header.data_pool.filter(|p| *p != pool.id()) {
        pool.sibling(data_pool, &pool.namespace).await?.ensure_init().await?;
    }
    pool.store.write(&pool.object(&header_object(id)), create_op(header)?).await?;
    if header.features.contains(Features::OBJECT_MAP) {
        for at in header.snaps.keys().copied().chain([SnapId::HEAD]) {
            let map = ObjectMap::new(layout_of(header)?.object_count(header.size_at(at)?))?;
            let op = WriteOp::new().effect(Effect::WriteFull(map.encode()));
            pool.store.write(&pool.object(&object_map_object(id, at)), op).await?;
        }
    }
    pool.create_id(name, id).await?;
    pool.directory_add(name, id).await
}
