//! The bytes of one version of an object: blocks that exist, holes between them.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use crate::limits::BLOCK_SIZE;
use crate::store::Stamp;

/// [`BLOCK_SIZE`] as a count of bytes in memory.
const BLOCK: usize = 4096;
const _: () = assert!(BLOCK as u64 == BLOCK_SIZE);

/// Sparse bytes.
///
/// # Invariants
/// Every block is 4 KiB long, begins below `size`, and is zero past it.
#[derive(Clone, Debug, Default)]
pub(super) struct Data {
    /// Bytes.
    pub(super) size: u64,
    /// Left by the op that made this version.
    pub(super) stamp: Option<Stamp>,
    blocks: BTreeMap<u64, Bytes>,
}

/// The part of block `index` that lies in `[offset, offset + length)`: `(first byte, past the last)` inside it.
fn within(index: u64, offset: u64, length: u64) -> (usize, usize) {
    let start = index * BLOCK_SIZE;
    let from = offset.max(start) - start;
    let to = (offset + length).min(start + BLOCK_SIZE) - start;
    (usize::try_from(from).expect("inside a block"), usize::try_from(to).expect("inside a block"))
}

/// The blocks that `[offset, offset + length)` touches.
fn touched(offset: u64, length: u64) -> std::ops::Range<u64> {
    if length == 0 { 0..0 } else { offset / BLOCK_SIZE..(offset + length).div_ceil(BLOCK_SIZE) }
}

impl Data {
    /// Puts `bytes` at `offset`.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let length = bytes.len() as u64;
        let mut rest = bytes;
        for index in touched(offset, length) {
            let (from, to) = within(index, offset, length);
            let (now, later) = rest.split_at(to - from);
            rest = later;
            self.patch(index, from, now);
        }
        self.size = self.size.max(offset + length);
    }

    /// Puts bytes into one block.
    fn patch(&mut self, index: u64, from: usize, bytes: &[u8]) {
        let mut block = BytesMut::zeroed(BLOCK);
        if let Some(old) = self.blocks.get(&index) {
            block.copy_from_slice(old);
        }
        block[from..from + bytes.len()].copy_from_slice(bytes);
        self.blocks.insert(index, block.freeze());
    }

    /// Makes a range read as zeros; one that reaches the end cuts there.
    pub(super) fn zero(&mut self, offset: u64, length: u64) {
        if length > 0 && offset < self.size && offset + length >= self.size {
            self.truncate(offset);
        } else {
            self.punch(offset, length);
        }
    }

    /// Makes a range read as zeros; blocks wholly inside it, or up to the end, become holes. The size stays.
    fn punch(&mut self, offset: u64, length: u64) {
        let length = length.min(self.size.saturating_sub(offset));
        for index in touched(offset, length) {
            let (from, to) = within(index, offset, length);
            if from == 0 && (to == BLOCK || offset + length == self.size) {
                self.blocks.remove(&index);
            } else if self.blocks.contains_key(&index) {
                self.patch(index, from, &vec![0; to - from]);
            }
        }
    }

    /// Sets the size.
    pub(super) fn truncate(&mut self, size: u64) {
        if size < self.size {
            self.punch(size, self.size - size);
        }
        self.size = size;
    }

    /// What exists in a range, neighbours joined.
    pub(super) fn extents(&self, offset: u64, length: u64) -> Vec<(u64, Bytes)> {
        let length = length.min(self.size.saturating_sub(offset));
        let mut joined: Vec<(u64, BytesMut)> = Vec::new();
        for (&index, block) in self.blocks.range(touched(offset, length)) {
            let (from, to) = within(index, offset, length);
            let at = index * BLOCK_SIZE + from as u64;
            match joined.last_mut() {
                Some((start, bytes)) if *start + bytes.len() as u64 == at => {
                    bytes.extend_from_slice(&block[from..to]);
                }
                _ => joined.push((at, BytesMut::from(&block[from..to]))),
            }
        }
        joined.into_iter().map(|(at, bytes)| (at, bytes.freeze())).collect()
    }

    /// Makes `[target, +length)` what `[offset, +length)` of `source` is.
    pub(super) fn share(&mut self, source: &Self, offset: u64, length: u64, target: u64) {
        self.punch(target, length);
        for (at, bytes) in source.extents(offset, length) {
            self.write(target + (at - offset), &bytes);
        }
        let copied = length.min(source.size.saturating_sub(offset));
        self.size = self.size.max(target + copied);
    }

    /// Ranges that were not touched between this version and a `newer` one, by whole blocks.
    pub(super) fn unchanged(&self, newer: &Self) -> Vec<(u64, u64)> {
        let common = self.size.min(newer.size);
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for index in touched(0, common) {
            let same = match (self.blocks.get(&index), newer.blocks.get(&index)) {
                (None, None) => true,
                (Some(a), Some(b)) => a.as_ptr() == b.as_ptr(),
                (Some(_), None) | (None, Some(_)) => false,
            };
            if !same {
                continue;
            }
            let start = index * BLOCK_SIZE;
            let length = BLOCK_SIZE.min(common - start);
            match ranges.last_mut() {
                Some((at, n)) if *at + *n == start => *n += length,
                _ => ranges.push((start, length)),
            }
        }
        ranges
    }

    /// Bytes of the blocks that exist.
    pub(super) fn used(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK_SIZE
    }
}
