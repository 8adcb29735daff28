//! Records: the changes a batch says happened, in order. Layout: `docs/format/records.md`.
//!
//! The running engine and recovery apply the same records with the same function, so they cannot disagree. Records name
//! objects by inode number; a number is never used twice.

use bytes::Bytes;
use ferry_core::denc::{Decoder, Encoder};
use ferry_core::{Error, Result};

use crate::address::Address;
use crate::disk::SegmentNo;

/// Kind of [`Record::Freed`].
const FREED: u8 = 26;

/// A version of an object: a preserved one by its clone id, or HEAD.
pub(crate) const HEAD: u64 = ferry_core::SnapId::HEAD.0;

/// One block of one version of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BlockRef {
    /// The object.
    pub(crate) inode: u64,
    /// HEAD or a clone id.
    pub(crate) version: u64,
    /// Block number in the object.
    pub(crate) block: u32,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// A pool exists with this name and these flags.
    Pool { pool: i64, name: String, read_only: bool },
    /// A pool is gone; it was empty.
    PoolRemove { pool: i64 },
    /// The pool's next snapshot id.
    SnapAllocate { pool: i64, snap: u64 },
    /// A snapshot is released: versions only it needs are to be dropped.
    SnapRelease { pool: i64, snap: u64 },
    /// All versions of a released snapshot have been dropped.
    SnapTrimmed { pool: i64, snap: u64 },
    /// An object begins to exist: a new inode.
    Create { inode: u64, pool: i64, namespace: String, name: String, snap_seq: u64 },
    /// An object of which only preserved versions were left exists again.
    Revive { inode: u64 },
    /// HEAD is gone. With no preserved version left, so is the inode.
    Remove { inode: u64 },
    /// HEAD is preserved under `clone` for `snaps`; with no `snaps` only the sequence is noted.
    Preserve { inode: u64, clone: u64, snaps: Vec<u64> },
    /// A preserved version is no longer needed for `snap`.
    DropSnap { inode: u64, snap: u64 },
    /// Blocks of HEAD are the next payload blocks.
    Data { inode: u64, block: u32, crcs: Vec<u32> },
    /// Blocks of HEAD are zeros.
    Zero { inode: u64, block: u32, count: u32 },
    /// Blocks of HEAD are holes.
    Hole { inode: u64, block: u32, count: u32 },
    /// Blocks of HEAD are those of a version of another object (or an older one of this).
    Share { source: BlockRef, count: u32, inode: u64, block: u32 },
    /// HEAD's size in bytes.
    Size { inode: u64, size: u64 },
    /// The object's version.
    Version { inode: u64, version: u64 },
    /// An omap entry.
    OmapSet { inode: u64, key: Bytes, value: Bytes },
    /// An omap entry is gone.
    OmapRemove { inode: u64, key: Bytes },
    /// All omap entries are gone.
    OmapClear { inode: u64 },
    /// An xattr.
    XattrSet { inode: u64, name: String, value: Bytes },
    /// An xattr is gone.
    XattrRemove { inode: u64, name: String },
    /// The next payload blocks are copies of blocks that lie at `from`; each of `refs` and those after it had them when they were
    /// copied. Says nothing before it is adopted.
    Copied { refs: Vec<BlockRef>, from: Vec<Address>, crcs: Vec<u32> },
    /// Who still has the blocks that the batch at this address has copies of, has the copies from now on.
    Adopt { batch: Address },
    /// These segments hold nothing and are free from here on. Alone in its batch, see [`Record::freed_in`].
    Freed { segments: Vec<SegmentNo> },
    /// The next payload block is an index page that holds `key`; nothing to replay.
    Node { level: u8, crc: u32, key: Bytes },
    /// The next payload blocks are the segment table; nothing to replay.
    Table { crcs: Vec<u32> },
}

impl Record {
    /// CRCs of the payload blocks that belong to it.
    pub(crate) fn payload_crcs(&self) -> &[u32] {
        match self {
            Self::Data { crcs, .. } | Self::Copied { crcs, .. } | Self::Table { crcs } => crcs,
            Self::Node { crc, .. } => std::slice::from_ref(crc),
            Self::Pool { .. }
            | Self::PoolRemove { .. }
            | Self::SnapAllocate { .. }
            | Self::SnapRelease { .. }
            | Self::SnapTrimmed { .. }
            | Self::Create { .. }
            | Self::Revive { .. }
            | Self::Remove { .. }
            | Self::Preserve { .. }
            | Self::DropSnap { .. }
            | Self::Zero { .. }
            | Self::Hole { .. }
            | Self::Share { .. }
            | Self::Size { .. }
            | Self::Version { .. }
            | Self::OmapSet { .. }
            | Self::OmapRemove { .. }
            | Self::OmapClear { .. }
            | Self::XattrSet { .. }
            | Self::XattrRemove { .. }
            | Self::Adopt { .. }
            | Self::Freed { .. } => &[],
        }
    }

