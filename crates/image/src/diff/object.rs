//! What changed in one object.

use ferry_core::{DeviceExtent, ExtentState, ReadOp, Result, SnapId, SnapSet};

use super::{Diff, Granularity, ParentData, Verdict};
use crate::layout::{ObjectExtent, ObjectNo};
use crate::limits::SPARSE_BLOCK;
use crate::revision::{Detail, Revision, is_missing};
use crate::zeroes::{is_zero, runs};

/// Which preserved version of an object a snapshot reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    /// The object did not exist.
    None,
    /// A clone, by its place in the list; HEAD comes behind the last.
    At(usize),
}

impl Diff {
    /// The changes in one object, of what it holds or of what shows through in its place.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn object_changes(&self, object: ObjectNo) -> Result<Vec<DeviceExtent>> {
        if self.is_since_prepare
            && let Some(changes) = Box::pin(self.written_early(object)).await?
        {
            return Ok(changes);
        }
        let verdict = self.verdict(object);
        if verdict == Verdict::Unchanged {
            return self.lost_if_missing(object).await;
        }
        let length = self.to.length_of(object);
        let Some(from) = &self.from else {
            return self.since_beginning(object, length, verdict).await;
        };
        let changes = match (verdict, self.request.granularity) {
            (Verdict::Changed { exists }, Granularity::WholeObject) => {
                // Rolled back to a time before it was made, a missing object shows the parent again.
                let shows_data = exists || self.to.overlap_in(object) > 0;
                let state = if shows_data { ExtentState::Data } else { ExtentState::Zero };
                self.in_image(object, 0, length, state)
            }
            _ if self.list_snaps => self.by_versions(from, object).await?,
            _ if self.is_same_object(from, object).await? => self.lost_if_missing(object).await?,
            _ => self.by_reading(from, object, length).await?,
        };
        match self.request.granularity {
            Granularity::Exact => Ok(changes),
            Granularity::Extents => self.without_holes(changes).await,
            Granularity::WholeObject if changes.is_empty() => Ok(changes),
            Granularity::WholeObject => {
                // Zeros only where all of the object is known to be: what did not change may be data.
                let zeros =
                    changes.iter().filter(|c| c.state == ExtentState::Zero).map(|c| c.length).sum::<u64>();
                let state = if zeros == length { ExtentState::Zero } else { ExtentState::Data };
                Ok(self.in_image(object, 0, length, state))
            }
        }
    }

    /// Changes with what nothing holds bytes for at the newer end as zeros.
    async fn without_holes(&self, changes: Vec<DeviceExtent>) -> Result<Vec<DeviceExtent>> {
        let mut found = Vec::new();
        for change in changes {
            if change.state == ExtentState::Zero {
                found.push(change);
                continue;
            }
            let mut at = change.offset;
            let mut push = |offset: u64, end: u64, state| {
                if offset < end {
                    found.push(DeviceExtent { offset, length: end - offset, state });
                }
            };
            for held in self.to.held(change.offset, change.length, Detail::Told).await? {
                push(at, held.offset, ExtentState::Zero);
                push(held.offset, held.end(), ExtentState::Data);
                at = held.end();
            }
            push(at, change.offset + change.length, ExtentState::Zero);
        }
        Ok(found)
    }

    /// All there is in an object, as finely as the store can tell.
    async fn extents_since_beginning(&self, whole: ObjectExtent) -> Result<Vec<DeviceExtent>> {
        let held = match self.request.parent {
            ParentData::Included => self.to.held_in_object(whole, Detail::Told).await?,
            ParentData::Excluded => self.to.held_here(whole, Detail::Told).await?.unwrap_or_default(),
        };
        let state = ExtentState::Data;
        Ok(held.into_iter().map(|e| DeviceExtent { offset: e.offset, length: e.length, state }).collect())
    }

    /// What was written aside for an object that does not have its history yet; `None` where nothing was.
    async fn written_early(&self, object: ObjectNo) -> Result<Option<Vec<DeviceExtent>>> {
        let whole = ObjectExtent { object, offset: 0, length: self.to.length_of(object) };
        let Some(early) = self.to.early(whole).await? else { return Ok(None) };
        if self.to.look(object, ReadOp::stat()).await?.is_some() {
            return Ok(None);
        }
        let mut written = Vec::new();
        for (at, bytes) in early.data.extents {
            for run in runs(at, &bytes, SPARSE_BLOCK) {
                let start = at + run.start as u64;
                // Zeros are what was discarded.
                let state = if run.is_zero { ExtentState::Zero } else { ExtentState::Data };
                written.extend(self.in_image(object, start, start + run.length as u64, state));
            }
        }
        Ok(Some(written))
    }

    /// Whether both ends read one version of an object, so that their bytes are one; or, where the store does not tell, whether
    /// [`Self::object_changes`] compares the bytes themselves.
    pub(crate) async fn is_one_version(&self, object: ObjectNo) -> Result<bool> {
        let Some(from) = &self.from else { return Ok(false) };
        if !self.list_snaps {
            return Ok(true);
        }
        let set = match self.to.store.list_snaps(&self.to.object_id(object)).await {
            Ok(set) => set,
            Err(e) if is_missing(&e) => SnapSet::default(),
            Err(e) => return Err(e),
        };
        Ok(match (version_at(&set, from.snap), version_at(&set, self.to.snap)) {
            (Version::At(old), Version::At(new)) => old == new,
            (Version::None, Version::None) => from.parent.is_none() && self.to.parent.is_none(),
            (Version::At(_), Version::None) | (Version::None, Version::At(_)) => false,
        })
    }

    /// All there is in an object.
    async fn since_beginning(
        &self,
        object: ObjectNo,
        length: u64,
        verdict: Verdict,
    ) -> Result<Vec<DeviceExtent>> {
        let whole = ObjectExtent { object, offset: 0, length };
        if length == 0 {
            return Ok(Vec::new());
        }
        // What a target lacks may be written aside, or its source's: told object by object.
        if self.request.granularity == Granularity::Extents && !self.to.is_target {
            let shows_parent = self.request.parent == ParentData::Included && self.to.overlap_in(object) > 0;
            if verdict == Verdict::Absent && !shows_parent {
                return Ok(Vec::new());
            }
            return self.extents_since_beginning(whole).await;
        }
        let whole_object = self.request.granularity == Granularity::WholeObject;
        if whole_object && verdict == (Verdict::Changed { exists: true }) {
            return Ok(self.in_image(object, 0, length, ExtentState::Data));
        }
        let found = if verdict == Verdict::Absent {
            None
        } else {
            self.to.look(object, ReadOp::stat()).await?.map(|reply| reply.size)
        };
        match (found, self.request.parent) {
            (None, ParentData::Excluded) => Ok(self.written_early(object).await?.unwrap_or_default()),
            (Some(size), of_parent) => {
                let size = if whole_object && size > 0 { length } else { size };
                let mut found = self.in_image(object, 0, size, ExtentState::Data);
                if of_parent == ParentData::Excluded {
                    found.extend(self.in_image(object, size, self.to.overlap_in(object), ExtentState::Zero));
                }
                Ok(found)
            }
            (None, ParentData::Included) => {
                let pieces = self.to.locate_in_object(whole).await?;
                if whole_object && !pieces.is_empty() {
                    return Ok(self.in_image(object, 0, length, ExtentState::Data));
                }
                let data = ExtentState::Data;
                let extent = |p: crate::revision::Piece| DeviceExtent {
                    offset: p.image_offset,
                    length: p.length,
                    state: data,
                };
                Ok(pieces.into_iter().map(extent).collect())
            }
        }
    }

    /// What a missing object no longer shows of the parent because the image was shrunk or flattened in between.
    fn lost_overlap(&self, object: ObjectNo) -> Vec<DeviceExtent> {
        let before = self.from.as_ref().map_or(0, |from| from.overlap_in(object));
        self.in_image(object, self.to.overlap_in(object), before, ExtentState::Zero)
    }

    /// As [`Self::lost_overlap`], for an object that is the same at both ends: one that is there shows itself, also where the image was
    /// flattened in between and shows nothing of the parent any more.
    async fn lost_if_missing(&self, object: ObjectNo) -> Result<Vec<DeviceExtent>> {
        let lost = self.lost_overlap(object);
        let is_there = !lost.is_empty() && self.to.look(object, ReadOp::stat()).await?.is_some();
        Ok(if is_there { Vec::new() } else { lost })
    }

    /// Compares the versions of an object that the two ends read.
    async fn by_versions(&self, from: &Revision, object: ObjectNo) -> Result<Vec<DeviceExtent>> {
        let set = match self.to.store.list_snaps(&self.to.object_id(object)).await {
            Ok(set) => set,
            Err(e) if is_missing(&e) => SnapSet::default(),
            Err(e) => return Err(e),
        };
        let (old, new) = (version_at(&set, from.snap), version_at(&set, self.to.snap));
        let (Version::At(older), Version::At(newer)) = (old, new) else {
            return Ok(self.by_existence(from, object, &set, old, new));
        };
        let mut changes = Vec::new();
        let size = size_of(&set, newer);
        for (start, end) in changed_between(&set, older, newer) {
            changes.extend(self.in_image(object, start, end.min(size), ExtentState::Data));
            changes.extend(self.in_image(object, start.max(size), end, ExtentState::Zero));
        }
        Ok(changes)
    }

    /// The changes where the object was missing at one end at least.
    fn by_existence(
        &self,
        from: &Revision,
        object: ObjectNo,
        set: &SnapSet,
        old: Version,
        new: Version,
    ) -> Vec<DeviceExtent> {
        let held = |version| match version {
            Version::None => None,
            Version::At(n) => Some(size_of(set, n)),
        };
        let data = match (held(old), held(new)) {
            (None, None) => return self.lost_overlap(object),
            (_, Some(size)) => size,
            (Some(_), None) => self.to.overlap_in(object),
        };
        let before = held(old).unwrap_or_else(|| from.overlap_in(object));
        let mut changes = self.in_image(object, 0, data, ExtentState::Data);
        changes.extend(self.in_image(object, data, before, ExtentState::Zero));
        changes
    }

    /// Whether the object is known to be the same at both ends, or missing at both.
    async fn is_same_object(&self, from: &Revision, object: ObjectNo) -> Result<bool> {
        if self.to.is_target {
            // What it lacks is its source's, which may have changed.
            return Ok(false);
        }
        self.to.store.is_same_at(&self.to.object_id(object), from.snap, self.to.snap).await
    }

    /// Reads both ends and compares them block by block.
    async fn by_reading(&self, from: &Revision, object: ObjectNo, length: u64) -> Result<Vec<DeviceExtent>> {
        if length == 0 {
            return Ok(Vec::new());
        }
        let mut changes = Vec::new();
        for part in self.to.layout.image_extents(ObjectExtent { object, offset: 0, length }) {
            let new = self.to.read_bytes(part.offset, part.length).await?;
            let known = from.size.saturating_sub(part.offset).min(part.length);
            let old =
                if known == 0 { Vec::new() } else { from.read_bytes(part.offset, known).await?.to_vec() };
            let mut old = old;
            old.resize(new.len(), 0);
            let mut at = part.offset;
            for (was, is) in blocks(&old).zip(blocks(&new)) {
                if was != is {
                    let state = if is_zero(is) { ExtentState::Zero } else { ExtentState::Data };
                    changes.push(DeviceExtent { offset: at, length: is.len() as u64, state });
                }
                at += is.len() as u64;
            }
        }
        Ok(changes)
    }
}

