//! The `Store` contract: the part of RADOS that block images need.
//!
//! A store holds pools; a pool holds objects by (namespace, name); an object has data, an ordered map of binary keys
//! (omap), named attributes (xattrs), a version, and versions of its data preserved for snapshots.
//!
//! # Rules every implementation obeys (proved by `testing::contract::store`)
//! - **Atomic**: a [`WriteOp`] happens whole or not at all. Guards are looked at first and see the state before the op;
//!   effects follow in order and see each other.
//! - **Version**: every op that changes an object sets its version to a number larger than any the object had before;
//!   a refused op may use up numbers. An object removed and created again does not repeat versions within one open store.
//! - **Order**: if B was submitted after A was acknowledged in the same store, no crash shows B without A.
//! - **Flush**: what was acknowledged before `flush` was called is durable when it returns.
//! - **Snapshots cover data only** (bytes and size), never omap or xattrs. The first data effect under a
//!   [`SnapContext`] newer than what the object has seen preserves what was there (see [`SnapSet`]). An op without a
//!   context, or with an older one, preserves nothing new. An op without data effects ignores its context.
//!   Whether an effect that changes nothing (zeroing past the end, creating what exists) preserves is left open.
//! - **Objects exist** or not; one that exists with size 0 is different from one that does not.
//! - **One moment**: all that a [`ReadOp`] at HEAD answers is of one state of the object.
//! - A read past the end is short; a hole inside the size reads as zeros and is not listed as an extent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::ident::{ClientId, Namespace, ObjectId, PoolId, SnapId};
use crate::limits::{
    BLOCK_SIZE, METADATA_VALUE_MAX, NAMESPACE_MAX, OBJECT_NAME_MAX, OBJECT_SIZE_MAX, OMAP_KEY_MAX,
};
use crate::lock::{LockInfo, LockRequest, UnlockRequest};
use crate::reply::Reply;
use crate::watch::{NotifyReply, WatchHandle, WatchReceiver, WatcherInfo};

/// What a data write must preserve: the newest snapshot id ever taken and the ids that still exist, newest first.
///
/// # Invariants
/// `snaps` is strictly descending and none is greater than `seq`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapContext {
    /// Highest snapshot id ever added; 0 where none was.
    pub seq: u64,
    /// The snapshots that exist, newest first.
    pub snaps: Arc<[SnapId]>,
}

impl SnapContext {
    /// Whether the invariants hold.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.snaps.windows(2).all(|w| w[0] > w[1])
            && self.snaps.first().is_none_or(|s| s.0 <= self.seq)
            && self.seq <= SnapId::MAX.0
    }
}

/// A condition on the object's state before the op. All must hold or nothing happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The object does not exist; the op creates it. Fails with `Exists` (17).
    CreateExclusive,
    /// The object exists. Fails with `NotFound` (2).
    AssertExists,
    /// The object's version is this one. An older one asked for fails with `Conflict` (34), a newer one with `Conflict`
    /// (75), a missing object with `NotFound` (2).
    AssertVersion(u64),
    /// The omap value of `key` equals `value`, an absent key counting as empty. Fails with `Conflict` (125); on a missing
    /// object with `NotFound` (2) unless the op begins with a `Create` step.
    OmapCompare {
        /// The key to look at.
        key: Bytes,
        /// What it must hold; empty also matches an absent key.
        value: Bytes,
    },
    /// The xattr equals `value`, an absent one counting as empty. Fails with `Conflict` (125); on a missing object with
    /// `NotFound` (2), whatever else the op does.
    XattrCompare {
        /// The attribute's name.
        name: String,
        /// What it must hold.
        value: Bytes,
    },
}

