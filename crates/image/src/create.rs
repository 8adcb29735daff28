//! Makes an image.
//!
//! Order and what a crash leaves: directory entry, id object, header, object map. With the directory entry alone making it
//! again fails with `Exists`, and removing it cleans that up; a failure that is no crash undoes what was done.

#[cfg(test)]
mod tests;
mod whole;

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_core::size::parse_size;
use ferry_core::store::StoreExt;
use ferry_core::{Effect, Errno, Error, ErrorKind, PoolInfo, ReadOp, Result, SnapId, WriteOp};

use crate::encoding::{data_prefix, header_object, id_object, object_map_object, v1_header_object};
use crate::features::{Features, Flags, OpFeatures};
use crate::header::{Header, create_op};
use crate::id::new_image_id;
use crate::layout::Layout;
use crate::limits::IMAGE_SIZE_MAX;
use crate::metadata;
use crate::object_map::ObjectMap;
use crate::pool::Pool;
use crate::trash::check_name;

pub use whole::{check_free, create_whole};

/// Log2 of the object size unless told otherwise: 4 MiB (`rbd_default_order`).
const ORDER_DEFAULT: u8 = 22;
/// How often an id that is taken is replaced by another. 32 random bits collide once in a lifetime.
const ID_RETRIES_MAX: usize = 8;

/// What a new image is to be; what is `None` is chosen as `rbd` does.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Size. Bytes.
    pub size: u64,
    /// Log2 of the object size.
    pub order: Option<u8>,
    /// What it shall be able to do.
    pub features: Option<Features>,
    /// Bytes of a stripe in one object; goes with `stripe_count`.
    pub stripe_unit: Option<u64>,
    /// Over how many objects a stripe goes; goes with `stripe_unit`.
    pub stripe_count: Option<u64>,
    /// Where the data shall lie, if not with the header.
    pub data_pool: Option<PoolInfo>,
    /// Image-meta to begin with.
    pub metadata: BTreeMap<String, Bytes>,
}

impl CreateOptions {
    /// An image of `size` bytes, all else by default.
    #[must_use]
    pub fn sized(size: u64) -> Self {
        Self { size, ..Self::default() }
    }

    /// With what the pool's configuration says where this says nothing.
    ///
    /// # Errors
    /// `Invalid` (22) for configured values that are none; `NotFound` (2) for a configured data pool that is not there.
    pub async fn or_pool_defaults(mut self, pool: &Pool) -> Result<Self> {
        let values = metadata::pool_list(pool).await?;
        let value = |name: &str| {
            let raw = values.get(&format!("conf_{name}"))?;
            std::str::from_utf8(raw).ok().map(str::trim).filter(|v| !v.is_empty())
        };
        let number = |name: &str| value(name).and_then(|v| parse_size(v, 1)).filter(|n| *n != 0);
        if self.features.is_none() {
            self.features = value("rbd_default_features").map(Features::parse).transpose()?;
        }
        if self.order.is_none() {
            self.order = number("rbd_default_order").and_then(|n| u8::try_from(n).ok());
        }
        if self.stripe_unit.is_none() && self.stripe_count.is_none() {
            self.stripe_unit = number("rbd_default_stripe_unit");
            self.stripe_count = number("rbd_default_stripe_count");
        }
        if let (None, Some(name)) = (&self.data_pool, value("rbd_default_data_pool")) {
            self.data_pool = Some(pool.store.pool_by_name(name).await?);
        }
        Ok(self)
    }

    /// Layout and features of the image in `pool`.
    ///
    /// # Errors
    /// `Invalid` (22; 33 for the object size); `Unsupported` (38) for unknown features.
    pub fn resolve(&self, pool: &Pool) -> Result<(Layout, Features)> {
        let order = self.order.unwrap_or(ORDER_DEFAULT);
        // Zero says as much as nothing, as to `rbd`.
        let given = |number: Option<u64>| number.filter(|n| *n > 0);
        let layout = match (given(self.stripe_unit), given(self.stripe_count)) {
            (None, None) => Layout::plain(order)?,
            (Some(unit), Some(count)) => {
                Layout::plain(order)?;
                Layout::new(order, unit, count)?
            }
            (Some(_), None) | (None, Some(_)) => {
                return Err(Error::invalid("must specify both (or neither) of stripe-unit and stripe-count"));
            }
        };
        let shaped = Features::STRIPING.with(Features::DATA_POOL);
        let mut features = self.features.unwrap_or(Features::DEFAULT).without(shaped).for_create()?;
        if layout.is_striped() {
            features = features.with(Features::STRIPING);
        }
        if self.data_pool.as_ref().is_some_and(|p| p.id != pool.id()) {
            features = features.with(Features::DATA_POOL);
        }
        check_size(self.size)?;
        if features.contains(Features::OBJECT_MAP)
            && layout.object_count(self.size) > crate::object_map::OBJECTS_MAX
        {
            return Err(Error::invalid("image size not compatible with object map").with("size", self.size));
        }
        Ok((layout, features))
    }
}

