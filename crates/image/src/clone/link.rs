//! The two sides of the link between a clone and its parent.

use std::pin::Pin;

use ferry_core::store::ChildStep;
use ferry_core::{Errno, Error, ErrorKind, Result};

use crate::encoding::{
    CHILDREN_OBJECT, ChildSpec, ParentRecord, TrashSource, TrashState, V1Children, header_object,
    v1_children_key,
};
use crate::features::OpFeatures;
use crate::header::{self, Opening, Reattach};
use crate::image::Image;
use crate::pool::Pool;
use crate::progress::silent;
use crate::remove;
use crate::snapshot;
use crate::trash;

/// How a parent knows a child.
fn spec_of(child: &Image) -> ChildSpec {
    ChildSpec { pool: child.pool.id(), namespace: child.pool.namespace.clone(), image_id: child.id.clone() }
}

/// Tells the parent's side of a child; nothing where it knows.
///
/// # Errors
/// `NotFound` (2) where the parent is gone; those of the store.
pub async fn attach_to_parent(child: &Image, parent: &ParentRecord) -> Result<()> {
    if child.header.is_v1_clone() {
        return v1_change(&child.pool, parent, &child.id, Presence::There).await;
    }
    let pool = child.pool.sibling(parent.pool, &parent.namespace).await?;
    let (object, spec) = (pool.object(&header_object(&parent.image_id)), spec_of(child));
    let attached = header::update(&*pool.store, &object, |h| h.attach_child(parent.snap, spec.clone())).await;
    let attached = match attached {
        Err(e) if e.kind() == ErrorKind::Denied => by_class(&pool, parent, ChildStep::Attach, &spec, e).await,
        done => done.map(drop),
    };
    match attached {
        Err(e) if e.kind() == ErrorKind::Exists => Ok(()),
        Err(e) => Err(e),
        Ok(()) => tell(&pool, &parent.image_id).await,
    }
}

/// Has the store change the parent's side, as this client may not write it; `denied` says so, and is what is told where the store cannot.
async fn by_class(
    pool: &Pool,
    parent: &ParentRecord,
    step: ChildStep,
    spec: &ChildSpec,
    denied: Error,
) -> Result<()> {
    let object = pool.object(&header_object(&parent.image_id));
    match pool.store.change_child(&object, step, spec.class_input(parent.snap)).await {
        Err(e) if matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::Denied) => Err(denied),
        done => done,
    }
}

/// Whether the parent's side knows a child.
pub(super) async fn is_attached(child: &Image, parent: &ParentRecord) -> Result<bool> {
    let v1 = v1_ids(&child.pool, parent).await?;
    if child.header.is_v1_clone() || v1.contains(&child.id) {
        return Ok(v1.contains(&child.id));
    }
    let pool = child.pool.sibling(parent.pool, &parent.namespace).await?;
    let header = header::load(&*pool.store, &pool.object(&header_object(&parent.image_id))).await?;
    Ok(header.children.get(&parent.snap).is_some_and(|c| c.set.contains(&spec_of(child))))
}

/// Ids of the v1 clones of a parent's snapshot in one pool.
async fn v1_ids(pool: &Pool, parent: &ParentRecord) -> Result<std::collections::BTreeSet<String>> {
    let key = v1_children_key(parent.pool, &parent.image_id, parent.snap);
    let value = pool.read_key(&pool.object(CHILDREN_OBJECT), &key).await?;
    Ok(V1Children::decode(&value.unwrap_or_default())?.0)
}

/// Whether something shall be there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    There,
    Gone,
}

/// Adds or removes a v1 back reference; nothing where it is as wanted.
async fn v1_change(pool: &Pool, parent: &ParentRecord, child: &str, presence: Presence) -> Result<()> {
    let key = v1_children_key(parent.pool, &parent.image_id, parent.snap);
    pool.change_key(&pool.object(CHILDREN_OBJECT), &key, |before| {
        let Some(before) = before else {
            let only = V1Children([child.to_owned()].into());
            return Ok((presence == Presence::There).then(|| only.encode()));
        };
        let mut children = V1Children::decode(before)?;
        match presence {
            Presence::There => children.0.insert(child.to_owned()),
            Presence::Gone => children.0.remove(child),
        };
        Ok((!children.0.is_empty()).then(|| children.encode()))
    })
    .await
}