/// A change to the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make sure the object exists; no error if it does. `Write`, `WriteFull`, `ShareRange`, `OmapSet` and `XattrSet` do
    /// so too.
    Create,
    /// Write `data` at `offset`, growing the object where needed.
    Write {
        /// Bytes from the start of the object.
        offset: u64,
        /// The bytes to write.
        data: Bytes,
    },
    /// Replace all data; the size becomes the length.
    WriteFull(Bytes),
    /// Make a range read as zeros and occupy nothing. One that reaches the end or past it cuts the object: the size
    /// becomes `offset`, as if truncated. One that is empty or begins at or past the end does nothing.
    /// An object that does not exist stays so.
    Zero {
        /// Bytes from the start of the object.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Set the size; growing adds a hole. An object that does not exist stays so.
    Truncate(u64),
    /// Remove the object (its preserved versions stay). Fails with `NotFound` (2) if it does not exist. Ends the op: later
    /// effects are refused with `Invalid`.
    Remove,
    /// Make the data what it was at a snapshot: that version's bytes and size; the object is removed if it did not exist
    /// then. Snapshots the object has no version for leave it as it is (it has not changed since). Stands alone in its
    /// op, without guards, or is refused with `Invalid` (22): librados has no such step in compounds. The omap and
    /// xattrs of an object rolled back are unspecified.
    Rollback(SnapId),
    /// Make the bytes and the size those of another object, copied inside the store: no client sees them. Holes may become zeros that
    /// take room. Only where [`Capabilities::copy`] is set. Omap and xattrs are unspecified until later effects set them, and the
    /// op leaves no stamp of its own. Fails with `NotFound` (2) where the source did not exist then.
    CopyObject {
        /// The object to copy, in any pool of the store; not this one.
        source: ObjectId,
        /// The snapshot to read it at, or HEAD.
        at: SnapId,
        /// How long it is, as far as is known. It is copied whole whatever this says. Bytes.
        length: u64,
    },
    /// Make `[target_offset, +length)` read what `[offset, +length)` of `source` reads, sharing the space. Only where
    /// [`Capabilities::share`] is set. Offsets are multiples of 4 KiB; `length` too, unless it reaches the end of the
    /// source's size. What lies past the source's end becomes holes; the target grows to hold the data copied, and keeps what it
    /// has behind the range.
    ShareRange {
        /// The object to take from, in any pool of the store.
        source: ObjectId,
        /// The snapshot to read it at, or HEAD (its state before this op).
        at: SnapId,
        /// Bytes from the start of the source.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Bytes from the start of this object.
        target_offset: u64,
    },
    /// Set omap entries.
    OmapSet(Vec<(Bytes, Bytes)>),
    /// Remove omap keys; absent ones are no error, but an object that does not exist is: `NotFound` (2).
    OmapRemove(Vec<Bytes>),
    /// Remove all omap entries. `NotFound` (2) if the object does not exist.
    OmapClear,
    /// Set an xattr.
    XattrSet(String, Bytes),
    /// Remove an xattr; an absent one is no error, but an object that does not exist is: `NotFound` (2).
    XattrRemove(String),
}

/// What is done about a clone in the header of its parent: [`Store::change_child`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildStep {
    /// It is noted. `Exists` (17) where it is already, `NotFound` (2) where the snapshot is gone.
    Attach,
    /// It is forgotten. `NotFound` (2) where it is not noted.
    Detach,
}

/// What an op leaves on the version of the object that it makes, until the next change, whoever makes that: so that one who wrote an object
/// can tell whether it is as he left it, also where others write who know nothing of him.
///
/// A store that keeps times of change keeps it in place of one, as seconds long before there was any such store; programs that show
/// it show a day between 1970 and 1987.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(u32);

impl Stamp {
    /// How many there are.
    const COUNT: u32 = 1 << 29;

    /// One made of a random number.
    #[must_use]
    pub fn of(random: u64) -> Self {
        Self(1 + u32::try_from(random % u64::from(Self::COUNT)).expect("below 2^29"))
    }

    /// The one that a time of change stands for; `None` for what is a time.
    #[must_use]
    pub fn from_seconds(seconds: i64) -> Option<Self> {
        u32::try_from(seconds).ok().filter(|s| (1..=Self::COUNT).contains(s)).map(Self)
    }

    /// The time of change that stands for it. Seconds since 1970.
    #[must_use]
    pub fn seconds(self) -> i64 {
        i64::from(self.0)
    }
}

/// A compound write on one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteOp {
    /// Looked at first, in order; the first that fails names the error.
    pub guards: Vec<Guard>,
    /// Applied in order.
    pub effects: Vec<Effect>,
    /// What data effects must preserve; `None` preserves nothing.
    pub snap_context: Option<SnapContext>,
    /// Whether the op may use the space a full store keeps in reserve, because it is part of giving space back (removing an
    /// image, a snapshot). RADOS calls it `FULL_TRY`.
    pub full_try: bool,
    /// What stays on the object until the next change, where the store keeps it.
    pub stamp: Option<Stamp>,
}

