//! What tells the bytes of a part of an image from any others: sums of the hashes of its blocks.
//!
//! Invariants
//! - Blocks are [`SPARSE_BLOCK`] bytes on multiples of that in the image. Zeros, stored or not, count for nothing: what reads
//!   the same has the same digest, whatever the layout.
//! - A digest of two parts that share no block is the sum of theirs.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use ferry_core::SparseData;
use ferry_core::checksum::hash128;

use crate::layout::{ImageExtent, Layout};
use crate::limits::SPARSE_BLOCK;
use crate::zeroes::is_zero;

/// Bytes of a block.
const BLOCK: usize = 4096;
const _: () = assert!(BLOCK as u64 == SPARSE_BLOCK);

/// A sum of the hashes of blocks, modulo 2^128. The default is that of zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(pub u128);

impl Digest {
    /// In place of that of what was copied without being read: it tells that it was copied, and equals none of bytes.
    pub const UNREAD: Self = Self(u128::MAX - 1);

    /// Of extents as a read of an image gives them, ascending; whole blocks, but for where the image ends. And how many blocks
    /// are not zeros.
    #[must_use]
    pub fn of(data: &SparseData) -> (Self, u64) {
        let (mut sum, mut blocks) = (Self::default(), 0);
        each_block(data, |at, block| {
            if !is_zero(block) {
                sum += Self::of_block(at, block);
                blocks += 1;
            }
        });
        (sum, blocks)
    }

    /// Of one block at `offset` of the image; what it lacks of a whole one reads as zeros.
    #[must_use]
    pub fn of_block(offset: u64, block: &[u8]) -> Self {
        if is_zero(block) {
            return Self::default();
        }
        if block.len() == BLOCK {
            return Self(hash128(block, offset));
        }
        let mut whole = [0; BLOCK];
        whole[..block.len()].copy_from_slice(block);
        Self(hash128(&whole, offset))
    }
}

impl AddAssign for Digest {
    fn add_assign(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }
}

/// Whether each block of the image lies in one object, so that an object has a digest.
#[must_use]
pub fn has_whole_blocks(layout: Layout) -> bool {
    !layout.is_striped() || layout.stripe_unit().is_multiple_of(SPARSE_BLOCK)
}

/// The digests of the blocks that something holds, by their offset in the image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blocks(BTreeMap<u64, Digest>);

impl Blocks {
    /// Takes bytes into account whose blocks are not there yet; as [`Digest::of`].
    pub(crate) fn add(&mut self, data: &SparseData) {
        each_block(data, |at, block| {
            if !is_zero(block) {
                self.0.insert(at, Digest::of_block(at, block));
            }
        });
    }

    /// Forgets the blocks that a range touches.
    pub(crate) fn forget(&mut self, range: ImageExtent) {
        let first = range.offset / SPARSE_BLOCK * SPARSE_BLOCK;
        let gone: Vec<u64> = self.0.range(first..range.end()).map(|(at, _)| *at).collect();
        for at in gone {
            self.0.remove(&at);
        }
    }

    /// The digest of all.
    pub(crate) fn digest(&self) -> Digest {
        let mut sum = Digest::default();
        self.0.values().for_each(|d| sum += *d);
        sum
    }
}

/// Calls `found` with each block that has bytes, and its offset; where extents leave gaps in one they are zeros.
fn each_block(data: &SparseData, mut found: impl FnMut(u64, &[u8])) {
    // One of which there are only parts.
    let mut parts: Option<(u64, [u8; BLOCK])> = None;
    for (at, bytes) in &data.extents {
        let (mut at, mut rest) = (*at, &bytes[..]);
        while !rest.is_empty() {
            let start = at / SPARSE_BLOCK * SPARSE_BLOCK;
            let inside = usize::try_from(at - start).expect("less than a block");
            let (part, behind) = rest.split_at(rest.len().min(BLOCK - inside));
            if let Some((open, block)) = parts.take_if(|(open, _)| *open != start) {
                found(open, &block);
            }
            if part.len() == BLOCK {
                found(start, part);
            } else {
                let (_, block) = parts.get_or_insert((start, [0; BLOCK]));
                block[inside..inside + part.len()].copy_from_slice(part);
            }
            at += part.len() as u64;
            rest = behind;
        }
    }
    if let Some((open, block)) = parts {
        found(open, &block);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use ferry_core::SparseData;

    use super::{Blocks, Digest};
    use crate::layout::ImageExtent;

    fn sparse(extents: &[(u64, &[u8])]) -> SparseData {
        SparseData { extents: extents.iter().map(|(at, b)| (*at, Bytes::copy_from_slice(b))).collect() }
    }

    fn digest(data: &SparseData) -> Digest {
        Digest::of(data).0
    }

    #[test]
    fn what_reads_the_same_has_the_same_digest() {
        let mut image = vec![0_u8; 5 * 4096 - 100];
        image[10..9000].fill(3);
        image[18_000..].fill(9);
        let whole = digest(&sparse(&[(0, &image)]));
        assert_ne!(whole, Digest::default());
        let cut: Vec<(u64, &[u8])> =
            [(10, 700), (700, 701), (701, 4100), (4100, 9000), (9000, 9001), (17_000, image.len())]
                .iter()
                .map(|(from, to)| (*from as u64, &image[*from..*to]))
                .collect();
        assert_eq!(digest(&sparse(&cut)), whole);
        let mut padded = image.clone();
        padded.resize(6 * 4096, 0);
        assert_eq!(digest(&sparse(&[(0, &padded)])), whole);
        assert_eq!(digest(&sparse(&[(0, &[0; 9999])])), Digest::default());
    }

    #[test]
    fn any_flipped_bit_and_any_moved_block_is_another_digest() {
        let image = vec![1_u8; 2 * 4096];
        let whole = digest(&sparse(&[(0, &image)]));
        for at in (0..image.len()).step_by(97) {
            let mut other = image.clone();
            other[at] ^= 0x10;
            assert_ne!(digest(&sparse(&[(0, &other)])), whole, "{at}");
        }
        assert_ne!(digest(&sparse(&[(4096, &image)])), whole);
    }

    #[test]
    fn blocks_are_taken_away_and_added_anew() {
        let image = vec![5_u8; 4 * 4096];
        let mut blocks = Blocks::default();
        blocks.add(&sparse(&[(0, &image)]));
        assert_eq!(blocks.digest(), digest(&sparse(&[(0, &image)])));
        blocks.forget(ImageExtent { offset: 5000, length: 4096 });
        let rest = sparse(&[(0, &image[..4096]), (12_288, &image[12_288..])]);
        assert_eq!(blocks.digest(), digest(&rest));
        blocks.add(&sparse(&[(4096, &image[..8192])]));
        assert_eq!(blocks.digest(), digest(&sparse(&[(0, &image)])));
    }
}
