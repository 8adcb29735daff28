//! A chunk of an object's table: what each of 64 neighbouring blocks is. Layout: `docs/format/index.md`.

use ferry_core::denc::{Decoder, Encoder};
use ferry_core::{Error, Result};

use crate::address::{Address, Block};
use crate::limits::CHUNK_BLOCKS;

const FORM_RUNS: u8 = 1;
const FORM_DENSE: u8 = 2;

const RAW_ABSENT: u64 = 0;
const RAW_ZERO: u64 = 1;
const RAW_HOLE: u64 = 2;

/// What each of 64 neighbouring blocks is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    slots: [Slot; CHUNK_BLOCKS],
    used: u8,
}

/// The 48 bits of an address, low half first, and the CRC: together, as a random read has neither in its caches, and without the
/// padding of a `u64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot([u32; 3]);

impl Slot {
    const ABSENT: Self = Self([0; 3]);

    fn new(raw: u64, crc: u32) -> Self {
        let half = |bits: u64| u32::try_from(bits & 0xFFFF_FFFF).expect("32 bits");
        Self([half(raw), half(raw >> 32), crc])
    }

    fn raw(self) -> u64 {
        u64::from(self.0[1]) << 32 | u64::from(self.0[0])
    }

    fn crc(self) -> u32 {
        self.0[2]
    }
}

impl Default for Chunk {
    fn default() -> Self {
        Self { slots: [Slot::ABSENT; CHUNK_BLOCKS], used: 0 }
    }
}

impl Chunk {
    /// What block `i` is.
    pub(crate) fn get(&self, i: usize) -> Block {
        match self.slots[i].raw() {
            RAW_ABSENT => Block::Absent,
            RAW_ZERO => Block::Zero,
            RAW_HOLE => Block::Hole,
            raw => {
                Block::Data(Address::from_raw(raw).expect("only addresses are put in"), self.slots[i].crc())
            }
        }
    }

    /// Says what block `i` is from now on.
    pub(crate) fn set(&mut self, i: usize, block: Block) {
        let (raw, crc) = match block {
            Block::Absent => (RAW_ABSENT, 0),
            Block::Zero => (RAW_ZERO, 0),
            Block::Hole => (RAW_HOLE, 0),
            Block::Data(address, crc) => (address.raw(), crc),
        };
        self.used -= u8::from(self.slots[i].raw() != RAW_ABSENT);
        self.used += u8::from(raw != RAW_ABSENT);
        self.slots[i] = Slot::new(raw, crc);
    }

    /// Whether every block is absent.
    pub(crate) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Its form in the index: runs, or dense where that is shorter.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let runs = self.runs();
        let data: usize = runs.iter().filter(|r| r.2 > RAW_HOLE).map(|r| r.1).sum();
        let mut e = Encoder::new();
        if runs.len() * 8 + data * 4 < CHUNK_BLOCKS * 10 {
            e.u8(FORM_RUNS);
            e.u8(u8::try_from(runs.len()).expect("at most 64"));
            for (start, length, raw) in runs {
                e.u8(u8::try_from(start).expect("below 64"));
                e.u8(u8::try_from(length).expect("at most 64"));
                e.raw(&raw.to_le_bytes()[..6]);
                if raw > RAW_HOLE {
                    for slot in &self.slots[start..start + length] {
                        e.u32(slot.crc());
                    }
                }
            }
        } else {
            e.u8(FORM_DENSE);
            for slot in self.slots {
                e.raw(&slot.raw().to_le_bytes()[..6]);
            }
            for slot in self.slots {
                e.u32(slot.crc());
            }
        }
        e.finish().to_vec()
    }

    /// `(start, length, raw of the first)` of each run; data runs have consecutive addresses.
    fn runs(&self) -> Vec<(usize, usize, u64)> {
        let mut runs: Vec<(usize, usize, u64)> = Vec::new();
        for (i, raw) in self.slots.iter().map(|slot| slot.raw()).enumerate() {
            if raw == RAW_ABSENT {
                continue;
            }
            if let Some((start, length, first)) = runs.last_mut()
                && *start + *length == i
                && (if *first > RAW_HOLE {
                    *first + *length as u64 == raw && (raw & 0xFFFF) != 0
                } else {
                    *first == raw
                })
            {
                *length += 1;
                continue;
            }
            runs.push((i, 1, raw));
        }
        runs
    }

    /// Reads its form in the index.
    ///
    /// # Errors
    /// `Corrupt` where it is not one.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut d = Decoder::new(bytes);
        let mut chunk = Self::default();
        match d.u8()? {
            FORM_RUNS => {
                for _ in 0..d.u8()? {
                    let (start, length) = (usize::from(d.u8()?), usize::from(d.u8()?));
                    let raw = raw48(&mut d)?;
                    if length == 0 || start + length > CHUNK_BLOCKS {
                        return Err(Error::corrupt("a run of an object's table is out of bounds"));
                    }
                    for i in 0..length {
                        let block = if raw > RAW_HOLE { raw + i as u64 } else { raw };
                        let crc = if raw > RAW_HOLE { d.u32()? } else { 0 };
                        chunk.set(start + i, block_of(block, crc)?);
                    }
                }
            }
            FORM_DENSE => {
                let mut raws = [0; CHUNK_BLOCKS];
                for raw in &mut raws {
                    *raw = raw48(&mut d)?;
                }
                for (i, raw) in raws.into_iter().enumerate() {
                    let crc = d.u32()?;
                    chunk.set(i, block_of(raw, crc)?);
                }
            }
            other => return Err(Error::corrupt("unknown form of an object's table").with("form", other)),
        }
        d.expect_end()?;
        Ok(chunk)
    }
}

fn raw48(d: &mut Decoder<'_>) -> Result<u64> {
    let mut bytes = [0; 8];
    bytes[..6].copy_from_slice(d.raw(6)?);
    Ok(u64::from_le_bytes(bytes))
}

fn block_of(raw: u64, crc: u32) -> Result<Block> {
    Ok(match raw {
        RAW_ABSENT => Block::Absent,
        RAW_ZERO => Block::Zero,
        RAW_HOLE => Block::Hole,
        raw => {
            let address = Address::from_raw(raw)
                .ok_or_else(|| Error::corrupt("an object's table points nowhere").with("raw", raw))?;
            Block::Data(address, crc)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::Chunk;
    use crate::address::{Address, Block};
    use crate::disk::SegmentNo;
    use ferry_core::Rng;
    use ferry_core::testing::TestRng;

    #[test]
    fn any_chunk_reads_back() {
        let rng = TestRng::new(1);
        for _ in 0..2000 {
            let mut chunk = Chunk::default();
            let style = rng.below(4);
            for i in 0..64 {
                let block = match rng.below(4 + style) {
                    0 => Block::Absent,
                    1 => Block::Zero,
                    2 => Block::Hole,
                    _ if style < 2 => Block::Data(Address::new(SegmentNo(7), 100 + i), 5),
                    _ => Block::Data(
                        Address::new(SegmentNo(1 + u32::try_from(rng.below(9)).unwrap()), 65535 - i),
                        u32::try_from(rng.next_u64() >> 32).unwrap(),
                    ),
                };
                chunk.set(i as usize, block);
            }
            let bytes = chunk.encode();
            assert!(bytes.len() <= 641 + 2);
            assert_eq!(Chunk::decode(&bytes).unwrap(), chunk);
            for cut in 0..bytes.len() {
                assert!(Chunk::decode(&bytes[..cut]).is_err());
            }
        }
    }
}
