//! The whole system on one thread, under a seed.
//!
//! Nothing depends on this crate. A failure names its seed; `ferry-sim` replays it.

pub mod crash;
pub mod flip;
pub mod load;
pub mod workload;
