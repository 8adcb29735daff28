//! The asker's side.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use ferry_core::Errno;

use super::SOCKET;
use super::wire::{Channel, Tell};
use crate::api::{Done, Events, Failure, Request, Response, Streams};
use crate::cancel::Cancel;
use crate::config::Home;

/// The process that owns a store and listens.
#[derive(Debug)]
pub(crate) struct Server(Channel);

/// What came of sending a command there.
#[derive(Debug)]
pub(crate) enum Forwarded {
    /// It was executed.
    Answered(Done<Response>),
    /// The owner was about to go and did nothing.
    NotTaken,
}

impl Server {
    /// The one who listens for the store at `dir`, if anybody does.
    pub(crate) fn of_store(dir: &Path) -> Option<Self> {
        let stream = connect(dir).ok()?;
        Channel::new(stream).ok().map(Self)
    }

    /// Has a command executed there and shows what happens.
    pub(crate) fn execute(
        mut self,
        home: &Home,
        request: &Request,
        streams: &Streams,
        events: &dyn Events,
        cancel: &Cancel,
    ) -> Forwarded {
        if let Ok(channel) = self.0.try_clone() {
            // The other side hears that the command shall end, and tells how it ended.
            cancel.when_asked(move || channel.say_no_more());
        }
        let home = std::path::absolute(home.dir()).unwrap_or_else(|_| home.dir().to_path_buf());
        if self.0.send_call(home, request.clone(), streams).is_err() {
            return Forwarded::NotTaken;
        }
        match self.0.receive() {
            Ok(Tell::Accepted) => {}
            Ok(Tell::Failed(failure)) => return Forwarded::Answered(Err(*failure)),
            Ok(_) | Err(_) => return Forwarded::NotTaken,
        }
        loop {
            match self.0.receive() {
                Ok(Tell::Accepted) => {}
                Ok(Tell::Event(event)) => event.tell(events),
                Ok(Tell::Done(response)) => return Forwarded::Answered(Ok(*response)),
                Ok(Tell::Failed(failure)) => return Forwarded::Answered(Err(*failure)),
                Err(_) if cancel.is_asked() => {
                    let error = crate::cancel::interrupted();
                    return Forwarded::Answered(Err(Failure::of(
                        &error,
                        "the command has not ended",
                        "rbd: interrupted",
                    )));
                }
                Err(e) => return Forwarded::Answered(Err(owner_gone(&e))),
            }
        }
    }
}

/// The owner ended in the middle.
fn owner_gone(error: &io::Error) -> Failure {
    let failure =
        Failure::plain(Errno::EPIPE, "the process that owns the store ended before the command did");
    Failure { cause: error.to_string(), ..failure }
        .advise("every step it made is safe; run the command again to finish what is missing")
}

/// Connects to the socket in a directory. Its path may be longer than a socket's name can be, so it goes by the directory's
/// descriptor.
fn connect(dir: &Path) -> io::Result<UnixStream> {
    let handle = File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", handle.as_raw_fd()))
}
