//! Ferry's own bookkeeping of a migration: key `ferry.migration` of the headers of both ends.
//!
//! The key `migration` beside it holds only what `rbd` knows. Layout: `docs/format/migration-record.md`.

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_core::denc::{Decoder, Encoder};
use ferry_core::{Error, Namespace, PoolId, Result, SnapId};

use super::refuse_newer;

/// The newest version understood, and the one written where there is an [`Origin`]; else version 1 is written.
const VERSION: u8 = 2;

/// The key in the header.
pub const KEY_INTENT: &str = "ferry.migration";

/// What ferry means to do, beyond the states of `rbd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationPhase {
    /// The states of `rbd` say all.
    Underway,
    /// On the source: the target is being, or has been, made a plain image. No way back.
    Committing,
    /// On a target that is a plain image already: its source is still to be removed.
    Committed,
    /// On a source that is a plain image again: its target is still to be removed.
    Aborted,
}

impl MigrationPhase {
    fn code(self) -> u8 {
        match self {
            Self::Underway => 0,
            Self::Committing => 1,
            Self::Committed => 2,
            Self::Aborted => 3,
        }
    }

    fn from_code(code: u8) -> Result<Self> {
        match code {
            0 => Ok(Self::Underway),
            1 => Ok(Self::Committing),
            2 => Ok(Self::Committed),
            3 => Ok(Self::Aborted),
            other => Err(Error::corrupt("unknown phase of a migration").with("code", other)),
        }
    }
}

/// Where the other end is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationPeer {
    /// Identity of its store.
    pub store: [u8; 16],
    /// Where that store was at prepare: a directory, a cluster. A hint.
    pub place: String,
    /// Its pool.
    pub pool: PoolId,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
}

impl MigrationPeer {
    pub(super) fn decode(d: &mut Decoder<'_>) -> Result<Self> {
        Ok(Self {
            store: bytes16(d)?,
            place: d.string()?,
            pool: PoolId(d.i64()?),
            namespace: Namespace::new(&d.string()?),
            name: d.string()?,
            id: d.string()?,
        })
    }

    pub(super) fn encode(&self, e: &mut Encoder) {
        e.raw(&self.store);
        e.string(&self.place);
        e.i64(self.pool.0);
        e.string(self.namespace.as_str());
        e.string(&self.name);
        e.string(&self.id);
    }
}

/// The target as it was at prepare: a point that only ferry knows. What is written to the target later leaves it alone, so
/// that it tells what was copied from what was written since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BasePoint {
    /// Its id, allocated like that of a snapshot.
    pub snap: SnapId,
    /// Size of the image then. Bytes.
    pub size: u64,
    /// How much of the parent HEAD showed then. Bytes.
    pub parent_overlap: Option<u64>,
    /// The largest size of HEAD and all snapshots then. Bytes.
    pub largest: u64,
}

/// Where the target of an import takes its data from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This snapshot, and those before it, of the image at the other end.
    Snapshot(SnapId),
    /// What the record's source spec names, and what that said of itself at prepare
    /// ([`ferry_core::source::BlockSource::pin`]).
    Foreign {
        /// Another pin later means other bytes.
        pin: String,
    },
}

/// The value of the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationIntent {
    /// The same on both ends, and of no other migration.
    pub uuid: [u8; 16],
    /// What is meant to be done.
    pub phase: MigrationPhase,
    /// The other end.
    pub peer: MigrationPeer,
    /// On the target: the point of prepare.
    pub base: Option<BasePoint>,
    /// On the target: how much of the source each snapshot taken since prepare shows. Bytes by snapshot id.
    pub overlaps: BTreeMap<u64, u64>,
    /// On the target of an import: what is imported. There is no record at the other end then.
    pub origin: Option<Origin>,
    /// Of an import: all objects below this number have been copied.
    pub cursor: u64,
    /// Whether a newer release wrote it.
    pub newer: bool,
}

impl MigrationIntent {
    /// Reads the value.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut d = Decoder::new(bytes);
        let intent = d.frame(VERSION, |d, version| {
            let uuid = bytes16(d)?;
            let phase = MigrationPhase::from_code(d.u8()?)?;
            let peer = MigrationPeer::decode(d)?;
            let base = if d.bool()? {
                Some(BasePoint {
                    snap: SnapId(d.u64()?),
                    size: d.u64()?,
                    parent_overlap: d.optional_u64()?,
                    largest: d.u64()?,
                })
            } else {
                None
            };
            let mut overlaps = BTreeMap::new();
            for _ in 0..d.u32()? {
                overlaps.insert(d.u64()?, d.u64()?);
            }
            let (origin, cursor) = if version >= 2 { (origin(d)?, d.u64()?) } else { (None, 0) };
            Ok(Self { uuid, phase, peer, base, overlaps, origin, cursor, newer: version > VERSION })
        })?;
        d.expect_end()?;
        Ok(intent)
    }

    /// The value to write.
    ///
    /// # Errors
    /// `Unsupported` where a newer release wrote what this was read from.
    ///
    /// # Panics
    /// Never: there are fewer than 4 billion snapshots.
    pub fn encode(&self) -> Result<Bytes> {
        refuse_newer(self.newer, KEY_INTENT)?;
        // Who does not know of origins must not take the target for that of an image.
        let version = if self.origin.is_some() { VERSION } else { 1 };
        let mut e = Encoder::new();
        e.frame(version, version, |e| {
            e.raw(&self.uuid);
            e.u8(self.phase.code());
            self.peer.encode(e);
            e.bool(self.base.is_some());
            if let Some(base) = &self.base {
                e.u64(base.snap.0);
                e.u64(base.size);
                e.optional_u64(base.parent_overlap);
                e.u64(base.largest);
            }
            e.u32(u32::try_from(self.overlaps.len()).expect("snapshots fit 32 bits"));
            for (snap, overlap) in &self.overlaps {
                e.u64(*snap);
                e.u64(*overlap);
            }
            if let Some(origin) = &self.origin {
                match origin {
                    Origin::Snapshot(snap) => {
                        e.u8(1);
                        e.u64(snap.0);
                    }
                    Origin::Foreign { pin } => {
                        e.u8(2);
                        e.string(pin);
                    }
                }
                e.u64(self.cursor);
            }
        });
        Ok(e.finish())
    }
}

fn origin(d: &mut Decoder<'_>) -> Result<Option<Origin>> {
    match d.u8()? {
        0 => Ok(None),
        1 => Ok(Some(Origin::Snapshot(SnapId(d.u64()?)))),
        2 => Ok(Some(Origin::Foreign { pin: d.string()? })),
        other => Err(Error::corrupt("unknown origin of an import").with("code", other)),
    }
}

pub(super) fn bytes16(d: &mut Decoder<'_>) -> Result<[u8; 16]> {
    let mut array = [0; 16];
    array.copy_from_slice(d.raw(16)?);
    Ok(array)
}
