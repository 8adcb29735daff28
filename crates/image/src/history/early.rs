//! Writes to an object of a migration's target that does not have its history yet, where bringing it along means copying: the
//! bytes are kept aside, so that a client waits for its own bytes and not for an object's.
//!
//! - What is kept aside lies in an object of its own, [`early_object`], under the image's snapshot context, in whole blocks.
//!   At each point it shows what was written by then; blocks it lacks show the source.
//! - What is discarded is kept aside as zeros, shared from one small object: nothing of the source is read for it but the blocks that it
//!   cuts. In the object zeros become holes.
//! - It is put over what the source shows in the last steps of the object's history, and removed then.
//! - Before it is made, its number is noted in [`index_object`]: whatever must end with none of them finds them all.
//! - One process writes at a time, as the exclusive lock has it; in it, writing aside and the last step of an object's history
//!   exclude each other. So nothing is written aside that the last step does not see.
//! - A reader looks at the object, then aside, then at the object again if there was nothing: it may have been finished in
//!   between.
//! - Only where the store shares ranges and lists versions; on a cluster, `rbd` would not find what is aside.

use bytes::Bytes;
use ferry_core::{
    Effect, Error, ErrorKind, Guard, Namespace, ObjectId, PoolId, ReadOp, ReadReply, Result, SnapId, Store,
    WriteOp,
};
use futures_util::lock::{Mutex as AsyncMutex, MutexGuard};

use super::{History, Left, Standing, step};
use crate::copyup::can_share;
use crate::features::Features;
use crate::header::Header;
use crate::image::Image;
use crate::io::Io;
use crate::layout::{ObjectExtent, ObjectNo};
use crate::limits::{SPARSE_BLOCK, WRITE_RETRIES_MAX};
use crate::revision::{Ancestor, Revision};
use crate::zeroes::{Run, runs};

/// Objects that share a lock do so by chance; this many make that rare.
const LOCKS: usize = 256;

/// The object that holds what was written aside for a data object.
#[must_use]
pub fn early_object(pool: PoolId, namespace: &Namespace, prefix: &str, object: ObjectNo) -> ObjectId {
    ObjectId::new(pool, namespace, &format!("{prefix}.early.{:016x}", object.0))
}

/// The object whose omap has the numbers of all data objects for which something was written aside: 16 hexadecimal digits each.
#[must_use]
pub fn index_object(pool: PoolId, namespace: &Namespace, prefix: &str) -> ObjectId {
    ObjectId::new(pool, namespace, &format!("{prefix}.early"))
}

/// The object of zeros from which discarded ranges are shared.
fn zeros_object(pool: PoolId, namespace: &Namespace, prefix: &str) -> ObjectId {
    ObjectId::new(pool, namespace, &format!("{prefix}.early.zeros"))
}

/// What [`zeros_object`] holds: a discard of an object of 4 MiB takes 64 references to it.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What is kept aside.
#[derive(Clone, Copy, Debug)]
enum Aside<'a> {
    Data(&'a Bytes),
    Zeros,
}

/// The numbers that an index notes; some of them perhaps no longer. Ascending.
///
/// # Errors
/// `Corrupt` for a key that is no number; those of the store.
pub(crate) async fn noted(store: &dyn Store, index: &ObjectId) -> Result<Vec<ObjectNo>> {
    let mut found = Vec::new();
    let mut after = Bytes::new();
    loop {
        let page = match store.read(index, SnapId::HEAD, ReadOp::omap_page(after, Bytes::new())).await {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(found),
            page => page?.omap,
        };
        for (key, _) in &page.entries {
            let number = std::str::from_utf8(key).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
            let number = number.ok_or_else(|| Error::corrupt("the index of early writes has no number"))?;
            found.push(ObjectNo(number));
        }
        match page.entries.last() {
            Some((last, _)) if page.more => after = last.clone(),
            _ => return Ok(found),
        }
    }
}

/// Whether something may be aside for objects of an image.
///
/// # Errors
/// Those of the store.
pub async fn is_any(image: &Image) -> Result<bool> {
    Ok(!noted(&*image.pool.store, &index_of(image)).await?.is_empty())
}

