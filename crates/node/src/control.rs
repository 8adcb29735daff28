//! The control socket: how a command reaches the process that owns the stores it needs.
//!
//! The owner of a store binds `control.sock` in the store's directory once it has held the store for longer than a short command
//! takes. A command that finds it sends itself there: the typed request and, as descriptors, the files it works on. What happens
//! comes back as it happens, and the end as the response or the failure; so a command says the same either way.
//! `docs/protocol/control.md` has the frames.
//!
//! Invariants
//! - A request is either refused before anything is done (the connection ends without `Accepted`: the asker looks for the owner
//!   again) or accepted and executed once.
//! - Only processes of the same user, or of root, are listened to.

mod client;
mod door;
mod wire;

pub(crate) use client::{Forwarded, Server};
pub(crate) use door::Door;
pub(crate) use wire::{Channel, Tell, VERSION};

/// Name of the socket in a store's directory.
const SOCKET: &str = "control.sock";
