//! Limits of the data path, and where each number comes from.

/// Objects one request or long operation has in flight: `rbd_concurrent_management_ops`.
pub const OBJECTS_IN_FLIGHT: usize = 10;

/// How often a write is tried again because its object came into being or went away in between. Each loss means that
/// another request on the same object won, so a handful is already many.
pub const WRITE_RETRIES_MAX: usize = 16;

/// Largest image: what fits a signed 64-bit offset, which is what files and clients have. Bytes.
pub const IMAGE_SIZE_MAX: u64 = i64::MAX as u64;

/// Longest chain of clones that is followed, far above what anybody builds (`rbd` warns at 16), so that a loop of parents
/// in damaged headers ends.
pub const ANCESTORS_MAX: usize = 256;

/// Blocks of zeros at least this long are not stored on import and copy: the store's block. Bytes.
pub const SPARSE_BLOCK: u64 = 4096;

/// How often a change that found the exclusive lock given away takes it again. Each time one of the changes that wait gets on,
/// so this is how many may wait beside another writer; more than any client has under way.
pub const LOCK_ROUNDS_MAX: usize = 1024;
