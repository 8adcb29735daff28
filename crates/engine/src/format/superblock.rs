//! The superblock: where the last checkpoint is. Layout: `docs/format/superblock.md`.
//!
//! Invariants
//! - Two slots of 4 KiB; a checkpoint writes the first, syncs, writes the second, syncs. At rest both say the same.
//! - Space the checkpoint freed is not used again before both are durable.

use std::mem::{offset_of, size_of};

use ferry_core::checksum::crc32c;
use ferry_core::{Error, Result};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::address::Address;
use crate::limits::{BLOCK, SEGMENT_BLOCKS_MAX, SEGMENT_BLOCKS_MIN};

const MAGIC: [u8; 8] = *b"FERRYSB\0";

/// Version this code writes, and the only one it reads.
pub(crate) const VERSION: u32 = 2;

/// Feature bit: the log may free segments by a record, before a checkpoint does.
const FREED_BY_RECORD: u64 = 1;

/// A slot as it lies on disk. Nothing in it is trusted before it became a [`Superblock`].
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSuperblock {
    magic: [u8; 8],
    version: U32,
    slot: U32,
    incompatible: U64,
    store: [u8; 16],
    generation: U64,
    epoch: U64,
    opens: U64,
    segment_blocks: U32,
    root_level: U32,
    capacity_bytes: U64,
    checkpoint_sequence: U64,
    root_address: U64,
    root_crc: U32,
    table_crc: U32,
    table_address: U64,
    table_bytes: U64,
    next_inode: U64,
    next_version: U64,
    clean: U32,
    reserved: [u8; 4096 - 8 - 4 - 4 - 8 - 16 - 8 * 3 - 4 - 4 - 8 * 3 - 4 - 4 - 8 * 4 - 4 - 4],
    checksum: U32,
}

const _: () = assert!(size_of::<RawSuperblock>() == BLOCK);
const _: () = assert!(offset_of!(RawSuperblock, generation) == 40);
const _: () = assert!(offset_of!(RawSuperblock, segment_blocks) == 64);
const _: () = assert!(offset_of!(RawSuperblock, root_address) == 88);
const _: () = assert!(offset_of!(RawSuperblock, table_address) == 104);
const _: () = assert!(offset_of!(RawSuperblock, reserved) == 140);
const _: () = assert!(offset_of!(RawSuperblock, checksum) == 4092);

/// Root page of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TreeRoot {
    /// Where it lies.
    pub(crate) address: Address,
    /// CRC-32C of the page.
    pub(crate) crc: u32,
    /// Its level: 0 for a leaf.
    pub(crate) level: u8,
}

/// A validated superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// The store's identity; every segment carries it.
    pub(crate) store: [u8; 16],
    /// Grows with every write of the superblock: the newer slot wins.
    pub(crate) generation: u64,
    /// Only batches of this epoch are replayed.
    pub(crate) epoch: u64,
    /// How often the store was opened for writing: the client id of the next opener is one more.
    pub(crate) opens: u64,
    /// Blocks in a segment.
    pub(crate) segment_blocks: u32,
    /// Bytes the store may take; 0 for what the medium has.
    pub(crate) capacity_bytes: u64,
    /// Last batch the checkpoint covers; replay begins behind it.
    pub(crate) checkpoint_sequence: u64,
    /// The index; `None` while it is empty.
    pub(crate) root: Option<TreeRoot>,
    /// The segment table: where, bytes, CRC-32C. `None` while there is no segment.
    pub(crate) table: Option<(Address, u64, u32)>,
    /// Next inode number.
    pub(crate) next_inode: u64,
    /// Next object version.
    pub(crate) next_version: u64,
    /// Whether nothing was appended to the log since the checkpoint, so that no tail need be looked for.
    pub(crate) clean: bool,
}

impl Superblock {
    /// The bytes of slot `slot`.
    pub(crate) fn encode(&self, slot: u32) -> Vec<u8> {
        let mut raw = RawSuperblock {
            magic: MAGIC,
            version: U32::new(VERSION),
            slot: U32::new(slot),
            incompatible: U64::new(FREED_BY_RECORD),
            store: self.store,
            generation: U64::new(self.generation),
            epoch: U64::new(self.epoch),
            opens: U64::new(self.opens),
            segment_blocks: U32::new(self.segment_blocks),
            root_level: U32::new(self.root.map_or(0, |r| u32::from(r.level))),
            capacity_bytes: U64::new(self.capacity_bytes),
            checkpoint_sequence: U64::new(self.checkpoint_sequence),
            root_address: U64::new(self.root.map_or(0, |r| r.address.raw())),
            root_crc: U32::new(self.root.map_or(0, |r| r.crc)),
            table_crc: U32::new(self.table.map_or(0, |t| t.2)),
            table_address: U64::new(self.table.map_or(0, |t| t.0.raw())),
            table_bytes: U64::new(self.table.map_or(0, |t| t.1)),
            next_inode: U64::new(self.next_inode),
            next_version: U64::new(self.next_version),
            clean: U32::new(u32::from(self.clean)),
            reserved: [0; 3952],
            checksum: U32::new(0),
        };
        raw.checksum = U32::new(crc32c(&raw.as_bytes()[..BLOCK - 4]));
        raw.as_bytes().to_vec()
    }

