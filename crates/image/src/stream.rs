//! The streams `rbd export`, `export-diff` and their counterparts write and read.
//!
//! ```text
//! diff:     "rbd diff v1\n"  f t s   then  w z …  then  e        (v2: each record but the last carries its length, and p)
//! image:    "rbd image v2\n" O T U C M …  E
//!           "rbd image diffs v2\n" count, then that many v2 diffs, oldest snapshot first, HEAD last
//! ```
//!
//! Readers take bytes from anywhere: what does not fit is an error, never a panic, and no length read from the stream is
//! allocated before bytes of that length have come. Numbers are little-endian.
//!
//! # Source
//! Ceph, `doc/dev/rbd-diff` and `doc/dev/rbd-export`; the tag `p` and the field order as written by `rbd` 16.2.

pub mod diff;
pub mod image;
pub(crate) mod input;
#[cfg(test)]
mod tests;

pub use diff::{DiffFile, DiffHeader, DiffReader, DiffRecord, DiffVersion, DiffWriter};
pub use image::{ImageStreamHeader, ImageStreamReader, ImageStreamWriter};

/// Most bytes of one record's data handed out at once: an object of the default size.
pub const PIECE_MAX: usize = 4 << 20;

/// Longest snapshot name in a stream, as `rbd` reads it. Bytes.
pub const SNAP_NAME_MAX: u32 = 4096;

/// Most bytes of image metadata one stream may carry: far above any use, far below memory.
pub const IMAGE_METADATA_MAX: u64 = 16 << 20;

/// Most diffs (snapshots and HEAD) one image stream may announce.
pub const DIFFS_MAX: u64 = 1 << 20;
