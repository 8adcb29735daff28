//! Foreign images: any format over any stream, as a `BlockSource`. Bytes from outside are not trusted.
#![forbid(unsafe_code)]

pub mod stream;