    /// Validates the bytes of slot `slot`.
    ///
    /// # Errors
    /// `Corrupt` where they are not a superblock's; `Unsupported` where a newer or an older ferry wrote them.
    pub(crate) fn decode(bytes: &[u8], slot: u32) -> Result<Self> {
        let raw = RawSuperblock::ref_from_bytes(bytes)
            .map_err(|_| Error::corrupt("the superblock has the wrong length"))?;
        if raw.magic != MAGIC {
            return Err(Error::corrupt("not a superblock").with("slot", slot));
        }
        if raw.checksum.get() != crc32c(&bytes[..BLOCK - 4]) || raw.slot.get() != slot {
            return Err(Error::corrupt("the superblock's checksum does not match").with("slot", slot));
        }
        if raw.version.get() > VERSION || raw.incompatible.get() & !FREED_BY_RECORD != 0 {
            return Err(Error::unsupported("this store was written by a newer ferry")
                .with("version", raw.version)
                .with("known", VERSION));
        }
        if raw.version.get() < VERSION {
            // Its log may hold records that mean something else now.
            let text = "this store was written by an older ferry: export its images with that one";
            return Err(Error::unsupported(text).with("version", raw.version).with("known", VERSION));
        }
        if raw.reserved.iter().any(|b| *b != 0)
            || raw.clean.get() > 1
            || !(SEGMENT_BLOCKS_MIN..=SEGMENT_BLOCKS_MAX).contains(&raw.segment_blocks.get())
        {
            return Err(Error::corrupt("the superblock says what no ferry writes").with("slot", slot));
        }
        let root = Address::from_raw(raw.root_address.get()).map(|address| TreeRoot {
            address,
            crc: raw.root_crc.get(),
            level: u8::try_from(raw.root_level.get()).unwrap_or(u8::MAX),
        });
        let table = Address::from_raw(raw.table_address.get())
            .map(|address| (address, raw.table_bytes.get(), raw.table_crc.get()));
        Ok(Self {
            store: raw.store,
            generation: raw.generation.get(),
            epoch: raw.epoch.get(),
            opens: raw.opens.get(),
            segment_blocks: raw.segment_blocks.get(),
            capacity_bytes: raw.capacity_bytes.get(),
            checkpoint_sequence: raw.checkpoint_sequence.get(),
            root,
            table,
            next_inode: raw.next_inode.get(),
            next_version: raw.next_version.get(),
            clean: raw.clean.get() == 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use ferry_core::ErrorKind;
    use ferry_core::checksum::crc32c;

    use super::{BLOCK, Superblock, VERSION};

    #[test]
    fn stores_of_older_and_newer_versions_are_refused_as_such() {
        let superblock = Superblock {
            store: [7; 16],
            generation: 1,
            epoch: 1,
            opens: 0,
            segment_blocks: 4096,
            capacity_bytes: 0,
            checkpoint_sequence: 0,
            root: None,
            table: None,
            next_inode: 1,
            next_version: 1,
            clean: true,
        };
        let bytes = superblock.encode(0);
        assert_eq!(Superblock::decode(&bytes, 0).unwrap(), superblock);
        let with = |at: usize, field: &[u8]| {
            let mut other = bytes.clone();
            other[at..at + field.len()].copy_from_slice(field);
            let sum = crc32c(&other[..BLOCK - 4]);
            other[BLOCK - 4..].copy_from_slice(&sum.to_le_bytes());
            Superblock::decode(&other, 0)
        };
        for (version, word) in [(VERSION - 1, "older"), (VERSION + 1, "newer")] {
            let refused = with(8, &version.to_le_bytes()).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unsupported);
            assert!(refused.to_string().contains(word), "{refused}");
        }
        assert_eq!(with(16, &0_u64.to_le_bytes()).unwrap(), superblock, "a store without the feature");
        assert_eq!(with(16, &2_u64.to_le_bytes()).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
