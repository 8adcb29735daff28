//! The object map: two bits for each data object, so that nobody has to ask the store what does not exist.
//!
//! ```text
//!              write            snapshot            write
//!   Absent ──────────► Exists ───────────► Clean ──────────► Exists
//!                        │                   │
//!                        └─────── discard ───┴──► Pending ──(removed)──► Absent
//! ```
//!
//! - A map may claim that an object exists which does not; never the other way round. So `Exists` is stored before the first
//!   write to an object, and `Absent` only after its removal.
//! - One map belongs to HEAD and one to each snapshot; only the owner of the exclusive lock changes them.
//! - Bits and checksums of one 4 KiB block are written together, in one store operation.
//!
//! # Source
//! `docs/format/object-map.md`; the examples of the tests were written by stock `rbd`.

#[cfg(test)]
mod tests;

use std::ops::Range;

use bytes::Bytes;
use ferry_core::checksum::crc32c_ceph;
use ferry_core::denc::{Decoder, Encoder};
use ferry_core::{Errno, Error, ErrorKind, Result};

use crate::layout::ObjectNo;

/// Most objects an image with a map may have, as `rbd` limits it.
pub const OBJECTS_MAX: u64 = 256_000_000;

/// Bytes before the bit vector: a length and the framed object count.
const HEADER_LEN: usize = 18;

/// Bytes of bit vector under one checksum.
const CRC_BLOCK: usize = 4096;

/// What a map says of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectState {
    /// It does not exist.
    Absent,
    /// It may exist and may have been written since the last snapshot.
    Exists,
    /// It is being removed.
    Pending,
    /// It may exist and is as it was at the last snapshot.
    Clean,
}

impl ObjectState {
    /// Its two bits.
    fn bits(self) -> u8 {
        match self {
            Self::Absent => 0,
            Self::Exists => 1,
            Self::Pending => 2,
            Self::Clean => 3,
        }
    }

    /// The state of two bits; the others are ignored.
    fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Absent,
            1 => Self::Exists,
            2 => Self::Pending,
            _ => Self::Clean,
        }
    }

    /// Whether the object may be there.
    #[must_use]
    pub fn may_exist(self) -> bool {
        self != Self::Absent
    }
}

/// The map of one image at HEAD or at a snapshot.
///
/// # Invariants
/// `bits` holds four objects a byte, the first in the top two bits; bits behind the last object are zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectMap {
    count: u64,
    bits: Vec<u8>,
}

impl ObjectMap {
    /// A map of `count` absent objects.
    ///
    /// # Errors
    /// `Invalid` (27) above [`OBJECTS_MAX`].
    pub fn new(count: u64) -> Result<Self> {
        check_count(count)?;
        Ok(Self { count, bits: vec![0; bytes_for(count)] })
    }

    /// A map that says the same of all its `count` objects.
    ///
    /// # Errors
    /// `Invalid` (27) above [`OBJECTS_MAX`].
    pub fn all(count: u64, state: ObjectState) -> Result<Self> {
        let mut map = Self::new(count)?;
        (0..count).for_each(|n| _ = map.set(ObjectNo(n), state));
        Ok(map)
    }

    /// How many objects it knows.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// What it says of `object`; an object behind its end is absent.
    #[must_use]
    pub fn get(&self, object: ObjectNo) -> ObjectState {
        if object.0 >= self.count {
            return ObjectState::Absent;
        }
        let (byte, shift) = place(object);
        ObjectState::from_bits(self.bits[byte] >> shift)
    }

    /// Sets a state; whether that changed anything.
    ///
    /// # Panics
    /// If the object lies behind the end of the map.
    pub fn set(&mut self, object: ObjectNo, state: ObjectState) -> bool {
        assert!(object.0 < self.count, "an object inside the image is inside its map");
        let (byte, shift) = place(object);
        let before = self.bits[byte];
        self.bits[byte] = before & !(3 << shift) | state.bits() << shift;
        self.bits[byte] != before
    }

    /// All states, from object 0 on.
    pub fn states(&self) -> impl Iterator<Item = (ObjectNo, ObjectState)> {
        (0..self.count).map(|n| (ObjectNo(n), self.get(ObjectNo(n))))
    }

    /// Changes the number of objects; new ones are absent.
    ///
    /// # Errors
    /// `Conflict` (116) where an object to be cut off may exist; `Invalid` (27) above [`OBJECTS_MAX`].
    pub fn resize(&mut self, count: u64) -> Result<()> {
        check_count(count)?;
        if (count..self.count).any(|n| self.get(ObjectNo(n)).may_exist()) {
            return Err(Error::new(ErrorKind::Conflict, "an object behind the new end may still exist")
                .errno_is(Errno::ESTALE));
        }
        self.count = count;
        self.bits.resize(bytes_for(count), 0);
        Ok(())
    }

    /// Turns HEAD's map into the one after a snapshot was taken of it: what existed is now clean.
    pub fn mark_clean(&mut self) {
        for byte in &mut self.bits {
            // 01 becomes 11: set the upper bit of each pair whose lower bit is set.
            *byte |= (*byte & 0x55) << 1;
        }
    }

    /// Takes over what the map of a removed snapshot knew, this being the next newer map: an object changed before that
    /// snapshot has changed since the one before it as well.
    pub fn absorb_removed(&mut self, removed: &Self) {
        for n in 0..self.count {
            let object = ObjectNo(n);
            let changed = n >= removed.count || removed.get(object) == ObjectState::Exists;
            if changed && self.get(object) == ObjectState::Clean {
                self.set(object, ObjectState::Exists);
            }
        }
    }

