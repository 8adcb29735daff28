//! How the bytes of a stream make a device with points in time.

mod clustered;
mod pages;
pub(crate) mod qcow;
mod qcow1;
mod qcow2;
pub(crate) mod qemu;
pub mod raw;
mod unpack;

use bytes::Bytes;
use ferry_core::{DeviceExtent, Error, ExtentState, Result};

use crate::limits::ZERO_UNIT;

/// A UUID made of what is given: the same for the same, and no two alike that matter.
pub(crate) fn uuid_of(parts: &[&[u8]]) -> String {
    // FNV-1a of 128 bits: names must only differ from each other, nobody attacks them.
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for byte in parts.iter().flat_map(|part| part.iter().copied().chain([0])) {
        hash = (hash ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
    }
    // Version 8 (made by whoever made it), variant 1.
    let hash = hash & !(0xf << 76) & !(0x3 << 62) | 0x8 << 76 | 0x2 << 62;
    let text = format!("{hash:032x}");
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}

/// Refuses a range that does not lie inside `size`.
///
/// # Errors
/// `Invalid`.
pub(crate) fn inside(offset: u64, length: u64, size: u64) -> Result<()> {
    if offset.checked_add(length).is_some_and(|end| end <= size) {
        return Ok(());
    }
    Err(Error::invalid("the range is not inside the source")
        .with("offset", offset)
        .with("length", length)
        .with("size", size))
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Sixteen words at once, so that the compiler makes vectors of it.
    let (chunks, rest) = bytes.as_chunks::<128>();
    chunks.iter().all(|chunk| chunk.iter().fold(0, |or, byte| or | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

/// Adds `bytes` that lie at `offset` of the device, without the aligned units that are all zeros.
pub(crate) fn push_sparse(extents: &mut Vec<(u64, Bytes)>, offset: u64, bytes: &Bytes) {
    let unit = usize::try_from(ZERO_UNIT).expect("a unit fits memory");
    let skew = usize::try_from(offset % ZERO_UNIT).expect("below a unit");
    let (mut at, mut data_from) = (0, None);
    while at < bytes.len() {
        let end = if at == 0 { unit - skew } else { at + unit }.min(bytes.len());
        match (is_zero(&bytes[at..end]), data_from) {
            (false, None) => data_from = Some(at),
            (true, Some(from)) => {
                extents.push((offset + length_of(&bytes[..from]), bytes.slice(from..at)));
                data_from = None;
            }
            (false, Some(_)) | (true, None) => {}
        }
        at = end;
    }
    if let Some(from) = data_from {
        extents.push((offset + length_of(&bytes[..from]), bytes.slice(from..)));
    }
}

/// Length as offsets are counted.
pub(crate) fn length_of(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).expect("memory is counted with 64 bits")
}

/// Adds an extent, one with its neighbour where that holds the same. Empty ones are not added.
pub(crate) fn push_extent(extents: &mut Vec<DeviceExtent>, offset: u64, length: u64, state: ExtentState) {
    if length == 0 {
        return;
    }
    match extents.last_mut() {
        Some(last) if last.state == state && last.offset + last.length == offset => last.length += length,
        Some(_) | None => extents.push(DeviceExtent { offset, length, state }),
    }
}
