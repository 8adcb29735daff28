//! One image at one point in time, and the ancestors it reads through to.
//!
//! Invariants
//! - A data object that exists at that point holds all of its range: holes in it are zeros, whatever the parent has.
//! - A data object that does not exist reads as the parent's bytes below the overlap and as zeros behind it.
//! - A revision never changes: after a change of the header another one takes its place. Revisions at snapshots may be kept
//!   for as long as something links to the snapshot.

use std::sync::Arc;

use bytes::Bytes;
use ferry_core::{
    Error, ErrorKind, Namespace, ObjectId, PoolId, ReadOp, ReadReply, Reply, Result, SnapId, SparseData,
    Store,
};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt, TryStreamExt};

mod ancestor;
mod held;
mod owners;

pub use ancestor::{Ancestor, ForeignPoint, source_point};
pub use held::Detail;
use owners::Owner;
pub use owners::Owners;

use crate::history;
use crate::layout::{ImageExtent, Layout, ObjectExtent, ObjectNo};
use crate::limits::OBJECTS_IN_FLIGHT;

/// Digits of the names of objects.
const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];

/// An image at HEAD or at a snapshot, as far as reading its data goes.
#[derive(Clone, Debug)]
pub struct Revision {
    /// Where the data objects are.
    pub store: Arc<dyn Store>,
    /// The pool of the data objects.
    pub pool: PoolId,
    /// Their namespace.
    pub namespace: Namespace,
    /// Their names up to the dot.
    pub prefix: Arc<str>,
    /// The least digits of a number behind it.
    pub digits: usize,
    /// How the image is cut into them.
    pub layout: Layout,
    /// The snapshot, or HEAD.
    pub snap: SnapId,
    /// Size at that point. Bytes.
    pub size: u64,
    /// What shows through where an object is missing.
    pub parent: Option<Parent>,
    /// Which ancestors hold the objects that are missing, as far as it was looked up.
    pub owners: Owners,
    /// Whether a migration still fills the image: an object may be there that is not finished (see [`crate::history`]).
    pub is_target: bool,
}

/// The ancestor of a revision.
#[derive(Clone, Debug)]
pub struct Parent {
    /// The parent at the snapshot cloned, or the source of a migration.
    pub ancestor: Ancestor,
    /// How much of it shows. Bytes from the start of the image, at most the parent's size.
    pub overlap: u64,
}

/// A part of a range of an image that something holds, and who does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it is held.
    pub held: Held,
    /// Where it shows. Bytes from the start of the image.
    pub image_offset: u64,
    /// Bytes.
    pub length: u64,
}

/// Who holds a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// An object of the image or of an ancestor; it exists.
    Object {
        /// Which.
        object: ObjectId,
        /// The snapshot it is read at.
        at: SnapId,
        /// Bytes from the start of the object.
        offset: u64,
        /// Size of the object. Bytes; what is behind it reads as zeros.
        size: u64,
    },
    /// A foreign source.
    Foreign,
}

/// A read that one object answers.
#[derive(Debug)]
pub(crate) struct SingleRead {
    /// The answer; to be [finished](SingleExtent::finish).
    pub(crate) reply: Reply<ReadReply>,
    /// What was asked for.
    pub(crate) extent: SingleExtent,
}

/// What a [`SingleRead`] asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SingleExtent(ObjectExtent);

impl SingleExtent {
    /// The bytes of the range.
    ///
    /// # Errors
    /// That of the store, but for an object that is not there.
    pub(crate) fn finish(self, reply: Result<ReadReply>) -> Result<Bytes> {
        let ObjectExtent { object, offset, length } = self.0;
        let mut data = match reply {
            Ok(reply) => reply.data,
            Err(e) if is_missing(&e) => SparseData::default(),
            Err(e) => return Err(e.with("image_object", object.0)),
        };
        match &mut data.extents[..] {
            [(at, bytes)] if *at == offset && bytes.len() as u64 == length => Ok(std::mem::take(bytes)),
            _ => Ok(Bytes::from(data.to_vec(offset, length))),
        }
    }
}

/// Whether an error of the store says that an object is not there. That its pool is not there says nothing about the object:
/// as a hole, all of it would read as zeros.
pub(crate) fn is_missing(error: &Error) -> bool {
    error.kind() == ErrorKind::NotFound && error.fact("pool").is_none()
}

impl Revision {
    /// The data object `object`.
    #[must_use]
    pub fn object_id(&self, object: ObjectNo) -> ObjectId {
        let mut name = String::with_capacity(self.prefix.len() + 17);
        name.push_str(&self.prefix);
        name.push('.');
        // The machinery of `format!` costs more than the look-up that follows.
        let bytes = object.0.to_be_bytes();
        let left_out = 8 - self.digits / 2;
        let from = if bytes[..left_out].iter().all(|b| *b == 0) { left_out } else { 0 };
        for byte in &bytes[from..] {
            name.push(HEX[usize::from(byte >> 4)]);
            name.push(HEX[usize::from(byte & 0xf)]);
        }
        ObjectId::new(self.pool, &self.namespace, &name)
    }

