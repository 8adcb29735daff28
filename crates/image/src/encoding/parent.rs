//! What a clone was made from: key `parent` of the header.

use bytes::Bytes;
use ferry_core::denc::{Decoder, Encoder};
use ferry_core::{Namespace, PoolId, Result, SnapId};

use super::refuse_newer;

/// Version written, and the newest understood.
const VERSION: u8 = 2;

/// A parent snapshot and how much of it HEAD shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentRecord {
    /// Pool of the parent image.
    pub pool: PoolId,
    /// Namespace of the parent image.
    pub namespace: Namespace,
    /// Id of the parent image.
    pub image_id: String,
    /// The parent's snapshot.
    pub snap: SnapId,
    /// Bytes of the parent visible from HEAD; `None` where HEAD was flattened and only snapshots use the parent.
    pub head_overlap: Option<u64>,
    /// Whether a newer release wrote it.
    pub newer: bool,
}

impl ParentRecord {
    /// A parent of HEAD that shows `overlap` bytes.
    #[must_use]
    pub fn new(pool: PoolId, namespace: &Namespace, image_id: &str, snap: SnapId, overlap: u64) -> Self {
        Self {
            pool,
            namespace: namespace.clone(),
            image_id: image_id.to_owned(),
            snap,
            head_overlap: Some(overlap),
            newer: false,
        }
    }

    /// Whether it names a snapshot at all: legacy snapshot records embed one that does not.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.pool.0 >= 0 && !self.image_id.is_empty() && self.snap != SnapId::HEAD
    }

    /// Whether both name the same snapshot.
    #[must_use]
    pub fn is_same_snapshot(&self, other: &Self) -> bool {
        self.pool == other.pool
            && self.namespace == other.namespace
            && self.image_id == other.image_id
            && self.snap == other.snap
    }

    /// Reads the next record.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    pub fn decode_from(d: &mut Decoder<'_>) -> Result<Self> {
        d.frame(VERSION, |d, version| {
            let pool = PoolId(d.i64()?);
            let namespace = if version >= 2 { Namespace::new(&d.string()?) } else { Namespace::default() };
            let image_id = d.string()?;
            let snap = SnapId(d.u64()?);
            let head_overlap = if version >= 2 { d.optional_u64()? } else { Some(d.u64()?) };
            Ok(Self { pool, namespace, image_id, snap, head_overlap, newer: version > VERSION })
        })
    }

    /// Reads a value that is one record.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut d = Decoder::new(bytes);
        let record = Self::decode_from(&mut d)?;
        d.expect_end()?;
        Ok(record)
    }

    /// The value to write.
    ///
    /// # Errors
    /// `Unsupported` where a newer release wrote what this was read from.
    pub fn encode(&self) -> Result<Bytes> {
        refuse_newer(self.newer, "parent")?;
        let mut e = Encoder::new();
        e.frame(VERSION, VERSION, |e| {
            e.i64(self.pool.0);
            e.string(self.namespace.as_str());
            e.string(&self.image_id);
            e.u64(self.snap.0);
            e.optional_u64(self.head_overlap);
        });
        Ok(e.finish())
    }
}
