//! The server as its clients see it.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod client;
mod fuzz;
mod hostile;
mod peers;
mod protocol;
mod tls;
mod world;