    /// The map as stored.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let header = encode_header(self.count);
        let mut e = Encoder::new();
        e.blob(&header);
        e.raw(&self.bits);
        let crcs: Vec<u32> = self.bits.chunks(CRC_BLOCK).map(crc32c_ceph).collect();
        let blocks = u32::try_from(crcs.len()).expect("256 million objects are 15625 blocks");
        e.u32(8 + 4 * blocks);
        e.u32(crc32c_ceph(&header));
        e.u32(blocks);
        for crc in crcs {
            e.u32(crc);
        }
        e.finish()
    }

    /// Reads a stored map. Bytes behind the footer and bits behind the last object are ignored.
    ///
    /// # Errors
    /// `Corrupt` (5) where it is cut short, claims too many objects or fails a checksum.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut d = Decoder::new(bytes);
        let header = d.blob()?;
        let count = Decoder::new(header).frame(1, |d, _| d.u64())?;
        if count > OBJECTS_MAX {
            return Err(Error::corrupt("an object map claims too many objects").with("objects", count));
        }
        let bits = d.raw(bytes_for(count))?;
        let mut footer = Decoder::new(d.blob()?);
        if !footer.rest().is_empty() {
            check_crc(header, footer.u32()?)?;
            if footer.u32()? as usize != bits.len().div_ceil(CRC_BLOCK) {
                return Err(Error::corrupt("an object map has another number of checksums than of blocks"));
            }
            for block in bits.chunks(CRC_BLOCK) {
                check_crc(block, footer.u32()?)?;
            }
        }
        let mut map = Self { count, bits: bits.to_vec() };
        let used = usize::try_from(count % 4).expect("below 4");
        if let (1.., Some(last)) = (used, map.bits.last_mut()) {
            *last &= 0xFF_u8 << (8 - 2 * used);
        }
        Ok(map)
    }

    /// The writes `(offset, bytes)` that bring the stored map up to date after `objects` changed: their bytes and the
    /// checksums of the blocks they lie in. The stored map must be one of this object count, and all writes go in one
    /// operation.
    #[must_use]
    pub fn stored_update(&self, objects: Range<u64>) -> Vec<(u64, Bytes)> {
        let end = objects.end.min(self.count);
        if objects.start >= end {
            return Vec::new();
        }
        let (first, _) = place(ObjectNo(objects.start));
        let (last, _) = place(ObjectNo(end - 1));
        let (block_first, block_last) = (first / CRC_BLOCK, last / CRC_BLOCK);
        let crcs: Vec<u8> = self
            .bits
            .chunks(CRC_BLOCK)
            .skip(block_first)
            .take(block_last + 1 - block_first)
            .flat_map(|block| crc32c_ceph(block).to_le_bytes())
            .collect();
        // Behind the bits: footer length, header checksum, number of blocks.
        let crc_at = HEADER_LEN + self.bits.len() + 12 + 4 * block_first;
        vec![
            ((HEADER_LEN + first) as u64, Bytes::copy_from_slice(&self.bits[first..=last])),
            (crc_at as u64, Bytes::from(crcs)),
        ]
    }
}

/// What came out of reading a stored map.
#[derive(Debug, PartialEq, Eq)]
pub enum Loaded {
    /// It can be trusted. It may know more objects than the image has.
    Valid(ObjectMap),
    /// It cannot: the flags "object map invalid" and "fast diff invalid" go on, and `replacement` takes its place.
    Invalid {
        /// What to store: the right number of objects, all absent, or what was readable.
        replacement: ObjectMap,
        /// Why, for the log.
        reason: &'static str,
    },
}

/// Judges the stored map of an image or snapshot of `count` objects; `None` where the map object does not exist.
///
/// # Errors
/// `Invalid` (27) where the image has too many objects for a map.
pub fn load(stored: Option<&[u8]>, count: u64) -> Result<Loaded> {
    let (mut replacement, reason) = match stored.map(ObjectMap::decode) {
        None => (ObjectMap::new(count)?, "the object map is missing"),
        Some(Err(_)) => (ObjectMap::new(count)?, "the object map is unreadable"),
        Some(Ok(map)) if map.count() < count => (map, "the object map is too small"),
        Some(Ok(map)) => return Ok(Loaded::Valid(map)),
    };
    replacement.resize(count)?;
    Ok(Loaded::Invalid { replacement, reason })
}

/// The framed object count.
fn encode_header(count: u64) -> Bytes {
    let mut e = Encoder::new();
    e.frame(1, 1, |e| e.u64(count));
    e.finish()
}

/// Bytes of bit vector for `count` objects.
fn bytes_for(count: u64) -> usize {
    usize::try_from(count.div_ceil(4)).expect("256 million objects fit memory")
}

/// Byte and shift of an object inside the bit vector.
fn place(object: ObjectNo) -> (usize, u32) {
    let byte = usize::try_from(object.0 / 4).expect("256 million objects fit memory");
    let in_byte = u32::try_from(object.0 % 4).expect("below 4");
    (byte, 6 - 2 * in_byte)
}

/// Refuses a map larger than any `rbd` would read.
fn check_count(count: u64) -> Result<()> {
    if count > OBJECTS_MAX {
        return Err(Error::invalid("an image with an object map has too many objects")
            .errno_is(Errno::EFBIG)
            .with("objects", count));
    }
    Ok(())
}

/// Compares a stored checksum.
fn check_crc(bytes: &[u8], stored: u32) -> Result<()> {
    if crc32c_ceph(bytes) != stored {
        return Err(Error::corrupt("an object map fails its checksum"));
    }
    Ok(())
}
