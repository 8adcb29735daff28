//! One snapshot: keys `snapshot_*` of the header.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ferry_core::denc::{Decoder, Encoder};
use ferry_core::{Error, PoolId, Result, SnapId, Timestamp};

use super::{ParentRecord, refuse_newer};

/// Version written, and the newest understood. Records whose oldest reader is below 8 have another order of fields.
const VERSION: u8 = 8;
/// Version of the namespace frame.
const NAMESPACE_VERSION: u8 = 1;

/// Whether a snapshot may be removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protection {
    /// It may, unless it has children.
    #[default]
    Unprotected,
    /// Somebody looks for v1 children, or was killed while doing so.
    Unprotecting,
    /// It may not.
    Protected,
}

impl Protection {
    fn code(self) -> u8 {
        match self {
            Self::Unprotected => 0,
            Self::Unprotecting => 1,
            Self::Protected => 2,
        }
    }

    fn from_code(code: u8) -> Result<Self> {
        match code {
            0 => Ok(Self::Unprotected),
            1 => Ok(Self::Unprotecting),
            2 => Ok(Self::Protected),
            other => Err(Error::corrupt("unknown protection of a snapshot").with("code", other)),
        }
    }
}

/// A snapshot of a mirrored image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorSnapshot {
    /// 0 primary, 1 primary demoted, 2 non-primary, 3 non-primary demoted.
    pub state: u8,
    /// Whether the copy is complete.
    pub complete: bool,
    /// Peers that still need it.
    pub peers: BTreeSet<String>,
    /// Who is primary.
    pub primary_uuid: String,
    /// The primary's snapshot; for primary states the snapshot since which nothing changed.
    pub primary_snap: SnapId,
    /// The last object copied.
    pub last_object: u64,
    /// The primary's snapshot ids and ours.
    pub snap_seqs: BTreeMap<u64, u64>,
}

/// Who a snapshot belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SnapshotNamespace {
    /// A user.
    #[default]
    User,
    /// A consistency group.
    Group {
        /// Pool of the group.
        pool: PoolId,
        /// Id of the group.
        group: String,
        /// Id of the group's snapshot.
        snapshot: String,
    },
    /// Nobody: it was removed while v2 clones still used it.
    Trash {
        /// Its name before.
        original_name: String,
        /// Its type before, as on disk (0 is a user's).
        original_type: u32,
    },
    /// A mirror.
    Mirror(MirrorSnapshot),
    /// Something of another release: kept, never removed or cloned.
    Unknown {
        /// Its type on disk.
        code: u32,
        /// What follows the type.
        payload: Bytes,
    },
}

impl SnapshotNamespace {
    /// The type on disk.
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            Self::User => 0,
            Self::Group { .. } => 1,
            Self::Trash { .. } => 2,
            Self::Mirror(_) => 3,
            Self::Unknown { code, .. } => *code,
        }
    }

    /// Whether it is a user's.
    #[must_use]
    pub fn is_user(&self) -> bool {
        matches!(self, Self::User)
    }

    /// Whether it is in the trash.
    #[must_use]
    pub fn is_trash(&self) -> bool {
        matches!(self, Self::Trash { .. })
    }

    /// Reads the next namespace and whether a newer release wrote it.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    pub fn decode_from(d: &mut Decoder<'_>) -> Result<(Self, bool)> {
        d.frame(NAMESPACE_VERSION, |d, version| {
            let namespace = match d.u32()? {
                0 => Self::User,
                1 => Self::Group { pool: PoolId(d.i64()?), group: d.string()?, snapshot: d.string()? },
                2 => Self::Trash { original_name: d.string()?, original_type: d.u32()? },
                3 => Self::Mirror(MirrorSnapshot::decode_from(d)?),
                code => Self::Unknown { code, payload: Bytes::copy_from_slice(d.rest()) },
            };
            Ok((namespace, version > NAMESPACE_VERSION))
        })
    }

    /// Writes it.
    pub fn encode_into(&self, e: &mut Encoder) {
        e.frame(NAMESPACE_VERSION, NAMESPACE_VERSION, |e| {
            e.u32(self.code());
            match self {
                Self::User => {}
                Self::Group { pool, group, snapshot } => {
                    e.i64(pool.0);
                    e.string(group);
                    e.string(snapshot);
                }
                Self::Trash { original_name, original_type } => {
                    e.string(original_name);
                    e.u32(*original_type);
                }
                Self::Mirror(mirror) => mirror.encode_into(e),
                Self::Unknown { payload, .. } => e.raw(payload),
            }
        });
    }
}

