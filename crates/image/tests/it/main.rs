//! The one integration binary of this crate.

mod golden;
mod model;
mod races;
mod replay;
