//! That an image is being imported, noted on it: keys `ferry.pin.<uuid>` of its header. Layout: `docs/format/migration-record.md`.

use bytes::Bytes;
use ferry_core::denc::{Decoder, Encoder};
use ferry_core::{Result, SnapId};

use super::intent::MigrationPeer;
use super::refuse_newer;

/// Version written, and the newest understood.
const VERSION: u8 = 1;

/// What the keys begin with; the uuid of the import follows as 32 lower-case hex digits.
const PREFIX: &str = "ferry.pin.";

/// An import that reads snapshots of this image: they must stay until it is committed or aborted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportPin {
    /// The snapshots it reads, ascending.
    pub snaps: Vec<SnapId>,
    /// Its target.
    pub target: MigrationPeer,
    /// Whether a newer release wrote it.
    pub newer: bool,
}

impl ImportPin {
    /// Reads the value.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut d = Decoder::new(bytes);
        let pin = d.frame(VERSION, |d, version| {
            let target = MigrationPeer::decode(d)?;
            let mut snaps = Vec::new();
            for _ in 0..d.u32()? {
                snaps.push(SnapId(d.u64()?));
            }
            Ok(Self { snaps, target, newer: version > VERSION })
        })?;
        d.expect_end()?;
        Ok(pin)
    }

    /// The value to write.
    ///
    /// # Errors
    /// `Unsupported` where a newer release wrote what this was read from.
    ///
    /// # Panics
    /// Never: there are fewer than 4 billion snapshots.
    pub fn encode(&self) -> Result<Bytes> {
        refuse_newer(self.newer, PREFIX)?;
        let mut e = Encoder::new();
        e.frame(VERSION, 1, |e| {
            self.target.encode(e);
            e.u32(u32::try_from(self.snaps.len()).expect("snapshots fit 32 bits"));
            self.snaps.iter().for_each(|snap| e.u64(snap.0));
        });
        Ok(e.finish())
    }
}

/// Key of the pin of an import.
#[must_use]
pub fn pin_key(uuid: &[u8; 16]) -> Bytes {
    let digits: String = uuid.iter().map(|b| format!("{b:02x}")).collect();
    Bytes::from(format!("{PREFIX}{digits}"))
}

/// The import a key is the pin of; `None` for any other key.
#[must_use]
pub fn pinned_by(key: &[u8]) -> Option<[u8; 16]> {
    let digits = std::str::from_utf8(key.strip_prefix(PREFIX.as_bytes())?).ok()?;
    let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if digits.len() != 32 || !digits.bytes().all(lower) {
        return None;
    }
    u128::from_str_radix(digits, 16).ok().map(u128::to_be_bytes)
}
