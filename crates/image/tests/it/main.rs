//! The one integration binary of this crate.

mod clones;
mod golden;
mod model;
mod races;
mod replay;
mod transfers;
