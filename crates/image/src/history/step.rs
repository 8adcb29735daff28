//! One step of an object's history: what it changes, and for which points.

use std::sync::Arc;

use ferry_core::{
    DeviceExtent, Effect, ExtentState, ObjectId, ReadOp, Result, SnapContext, SnapId, SparseData,
};

use super::trail::Trail;
use super::{History, Point, context_before};
use crate::copyup::{can_share, copy_effects, share_effects};
use crate::diff::Diff;
use crate::digest::Blocks;
use crate::io::Io;
use crate::layout::{ImageExtent, ObjectExtent, ObjectNo};
use crate::limits::SPARSE_BLOCK;
use crate::revision::{Ancestor, Piece, Revision};

/// What makes an object right for some more points.
#[derive(Debug)]
pub(super) struct Step {
    /// The newest snapshot it was right for before; `None` where it was not there.
    pub(super) after: Option<SnapId>,
    /// The newest snapshot it is right for then; `None` for all.
    pub(super) right_until: Option<SnapId>,
    /// What lies below.
    pub(super) context: SnapContext,
    /// What it does.
    pub(super) effects: Vec<Effect>,
    /// Snapshots that have the object then, with their object maps.
    pub(super) maps: Vec<(SnapId, ObjectId)>,
    /// Whether it is for HEAD alone.
    pub(super) is_for_head: bool,
    /// The newest point before HEAD.
    pub(super) before_head: Option<SnapId>,
}

impl Step {
    /// Whether the store is to copy an object for it.
    pub(super) fn copies(&self) -> bool {
        self.effects.iter().any(Effect::is_copy)
    }
}

impl History {
    /// The step that follows; `None` where the object is not there and no point needs it. What is read for it goes to `trail`.
    pub(super) async fn next_step(
        &self,
        io: &Io,
        object: ObjectNo,
        after: Option<SnapId>,
        trail: &mut Trail,
    ) -> Result<Option<Step>> {
        let points = self.points();
        let first = match after {
            Some(snap) => points.iter().position(|p| p.revision.snap > snap),
            None => {
                let (needing, early) =
                    (first_needing(points, object).await?, first_early(points, object).await?);
                needing.into_iter().chain(early).min()
            }
        };
        let Some(first) = first else { return Ok(None) };
        let point = &points[first].revision;
        let mut is_nothing = false;
        // The snapshot it is right for may have been removed since: then nothing tells what differs, and all is brought anew.
        let before = first.checked_sub(1).map(|n| &points[n].revision).filter(|p| after == Some(p.snap));
        let mut read = trail.begin(point, before.map(Arc::as_ref));
        let mut effects = match before {
            Some(before) => changes(io, before, point, object, &mut read).await?,
            None => {
                let mut effects = vec![Effect::Create, Effect::Truncate(0)];
                effects.extend(content(io, point, object, &mut read).await?);
                is_nothing = after.is_none() && effects.len() == 2 && is_foreign(point);
                effects
            }
        };
        trail.read(point, read);
        if effects.iter().any(Effect::is_copy) {
            trail.copied_unread(point);
        }
        let is_for_head = first + 1 == points.len();
        let was_early = point.has_early(object).await?;
        // HEAD's may still grow: what is aside there is put in when the step is taken.
        if !is_for_head && was_early {
            effects.extend(point.early_effects(object).await?.unwrap_or_default());
        }
        let mut end = first + 1;
        while end < points.len() && !was_early && !points[end].revision.has_early(object).await? {
            let (older, newer) = (&points[end - 1].revision, &points[end].revision);
            let is_same_source = is_same_source(older, newer, object);
            if !is_same_source && !changed(older, newer, object).await?.is_empty() {
                break;
            }
            trail.goes_on(older, newer);
            if trail.knows(older) {
                let is_one = is_same_source || is_one_version(older, newer, object).await?;
                trail.shows_same(older, newer, is_one);
            }
            end += 1;
        }
        if is_nothing && !was_early && end == points.len() {
            // The source did not know, but it was all zeros.
            return Ok(None);
        }
        let right_until = (end < points.len()).then(|| points[end - 1].revision.snap);
        let effects = match (right_until, points.last()) {
            // HEAD was shrunk and does not reach the object any more; only what is older needs it.
            (None, Some(head)) if after.is_some() && head.revision.length_of(object) == 0 => {
                vec![Effect::Remove]
            }
            _ => effects,
        };
        let of_map = |p: &Point| p.map_object.clone().map(|map| (p.revision.snap, map));
        Ok(Some(Step {
            after,
            right_until,
            context: context_before(points, first, after),
            effects,
            maps: points[first..end].iter().filter_map(of_map).collect(),
            is_for_head,
            before_head: points.len().checked_sub(2).map(|n| points[n].revision.snap),
        }))
    }
}

