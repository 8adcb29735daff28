//! The object map of an image being written: kept in memory, stored before what it announces.
//!
//! Invariants
//! - What `acked` says is stored. A write starts only after `acked` says `Exists`, so a crash never leaves an object that
//!   the stored map denies.
//! - Stored changes are made one after the other, `staged` being what the last one brings about. What is asked for while one is made
//!   goes into the next, all of it together.
//! - A change that failed or was given up counts as not made, and may have been made in the store.
//! - A removal that any write of the same object overlapped leaves `Exists`: nobody knows which of the two came last.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferry_core::{Effect, Error, ErrorKind, ObjectId, ReadOp, Result, SnapId, Store, WriteOp};
use futures_util::lock::Mutex as AsyncMutex;

use crate::layout::ObjectNo;
use crate::object_map::{Loaded, ObjectMap, ObjectState, load};

/// Objects less than so far apart are written in one piece: their bytes are fewer than another piece costs.
const NEAR: u64 = 1024;

/// The map of HEAD while its image is open for writing, and the maps of snapshots that a copy-up reaches into.
#[derive(Debug)]
pub struct LiveMap {
    store: Arc<dyn Store>,
    object: ObjectId,
    acked: Mutex<ObjectMap>,
    staged: AsyncMutex<Staged>,
    /// What waits for `staged`, in the order it was asked for.
    asked: Mutex<Vec<Arc<Asked>>>,
    in_flight: Mutex<HashMap<ObjectNo, InFlight>>,
    snaps: AsyncMutex<BTreeMap<SnapId, (ObjectId, ObjectMap)>>,
}

/// Requests on one object that are under way.
#[derive(Debug, Default)]
struct InFlight {
    writes: u32,
    removals: u32,
    /// Whether a write overlapped a removal that is still under way.
    disturbed: bool,
}

/// What the store is made to say.
#[derive(Debug)]
struct Staged {
    map: ObjectMap,
    /// Objects of changes that failed or were given up: the store says of them what it did before, or not. They are written again
    /// with the next change, as its checksums speak of them too.
    unsure: BTreeSet<ObjectNo>,
}

/// Changes that are wanted.
#[derive(Debug)]
struct Asked {
    /// Ascending; at least one.
    objects: Vec<ObjectNo>,
    change: Change,
    is_done: AtomicBool,
}

/// What becomes of an object.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// It is going to be written.
    Written,
    /// It is going to be removed.
    Removing,
    /// A removal is over, and this is what it left.
    Removed(ObjectState),
}

impl Change {
    /// The new state for the one there is; `None` to leave it.
    fn of(self, state: ObjectState) -> Option<ObjectState> {
        match self {
            Self::Written => Some(ObjectState::Exists),
            Self::Removing => state.may_exist().then_some(ObjectState::Pending),
            Self::Removed(left) => (state == ObjectState::Pending).then_some(left),
        }
    }
}

/// Says that objects are being written, until finished. Dropped before, it goes on saying so: a request that was given up may
/// still happen, and no removal of these objects may be trusted to have come last.
#[derive(Debug)]
pub struct WriteTicket<'a> {
    map: &'a LiveMap,
    objects: Vec<ObjectNo>,
}

impl WriteTicket<'_> {
    /// Says that the writes have happened, or never will.
    pub fn finish(self) {
        let mut in_flight = locked(&self.map.in_flight);
        for object in &self.objects {
            let gone = in_flight.get_mut(object).is_none_or(|f| {
                f.writes = f.writes.saturating_sub(1);
                f.writes == 0 && f.removals == 0
            });
            if gone {
                in_flight.remove(object);
            }
        }
    }
}

impl LiveMap {
    /// Reads the stored map of HEAD; `Err` of the inner result says why it cannot be trusted and what to put in its place.
    ///
    /// # Errors
    /// Those of the store; `Invalid` (27) where the image has too many objects for a map.
    pub async fn open(store: &Arc<dyn Store>, object: ObjectId, count: u64) -> Result<Result<Self, Loaded>> {
        match load_stored(&**store, &object, count).await? {
            Loaded::Valid(map) => Ok(Ok(Self {
                store: Arc::clone(store),
                object,
                acked: Mutex::new(map.clone()),
                staged: AsyncMutex::new(Staged { map, unsure: BTreeSet::new() }),
                asked: Mutex::default(),
                in_flight: Mutex::default(),
                snaps: AsyncMutex::default(),
            })),
            invalid @ Loaded::Invalid { .. } => Ok(Err(invalid)),
        }
    }

