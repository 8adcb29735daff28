//! Sizes and bounds of the engine, and where each number comes from.

use ferry_core::limits::BLOCK_SIZE;

/// A block in memory terms. Bytes.
pub const BLOCK: usize = 4096;
const _: () = assert!(BLOCK as u64 == BLOCK_SIZE);

/// Blocks in a segment by default: 64 MiB, measured to be indifferent for cleaning and kind to recycling.
pub const SEGMENT_BLOCKS_DEFAULT: u32 = 16384;

/// Smallest segment chosen by itself: 16 MiB, so that a write of a whole 8 MiB object fits.
pub const SEGMENT_BLOCKS_SMALL: u32 = 4096;

/// Segments there should be room for: four are kept in reserve and three are open.
pub const ROOM_SEGMENTS: u64 = 64;

/// Fewest blocks a segment may have: small ones are for tests. A header, and a batch with its header, must fit.
pub const SEGMENT_BLOCKS_MIN: u32 = 32;

/// Most blocks a segment may have: block numbers are 16 bits in an address.
pub const SEGMENT_BLOCKS_MAX: u32 = 65536;

/// Blocks one chunk of an object's table maps: 256 KiB of data, so that a chunk fills a sixth of an index page at worst.
pub const CHUNK_BLOCKS: usize = 64;

/// Payload after which an open batch is written out. Blocks; 1 MiB keeps the writes large and the buffers small.
pub const BATCH_PAYLOAD_BLOCKS: u32 = 256;

/// Most header blocks of a batch. Bounds one transaction's metadata to 2 MiB.
pub const BATCH_HEADER_BLOCKS_MAX: u32 = 512;

/// Largest entry (key and value) of an index page: two always fit, so a split always helps. Bytes.
pub const PAGE_ENTRY_MAX: usize = 1900;

/// Largest fragment of a long value in the index. Bytes.
pub const FRAGMENT_MAX: usize = 700;

/// Segments nobody but the cleaner, checkpoints and deletions may use.
pub const RESERVE_SEGMENTS: u32 = 4;

/// Share of the capacity kept in reserve, in hundredths, where that is more than `RESERVE_SEGMENTS`.
pub const RESERVE_PERCENT: u32 = 1;

/// Index pages changed since the last checkpoint at which the next is due: 32 MiB of memory.
pub const DIRTY_PAGES_MAX: usize = 8192;

/// Log bytes since the last checkpoint at which the next is due: bounds recovery.
pub const TAIL_BYTES_MAX: u64 = 1 << 30;

/// Memory for caches by default. Bytes.
pub const CACHE_BYTES_DEFAULT: usize = 128 << 20;
