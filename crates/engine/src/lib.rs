//! A Store on one local directory, log-structured.
//!
//! Everything is written once, at the head of a log of segments: data, and the records that say what it means. The index
//! is a copy-on-write tree whose pages live in the same log; a checkpoint writes the changed ones and points the
//! superblock at the new root. What came after the last checkpoint is replayed from the log. See `docs/format/`.

mod address;
mod cache;
mod check;
mod checkpoint;
mod chunk;
mod cleaner;
mod core;
mod defragment;
pub mod disk;
mod draft;
mod engine;
mod format;
mod freed;
mod guard;
mod index;
mod key;
pub mod limits;
mod log;
mod object;
mod plan;
mod read;
mod record;
mod recover;
mod sharing;
mod space;
mod store;
mod tree;

pub use check::CheckReport;
#[cfg(feature = "testing")]
pub use check::Reached;
pub use defragment::Defragmented;
pub use engine::{Activity, Engine, Options, Recovery, Statistics};
