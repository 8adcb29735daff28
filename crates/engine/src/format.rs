//! On-disk structs that are not records: superblock, segment header, batch header. Layout: `docs/format/*.md`.
//!
//! Each is a raw type until validated; validation is one function that returns another type.

mod batch;
mod segment;
mod superblock;

pub(crate) use batch::{BatchHeader, FIXED_BYTES as BATCH_FIXED_BYTES, UNSEQUENCED};
pub(crate) use segment::SegmentHeader;
pub(crate) use superblock::{Superblock, TreeRoot};
