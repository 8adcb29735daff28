//! Errors: a small prescriptive kind for code, an errno for exit codes and texts, context for people.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// The result of everything in this workspace below the command line.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller should do next. A new kind needs an ADR (`docs/adr/0005`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request itself is wrong; do not repeat it.
    Invalid,
    /// The thing named does not exist.
    NotFound,
    /// The thing named exists already.
    Exists,
    /// Something else uses it; try later or stop the other user.
    Busy,
    /// The place is read-only.
    ReadOnly,
    /// There is no room; nothing acknowledged was lost.
    NoSpace,
    /// This client was cut off; reopen everything.
    Fenced,
    /// The other side is away; try again.
    Unavailable,
    /// Stored bytes are not what was written.
    Corrupt,
    /// Known but not supported here.
    Unsupported,
    /// An earlier failure made this handle unusable; reopen and recover.
    Poisoned,
    /// A guard failed: read again, recompute, retry.
    Conflict,
    /// It took too long.
    TimedOut,
    /// The caller lacks the right.
    Denied,
    /// The operating system failed an input or output.
    Io,
    /// A defect of ours, reported rather than hidden.
    Internal,
}

/// A positive Linux error number, as exit codes and `rbd`'s texts use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        impl Errno {
            $(#[doc = $text] pub const $name: Self = Self($value);)*

            /// The text `strerror` gives for this number, in the C locale.
            #[must_use]
            pub fn text(self) -> Cow<'static, str> {
                match self.0 {
                    $($value => Cow::Borrowed($text),)*
                    other => Cow::Owned(format!("Unknown error {other}")),
                }
            }
        }
    };
}

errnos! {
    EPERM = 1, "Operation not permitted";
    ENOENT = 2, "No such file or directory";
    EINTR = 4, "Interrupted system call";
    EIO = 5, "Input/output error";
    ENOEXEC = 8, "Exec format error";
    EBADF = 9, "Bad file descriptor";
    EAGAIN = 11, "Resource temporarily unavailable";
    ENOMEM = 12, "Cannot allocate memory";
    EACCES = 13, "Permission denied";
    EBUSY = 16, "Device or resource busy";
    EEXIST = 17, "File exists";
    EXDEV = 18, "Invalid cross-device link";
    ENOTDIR = 20, "Not a directory";
    EISDIR = 21, "Is a directory";
    EINVAL = 22, "Invalid argument";
    EFBIG = 27, "File too large";
    ENOSPC = 28, "No space left on device";
    EROFS = 30, "Read-only file system";
    EMLINK = 31, "Too many links";
    EPIPE = 32, "Broken pipe";
    EDOM = 33, "Numerical argument out of domain";
    ERANGE = 34, "Numerical result out of range";
    ENAMETOOLONG = 36, "File name too long";
    ENOSYS = 38, "Function not implemented";
    ENOTEMPTY = 39, "Directory not empty";
    ENODATA = 61, "No data available";
    EBADMSG = 74, "Bad message";
    EOVERFLOW = 75, "Value too large for defined data type";
    EOPNOTSUPP = 95, "Operation not supported";
    ENOTCONN = 107, "Transport endpoint is not connected";
    ESHUTDOWN = 108, "Cannot send after transport endpoint shutdown";
    ETIMEDOUT = 110, "Connection timed out";
    ECONNREFUSED = 111, "Connection refused";
    ESTALE = 116, "Stale file handle";
    EUCLEAN = 117, "Structure needs cleaning";
    EDQUOT = 122, "Disk quota exceeded";
    ECANCELED = 125, "Operation canceled";
}

impl fmt::Display for Errno {
    /// `(2) No such file or directory`, the way `rbd` prints an error.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}) {}", self.0, self.text())
    }
}