/// The first point at which the target needs an object of its own.
pub(super) async fn first_needing(points: &[Point], object: ObjectNo) -> Result<Option<usize>> {
    for (n, point) in points.iter().enumerate() {
        // What shows the same as the point before needs no more than that did.
        let known = match n.checked_sub(1).map(|before| &points[before]) {
            Some(before) => is_same_source(&before.revision, &point.revision, object),
            None => false,
        };
        if !known && needs(point, object).await? {
            return Ok(Some(n));
        }
    }
    Ok(None)
}

/// The first point by which something was written aside.
async fn first_early(points: &[Point], object: ObjectNo) -> Result<Option<usize>> {
    for (n, point) in points.iter().enumerate() {
        if point.revision.has_early(object).await? {
            return Ok(Some(n));
        }
    }
    Ok(None)
}

/// Whether the source of a point is a foreign one.
pub(super) fn is_foreign(point: &Revision) -> bool {
    matches!(&point.parent, Some(parent) if parent.ancestor.image().is_none())
}

/// Whether two points show the same point of the source, and as much of it.
fn is_same_source(a: &Revision, b: &Revision, object: ObjectNo) -> bool {
    let is_same = match (&a.parent, &b.parent) {
        (None, None) => true,
        (Some(a), Some(b)) => a.ancestor.is_same_point(&b.ancestor),
        (Some(_), None) | (None, Some(_)) => false,
    };
    is_same && a.overlap_in(object) == b.overlap_in(object)
}

