//! Header of a batch: what one append to the log holds. Layout: `docs/format/batch.md`.
//!
//! Invariants
//! - `sequence` grows by one from batch to batch of an epoch, over all log heads; batches that are not replayed have none.
//! - The checksum covers every header block to its end, so no byte of it is without one.
//! - A batch is valid if its header is and every payload block matches the CRC its record gives.

use std::mem::{offset_of, size_of};

use ferry_core::checksum::crc32c;
use ferry_core::{Error, Result};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::address::Address;
use crate::limits::{BATCH_HEADER_BLOCKS_MAX, BLOCK};

const MAGIC: [u8; 4] = *b"FBAT";
const VERSION: u16 = 1;

/// The sequence of a batch that has none: it is not replayed.
pub(crate) const UNSEQUENCED: u64 = 0;

/// Bytes of the fixed part; records follow.
pub(crate) const FIXED_BYTES: usize = size_of::<RawBatchHeader>();

/// The fixed part as it lies on disk. Nothing in it is trusted before it became a [`BatchHeader`].
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawBatchHeader {
    magic: [u8; 4],
    checksum: U32,
    version: U16,
    header_blocks: U16,
    payload_blocks: U32,
    segment: U32,
    block: U32,
    life: U64,
    epoch: U64,
    sequence: U64,
    durable_upto: U64,
    record_bytes: U32,
    reserved: U32,
}

const _: () = assert!(FIXED_BYTES == 64);
const _: () = assert!(offset_of!(RawBatchHeader, life) == 24);
const _: () = assert!(offset_of!(RawBatchHeader, durable_upto) == 48);

/// A validated batch header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    /// Where it lies: its own first block.
    pub(crate) address: Address,
    /// Blocks of the header.
    pub(crate) header_blocks: u32,
    /// Blocks of payload behind it.
    pub(crate) payload_blocks: u32,
    /// The life of the segment it was written in.
    pub(crate) life: u64,
    /// The epoch it was written in.
    pub(crate) epoch: u64,
    /// Its place in the order of all batches, or [`UNSEQUENCED`].
    pub(crate) sequence: u64,
    /// Every batch up to this sequence was durable when this one was written.
    pub(crate) durable_upto: u64,
    /// The records, encoded.
    pub(crate) records: Vec<u8>,
}

impl BatchHeader {
    /// Header blocks that `record_bytes` need.
    pub(crate) fn blocks_for(record_bytes: usize) -> u32 {
        u32::try_from((FIXED_BYTES + record_bytes).div_ceil(BLOCK)).expect("a header is bounded")
    }

    /// Blocks of the whole batch.
    pub(crate) fn total_blocks(&self) -> u32 {
        self.header_blocks + self.payload_blocks
    }

    /// Its blocks.
    pub(crate) fn encode(&self) -> Vec<u8> {
        assert!(self.header_blocks >= Self::blocks_for(self.records.len()), "the records fit the header");
        let raw = RawBatchHeader {
            magic: MAGIC,
            checksum: U32::new(0),
            version: U16::new(VERSION),
            header_blocks: U16::new(u16::try_from(self.header_blocks).expect("bounded")),
            payload_blocks: U32::new(self.payload_blocks),
            segment: U32::new(self.address.segment().0),
            block: U32::new(self.address.block()),
            life: U64::new(self.life),
            epoch: U64::new(self.epoch),
            sequence: U64::new(self.sequence),
            durable_upto: U64::new(self.durable_upto),
            record_bytes: U32::new(u32::try_from(self.records.len()).expect("bounded")),
            reserved: U32::new(0),
        };
        let mut bytes = vec![0; self.header_blocks as usize * BLOCK];
        bytes[..FIXED_BYTES].copy_from_slice(raw.as_bytes());
        bytes[FIXED_BYTES..FIXED_BYTES + self.records.len()].copy_from_slice(&self.records);
        let checksum = crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The life the header starting with this block claims to be of, where it looks like one at this place.
    pub(crate) fn claimed_life(first: &[u8], at: Address) -> Option<u64> {
        let (raw, _) = RawBatchHeader::ref_from_prefix(first).ok()?;
        Self::peek(first, at, raw.life.get()).map(|_| raw.life.get())
    }

    /// How many blocks the header starting with this block claims to have, where it looks like one of this life at this
    /// place. Nothing is verified yet.
    pub(crate) fn peek(first: &[u8], at: Address, life: u64) -> Option<u32> {
        let (raw, _) = RawBatchHeader::ref_from_prefix(first).ok()?;
        let blocks = u32::from(raw.header_blocks.get());
        let ours = raw.magic == MAGIC
            && raw.life.get() == life
            && raw.segment.get() == at.segment().0
            && raw.block.get() == at.block();
        (ours && (1..=BATCH_HEADER_BLOCKS_MAX).contains(&blocks)).then_some(blocks)
    }

    /// Validates header blocks read at `at` in the life `life` of its segment.
    ///
    /// # Errors
    /// `Corrupt` where they are not a batch's.
    pub(crate) fn decode(bytes: &[u8], at: Address, life: u64) -> Result<Self> {
        let wrong = |clause: &'static str| Err(Error::corrupt(clause).with("address", at));
        if Self::peek(bytes, at, life).map(|n| n as usize * BLOCK) != Some(bytes.len()) {
            return wrong("no batch of this life of the segment");
        }
        let Ok((raw, _)) = RawBatchHeader::ref_from_prefix(bytes) else {
            return wrong("a batch header is cut short");
        };
        if raw.checksum.get() != crc32c(&bytes[8..]) {
            return wrong("a batch header does not match its checksum");
        }
        let record_bytes = raw.record_bytes.get() as usize;
        if raw.version.get() != VERSION || raw.reserved.get() != 0 || FIXED_BYTES + record_bytes > bytes.len()
        {
            return wrong("a batch header says what no ferry writes");
        }
        Ok(Self {
            address: at,
            header_blocks: u32::from(raw.header_blocks.get()),
            payload_blocks: raw.payload_blocks.get(),
            life,
            epoch: raw.epoch.get(),
            sequence: raw.sequence.get(),
            durable_upto: raw.durable_upto.get(),
            records: bytes[FIXED_BYTES..FIXED_BYTES + record_bytes].to_vec(),
        })
    }
}
