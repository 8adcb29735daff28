//! The one integration binary of this crate.

#[cfg(test)]
mod clones;
mod golden;
mod model;
#[cfg(test)]
mod races;
mod replay;
#[cfg(test)]
mod transfers;
