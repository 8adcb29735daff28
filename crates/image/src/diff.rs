//! What changed between two points of an image.
//!
//! Three ways, each when its premises hold: the object maps of all points in between (whole objects, no request to the data
//! pool at all); the store's list of an object's versions; reading both and comparing. They may report more than differs,
//! never less: a range reported as data may hold what it held before.
//!
//! Parents: from a snapshot on, what shows through changes only by copy-up, by a write or by losing overlap, all of which are
//! seen here. From the beginning on, the parent's data is part of the diff if asked for.

mod object;

pub(crate) use object::reads_same;

use ferry_core::{DeviceExtent, ExtentState, Result, SnapId};
use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};

use crate::features::{Features, Flags};
use crate::image::Image;
use crate::layout::{ObjectExtent, ObjectNo};
use crate::limits::OBJECTS_IN_FLIGHT;
use crate::live_map::load_stored;
use crate::object_map::{Loaded, ObjectMap, ObjectState};
use crate::progress::Progress;
use crate::revision::Revision;

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// As closely as the store can tell, what is zeros for certain as such: for lists that people and programs read.
    Extents,
    /// As closely as the store tells at once; an object counts as data up to its size. For copies, which find out about holes
    /// when they read, and are the faster the longer the parts are.
    Exact,
    /// Whole objects, by the object maps where they are valid.
    WholeObject,
}

/// Whether what a clone shows of its parent is part of a diff from the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentData {
    /// It is, as for an export.
    Included,
    /// It is not, as for a count of used space; where the image hides it and holds nothing, that is a change to zeros.
    Excluded,
}

/// What to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffRequest {
    /// The older snapshot; none for the beginning, when nothing was there.
    pub from: Option<SnapId>,
    /// The newer snapshot or HEAD.
    pub to: SnapId,
    /// How closely to look.
    pub granularity: Granularity,
    /// Whether the parent's data counts.
    pub parent: ParentData,
}

/// A diff being made.
#[derive(Debug)]
pub struct Diff {
    from: Option<Revision>,
    to: Revision,
    /// For each snapshot after `from` up to `to`, oldest first, with the map of `from` before them.
    maps: Option<Vec<ObjectMap>>,
    request: DiffRequest,
    /// Where the answer only counts objects, the maps alone decide.
    list_snaps: bool,
    /// Whether it tells what was written to the target of a migration.
    is_since_prepare: bool,
}

impl Diff {
    /// Prepares a diff of an image. Its header must be fresh.
    ///
    /// # Errors
    /// `NotFound` (2) where a snapshot is gone; `Invalid` (22) where `from` is newer than `to`; those of the store.
    pub async fn open(image: &Image, request: DiffRequest) -> Result<Self> {
        if request.from.is_some_and(|from| from > request.to) {
            return Err(ferry_core::Error::invalid("the start of a diff is newer than its end"));
        }
        let from = match request.from {
            Some(at) => Some(image.revision_at(at).await?),
            None => None,
        };
        let to = image.revision_at(request.to).await?;
        let maps = load_maps(image, request, to.object_count()).await?;
        // What a target has not got yet changed, if it did, in the source.
        let list_snaps = image.pool.store.capabilities().list_snaps && !to.is_target;
        Ok(Self { from, to, maps, request, list_snaps, is_since_prepare: false })
    }

    /// A diff between two points of one image, as closely as the store can tell.
    pub(crate) fn between(from: Revision, to: Revision) -> Self {
        let (granularity, parent) = (Granularity::Exact, ParentData::Included);
        let request = DiffRequest { from: Some(from.snap), to: to.snap, granularity, parent };
        let list_snaps = to.store.capabilities().list_snaps && !to.is_target;
        Self { from: Some(from), to, maps: None, request, list_snaps, is_since_prepare: false }
    }

    /// What was written to the target of a migration since prepare, whether or not it still reads through to its source.
    ///
    /// # Errors
    /// As [`Self::open`]; `Invalid` (22) where the image was not prepared by ferry.
    pub async fn since_prepare(image: &Image) -> Result<Self> {
        let base = image.header.base().ok_or_else(|| ferry_core::Error::invalid("no point of prepare"))?;
        let mut diff =
            Self::between(image.revision_at(base.snap).await?, image.revision_at(SnapId::HEAD).await?);
        // An object that is not there, or not finished, was not written.
        diff.list_snaps = image.pool.store.capabilities().list_snaps;
        diff.is_since_prepare = true;
        // Also where it is aborted and shows the source no more: what was written aside still counts.
        diff.to.is_target = true;
        Ok(diff)
    }

    /// The newer end, for reading what changed.
    #[must_use]
    pub fn to(&self) -> &Revision {
        &self.to
    }

