//! Limits of this room, and where each number comes from.

/// Longest spec. Bytes; it is one omap value of the target's header.
pub const SPEC_MAX: usize = 64 << 10;

/// Most images in a chain of backing files: deeper ones are slow with QEMU too, and each holds a file open.
pub const CHAIN_MAX: usize = 32;

/// Most `snapshots` of a raw source; each holds a file or a connection open.
pub const SNAPSHOTS_MAX: usize = 512;

/// Unit of zero detection: the unit of holes in a store, and `rbd import`'s. Bytes.
pub const ZERO_UNIT: u64 = 4096;

/// Reads shorter than this are not preceded by a question about holes: on a server it costs a round trip, and what is a hole
/// is seen to be zeros anyway. Bytes.
pub const ASK_EXTENTS_MIN: u64 = 128 << 10;

/// Longest piece asked of a stream at once where a read is larger. Bytes; what a few connections share well.
pub const PIECE_MAX: u64 = 4 << 20;

/// Pieces of one read that are asked of a stream at the same time: the connections of a server (4), twice, so that none idles.
pub const PIECES_IN_FLIGHT: usize = 8;