impl ErrorKind {
    /// The number to use when nobody knows a better one.
    #[must_use]
    pub fn default_errno(self) -> Errno {
        match self {
            Self::Invalid => Errno::EINVAL,
            Self::NotFound => Errno::ENOENT,
            Self::Exists => Errno::EEXIST,
            Self::Busy => Errno::EBUSY,
            Self::ReadOnly => Errno::EROFS,
            Self::NoSpace => Errno::ENOSPC,
            Self::Fenced => Errno::ESHUTDOWN,
            Self::Unavailable => Errno::EAGAIN,
            Self::Corrupt => Errno::EIO,
            Self::Unsupported => Errno::EOPNOTSUPP,
            Self::Poisoned | Self::Io | Self::Internal => Errno::EIO,
            Self::Conflict => Errno::ECANCELED,
            Self::TimedOut => Errno::ETIMEDOUT,
            Self::Denied => Errno::EACCES,
        }
    }
}

/// One failure: a kind, an errno, a short clause, named facts and the cause.
///
/// `Display` is the clause and the facts, never the cause; the edge prints the chain once.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    errno: Errno,
    clause: Cow<'static, str>,
    facts: Vec<(&'static str, String)>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind` with the errno that usually goes with it.
    #[must_use]
    pub fn new(kind: ErrorKind, clause: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            errno: kind.default_errno(),
            clause: clause.into(),
            facts: Vec::new(),
            source: None,
        }))
    }

    /// Replaces the errno, where `rbd` uses a more telling one.
    #[must_use]
    pub fn errno_is(mut self, errno: Errno) -> Self {
        self.0.errno = errno;
        self
    }

    /// Adds a named fact: pool, image, object, offset, file, operation.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.0.facts.push((name, value.to_string()));
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What the caller should do next.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The number for exit codes and `rbd`'s texts.
    #[must_use]
    pub fn errno(&self) -> Errno {
        self.0.errno
    }

    /// The short clause without the facts.
    #[must_use]
    pub fn clause(&self) -> &str {
        &self.0.clause
    }

    /// The value of a named fact, if it was given.
    #[must_use]
    pub fn fact(&self, name: &str) -> Option<&str> {
        self.0.facts.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str())
    }

    /// Shorthand for [`ErrorKind::Invalid`].
    #[must_use]
    pub fn invalid(clause: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Invalid, clause)
    }

    /// Shorthand for [`ErrorKind::NotFound`].
    #[must_use]
    pub fn not_found(clause: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::NotFound, clause)
    }

    /// Shorthand for [`ErrorKind::Exists`].
    #[must_use]
    pub fn exists(clause: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Exists, clause)
    }

    /// Shorthand for [`ErrorKind::Busy`].
    #[must_use]
    pub fn busy(clause: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Busy, clause)
    }

    /// Shorthand for [`ErrorKind::Corrupt`].
    #[must_use]
    pub fn corrupt(clause: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Corrupt, clause)
    }

    /// Shorthand for [`ErrorKind::Unsupported`].
    #[must_use]
    pub fn unsupported(clause: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Unsupported, clause)
    }

    /// An operating-system failure, with the kind its number calls for.
    #[must_use]
    pub fn io(clause: impl Into<Cow<'static, str>>, source: std::io::Error) -> Self {
        let errno = source.raw_os_error().map_or(Errno::EIO, Errno);
        let kind = match errno {
            Errno::ENOSPC | Errno::EDQUOT => ErrorKind::NoSpace,
            Errno::ENOENT => ErrorKind::NotFound,
            Errno::EEXIST => ErrorKind::Exists,
            Errno::EACCES | Errno::EPERM => ErrorKind::Denied,
            Errno::EROFS => ErrorKind::ReadOnly,
            Errno::EBUSY => ErrorKind::Busy,
            Errno::EINVAL | Errno::EISDIR | Errno::ENOTDIR | Errno::ENAMETOOLONG => ErrorKind::Invalid,
            _ => ErrorKind::Io,
        };
        Self::new(kind, clause).errno_is(errno).because(source)
    }

    /// This error and its causes, each once, joined by colons: one line for the edge to print.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(c) = cause {
            line.push_str(": ");
            line.push_str(&c.to_string());
            cause = c.source();
        }
        line
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.clause)?;
        for (i, (name, value)) in self.0.facts.iter().enumerate() {
            let (open, close) = (if i == 0 { " (" } else { ", " }, i + 1 == self.0.facts.len());
            write!(f, "{open}{name} {value}{}", if close { ")" } else { "" })?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|s| s as &(dyn StdError + 'static))
    }
}
