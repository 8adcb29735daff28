//! For tests of this and other rooms: random operations on images compared with plain byte vectors, on any store; a store
//! that answers late.

pub mod late_store;
pub mod model;

pub use late_store::LateStore;