impl Effect {
    /// Whether it is a `CopyObject`.
    #[must_use]
    pub fn is_copy(&self) -> bool {
        matches!(self, Self::CopyObject { .. })
    }
}

impl WriteOp {
    /// An op that does nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a guard.
    #[must_use]
    pub fn guard(mut self, guard: Guard) -> Self {
        self.guards.push(guard);
        self
    }

    /// Adds an effect.
    #[must_use]
    pub fn effect(mut self, effect: Effect) -> Self {
        self.effects.push(effect);
        self
    }

    /// Sets the snapshot context of the data effects.
    #[must_use]
    pub fn under(mut self, context: SnapContext) -> Self {
        self.snap_context = Some(context);
        self
    }

    /// Lets the op use the space kept in reserve: it is part of giving space back.
    #[must_use]
    pub fn full_try(mut self) -> Self {
        self.full_try = true;
        self
    }

    /// Sets what stays on the object until the next change.
    #[must_use]
    pub fn stamped(mut self, stamp: Option<Stamp>) -> Self {
        self.stamp = stamp;
        self
    }

    /// Adds `OmapCompare`.
    #[must_use]
    pub fn omap_compare(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.guard(Guard::OmapCompare { key: key.into(), value: value.into() })
    }

    /// Adds `OmapSet` of one entry.
    #[must_use]
    pub fn omap_set(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.effect(Effect::OmapSet(vec![(key.into(), value.into())]))
    }

    /// Adds `OmapRemove` of one key.
    #[must_use]
    pub fn omap_remove(self, key: impl Into<Bytes>) -> Self {
        self.effect(Effect::OmapRemove(vec![key.into()]))
    }

    /// Adds `Write`.
    #[must_use]
    pub fn write(self, offset: u64, data: impl Into<Bytes>) -> Self {
        self.effect(Effect::Write { offset, data: data.into() })
    }

    /// Whether any effect concerns the data (bytes, size, existence), and so the snapshot context applies.
    #[must_use]
    pub fn touches_data(&self) -> bool {
        self.effects.iter().any(|e| match e {
            Effect::Create
            | Effect::Write { .. }
            | Effect::WriteFull(_)
            | Effect::Zero { .. }
            | Effect::Truncate(_)
            | Effect::Remove
            | Effect::Rollback(_)
            | Effect::CopyObject { .. }
            | Effect::ShareRange { .. } => true,
            Effect::OmapSet(_)
            | Effect::OmapRemove(_)
            | Effect::OmapClear
            | Effect::XattrSet(..)
            | Effect::XattrRemove(_) => false,
        })
    }

    /// Whether it has a `CopyObject`.
    #[must_use]
    pub fn copies(&self) -> bool {
        self.effects.iter().any(Effect::is_copy)
    }

    /// What every store refuses before it looks at the object.
    ///
    /// # Errors
    /// `Invalid` (22): a name, key, value or range past its limit, a context out of order, effects after `Remove`,
    /// `Rollback` in company, a `ShareRange` off the block grid, a `CopyObject` of the object itself.
    pub fn check(&self, object: &ObjectId) -> Result<()> {
        check_name(object)?;
        if self.snap_context.as_ref().is_some_and(|c| !c.is_valid()) {
            return Err(Error::invalid("a snapshot context out of order"));
        }
        let lonely = self.guards.is_empty() && self.effects.len() == 1;
        for guard in &self.guards {
            match guard {
                Guard::CreateExclusive | Guard::AssertExists | Guard::AssertVersion(_) => {}
                Guard::OmapCompare { key, value } => check_entry(key, value)?,
                Guard::XattrCompare { name, value } => check_entry(name.as_bytes(), value)?,
            }
        }
        for (i, effect) in self.effects.iter().enumerate() {
            match effect {
                Effect::Create | Effect::OmapClear => {}
                Effect::Write { offset, data } => check_range(*offset, data.len() as u64)?,
                Effect::WriteFull(data) => check_range(0, data.len() as u64)?,
                Effect::Zero { offset, length } => check_range(*offset, *length)?,
                Effect::Truncate(size) => check_range(*size, 0)?,
                Effect::Remove if i + 1 < self.effects.len() => {
                    return Err(Error::invalid("effects after a removal"));
                }
                Effect::Remove => {}
                Effect::Rollback(_) if !lonely => {
                    return Err(Error::invalid("a rollback stands alone in its op"));
                }
                Effect::Rollback(_) => {}
                Effect::CopyObject { source, .. } => {
                    check_name(source)?;
                    if source == object {
                        return Err(Error::invalid("an object copied to itself"));
                    }
                }
                Effect::ShareRange { source, offset, length, target_offset, .. } => {
                    check_name(source)?;
                    check_range(*offset, *length)?;
                    check_range(*target_offset, *length)?;
                    if offset % BLOCK_SIZE != 0 || target_offset % BLOCK_SIZE != 0 {
                        return Err(Error::invalid("a shared range off the block grid"));
                    }
                }
                Effect::OmapSet(entries) => entries.iter().try_for_each(|(k, v)| check_entry(k, v))?,
                Effect::OmapRemove(keys) => keys.iter().try_for_each(|k| check_entry(k, b""))?,
                Effect::XattrSet(name, value) => check_entry(name.as_bytes(), value)?,
                Effect::XattrRemove(name) => check_entry(name.as_bytes(), b"")?,
            }
        }
        Ok(())
    }
}

