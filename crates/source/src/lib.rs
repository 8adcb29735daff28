//! Foreign images: any format over any stream, as a `BlockSource`. Bytes from outside are not trusted.
#![forbid(unsafe_code)]

pub mod env;
pub mod format;
pub mod limits;
mod merge;
pub mod open;
pub mod secret;
pub mod spec;
pub mod stream;
#[cfg(test)]
mod testing;

pub use env::{Env, Secrets};
pub use open::open;
pub use secret::Secret;
pub use spec::{ImageFormat, ImageSpec, NativeSpec, Origin, SourceSpec, StreamSpec};
pub use stream::Stream;