    /// Whether it changes what `Store::generation` speaks of.
    pub(crate) fn changes_generation(&self) -> bool {
        matches!(
            self,
            Self::Create { .. }
                | Self::Revive { .. }
                | Self::Remove { .. }
                | Self::OmapSet { .. }
                | Self::OmapRemove { .. }
                | Self::OmapClear { .. }
                | Self::XattrSet { .. }
                | Self::XattrRemove { .. }
        )
    }

    /// Writes it behind what `e` holds.
    #[expect(clippy::too_many_lines, reason = "one arm for each kind of record")]
    pub(crate) fn encode(&self, e: &mut Encoder) {
        match self {
            Self::Pool { pool, name, read_only } => {
                e.u8(1);
                e.i64(*pool);
                e.string(name);
                e.bool(*read_only);
            }
            Self::PoolRemove { pool } => {
                e.u8(2);
                e.i64(*pool);
            }
            Self::SnapAllocate { pool, snap } => pool_snap(e, 3, *pool, *snap),
            Self::SnapRelease { pool, snap } => pool_snap(e, 4, *pool, *snap),
            Self::SnapTrimmed { pool, snap } => pool_snap(e, 5, *pool, *snap),
            Self::Create { inode, pool, namespace, name, snap_seq } => {
                e.u8(6);
                e.u64(*inode);
                e.i64(*pool);
                e.string(namespace);
                e.string(name);
                e.u64(*snap_seq);
            }
            Self::Revive { inode } => inode_only(e, 7, *inode),
            Self::Remove { inode } => inode_only(e, 8, *inode),
            Self::Preserve { inode, clone, snaps } => {
                e.u8(9);
                e.u64(*inode);
                e.u64(*clone);
                e.u32(count(snaps.len()));
                snaps.iter().for_each(|s| e.u64(*s));
            }
            Self::DropSnap { inode, snap } => {
                e.u8(10);
                e.u64(*inode);
                e.u64(*snap);
            }
            Self::Data { inode, block, crcs } => {
                e.u8(11);
                e.u64(*inode);
                e.u32(*block);
                encode_crcs(e, crcs);
            }
            Self::Zero { inode, block, count } => range(e, 12, *inode, *block, *count),
            Self::Hole { inode, block, count } => range(e, 13, *inode, *block, *count),
            Self::Share { source, count, inode, block } => {
                e.u8(14);
                encode_ref(e, source);
                e.u32(*count);
                e.u64(*inode);
                e.u32(*block);
            }
            Self::Size { inode, size } => {
                e.u8(15);
                e.u64(*inode);
                e.u64(*size);
            }
            Self::Version { inode, version } => {
                e.u8(16);
                e.u64(*inode);
                e.u64(*version);
            }
            Self::OmapSet { inode, key, value } => {
                e.u8(17);
                e.u64(*inode);
                e.blob(key);
                e.blob(value);
            }
            Self::OmapRemove { inode, key } => {
                e.u8(18);
                e.u64(*inode);
                e.blob(key);
            }
            Self::OmapClear { inode } => inode_only(e, 19, *inode),
            Self::XattrSet { inode, name, value } => {
                e.u8(20);
                e.u64(*inode);
                e.string(name);
                e.blob(value);
            }
            Self::XattrRemove { inode, name } => {
                e.u8(21);
                e.u64(*inode);
                e.string(name);
            }
            Self::Copied { refs, from, crcs } => {
                e.u8(22);
                e.u32(count(refs.len()));
                refs.iter().for_each(|r| encode_ref(e, r));
                e.u32(count(from.len()));
                from.iter().for_each(|a| e.u64(a.raw()));
                encode_crcs(e, crcs);
            }
            Self::Node { level, crc, key } => {
                e.u8(23);
                e.u8(*level);
                e.u32(*crc);
                e.blob(key);
            }
            Self::Table { crcs } => {
                e.u8(24);
                encode_crcs(e, crcs);
            }
            Self::Adopt { batch } => {
                e.u8(25);
                e.u64(batch.raw());
            }
            Self::Freed { segments } => {
                e.u8(FREED);
                e.u32(count(segments.len()));
                segments.iter().for_each(|s| e.u32(s.0));
            }
        }
    }

