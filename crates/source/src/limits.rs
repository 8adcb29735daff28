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

/// Piece of two files that is compared at once. Bytes; eight of them in flight are 8 MiB at most.
pub const COMPARED_AT_ONCE: usize = 512 << 10;

/// What is fetched beside what is wanted, to have it in one request, is at most this part of it: a slow server shall not serve
/// much more than an image holds (5 %).
pub const WASTE_DIVISOR: u64 = 32;

/// Pieces of one read that are asked of a stream at the same time: the connections of a server (4), twice, so that none idles.
pub const PIECES_IN_FLIGHT: usize = 8;

/// Unit in which tables of an image are fetched and kept: what a table of qcow2's usual clusters is. Bytes.
pub const PAGE_SIZE: u64 = 64 << 10;

/// Pages of tables kept for each open image: 16 MiB, the tables of 128 GiB in clusters of 64 KiB.
pub const PAGES_MAX: usize = 256;

/// Decompressed clusters kept for small reads that follow each other. Bytes; four of the largest clusters.
pub const UNPACKED_MAX: usize = 8 << 20;

/// Decompressed bytes that one job on a thread makes at least: enough for the hop not to matter, little enough for all
/// threads to have some. Bytes.
pub const UNPACK_BATCH: usize = 512 << 10;

/// Runs of data at least this long are looked at for holes in the file below, as preallocated images have them. Bytes.
pub const ASK_BELOW_MIN: u64 = 1 << 20;

/// Largest window a zstd frame may ask for, as a power of two: no cluster is larger than 2 MiB, and whole levels of zstd ask
/// for 8 MiB at most.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// Most entries of a first-level table: QEMU's limit of 32 MiB. They are not kept in memory; the limit tells damage.
pub const L1_ENTRIES_MAX: u64 = (32 << 20) / 8;

/// Most snapshots in a qcow2 file: QEMU's limit.
pub const QCOW2_SNAPSHOTS_MAX: u32 = 65536;

/// Largest table of snapshots that is read. Bytes; QEMU takes 64 MiB, real ones have a hundred bytes a snapshot.
pub const QCOW2_SNAPSHOT_TABLE_MAX: u64 = 16 << 20;

/// Most extra data of a snapshot: QEMU's limit. Bytes.
pub const QCOW2_SNAPSHOT_EXTRA_MAX: u32 = 1024;

/// Longest name of another file in a header: QEMU's limit. Bytes.
pub const FILE_NAME_MAX: u32 = 1023;

/// Most header extensions of a qcow2 file that are looked at; QEMU knows five.
pub const QCOW2_EXTENSIONS_MAX: usize = 1024;

/// Longest table of feature names that is looked at. Bytes; QEMU's has 336.
pub const QCOW2_FEATURE_NAMES_MAX: u32 = 48 * 192;
