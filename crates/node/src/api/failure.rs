//! A command that did not do what was asked.

use ferry_core::{Errno, Error, ErrorKind};
use serde::{Deserialize, Serialize};

/// The end of a command.
pub type Done<T> = Result<T, Failure>;

/// Why a command failed, for both ways of telling it: `rbd`'s own lines, and ferry's sentence with what to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The exit code: a Linux error number.
    pub errno: i32,
    /// What `rbd` prints, complete lines.
    pub rbd: Vec<String>,
    /// What was being done, for ferry's sentence: `cannot create image rbd/a`.
    pub what: String,
    /// Why not: the chain of causes in one line; empty where `what` says it all.
    pub cause: String,
    /// What is safe and what to do next, a sentence each.
    pub next: Vec<String>,
}

impl Failure {
    /// `what` failed because of `error`; `rbd` prints `<rbd prefix>: (N) text`.
    #[must_use]
    pub fn of(error: &Error, what: impl Into<String>, rbd: &str) -> Self {
        Self {
            errno: error.errno().0,
            rbd: vec![format!("{rbd}: {}", error.errno())],
            what: what.into(),
            cause: error.chain(),
            next: advice(error),
        }
    }

    /// `what` is all there is to say, in `rbd`'s words too (which gain `rbd: ` in front).
    #[must_use]
    pub fn plain(errno: Errno, what: impl Into<String>) -> Self {
        let what = what.into();
        Self {
            errno: errno.0,
            rbd: vec![format!("rbd: {what}")],
            what,
            cause: String::new(),
            next: Vec::new(),
        }
    }

    /// Replaces `rbd`'s lines.
    #[must_use]
    pub fn lines<L: Into<String>>(mut self, lines: impl IntoIterator<Item = L>) -> Self {
        self.rbd = lines.into_iter().map(Into::into).collect();
        self
    }

    /// Puts a line in front of `rbd`'s lines: what librbd logs.
    #[must_use]
    pub fn after(mut self, line: impl Into<String>) -> Self {
        self.rbd.insert(0, line.into());
        self
    }

    /// Puts a line behind `rbd`'s lines.
    #[must_use]
    pub fn then(mut self, line: impl Into<String>) -> Self {
        self.rbd.push(line.into());
        self
    }

    /// Adds a sentence on what is safe or what to do.
    #[must_use]
    pub fn advise(mut self, sentence: impl Into<String>) -> Self {
        self.next.push(sentence.into());
        self
    }
}

/// What is safe and what to do, where the kind of error alone says it.
fn advice(error: &Error) -> Vec<String> {
    let sentence = match error.kind() {
        ErrorKind::Busy => match (error.fact("process"), error.fact("store")) {
            (Some(process), Some(store)) => format!(
                "the images in {store} are safe; wait for process {process} or stop it, then run this command again"
            ),
            (Some(_) | None, _) => match error.fact("pinned_by") {
                Some(target) => format!(
                    "nothing was removed; `ferry migration commit {target}` or `ferry migration abort {target}` ends the \
                     import that reads it"
                ),
                None => return Vec::new(),
            },
        },
        ErrorKind::Corrupt if matches!(error.errno(), Errno::EINVAL | Errno::EBADMSG) => {
            "what was given to read is damaged, cut short, or of another kind than this command reads".to_owned()
        }
        ErrorKind::Corrupt => {
            "nothing was repaired or overwritten; `ferry check` lists what is damaged in a store".to_owned()
        }
        ErrorKind::NoSpace if error.errno() == Errno::ENOSPC => {
            "nothing that was acknowledged is lost; free space where the store lies, then run this command again"
                .to_owned()
        }
        ErrorKind::ReadOnly => match error.fact("pool") {
            Some(pool) => format!("nothing was changed; `ferry pool set {pool} read-only off` allows writes"),
            None => "nothing was changed".to_owned(),
        },
        ErrorKind::Poisoned => {
            "what was acknowledged is safe; run this command again to recover the store".to_owned()
        }
        ErrorKind::Invalid
        | ErrorKind::NotFound
        | ErrorKind::Exists
        | ErrorKind::NoSpace
        | ErrorKind::Fenced
        | ErrorKind::Unavailable
        | ErrorKind::Unsupported
        | ErrorKind::Conflict
        | ErrorKind::TimedOut
        | ErrorKind::Denied
        | ErrorKind::Io
        | ErrorKind::Internal => return Vec::new(),
    };
    vec![sentence]
}
