//! Limits of the file system, and where each number comes from.

use std::time::Duration;

/// Bytes of one request, either way: what Linux takes without a change of its settings (256 pages).
pub(super) const REQUEST_MAX: u32 = 1 << 20;

/// Threads, each with one request: memory in flight is at most twice [`REQUEST_MAX`] for each (the request and its copy). A loop
/// device asks for up to 128 at once; more threads than this gave nothing on two processors.
pub(super) const THREADS: usize = 16;

/// Requests the kernel hands over before it holds more back: all threads busy, and as many waiting.
pub(super) const BACKGROUND_MAX: u16 = 32;

/// Bytes that one call of the device zeroes or discards: a change of the device below (a switch of images) waits for no more.
pub(super) const ZERO_PIECE: u64 = 64 << 20;

/// Bytes that one call of the device describes.
pub(super) const EXTENT_STEP: u64 = 256 << 20;

/// Blocks of the file system: what a loop device takes for the granularity of discards.
pub(super) const BLOCK_SIZE: u32 = 4096;

/// How long a file may stay in use after its loop device is gone: the kernel closes it a little later.
pub(super) const UNMOUNT_WAIT: Duration = Duration::from_secs(3);

/// Between two looks.
pub(super) const POLL: Duration = Duration::from_millis(10);
