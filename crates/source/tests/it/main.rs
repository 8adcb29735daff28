//! Foreign images made and read by QEMU, and damaged ones; and streams from real servers.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say what they saw"
)]

mod allocation;
mod damage;
mod fetching;
mod generate;
mod images;
mod memory;
mod qemu;
mod servers;
