//! Making a clone independent of its parent.
//!
//! - Every object that still shows the parent is made by a copy-up: shared where the store can, else copied. An object that is
//!   there already is left alone. Then the link is cut.
//! - With deep-flatten the snapshots are freed too: their part of the parent goes below them, which only works for objects that
//!   are not there yet. Where one object cannot be put below a snapshot (the image was shrunk, or written by somebody who did
//!   not copy deeply), the snapshots keep their link and only HEAD is cut loose: data before features.

use ferry_core::{Effect, Error, ErrorKind, Guard, Result, WriteOp};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::clone;
use crate::header::Header;
use crate::image::Image;
use crate::io::Io;
use crate::layout::{ObjectExtent, ObjectNo};
use crate::limits::OBJECTS_IN_FLIGHT;
use crate::progress::Progress;
use crate::revision::Revision;
use crate::rollback::exists_at;

/// What has become independent of the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flattened {
    /// All of the image; the parent knows it no more.
    Everything,
    /// HEAD; snapshots still show the parent.
    Head,
}

/// Makes a clone independent of its parent.
///
/// # Errors
/// `Invalid` (22) where it has none; `Busy` (16) for the target of a migration; `ReadOnly` (30); those of the store.
///
/// # Crash safety
/// The link is cut only after all data is durable. A crash midway leaves a clone with more objects of its own; flattening
/// again finishes it.
pub async fn flatten(image: &mut Image, progress: Progress<'_>) -> Result<Flattened> {
    image.acquire().await?;
    if image.header.redirects() {
        return Err(Error::busy("image is migrating").with("image", &image.name));
    }
    if image.header.parent.as_ref().is_none_or(|p| p.head_overlap.is_none()) {
        return Err(Error::invalid("image has no parent").with("image", &image.name));
    }
    let io = Io::open(image).await?;
    let mut snaps = Vec::new();
    for link in io.links().iter().filter(|_| io.is_deep()) {
        snaps.push(image.revision_at(link.snap).await?);
    }
    let is_deep = io.flatten_objects(&snaps, progress).await?;
    image.pool.store.flush().await?;
    detach(image, is_deep).await
}

/// Cuts the link, on the parent's side first as `rbd` does, so that flattening again finishes what a crash cut short.
async fn detach(image: &mut Image, is_deep: bool) -> Result<Flattened> {
    let keeps_snaps = |h: &Header| !is_deep && h.snaps.values().any(|s| s.overlap().is_some());
    if !keeps_snaps(&image.header) {
        clone::detach_head(image).await?;
        return Ok(if image.header.needs_parent() { Flattened::Head } else { Flattened::Everything });
    }
    image
        .update_header(|h| {
            if let Some(parent) = &mut h.parent {
                parent.head_overlap = None;
            }
            Ok(())
        })
        .await?;
    image.pool.store.flush().await?;
    Ok(Flattened::Head)
}

impl Io {
    /// Copies up every object that shows the parent, at HEAD and, for a deep image, at the snapshots. Whether no snapshot needs
    /// the parent any more.
    async fn flatten_objects(&self, snaps: &[Revision], progress: Progress<'_>) -> Result<bool> {
        let shown = |r: &Revision| r.layout.object_count(r.overlap());
        let total = snaps.iter().map(shown).max().unwrap_or(0).max(shown(self.revision()));
        let work = stream::iter((0..total).map(ObjectNo)).map(|object| self.flatten_object(snaps, object));
        let mut work = std::pin::pin!(work.buffer_unordered(OBJECTS_IN_FLIGHT));
        let (mut done, mut is_deep) = (0, self.is_deep());
        while let Some(freed) = work.try_next().await? {
            is_deep &= freed;
            done += 1;
            progress(done, total);
        }
        Ok(is_deep)
    }

    /// Makes one object independent of the parent. Whether no snapshot needs the parent for it.
    async fn flatten_object(&self, snaps: &[Revision], object: ObjectNo) -> Result<bool> {
        let overlap = self.revision().overlap_in(object);
        if overlap > 0 && !exists_at(self.revision(), object).await? {
            let whole = ObjectExtent { object, offset: 0, length: overlap };
            if !self.revision().locate_in_parent(whole).await?.is_empty() {
                self.announced(vec![object], self.copy_up(object, Vec::new())).await?;
            }
        }
        let mut needed = Vec::new();
        for snap in snaps {
            if needs_parent(snap, object).await? {
                needed.push(snap);
            }
        }
        let Some(oldest) = needed.first() else { return Ok(true) };
        if self.revision().length_of(object) > 0 {
            return Ok(false);
        }
        self.fill_behind_end(oldest, object).await?;
        for snap in needed {
            if needs_parent(snap, object).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Gives snapshots an object that HEAD, having been shrunk, no longer reaches: made below them, then removed from HEAD.
    async fn fill_behind_end(&self, oldest: &Revision, object: ObjectNo) -> Result<()> {
        let whole = ObjectExtent { object, offset: 0, length: oldest.overlap_in(object) };
        let effects = self.effects_from_parent_of(oldest, whole).await?;
        let same = self.links().iter().all(|l| {
            let shown = oldest.layout.bytes_before(object, l.overlap);
            shown == 0 || shown == whole.length
        });
        if !same || self.links().iter().any(|l| oldest.layout.bytes_before(object, l.overlap) == 0) {
            return Ok(());
        }
        let id = self.revision().object_id(object);
        let op = WriteOp { effects, ..WriteOp::new() }.guard(Guard::CreateExclusive);
        match self.revision().store.write(&id, op).await {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::Exists => return Ok(()),
            Err(e) => return Err(e.with("image_object", object.0)),
        }
        self.mark_below_snaps(object).await?;
        self.apply(object, WriteOp::new().effect(Effect::Remove)).await
    }
}

/// Whether a snapshot shows data of the parent in an object.
async fn needs_parent(snap: &Revision, object: ObjectNo) -> Result<bool> {
    let overlap = snap.overlap_in(object);
    if overlap == 0 || exists_at(snap, object).await? {
        return Ok(false);
    }
    let whole = ObjectExtent { object, offset: 0, length: overlap };
    Ok(!snap.locate_in_parent(whole).await?.is_empty())
}
