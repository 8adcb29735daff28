//! Clones: images that read through to a snapshot of another.
//!
//! Two kinds of link from the parent's side. v2 stands in the parent's header and needs no protection of the snapshot; v1
//! stands in `rbd_children` of the clone's own pool, needs the snapshot protected, and never writes to the parent: it is
//! what a clone out of a read-only pool gets, whose snapshots count as protected.
//!
//! Order of making: child, child's `parent`, parent's side. A crash before the last leaves a child the parent does not know;
//! making the same clone again finishes it, removing the child cleans up.
//! Order of parting: parent's side, then the child's `parent` or the child itself.

mod children;
mod link;
#[cfg(test)]
mod tests;

use ferry_core::{Errno, Error, ErrorKind, Result};

use crate::create::{CreateOptions, create_linked};
use crate::encoding::{ParentRecord, Protection, SnapshotRecord};
use crate::features::{Features, OpFeatures};
use crate::header::{Header, Opening, Reattach};
use crate::image::Image;
use crate::pool::Pool;
use crate::progress::silent;
use crate::remove::{self, UsedParent};

pub use children::{Child, children, descendants, v1_children};
pub use link::{attach_to_parent, detach_from_parent, detach_head, relink};

/// Which kind of link a clone gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CloneFormat {
    /// The newer one, unless the parent's pool is read-only.
    #[default]
    Auto,
    /// `rbd_children` of the clone's pool.
    V1,
    /// The parent's header.
    V2,
}

/// Makes `name` in `pool` a clone of a snapshot of `parent` (opened at it) and returns its id. What `options` leave open
/// is inherited: features, object size, striping, image-meta; the size is always the snapshot's.
///
/// # Errors
/// `Exists` (17); `Invalid` (22) where the parent is not opened at a user's snapshot, lacks layering, or the snapshot is not
/// protected and v1 is asked for; `Invalid` (18) for a clone across stores, or v1 across namespace names; `ReadOnly` (30)
/// for v2 out of a read-only pool.
///
/// # Crash safety
/// Durable when it returns; see the module.
pub async fn create(
    parent: &Image,
    pool: &Pool,
    name: &str,
    format: CloneFormat,
    options: &CreateOptions,
) -> Result<String> {
    if parent.pool.store.identity() != pool.store.identity() {
        return Err(Error::invalid("a clone cannot lie in another store than its parent: copy it instead")
            .errno_is(Errno::EXDEV)
            .with("try", "deep cp"));
    }
    let snap = parent.header.snap(parent.at).map_err(|_| Error::invalid("a clone is made of a snapshot"))?;
    let format = choose_format(parent, snap, pool, format)?;
    let options = inherit(&parent.header, snap, options)?;
    let record =
        ParentRecord::new(parent.pool.id(), &parent.pool.namespace, &parent.id, parent.at, snap.size);
    let id = match create_linked(pool, name, &options).await {
        Ok(id) => id,
        Err(e) if e.kind() == ErrorKind::Exists => {
            return finish_unlinked(pool, name, &record, format).await?.ok_or(e);
        }
        Err(e) => return Err(e),
    };
    attach_new(pool, name, &id, &record, format).await?;
    Ok(id)
}

/// As [`create`], but all as `options` say, the size and image-meta too: a clone beside another one, to be given what that
/// holds. The parent shows as far as the image goes.
///
/// # Errors
/// As [`create`].
///
/// # Crash safety
/// As [`create`].
pub async fn create_exactly(
    parent: &Image,
    pool: &Pool,
    name: &str,
    format: CloneFormat,
    options: &CreateOptions,
) -> Result<String> {
    if options.features.is_some_and(|f| !f.contains(Features::LAYERING)) {
        return Err(Error::invalid("cloning image must support layering"));
    }
    let snap = parent.header.snap(parent.at).map_err(|_| Error::invalid("a clone is made of a snapshot"))?;
    let format = choose_format(parent, snap, pool, format)?;
    let record =
        ParentRecord::new(parent.pool.id(), &parent.pool.namespace, &parent.id, parent.at, snap.size);
    let id = create_linked(pool, name, options).await?;
    attach_new(pool, name, &id, &record, format).await?;
    Ok(id)
}

/// Opens what a clone was made of, at the snapshot.
///
/// # Errors
/// `NotFound` (2) where it is gone; those of opening it.
pub async fn open_parent(child: &Image, record: &ParentRecord) -> Result<Image> {
    let pool = child.pool.sibling(record.pool, &record.namespace).await?;
    Image::open_by_id(&pool, &record.image_id, Opening::ReadOnly).await?.at_snapshot_id(record.snap)
}

