//! What a node and the service manager that started it tell each other, if one did.

use std::net::TcpListener;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use ferry_core::{Error, Result};
use ferry_serve::nbd::Listener;
use rustix::net::{AddressFamily, getsockname, sockopt};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use sd_notify::NotifyState;

/// Where descriptors of the service manager begin.
const FIRST: RawFd = 3;
/// Most of them that are taken.
const MOST: RawFd = 64;

/// The sockets that the service manager already listens on for clients of NBD: `LISTEN_FDS` of them, if `LISTEN_PID` is this
/// process.
///
/// # Errors
/// `Invalid` (22) for what is no listening socket; those of the system.
pub(super) fn sockets() -> Result<Vec<Listener>> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<i32>().ok());
    let is_ours = number("LISTEN_PID") == Some(getpid().as_raw_nonzero().get());
    let count = number("LISTEN_FDS").filter(|count| is_ours && *count > 0).unwrap_or(0);
    if count > MOST {
        return Err(Error::invalid("the service manager gives too many sockets").with("sockets", count));
    }
    (FIRST..FIRST + count).map(socket).collect()
}

/// A duplicate of a descriptor that came with the process.
fn socket(number: RawFd) -> Result<Listener> {
    let wrong = |e: rustix::io::Errno| {
        Error::io("cannot take a socket of the service manager", e.into()).with("descriptor", number)
    };
    let itself = pidfd_open(getpid(), PidfdFlags::empty()).map_err(wrong)?;
    let socket: OwnedFd = pidfd_getfd(itself, number, PidfdGetfdFlags::empty()).map_err(wrong)?;
    let family = getsockname(&socket).map_err(wrong)?.address_family();
    if !sockopt::socket_acceptconn(&socket).map_err(wrong)? {
        return Err(
            Error::invalid("a socket of the service manager does not listen").with("descriptor", number)
        );
    }
    match family {
        AddressFamily::UNIX => Ok(Listener::Unix(UnixListener::from(socket))),
        AddressFamily::INET | AddressFamily::INET6 => Ok(Listener::Tcp(TcpListener::from(socket))),
        _ => Err(Error::invalid("a socket of the service manager is of no known family")
            .with("descriptor", number)),
    }
}

/// Commands are taken.
pub(super) fn ready() {
    tell(NotifyState::Ready);
}

/// It is about to end.
pub(super) fn stopping() {
    tell(NotifyState::Stopping);
}

fn tell(state: NotifyState<'_>) {
    // Without a service manager nobody is told and nothing fails.
    if let Err(e) = sd_notify::notify(&[state]) {
        tracing::warn!(error = %e, "the service manager cannot be told");
    }
}