/// Refuses names past their limits, and an empty one.
fn check_name(object: &ObjectId) -> Result<()> {
    if object.name.is_empty() || object.name.len() > OBJECT_NAME_MAX {
        return Err(Error::invalid("an object name too long or empty").with("bytes", object.name.len()));
    }
    if object.namespace.as_str().len() > NAMESPACE_MAX {
        return Err(Error::invalid("a namespace name too long"));
    }
    Ok(())
}

/// Refuses omap and xattr entries past their limits, and an empty key.
fn check_entry(key: &[u8], value: &[u8]) -> Result<()> {
    if key.is_empty() || key.len() > OMAP_KEY_MAX {
        return Err(Error::invalid("a key too long or empty").with("bytes", key.len()));
    }
    if value.len() > METADATA_VALUE_MAX {
        return Err(Error::invalid("a value too long").with("bytes", value.len()));
    }
    Ok(())
}

/// Refuses ranges past the largest object.
fn check_range(offset: u64, length: u64) -> Result<()> {
    if offset.checked_add(length).is_none_or(|end| end > OBJECT_SIZE_MAX) {
        return Err(Error::invalid("a range past the largest object")
            .with("offset", offset)
            .with("length", length));
    }
    Ok(())
}

/// What a write op did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteReply {
    /// The object's version after the op.
    pub version: u64,
}

/// Which omap entries to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OmapRead {
    /// These keys, those that exist.
    Keys(Vec<Bytes>),
    /// Up to `max` entries with keys greater than `after` and beginning with `prefix`, in key order. At most
    /// [`crate::limits::OMAP_PAGE_MAX`] come back at once. On RADOS `after` must hold no NUL.
    Page {
        /// The last key of the page before; empty to start.
        after: Bytes,
        /// Only keys beginning with this; empty for all.
        prefix: Bytes,
        /// How many at the most.
        max: usize,
    },
}

/// A compound read on one object: what to answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadOp {
    /// `(offset, length)` in bytes: the extents that exist in this range.
    pub data: Option<(u64, u64)>,
    /// All xattrs.
    pub xattrs: bool,
    /// Omap entries.
    pub omap: Option<OmapRead>,
    /// Whether only the data is wanted: the reply's size, version and stamp then say nothing. A cluster has less to look up.
    pub is_data_alone: bool,
}

impl ReadOp {
    /// Asks only whether the object exists, its size and its version.
    #[must_use]
    pub fn stat() -> Self {
        Self::default()
    }

    /// Asks for the extents in a range. Bytes.
    #[must_use]
    pub fn data(offset: u64, length: u64) -> Self {
        Self { data: Some((offset, length)), ..Self::default() }
    }

    /// Asks for omap entries by key.
    #[must_use]
    pub fn omap_keys<K: Into<Bytes>>(keys: impl IntoIterator<Item = K>) -> Self {
        Self { omap: Some(OmapRead::Keys(keys.into_iter().map(Into::into).collect())), ..Self::default() }
    }

    /// Asks for a page of omap entries.
    #[must_use]
    pub fn omap_page(after: impl Into<Bytes>, prefix: impl Into<Bytes>) -> Self {
        let (after, prefix, max) = (after.into(), prefix.into(), crate::limits::OMAP_PAGE_MAX);
        Self { omap: Some(OmapRead::Page { after, prefix, max }), ..Self::default() }
    }
}

/// The data of a range: only the extents that exist, in order, none overlapping, none empty. Gaps read as zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SparseData {
    /// `(offset in the object, bytes)`.
    pub extents: Vec<(u64, Bytes)>,
}

