//! Where the bytes of a foreign image come from.
//!
//! Invariants
//! - A stream is pinned when it is opened: once its bytes are not those any more it fails with `Conflict`, for good.
//! - What cannot be got is an error, never zeros and never fewer bytes.

mod fetch;
pub mod file;
pub mod http;
pub mod nbd;
mod reach;
pub mod s3;
mod tls;

use std::sync::Arc;

use bytes::Bytes;
use ferry_core::{DeviceExtent, Reply};

use crate::env::Env;
use crate::spec::StreamSpec;

pub use fetch::{Patience, TrafficCount};

/// Bytes that can be read at any offset: a file, an object on a server, a device. Requests in flight at once may complete in
/// any order.
///
/// # Cancel safety
/// Dropping a pending reply has no effect but that what was fetched may be fetched again.
pub trait Stream: Send + Sync + std::fmt::Debug {
    /// Size when it was opened. Bytes.
    fn size(&self) -> u64;
    /// Reads a range that lies inside the size; `Invalid` otherwise. Exactly `length` bytes come back.
    fn read(&self, offset: u64, length: u64) -> Reply<Bytes>;
    /// What a range holds, in order and without gaps, as far as that is known without reading it; else `Data`.
    fn extents(&self, offset: u64, length: u64) -> Reply<Vec<DeviceExtent>>;
    /// How far apart two ranges may be for it to be cheaper to fetch what lies between them. Bytes.
    fn gap(&self) -> u64;
    /// Whether reading costs so little that bytes may be read just to see whether they are the same elsewhere.
    fn is_near(&self) -> bool {
        false
    }
    /// What tells these bytes from any others the same place could have later. One line, no secrets.
    fn pin(&self) -> String;
    /// Where it is, for people. No secrets.
    fn describe(&self) -> String;
}

/// Opens what a spec names, and pins it.
///
/// # Errors
/// `NotFound`, `Denied`, `Unavailable`, `TimedOut` and the like, of the place; `Unsupported` for a stream that cannot be opened.
pub fn open(spec: &StreamSpec, env: &Env) -> Reply<Arc<dyn Stream>> {
    match spec {
        StreamSpec::File(file) => file::open(file, env),
        StreamSpec::Http(spec) => http::open(spec, env),
        StreamSpec::S3(spec) => s3::open(spec, env),
        StreamSpec::Nbd(spec) => nbd::open(spec, env),
    }
}
