//! The server as its clients see it.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod peers;
mod tls;
mod world;
