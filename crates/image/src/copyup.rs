//! The first write to an object that a clone does not have yet: the parent's bytes come along.
//!
//! - Where the store can share ranges between its objects, the object comes into being with references to the ancestor's
//!   space and the new bytes in one atomic op: no data is copied, and no crash or reader sees anything in between.
//! - Where it can copy whole objects by itself (`inside`), the new bytes lie over such a copy in one op.
//! - Where it can do neither, the parent's bytes are read and written with the new ones in one op.
//! - Two writers race: the op creates exclusively, so one wins and the other writes to the object it finds.
//! - An image that may be deep-flattened must have the parent's bytes *below* its snapshots. If it has snapshots that show
//!   the same part of the parent, the object is made under no snapshot context first, and written to afterwards.

pub(crate) mod inside;

use ferry_core::{Effect, ErrorKind, Guard, Result, SparseData, WriteOp};

use crate::io::Io;
use crate::layout::{Layout, ObjectExtent, ObjectNo};
use crate::limits::SPARSE_BLOCK;
use crate::object_map::ObjectState;
use crate::revision::{Held, Piece, Revision};

/// What came of a copy-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyUp {
    /// The object was made, the effects asked for included.
    Done,
    /// The object exists now; the effects asked for have not been applied.
    Exists,
}

/// Where the parent's bytes go in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    /// To HEAD only: what is older keeps looking through to the parent.
    Head,
    /// Below all snapshots.
    Bottom,
}

impl Io {
    /// Makes `object`, which was not there a moment ago, out of the parent's bytes and applies `effects`.
    ///
    /// # Errors
    /// Those of the store.
    ///
    /// # Crash safety
    /// Either nothing happened, or the object reads as before the write, or as after it.
    pub(crate) async fn copy_up(&self, object: ObjectNo, effects: Vec<Effect>) -> Result<CopyUp> {
        let from_parent = self.parent_effects(object).await?;
        self.make_from(object, from_parent, effects).await
    }

    /// As [`Self::copy_up`], with what [`Self::parent_effects`] gave.
    pub(crate) async fn make_from(
        &self,
        object: ObjectNo,
        mut from_parent: Vec<Effect>,
        effects: Vec<Effect>,
    ) -> Result<CopyUp> {
        let overlap = self.revision().overlap_in(object);
        let depth = if from_parent.is_empty() { Depth::Head } else { self.depth_for(object, overlap) };
        let op = match depth {
            Depth::Bottom => {
                self.mark_below_snaps(object).await?;
                // It shows at the point of prepare of a migration, too.
                WriteOp { effects: from_parent, ..WriteOp::new() }.stamped(self.copy_stamp())
            }
            Depth::Head => {
                from_parent.extend(effects.iter().cloned());
                if from_parent.is_empty() {
                    return Ok(CopyUp::Done);
                }
                WriteOp { effects: from_parent, ..WriteOp::new() }.under(self.context().clone())
            }
        };
        let (id, copies) = (self.revision().object_id(object), op.copies());
        match self.revision().store.write(&id, op.guard(Guard::CreateExclusive)).await {
            Ok(_) if depth == Depth::Head => Ok(CopyUp::Done),
            Ok(_) => Ok(CopyUp::Exists),
            Err(e) if e.kind() == ErrorKind::Exists => Ok(CopyUp::Exists),
            // The store found out that it copies nothing.
            Err(e) if copies && e.kind() == ErrorKind::Unsupported => {
                let whole = ObjectExtent { object, offset: 0, length: overlap };
                let read = copy_effects(self.revision(), whole, |_| {}).await?;
                Box::pin(self.make_from(object, read, effects)).await
            }
            Err(e) => Err(e.with("image_object", object.0)),
        }
    }

    /// Whether a write to `object`, were it missing, must put the parent's bytes below the snapshots first.
    pub(crate) fn must_go_deep(&self, object: ObjectNo) -> bool {
        let overlap = self.revision().overlap_in(object);
        overlap > 0 && self.depth_for(object, overlap) == Depth::Bottom
    }

    /// Where the parent's bytes of an object go. Snapshots that show another part of the parent (the image was shrunk in
    /// between) cannot be served by one set of bytes, so they keep looking through.
    fn depth_for(&self, object: ObjectNo, overlap: u64) -> Depth {
        let layout = self.revision().layout;
        let links = self.links();
        let alike = links.iter().all(|l| layout.bytes_before(object, l.overlap) == overlap);
        if self.is_deep() && !links.is_empty() && alike { Depth::Bottom } else { Depth::Head }
    }

    /// Tells the object maps of all snapshots that an object will be there.
    pub(crate) async fn mark_below_snaps(&self, object: ObjectNo) -> Result<()> {
        let Some(map) = self.map() else { return Ok(()) };
        let snaps: Vec<_> = self
            .links()
            .iter()
            .filter_map(|l| l.map_object.clone().map(|map_object| (l.snap, map_object)))
            .collect();
        let later = if self.has_fast_diff() { ObjectState::Clean } else { ObjectState::Exists };
        map.mark_in_snaps(object, &snaps, later).await
    }

