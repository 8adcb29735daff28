//! What the target of a migration does not have yet, and how one object after another gets it, all snapshots included.
//!
//! - An object that is missing shows the source: at each snapshot that of the source it was made from, at HEAD and at
//!   snapshots taken since prepare the source's HEAD. The first change of an object therefore brings its whole history along,
//!   as nothing can be put below a newer version later.
//! - The history goes to the object in steps, each one atomic op, oldest first. While steps are left, the object carries the
//!   mark [`MARK`] with the newest snapshot it is right for; whoever reads a newer one, or HEAD, still reads the source. The
//!   last step takes the mark away. So no crash and no reader ever sees a half-made object.
//! - Each step is guarded by the mark before it: whoever loses a race goes on from what the other did.
//! - An object that HEAD lacks although versions of it are preserved was finished and then removed.
//! - Points that show the same take one step together; an object that never changed takes one.
//! - Where that means copying, a write does not wait for it, nor does a discard: its bytes are kept [aside](early), and put over the
//!   source's in the last steps.
//! - What is written since prepare lies above the point of prepare ([`Header::base`]), so that it can be told apart.
//!
//! [`Header::base`]: crate::header::Header::base

pub mod early;
mod step;
mod trail;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use ferry_core::{
    Effect, Error, ErrorKind, Guard, ObjectId, ReadOp, ReadReply, Result, SnapContext, SnapId, WriteOp,
};
use futures_util::stream::{self, StreamExt};

use self::early::Early;
use crate::copyup::{can_copy, can_share};
use crate::digest::Digest;
use crate::features::{Features, Flags};
use crate::image::Image;
use crate::io::Io;
use crate::layout::{ObjectExtent, ObjectNo};
use crate::limits::{OBJECTS_IN_FLIGHT, WRITE_RETRIES_MAX};
use crate::object_map::ObjectState;
use crate::revision::Revision;
use trail::Trail;

/// The xattr of an object whose history is not complete: the newest snapshot it is right for, 8 bytes, little-endian.
pub const MARK: &str = "ferry.copyup";

/// A snapshot of the target, its point of prepare, or HEAD, with the source showing through.
#[derive(Clone, Debug)]
pub struct Point {
    /// The target there.
    pub revision: Arc<Revision>,
    /// Its object map, where that is valid.
    map_object: Option<ObjectId>,
    /// Whether the target goes on being a clone there, so that an object that the source itself lacks stays missing.
    keeps_parent: bool,
}

/// All points of the target of a migration under way.
#[derive(Clone, Debug)]
pub struct History {
    /// Ascending; HEAD last.
    points: Vec<Point>,
    /// Where bytes may be written aside.
    early: Option<Arc<Early>>,
    /// What was read for objects that were wanted before the copy came to them.
    noted: Arc<Noted>,
}

/// Objects, and what was read of the source in them.
type Noted = Mutex<Vec<(ObjectNo, Vec<(SnapId, Digest)>)>>;

/// How many objects are noted until somebody takes the note: more are read again to be verified.
const NOTED_MAX: usize = 1 << 16;

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Migrated {
    /// The target has all of it.
    There,
    /// The source has nothing that the target would need.
    Nothing,
    /// The target had all of it, and it was removed since.
    Gone,
}

/// What an object cost that got its history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes of data that were copied: read from the source and written to the target, or copied by the store that has both.
    pub copied: u64,
    /// Bytes that source and target have in common from now on.
    pub shared: u64,
}

/// What came of moving an object.
#[derive(Clone, Debug)]
pub struct Move {
    /// What became of it.
    pub migrated: Migrated,
    /// What that cost.
    pub moved: Moved,
    /// What the source was read to show in it, by points of the target. Only points whose whole content in the object is known
    /// from bytes that were read for this move; of those that the store copied, [`Digest::UNREAD`].
    pub digests: Vec<(SnapId, Digest)>,
}

impl Moved {
    fn count(&mut self, effects: &[Effect]) {
        for effect in effects {
            if let Effect::Write { data, .. } | Effect::WriteFull(data) = effect {
                self.copied += data.len() as u64;
            } else if let Effect::CopyObject { length, .. } = effect {
                self.copied += length;
            } else if let Effect::ShareRange { length, .. } = effect {
                self.shared += length;
            }
        }
    }
}

/// Whether an op is a step of an object's history. For what looks at copies from outside.
#[must_use]
pub fn is_step(op: &WriteOp) -> bool {
    let follows = |guard: &Guard| match guard {
        Guard::CreateExclusive => op.effects.starts_with(&[Effect::Create, Effect::Truncate(0)]),
        Guard::XattrCompare { name, value } => name == MARK && !value.is_empty(),
        Guard::AssertExists | Guard::AssertVersion(_) | Guard::OmapCompare { .. } => false,
    };
    op.guards.iter().any(follows)
}