/// Removes all that is aside for objects of an image that is going away, or has all its history.
///
/// # Errors
/// Those of the store.
///
/// # Crash safety
/// The index goes last, so the same call finds what is left.
pub async fn remove_all(image: &Image) -> Result<()> {
    let (store, index) = (&image.pool.store, index_of(image));
    if !store.capabilities().share {
        return Ok(());
    }
    let (pool, namespace) = (image.data_pool(), &image.pool.namespace);
    let aside = noted(&**store, &index).await?.into_iter();
    let aside = aside.map(|object| early_object(pool, namespace, &image.header.object_prefix, object));
    let zeros = zeros_object(pool, namespace, &image.header.object_prefix);
    for object in aside.chain([zeros, index]) {
        let op = WriteOp::new().guard(Guard::AssertExists).effect(Effect::Remove).full_try();
        match store.write(&object, op).await {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn index_of(image: &Image) -> ObjectId {
    index_object(image.data_pool(), &image.pool.namespace, &image.header.object_prefix)
}

/// What keeps writes aside and last steps apart.
#[derive(Debug)]
pub(super) struct Early {
    locks: Vec<AsyncMutex<()>>,
}

impl Early {
    /// For a target open for writing; `None` where nothing is written aside.
    pub(super) fn of(header: &Header, head: &Revision) -> Option<Self> {
        let shares = match head.parent.as_ref().map(|p| &p.ancestor) {
            None => true,
            Some(Ancestor::Image(source)) => can_share(source, head),
            Some(Ancestor::Foreign(_)) => false,
        };
        // Without the lock, two processes may write at once.
        let may = head.keeps_early() && header.features.contains(Features::EXCLUSIVE_LOCK);
        (may && !shares).then(|| Self { locks: (0..LOCKS).map(|_| AsyncMutex::default()).collect() })
    }

    async fn hold(&self, object: ObjectNo) -> MutexGuard<'_, ()> {
        let place = usize::try_from(object.0 % LOCKS as u64).expect("less than the locks there are");
        self.locks[place].lock().await
    }
}

impl Revision {
    /// Whether bytes may have been written aside here.
    pub(crate) fn keeps_early(&self) -> bool {
        let can = self.store.capabilities();
        self.is_target && can.share && can.list_snaps
    }

    /// Where bytes of an object are kept aside.
    pub(crate) fn early_object(&self, object: ObjectNo) -> ObjectId {
        early_object(self.pool, &self.namespace, &self.prefix, object)
    }

    fn zeros_object(&self) -> ObjectId {
        zeros_object(self.pool, &self.namespace, &self.prefix)
    }

    fn early_index(&self) -> ObjectId {
        index_object(self.pool, &self.namespace, &self.prefix)
    }

    /// What was written aside in a part of an object by this point; `None` where nothing was in all of the object.
    pub(crate) async fn early(&self, extent: ObjectExtent) -> Result<Option<ReadReply>> {
        if !self.keeps_early() {
            return Ok(None);
        }
        let op = ReadOp::data(extent.offset, extent.length);
        match self.store.read(&self.early_object(extent.object), self.snap, op).await {
            Ok(reply) => Ok(Some(reply)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.with("image_object", extent.object.0)),
        }
    }

    /// Whether something was written aside for an object by this point.
    ///
    /// # Errors
    /// Those of the store.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn has_early(&self, object: ObjectNo) -> Result<bool> {
        if !self.keeps_early() {
            return Ok(false);
        }
        match self.store.read(&self.early_object(object), self.snap, ReadOp::stat()).await {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e.with("image_object", object.0)),
        }
    }

    /// What puts what was written aside by this point into its object; `None` where nothing was.
    pub(super) async fn early_effects(&self, object: ObjectNo) -> Result<Option<Vec<Effect>>> {
        let whole = ObjectExtent { object, offset: 0, length: self.length_of(object) };
        let Some(ReadReply { data, .. }) = self.early(whole).await? else { return Ok(None) };
        let put = |start: u64, run: Run| {
            let (offset, length) = (start + run.start as u64, run.length as u64);
            if run.is_zero {
                return Effect::Zero { offset, length };
            }
            let source = self.early_object(object);
            Effect::ShareRange { source, at: self.snap, offset, length, target_offset: offset }
        };
        let effects =
            data.extents.iter().flat_map(|(at, bytes)| runs(*at, bytes, SPARSE_BLOCK).map(|r| put(*at, r)));
        Ok(Some(effects.collect()))
    }
}

