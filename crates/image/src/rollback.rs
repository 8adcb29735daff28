//! Making HEAD what it was at a snapshot.
//!
//! The object map first says that whatever exists before or after may exist, and what the snapshot's map says only when all
//! objects are rolled back: a crash in between leaves a mix of old and new objects, and a map that denies none of them.
//!
//! A part of the parent that the snapshot shows and HEAD has lost by shrinking comes back as data: HEAD's overlap never grows.

use ferry_core::{Effect, ErrorKind, ReadOp, Result, SnapId, WriteOp};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::features::{Features, Flags};
use crate::history::Migrated;
use crate::image::Image;
use crate::io::Io;
use crate::layout::{ObjectExtent, ObjectNo};
use crate::limits::OBJECTS_IN_FLIGHT;
use crate::live_map::load_stored;
use crate::object_map::{Loaded, ObjectMap, ObjectState};
use crate::progress::{Progress, silent};
use crate::resize::{Shrinking, resize};
use crate::revision::Revision;

/// Makes the image's HEAD what it was at `snap`, size included.
///
/// # Errors
/// `NotFound` (2) where there is no such snapshot; `ReadOnly` (30); those of the store.
///
/// # Crash safety
/// A crash leaves some objects as they were at the snapshot and others not; rolling back again finishes it.
pub async fn rollback(image: &mut Image, snap: SnapId, progress: Progress<'_>) -> Result<()> {
    image.acquire().await?;
    let size = image.header.snap(snap)?.size;
    if size != image.header.size {
        resize(image, size, Shrinking::Allowed, &mut silent).await?;
    }
    let io = Io::open(image).await?;
    let then = image.revision_at(snap).await?;
    let snap_map = begin_map(image, &io, snap).await?;
    let total = then.object_count();
    let work = stream::iter((0..total).map(ObjectNo)).map(|object| io.roll_back_object(&then, object));
    let mut work = std::pin::pin!(work.buffer_unordered(OBJECTS_IN_FLIGHT));
    let mut done = 0;
    while work.try_next().await?.is_some() {
        done += 1;
        progress(done, total);
    }
    if let (Some(live), Some(map)) = (io.map(), snap_map) {
        live.replace(map).await?;
    }
    image.pool.store.flush().await?;
    image.notify_header().await
}

/// Has the object map claim all that exists now or at the snapshot. Returns the map to put in its place in the end; where the
/// snapshot's cannot be trusted, HEAD's is flagged so too.
async fn begin_map(image: &mut Image, io: &Io, snap: SnapId) -> Result<Option<ObjectMap>> {
    // On the target of a migration the snapshot's map does not know yet what has not been copied; each object is announced.
    let Some(live) = io.map().filter(|_| io.history().is_none()) else { return Ok(None) };
    let count = io.revision().object_count();
    let is_valid = !image.header.flags_at(snap)?.contains(Flags::OBJECT_MAP_INVALID);
    let stored = load_stored(&*image.pool.store, &image.object_map_object(snap), count).await?;
    let (true, Loaded::Valid(mut then)) = (is_valid, stored) else {
        let invalid = Flags::OBJECT_MAP_INVALID.with(Flags::FAST_DIFF_INVALID);
        image.update_header(|h| h.set_flags(SnapId::HEAD, invalid, Flags::NONE)).await?;
        return Ok(None);
    };
    let mut either = live.snapshot();
    for n in 0..count {
        let object = ObjectNo(n);
        // Whatever exists counts as written since the newest snapshot.
        if then.get(object).may_exist() || io.revision().overlap_in(object) < lost(io, image, snap, object) {
            then.set(object, ObjectState::Exists);
            either.set(object, ObjectState::Exists);
        }
    }
    debug_assert!(image.header.features.contains(Features::OBJECT_MAP));
    live.replace(either).await?;
    Ok(Some(then))
}

/// How many bytes of the parent the snapshot shows in an object.
fn lost(io: &Io, image: &Image, snap: SnapId, object: ObjectNo) -> u64 {
    let overlap = image.header.snaps.get(&snap).and_then(|s| s.overlap()).unwrap_or(0);
    io.revision().layout.bytes_before(object, overlap)
}

impl Io {
    /// Makes one object what it was.
    async fn roll_back_object(&self, then: &Revision, object: ObjectNo) -> Result<()> {
        if self.history().is_some() {
            return self.roll_back_target(then, object).await;
        }
        if then.overlap_in(object) > self.revision().overlap_in(object) && !exists_at(then, object).await? {
            let whole = ObjectExtent { object, offset: 0, length: then.overlap_in(object) };
            let mut effects = vec![Effect::Create, Effect::Truncate(0)];
            effects.extend(self.effects_from_parent_of(then, whole).await?);
            return self.apply(object, WriteOp { effects, ..WriteOp::new() }).await;
        }
        match self.apply(object, WriteOp::new().effect(Effect::Rollback(then.snap))).await {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

impl Io {
    /// As [`Self::roll_back_object`], on the target of a migration: an object that goes would show the source again.
    async fn roll_back_target(&self, then: &Revision, object: ObjectNo) -> Result<()> {
        let migrated = self.migrate_object(object).await?;
        if exists_at(then, object).await? {
            let op = WriteOp::new().effect(Effect::Rollback(then.snap));
            return self.announced(vec![object], self.apply(object, op)).await;
        }
        let whole = ObjectExtent { object, offset: 0, length: then.overlap_in(object) };
        let shown =
            if whole.length > 0 { self.effects_from_parent_of(then, whole).await? } else { Vec::new() };
        let now = self.revision();
        let below = |revision| then.layout.bytes_before(object, overlap_below(revision));
        let shows_the_same = then.overlap_in(object) == now.overlap_in(object) && below(then) == below(now);
        if migrated == Migrated::Nothing && shows_the_same {
            return Ok(());
        }
        let mut effects = vec![Effect::Create, Effect::Truncate(0)];
        effects.extend(shown);
        self.announced(vec![object], self.change_target(object, &effects)).await
    }
}

/// How many bytes of its own parent the source of a migration shows at a revision of the target: of a clone that was shrunk and grown,
/// HEAD shows less than its snapshots do.
fn overlap_below(revision: &Revision) -> u64 {
    revision.parent.as_ref().and_then(|p| p.ancestor.image()).map_or(0, |source| source.overlap())
}

/// Whether a revision has an object of its own.
pub(crate) async fn exists_at(revision: &Revision, object: ObjectNo) -> Result<bool> {
    Ok(revision.look(object, ReadOp::stat()).await?.is_some())
}
