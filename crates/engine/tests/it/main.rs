//! The engine from outside: the contract, crashes, corruption, space.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say what they saw"
)]

mod contract;
mod faults;
mod meanwhile;
mod space;
