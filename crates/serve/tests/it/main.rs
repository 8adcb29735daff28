//! The server as its clients see it.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod client;
mod fuse;
mod fuzz;
mod guest;
mod hostile;
mod kernel;
mod late;
mod peers;
mod protocol;
mod shell;
mod tls;
mod volatile;
mod world;
