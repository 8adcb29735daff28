//! A migration under way: key `migration` of the headers of both ends.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use ferry_core::denc::{Decoder, Encoder};
use ferry_core::{Error, Namespace, PoolId, Result, SnapId};

use super::{refuse_newer, v1_header_object};

/// Version written, and the newest understood.
const VERSION: u8 = 3;

/// Which end of a migration an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationSide {
    /// What is moved.
    Source,
    /// Where it goes.
    Target,
}

/// How far a migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationState {
    /// It went wrong; only an abort helps.
    Error,
    /// The target is being made.
    Preparing,
    /// The target reads through to the source.
    Prepared,
    /// Data is being copied.
    Executing,
    /// All data is on the target.
    Executed,
    /// The target is being taken away.
    Aborting,
    /// A state of another release.
    Unknown(u8),
}

impl MigrationState {
    /// The number on disk.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Error => 0,
            Self::Preparing => 1,
            Self::Prepared => 2,
            Self::Executing => 3,
            Self::Executed => 4,
            Self::Aborting => 5,
            Self::Unknown(code) => code,
        }
    }

    /// The state of a number on disk.
    #[must_use]
    pub fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Error,
            1 => Self::Preparing,
            2 => Self::Prepared,
            3 => Self::Executing,
            4 => Self::Executed,
            5 => Self::Aborting,
            other => Self::Unknown(other),
        }
    }
}

impl fmt::Display for MigrationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Preparing => "preparing",
            Self::Prepared => "prepared",
            Self::Executing => "executing",
            Self::Executed => "executed",
            Self::Aborting => "aborting",
            Self::Unknown(_) => "unknown",
        })
    }
}

/// The source spec of a record whose other end is in another store. Pool numbers mean nothing there, so `rbd` must not look
/// for it: it refuses specs of types it does not know. The note beside the record tells where the other end is.
const FAR_SPEC: &str = r#"{"type":"ferry"}"#;

/// The oldest reader of such a record, until all data is here: none that `rbd` will be for long. The spec alone would not keep
/// `rbd migration abort` away, which removes the target of an import without looking at its source: what was written since
/// prepare would be lost.
const FERRY_ONLY: u8 = 0xff;

/// The pool in such a record: none.
const NO_POOL: PoolId = PoolId(-1);

/// One end's record of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationRecord {
    /// Which end this is.
    pub side: MigrationSide,
    /// Pool of the other end; -1 where that is foreign or in another store.
    pub pool: PoolId,
    /// Namespace of the other end.
    pub namespace: Namespace,
    /// Name of the image at the other end.
    pub image_name: String,
    /// Id of the image at the other end; empty where it has none, as those of format 1.
    pub image_id: String,
    /// The source's snapshots and the target's; empty on the source.
    pub snap_seqs: BTreeMap<u64, u64>,
    /// Size of the source at prepare; 0 on the source. Bytes.
    pub overlap: u64,
    /// Whether the target takes the parent's data too.
    pub flatten: bool,
    /// Whether mirroring is enabled again in the end.
    pub mirroring: bool,
    /// How far it is.
    pub state: MigrationState,
    /// Free text for people.
    pub description: String,
    /// 0 journal, 1 snapshot.
    pub mirror_mode: u8,
    /// JSON that tells where a foreign source is, or that the other end is in another store; else empty.
    pub source_spec: String,
    /// Whether a newer release wrote it.
    pub newer: bool,
}

impl MigrationRecord {
    /// The same, of a migration whose other end is in another store.
    #[must_use]
    pub fn far(self) -> Self {
        Self { pool: NO_POOL, source_spec: FAR_SPEC.to_owned(), ..self }
    }

    /// Whether the other end is in another store: only the note tells where.
    #[must_use]
    pub fn is_far(&self) -> bool {
        self.source_spec == FAR_SPEC
    }

    /// Whether the source is named by a source spec.
    #[must_use]
    pub fn is_import(&self) -> bool {
        !self.source_spec.is_empty() && !self.is_far()
    }

    /// Reads the value of key `migration`.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        // Everything else about it is as in other records.
        let known = if bytes.starts_with(&[VERSION, FERRY_ONLY]) { FERRY_ONLY } else { VERSION };
        let mut d = Decoder::new(bytes);
        let record = d.frame(known, |d, version| {
            let side = match d.u8()? {
                1 => MigrationSide::Source,
                2 => MigrationSide::Target,
                other => return Err(Error::corrupt("unknown end of a migration").with("code", other)),
            };
            let (pool, namespace) = (PoolId(d.i64()?), Namespace::new(&d.string()?));
            let (image_name, image_id) = (d.string()?, d.string()?);
            let mut snap_seqs = BTreeMap::new();
            for _ in 0..d.u32()? {
                snap_seqs.insert(d.u64()?, d.u64()?);
            }
            let (overlap, flatten, mirroring) = (d.u64()?, d.bool()?, d.bool()?);
            let (state, description) = (MigrationState::from_code(d.u8()?), d.string()?);
            let mirror_mode = if version >= 2 { d.u8()? } else { 0 };
            let source_spec = if version >= 3 { d.string()? } else { String::new() };
            Ok(Self {
                side,
                pool,
                namespace,
                image_name,
                image_id,
                snap_seqs,
                overlap,
                flatten,
                mirroring,
                state,
                description,
                mirror_mode,
                source_spec,
                newer: version > VERSION,
            })
        })?;
        d.expect_end()?;
        Ok(record)
    }

    /// The value to write.
    ///
    /// # Errors
    /// `Unsupported` where a newer release wrote what this was read from.
    ///
    /// # Panics
    /// Never: there are fewer than 4 billion snapshots.
    pub fn encode(&self) -> Result<Bytes> {
        refuse_newer(self.newer, "migration")?;
        let compat = if self.source_spec.is_empty() {
            1
        } else if self.is_far() && self.state != MigrationState::Executed {
            FERRY_ONLY
        } else {
            VERSION
        };
        let mut e = Encoder::new();
        e.frame(VERSION, compat, |e| {
            e.u8(match self.side {
                MigrationSide::Source => 1,
                MigrationSide::Target => 2,
            });
            e.i64(self.pool.0);
            e.string(self.namespace.as_str());
            e.string(&self.image_name);
            e.string(&self.image_id);
            e.u32(u32::try_from(self.snap_seqs.len()).expect("snapshots fit 32 bits"));
            for (source, target) in &self.snap_seqs {
                e.u64(*source);
                e.u64(*target);
            }
            e.u64(self.overlap);
            e.bool(self.flatten);
            e.bool(self.mirroring);
            e.u8(self.state.code());
            e.string(&self.description);
            e.u8(self.mirror_mode);
            e.string(&self.source_spec);
        });
        Ok(e.finish())
    }

    /// What the image at the other end goes by; see [`super::format1_name`].
    #[must_use]
    pub fn peer_id(&self) -> Cow<'_, str> {
        let is_format1 = self.image_id.is_empty() && !self.image_name.is_empty();
        if is_format1 { v1_header_object(&self.image_name).into() } else { self.image_id.as_str().into() }
    }

    /// Where snapshot `target` of the target comes from, if it was there at prepare.
    #[must_use]
    pub fn source_snap(&self, target: SnapId) -> Option<SnapId> {
        self.snap_seqs.iter().find(|(_, t)| **t == target.0).map(|(s, _)| SnapId(*s))
    }
}
