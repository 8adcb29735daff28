//! Limits every store keeps, and where each number comes from.

/// Unit of sharing, checksums and holes in a store: the page size, and what disks write at once. Bytes.
pub const BLOCK_SIZE: u64 = 4096;

/// Largest object: RBD's order 25. Bytes.
pub const OBJECT_SIZE_MAX: u64 = 32 << 20;

/// Most omap entries one read answers: what an OSD gives (`osd_max_omap_entries_per_request`).
pub const OMAP_PAGE_MAX: usize = 1024;

/// Longest object name. Bytes; RADOS allows 2048, RBD needs far less, and index keys must stay small.
pub const OBJECT_NAME_MAX: usize = 512;

/// Longest omap key. Bytes; RBD's longest is `metadata_` and a user's key.
pub const OMAP_KEY_MAX: usize = 1024;

/// Longest omap or xattr value. Bytes; one log batch must hold a transaction.
pub const METADATA_VALUE_MAX: usize = 1 << 20;

/// Longest namespace name. Bytes.
pub const NAMESPACE_MAX: usize = 256;

/// Most objects one listing answers.
pub const OBJECT_PAGE_MAX: usize = 4096;
