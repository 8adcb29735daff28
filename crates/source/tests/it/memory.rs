//! A stream in memory.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use ferry_core::{DeviceExtent, Error, ExtentState, Reply};
use ferry_source::Stream;

/// Bytes, and what was asked of them.
#[derive(Debug)]
pub(crate) struct MemoryStream {
    pub(crate) bytes: Bytes,
    pub(crate) longest: AtomicU64,
    /// Reads, and bytes in all of them.
    pub(crate) reads: AtomicU64,
    pub(crate) fetched: AtomicU64,
}

impl MemoryStream {
    pub(crate) fn new(bytes: impl Into<Bytes>) -> Self {
        let zero = || AtomicU64::new(0);
        Self { bytes: bytes.into(), longest: zero(), reads: zero(), fetched: zero() }
    }
}

impl Stream for MemoryStream {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, offset: u64, length: u64) -> Reply<Bytes> {
        let end = offset.checked_add(length).filter(|end| *end <= self.size());
        let Some(end) = end else { return Reply::ready(Err(Error::invalid("outside"))) };
        self.longest.fetch_max(length, Ordering::Relaxed);
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.fetched.fetch_add(length, Ordering::Relaxed);
        let index = |n: u64| usize::try_from(n).unwrap();
        Reply::ready(Ok(self.bytes.slice(index(offset)..index(end))))
    }

    fn extents(&self, offset: u64, length: u64) -> Reply<Vec<DeviceExtent>> {
        Reply::ready(Ok(vec![DeviceExtent { offset, length, state: ExtentState::Data }]))
    }

    fn gap(&self) -> u64 {
        65536
    }

    fn pin(&self) -> String {
        "memory".to_owned()
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }
}
