//! What a failure of the device is called by the kernel.

use ferry_core::{Error, ErrorKind};
use fuser::Errno;

/// The number the kernel is told. A block device on the file makes an I/O error of most.
pub(super) fn errno(error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::Invalid => Errno::EINVAL,
        ErrorKind::ReadOnly => Errno::EROFS,
        ErrorKind::Denied => Errno::EACCES,
        ErrorKind::NoSpace => Errno::ENOSPC,
        ErrorKind::Unsupported => Errno::EOPNOTSUPP,
        ErrorKind::TimedOut => Errno::ETIMEDOUT,
        ErrorKind::NotFound
        | ErrorKind::Exists
        | ErrorKind::Busy
        | ErrorKind::Fenced
        | ErrorKind::Unavailable
        | ErrorKind::Corrupt
        | ErrorKind::Poisoned
        | ErrorKind::Conflict
        | ErrorKind::Io
        | ErrorKind::Internal => Errno::EIO,
    }
}