impl MirrorSnapshot {
    fn decode_from(d: &mut Decoder<'_>) -> Result<Self> {
        let (state, complete) = (d.u8()?, d.bool()?);
        let mut peers = BTreeSet::new();
        for _ in 0..d.u32()? {
            peers.insert(d.string()?);
        }
        let (primary_uuid, primary_snap, last_object) = (d.string()?, SnapId(d.u64()?), d.u64()?);
        let mut snap_seqs = BTreeMap::new();
        for _ in 0..d.u32()? {
            snap_seqs.insert(d.u64()?, d.u64()?);
        }
        Ok(Self { state, complete, peers, primary_uuid, primary_snap, last_object, snap_seqs })
    }

    fn encode_into(&self, e: &mut Encoder) {
        e.u8(self.state);
        e.bool(self.complete);
        e.u32(u32::try_from(self.peers.len()).expect("few peers"));
        for peer in &self.peers {
            e.string(peer);
        }
        e.string(&self.primary_uuid);
        e.u64(self.primary_snap.0);
        e.u64(self.last_object);
        e.u32(u32::try_from(self.snap_seqs.len()).expect("few snapshots"));
        for (from, to) in &self.snap_seqs {
            e.u64(*from);
            e.u64(*to);
        }
    }
}

/// One snapshot of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Its id, as in the key.
    pub id: SnapId,
    /// Its name; random for one in the trash.
    pub name: String,
    /// Size of the image then. Bytes.
    pub size: u64,
    /// Whether it may be removed.
    pub protection: Protection,
    /// Validity of this snapshot's object map, as the header's `flags`.
    pub flags: u64,
    /// Who it belongs to.
    pub namespace: SnapshotNamespace,
    /// When it was made; zero where unknown.
    pub timestamp: Timestamp,
    /// How many v2 clones it has.
    pub child_count: u32,
    /// Bytes of the image's parent visible in it; `None` where it has no parent.
    pub parent_overlap: Option<u64>,
    /// The parent an old release kept in the record; moved to key `parent` when the record is next written.
    pub legacy_parent: Option<ParentRecord>,
    /// Whether a newer release wrote it.
    pub newer: bool,
}

impl SnapshotRecord {
    /// A user's new snapshot.
    #[must_use]
    pub fn new(id: SnapId, name: &str, size: u64) -> Self {
        Self {
            id,
            name: name.to_owned(),
            size,
            protection: Protection::Unprotected,
            flags: 0,
            namespace: SnapshotNamespace::User,
            timestamp: Timestamp::default(),
            child_count: 0,
            parent_overlap: None,
            legacy_parent: None,
            newer: false,
        }
    }

    /// Bytes of the parent visible in this snapshot, wherever the record keeps that.
    #[must_use]
    pub fn overlap(&self) -> Option<u64> {
        self.parent_overlap.or_else(|| self.legacy_parent.as_ref().and_then(|p| p.head_overlap))
    }

    /// Reads a value that is one record.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let is_legacy = bytes.get(1).is_some_and(|compat| *compat < 8);
        let mut d = Decoder::new(bytes);
        let record = d.frame(VERSION, |d, version| Self::decode_body(d, version, is_legacy))?;
        d.expect_end()?;
        Ok(record)
    }

    fn decode_body(d: &mut Decoder<'_>, version: u8, is_legacy: bool) -> Result<Self> {
        let (id, name, size) = (SnapId(d.u64()?), d.string()?, d.u64()?);
        let mut record = Self { newer: version > VERSION, ..Self::new(id, &name, size) };
        if is_legacy {
            d.u64()?; // features, unused
            if version >= 2 {
                record.legacy_parent = Some(ParentRecord::decode_from(d)?).filter(ParentRecord::exists);
            }
        }
        if version >= 3 {
            record.protection = Protection::from_code(d.u8()?)?;
        }
        if version >= 4 {
            record.flags = d.u64()?;
        }
        if version >= 5 {
            let (namespace, newer) = SnapshotNamespace::decode_from(d)?;
            record.namespace = namespace;
            record.newer |= newer;
        }
        if version >= 6 {
            record.timestamp = d.timestamp()?;
        }
        if version >= 7 {
            record.child_count = d.u32()?;
        }
        if version >= 8 {
            record.parent_overlap = d.optional_u64()?;
        }
        Ok(record)
    }

    /// The value to write. A parent an old release kept in the record is left out: it belongs in key `parent`.
    ///
    /// # Errors
    /// `Unsupported` where a newer release wrote what this was read from.
    pub fn encode(&self) -> Result<Bytes> {
        refuse_newer(self.newer, "snapshot")?;
        let mut e = Encoder::new();
        e.frame(VERSION, VERSION, |e| {
            e.u64(self.id.0);
            e.string(&self.name);
            e.u64(self.size);
            e.u8(self.protection.code());
            e.u64(self.flags);
            self.namespace.encode_into(e);
            e.timestamp(self.timestamp);
            e.u32(self.child_count);
            e.optional_u64(self.overlap());
        });
        Ok(e.finish())
    }
}
