//! The changing half: write, write zeroes, discard.

use bytes::Bytes;
use ferry_core::{Effect, Error, ErrorKind, Guard, Result, WriteOp};
use futures_util::future;

use super::Io;
use crate::copyup::CopyUp;
use crate::layout::{ObjectExtent, ObjectNo};
use crate::limits::WRITE_RETRIES_MAX;
use crate::live_map::LiveMap;
use crate::revision::is_missing;

impl Io {
    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// `Invalid` (22) outside the image; `ReadOnly` (30); those of the store. After an error the range holds old bytes, new
    /// bytes or some of both, object by object.
    ///
    /// # Crash safety
    /// Durable after the next flush; before, each object holds all of its part or nothing.
    ///
    /// # Cancel safety
    /// A dropped write may still happen, in whole or in part.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        let length = data.len() as u64;
        self.check_writable()?;
        self.revision.check_range(offset, length)?;
        let mut extents = self.revision.layout.extents(offset, length);
        let (Some(first), second) = (extents.next(), extents.next()) else { return Ok(()) };
        let objects = extents.by_ref().map(|e| e.object);
        let mut touched = vec![first.object];
        touched.extend(second.map(|e| e.object));
        touched.extend(objects);
        if second.is_none() {
            let data = self.part_of(first, offset, &data);
            if let Some(map) = self.map().filter(|map| self.is_surely_missing(map, first)) {
                return self.write_missing(map, first, data).await;
            }
            return self.announced(touched, self.write_object(first, data)).await;
        }
        let writing = self.for_each_object(offset, length, |extent| {
            self.write_object(extent, self.part_of(extent, offset, &data))
        });
        self.announced(touched, writing).await
    }

    /// Does `work`, which changes `objects` (ascending), after the object map was told.
    ///
    /// # Errors
    /// Those of the store, nothing having been done; those of `work`.
    pub(crate) async fn announced<T>(
        &self,
        objects: Vec<ObjectNo>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let Some(map) = self.map() else { return work.await };
        let ticket = map.begin_write(objects).await?;
        // A failure leaves it open whether the work happens later.
        let done = work.await?;
        ticket.finish();
        Ok(done)
    }

    /// Makes a range read as zeros, giving its space back.
    ///
    /// # Errors
    /// As [`Self::write`].
    ///
    /// # Crash safety
    /// As [`Self::write`].
    ///
    /// # Cancel safety
    /// As [`Self::write`].
    pub async fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        self.discard(offset, length).await
    }

    /// Gives the space of a range back; it reads as zeros from now on, at every byte of the range.
    ///
    /// # Errors
    /// As [`Self::write`].
    ///
    /// # Crash safety
    /// As [`Self::write`].
    ///
    /// # Cancel safety
    /// As [`Self::write`].
    pub async fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.check_writable()?;
        self.revision.check_range(offset, length)?;
        self.for_each_object(offset, length, |extent| self.discard_part(extent)).await
    }

    /// The bytes of a request that go to one object.
    fn part_of(&self, extent: ObjectExtent, offset: u64, data: &Bytes) -> Bytes {
        let mut parts = self.revision.layout.image_extents(extent).map(|part| {
            let from = usize::try_from(part.offset - offset).expect("a part of a buffer fits memory");
            let length = usize::try_from(part.length).expect("a part of a buffer fits memory");
            data.slice(from..from + length)
        });
        let first = parts.next().unwrap_or_default();
        let rest: Vec<Bytes> = parts.collect();
        if rest.is_empty() {
            return first;
        }
        std::iter::once(first).chain(rest).collect::<Vec<_>>().concat().into()
    }

    /// Whether a part of an object can only be written with the parent's bytes around it, as the object map does not know of it.
    fn is_surely_missing(&self, map: &LiveMap, extent: ObjectExtent) -> bool {
        let overlap = self.revision.overlap_in(extent.object);
        let covers_parent = extent.offset == 0 && extent.length >= overlap;
        self.history.is_none() && overlap > 0 && !covers_parent && !map.get(extent.object).may_exist()
    }

    /// Writes a part of an object that is not there: the parent's bytes are read while the object map is told.
    async fn write_missing(&self, map: &LiveMap, extent: ObjectExtent, data: Bytes) -> Result<()> {
        let object = extent.object;
        let effects = vec![Effect::Write { offset: extent.offset, data }];
        let (telling, reading) = (map.begin_write(vec![object]), self.parent_effects(object));
        let (ticket, from_parent) = future::try_join(telling, reading).await?;
        if self.make_from(object, from_parent, effects.clone()).await? == CopyUp::Exists {
            self.change_or_copy_up(object, effects).await?;
        }
        ticket.finish();
        Ok(())
    }

    /// Writes a part of one object; the object map knows of it already.
    async fn write_object(&self, extent: ObjectExtent, data: Bytes) -> Result<()> {
        if self.history.is_some() {
            return self.change_target(extent.object, &[Effect::Write { offset: extent.offset, data }]).await;
        }
        let overlap = self.revision.overlap_in(extent.object);
        let covers_parent = extent.offset == 0 && extent.length >= overlap;
        let effect = Effect::Write { offset: extent.offset, data };
        if overlap == 0 || (covers_parent && !self.must_go_deep(extent.object)) {
            return self.apply(extent.object, WriteOp::new().effect(effect)).await;
        }
        self.change_or_copy_up(extent.object, vec![effect]).await
    }

    /// Applies `effects` to an object, made by a copy-up if it is not there.
    pub(crate) async fn change_or_copy_up(&self, object: ObjectNo, effects: Vec<Effect>) -> Result<()> {
        for _ in 0..WRITE_RETRIES_MAX {
            let op = WriteOp { effects: effects.clone(), ..WriteOp::new() }.guard(Guard::AssertExists);
            match self.apply(object, op).await {
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                done => return done,
            }
            if self.copy_up(object, effects.clone()).await? == CopyUp::Done {
                return Ok(());
            }
        }
        Err(Error::busy("an object comes and goes while it is written").with("image_object", object.0))
    }

    /// Discards a part of one object.
    pub(crate) async fn discard_part(&self, extent: ObjectExtent) -> Result<()> {
        let object = extent.object;
        let overlap = self.revision.overlap_in(object);
        let to_end = extent.offset + extent.length >= self.revision.length_of(object);
        if self.history.is_some() {
            let effect = if to_end {
                Effect::Truncate(extent.offset)
            } else {
                Effect::Zero { offset: extent.offset, length: extent.length }
            };
            return self.announced(vec![object], self.cut_target(extent, effect)).await;
        }
        if overlap <= extent.offset && self.map().is_some_and(|map| !map.get(object).may_exist()) {
            return Ok(());
        }
        if overlap == 0 && extent.offset == 0 && to_end {
            return self.remove_object(object).await;
        }
        let effect = if to_end {
            Effect::Truncate(extent.offset)
        } else {
            Effect::Zero { offset: extent.offset, length: extent.length }
        };
        let hides_parent = extent.offset == 0 && extent.length >= overlap;
        let discarding = async {
            if overlap <= extent.offset {
                // A missing object reads as zeros here already.
                let op = WriteOp::new().guard(Guard::AssertExists).effect(effect);
                return match self.apply(object, op).await {
                    Err(e) if is_missing(&e) => Ok(()),
                    done => done,
                };
            }
            if hides_parent && !self.must_go_deep(object) {
                // Leaves an object, if an empty one: it hides the parent.
                return self.apply(object, WriteOp::new().effect(Effect::Create).effect(effect)).await;
            }
            self.change_or_copy_up(object, vec![effect]).await
        };
        self.announced(vec![object], discarding).await
    }

    /// Removes an object that hides nothing.
    ///
    /// # Errors
    /// Those of the store; that it does not exist is none.
    ///
    /// # Crash safety
    /// A crash may leave the object map saying that the object exists.
    pub(crate) async fn remove_object(&self, object: ObjectNo) -> Result<()> {
        if let Some(map) = self.map() {
            map.begin_remove(object).await?;
        }
        match self.apply(object, WriteOp::new().effect(Effect::Remove)).await {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
        match self.map() {
            Some(map) => map.end_remove(object).await,
            None => Ok(()),
        }
    }

    /// Performs an op on a data object under the snapshot context.
    pub(crate) async fn apply(&self, object: ObjectNo, op: WriteOp) -> Result<()> {
        let id = self.revision.object_id(object);
        let mut op = op.under(self.context.clone());
        // What only gives space back must work on a full store.
        let gives_back = |e: &Effect| {
            matches!(e, Effect::Create | Effect::Zero { .. } | Effect::Truncate(_) | Effect::Remove)
        };
        op.full_try |= op.effects.iter().all(gives_back);
        self.revision.store.write(&id, op).await.map(|_| ()).map_err(|e| e.with("image_object", object.0))
    }
}
