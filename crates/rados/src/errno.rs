//! librados' negative numbers as errors: the one place where they get their kind.

use std::ffi::c_int;

use ferry_core::{Errno, Error, ErrorKind, Result};

#[cfg(test)]
mod tests;

/// The error behind a negative result.
pub(crate) fn error(result: c_int, clause: &'static str) -> Error {
    let errno = Errno(result.saturating_neg());
    let kind = match errno {
        Errno::ENOENT => ErrorKind::NotFound,
        Errno::EEXIST => ErrorKind::Exists,
        Errno::EBUSY => ErrorKind::Busy,
        Errno::EROFS => ErrorKind::ReadOnly,
        Errno::ENOSPC | Errno::EDQUOT => ErrorKind::NoSpace,
        // A guard said no: an older or newer version, another value.
        Errno::ERANGE | Errno::EOVERFLOW | Errno::ECANCELED => ErrorKind::Conflict,
        // 108 is EBLOCKLISTED; 107 is what a watch of a blocklisted client gets.
        Errno::ESHUTDOWN | Errno::ENOTCONN => ErrorKind::Fenced,
        Errno::EPERM | Errno::EACCES => ErrorKind::Denied,
        Errno::EOPNOTSUPP => ErrorKind::Unsupported,
        Errno::ETIMEDOUT => ErrorKind::TimedOut,
        Errno::EAGAIN | Errno::ECONNREFUSED => ErrorKind::Unavailable,
        Errno::EINVAL | Errno::EFBIG | Errno::ENAMETOOLONG | Errno::EDOM => ErrorKind::Invalid,
        Errno::EBADMSG => ErrorKind::Corrupt,
        _ => ErrorKind::Io,
    };
    Error::new(kind, clause).errno_is(errno)
}

/// Non-negative results pass.
pub(crate) fn check(result: c_int, clause: &'static str) -> Result<u32> {
    u32::try_from(result).map_err(|_| error(result, clause))
}
