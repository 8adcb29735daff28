//! First block of every segment. Layout: `docs/format/segment.md`.

use std::mem::{offset_of, size_of};

use ferry_core::checksum::crc32c;
use ferry_core::{Error, Result};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::disk::SegmentNo;
use crate::limits::BLOCK;

const MAGIC: [u8; 4] = *b"FSEG";
const VERSION: u32 = 1;

/// The block as it lies on disk. Nothing in it is trusted before it became a [`SegmentHeader`].
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSegmentHeader {
    magic: [u8; 4],
    version: U32,
    store: [u8; 16],
    segment: U32,
    blocks: U32,
    life: U64,
    epoch: U64,
    reserved: [u8; 4096 - 4 - 4 - 16 - 4 - 4 - 8 - 8 - 4],
    checksum: U32,
}

const _: () = assert!(size_of::<RawSegmentHeader>() == BLOCK);
const _: () = assert!(offset_of!(RawSegmentHeader, life) == 32);
const _: () = assert!(offset_of!(RawSegmentHeader, checksum) == 4092);

/// A validated segment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// The store it belongs to: catches files copied between stores.
    pub(crate) store: [u8; 16],
    /// Its own number: catches misdirected writes and renamed files.
    pub(crate) segment: SegmentNo,
    /// Blocks of the segment, this one included.
    pub(crate) blocks: u32,
    /// Random number of this life of the segment; batches carry it, so bytes of an older life are not taken for batches, and
    /// nobody who writes data can forge one.
    pub(crate) life: u64,
    /// Epoch in which this life began.
    pub(crate) epoch: u64,
}

impl SegmentHeader {
    /// Its block.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut raw = RawSegmentHeader {
            magic: MAGIC,
            version: U32::new(VERSION),
            store: self.store,
            segment: U32::new(self.segment.0),
            blocks: U32::new(self.blocks),
            life: U64::new(self.life),
            epoch: U64::new(self.epoch),
            reserved: [0; 4044],
            checksum: U32::new(0),
        };
        raw.checksum = U32::new(crc32c(&raw.as_bytes()[..BLOCK - 4]));
        raw.as_bytes().to_vec()
    }

    /// Validates the first block of segment `segment` of the store `store`.
    ///
    /// # Errors
    /// `Corrupt` where it is not its header.
    pub(crate) fn decode(bytes: &[u8], store: &[u8; 16], segment: SegmentNo) -> Result<Self> {
        let wrong = |clause: &'static str| Err(Error::corrupt(clause).with("segment", segment));
        let Ok(raw) = RawSegmentHeader::ref_from_bytes(bytes) else {
            return wrong("a segment header has the wrong length");
        };
        if raw.magic != MAGIC || raw.checksum.get() != crc32c(&bytes[..BLOCK - 4]) {
            return wrong("a segment's header does not match its checksum");
        }
        if raw.version.get() != VERSION || raw.reserved.iter().any(|b| *b != 0) {
            return wrong("a segment's header is of an unknown version");
        }
        if raw.store != *store || raw.segment.get() != segment.0 {
            return wrong("a segment's file belongs elsewhere");
        }
        Ok(Self {
            store: raw.store,
            segment,
            blocks: raw.blocks.get(),
            life: raw.life.get(),
            epoch: raw.epoch.get(),
        })
    }
}