/// Whether the target needs an object of its own at a point.
async fn needs(point: &Point, object: ObjectNo) -> Result<bool> {
    let revision = &point.revision;
    let whole = ObjectExtent { object, offset: 0, length: revision.overlap_in(object) };
    if whole.length == 0 {
        return Ok(false);
    }
    if !point.keeps_parent {
        return Ok(!revision.locate_in_parent(whole).await?.is_empty());
    }
    // The parent stays; what the source itself has, an empty object too, must hide it as it did.
    let Some(source) = revision.parent.as_ref().and_then(|p| p.ancestor.image()) else {
        return Ok(!revision.locate_in_parent(whole).await?.is_empty());
    };
    for part in revision.below_overlap(whole) {
        for extent in source.layout.extents(part.offset, part.length) {
            if source.look(extent.object, ReadOp::stat()).await?.is_some() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// All that a point shows in an object, and its blocks to `read`: shared, or copied by the store, or by us.
async fn content(
    io: &Io,
    point: &Revision,
    object: ObjectNo,
    read: &mut Option<Blocks>,
) -> Result<Vec<Effect>> {
    let length = point.overlap_in(object);
    if length == 0 {
        return Ok(Vec::new());
    }
    let extent = ObjectExtent { object, offset: 0, length };
    if let Some(effects) = io.shared_with_parent_of(point, extent).await? {
        *read = None;
        return Ok(effects);
    }
    if let Some(effects) = io.copied_by_store(point, extent).await? {
        *read = None;
        return Ok(effects);
    }
    copied(point, extent, read).await
}

/// What a point shows in a part of an object, copied; its blocks go to `read`.
async fn copied(point: &Revision, extent: ObjectExtent, read: &mut Option<Blocks>) -> Result<Vec<Effect>> {
    let note = |data: &SparseData| {
        if let Some(blocks) = read {
            blocks.add(data);
        }
    };
    copy_effects(point, extent, note).await
}

/// Whether what two points show in an object, in which nothing changed, is one and the same: read twice, it would be read from
/// one place. A foreign source is taken at its word.
async fn is_one_version(older: &Revision, newer: &Revision, object: ObjectNo) -> Result<bool> {
    let (Some(from), Some(to)) = (&older.parent, &newer.parent) else { return Ok(false) };
    let (Ancestor::Image(from), Ancestor::Image(to)) = (&from.ancestor, &to.ancestor) else {
        return Ok(is_foreign(older) && is_foreign(newer));
    };
    let length = newer.overlap_in(object);
    if older.overlap_in(object) != length {
        return Ok(false);
    }
    let diff = Diff::between(Revision::clone(from), Revision::clone(to));
    for part in newer.layout.image_extents(ObjectExtent { object, offset: 0, length }) {
        for extent in to.layout.extents(part.offset, part.length) {
            if !diff.is_one_version(extent.object).await? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// What changed in an object between two points: ranges of the object, ascending in neither order.
async fn changed(
    older: &Revision,
    newer: &Revision,
    object: ObjectNo,
) -> Result<Vec<(u64, u64, ExtentState)>> {
    let (was, is) = (older.overlap_in(object), newer.overlap_in(object));
    let mut found = Vec::new();
    if is < was {
        found.push((is, was, ExtentState::Zero));
    }
    let (Some(from), Some(to)) = (&older.parent, &newer.parent) else {
        if is > 0 {
            found.push((0, is, ExtentState::Data));
        }
        return Ok(found);
    };
    if from.ancestor.is_same_point(&to.ancestor) {
        if is > was {
            found.push((was, is, ExtentState::Data));
        }
        return Ok(found);
    }
    if is == 0 {
        return Ok(found);
    }
    let whole = ObjectExtent { object, offset: 0, length: is };
    for part in newer.layout.image_extents(whole) {
        for change in source_changes(&from.ancestor, &to.ancestor, part).await? {
            let from = change.offset.max(part.offset);
            let until = (change.offset + change.length).min(part.end());
            if from < until {
                let start = newer.layout.bytes_before(object, from);
                found.push((start, start + (until - from), change.state));
            }
        }
    }
    Ok(found)
}

/// What changed in the source, between two of its points, in a range and perhaps around it.
async fn source_changes(older: &Ancestor, newer: &Ancestor, part: ImageExtent) -> Result<Vec<DeviceExtent>> {
    match (older, newer) {
        (Ancestor::Image(older), Ancestor::Image(newer)) => {
            let diff = Diff::between(Revision::clone(older), Revision::clone(newer));
            let mut found = Vec::new();
            for extent in newer.layout.extents(part.offset, part.length) {
                found.extend(diff.object_changes(extent.object).await?);
            }
            Ok(found)
        }
        (Ancestor::Foreign(older), Ancestor::Foreign(newer)) => {
            newer.changes_since(older, part.offset, part.length).await
        }
        (Ancestor::Image(_), Ancestor::Foreign(_)) | (Ancestor::Foreign(_), Ancestor::Image(_)) => {
            let whole = DeviceExtent { offset: part.offset, length: part.length, state: ExtentState::Data };
            Ok(vec![whole])
        }
    }
}

/// The effects that make an object that is right for `older` right for `newer`. `read` has the blocks of the older one, where
/// they are known, and then those of the newer.
async fn changes(
    io: &Io,
    older: &Revision,
    newer: &Revision,
    object: ObjectNo,
    read: &mut Option<Blocks>,
) -> Result<Vec<Effect>> {
    let length = newer.overlap_in(object);
    let mut effects = vec![Effect::Create];
    let mut data: Vec<(u64, u64)> = Vec::new();
    for (start, end, state) in changed(older, newer, object).await? {
        match state {
            ExtentState::Zero => {
                effects.push(Effect::Zero { offset: start, length: end - start });
                if let Some(blocks) = read {
                    forget(blocks, newer, object, (start, end));
                    data.extend(cut_blocks(start, end, length));
                }
            }
            ExtentState::Data => data.push(whole_blocks(start, end, length)),
        }
    }
    data.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (start, end) in data {
        match joined.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            Some(_) | None => joined.push((start, end)),
        }
    }
    for (start, end) in joined {
        let extent = ObjectExtent { object, offset: start, length: end - start };
        effects.push(Effect::Zero { offset: start, length: end - start });
        if let Some(blocks) = read {
            forget(blocks, newer, object, (start, end));
        }
        effects.extend(range_content(io, newer, extent, read).await?);
    }
    Ok(effects)
}

/// Takes the blocks that a range of an object touches out of `blocks`.
fn forget(blocks: &mut Blocks, revision: &Revision, object: ObjectNo, (start, end): (u64, u64)) {
    let range = ObjectExtent { object, offset: start, length: end - start };
    revision.layout.image_extents(range).for_each(|part| blocks.forget(part));
}

/// The blocks, below `length`, that a range of zeros begins or ends inside of: to know them, they must be read.
fn cut_blocks(start: u64, end: u64, length: u64) -> impl Iterator<Item = (u64, u64)> {
    let cut = |at: u64| (!at.is_multiple_of(SPARSE_BLOCK)).then(|| whole_blocks(at, at + 1, length));
    [cut(start), cut(end)].into_iter().flatten().filter(|(from, to)| from < to)
}

/// A range of an object made to begin and end at blocks, so that it can be shared, but not past `length`.
fn whole_blocks(start: u64, end: u64, length: u64) -> (u64, u64) {
    (start / SPARSE_BLOCK * SPARSE_BLOCK, end.next_multiple_of(SPARSE_BLOCK).min(length))
}

/// What a point shows in a part of an object, shared where possible.
async fn range_content(
    io: &Io,
    point: &Revision,
    extent: ObjectExtent,
    read: &mut Option<Blocks>,
) -> Result<Vec<Effect>> {
    if let Some(source) = point.parent.as_ref().and_then(|p| p.ancestor.image())
        && can_share(source, io.revision())
    {
        let pieces: Vec<Piece> = point.locate_in_parent(extent).await?;
        // One that cuts the object would take what lies behind the range with it.
        let shared = share_effects(point.layout, extent, pieces);
        if let Some(effects) = shared.filter(|e| !e.iter().any(|e| matches!(e, Effect::Truncate(_)))) {
            *read = None;
            return Ok(effects);
        }
    }
    copied(point, extent, read).await
}
