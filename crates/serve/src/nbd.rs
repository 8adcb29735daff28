//! Exports served over NBD. What of the protocol, and how: `docs/protocol/nbd.md`.

mod budget;
mod channel;
mod client;
mod connection;
mod errno;
mod handshake;
pub(crate) mod inside;
pub mod limits;
mod server;
mod tls;
mod wire;

pub use channel::{Channel, Room};
pub use client::{ClientInfo, Peer};
pub use server::{Listener, Options, Plain, Refusals, Security, Server};
pub use tls::{Demand, Tls};