    /// Reads the next one.
    ///
    /// # Errors
    /// `Corrupt` where there is none.
    pub(crate) fn decode(d: &mut Decoder<'_>) -> Result<Self> {
        Ok(match d.u8()? {
            1 => Self::Pool { pool: d.i64()?, name: d.string()?, read_only: d.bool()? },
            2 => Self::PoolRemove { pool: d.i64()? },
            3 => Self::SnapAllocate { pool: d.i64()?, snap: d.u64()? },
            4 => Self::SnapRelease { pool: d.i64()?, snap: d.u64()? },
            5 => Self::SnapTrimmed { pool: d.i64()?, snap: d.u64()? },
            6 => Self::Create {
                inode: d.u64()?,
                pool: d.i64()?,
                namespace: d.string()?,
                name: d.string()?,
                snap_seq: d.u64()?,
            },
            7 => Self::Revive { inode: d.u64()? },
            8 => Self::Remove { inode: d.u64()? },
            9 => Self::Preserve { inode: d.u64()?, clone: d.u64()?, snaps: decode_list(d, 8, Decoder::u64)? },
            10 => Self::DropSnap { inode: d.u64()?, snap: d.u64()? },
            11 => Self::Data { inode: d.u64()?, block: d.u32()?, crcs: decode_list(d, 4, Decoder::u32)? },
            12 => Self::Zero { inode: d.u64()?, block: d.u32()?, count: d.u32()? },
            13 => Self::Hole { inode: d.u64()?, block: d.u32()?, count: d.u32()? },
            14 => Self::Share { source: decode_ref(d)?, count: d.u32()?, inode: d.u64()?, block: d.u32()? },
            15 => Self::Size { inode: d.u64()?, size: d.u64()? },
            16 => Self::Version { inode: d.u64()?, version: d.u64()? },
            17 => Self::OmapSet { inode: d.u64()?, key: blob(d)?, value: blob(d)? },
            18 => Self::OmapRemove { inode: d.u64()?, key: blob(d)? },
            19 => Self::OmapClear { inode: d.u64()? },
            20 => Self::XattrSet { inode: d.u64()?, name: d.string()?, value: blob(d)? },
            21 => Self::XattrRemove { inode: d.u64()?, name: d.string()? },
            22 => Self::Copied {
                refs: decode_list(d, 20, decode_ref)?,
                from: decode_list(d, 8, decode_address)?,
                crcs: decode_list(d, 4, Decoder::u32)?,
            },
            23 => Self::Node { level: d.u8()?, crc: d.u32()?, key: blob(d)? },
            24 => Self::Table { crcs: decode_list(d, 4, Decoder::u32)? },
            25 => Self::Adopt { batch: decode_address(d)? },
            FREED => Self::Freed { segments: decode_list(d, 4, decode_segment)? },
            other => return Err(Error::corrupt("unknown record in the log").with("kind", other)),
        })
    }

    /// The segments that a batch with these records frees: it is all that is in it then, so that whoever looks for such batches
    /// need not decode the others.
    pub(crate) fn freed_in(bytes: &[u8]) -> Option<Vec<SegmentNo>> {
        if bytes.first() != Some(&FREED) {
            return None;
        }
        match Self::decode(&mut Decoder::new(bytes)) {
            Ok(Self::Freed { segments }) => Some(segments),
            _ => None,
        }
    }

    /// All records of a batch.
    ///
    /// # Errors
    /// `Corrupt` where the bytes are not records.
    pub(crate) fn decode_all(bytes: &[u8]) -> Result<Vec<Self>> {
        let mut d = Decoder::new(bytes);
        let mut records = Vec::new();
        while !d.rest().is_empty() {
            records.push(Self::decode(&mut d)?);
        }
        Ok(records)
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).expect("a record's lists are bounded")
}

fn pool_snap(e: &mut Encoder, kind: u8, pool: i64, snap: u64) {
    e.u8(kind);
    e.i64(pool);
    e.u64(snap);
}

fn inode_only(e: &mut Encoder, kind: u8, inode: u64) {
    e.u8(kind);
    e.u64(inode);
}

fn range(e: &mut Encoder, kind: u8, inode: u64, block: u32, count: u32) {
    e.u8(kind);
    e.u64(inode);
    e.u32(block);
    e.u32(count);
}

fn encode_ref(e: &mut Encoder, r: &BlockRef) {
    e.u64(r.inode);
    e.u64(r.version);
    e.u32(r.block);
}

fn encode_crcs(e: &mut Encoder, crcs: &[u32]) {
    e.u32(count(crcs.len()));
    crcs.iter().for_each(|c| e.u32(*c));
}

fn decode_ref(d: &mut Decoder<'_>) -> Result<BlockRef> {
    Ok(BlockRef { inode: d.u64()?, version: d.u64()?, block: d.u32()? })
}

fn decode_address(d: &mut Decoder<'_>) -> Result<Address> {
    Address::from_raw(d.u64()?).ok_or_else(|| Error::corrupt("a record of the log points nowhere"))
}

fn decode_segment(d: &mut Decoder<'_>) -> Result<SegmentNo> {
    match d.u32()? {
        0 => Err(Error::corrupt("a record of the log frees a segment that cannot be")),
        no => Ok(SegmentNo(no)),
    }
}

fn blob(d: &mut Decoder<'_>) -> Result<Bytes> {
    Ok(Bytes::copy_from_slice(d.blob()?))
}

/// A counted list of items of at least `item` bytes each: the count is checked against what is there before anything is
/// allocated.
fn decode_list<'a, T>(
    d: &mut Decoder<'a>,
    item: usize,
    read: impl Fn(&mut Decoder<'a>) -> Result<T>,
) -> Result<Vec<T>> {
    let n = d.u32()? as usize;
    if n.saturating_mul(item) > d.rest().len() {
        return Err(Error::corrupt("a record's list is cut short").with("items", n));
    }
    (0..n).map(|_| read(d)).collect()
}
