//! A `BlockDevice` offered to others: over NBD, and as a file that the kernel makes a disk of. Knows no images.
#![forbid(unsafe_code)]

pub mod context;
pub mod export;
pub mod fuse;
pub mod kernel;
pub mod nbd;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod traffic;