/// Whether a mark says that an object is not to be read at `at`.
///
/// # Errors
/// `Corrupt` for a mark that is none.
pub(crate) fn hides(reply: &ReadReply, at: SnapId) -> Result<bool> {
    Ok(mark_of(reply)?.is_some_and(|right_until| at > right_until))
}

/// The mark of an object.
fn mark_of(reply: &ReadReply) -> Result<Option<SnapId>> {
    let Some(mark) = reply.xattrs.get(MARK) else { return Ok(None) };
    let bytes = <[u8; 8]>::try_from(&mark[..])
        .map_err(|_| Error::corrupt("the mark of an unfinished object is none"))?;
    Ok(Some(SnapId(u64::from_le_bytes(bytes))))
}

/// The mark that says so.
fn mark(right_until: SnapId) -> Bytes {
    Bytes::copy_from_slice(&right_until.0.to_le_bytes())
}

impl History {
    /// Of an image; `None` where it is no target of a migration under way.
    ///
    /// # Errors
    /// As [`crate::io::open_revision`].
    pub async fn open(image: &Image) -> Result<Option<Self>> {
        let header = &image.header;
        if !header.redirects() {
            return Ok(None);
        }
        let mut ids: Vec<SnapId> =
            header.snaps.keys().copied().chain(header.base().map(|b| b.snap)).collect();
        ids.sort_unstable();
        ids.push(SnapId::HEAD);
        let mut points = Vec::new();
        for at in ids {
            let is_valid = header.features.contains(Features::OBJECT_MAP)
                && header.snaps.get(&at).is_some_and(|s| !Flags(s.flags).contains(Flags::OBJECT_MAP_INVALID));
            points.push(Point {
                revision: Arc::new(image.revision_at(at).await?),
                map_object: is_valid.then(|| image.object_map_object(at)),
                keeps_parent: header.parent_at(at)?.is_some(),
            });
        }
        let head = &points.last().expect("HEAD is one").revision;
        let early = Early::of(header, head).map(Arc::new);
        Ok(Some(Self { points, early, noted: Arc::default() }))
    }

    /// Takes what was read of the source for objects that clients changed, by object and as [`Move::digests`].
    #[must_use]
    pub fn take_noted(&self) -> Vec<(ObjectNo, Vec<(SnapId, Digest)>)> {
        std::mem::take(&mut *self.noted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, object: ObjectNo, digests: Vec<(SnapId, Digest)>) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if !digests.is_empty() && noted.len() < NOTED_MAX {
            noted.push((object, digests));
        }
    }

    /// Goes on with what an earlier state of the same image noted.
    pub(crate) fn follow(&mut self, earlier: &Self) {
        self.noted = Arc::clone(&earlier.noted);
    }

    /// Ascending; HEAD last.
    #[must_use]
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Whether no point shows anything of the source in an object.
    #[must_use]
    pub fn never_shows(&self, object: ObjectNo) -> bool {
        self.points.iter().all(|p| p.revision.overlap_in(object) == 0)
    }

    /// How many objects of the target any point may have.
    #[must_use]
    pub fn object_count(&self) -> u64 {
        self.points.iter().map(|p| p.revision.object_count()).max().unwrap_or(0)
    }
}

/// What is left of an object's history behind a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// More steps.
    Steps,
    /// Nothing: what became of it.
    Nothing(Migrated),
}

/// How an object stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It is not there and never was.
    Missing,
    /// It is right up to this snapshot.
    Unfinished(SnapId),
    /// See [`Migrated`].
    Finished(Migrated),
}

impl Io {
    /// Gives an object of the target of a migration its history. Nothing is done where it has it.
    ///
    /// # Errors
    /// Those of either store; `ReadOnly` (30). What the source cannot give is an error, never zeros.
    ///
    /// # Crash safety
    /// Whatever is read stays the same all the time. After a crash the same call goes on.
    ///
    /// # Cancel safety
    /// As a crash.
    pub async fn migrate_object(&self, object: ObjectNo) -> Result<Migrated> {
        let done = self.move_object(object).await?;
        if let Some(history) = self.history() {
            history.note(object, done.digests);
        }
        Ok(done.migrated)
    }

