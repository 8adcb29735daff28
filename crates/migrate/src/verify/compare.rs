//! Compares one point of the target with the same of the source.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use ferry_core::{Error, ErrorKind, ReadOp, Result, SnapId, SparseData, Stamp, Store};
use ferry_image::digest::{Digest, has_whole_blocks};
use ferry_image::features::{Features, Flags};
use ferry_image::image::Image;
use ferry_image::io::layout_of;
use ferry_image::layout::{ImageExtent, ObjectExtent, ObjectNo};
use ferry_image::limits::{OBJECTS_IN_FLIGHT, SPARSE_BLOCK};
use ferry_image::live_map::load_stored;
use ferry_image::object_map::{Loaded, ObjectMap};
use ferry_image::revision::{Ancestor, Revision};
use ferry_image::zeroes::is_zero;
use futures_channel::oneshot;
use futures_util::stream::{self, StreamExt};

use super::{PointReport, STEP, Threads, steps_of};
use crate::digests::Row;

/// What is compared by itself.
#[derive(Clone, Copy, Debug)]
enum Unit {
    /// An object of the target.
    Object(ObjectNo),
    /// A step of the image, by its number.
    Step(u64),
}

/// Compares one point, in these objects of the target or in all.
pub(crate) async fn compare(
    snap: Option<String>,
    (source, target, kept, traces): (Ancestor, Revision, Row, Traces),
    objects: Option<&[ObjectNo]>,
    threads: Option<&dyn Threads>,
) -> Result<PointReport> {
    let size = source.size();
    let mut report = PointReport {
        snap,
        size,
        data_bytes: 0,
        digest_bytes: 0,
        source_digest: Digest::default(),
        target_digest: Digest::default(),
        first_difference: (target.size != size).then(|| target.size.min(size)),
        overwritten: 0,
    };
    let may_be_overwritten = report.snap.is_none() && others_may_write(&*target.store);
    let pair = Arc::new(Pair { source, target, kept, may_be_overwritten, traces });
    let work = stream::iter(pair.units(objects)).map(|unit| {
        let pair = Arc::clone(&pair);
        beside(threads, async move { pair.compare(unit).await })
    });
    let mut work = std::pin::pin!(work.buffer_unordered(OBJECTS_IN_FLIGHT));
    while let Some(part) = work.next().await {
        report.add(&part?);
    }
    Ok(report)
}

/// What tells what other programs, which know nothing of a point of prepare, did to a target since.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    /// What is on objects that were copied and not written since, where that was agreed on at prepare.
    stamp: Option<Stamp>,
    /// The object map of HEAD, where it is valid.
    map: Option<ObjectMap>,
}

impl Traces {
    /// Of a target; nothing where nobody else writes.
    ///
    /// # Errors
    /// `Corrupt`; those of the store.
    pub(crate) async fn of(target: &Image) -> Result<Self> {
        let (store, header) = (&*target.pool.store, &target.header);
        if !others_may_write(store) {
            return Ok(Self::default());
        }
        let has_map = header.features.contains(Features::OBJECT_MAP)
            && !header.flags.contains(Flags::OBJECT_MAP_INVALID);
        let map = if has_map {
            let count = layout_of(header)?.object_count(header.size);
            match load_stored(store, &target.object_map_object(SnapId::HEAD), count).await? {
                Loaded::Valid(map) => Some(map),
                Loaded::Invalid { .. } => None,
            }
        } else {
            None
        };
        Ok(Self { stamp: header.copy_stamp()?, map })
    }
}

/// Whether programs that know nothing of a point of prepare may write images of this store.
pub(crate) fn others_may_write(store: &dyn Store) -> bool {
    // Stores that tell the versions of objects are ferry's own.
    !store.capabilities().list_snaps
}

/// Runs work on the threads there are, or here.
async fn beside<T: Send + 'static>(
    threads: Option<&dyn Threads>,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let Some(threads) = threads else { return work.await };
    let (tell, told) = oneshot::channel();
    threads.start(Box::pin(async move {
        // Nobody waits any more where the verification was given up.
        drop(tell.send(work.await));
    }));
    let lost = |_| Err(Error::new(ErrorKind::Unavailable, "a comparison was dropped before its end"));
    told.await.unwrap_or_else(lost)
}

/// What came of comparing a part of a point.
#[derive(Debug, Default)]
struct Part {
    data_bytes: u64,
    digest_bytes: u64,
    source: Digest,
    target: Digest,
    first_difference: Option<u64>,
    overwritten: u64,
}

impl PointReport {
    fn add(&mut self, part: &Part) {
        self.data_bytes += part.data_bytes;
        self.digest_bytes += part.digest_bytes;
        self.source_digest += part.source;
        self.target_digest += part.target;
        self.overwritten += part.overwritten;
        let both = self.first_difference.into_iter().chain(part.first_difference);
        self.first_difference = both.min();
    }
}

impl Part {
    /// Takes a range into account.
    fn add(&mut self, offset: u64, source: &[u8], target: &[u8]) {
        let mut at = offset;
        for (a, b) in source.chunks(4096).zip(target.chunks(4096)) {
            let of_source = Digest::of_block(at, a);
            self.data_bytes += if is_zero(a) { 0 } else { SPARSE_BLOCK };
            self.source += of_source;
            // What is equal is summed up once.
            self.target += if a == b { of_source } else { Digest::of_block(at, b) };
            if a != b && self.first_difference.is_none_or(|d| d > at) {
                let inside = a.iter().zip(b).position(|(x, y)| x != y).unwrap_or(0);
                self.first_difference = Some(at + inside as u64);
            }
            at += a.len() as u64;
        }
    }
}

