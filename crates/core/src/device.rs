//! The `BlockDevice` contract: what an image offers to whoever serves it.

use bytes::Bytes;

use crate::reply::Reply;

/// What a range of a device holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentState {
    /// Bytes are stored.
    Data,
    /// Nothing is stored; reads as zeros.
    Zero,
}

/// A range of a device and what it holds. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceExtent {
    /// From the start of the device.
    pub offset: u64,
    /// Length.
    pub length: u64,
    /// What it holds.
    pub state: ExtentState,
}

/// A random-access device of bytes. Requests in flight at once may complete in any order; overlapping ones leave one of
/// their values in each 512-byte sector.
///
/// # Cancel safety
/// A dropped pending write may still happen.
pub trait BlockDevice: Send + Sync + std::fmt::Debug {
    /// Size now. Bytes.
    fn size(&self) -> u64;
    /// Whether writes fail with `ReadOnly`.
    fn is_read_only(&self) -> bool;
    /// Reads a range that lies inside the size; `Invalid` otherwise. Exactly `length` bytes come back.
    fn read(&self, offset: u64, length: u64) -> Reply<Bytes>;
    /// Writes inside the size.
    fn write(&self, offset: u64, data: Bytes) -> Reply<()>;
    /// Makes a range read as zeros.
    fn write_zeroes(&self, offset: u64, length: u64) -> Reply<()>;
    /// Gives the space of a range back; it reads as zeros from now on (the parent does not show through).
    fn discard(&self, offset: u64, length: u64) -> Reply<()>;
    /// Makes everything acknowledged so far durable.
    fn flush(&self) -> Reply<()>;
    /// What a range holds, in order and without gaps.
    fn extents(&self, offset: u64, length: u64) -> Reply<Vec<DeviceExtent>>;
}
