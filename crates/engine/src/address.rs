//! Where a block lies, and what a block of an object is.

use std::fmt;

use crate::disk::SegmentNo;

/// Place of a block in the log: segment and block within it.
///
/// Which file or device holds the segment is the segment table's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Address(u64);

impl Address {
    /// Block `block` of segment `segment`.
    pub(crate) fn new(segment: SegmentNo, block: u32) -> Self {
        assert!(segment.0 > 0 && block < 65536, "an address names a segment and a block of it");
        Self(u64::from(segment.0) << 16 | u64::from(block))
    }

    /// Its 48-bit form on disk.
    pub(crate) fn raw(self) -> u64 {
        self.0
    }

    /// Reads the 48-bit form.
    pub(crate) fn from_raw(raw: u64) -> Option<Self> {
        ((raw >> 16) > 0 && (raw >> 48) == 0).then_some(Self(raw))
    }

    /// The segment.
    pub(crate) fn segment(self) -> SegmentNo {
        SegmentNo(u32::try_from(self.0 >> 16).expect("48 bits"))
    }

    /// The block within the segment.
    pub(crate) fn block(self) -> u32 {
        u32::try_from(self.0 & 0xFFFF).expect("16 bits")
    }

    /// The address `n` blocks on, in the same segment.
    pub(crate) fn plus(self, n: u32) -> Self {
        Self::new(self.segment(), self.block() + n)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment(), self.block())
    }
}

/// What one version of an object says of one of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// Nothing: in HEAD a hole; in a preserved version "the same as in the next newer one".
    Absent,
    /// Written as zeros; occupies nothing.
    Zero,
    /// A hole, said in so many words, because the next newer version has something there.
    Hole,
    /// Stored at an address, with the CRC-32C of its bytes.
    Data(Address, u32),
}

impl Block {
    /// The address, where it has one.
    pub(crate) fn address(self) -> Option<Address> {
        match self {
            Self::Data(address, _) => Some(address),
            Self::Absent | Self::Zero | Self::Hole => None,
        }
    }
}
