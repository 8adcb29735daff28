//! A `BlockDevice` offered to others: over NBD, and as a file that the kernel makes a disk of. Knows no images.
#![forbid(unsafe_code)]

pub mod export;
