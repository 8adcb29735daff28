//! Execute: every object the source has anywhere goes to the target, with all its history.
//!
//! - Only what the source's object maps say may exist is visited.
//! - An object is complete or shows the source; doing one again costs a look. So a killed execute goes on where it was.
//! - An error of the source ends it: the state stays `Executing`, and the target goes on reading through.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Poll, Waker};

use ferry_core::{Errno, Error, ErrorKind, Reply, Result, SnapId};
use ferry_image::device::ImageDevice;
use ferry_image::encoding::MigrationState;
use ferry_image::features::{Features, Flags};
use ferry_image::header::Header;
use ferry_image::history::Migrated;
use ferry_image::io::layout_of;
use ferry_image::layout::{Layout, ObjectExtent, ObjectNo};
use ferry_image::limits::OBJECTS_IN_FLIGHT;
use ferry_image::live_map::load_stored;
use ferry_image::object_map::Loaded;
use ferry_image::progress::Progress;
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::children::as_image;
use crate::ends::{End, Ends};

/// Sets the pace of an execute: how many objects at once, and when the next may start.
pub trait Pace: Send + Sync + std::fmt::Debug {
    /// Waits until the next object, of at most so many bytes, may be copied. An error ends the execute.
    fn admit(&self, bytes: u64) -> Reply<()>;

    /// Objects in flight. Looked at again before each object.
    fn objects_in_flight(&self) -> usize;
}

/// A pace that can be paused, changed and cancelled by hand.
#[derive(Debug)]
pub struct Control {
    inner: std::sync::Arc<ControlState>,
}

#[derive(Debug)]
struct ControlState {
    paused: AtomicBool,
    cancelled: AtomicBool,
    in_flight: AtomicUsize,
    waiting: Mutex<Vec<Waker>>,
}

impl Default for Control {
    fn default() -> Self {
        let state = ControlState {
            paused: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            in_flight: AtomicUsize::new(OBJECTS_IN_FLIGHT),
            waiting: Mutex::default(),
        };
        Self { inner: std::sync::Arc::new(state) }
    }
}

impl Control {
    /// Starts no more objects until [`Self::resume`].
    pub fn pause(&self) {
        self.inner.paused.store(true, Ordering::Release);
    }

    /// Goes on.
    pub fn resume(&self) {
        self.inner.paused.store(false, Ordering::Release);
        self.inner.wake();
    }

    /// Ends the execute with `Unavailable` (125) once the objects under way are done. It can be started again.
    pub fn cancel(&self) {
        self.inner.cancelled.store(true, Ordering::Release);
        self.inner.wake();
    }

    /// Copies so many objects at once from now on; at least one.
    pub fn set_objects_in_flight(&self, count: usize) {
        self.inner.in_flight.store(count.max(1), Ordering::Release);
    }
}

impl ControlState {
    fn wake(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(Waker::wake);
    }

    fn poll_admit(&self, waker: &Waker) -> Poll<Result<()>> {
        // Registered before it looks, so that no change in between is missed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(waker.clone());
        if self.cancelled.load(Ordering::Acquire) {
            let error = Error::new(ErrorKind::Unavailable, "the migration was told to stop copying");
            return Poll::Ready(Err(error.errno_is(Errno::ECANCELED)));
        }
        if self.paused.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Poll::Ready(Ok(()))
    }
}

impl Pace for Control {
    fn admit(&self, _bytes: u64) -> Reply<()> {
        let state = std::sync::Arc::clone(&self.inner);
        Reply::pending(std::future::poll_fn(move |cx| state.poll_admit(cx.waker())))
    }

    fn objects_in_flight(&self) -> usize {
        self.inner.in_flight.load(Ordering::Acquire)
    }
}

/// What an execute did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Objects of the target looked at.
    pub objects: u64,
    /// Those of them that the source had something for.
    pub migrated: u64,
}

/// Copies everything to the target, which is open as `target`; clients may use it meanwhile.
///
/// # Errors
/// `Invalid` (22) in another state than prepared or executing; `ReadOnly` (30) while it is aborted; those of `pace` and of
/// the stores. What the source cannot give ends it.
///
/// # Crash safety
/// Killed, the same call goes on. The state `Executed` is written after all data is durable.
///
/// # Cancel safety
/// As killed.
pub async fn execute(
    ends: &mut Ends,
    target: &ImageDevice,
    pace: &dyn Pace,
    progress: Progress<'_>,
) -> Result<Copied> {
    let state = ends.state();
    ends.source.need_header()?;
    begin(&mut [&mut ends.source, &mut ends.target], state).await?;
    target.refresh().await?;
    target.acquire().await?;
    let objects = candidates(ends, target).await?;
    let copied =
        copy_objects(&mut [&mut ends.source, &mut ends.target], target, objects, 0, pace, progress).await?;
    finish(Some(&mut ends.source), &mut ends.target, target).await?;
    Ok(copied)
}