    /// How many steps [`Self::changes`] takes.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.to.object_count().div_ceil(self.to.layout.stripe_count())
    }

    /// The changes, ascending and without overlaps, in batches; a batch for each step.
    ///
    /// # Errors
    /// Those of the store.
    pub fn changes(&self) -> impl Stream<Item = Result<Vec<DeviceExtent>>> + Send + '_ {
        let sets = stream::iter(0..self.steps());
        sets.map(move |set| self.set_changes(set)).buffered(OBJECTS_IN_FLIGHT)
    }

    /// The changes in a range that lies inside the newer end, ascending.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn range(&self, offset: u64, length: u64) -> Result<Vec<DeviceExtent>> {
        let mut objects: Vec<ObjectNo> = self.to.layout.extents(offset, length).map(|e| e.object).collect();
        objects.dedup();
        let mut found = Vec::new();
        let mut changes = stream::iter(objects)
            .map(|object| async move { self.object_changes(object).await })
            .buffered(OBJECTS_IN_FLIGHT);
        while let Some(batch) = changes.try_next().await? {
            found.extend(batch.into_iter().filter_map(|change| clip(change, offset, offset + length)));
        }
        found.sort_unstable_by_key(|c| c.offset);
        let mut joined = Vec::new();
        found.into_iter().for_each(|change| push_joined(&mut joined, change));
        Ok(joined)
    }

    /// All changes at once, joined where they touch.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn collect(&self, progress: Progress<'_>) -> Result<Vec<DeviceExtent>> {
        let mut all: Vec<DeviceExtent> = Vec::new();
        let mut done = 0;
        let mut changes = std::pin::pin!(self.changes());
        while let Some(batch) = changes.try_next().await? {
            batch.into_iter().for_each(|change| push_joined(&mut all, change));
            done += 1;
            progress(done, self.steps());
        }
        Ok(all)
    }

    /// The changes of one set of objects.
    async fn set_changes(&self, set: u64) -> Result<Vec<DeviceExtent>> {
        let count = self.to.layout.stripe_count();
        let mut found = Vec::new();
        for object in set * count..((set + 1) * count).min(self.to.object_count()) {
            found.extend(self.object_changes(ObjectNo(object)).await?);
        }
        found.sort_unstable_by_key(|c| c.offset);
        let mut joined = Vec::new();
        found.into_iter().for_each(|change| push_joined(&mut joined, change));
        Ok(joined)
    }

    /// What the object maps say of one object.
    fn verdict(&self, object: ObjectNo) -> Verdict {
        let Some(maps) = &self.maps else { return Verdict::Unknown };
        let end = maps.last().map_or(ObjectState::Absent, |m| m.get(object));
        let Some(first) = self.from.as_ref().and(maps.first()) else {
            return if end.may_exist() { Verdict::Changed { exists: true } } else { Verdict::Absent };
        };
        let mut before = first.get(object);
        let mut changed = false;
        for map in &maps[1..] {
            let now = map.get(object);
            changed |= matches!(now, ObjectState::Exists | ObjectState::Pending)
                || now.may_exist() != before.may_exist();
            before = now;
        }
        if changed { Verdict::Changed { exists: end.may_exist() } } else { Verdict::Unchanged }
    }

    /// Object ranges as image ranges of one kind.
    fn in_image(&self, object: ObjectNo, from: u64, to: u64, state: ExtentState) -> Vec<DeviceExtent> {
        let to = to.min(self.to.length_of(object));
        if from >= to {
            return Vec::new();
        }
        let extent = ObjectExtent { object, offset: from, length: to - from };
        let parts = self.to.layout.image_extents(extent);
        parts.map(|p| DeviceExtent { offset: p.offset, length: p.length, state }).collect()
    }
}

/// What object maps tell of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// There are no valid maps.
    Unknown,
    /// It was not there at the end; asked from the beginning.
    Absent,
    /// Nothing happened to it.
    Unchanged,
    /// It was written, made or removed.
    Changed {
        /// Whether it is there at the end.
        exists: bool,
    },
}

/// The maps from `from` (or only of `to`, from the beginning) to `to`; `None` where one is missing or not to be trusted.
async fn load_maps(image: &Image, request: DiffRequest, count: u64) -> Result<Option<Vec<ObjectMap>>> {
    let header = &image.header;
    if !header.features.contains(Features::OBJECT_MAP.with(Features::FAST_DIFF)) || header.redirects() {
        return Ok(None);
    }
    let mut points: Vec<SnapId> = match request.from {
        Some(from) => header.snaps.range(from..).map(|(id, _)| *id).filter(|id| *id < request.to).collect(),
        None => Vec::new(),
    };
    points.push(request.to);
    let mut maps = Vec::new();
    for (n, at) in points.iter().enumerate() {
        let flags = header.flags_at(*at)?;
        if flags.intersects(Flags::OBJECT_MAP_INVALID.with(Flags::FAST_DIFF_INVALID)) {
            return Ok(None);
        }
        let needed = if n + 1 == points.len() { count } else { 0 };
        let object = image.object_map_object(*at);
        match load_stored(&*image.pool.store, &object, needed).await? {
            Loaded::Valid(map) => maps.push(map),
            Loaded::Invalid { .. } => return Ok(None),
        }
    }
    Ok(Some(maps))
}

/// The part of a change that lies in a range.
fn clip(change: DeviceExtent, from: u64, to: u64) -> Option<DeviceExtent> {
    let (start, end) = (change.offset.max(from), (change.offset + change.length).min(to));
    (start < end).then(|| DeviceExtent { offset: start, length: end - start, state: change.state })
}

/// Appends a change, joined with the last where they touch and are alike.
fn push_joined(changes: &mut Vec<DeviceExtent>, change: DeviceExtent) {
    match changes.last_mut() {
        Some(last) if last.state == change.state && last.offset + last.length == change.offset => {
            last.length += change.length;
        }
        Some(_) | None => changes.push(change),
    }
}
