//! Images as block devices of this machine's kernel.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::spec::SnapSpec;

/// Mapping images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceCommand {
    /// Map one, in a process that stays. Where none takes the command, nothing is done and the response says so.
    Map(MapOptions),
    /// Map one, and stay as long as something is mapped. In a process that stays already, as [`Self::Map`].
    Hold(MapOptions),
    /// List what is mapped.
    List {
        /// Whether only the process asked is meant.
        here: bool,
    },
    /// Take one away.
    Unmap {
        /// Which.
        which: MappedBy,
        /// Whether it is taken from those who use it.
        force: bool,
        /// Whether only the process asked is meant.
        here: bool,
    },
}

/// How an image is mapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapOptions {
    /// The image, or a snapshot of it, which is read-only.
    pub image: SnapSpec,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Bytes of a sector; 512 where none is given.
    pub sector_size: Option<u32>,
    /// Whether its partitions become devices.
    pub scan_partitions: bool,
    /// Whether it is to be a loop device, even where the kernel has an NBD client.
    pub is_loop: bool,
}

/// Which mapping is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MappedBy {
    /// By its device.
    Device(PathBuf),
    /// By its image.
    Image(SnapSpec),
}