    /// The effects that give a new object what its parent shows in its place, shared or copied by the store where possible.
    pub(crate) async fn parent_effects(&self, object: ObjectNo) -> Result<Vec<Effect>> {
        let whole = ObjectExtent { object, offset: 0, length: self.revision().overlap_in(object) };
        if whole.length == 0 {
            return Ok(Vec::new());
        }
        let revision = self.revision();
        if let Some(effects) = self.shared_with_parent_of(revision, whole).await? {
            return Ok(effects);
        }
        // A stamp, which a migration leaves, would be lost.
        if self.copy_stamp().is_none()
            && let Some(effects) = self.copied_by_store(revision, whole).await?
        {
            return Ok(effects);
        }
        copy_effects(revision, whole, |_| {}).await
    }

    /// The effects that give an object of this image what `revision`, a point of the same image, shows of its parent in
    /// `extent`, shared where possible.
    pub(crate) async fn effects_from_parent_of(
        &self,
        revision: &Revision,
        extent: ObjectExtent,
    ) -> Result<Vec<Effect>> {
        match self.shared_with_parent_of(revision, extent).await? {
            Some(effects) => Ok(effects),
            None => copy_effects(revision, extent, |_| {}).await,
        }
    }

    /// As [`Self::effects_from_parent_of`], shared; `None` where that is not possible.
    pub(crate) async fn shared_with_parent_of(
        &self,
        revision: &Revision,
        extent: ObjectExtent,
    ) -> Result<Option<Vec<Effect>>> {
        match revision.parent.as_ref().and_then(|p| p.ancestor.image()) {
            Some(source) if can_share(source, self.revision()) => {
                let pieces = revision.locate_in_parent(extent).await?;
                Ok(share_effects(revision.layout, extent, pieces))
            }
            Some(_) | None => Ok(None),
        }
    }
}

/// Whether objects of `target` can refer to the space of objects of `source`.
pub(crate) fn can_share(source: &Revision, target: &Revision) -> bool {
    target.store.capabilities().share
        && source.store.identity() == target.store.identity()
        && source.is_in_one_store()
}

/// From which length on objects of `target` can be copies of objects of `source` that their store makes by itself; `None` where it does not.
pub(crate) fn can_copy(source: &Revision, target: &Revision) -> Option<u64> {
    let is_one = source.store.identity() == target.store.identity() && source.is_in_one_store();
    target.store.capabilities().copy.filter(|_| is_one)
}

/// The parent's bytes, read to be written; `read` sees them first.
pub(crate) async fn copy_effects(
    revision: &Revision,
    extent: ObjectExtent,
    mut read: impl FnMut(&SparseData) + Send,
) -> Result<Vec<Effect>> {
    let Some(parent) = &revision.parent else { return Ok(Vec::new()) };
    let mut effects = Vec::new();
    for part in revision.below_overlap(extent) {
        let data = parent.ancestor.read(part.offset, part.length).await?;
        read(&data);
        effects.extend(write_effects(revision.layout, extent.object, data));
    }
    Ok(effects)
}

/// Bytes of an image as writes to one object, all of them lying in it.
pub(crate) fn write_effects(layout: Layout, object: ObjectNo, data: SparseData) -> Vec<Effect> {
    let to_effect = |(at, data)| Effect::Write { offset: layout.bytes_before(object, at), data };
    data.extents.into_iter().map(to_effect).collect()
}

/// Objects of an ancestor or of another image as ranges to share with one object, `extent` being the part of it they fill;
/// `None` where one does not lie on block boundaries or is none
/// of an object.
pub(crate) fn share_effects(layout: Layout, extent: ObjectExtent, pieces: Vec<Piece>) -> Option<Vec<Effect>> {
    let end = extent.offset + extent.length;
    let mut effects: Vec<Effect> = Vec::new();
    let mut is_cut = false;
    for piece in pieces {
        let Held::Object { object, at: held_at, offset: held_offset, size: held_size } = piece.held else {
            return None;
        };
        let target = layout.bytes_before(extent.object, piece.image_offset);
        if !target.is_multiple_of(SPARSE_BLOCK) || !held_offset.is_multiple_of(SPARSE_BLOCK) {
            return None;
        }
        let reaches_size = held_offset + piece.length >= held_size;
        let mut length = piece.length;
        if !length.is_multiple_of(SPARSE_BLOCK) && !reaches_size {
            // Only at the end may a block be taken whole and cut afterwards.
            if target + piece.length != end {
                return None;
            }
            is_cut = true;
            length = length.next_multiple_of(SPARSE_BLOCK).min(held_size - held_offset);
        }
        if let Some(Effect::ShareRange { source, at, offset, length: so_far, target_offset }) =
            effects.last_mut()
            && *source == object
            && *at == held_at
            && *offset + *so_far == held_offset
            && *target_offset + *so_far == target
        {
            *so_far += length;
            continue;
        }
        effects.push(Effect::ShareRange {
            source: object,
            at: held_at,
            offset: held_offset,
            length,
            target_offset: target,
        });
    }
    if is_cut {
        effects.push(Effect::Truncate(end));
    }
    Some(effects)
}