impl SparseData {
    /// Copies the extents into `buffer`, whose first byte is at `offset` of the object; gaps become zeros.
    pub fn fill(&self, offset: u64, buffer: &mut [u8]) {
        buffer.fill(0);
        for (at, bytes) in &self.extents {
            let (from, skip) = if *at >= offset { (*at - offset, 0) } else { (0, offset - *at) };
            let (Ok(from), Ok(skip)) = (usize::try_from(from), usize::try_from(skip)) else { continue };
            if from >= buffer.len() || skip >= bytes.len() {
                continue;
            }
            let n = (bytes.len() - skip).min(buffer.len() - from);
            buffer[from..from + n].copy_from_slice(&bytes[skip..skip + n]);
        }
    }

    /// The range as one buffer, gaps filled with zeros.
    ///
    /// # Panics
    /// If `length` does not fit memory.
    #[must_use]
    pub fn to_vec(&self, offset: u64, length: u64) -> Vec<u8> {
        let mut buffer = vec![0; usize::try_from(length).expect("a read fits memory")];
        self.fill(offset, &mut buffer);
        buffer
    }
}

/// A page of omap entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OmapPage {
    /// In key order.
    pub entries: Vec<(Bytes, Bytes)>,
    /// Whether there are more behind the last.
    pub more: bool,
}

/// The answer to a [`ReadOp`]. A read of an object that does not exist (at that snapshot) is `NotFound` instead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadReply {
    /// Version of the object at HEAD; unspecified when read at a snapshot, or for the data alone.
    pub version: u64,
    /// Size of the data at that snapshot; unspecified when read for the data alone. Bytes.
    pub size: u64,
    /// What the op left that made this version; `None` where it left nothing, or the store does not keep it.
    pub stamp: Option<Stamp>,
    /// Where asked for.
    pub data: SparseData,
    /// Where asked for.
    pub xattrs: BTreeMap<String, Bytes>,
    /// Where asked for.
    pub omap: OmapPage,
}

/// One preserved version of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clone {
    /// Its id: the snapshot sequence of the context that made it.
    pub id: SnapId,
    /// The snapshots that read this version, ascending.
    pub snaps: Vec<SnapId>,
    /// Its size. Bytes.
    pub size: u64,
    /// `(offset, length)` ranges that are the same in the next newer version (the next clone, else HEAD), ascending.
    pub overlap: Vec<(u64, u64)>,
}

/// All versions of an object.
///
/// Reading at snapshot `s`: if `s > seq`, HEAD. Otherwise the first clone with `id >= s`, if `s` is among its `snaps`; if
/// it is not, or there is no such clone, the object did not exist then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapSet {
    /// Newest snapshot context sequence the object has been written under.
    pub seq: u64,
    /// Size of HEAD, `None` where HEAD does not exist. Bytes.
    pub head_size: Option<u64>,
    /// Oldest first.
    pub clones: Vec<Clone>,
}

/// What a pool may be told to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolFlags {
    /// Every write to the pool fails with `ReadOnly` (30).
    pub read_only: bool,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolInfo {
    /// Its number.
    pub id: PoolId,
    /// Its name.
    pub name: String,
    /// Its flags.
    pub flags: PoolFlags,
}

/// What a pool holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Objects that exist at HEAD.
    pub objects: u64,
    /// Bytes of space the pool's data takes, shared data counted for each that refers to it.
    pub used_bytes: u64,
}

/// What an implementation can do beyond the plain contract. An optimisation or a clear refusal, never another meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// [`Effect::ShareRange`] works.
    pub share: bool,
    /// [`Effect::CopyObject`] works, as far as is known, and is worth its requests from objects of so many bytes. A store that finds
    /// out that it does not work refuses the op as `Unsupported` and says so here from then on.
    pub copy: Option<u64>,
    /// `list_snaps` works.
    pub list_snaps: bool,
    /// `list_watchers` works for every client. Where it does not, it is for administrators at most, and locks are never broken.
    pub list_watchers: bool,
}

/// A page of object names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectPage {
    /// `(namespace, name)`, in the order of the listing.
    pub objects: Vec<(Namespace, Arc<str>)>,
    /// Where to go on; `None` at the end.
    pub next: Option<ObjectCursor>,
}

/// Where a listing goes on. Opaque to callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectCursor(pub Bytes);

