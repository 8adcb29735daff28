//! Execute: every object the source has anywhere goes to the target, with all its history.
//!
//! - Only what the source's object maps say may exist is visited.
//! - An object is complete or shows the source; doing one again costs a look. So a killed execute goes on where it was.
//! - An error of the source ends it: the state stays `Executing`, and the target goes on reading through.

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
    begin(ends).await?;
    target.refresh().await?;
    target.acquire().await?;
    let objects = candidates(ends, target).await?;
    let total = objects.len() as u64;
    let mut copied = Copied::default();
    let mut shown = 0;
    let mut work = FuturesUnordered::new();
    let mut next = objects.into_iter();
    let object_size = target.io().revision().layout.object_size();
    let mut is_last = false;
    while !is_last || !work.is_empty() {
        while !is_last && work.len() < pace.objects_in_flight() {
            match next.next() {
                Some(object) => {
                    pace.admit(object_size).await?;
                    work.push(target.migrate_object(object));
                }
                None => is_last = true,
            }
        }
        let Some(done) = work.next().await else { continue };
        copied.objects += 1;
        copied.migrated += u64::from(done? != Migrated::Nothing);
        progress(copied.objects, total);
        let percent = copied.objects * 100 / total.max(1);
        if percent > shown {
            shown = percent;
            describe(ends, percent).await?;
        }
    }
    drop(work);
    finish(ends, target).await?;
    Ok(copied)
}

/// Checks the state and writes the new one.
async fn begin(ends: &mut Ends) -> Result<()> {
    let state = ends.state();
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
    ends.source.need_header()?;
    for end in [&mut ends.source, &mut ends.target] {
        if end.state() != Some(MigrationState::Executing) {
            end.set_state(MigrationState::Executing, "0% complete").await?;
        }
    }
    Ok(())
}

/// Notes for people how far it is; nobody is woken up for that.
async fn describe(ends: &mut Ends, percent: u64) -> Result<()> {
    let text = format!("{percent}% complete");
    for end in [&mut ends.source, &mut ends.target] {
        end.update(|h| h.set_migration_state(MigrationState::Executing, &text)).await?;
    }
    Ok(())
}

/// All is there: says so, durably, and lets clients know.
async fn finish(ends: &mut Ends, target: &ImageDevice) -> Result<()> {
    ends.target.pool.store.flush().await?;
    ends.source.set_state(MigrationState::Executed, "").await?;
    target
        .exclusively(async |image| {
            image.update_header(|h| h.set_migration_state(MigrationState::Executed, "")).await
        })
        .await?;
    ends.target.pool.store.flush().await?;
    ends.target.reload().await
}

/// The objects of the target that the source, at any point that counts, may have something for. Ascending.
async fn candidates(ends: &Ends, target: &ImageDevice) -> Result<Vec<ObjectNo>> {
    let io = target.io();
    let Some(history) = io.history() else { return Ok(Vec::new()) };
    let layout = io.revision().layout;
    let count = history.object_count();
    let source = ends.source.need_header()?;
    let record = ends.target.record();
    // What a parent has is taken along too.
    let takes_parent = source.parent_spec().is_some() && record.is_some_and(|r| r.flatten);
    if takes_parent {
        return Ok((0..count).map(ObjectNo).collect());
    }
    let Some(allocated) = allocated(&ends.source, source).await? else {
        return Ok((0..count).map(ObjectNo).collect());
    };
    let mut wanted = Vec::new();
    let from = layout_of(source)?;
    for object in allocated {
        wanted.extend(overlapping(from, object, layout).filter(|o| o.0 < count));
        // Many source objects make one target object, and the other way round; keep the list short.
        if wanted.len() > 1 << 20 {
            tidy(&mut wanted);
        }
    }
    tidy(&mut wanted);
    Ok(wanted)
}

fn tidy(objects: &mut Vec<ObjectNo>) {
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
