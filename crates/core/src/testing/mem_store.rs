//! A `Store` in memory: the contract in its plainest form, and the reference the others are compared with.
#[derive(Debug, Default)]
/// x
pub struct MemStore {}
