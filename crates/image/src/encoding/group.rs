//! Which consistency group an image is in: key `rbd_group_ref` of the header.

use bytes::Bytes;
use ferry_core::denc::{Decoder, Encoder};
use ferry_core::{PoolId, Result};

use super::refuse_newer;

/// Version written, and the newest understood.
const VERSION: u8 = 1;

/// A consistency group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRef {
    /// Its pool; -1 for none.
    pub pool: PoolId,
    /// Its id; empty for none.
    pub group: String,
    /// Whether a newer release wrote it.
    pub newer: bool,
}

impl GroupRef {
    /// Whether it names a group.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.pool.0 >= 0 && !self.group.is_empty()
    }

    /// Reads the value of key `rbd_group_ref`.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut d = Decoder::new(bytes);
        let group = d.frame(VERSION, |d, version| {
            Ok(Self { pool: PoolId(d.i64()?), group: d.string()?, newer: version > VERSION })
        })?;
        d.expect_end()?;
        Ok(group)
    }

    /// The value to write.
    ///
    /// # Errors
    /// `Unsupported` where a newer release wrote what this was read from.
    pub fn encode(&self) -> Result<Bytes> {
        refuse_newer(self.newer, "group reference")?;
        let mut e = Encoder::new();
        e.frame(VERSION, VERSION, |e| {
            e.i64(self.pool.0);
            e.string(&self.group);
        });
        Ok(e.finish())
    }
}
