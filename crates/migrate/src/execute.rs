//! Execute: every object the source has anywhere goes to the target, with all its history.
//!
//! - Only what the source's object maps say may exist is visited.
//! - An object is complete or shows the source; doing one again costs a look. So a killed execute goes on where it was.
//! - An error of the source ends it: the state stays `Executing`, and the target goes on reading through.

mod notes;

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use ferry_core::{Errno, Error, ErrorKind, Reply, Result, SnapId};
use ferry_image::device::ImageDevice;
use ferry_image::encoding::MigrationState;
use ferry_image::features::{Features, Flags};
use ferry_image::header::Header;
use ferry_image::history::{Migrated, Move, Moved, early};
use ferry_image::io::{Io, layout_of};
use ferry_image::layout::{Layout, ObjectExtent, ObjectNo};
use ferry_image::limits::OBJECTS_IN_FLIGHT;
use ferry_image::live_map::load_stored;
use ferry_image::object_map::Loaded;
use ferry_image::progress::Progress;
use ferry_image::revision::Revision;
use futures_util::future::{Either, select};
use futures_util::stream::{self, FuturesUnordered, StreamExt, TryStreamExt};

use crate::children::as_image;
use crate::digests::Keeper;
use crate::ends::{End, Ends};
use crate::removal::{Swept, sweep};
use notes::{Notes, Reached, When};

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
    inner: Arc<ControlState>,
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
        Self { inner: Arc::new(state) }
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
        let state = Arc::clone(&self.inner);
        Reply::pending(poll_fn(move |cx| state.poll_admit(cx.waker())))
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
    /// What this execute itself moved; what clients or an execute before it brought over costs nothing.
    pub moved: Moved,
}

/// How many objects are copied under one hold of the exclusive lock where another client writes the image too: few enough for it
/// to wait for, and many enough that handing the lock over is not most of the work.
const BATCH: usize = 16;

/// Copies everything to the target, which is open as `target`; clients may use it meanwhile, of this device and of others.
/// `progress` hears bytes of the objects that may hold something.
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
    let keeper = Keeper::open(&ends.target).await?;
    let mut both = [&mut ends.source, &mut ends.target];
    let copied = copy_objects(&mut both, keeper, target, objects, 0, pace, progress).await?;
    finish(Some(&mut ends.source), &mut ends.target, target).await?;
    Ok(copied)
}

/// Copies objects, ascending; those below `from` are done already. How far it is goes to the records of `ends`, what was read to
/// the keeper.
pub(crate) async fn copy_objects(
    ends: &mut [&mut End],
    keeper: Keeper,
    target: &ImageDevice,
    objects: Vec<ObjectNo>,
    from: u64,
    pace: &dyn Pace,
    progress: Progress<'_>,
) -> Result<Copied> {
    let sizes = Sizes::new(target);
    let (begun, rest) = objects.split_at(objects.partition_point(|o| o.0 < from));
    let done = begun.iter().map(|o| sizes.of(*o)).sum::<u64>();
    let total = done + rest.iter().map(|o| sizes.of(*o)).sum::<u64>();
    let copied = Copied { objects: begun.len() as u64, ..Copied::default() };
    let under_way = BTreeSet::new();
    let clock = target.image().pool.env.clock;
    let mut notes = Notes::new(ends, keeper, clock);
    let mut tally = Tally { progress, sizes, total, copied, done, shown: 0, under_way, reads: true };
    tally.shown = tally.percent();
    (tally.progress)(done, total);
    let copied = copy_all(&mut tally, &mut notes, rest, target, pace).await;
    // Also where it was stopped: what is copied is not begun again.
    take_noted(&mut notes, target);
    let kept = notes.settle().await;
    copied?;
    kept?;
    Ok(tally.copied)
}

/// Takes what clients' first writes read.
fn take_noted(notes: &mut Notes<'_, '_>, target: &ImageDevice) {
    let noted = target.io().history().map(|h| h.take_noted()).unwrap_or_default();
    noted.into_iter().for_each(|(object, digests)| notes.read(object, digests));
}

/// Copies all of `rest`.
async fn copy_all(
    tally: &mut Tally<'_>,
    notes: &mut Notes<'_, '_>,
    rest: &[ObjectNo],
    target: &ImageDevice,
    pace: &dyn Pace,
) -> Result<()> {
    let mut work = FuturesUnordered::new();
    let mut next = rest.iter().copied().peekable();
    let mut rivals = Rivals::new(target);
    while next.peek().is_some() || !work.is_empty() {
        while next.peek().is_some() && (work.is_empty() || work.len() < rivals.begun_at_once(pace)) {
            let batch: Vec<ObjectNo> = next.by_ref().take(rivals.batch()).collect();
            let first = batch.first().copied();
            let mut admitting = pace.admit(batch.iter().map(|o| tally.sizes.of(*o)).sum());
            // What is under way goes on meanwhile: it holds back whoever wants to read the header again.
            loop {
                let (done, waiting) = match select(admitting, next_done(&mut work, notes)).await {
                    Either::Left((admitted, _)) => break admitted?,
                    Either::Right(done) => done,
                };
                admitting = waiting;
                tally.count(notes, target, done?, first).await?;
            }
            tally.announce(target, &batch);
            tally.under_way.extend(&batch);
            work.push(move_all(target, batch, pace.objects_in_flight()));
        }
        let done = next_done(&mut work, notes).await?;
        tally.count(notes, target, done, next.peek().copied()).await?;
    }
    Ok(())
}