/// Makes the parent's side forget a child. Where that was the last user of a removed snapshot, the snapshot goes; where that
/// was the last of a removed image kept for its clones, the image goes.
///
/// Nothing where the parent's side does not know it, or is gone.
///
/// # Errors
/// `Unsupported`, `ReadOnly` (30), `Denied` (1) where the parent's header cannot be written.
///
/// # Crash safety
/// After a crash midway the same call finishes the link; a removed snapshot that was left is dropped with its image.
#[must_use]
pub fn detach_from_parent<'a>(
    child: &'a Image,
    parent: &'a ParentRecord,
) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>> {
    Box::pin(async move {
        if child.header.is_v1_clone() {
            return v1_change(&child.pool, parent, &child.id, Presence::Gone).await;
        }
        let pool = match child.pool.sibling(parent.pool, &parent.namespace).await {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let (object, spec) = (pool.object(&header_object(&parent.image_id)), spec_of(child));
        let detached = header::update(&*pool.store, &object, |h| h.detach_child(parent.snap, &spec)).await;
        match detached {
            Err(e) if e.kind() == ErrorKind::Denied => {
                match by_class(&pool, parent, ChildStep::Detach, &spec, e).await {
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    done => done?,
                }
                // Whoever may write the parent removes what is not used any more.
                tell(&pool, &parent.image_id).await
            }
            Ok((_, can_go)) => {
                tell(&pool, &parent.image_id).await?;
                if can_go { drop_unused(&pool, parent).await } else { Ok(()) }
            }
            // Cut off before: it may still be that the snapshot has to go.
            Err(e) if e.kind() == ErrorKind::NotFound => drop_unused(&pool, parent).await,
            Err(e) => Err(e),
        }
    })
}

/// Removes a snapshot in the trash that nothing uses, and its image if that waits for it. What somebody else is busy with
/// is left to them.
async fn drop_unused(pool: &Pool, parent: &ParentRecord) -> Result<()> {
    let result = drop_unused_snapshot(pool, parent).await;
    match result {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Busy | ErrorKind::ReadOnly) => Ok(()),
        other => other,
    }
}

async fn drop_unused_snapshot(pool: &Pool, parent: &ParentRecord) -> Result<()> {
    let snaps = match header::load(&*pool.store, &pool.object(&header_object(&parent.image_id))).await {
        Ok(header) => header.snaps,
        // Its removal was cut off after the header: the entry in the trash is still to go.
        Err(e) if e.kind() == ErrorKind::NotFound => std::collections::BTreeMap::new(),
        Err(e) => return Err(e),
    };
    let unused = |s: &crate::encoding::SnapshotRecord| s.namespace.is_trash() && s.child_count == 0;
    let mut left = snaps.len();
    if snaps.get(&parent.snap).is_some_and(unused) {
        let mut image = Image::open_by_id(pool, &parent.image_id, Opening::ReadWrite).await?;
        let removed = snapshot::remove_by_id(&mut image, parent.snap).await;
        left = image.header.snaps.len();
        let closed = image.close().await;
        removed.and(closed)?;
    }
    let entry = trash::get(pool, &parent.image_id).await?;
    let waits = entry.is_some_and(|e| {
        e.source == TrashSource::UserParent
            && e.state != TrashState::Moving
            && trash::is_expired(&e, pool.env.clock.now())
    });
    if left == 0 && waits {
        return remove::remove_unlinked(pool, &parent.image_id, &mut silent).await;
    }
    Ok(())
}

/// Tells whoever has an image open to read its header again.
async fn tell(pool: &Pool, id: &str) -> Result<()> {
    let (object, message) = (pool.object(&header_object(id)), crate::encoding::Message::HeaderUpdate);
    match pool.store.notify(&object, message.encode(), crate::session::NOTIFY_TIMEOUT).await {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Ends the link of HEAD after all its data was copied (the end of a flatten): where no snapshot needs the parent any more,
/// the parent's side forgets the child first.
///
/// # Errors
/// `NotFound` (2) where HEAD has no parent; those of [`detach_from_parent`].
///
/// # Crash safety
/// Durable when it returns. After a crash midway the same call finishes.
pub async fn detach_head(image: &mut Image) -> Result<()> {
    image.acquire().await?;
    if image.header.parent_at(ferry_core::SnapId::HEAD)?.is_none() {
        return Err(Error::invalid("image has no parent").errno_is(Errno::EINVAL));
    }
    if let (true, Some(parent)) = (image.header.would_leave_parent(), image.header.parent_spec().cloned()) {
        detach_from_parent(image, &parent).await?;
    }
    image.update_header(|h| h.detach_parent().map(drop)).await?;
    image.pool.store.flush().await
}

/// Moves a child from one parent to another that holds the same bytes, keeping the overlap: the child's header first, then
/// the new parent's side, then the old one's.
///
/// # Errors
/// `NotFound` (2) where the child has no parent; those of the two sides.
///
/// # Crash safety
/// After a crash midway the same call finishes.
pub async fn relink(child: &mut Image, from: &ParentRecord, to: &ParentRecord) -> Result<()> {
    let was_v1 = child.header.is_v1_clone();
    child
        .update_header(|h| {
            let overlap = h.parent.as_ref().and_then(|p| p.head_overlap);
            let reattached = ParentRecord { head_overlap: overlap.or(Some(0)), ..to.clone() };
            h.attach_parent(reattached, Reattach::Yes)?;
            if let (None, Some(parent)) = (overlap, h.parent.as_mut()) {
                parent.head_overlap = None;
            }
            let (on, off) = if was_v1 {
                (OpFeatures::NONE, OpFeatures::CLONE_CHILD)
            } else {
                (OpFeatures::CLONE_CHILD, OpFeatures::NONE)
            };
            h.set_op_features(on, off);
            Ok(())
        })
        .await?;
    attach_to_parent(child, to).await?;
    detach_from_parent(child, from).await
}