    /// What is known of an object.
    #[must_use]
    pub fn get(&self, object: ObjectNo) -> ObjectState {
        locked(&self.acked).get(object)
    }

    /// A copy of the map as stored now.
    #[must_use]
    pub fn snapshot(&self) -> ObjectMap {
        locked(&self.acked).clone()
    }

    /// Announces writes to `objects`, ascending. They may be written once this returned.
    ///
    /// # Errors
    /// Those of the store: nothing may be written then.
    ///
    /// # Crash safety
    /// A crash leaves the map saying that objects exist which do not; that is allowed.
    ///
    /// # Cancel safety
    /// As dropping the ticket.
    pub async fn begin_write(&self, objects: Vec<ObjectNo>) -> Result<WriteTicket<'_>> {
        {
            let mut in_flight = locked(&self.in_flight);
            for object in &objects {
                let entry = in_flight.entry(*object).or_default();
                entry.writes += 1;
                entry.disturbed |= entry.removals > 0;
            }
        }
        let ticket = WriteTicket { map: self, objects };
        let stale: Vec<ObjectNo> = {
            let acked = locked(&self.acked);
            ticket.objects.iter().copied().filter(|o| acked.get(*o) != ObjectState::Exists).collect()
        };
        self.set_all(stale, Change::Written).await?;
        Ok(ticket)
    }

    /// Announces the removal of an object.
    ///
    /// # Errors
    /// Those of the store: the object must not be removed then.
    pub async fn begin_remove(&self, object: ObjectNo) -> Result<()> {
        {
            let mut in_flight = locked(&self.in_flight);
            let entry = in_flight.entry(object).or_default();
            entry.removals += 1;
            entry.disturbed |= entry.writes > 0;
        }
        self.set_all(vec![object], Change::Removing).await
    }

    /// Says that a removal announced before has happened.
    ///
    /// # Errors
    /// Those of the store: the map then keeps saying that the object may exist.
    pub async fn end_remove(&self, object: ObjectNo) -> Result<()> {
        let disturbed = {
            let mut in_flight = locked(&self.in_flight);
            let entry = in_flight.entry(object).or_default();
            entry.removals = entry.removals.saturating_sub(1);
            let disturbed = entry.disturbed || entry.removals > 0;
            if entry.removals == 0 {
                entry.disturbed = false;
                if entry.writes == 0 {
                    in_flight.remove(&object);
                }
            }
            disturbed
        };
        let left = if disturbed { ObjectState::Exists } else { ObjectState::Absent };
        self.set_all(vec![object], Change::Removed(left)).await
    }

    /// Changes states, ascending, in the store and then in memory, together with what others ask for.
    async fn set_all(&self, objects: Vec<ObjectNo>, change: Change) -> Result<()> {
        if objects.is_empty() {
            return Ok(());
        }
        let mine = Arc::new(Asked { objects, change, is_done: AtomicBool::new(false) });
        locked(&self.asked).push(Arc::clone(&mine));
        let mut staged = self.staged.lock().await;
        if mine.is_done.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut together = Vec::new();
        {
            let mut asked = locked(&self.asked);
            if asked.iter().any(|a| Arc::ptr_eq(a, &mine)) {
                together = std::mem::take(&mut *asked);
            }
        }
        if together.len() > 1 && self.store_all(&mut staged, &together).await.is_ok() {
            return Ok(());
        }
        // What fails for others, for want of space say, need not fail for this one, and what another took along and did not bring to its
        // end is still to be done.
        self.store_all(&mut staged, &[mine]).await
    }

    /// Makes changes in one op.
    async fn store_all(&self, staged: &mut Staged, asked: &[Arc<Asked>]) -> Result<()> {
        let Staged { map, unsure } = staged;
        let objects = || asked.iter().flat_map(|a| &a.objects).copied();
        if objects().any(|o| map.count() <= o.0) {
            return Err(Error::new(ErrorKind::Internal, "an object lies behind the end of its map"));
        }
        {
            let acked = locked(&self.acked);
            for object in &*unsure {
                map.set(*object, acked.get(*object));
            }
        }
        for asked in asked {
            for object in &asked.objects {
                if let Some(state) = asked.change.of(map.get(*object))
                    && map.set(*object, state)
                {
                    unsure.insert(*object);
                }
            }
        }
        if objects().any(|o| unsure.contains(&o)) {
            let unsure_now: Vec<ObjectNo> = unsure.iter().copied().collect();
            let runs = unsure_now.chunk_by(|a, b| b.0 - a.0 < NEAR);
            let runs = runs.filter_map(|run| Some(run.first()?.0..run.last()?.0 + 1));
            let mut op = write_all(runs.flat_map(|run| map.stored_update(run)).collect());
            // Deleting must work on a full store, so the notes that go with it may use what is kept in reserve.
            op.full_try = objects().all(|o| matches!(map.get(o), ObjectState::Pending | ObjectState::Absent));
            self.store.write(&self.object, op).await?;
            let mut acked = locked(&self.acked);
            for object in std::mem::take(unsure) {
                acked.set(object, map.get(object));
            }
        }
        asked.iter().for_each(|a| a.is_done.store(true, Ordering::Release));
        Ok(())
    }

    /// Puts another map in the place of HEAD's, in the store and in memory.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn replace(&self, map: ObjectMap) -> Result<()> {
        let mut staged = self.staged.lock().await;
        self.store.write(&self.object, WriteOp::new().effect(Effect::WriteFull(map.encode()))).await?;
        locked(&self.acked).clone_from(&map);
        *staged = Staged { map, unsure: BTreeSet::new() };
        Ok(())
    }

    /// Notes in the maps of snapshots (oldest first, each with its map object) that `object` exists there, because a copy-up
    /// is about to put data below them. `later` is what the younger ones are told. A map that cannot be trusted is left.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn mark_in_snaps(
        &self,
        object: ObjectNo,
        snaps: &[(SnapId, ObjectId)],
        later: ObjectState,
    ) -> Result<()> {
        let mut maps = self.snaps.lock().await;
        for (n, (snap, map_object)) in snaps.iter().enumerate() {
            if !maps.contains_key(snap) {
                match load_stored(&*self.store, map_object, object.0 + 1).await? {
                    Loaded::Valid(map) => maps.insert(*snap, (map_object.clone(), map)),
                    Loaded::Invalid { .. } => continue,
                };
            }
            // A change that fails or is given up may have happened: the map is read again then.
            let Some((map_object, mut map)) = maps.remove(snap) else { continue };
            let state = if n == 0 { ObjectState::Exists } else { later };
            if object.0 < map.count() && !map.get(object).may_exist() {
                map.set(object, state);
                let op = write_all(map.stored_update(object.0..object.0 + 1));
                self.store.write(&map_object, op).await?;
            }
            maps.insert(*snap, (map_object, map));
        }
        Ok(())
    }
}

/// Reads and judges a stored map.
///
/// # Errors
/// Those of the store; `Invalid` (27) for too many objects.
pub async fn load_stored(store: &dyn Store, object: &ObjectId, count: u64) -> Result<Loaded> {
    match store.read(object, SnapId::HEAD, ReadOp::data(0, u64::from(u32::MAX))).await {
        Ok(reply) => load(Some(&reply.data.to_vec(0, reply.size)), count),
        Err(e) if e.kind() == ErrorKind::NotFound => load(None, count),
        Err(e) => Err(e.with("object", object)),
    }
}

/// An op of writes.
fn write_all(writes: Vec<(u64, bytes::Bytes)>) -> WriteOp {
    let effects = writes.into_iter().map(|(offset, data)| Effect::Write { offset, data }).collect();
    WriteOp { effects, ..WriteOp::new() }
}

/// The value behind a lock; a thread that panicked while holding one left it whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