    /// How many objects there may be.
    #[must_use]
    pub fn object_count(&self) -> u64 {
        self.layout.object_count(self.size)
    }

    /// Bytes of the parent that show through where there is no object; 0 without a parent.
    #[must_use]
    pub fn overlap(&self) -> u64 {
        self.parent.as_ref().map_or(0, |p| p.overlap.min(p.ancestor.size()).min(self.size))
    }

    /// How many bytes from the start of `object` show the parent where the object is missing.
    #[must_use]
    pub fn overlap_in(&self, object: ObjectNo) -> u64 {
        match self.overlap() {
            0 => 0,
            overlap => self.layout.bytes_before(object, overlap),
        }
    }

    /// How many bytes from the start of `object` belong to the image.
    #[must_use]
    pub fn length_of(&self, object: ObjectNo) -> u64 {
        self.layout.bytes_before(object, self.size)
    }

    /// Refuses a range that is not inside the image.
    ///
    /// # Errors
    /// `Invalid` (22).
    pub fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(Error::invalid("a range is not inside the image")
                .with("offset", offset)
                .with("length", length)
                .with("size", self.size));
        }
        Ok(())
    }

    /// The extents of a range that hold bytes; gaps read as zeros.
    ///
    /// # Errors
    /// `Invalid` (22) outside the image; those of the store.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn read(&self, offset: u64, length: u64) -> Result<SparseData> {
        self.check_range(offset, length)?;
        let mut extents = self.layout.extents(offset, length);
        let (first, second) = (extents.next(), extents.next());
        let mut found = match (first, second) {
            (None, _) => Vec::new(),
            (Some(only), None) => self.read_object(only).await?,
            (Some(first), Some(second)) => {
                let all = [first, second].into_iter().chain(extents);
                let reads = stream::iter(all.map(|extent| self.read_object(extent)));
                let parts: Vec<_> = reads.buffer_unordered(OBJECTS_IN_FLIGHT).try_collect().await?;
                parts.into_iter().flatten().collect()
            }
        };
        found.sort_unstable_by_key(|(at, _)| *at);
        Ok(SparseData { extents: found })
    }

    /// As [`Self::read`], of a part of one object, or of what shows through in its place.
    ///
    /// # Errors
    /// Those of the store.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn read_extent(&self, extent: ObjectExtent) -> Result<SparseData> {
        let mut extents = self.read_object(extent).await?;
        extents.sort_unstable_by_key(|(at, _)| *at);
        Ok(SparseData { extents })
    }

    /// Exactly the bytes of a range.
    ///
    /// # Errors
    /// As [`Self::read`].
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn read_bytes(&self, offset: u64, length: u64) -> Result<Bytes> {
        let mut data = self.read(offset, length).await?;
        match &mut data.extents[..] {
            [(at, bytes)] if *at == offset && bytes.len() as u64 == length => Ok(std::mem::take(bytes)),
            _ => Ok(Bytes::from(data.to_vec(offset, length))),
        }
    }

    /// Says that a range will be read soon; see [`Store::will_read`]. Of what shows through from a parent nothing is said.
    ///
    /// [`Store::will_read`]: ferry_core::Store::will_read
    pub(crate) fn will_read(&self, offset: u64, length: u64) {
        for extent in self.layout.extents(offset, length) {
            self.store.will_read(&self.object_id(extent.object), self.snap, extent.offset, extent.length);
        }
    }

    /// Asks for a range that lies in one object, which answers for it alone; `None` for any other.
    pub(crate) fn read_single(&self, offset: u64, length: u64) -> Option<SingleRead> {
        let is_simple = self.parent.is_none() && !self.is_target && !self.layout.is_striped();
        let end = offset.checked_add(length).filter(|end| is_simple && *end <= self.size && length > 0)?;
        let size = self.layout.object_size();
        let object = ObjectNo(offset / size);
        if (end - 1) / size != object.0 {
            return None;
        }
        let extent = ObjectExtent { object, offset: offset % size, length };
        let op = self.data_op(extent);
        let reply = self.store.read(&self.object_id(object), self.snap, op);
        Some(SingleRead { reply, extent: SingleExtent(extent) })
    }

    /// How a part of an object is asked for. Whether an object of a target is finished is told by more than its data.
    fn data_op(&self, extent: ObjectExtent) -> ReadOp {
        ReadOp { is_data_alone: !self.is_target, ..ReadOp::data(extent.offset, extent.length) }
    }

    /// Reads a part of one object, or of what shows through in its place.
    async fn read_object(&self, extent: ObjectExtent) -> Result<Vec<(u64, Bytes)>> {
        let generation = self.parent.as_ref().and_then(|_| self.store.generation());
        if let Some(generation) = generation
            && let Some(owner) = self.owners.get(generation, extent.object.0)
            && let Some(found) = self.read_at(&owner, extent).await?
        {
            return Ok(found);
        }
        let op = self.data_op(extent);
        if let Some(reply) = self.look(extent.object, op.clone()).await? {
            return Ok(self.in_image(extent, reply.data));
        }
        if self.keeps_early() {
            if let Some(early) = self.early(extent).await? {
                return Box::pin(self.read_under(extent, early.data)).await;
            }
            // It may have been finished in between.
            if let Some(reply) = self.look(extent.object, op).await? {
                return Ok(self.in_image(extent, reply.data));
            }
        }
        if let Some(generation) = generation
            && let Some(owner) = self.find_owner(extent.object).await?
        {
            self.owners.put(generation, extent.object.0, owner);
        }
        self.read_parent(extent).await
    }

    /// Reads an object of this image; `None` where it does not exist here, or is not finished.
    ///
    /// # Errors
    /// Those of the store.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn look(&self, object: ObjectNo, mut op: ReadOp) -> Result<Option<ReadReply>> {
        op.xattrs |= self.is_target;
        match self.store.read(&self.object_id(object), self.snap, op).await {
            Ok(reply) if self.is_target && history::hides(&reply, self.snap)? => Ok(None),
            Ok(reply) => Ok(Some(reply)),
            Err(e) if is_missing(&e) => Ok(None),
            Err(e) => Err(e.with("image_object", object.0)),
        }
    }

    /// Whether the image and all its ancestors lie in one store.
    #[must_use]
    pub fn is_in_one_store(&self) -> bool {
        let mut child = self;
        while let Some(parent) = &child.parent {
            let Ancestor::Image(above) = &parent.ancestor else { return false };
            if above.store.identity() != self.store.identity() {
                return false;
            }
            child = above;
        }
        true
    }

    /// Reads a part of an object from who was found to hold it; `None` where it is no longer there.
    async fn read_at(&self, owner: &Owner, extent: ObjectExtent) -> Result<Option<Vec<(u64, Bytes)>>> {
        let Owner::Ancestor(ancestor) = owner else { return Ok(Some(Vec::new())) };
        let op = ancestor.data_op(extent);
        let reply = ancestor.look(extent.object, op).await?;
        Ok(reply.map(|reply| self.in_image(extent, reply.data)))
    }

    /// Looks up the ancestors for who holds an object this image lacks. `None` where one ancestor does not answer for the whole
    /// of it: other layouts, an overlap that ends inside, a foreign source.
    async fn find_owner(&self, object: ObjectNo) -> Result<Option<Owner>> {
        let mut child = self;
        while let Some(parent) = &child.parent {
            let Ancestor::Image(ancestor) = &parent.ancestor else { return Ok(None) };
            let whole = child.overlap_in(object) >= self.length_of(object);
            if !whole || ancestor.layout != self.layout || self.layout.is_striped() {
                return Ok(None);
            }
            if ancestor.look(object, ReadOp::stat()).await?.is_some() {
                return Ok(Some(Owner::Ancestor(Arc::clone(ancestor))));
            }
            if ancestor.has_early(object).await? {
                return Ok(None);
            }
            child = ancestor;
        }
        Ok(Some(Owner::Nobody))
    }

    /// Reads what shows through in a part of a missing object.
    fn read_parent(&self, extent: ObjectExtent) -> BoxFuture<'_, Result<Vec<(u64, Bytes)>>> {
        Box::pin(async move {
            let Some(parent) = &self.parent else { return Ok(Vec::new()) };
            let reads = stream::iter(self.below_overlap(extent))
                .map(|part| async move { parent.ancestor.read(part.offset, part.length).await });
            let parts: Vec<SparseData> = reads.buffered(OBJECTS_IN_FLIGHT).try_collect().await?;
            Ok(parts.into_iter().flat_map(|p| p.extents).collect())
        })
    }

    /// What was written aside for a part of an object, and what shows through around it.
    async fn read_under(&self, extent: ObjectExtent, early: SparseData) -> Result<Vec<(u64, Bytes)>> {
        let mut found = Vec::new();
        for gap in gaps(extent, early.extents.iter().map(|(at, bytes)| (*at, bytes.len() as u64))) {
            found.extend(self.read_parent(gap).await?);
        }
        found.extend(self.in_image(extent, early));
        Ok(found)
    }

    /// The image ranges of a part of an object, as far as the parent shows there.
    pub(crate) fn below_overlap(&self, extent: ObjectExtent) -> Vec<ImageExtent> {
        let overlap = self.overlap();
        self.layout
            .image_extents(extent)
            .filter(|e| e.offset < overlap)
            .map(|e| ImageExtent { offset: e.offset, length: e.length.min(overlap - e.offset) })
            .collect()
    }

    /// Turns offsets in an object into offsets in the image.
    fn in_image(&self, extent: ObjectExtent, data: SparseData) -> Vec<(u64, Bytes)> {
        if !self.layout.is_striped() {
            let start = self.layout.image_offset(extent.object, 0);
            return data.extents.into_iter().map(|(at, bytes)| (start + at, bytes)).collect();
        }
        let mut found = Vec::new();
        for (at, bytes) in data.extents {
            let held = ObjectExtent { object: extent.object, offset: at, length: bytes.len() as u64 };
            let mut rest = bytes;
            for part in self.layout.image_extents(held) {
                let n = usize::try_from(part.length).expect("a part of a buffer fits memory");
                found.push((part.offset, rest.split_to(n)));
            }
        }
        found
    }

    /// The objects a range reads, of this image or of its ancestors, in the order of the range. Ranges that no object holds
    /// are left out.
    ///
    /// # Errors
    /// Those of the store.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub fn locate(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<Piece>>> {
        Box::pin(async move {
            let extents: Vec<_> = self.layout.extents(offset, length).collect();
            let looks = stream::iter(extents).map(|extent| self.locate_in_object(extent));
            let parts: Vec<Vec<Piece>> = looks.buffer_unordered(OBJECTS_IN_FLIGHT).try_collect().await?;
            let mut pieces: Vec<Piece> = parts.into_iter().flatten().collect();
            pieces.sort_unstable_by_key(|p| p.image_offset);
            Ok(pieces)
        })
    }

    /// As [`Self::locate`], for a part of one object.
    pub(crate) async fn locate_in_object(&self, extent: ObjectExtent) -> Result<Vec<Piece>> {
        let object = self.object_id(extent.object);
        match self.look(extent.object, ReadOp::stat()).await? {
            Some(reply) => return Ok(self.pieces_of(extent, &object, reply.size)),
            None if !self.keeps_early() => return self.locate_in_parent(extent).await,
            None => {}
        }
        if let Some(early) = self.early(extent).await? {
            return Box::pin(self.locate_under(extent, early)).await;
        }
        // It may have been finished in between.
        match self.look(extent.object, ReadOp::stat()).await? {
            Some(reply) => Ok(self.pieces_of(extent, &object, reply.size)),
            None => self.locate_in_parent(extent).await,
        }
    }

    /// Where what was written aside for a part of an object lies, and what shows through around it.
    async fn locate_under(&self, extent: ObjectExtent, early: ReadReply) -> Result<Vec<Piece>> {
        let held: Vec<(u64, u64)> = early.data.extents.iter().map(|(at, b)| (*at, b.len() as u64)).collect();
        let object = self.early_object(extent.object);
        let mut pieces = Vec::new();
        for gap in gaps(extent, held.iter().copied()) {
            pieces.extend(self.locate_in_parent(gap).await?);
        }
        for (offset, length) in held {
            let part = ObjectExtent { object: extent.object, offset, length };
            pieces.extend(self.pieces_of(part, &object, early.size));
        }
        pieces.sort_unstable_by_key(|p| p.image_offset);
        Ok(pieces)
    }

    /// The pieces of an object that exists, as far as its size goes.
    fn pieces_of(&self, extent: ObjectExtent, object: &ObjectId, size: u64) -> Vec<Piece> {
        let mut offset = extent.offset;
        let mut pieces = Vec::new();
        for part in self.layout.image_extents(extent) {
            if offset < size {
                pieces.push(Piece {
                    held: Held::Object { object: object.clone(), at: self.snap, offset, size },
                    image_offset: part.offset,
                    length: part.length.min(size - offset),
                });
            }
            offset += part.length;
        }
        pieces
    }

    /// The pieces of what shows through in a part of a missing object.
    pub(crate) async fn locate_in_parent(&self, extent: ObjectExtent) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        if let Some(parent) = &self.parent {
            for part in self.below_overlap(extent) {
                pieces.extend(parent.ancestor.locate(part.offset, part.length).await?);
            }
        }
        Ok(pieces)
    }
}

/// What lies between the ranges `held`, which ascend, in a part of an object.
fn gaps(extent: ObjectExtent, held: impl Iterator<Item = (u64, u64)>) -> Vec<ObjectExtent> {
    let end = extent.offset + extent.length;
    let mut at = extent.offset;
    let mut found = Vec::new();
    for (offset, length) in held.chain([(end, 0)]) {
        if offset > at {
            found.push(ObjectExtent { object: extent.object, offset: at, length: offset - at });
        }
        at = at.max(offset + length);
    }
    found
}