/// Cuts a buffer into blocks.
fn blocks(bytes: &[u8]) -> std::slice::Chunks<'_, u8> {
    bytes.chunks(usize::try_from(SPARSE_BLOCK).expect("a block fits memory"))
}

/// Which version a snapshot or HEAD reads.
fn version_at(set: &SnapSet, at: SnapId) -> Version {
    let head = if set.head_size.is_some() { Version::At(set.clones.len()) } else { Version::None };
    if at == SnapId::HEAD || at.0 > set.seq {
        return head;
    }
    match set.clones.iter().position(|c| c.id >= at) {
        Some(n) if set.clones[n].snaps.contains(&at) => Version::At(n),
        Some(_) | None => Version::None,
    }
}

/// Whether two snapshots, or one and HEAD, read the same version of an object.
pub(crate) fn reads_same(set: &SnapSet, a: SnapId, b: SnapId) -> bool {
    version_at(set, a) == version_at(set, b)
}

/// Size of a version. Bytes.
fn size_of(set: &SnapSet, version: usize) -> u64 {
    set.clones.get(version).map_or_else(|| set.head_size.unwrap_or(0), |c| c.size)
}

/// `(start, end)` ranges that differ somewhere between two versions, ascending and not touching.
fn changed_between(set: &SnapSet, older: usize, newer: usize) -> Vec<(u64, u64)> {
    let mut changed: Vec<(u64, u64)> = Vec::new();
    for n in older..newer {
        let Some(clone) = set.clones.get(n) else { break };
        let end = clone.size.max(size_of(set, n + 1));
        let mut at = 0;
        for (offset, length) in &clone.overlap {
            if *offset > at {
                changed.push((at, *offset));
            }
            at = offset + length;
        }
        if end > at {
            changed.push((at, end));
        }
    }
    changed.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (start, end) in changed {
        match joined.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            Some(_) | None => joined.push((start, end)),
        }
    }
    joined
}