/// What of `work` is done next; never where there is none. Notes are written meanwhile.
fn next_done<F>(
    work: &mut FuturesUnordered<F>,
    notes: &mut Notes<'_, '_>,
) -> impl Future<Output = Result<Vec<Done>>> + Unpin
where
    F: Future<Output = Result<Vec<Done>>>,
{
    poll_fn(|cx| {
        let when = if work.is_empty() { When::Idle } else { When::Rested };
        if let Poll::Ready(Err(e)) = notes.poll(cx, when) {
            return Poll::Ready(Err(e));
        }
        match work.poll_next_unpin(cx) {
            Poll::Ready(Some(done)) => Poll::Ready(done),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    })
}

/// What became of an object.
type Done = (ObjectNo, Move);

/// How far an execute is.
struct Tally<'a> {
    progress: Progress<'a>,
    sizes: Sizes,
    /// Bytes that there are to look at.
    total: u64,
    copied: Copied,
    /// Bytes of the objects that are done.
    done: u64,
    /// The percentage that the headers tell.
    shown: u64,
    under_way: BTreeSet<ObjectNo>,
    /// Whether the last object that is done had to be read: of a copy that was begun before, most need not.
    reads: bool,
}

impl Tally<'_> {
    fn percent(&self) -> u64 {
        let percent = u128::from(self.done) * 100 / u128::from(self.total.max(1));
        u64::try_from(percent).unwrap_or(100)
    }

    /// Says that objects are moved once those begun before are: a store that answers at once does one after the other, and its
    /// disk would wait for each.
    fn announce(&self, target: &ImageDevice, batch: &[ObjectNo]) {
        if self.reads {
            let io = target.io();
            batch.iter().for_each(|object| io.will_move(*object));
        }
    }

    /// Takes into account what is done; `next` is the object that is begun next.
    async fn count(
        &mut self,
        notes: &mut Notes<'_, '_>,
        target: &ImageDevice,
        done: Vec<Done>,
        next: Option<ObjectNo>,
    ) -> Result<()> {
        let mut last = None;
        for (object, done) in done {
            self.copied.objects += 1;
            self.copied.migrated += u64::from(done.migrated != Migrated::Nothing);
            self.copied.moved.copied += done.moved.copied;
            self.copied.moved.shared += done.moved.shared;
            self.reads = done.moved.copied > 0;
            notes.read(object, done.digests);
            self.done += self.sizes.of(object);
            self.under_way.remove(&object);
            last = last.max(Some(object.0 + 1));
        }
        (self.progress)(self.done, self.total);
        let percent = self.percent();
        if percent > self.shown {
            self.shown = percent;
            take_noted(notes, target);
            let first = self.under_way.first().copied().or(next).map_or(last.unwrap_or(0), |o| o.0);
            notes.reached(Reached { percent, first });
        }
        if notes.is_full() { notes.settle().await } else { Ok(()) }
    }
}

/// Gives some objects their history, under one hold of the lock.
async fn move_all(target: &ImageDevice, objects: Vec<ObjectNo>, in_flight: usize) -> Result<Vec<Done>> {
    let work = move |io: Arc<Io>| async move {
        let moving = objects.into_iter().map(|object| {
            let io = Arc::clone(&io);
            async move { io.move_object(object).await.map(|done| (object, done)) }
        });
        stream::iter(moving).buffer_unordered(in_flight.max(1)).try_collect().await
    };
    target.holding(work).await
}

/// How many bytes an object stands for.
#[derive(Debug)]
struct Sizes {
    revisions: Vec<Arc<Revision>>,
}

impl Sizes {
    fn new(target: &ImageDevice) -> Self {
        let io = target.io();
        let points = io.history().map_or(&[][..], |h| h.points());
        Self { revisions: points.iter().map(|p| Arc::clone(&p.revision)).collect() }
    }

    /// Bytes of the largest version that any point may have.
    fn of(&self, object: ObjectNo) -> u64 {
        self.revisions.iter().map(|r| r.length_of(object)).max().unwrap_or(0)
    }
}

/// Others that write the target by way of another process: they and the copy take the exclusive lock from each other. While they
/// do, more is done under each hold of it.
#[derive(Debug)]
struct Rivals<'a> {
    target: &'a ImageDevice,
    hand_overs: u64,
    /// Batches for which the lock is still expected to be wanted.
    wanted_for: usize,
}

impl<'a> Rivals<'a> {
    fn new(target: &'a ImageDevice) -> Self {
        Self { target, hand_overs: target.hand_overs(), wanted_for: 0 }
    }

    /// How many objects to do under one hold.
    fn batch(&mut self) -> usize {
        let now = self.target.hand_overs();
        if now != self.hand_overs {
            (self.hand_overs, self.wanted_for) = (now, BATCH);
        }
        match self.wanted_for {
            0 => 1,
            _ => {
                self.wanted_for -= 1;
                BATCH
            }
        }
    }

    /// How many holds may be under way: a batch has its own objects in flight.
    fn begun_at_once(&self, pace: &dyn Pace) -> usize {
        if self.wanted_for > 0 { 1 } else { pace.objects_in_flight() }
    }
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

/// All is there: says so, durably, and lets clients know.
pub(crate) async fn finish(source: Option<&mut End>, target: &mut End, device: &ImageDevice) -> Result<()> {
    device.holding(|io| async move { Box::pin(io.settle_early()).await }).await?;
    target.pool.store.flush().await?;
    if let Some(source) = source {
        source.set_state(MigrationState::Executed, "").await?;
    }
    device
        .exclusively(async |image| {
            if early::is_any(image).await? {
                // Written since: nobody writes now.
                Box::pin(Io::open(image).await?.settle_early()).await?;
                image.pool.store.flush().await?;
            }
            early::remove_all(image).await?;
            // From here on nobody looks whether an object is finished: a grown image would show it.
            sweep(image, Swept::Unfinished).await?;
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
pub(crate) fn overlapping(from: Layout, object: ObjectNo, to: Layout) -> impl Iterator<Item = ObjectNo> {
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
