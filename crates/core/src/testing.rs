//! For tests of this and other rooms: an in-memory store and source, seeded time and randomness, the contract suites.

pub mod contract;
pub mod env;
pub mod mem_source;
pub mod mem_store;

pub use env::{TestClock, TestRng, test_env};
pub use mem_source::MemSource;
pub use mem_store::MemStore;
