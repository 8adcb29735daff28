//! Who owns a store: one process at a time, named in a file that the owner holds locked.
//!
//! The kernel lets go of the lock when the owner dies, however it dies; what the file says is for people.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ferry_core::{Errno, Error, ErrorKind, Result};

use super::Served;
use crate::control::Server;

/// Name of the file in the store's directory.
const OWNER_FILE: &str = "owner";

/// How long a command waits for another one to end, as `rbd` waits for a lock to be given up (`rbd_request_timed_out_seconds`).
pub const OWNER_WAIT_MAX: Duration = Duration::from_secs(30);

/// How long a wait may be before people wonder.
const NOTICED: Duration = Duration::from_secs(1);

/// How often to look again. Short commands take a few milliseconds.
const POLL: Duration = Duration::from_millis(10);

/// Ownership of a store, for as long as this lives.
#[derive(Debug)]
pub struct Owner {
    file: File,
}

/// What came of asking for a store.
#[derive(Debug)]
pub enum Taken {
    /// It is ours.
    Ours(Owner),
    /// Its owner executes commands for others.
    Served(Served),
}

impl Owner {
    /// Takes the store at `dir`, waiting up to `wait_max` for the owner before us, unless that one serves others; `tell` hears of a
    /// wait that people notice.
    ///
    /// # Errors
    /// `Busy` (16) naming the owner, `ReadOnly` (30) or `Denied` (13) where the directory cannot be written.
    pub fn take(dir: &Path, wait_max: Duration, tell: &dyn Fn(&str)) -> Result<Taken> {
        let path = dir.join(OWNER_FILE);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| cannot_write(dir, e))?;
        let began = Instant::now();
        let mut owner = Self { file };
        let mut told = false;
        loop {
            match owner.file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if began.elapsed() < wait_max => {
                    if let Some(server) = Server::of_store(dir) {
                        let (dir, process) = (dir.to_path_buf(), owner.name());
                        return Ok(Taken::Served(Served { server, dir, process }));
                    }
                    if !told && began.elapsed() >= NOTICED {
                        told = true;
                        tell(&format!(
                            "waiting for process {}, which has {} open",
                            owner.name(),
                            dir.display()
                        ));
                    }
                    thread::sleep(POLL);
                }
                Err(TryLockError::WouldBlock) => return Err(owner.busy(dir)),
                Err(TryLockError::Error(e)) => {
                    return Err(Error::io("cannot lock the store", e).with("file", path.display()));
                }
            }
        }
        owner.write_name().map_err(|e| cannot_write(dir, e))?;
        Ok(Taken::Ours(owner))
    }

    /// Says who we are, for those who wait.
    fn write_name(&mut self) -> io::Result<()> {
        let line = format!("{}\n", std::process::id());
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(line.as_bytes())
    }

    /// The process number the file names.
    fn name(&mut self) -> String {
        let mut text = String::new();
        let read = self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.read_to_string(&mut text));
        let pid = text.trim();
        if read.is_ok() && !pid.is_empty() { pid.to_owned() } else { "unknown".to_owned() }
    }

    /// The error that names who has the store.
    fn busy(&mut self, dir: &Path) -> Error {
        let owner = self.name();
        let mut error = Error::busy("another process has the store open")
            .with("store", dir.display())
            .with("process", &owner);
        if let Ok(command) = fs::read(format!("/proc/{owner}/cmdline")) {
            let text = String::from_utf8_lossy(&command).replace('\0', " ");
            error = error.with("command", format!("`{}`", text.trim()));
        }
        error
    }
}

/// The error for a store whose directory cannot be written.
fn cannot_write(dir: &Path, e: io::Error) -> Error {
    let error = Error::io("the store's directory cannot be written", e).with("store", dir.display());
    match error.errno() {
        // A read-only file system or mount.
        Errno::EROFS => Error::new(ErrorKind::ReadOnly, "the store lies on a read-only file system")
            .with("store", dir.display())
            .because(error),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ferry_core::ErrorKind;

    use super::{Owner, Taken};

    fn silent(_: &str) {}

    fn take(dir: &std::path::Path, wait_max: Duration) -> ferry_core::Result<Owner> {
        Owner::take(dir, wait_max, &silent).map(|taken| match taken {
            Taken::Ours(owner) => owner,
            Taken::Served(served) => panic!("nobody serves here: {served:?}"),
        })
    }

    #[test]
    fn a_store_has_one_owner_who_is_named_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let first = take(dir.path(), Duration::ZERO).unwrap();
        let refused = take(dir.path(), Duration::from_millis(30)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Busy);
        assert_eq!(refused.fact("process"), Some(std::process::id().to_string().as_str()));
        drop(first);
        take(dir.path(), Duration::ZERO).unwrap();
    }

    #[test]
    fn whoever_waits_gets_the_store_when_the_owner_goes() {
        let dir = tempfile::tempdir().unwrap();
        let first = take(dir.path(), Duration::ZERO).unwrap();
        std::thread::scope(|s| {
            let second = s.spawn(|| take(dir.path(), Duration::from_secs(30)));
            drop(first);
            second.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_directory_that_is_not_there_is_said_to_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let error = take(&dir.path().join("no"), Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