/// Copies objects, ascending; those below `from` are done already. How far it is goes to the records of `ends`.
pub(crate) async fn copy_objects(
    ends: &mut [&mut End],
    target: &ImageDevice,
    objects: Vec<ObjectNo>,
    from: u64,
    pace: &dyn Pace,
    progress: Progress<'_>,
) -> Result<Copied> {
    let total = objects.len() as u64;
    let done = objects.partition_point(|o| o.0 < from);
    let mut copied = Copied { objects: done as u64, migrated: 0 };
    let mut shown = copied.objects * 100 / total.max(1);
    let mut work = FuturesUnordered::new();
    let mut under_way = BTreeSet::new();
    let mut next = objects.into_iter().skip(done).peekable();
    let object_size = target.io().revision().layout.object_size();
    let mut is_last = false;
    while !is_last || !work.is_empty() {
        while !is_last && work.len() < pace.objects_in_flight() {
            match next.next() {
                Some(object) => {
                    pace.admit(object_size).await?;
                    under_way.insert(object);
                    work.push(async move { (object, target.migrate_object(object).await) });
                }
                None => is_last = true,
            }
        }
        let Some((object, migrated)) = work.next().await else { continue };
        copied.migrated += u64::from(migrated? != Migrated::Nothing);
        under_way.remove(&object);
        copied.objects += 1;
        progress(copied.objects, total);
        let percent = copied.objects * 100 / total.max(1);
        if percent > shown {
            shown = percent;
            let first = under_way.first().or(next.peek()).map_or(object.0 + 1, |o| o.0);
            describe(ends, percent, first).await?;
        }
    }
    Ok(copied)
}

/// Checks the state and writes the new one.
pub(crate) async fn begin(ends: &mut [&mut End], state: MigrationState) -> Result<()> {
    match state {
        MigrationState::Prepared | MigrationState::Executing => {}
        MigrationState::Aborting => {
            return Err(Error::new(ErrorKind::ReadOnly, "migration is being aborted"));
        }
        MigrationState::Error
        | MigrationState::Preparing
        | MigrationState::Executed
        | MigrationState::Unknown(_) => {
            return Err(Error::invalid("current migration state is another").with("state", state));
        }
    }
    for end in ends {
        if end.state() != Some(MigrationState::Executing) {
            end.set_state(MigrationState::Executing, "0% complete").await?;
        }
    }
    Ok(())
}

/// Notes for people how far it is, and for the next execute of an import below which object all is done; nobody is woken up
/// for that.
async fn describe(ends: &mut [&mut End], percent: u64, first: u64) -> Result<()> {
    let text = format!("{percent}% complete");
    for end in ends {
        end.update(|h| {
            if let Some(intent) = h.intent.as_mut().filter(|i| i.origin.is_some()) {
                intent.cursor = intent.cursor.max(first);
            }
            h.set_migration_state(MigrationState::Executing, &text)
        })
        .await?;
    }
    Ok(())
}

/// All is there: says so, durably, and lets clients know.
pub(crate) async fn finish(source: Option<&mut End>, target: &mut End, device: &ImageDevice) -> Result<()> {
    target.pool.store.flush().await?;
    if let Some(source) = source {
        source.set_state(MigrationState::Executed, "").await?;
    }
    device
        .exclusively(async |image| {
            image.update_header(|h| h.set_migration_state(MigrationState::Executed, "")).await
        })
        .await?;
    target.pool.store.flush().await?;
    target.reload().await
}

/// The objects of the target that the source, at any point that counts, may have something for. Ascending.
async fn candidates(ends: &Ends, target: &ImageDevice) -> Result<Vec<ObjectNo>> {
    let takes_parent = ends.target.record().is_some_and(|r| r.flatten);
    candidates_of(&ends.source, takes_parent, target).await
}

/// As [`candidates`], of a source that is an image; what its parent has is taken along, or not.
pub(crate) async fn candidates_of(
    from: &End,
    takes_parent: bool,
    target: &ImageDevice,
) -> Result<Vec<ObjectNo>> {
    let io = target.io();
    let Some(history) = io.history() else { return Ok(Vec::new()) };
    let layout = io.revision().layout;
    let count = history.object_count();
    let source = from.need_header()?;
    if source.parent_spec().is_some() && takes_parent {
        return Ok((0..count).map(ObjectNo).collect());
    }
    let Some(allocated) = allocated(from, source).await? else {
        return Ok((0..count).map(ObjectNo).collect());
    };
    let mut wanted = Vec::new();
    let of_source = layout_of(source)?;
    for object in allocated {
        wanted.extend(overlapping(of_source, object, layout).filter(|o| o.0 < count));
        // Many source objects make one target object, and the other way round; keep the list short.
        if wanted.len() > 1 << 20 {
            tidy(&mut wanted);
        }
    }
    tidy(&mut wanted);
    Ok(wanted)
}

pub(crate) fn tidy(objects: &mut Vec<ObjectNo>) {
    objects.sort_unstable();
    objects.dedup();
}

/// The objects of `to` that hold bytes of an object of `from`.
fn overlapping(from: Layout, object: ObjectNo, to: Layout) -> impl Iterator<Item = ObjectNo> {
    let whole = ObjectExtent { object, offset: 0, length: from.object_size() };
    let parts: Vec<_> = from.image_extents(whole).collect();
    parts.into_iter().flat_map(move |part| to.extents(part.offset, part.length).map(|e| e.object))
}

/// The objects that may exist at HEAD or any snapshot; `None` where the object maps cannot tell.
pub(crate) async fn allocated(end: &End, header: &Header) -> Result<Option<Vec<ObjectNo>>> {
    if !header.features.contains(Features::OBJECT_MAP) {
        return Ok(None);
    }
    let image = as_image(end)?;
    let mut found: Vec<ObjectNo> = Vec::new();
    for at in header.snaps.keys().copied().chain([SnapId::HEAD]) {
        if header.flags_at(at)?.contains(Flags::OBJECT_MAP_INVALID) {
            return Ok(None);
        }
        let count = layout_of(header)?.object_count(header.size_at(at)?);
        match load_stored(&*end.pool.store, &image.object_map_object(at), count).await? {
            Loaded::Valid(map) => {
                found.extend((0..count).map(ObjectNo).filter(|o| map.get(*o).may_exist()));
            }
            Loaded::Invalid { .. } => return Ok(None),
        }
        tidy(&mut found);
    }
    Ok(Some(found))
}
