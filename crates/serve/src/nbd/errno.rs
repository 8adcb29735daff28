//! What a failure of the device is called on the wire.

#[cfg(test)]
mod tests;

use ferry_core::{Errno, Error, ErrorKind};

use super::wire::WireError;

/// The number a client is told.
pub(super) fn wire_error(error: &Error) -> WireError {
    match error.kind() {
        ErrorKind::Invalid => WireError::Invalid,
        ErrorKind::ReadOnly | ErrorKind::Denied => WireError::Permission,
        ErrorKind::NoSpace => WireError::NoSpace,
        ErrorKind::Unsupported => WireError::Unsupported,
        ErrorKind::Fenced => WireError::Shutdown,
        ErrorKind::NotFound
        | ErrorKind::Exists
        | ErrorKind::Busy
        | ErrorKind::Unavailable
        | ErrorKind::Corrupt
        | ErrorKind::Poisoned
        | ErrorKind::Conflict
        | ErrorKind::TimedOut
        | ErrorKind::Io
        | ErrorKind::Internal => {
            if error.errno() == Errno::ENOMEM {
                WireError::Memory
            } else {
                WireError::Io
            }
        }
    }
}
