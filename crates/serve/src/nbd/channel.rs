//! What connections live on, and what only sockets of this machine can do.

use rustix::net::sockopt;
use s2n_tls_tokio::TlsStream;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::{TcpStream, UnixStream};

use super::limits::{SEND_ROOM, SEND_ROOM_USUAL};

/// How much a socket takes in for a client that does not read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// As much as any socket.
    Usual,
    /// A large reply as a whole, as far as the system allows.
    Large,
}

/// See the module.
pub trait Channel: AsyncRead + AsyncWrite + Unpin + Send {
    /// Makes room for what is sent, or gives it back; whether there is such a thing.
    fn make_room(&self, _room: Room) -> bool {
        false
    }
}

impl Channel for UnixStream {
    fn make_room(&self, room: Room) -> bool {
        let bytes = match room {
            Room::Usual => SEND_ROOM_USUAL,
            Room::Large => SEND_ROOM,
        };
        // The system takes it for the payload alone, and allows as much again for what it keeps beside.
        sockopt::set_socket_send_buffer_size(self, bytes / 2).is_ok()
    }
}

/// The system finds out by itself how much the way to the client holds.
impl Channel for TcpStream {}

/// Encrypting takes longer than waking the client does.
impl<S: Channel> Channel for TlsStream<S> {}

impl Channel for DuplexStream {}