/// Pools of objects. See the module's rules.
///
/// # Cancel safety
/// Dropping a pending reply leaves it open whether the request happens.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// What this store can do beyond the plain contract.
    fn capabilities(&self) -> Capabilities;

    /// Who we are to this store.
    fn client(&self) -> ClientId;

    /// A text naming the store: a directory, a cluster's fsid. For messages.
    fn describe(&self) -> String;

    /// The store's 128-bit identity: two handles with the same value are the same store.
    fn identity(&self) -> [u8; 16];

    /// A number that changes whenever an object comes into being or goes away, its omap or xattrs change (a mark that it is not
    /// finished is one), or a snapshot is released, by whomever. What was found out about such things stays true while it stays.
    /// `None` where the store cannot tell.
    fn generation(&self) -> Option<u64> {
        None
    }

    /// All pools, by id.
    fn pools(&self) -> Reply<Vec<PoolInfo>>;

    /// Makes a pool. `Exists` (17) if the name is taken.
    fn create_pool(&self, name: &str) -> Reply<PoolId>;

    /// Removes a pool with all its objects. `NotFound` (2); `ReadOnly` (30) where its flag says so.
    fn remove_pool(&self, pool: PoolId) -> Reply<()>;

    /// Sets a pool's flags.
    fn set_pool_flags(&self, pool: PoolId, flags: PoolFlags) -> Reply<()>;

    /// Counts what a pool holds.
    fn pool_stats(&self, pool: PoolId) -> Reply<PoolStats>;

    /// Performs a compound write. Errors: those of the guards; `NotFound` (2) for an unknown pool; `Invalid` (22) for what
    /// [`WriteOp::check`] refuses; `ReadOnly` (30); `NoSpace` (28).
    fn write(&self, object: &ObjectId, op: WriteOp) -> Reply<WriteReply>;

    /// Performs a compound read at a snapshot or HEAD. `NotFound` (2) if the object did not exist then.
    ///
    /// `xattrs` and `omap` are those of HEAD whatever the snapshot (and empty where only preserved versions are left).
    fn read(&self, object: &ObjectId, at: SnapId, op: ReadOp) -> Reply<ReadReply>;

    /// The parts of a range of an object that hold bytes, at a snapshot or HEAD, as far as the store knows without reading them:
    /// `(offset, length)` in bytes, ascending, apart, none empty. All else reads as zeros; so may a part. `NotFound` (2) if the
    /// object did not exist then.
    fn extents(&self, object: &ObjectId, at: SnapId, offset: u64, length: u64) -> Reply<Vec<(u64, u64)>> {
        // It holds bytes up to its end, as far as anybody can tell.
        let part = move |size: u64| {
            let end = offset.saturating_add(length).min(size);
            if offset < end { vec![(offset, end - offset)] } else { Vec::new() }
        };
        match self.read(object, at, ReadOp::stat()) {
            Reply::Ready(reply) => Reply::Ready(reply.map(|r| r.map(|reply| part(reply.size)))),
            Reply::Pending(reply) => Reply::pending(async move { Ok(part(reply.await?.size)) }),
        }
    }

    /// As [`Self::extents`], as finely as the store can find out, if that takes it a request of its own. `rbd` asks for no more than
    /// the other tells, and what is compared with it must not either.
    fn find_extents(
        &self,
        object: &ObjectId,
        at: SnapId,
        offset: u64,
        length: u64,
    ) -> Reply<Vec<(u64, u64)>> {
        self.extents(object, at, offset, length)
    }

    /// Whether an object is known to hold bytes from its beginning to `length`, its size, at a snapshot or HEAD, and no holes. What cannot
    /// be told is not known; a store that copies nothing need not tell. `NotFound` (2) if the object did not exist then.
    fn is_full(&self, _object: &ObjectId, _at: SnapId, _length: u64) -> Reply<bool> {
        Reply::ready(Ok(false))
    }

    /// Says that a range of an object will be read soon at a snapshot or HEAD, so that a store that waits for a medium can have it
    /// brought to memory meanwhile. Advice: nothing comes of it but time, and what is wrong with the range the read itself tells.
    fn will_read(&self, object: &ObjectId, at: SnapId, offset: u64, length: u64) {
        let _ = (object, at, offset, length);
    }

    /// Whether an object is known to be the same at two points, snapshots or HEAD, bytes and existence. `false` where it may
    /// differ, and from a store that cannot tell. For stores that cannot list an object's versions.
    fn is_same_at(&self, object: &ObjectId, one: SnapId, other: SnapId) -> Reply<bool> {
        let _ = (object, one, other);
        Reply::ready(Ok(false))
    }

    /// All versions of an object. `NotFound` (2) if neither HEAD nor a preserved version exists.
    fn list_snaps(&self, object: &ObjectId) -> Reply<SnapSet>;

    /// Gives out a snapshot id never given out before in this pool, greater than all before it.
    fn allocate_snap(&self, pool: PoolId) -> Reply<SnapId>;

    /// Says that a snapshot is gone: versions only it needed are dropped in the background. Unknown ids are no error.
    fn release_snap(&self, pool: PoolId, snap: SnapId) -> Reply<()>;

    /// Lists objects that exist at HEAD: of one namespace, or of all. A store may also list those of which only preserved
    /// versions are left (RADOS does). May cost the whole pool.
    fn list_objects(
        &self,
        pool: PoolId,
        namespace: Option<&Namespace>,
        after: Option<ObjectCursor>,
        max: usize,
    ) -> Reply<ObjectPage>;

    /// Registers interest in an object that exists. Messages and the loss of the watch come through the receiver; dropping
    /// it ends the watch.
    fn watch(&self, object: &ObjectId) -> Reply<WatchReceiver>;

    /// Sends `payload` to all watchers and waits until each has answered or `timeout` is over. `NotFound` (2) where the
    /// object does not exist.
    fn notify(&self, object: &ObjectId, payload: Bytes, timeout: Duration) -> Reply<NotifyReply>;

    /// Who watches an object.
    fn list_watchers(&self, object: &ObjectId) -> Reply<Vec<WatcherInfo>>;

    /// Takes or renews an advisory lock kept in the object's xattr `lock.<name>`, making the object where it does not
    /// exist. `Busy` (16) where another holds it, `Exists` (17) where this client and cookie do.
    fn lock(&self, object: &ObjectId, request: LockRequest) -> Reply<()>;

    /// Gives a lock back. `NotFound` (2) where this client and cookie do not hold it.
    fn unlock(&self, object: &ObjectId, request: UnlockRequest) -> Reply<()>;

    /// Takes a lock from whoever holds it: `locker` and `cookie` name the holder. `NotFound` (2).
    fn break_lock(&self, object: &ObjectId, request: UnlockRequest, locker: ClientId) -> Reply<()>;

    /// Cuts the client at `address` off, as a lock tells it: nothing it sends from when this returns on has an effect, here or
    /// elsewhere in the store, for at least an hour. Done before a lock is taken from a client that may still be alive somewhere.
    /// Where all clients of a store live in one process, there is nothing to cut off.
    ///
    /// Errors: `Denied` (13, 1) where this client may not.
    fn cut_off(&self, address: &str) -> Reply<()>;

    /// Who holds the lock `name` on the object; no holders where it is free.
    fn lock_info(&self, object: &ObjectId, name: &str) -> Reply<LockInfo>;

    /// Notes a clone in the header of its parent, or forgets it, where a plain write is `Denied`: the one change that a user may make who
    /// otherwise only reads the parent's pool. `input` is what the method of RADOS' class `rbd` takes. `Unsupported` (95) on stores
    /// without such users.
    fn change_child(&self, object: &ObjectId, step: ChildStep, _input: Bytes) -> Reply<()> {
        let refused = Error::unsupported("changing a header without the right to write it");
        Reply::ready(Err(refused.with("object", object).with("step", format!("{step:?}"))))
    }

    /// Makes everything acknowledged so far durable.
    fn flush(&self) -> Reply<()>;

    /// The address this client shows in watchers and locks.
    fn address(&self) -> String;
}

/// The cookie of a watch, to be shown in locks. See [`WatchReceiver`].
pub type WatchCookie = WatchHandle;

/// Convenience on any store.
pub trait StoreExt: Store {
    /// The pool called `name`, `NotFound` (2) where there is none.
    fn pool_by_name(&self, name: &str) -> impl Future<Output = Result<PoolInfo>> + Send {
        async move {
            let pools = self.pools().await?;
            pools
                .into_iter()
                .find(|p| p.name == name)
                .ok_or_else(|| Error::not_found("no such pool").with("pool", name))
        }
    }
}

impl<S: Store + ?Sized> StoreExt for S {}