impl History {
    /// The lock under which the last step of an object is taken, where bytes may be written aside.
    pub(super) async fn hold_early(&self, object: ObjectNo) -> Option<MutexGuard<'_, ()>> {
        match &self.early {
            Some(early) => Some(early.hold(object).await),
            None => None,
        }
    }
}

impl Io {
    /// Takes a step; with the last one, what was written aside for HEAD goes into the object. Where the step was not made for
    /// HEAD alone, it becomes the last but one.
    pub(super) async fn take_step_over(
        &self,
        history: &History,
        object: ObjectNo,
        mut step: step::Step,
    ) -> Result<Left> {
        if step.right_until.is_some() || !self.revision().keeps_early() {
            return self.take_step(object, step).await;
        }
        let _held = history.hold_early(object).await;
        let early = self.revision().early_effects(object).await?;
        let mut is_last = early.is_some();
        if let Some(early) = early
            && step.effects != [Effect::Remove]
        {
            if step.is_for_head {
                step.effects.extend(early);
            } else {
                step.right_until = step.before_head;
                is_last = false;
            }
        }
        let left = self.take_step(object, step).await?;
        if is_last {
            self.forget_early(object).await?;
        }
        Ok(left)
    }

    /// Writes a part of an object that does not have its history yet aside; whether it did.
    pub(super) async fn write_early(&self, extent: ObjectExtent, data: &Bytes) -> Result<bool> {
        self.keep_aside(extent, Aside::Data(data)).await
    }

    /// Discards a part of an object that does not have its history yet, by zeros aside; whether it did.
    pub(super) async fn discard_early(&self, extent: ObjectExtent) -> Result<bool> {
        self.keep_aside(extent, Aside::Zeros).await
    }

    async fn keep_aside(&self, extent: ObjectExtent, what: Aside<'_>) -> Result<bool> {
        let Some(history) = self.history().filter(|h| h.early.is_some()) else { return Ok(false) };
        let object = extent.object;
        let _held = history.hold_early(object).await;
        let waits = match self.standing(object).await? {
            Standing::Finished(_) => false,
            Standing::Unfinished(_) => true,
            Standing::Missing => {
                step::first_needing(history.points(), object).await?.is_some()
                    || self.revision().has_early(object).await?
            }
        };
        if !waits {
            return Ok(false);
        }
        let effects = match what {
            Aside::Data(data) => vec![self.write_in_blocks(extent, data).await?],
            Aside::Zeros => self.zeros_in_blocks(extent).await?,
        };
        let op = WriteOp { effects, ..WriteOp::new() }.under(self.context().clone());
        let (store, id) = (&self.revision().store, self.revision().early_object(object));
        match store.write(&id, op.clone().guard(Guard::AssertExists)).await {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            done => return done.map(|_| true).map_err(|e| e.with("image_object", object.0)),
        }
        let note = Effect::OmapSet(vec![(key(object), Bytes::new())]);
        store.write(&self.revision().early_index(), WriteOp::new().effect(note)).await?;
        if op.effects.iter().any(|e| matches!(e, Effect::ShareRange { .. })) {
            let zeros = Effect::Write { offset: 0, data: Bytes::from_static(&ZEROS) };
            let make = WriteOp::new().guard(Guard::CreateExclusive).effect(zeros);
            match store.write(&self.revision().zeros_object(), make).await {
                Err(e) if e.kind() != ErrorKind::Exists => return Err(e),
                _ => {}
            }
        }
        store.write(&id, op).await.map(|_| true).map_err(|e| e.with("image_object", object.0))
    }