    /// As [`Self::migrate_object`]; tells what it cost and what was read, too. One that has its history costs nothing.
    ///
    /// # Errors
    /// As [`Self::migrate_object`].
    ///
    /// # Cancel safety
    /// As a crash.
    pub async fn move_object(&self, object: ObjectNo) -> Result<Move> {
        let (mut moved, mut trail) = (Moved::default(), Trail::default());
        let Some(history) = self.history() else { return Ok(trail.end(Migrated::There, moved)) };
        let (mut losses, mut newest) = (0, None);
        while losses <= WRITE_RETRIES_MAX {
            let standing = self.standing(object).await?;
            let right_until = match standing {
                Standing::Finished(migrated) => {
                    // A crash may have come between the last step and this.
                    if self.revision().has_early(object).await? {
                        let _held = history.hold_early(object).await;
                        self.forget_early(object).await?;
                    }
                    return Ok(trail.end(migrated, moved));
                }
                Standing::Missing => None,
                Standing::Unfinished(snap) => Some(snap),
            };
            // A long history may be lost step by step to another who brings it: that is no object that comes and goes.
            if right_until > newest {
                (losses, newest) = (0, right_until);
            }
            let Some(step) = history.next_step(self, object, right_until, &mut trail).await? else {
                if self.standing(object).await? == standing {
                    return Ok(trail.end(Migrated::Nothing, moved));
                }
                // What was aside went into the object between the two looks.
                losses += 1;
                continue;
            };
            let (mut cost, copies) = (Moved::default(), step.copies());
            cost.count(&step.effects);
            // What HEAD does not reach is not in its object map.
            let in_head = self.revision().length_of(object) > 0;
            let announced = if in_head { vec![object] } else { Vec::new() };
            match self.announced(announced, Box::pin(self.take_step_over(history, object, step))).await {
                Ok(left) => {
                    moved.copied += cost.copied;
                    moved.shared += cost.shared;
                    if let Left::Nothing(migrated) = left {
                        return Ok(trail.end(migrated, moved));
                    }
                }
                // Somebody else did it, or something else with the object.
                Err(e) if is_lost_race(&e) => losses += 1,
                // The store found out that it copies nothing.
                Err(e) if copies && e.kind() == ErrorKind::Unsupported => losses += 1,
                Err(e) => return Err(e),
            }
        }
        Err(Error::busy("an object comes and goes while it is migrated").with("image_object", object.0))
    }

    /// Says that an object will be moved soon, so that what HEAD shows in it can be brought to memory meanwhile. Nothing is said where
    /// it is shared or copied by the store instead of read, and to foreign sources, which are asked for several objects at once.
    pub fn will_move(&self, object: ObjectNo) {
        let head = self.revision();
        let Some(source) = head.parent.as_ref().and_then(|p| p.ancestor.image()) else { return };
        if can_share(source, head) || can_copy(source, head).is_some() {
            return;
        }
        let whole = ObjectExtent { object, offset: 0, length: head.overlap_in(object) };
        for part in head.below_overlap(whole) {
            source.will_read(part.offset, part.length);
        }
    }

