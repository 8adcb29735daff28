//! Imports that read snapshots of this image.

use ferry_core::{Error, Result, SnapId};

use super::Header;
use crate::encoding::{ImportPin, pin_key, pinned_by};

impl Header {
    /// The imports that read this image, by their uuids.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    pub fn pins(&self) -> Result<Vec<([u8; 16], ImportPin)>> {
        let pins = self.other.iter().filter_map(|(key, value)| pinned_by(key).map(|uuid| (uuid, value)));
        pins.map(|(uuid, value)| Ok((uuid, ImportPin::decode(value)?))).collect()
    }

    /// Keeps snapshots from being removed until the import has ended.
    ///
    /// # Errors
    /// `NotFound` (2) where one is gone.
    pub fn add_pin(&mut self, uuid: &[u8; 16], pin: &ImportPin) -> Result<()> {
        for snap in &pin.snaps {
            self.snap(*snap)?;
        }
        self.other.insert(pin_key(uuid), pin.encode()?);
        Ok(())
    }

    /// Lets the snapshots go; nothing where there is no such pin.
    pub fn remove_pin(&mut self, uuid: &[u8; 16]) {
        self.other.remove(&pin_key(uuid));
    }

    /// Refuses to do away with a snapshot that an import reads.
    ///
    /// # Errors
    /// `Busy` (16), with the import's target as facts `pinned_by` and `place`.
    pub fn check_unpinned(&self, snap: SnapId) -> Result<()> {
        let Some((_, pin)) = self.pins()?.into_iter().find(|(_, pin)| pin.snaps.contains(&snap)) else {
            return Ok(());
        };
        Err(Error::busy("snapshot is being imported: commit or abort the import first")
            .with("id", snap)
            .with("pinned_by", &pin.target.name)
            .with("place", &pin.target.place))
    }
}
