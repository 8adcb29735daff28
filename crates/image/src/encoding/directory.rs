//! Whether a namespace takes images: key `state` of its `rbd_directory`.

use bytes::Bytes;
use ferry_core::{Error, Result};

use super::value::{decode_u8, encode_u8};

/// Whether images may be added to a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectoryState {
    /// They may.
    Ready,
    /// The namespace is being removed.
    AddDisabled,
}

/// Reads the value of key `state`.
///
/// # Errors
/// `Corrupt`.
pub fn decode_directory_state(bytes: &[u8]) -> Result<DirectoryState> {
    match decode_u8(bytes)? {
        0 => Ok(DirectoryState::Ready),
        1 => Ok(DirectoryState::AddDisabled),
        other => Err(Error::corrupt("unknown state of a directory").with("code", other)),
    }
}

/// The value to write.
#[must_use]
pub fn encode_directory_state(state: DirectoryState) -> Bytes {
    encode_u8(match state {
        DirectoryState::Ready => 0,
        DirectoryState::AddDisabled => 1,
    })
}