/// A point of both ends.
#[derive(Debug)]
struct Pair {
    source: Ancestor,
    target: Revision,
    /// What was read of the source when it was copied.
    kept: Row,
    /// Whether this is the point of prepare, and other programs may have written over it.
    may_be_overwritten: bool,
    /// How that can be told.
    traces: Traces,
}

impl Pair {
    /// What there is to compare. Objects, or steps of the image where a block of it may lie in several objects.
    fn units(&self, objects: Option<&[ObjectNo]>) -> Vec<Unit> {
        let (layout, size) = (self.target.layout, self.source.size());
        let count = layout.object_count(size);
        let all = (0..count).map(ObjectNo);
        let objects: Vec<ObjectNo> = match objects {
            Some(some) => some.iter().copied().filter(|o| o.0 < count).collect(),
            None => all.collect(),
        };
        if has_whole_blocks(layout) {
            return objects.into_iter().map(Unit::Object).collect();
        }
        steps_of(layout, &objects).into_iter().filter(|s| s * STEP < size).map(Unit::Step).collect()
    }

    async fn compare(&self, unit: Unit) -> Result<Part> {
        let mut part = Part::default();
        let object = match unit {
            Unit::Step(step) => {
                let (offset, size) = (step * STEP, self.source.size());
                let range = ImageExtent { offset, length: STEP.min(size - offset) };
                let there = range.length.min(self.target.size.saturating_sub(offset));
                let b =
                    if there == 0 { SparseData::default() } else { self.target.read(offset, there).await? };
                self.with_source(&[range], &b, &mut part).await?;
                return Ok(part);
            }
            Unit::Object(object) => object,
        };
        if let Some(kept) = self.kept.get(object) {
            let (mut sum, mut blocks) = (Digest::default(), 0);
            for extent in self.extents(object) {
                let (digest, count) = Digest::of(&self.read_target(extent).await?);
                sum += digest;
                blocks += count;
            }
            if sum == kept {
                let bytes = blocks * SPARSE_BLOCK;
                return Ok(Part {
                    data_bytes: bytes,
                    digest_bytes: bytes,
                    source: kept,
                    target: sum,
                    ..Part::default()
                });
            }
        }
        for extent in self.extents(object) {
            let b = self.read_target(extent).await?;
            let ranges: Vec<ImageExtent> = self.target.layout.image_extents(extent).collect();
            self.with_source(&ranges, &b, &mut part).await?;
        }
        if part.first_difference.is_some() && self.is_overwritten(object).await? {
            let bytes = self.target.layout.bytes_before(object, self.source.size());
            return Ok(Part { overwritten: bytes, ..Part::default() });
        }
        Ok(part)
    }

    /// Whether another program has written to an object that differs at the point of prepare.
    ///
    /// What is copied is copied as of that point or an older one, and what ferry writes later preserves it. So an object that is
    /// missing there and is there at HEAD was written over by a program that does not know the point. Where the image has no
    /// snapshot, such a program preserves nothing, and what it wrote shows there: but without the stamp of what was copied.
    async fn is_overwritten(&self, object: ObjectNo) -> Result<bool> {
        let target = &self.target;
        if !self.may_be_overwritten {
            return Ok(false);
        }
        if let Some(there) = target.look(object, ReadOp::stat()).await? {
            return Ok(self.traces.stamp.is_some() && there.stamp != self.traces.stamp);
        }
        match target.store.read(&target.object_id(object), SnapId::HEAD, ReadOp::stat()).await {
            // It was copied, and is not called lost: who removed it kept the object map right.
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let is_absent = self.traces.map.as_ref().is_some_and(|map| !map.get(object).may_exist());
                Ok(is_absent && self.kept.was_copied(object))
            }
            found => found.map(|_| true),
        }
    }

    /// An object as far as the source goes, in pieces.
    fn extents(&self, object: ObjectNo) -> impl Iterator<Item = ObjectExtent> + Send + use<> {
        let end = self.target.layout.bytes_before(object, self.source.size());
        (0..end.div_ceil(STEP)).map(move |n| {
            let offset = n * STEP;
            ObjectExtent { object, offset, length: STEP.min(end - offset) }
        })
    }

    /// What the target has in a part of an object.
    async fn read_target(&self, extent: ObjectExtent) -> Result<SparseData> {
        let end = self.target.length_of(extent.object).min(extent.offset + extent.length);
        if end <= extent.offset {
            return Ok(SparseData::default());
        }
        self.target.read_extent(ObjectExtent { length: end - extent.offset, ..extent }).await
    }

    /// Compares ranges of which `target` holds what the target has with the source.
    async fn with_source(&self, ranges: &[ImageExtent], target: &SparseData, part: &mut Part) -> Result<()> {
        for range in ranges {
            let source = self.source.read(range.offset, range.length).await?;
            let is_in = |(at, b): &(u64, Bytes)| *at < range.end() && at + b.len() as u64 > range.offset;
            if source.extents.is_empty() && !target.extents.iter().any(is_in) {
                continue;
            }
            let (a, b) =
                (source.to_vec(range.offset, range.length), target.to_vec(range.offset, range.length));
            part.add(range.offset, &a, &b);
        }
        Ok(())
    }
}
