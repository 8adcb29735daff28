//! What the index says of an object and of a pool, tables and omap apart. Layout: `docs/format/index.md`.

use ferry_core::denc::{Decoder, Encoder};
use ferry_core::{Error, Namespace, ObjectId, PoolId, Result};

/// Version of the object and pool records.
const VERSION: u8 = 1;

/// A preserved version of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CloneRecord {
    /// Its id: the sequence of the snapshot context that made it.
    pub(crate) id: u64,
    /// Its size. Bytes.
    pub(crate) size: u64,
    /// The snapshots that read it, ascending.
    pub(crate) snaps: Vec<u64>,
}

/// An object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ObjectRecord {
    /// Where it is found by name.
    pub(crate) id: ObjectId,
    /// Whether HEAD exists; if not, preserved versions do.
    pub(crate) exists: bool,
    /// Version of the object.
    pub(crate) version: u64,
    /// Size of HEAD. Bytes.
    pub(crate) size: u64,
    /// Newest snapshot context it was written under.
    pub(crate) snap_seq: u64,
    /// Preserved versions, oldest first.
    pub(crate) clones: Vec<CloneRecord>,
}

impl ObjectRecord {
    /// Blocks HEAD's size covers.
    pub(crate) fn blocks(&self) -> u32 {
        blocks_of(self.size)
    }

    /// Its form in the index.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new();
        e.u8(VERSION);
        e.i64(self.id.pool.0);
        e.string(self.id.namespace.as_str());
        e.string(&self.id.name);
        e.bool(self.exists);
        e.u64(self.version);
        e.u64(self.size);
        e.u64(self.snap_seq);
        e.u32(u32::try_from(self.clones.len()).expect("bounded by the snapshots of a pool"));
        for clone in &self.clones {
            e.u64(clone.id);
            e.u64(clone.size);
            e.u32(u32::try_from(clone.snaps.len()).expect("bounded by the snapshots of a pool"));
            clone.snaps.iter().for_each(|s| e.u64(*s));
        }
        e.finish().to_vec()
    }

    /// Reads its form in the index.
    ///
    /// # Errors
    /// `Corrupt` where it is not one.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut d = Decoder::new(bytes);
        expect_version(d.u8()?)?;
        let pool = PoolId(d.i64()?);
        let namespace = Namespace::new(&d.string()?);
        let id = ObjectId::new(pool, &namespace, &d.string()?);
        let (exists, version, size, snap_seq) = (d.bool()?, d.u64()?, d.u64()?, d.u64()?);
        let mut clones = Vec::new();
        for _ in 0..d.u32()? {
            let (id, size) = (d.u64()?, d.u64()?);
            let mut snaps = Vec::new();
            for _ in 0..d.u32()? {
                snaps.push(d.u64()?);
            }
            clones.push(CloneRecord { id, size, snaps });
        }
        d.expect_end()?;
        Ok(Self { id, exists, version, size, snap_seq, clones })
    }
}

/// Blocks that `size` bytes cover.
pub(crate) fn blocks_of(size: u64) -> u32 {
    u32::try_from(size.div_ceil(ferry_core::limits::BLOCK_SIZE)).expect("objects are bounded")
}

/// A pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PoolRecord {
    /// Its name.
    pub(crate) name: String,
    /// Whether writes are refused.
    pub(crate) read_only: bool,
    /// Highest snapshot id given out.
    pub(crate) snap_seq: u64,
    /// Objects that exist at HEAD.
    pub(crate) objects: u64,
    /// Blocks mapped by all versions of its objects.
    pub(crate) blocks: u64,
}

impl PoolRecord {
    /// Its form in the index.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new();
        e.u8(VERSION);
        e.string(&self.name);
        e.bool(self.read_only);
        e.u64(self.snap_seq);
        e.u64(self.objects);
        e.u64(self.blocks);
        e.finish().to_vec()
    }

    /// Reads its form in the index.
    ///
    /// # Errors
    /// `Corrupt` where it is not one.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut d = Decoder::new(bytes);
        expect_version(d.u8()?)?;
        let record = Self {
            name: d.string()?,
            read_only: d.bool()?,
            snap_seq: d.u64()?,
            objects: d.u64()?,
            blocks: d.u64()?,
        };
        d.expect_end()?;
        Ok(record)
    }
}

fn expect_version(version: u8) -> Result<()> {
    if version == VERSION {
        Ok(())
    } else {
        Err(Error::corrupt("a record of the index is of an unknown version").with("version", version))
    }
}
