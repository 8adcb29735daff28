//! The clones of what is moved: linked to whichever end holds their parent's future.

use ferry_core::{Error, ErrorKind, Result, SnapId};
use ferry_image::clone::{self, Child, children};
use ferry_image::encoding::{ParentRecord, Protection};
use ferry_image::header::{Header, Opening};
use ferry_image::image::Image;

use crate::ends::End;

/// An end as an image that can be asked for its clones.
pub(crate) fn as_image(end: &End) -> Result<Image> {
    Ok(Image {
        pool: end.pool.clone(),
        name: end.name.clone(),
        id: end.id.clone(),
        header: std::sync::Arc::clone(end.need_header()?),
        at: SnapId::HEAD,
        read_only: true,
        session: None,
        is_end: true,
    })
}

/// All clones of an end.
pub(crate) async fn of(end: &End) -> Result<Vec<Child>> {
    children(&as_image(end)?, SnapId::HEAD).await
}

/// Links every clone of `from` to the snapshot of `to` that `map` gives for its own, which the new parent protects as the
/// old one did. How many clones there were: without any nothing was changed.
///
/// # Errors
/// `Busy` (16) for a clone of a snapshot that `map` does not know; those of [`clone::relink`].
///
/// # Crash safety
/// After a crash midway the same call finishes.
pub(crate) async fn relink(
    from: &End,
    to: &mut End,
    map: impl Fn(SnapId) -> Option<SnapId>,
) -> Result<usize> {
    let header = from.need_header()?;
    let mut count = 0;
    for snap in header.snaps.keys() {
        let mut at = as_image(from)?;
        at.at = *snap;
        for child in children(&at, *snap).await? {
            let target = map(*snap).ok_or_else(|| {
                Error::busy("a clone hangs on a snapshot that the other end of the migration does not have")
                    .with("clone", &child.name)
            })?;
            protect_alike(header, *snap, to, target).await?;
            relink_one(&child, from, *snap, to, target).await?;
            count += 1;
        }
    }
    Ok(count)
}

/// Protects a snapshot that is to have clones which only a protected one may have.
async fn protect_alike(header: &Header, snap: SnapId, to: &mut End, target: SnapId) -> Result<()> {
    if header.snap(snap)?.protection == Protection::Unprotected
        || to.need_header()?.snap(target)?.protection == Protection::Protected
    {
        return Ok(());
    }
    to.update(|h| h.set_protection(target, Protection::Protected)).await
}

async fn relink_one(child: &Child, from: &End, snap: SnapId, to: &End, target: SnapId) -> Result<()> {
    let pool = from.pool.sibling(child.pool, &child.namespace).await?;
    let record = |end: &End, at| ParentRecord::new(end.pool.id(), &end.pool.namespace, &end.id, at, 0);
    let (old, new) = (record(from, snap), record(to, target));
    let mut image = match Image::open_by_id(&pool, &child.id, Opening::ReadWrite).await {
        Ok(image) => image,
        // The other end of another migration: its header may be changed all the same.
        Err(e) if e.kind() == ErrorKind::ReadOnly => Image::open_end(&pool, &child.name, &child.id).await?,
        Err(e) => return Err(e.with("clone", &child.name)),
    };
    let linked = if image.header.parent_spec().is_some_and(|p| p.is_same_snapshot(&new)) {
        // Cut off before: only the two parents' sides are left.
        match clone::attach_to_parent(&image, &new).await {
            Ok(()) => clone::detach_from_parent(&image, &old).await,
            Err(e) => Err(e),
        }
    } else {
        clone::relink(&mut image, &old, &new).await
    };
    let closed = image.close().await;
    linked.and(closed)
}
