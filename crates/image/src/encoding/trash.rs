//! An image in the trash: keys `id_*` of `rbd_trash`.

use bytes::Bytes;
use ferry_core::denc::{Decoder, Encoder};
use ferry_core::{Error, Result, Timestamp};

use super::refuse_newer;

/// Version written, and the newest understood. Its oldest reader is 1.
const VERSION: u8 = 2;

/// Why an image is in the trash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrashSource {
    /// A user put it there.
    User,
    /// A mirror did.
    Mirroring,
    /// It is the source of a migration.
    Migration,
    /// It is being removed.
    Removing,
    /// A user removed it while clones used its removed snapshots; it goes with the last of them.
    UserParent,
    /// A reason of another release.
    Unknown(u8),
}

impl TrashSource {
    /// The number on disk.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::User => 0,
            Self::Mirroring => 1,
            Self::Migration => 2,
            Self::Removing => 3,
            Self::UserParent => 4,
            Self::Unknown(code) => code,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            0 => Self::User,
            1 => Self::Mirroring,
            2 => Self::Migration,
            3 => Self::Removing,
            4 => Self::UserParent,
            other => Self::Unknown(other),
        }
    }
}

/// What is happening to an image in the trash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrashState {
    /// Nothing.
    Normal,
    /// It is on its way in.
    Moving,
    /// It is being removed.
    Removing,
    /// It is on its way out.
    Restoring,
    /// A state of another release.
    Unknown(u8),
}

impl TrashState {
    fn code(self) -> u8 {
        match self {
            Self::Normal => 0,
            Self::Moving => 1,
            Self::Removing => 2,
            Self::Restoring => 3,
            Self::Unknown(code) => code,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Normal,
            1 => Self::Moving,
            2 => Self::Removing,
            3 => Self::Restoring,
            other => Self::Unknown(other),
        }
    }
}

/// An image in the trash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrashEntry {
    /// Why it is there.
    pub source: TrashSource,
    /// The name it had.
    pub name: String,
    /// When it was put there.
    pub deleted: Timestamp,
    /// Until when it may only be removed by force.
    pub deferred_until: Timestamp,
    /// What is happening to it.
    pub state: TrashState,
    /// Whether a newer release wrote it.
    pub newer: bool,
}

impl TrashEntry {
    /// Reads the next entry.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    pub fn decode_from(d: &mut Decoder<'_>) -> Result<Self> {
        d.frame(VERSION, |d, version| {
            let (source, name) = (TrashSource::from_code(d.u8()?), d.string()?);
            let (deleted, deferred_until) = (d.timestamp()?, d.timestamp()?);
            let state = if version >= 2 { TrashState::from_code(d.u8()?) } else { TrashState::Normal };
            Ok(Self { source, name, deleted, deferred_until, state, newer: version > VERSION })
        })
    }

    /// Reads a value that is one entry.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut d = Decoder::new(bytes);
        let entry = Self::decode_from(&mut d)?;
        d.expect_end()?;
        Ok(entry)
    }

    fn encode_into(&self, e: &mut Encoder) {
        e.frame(VERSION, 1, |e| {
            e.u8(self.source.code());
            e.string(&self.name);
            e.timestamp(self.deleted);
            e.timestamp(self.deferred_until);
            e.u8(self.state.code());
        });
    }

    /// The value to write.
    ///
    /// # Errors
    /// `Unsupported` where a newer release wrote what this was read from.
    pub fn encode(&self) -> Result<Bytes> {
        refuse_newer(self.newer, "trash")?;
        let mut e = Encoder::new();
        self.encode_into(&mut e);
        Ok(e.finish())
    }
}

/// What watchers of `rbd_trash` are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrashNotice {
    /// An image came in.
    Added {
        /// Its id.
        id: String,
        /// Its entry.
        entry: TrashEntry,
    },
    /// An image went out.
    Removed {
        /// Its id.
        id: String,
    },
}

impl TrashNotice {
    /// Reads a message.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Decoder::new(bytes).frame(1, |d, _| match d.u32()? {
            0 => Ok(Self::Added { id: d.string()?, entry: TrashEntry::decode_from(d)? }),
            1 => Ok(Self::Removed { id: d.string()? }),
            other => Err(Error::unsupported("unknown notice about the trash").with("op", other)),
        })
    }

    /// The message to send.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut e = Encoder::new();
        e.frame(1, 1, |e| match self {
            Self::Added { id, entry } => {
                e.u32(0);
                e.string(id);
                entry.encode_into(e);
            }
            Self::Removed { id } => {
                e.u32(1);
                e.string(id);
            }
        });
        e.finish()
    }
}
