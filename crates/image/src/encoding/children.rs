//! Back references from a snapshot to its clones.
//!
//! A v2 clone stands in `snap_children_*` of the parent's header; a v1 clone in `rbd_children` of its own pool.

use std::collections::BTreeSet;

use bytes::Bytes;
use ferry_core::denc::{Decoder, Encoder};
use ferry_core::{Namespace, PoolId, Result, SnapId};

use super::refuse_newer;

/// Version of a child's frame written, and the newest understood. Its oldest reader is 1.
const VERSION: u8 = 2;

/// A clone. Ordered by pool, namespace and id, as the sets are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChildSpec {
    /// Pool of the clone.
    pub pool: PoolId,
    /// Namespace of the clone.
    pub namespace: Namespace,
    /// Image id of the clone.
    pub image_id: String,
}

impl ChildSpec {
    /// What the methods `child_attach` and `child_detach` of the class `rbd` take: the parent's snapshot and the clone.
    #[must_use]
    pub fn class_input(&self, snap: SnapId) -> Bytes {
        let mut e = Encoder::new();
        e.u64(snap.0);
        self.encode(&mut e);
        e.finish()
    }

    fn encode(&self, e: &mut Encoder) {
        e.frame(VERSION, 1, |e| {
            e.i64(self.pool.0);
            e.string(&self.image_id);
            e.string(self.namespace.as_str());
        });
    }
}

/// The v2 clones of one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Children {
    /// The clones.
    pub set: BTreeSet<ChildSpec>,
    /// Whether a newer release wrote one of them.
    pub newer: bool,
}

impl Children {
    /// Reads the value of a key `snap_children_*`; no bytes are no children.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut children = Self::default();
        if bytes.is_empty() {
            return Ok(children);
        }
        let mut d = Decoder::new(bytes);
        for _ in 0..d.u32()? {
            let (child, newer) = d.frame(VERSION, |d, version| {
                let (pool, image_id) = (PoolId(d.i64()?), d.string()?);
                let namespace =
                    if version >= 2 { Namespace::new(&d.string()?) } else { Namespace::default() };
                Ok((ChildSpec { pool, namespace, image_id }, version > VERSION))
            })?;
            children.set.insert(child);
            children.newer |= newer;
        }
        d.expect_end()?;
        Ok(children)
    }

    /// The value to write.
    ///
    /// # Errors
    /// `Unsupported` where a newer release wrote what this was read from.
    ///
    /// # Panics
    /// Never: there are fewer than 4 billion children.
    pub fn encode(&self) -> Result<Bytes> {
        refuse_newer(self.newer, "snap_children")?;
        let mut e = Encoder::new();
        e.u32(u32::try_from(self.set.len()).expect("children fit 32 bits"));
        self.set.iter().for_each(|child| child.encode(&mut e));
        Ok(e.finish())
    }
}

/// Key of a parent snapshot in `rbd_children`: binary, with NULs.
#[must_use]
pub fn v1_children_key(pool: PoolId, image_id: &str, snap: SnapId) -> Bytes {
    let mut e = Encoder::new();
    e.i64(pool.0);
    e.string(image_id);
    e.u64(snap.0);
    e.finish()
}

/// The image ids of the v1 clones, in one pool and namespace, of one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct V1Children(pub BTreeSet<String>);

impl V1Children {
    /// Reads a value of `rbd_children`; no bytes are no children.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut set = BTreeSet::new();
        if bytes.is_empty() {
            return Ok(Self(set));
        }
        let mut d = Decoder::new(bytes);
        for _ in 0..d.u32()? {
            set.insert(d.string()?);
        }
        d.expect_end()?;
        Ok(Self(set))
    }

    /// The value to write.
    ///
    /// # Panics
    /// Never: there are fewer than 4 billion children.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut e = Encoder::new();
        e.u32(u32::try_from(self.0.len()).expect("children fit 32 bits"));
        for id in &self.0 {
            e.string(id);
        }
        e.finish()
    }
}