    /// The effects that make a part of an object aside zeros: shared, but for the blocks that it cuts.
    async fn zeros_in_blocks(&self, extent: ObjectExtent) -> Result<Vec<Effect>> {
        let (offset, end) = (extent.offset, extent.offset + extent.length);
        let first = offset.next_multiple_of(SPARSE_BLOCK);
        let last = end / SPARSE_BLOCK * SPARSE_BLOCK;
        let cut = if first < last { vec![(offset, first), (last, end)] } else { vec![(offset, end)] };
        let mut effects = Vec::new();
        for (from, until) in cut.into_iter().filter(|(from, until)| from < until) {
            let part = ObjectExtent { offset: from, length: until - from, ..extent };
            // Two blocks at most.
            let zeros =
                Bytes::from_static(&ZEROS).slice(..usize::try_from(part.length).unwrap_or(ZEROS.len()));
            effects.push(self.write_in_blocks(part, &zeros).await?);
        }
        let mut at = first;
        while at < last {
            let length = (last - at).min(ZEROS.len() as u64);
            let source = self.revision().zeros_object();
            effects.push(Effect::ShareRange {
                source,
                at: SnapId::HEAD,
                offset: 0,
                length,
                target_offset: at,
            });
            at += length;
        }
        Ok(effects)
    }

    /// The write of whole blocks that a write is a part of.
    async fn write_in_blocks(&self, extent: ObjectExtent, data: &Bytes) -> Result<Effect> {
        let (offset, data) = self.in_blocks(extent, data).await?;
        Ok(Effect::Write { offset, data })
    }

    /// A write made longer so that it begins and ends with a block, with what HEAD shows around it.
    async fn in_blocks(&self, extent: ObjectExtent, data: &Bytes) -> Result<(u64, Bytes)> {
        let (offset, end) = (extent.offset, extent.offset + extent.length);
        let until = self.revision().length_of(extent.object).max(end);
        let first = offset / SPARSE_BLOCK * SPARSE_BLOCK;
        let last = end.next_multiple_of(SPARSE_BLOCK).min(until);
        if (first, last) == (offset, end) {
            return Ok((offset, data.clone()));
        }
        let mut whole = self.shown(ObjectExtent { offset: first, length: offset - first, ..extent }).await?;
        whole.extend_from_slice(data);
        whole.extend(self.shown(ObjectExtent { offset: end, length: last - end, ..extent }).await?);
        Ok((first, whole.into()))
    }

    /// The bytes of a part of an object as HEAD shows them.
    async fn shown(&self, extent: ObjectExtent) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for part in self.revision().layout.image_extents(extent) {
            bytes.extend_from_slice(&self.revision().read_bytes(part.offset, part.length).await?);
        }
        Ok(bytes)
    }

    /// Removes what was written aside for an object that is finished; the lock of the object is held.
    pub(super) async fn forget_early(&self, object: ObjectNo) -> Result<()> {
        let (store, id) = (&self.revision().store, self.revision().early_object(object));
        let removal = WriteOp::new().guard(Guard::AssertExists).effect(Effect::Remove).full_try();
        match store.write(&id, removal).await {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e.with("image_object", object.0)),
            _ => self.forget_note(object).await,
        }
    }

    /// Takes an object's number out of the index; the lock of the object is held, and nothing is aside.
    async fn forget_note(&self, object: ObjectNo) -> Result<()> {
        let note = Effect::OmapRemove(vec![key(object)]);
        let op = WriteOp::new().guard(Guard::AssertExists).effect(note).full_try();
        match self.revision().store.write(&self.revision().early_index(), op).await {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Gives all objects their history for which something was written aside.
    ///
    /// # Errors
    /// As [`Io::migrate_object`].
    ///
    /// # Crash safety
    /// As [`Io::migrate_object`].
    pub async fn settle_early(&self) -> Result<()> {
        let Some(history) = self.history().filter(|_| self.revision().keeps_early()) else { return Ok(()) };
        for object in noted(&*self.revision().store, &self.revision().early_index()).await? {
            let mut rounds = 0;
            loop {
                let held = history.hold_early(object).await;
                if !self.revision().has_early(object).await? {
                    self.forget_note(object).await?;
                    break;
                }
                drop(held);
                self.migrate_object(object).await?;
                rounds += 1;
                if rounds > WRITE_RETRIES_MAX {
                    let text = "an object is written again and again while it is finished";
                    return Err(Error::busy(text).with("image_object", object.0));
                }
            }
        }
        Ok(())
    }
}

/// An object's key in the index.
fn key(object: ObjectNo) -> Bytes {
    format!("{:016x}", object.0).into()
}