/// Links an image that was made a moment ago; it is removed where that fails.
async fn attach_new(
    pool: &Pool,
    name: &str,
    id: &str,
    record: &ParentRecord,
    format: CloneFormat,
) -> Result<()> {
    if let Err(e) = attach(pool, id, record, format).await {
        // The child is of no use; what fails here is left for `remove`.
        drop(remove::remove(pool, name, UsedParent::Refuse, &mut silent).await);
        return Err(e);
    }
    pool.store.flush().await
}

/// Checks that the snapshot may be cloned, and how.
fn choose_format(
    parent: &Image,
    snap: &SnapshotRecord,
    pool: &Pool,
    format: CloneFormat,
) -> Result<CloneFormat> {
    if !snap.namespace.is_user() {
        return Err(Error::invalid("only a user's snapshot can be cloned"));
    }
    if !parent.header.features.contains(Features::LAYERING) {
        return Err(Error::invalid("parent image must support layering"));
    }
    let read_only = parent.pool.is_read_only();
    let format = match (format, read_only) {
        (CloneFormat::V2, true) => {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                "the parent's pool is read-only: use clone format 1",
            ));
        }
        (CloneFormat::Auto, true) => CloneFormat::V1,
        (CloneFormat::Auto, false) => CloneFormat::V2,
        (CloneFormat::V1 | CloneFormat::V2, _) => format,
    };
    if format == CloneFormat::V1 {
        if snap.protection != Protection::Protected && !read_only {
            return Err(Error::invalid("parent snapshot must be protected").with("snapshot", &snap.name));
        }
        if parent.pool.namespace != pool.namespace {
            return Err(Error::invalid("a clone of format 1 needs the namespace name of its parent")
                .errno_is(Errno::EXDEV));
        }
    }
    Ok(format)
}

/// The child's options: what was asked for, else the parent's.
fn inherit(parent: &Header, snap: &SnapshotRecord, asked: &CreateOptions) -> Result<CreateOptions> {
    // What follows from the layout or the state of one image is not inherited.
    let own = Features(0xF92).with(Features::JOURNALING);
    let features = asked.features.unwrap_or(parent.features.without(own));
    if !features.contains(Features::LAYERING) {
        return Err(Error::invalid("cloning image must support layering"));
    }
    let order = asked.order.unwrap_or(parent.order);
    let (stripe_unit, stripe_count) = if asked.stripe_unit.is_some() || asked.stripe_count.is_some() {
        (asked.stripe_unit, asked.stripe_count)
    } else if parent.features.contains(Features::STRIPING) {
        (Some(parent.stripe_unit), Some(parent.stripe_count))
    } else {
        // Said, so that a default of the pool does not come in its place.
        (1_u64.checked_shl(u32::from(order)), Some(1))
    };
    let mut metadata = parent.metadata.clone();
    metadata.extend(asked.metadata.clone());
    Ok(CreateOptions {
        size: snap.size,
        order: Some(order),
        features: Some(features),
        stripe_unit,
        stripe_count,
        data_pool: asked.data_pool.clone(),
        metadata,
    })
}

/// Links a child to its parent, then the parent to the child.
async fn attach(pool: &Pool, id: &str, record: &ParentRecord, format: CloneFormat) -> Result<()> {
    let mut child = Image::open_by_id(pool, id, Opening::ReadWrite).await?;
    let result = attach_open(&mut child, record, format).await;
    let closed = child.close().await;
    result.and(closed)
}

async fn attach_open(child: &mut Image, record: &ParentRecord, format: CloneFormat) -> Result<()> {
    child
        .update_header(|h| {
            if h.parent.is_none() {
                h.attach_parent(record.clone(), Reattach::No)?;
            }
            if format == CloneFormat::V2 {
                h.set_op_features(OpFeatures::CLONE_CHILD, OpFeatures::NONE);
            }
            Ok(())
        })
        .await?;
    attach_to_parent(child, record).await
}

/// Finishes a clone that was cut off between its two links; `None` where `name` is something else.
async fn finish_unlinked(
    pool: &Pool,
    name: &str,
    record: &ParentRecord,
    format: CloneFormat,
) -> Result<Option<String>> {
    let child = match Image::open(pool, name, Opening::ReadOnly).await {
        Ok(child) => child,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    if !child.header.parent.as_ref().is_some_and(|p| p.is_same_snapshot(record)) {
        return Ok(None);
    }
    if link::is_attached(&child, record).await? {
        return Ok(None);
    }
    let format = if child.header.is_v1_clone() { CloneFormat::V1 } else { format };
    attach(pool, &child.id, record, format).await?;
    pool.store.flush().await?;
    Ok(Some(child.id))
}