/// Refuses an image too large to be addressed.
///
/// # Errors
/// `Invalid` (22).
pub(crate) fn check_size(size: u64) -> Result<()> {
    if size > IMAGE_SIZE_MAX {
        return Err(Error::invalid("an image of this size cannot be addressed").with("size", size));
    }
    Ok(())
}

/// Makes an image called `name` and returns its id.
///
/// # Errors
/// `Exists` (17); `Invalid` (22, 33) for a layout or features that do not go together; `NotFound` (2) where the namespace
/// does not exist; `ReadOnly` (30).
///
/// # Crash safety
/// Durable when it returns; see the module.
pub async fn create(pool: &Pool, name: &str, options: &CreateOptions) -> Result<String> {
    let id = create_linked(pool, name, options).await?;
    pool.store.flush().await?;
    Ok(id)
}

/// As [`create`], without the flush.
pub(crate) async fn create_linked(pool: &Pool, name: &str, options: &CreateOptions) -> Result<String> {
    check_name(name)?;
    if pool.is_read_only() {
        return Err(Error::new(ErrorKind::ReadOnly, "the pool is read-only").with("pool", &pool.info.name));
    }
    let options = &options.clone().or_pool_defaults(pool).await?;
    let (layout, features) = options.resolve(pool)?;
    pool.check_namespace().await?;
    for object in [v1_header_object(name), id_object(name)] {
        if pool.read_or_absent(&pool.object(&object), ReadOp::stat()).await?.is_some() {
            return Err(Error::exists("an image of this name exists").with("image", name));
        }
    }
    let data_pool = options.data_pool.as_ref().filter(|p| p.id != pool.id());
    match data_pool {
        Some(info) => Pool { info: info.clone(), ..pool.clone() }.ensure_init().await?,
        None => pool.ensure_init().await?,
    }
    for _ in 0..ID_RETRIES_MAX {
        let id = new_image_id(pool.store.client(), &*pool.env.rng);
        let header = new_header(pool, &id, options, layout, features);
        match pool.directory_add(name, &id).await {
            Ok(()) => {}
            Err(e) if e.errno() == Errno::EBADF => continue,
            Err(e) => return Err(e),
        }
        match write_objects(pool, name, &id, &header, layout).await {
            Ok(()) => return Ok(id),
            Err(e) => {
                undo(pool, name, &id).await;
                if e.fact("taken").is_none() {
                    return Err(e);
                }
            }
        }
    }
    Err(Error::busy("no free image id could be had").with("image", name))
}

/// The header of a new image.
#[must_use]
pub fn new_header(
    pool: &Pool,
    id: &str,
    options: &CreateOptions,
    layout: Layout,
    features: Features,
) -> Header {
    let now = pool.env.clock.now();
    let data_pool = options.data_pool.as_ref().map(|p| p.id).filter(|p| *p != pool.id());
    Header {
        version: 0,
        size: options.size,
        order: layout.order(),
        features,
        object_prefix: data_prefix(id, data_pool.map(|_| pool.id())),
        data_pool,
        stripe_unit: layout.stripe_unit(),
        stripe_count: layout.stripe_count(),
        flags: Flags::NONE,
        op_features: OpFeatures::NONE,
        parent: None,
        snap_seq: 0,
        snaps: BTreeMap::new(),
        children: BTreeMap::new(),
        snap_limit: None,
        created: now,
        accessed: now,
        modified: now,
        metadata: options.metadata.clone(),
        migration: None,
        intent: None,
        group: None,
        format1: None,
        other: BTreeMap::new(),
    }
}

/// Id object, header, object map.
async fn write_objects(pool: &Pool, name: &str, id: &str, header: &Header, layout: Layout) -> Result<()> {
    pool.create_id(name, id).await?;
    let object = pool.object(&header_object(id));
    match pool.store.write(&object, create_op(header)?).await {
        Err(e) if e.kind() == ErrorKind::Exists => return Err(e.with("taken", id)),
        other => other?,
    };
    if header.features.contains(Features::OBJECT_MAP) {
        let map = ObjectMap::new(layout.object_count(header.size))?;
        let op = WriteOp::new().effect(Effect::WriteFull(map.encode()));
        let written = pool.store.write(&pool.object(&object_map_object(id, SnapId::HEAD)), op).await;
        if let Err(e) = written {
            // Ours, as it was just made exclusively; what fails here is left for `remove`.
            drop(pool.remove_object(&object).await);
            return Err(e);
        }
    }
    Ok(())
}

/// Takes back the names of an image that could not be made. What fails here is left for `remove` to clean.
async fn undo(pool: &Pool, name: &str, id: &str) {
    let removed = pool.remove_id(name, id).await;
    if removed.is_ok() {
        drop(pool.directory_remove(name, id).await);
    }
}