    /// Looks an object up.
    async fn standing(&self, object: ObjectNo) -> Result<Standing> {
        let (store, id) = (&self.revision().store, self.revision().object_id(object));
        let op = ReadOp { xattrs: true, ..ReadOp::default() };
        match store.read(&id, SnapId::HEAD, op).await {
            Ok(reply) => Ok(match mark_of(&reply)? {
                Some(snap) => Standing::Unfinished(snap),
                None => Standing::Finished(Migrated::There),
            }),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let was_there = self.was_there(object).await.map_err(|e| e.with("image_object", object.0))?;
                Ok(if was_there { Standing::Finished(Migrated::Gone) } else { Standing::Missing })
            }
            Err(e) => Err(e.with("image_object", object.0)),
        }
    }

    /// Whether versions are preserved of an object that HEAD lacks.
    async fn was_there(&self, object: ObjectNo) -> Result<bool> {
        let (store, id) = (&self.revision().store, self.revision().object_id(object));
        let is_found = |found: Result<bool>| match found {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            found => found,
        };
        if store.capabilities().list_snaps {
            return is_found(store.list_snaps(&id).await.map(|set| !set.clones.is_empty()));
        }
        // One that is preserved at all is preserved for a point that is still there.
        let points = self.history().map_or(&[][..], |h| h.points());
        let before_head = &points[..points.len().saturating_sub(1)];
        let looks: Vec<_> =
            before_head.iter().map(|p| store.read(&id, p.revision.snap, ReadOp::stat())).collect();
        let mut looks = stream::iter(looks).buffer_unordered(OBJECTS_IN_FLIGHT);
        while let Some(found) = looks.next().await {
            if is_found(found.map(|_| true))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes one step of an object's history.
    async fn take_step(&self, object: ObjectNo, step: step::Step) -> Result<Left> {
        if let Some(map) = self.map() {
            let later = if self.has_fast_diff() { ObjectState::Clean } else { ObjectState::Exists };
            map.mark_in_snaps(object, &step.maps, later).await?;
        }
        let mut op = WriteOp::new().stamped(self.copy_stamp()).guard(match step.after {
            None => Guard::CreateExclusive,
            Some(snap) => Guard::XattrCompare { name: MARK.to_owned(), value: mark(snap) },
        });
        let left = match step.right_until {
            Some(_) => Left::Steps,
            None if step.effects == [Effect::Remove] => Left::Nothing(Migrated::Gone),
            None => Left::Nothing(Migrated::There),
        };
        op.effects = step.effects;
        op = match (step.right_until, step.after) {
            (Some(snap), _) => op.effect(Effect::XattrSet(MARK.to_owned(), mark(snap))),
            (None, Some(_)) if op.effects != [Effect::Remove] => {
                op.effect(Effect::XattrRemove(MARK.to_owned()))
            }
            (None, _) => op,
        };
        let (store, id) = (&self.revision().store, self.revision().object_id(object));
        let copies = op.copies();
        let written = store.write(&id, op.under(step.context.clone())).await?;
        if copies && let Some(stamp) = self.copy_stamp() {
            // Such an op leaves none of its own. Whoever came in between has written what must not look like the copy.
            let stamped = WriteOp::new().guard(Guard::AssertVersion(written.version)).effect(Effect::Create);
            match store.write(&id, stamped.stamped(Some(stamp)).under(step.context)).await {
                Err(e) if !is_lost_race(&e) => return Err(e),
                _ => {}
            }
        }
        Ok(left)
    }

    /// Changes an object of the target of a migration, its history first.
    ///
    /// # Errors
    /// Those of the stores.
    pub(crate) async fn change_target(&self, object: ObjectNo, effects: &[Effect]) -> Result<()> {
        for _ in 0..WRITE_RETRIES_MAX {
            let guard = Guard::XattrCompare { name: MARK.to_owned(), value: Bytes::new() };
            let op = WriteOp { effects: effects.to_vec(), ..WriteOp::new() }.guard(guard);
            match self.apply(object, op).await {
                Err(e) if is_lost_race(&e) => {}
                done => return done,
            }
            if let [Effect::Write { offset, data }] = effects {
                let extent = ObjectExtent { object, offset: *offset, length: data.len() as u64 };
                if Box::pin(self.write_early(extent, data)).await? {
                    return Ok(());
                }
            }
            if self.migrate_object(object).await? == Migrated::There {
                continue;
            }
            // What the source says of it is no race lost.
            let op = self.make_in_target(object, effects).await?;
            match self.apply(object, op).await {
                Err(e) if is_lost_race(&e) => {}
                done => return done,
            }
        }
        Err(Error::busy("an object comes and goes while it is written").with("image_object", object.0))
    }

    /// The op that makes an object that needs no history: with what its ancestors show at HEAD, and `effects`.
    async fn make_in_target(&self, object: ObjectNo, effects: &[Effect]) -> Result<WriteOp> {
        let whole = ObjectExtent { object, offset: 0, length: self.revision().overlap_in(object) };
        let mut all = vec![Effect::Create];
        if whole.length > 0 {
            all.extend(self.effects_from_parent_of(self.revision(), whole).await?);
        }
        all.extend(effects.iter().cloned());
        Ok(WriteOp { effects: all, ..WriteOp::new() }.guard(Guard::CreateExclusive))
    }

    /// As [`Self::change_target`], for an effect that only takes data away: nothing happens where there is none.
    pub(crate) async fn cut_target(&self, extent: ObjectExtent, effect: Effect) -> Result<()> {
        let object = extent.object;
        if Box::pin(self.discard_early(extent)).await? {
            return Ok(());
        }
        if matches!(self.migrate_object(object).await?, Migrated::Nothing | Migrated::Gone) {
            let overlap = self.revision().overlap_in(object);
            let shown = ObjectExtent { object, offset: 0, length: overlap };
            if overlap <= extent.offset || self.revision().locate_in_parent(shown).await?.is_empty() {
                return Ok(());
            }
        }
        self.change_target(object, &[effect]).await
    }
}

/// Whether another client was faster.
fn is_lost_race(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Exists | ErrorKind::Conflict | ErrorKind::NotFound)
        && error.fact("pool").is_none()
}

/// The context of a step: everything older than what it is for.
fn context_before(points: &[Point], first: usize, right_until: Option<SnapId>) -> SnapContext {
    let older: Vec<SnapId> = points[..first].iter().rev().map(|p| p.revision.snap).collect();
    let newest = older.first().map_or(0, |s| s.0).max(right_until.map_or(0, |s| s.0));
    SnapContext { seq: newest, snaps: Arc::from(older) }
}
