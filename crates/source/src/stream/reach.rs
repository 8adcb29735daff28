//! A connection to a host.

use ferry_core::{Errno, Error, ErrorKind, Result};
use tokio::net::TcpStream;

/// Connects to a host by name or address.
///
/// # Errors
/// `NotFound` (2) where there is none of that name; `Unavailable` with the number of the operating system otherwise.
pub(super) async fn reach(host: &str, port: u16) -> Result<TcpStream> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let found = tokio::net::lookup_host((host, port)).await;
    let addresses: Vec<_> =
        found.map_err(|e| Error::not_found("there is no such host").because(e))?.collect();
    let stream = TcpStream::connect(&addresses[..]).await.map_err(|e| {
        let errno = e.raw_os_error().map_or(Errno::EIO, Errno);
        Error::new(ErrorKind::Unavailable, "the server cannot be connected to").errno_is(errno).because(e)
    })?;
    stream.set_nodelay(true).map_err(|e| Error::io("cannot set up a connection", e))?;
    Ok(stream)
}
