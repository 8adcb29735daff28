//! For tests of this and other rooms: random operations on images compared with plain byte vectors, on any store.

pub mod model;
