//! The system under seeds.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say what they saw"
)]

mod crash;
mod flip;
mod images;
mod process;
