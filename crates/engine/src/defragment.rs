//! Writing an object's blocks together again.
//!
//! Random overwrites leave an object's blocks wherever the log's head was. In idle time such objects are rewritten in order, so that
//! reading them through is sequential. Blocks shared with other objects stay: moving one reference would copy the data.

use std::collections::{HashMap, HashSet};
use std::sync::MutexGuard;

use ferry_core::Result;

use crate::address::{Address, Block};
use crate::cleaner::Live;
use crate::core::Core;
use crate::disk::SegmentNo;
use crate::engine::Engine;
use crate::index::pieces;
use crate::key::{Key, KeyReader, Tag};
use crate::record::{BlockRef, HEAD};
use crate::tree::After;

/// Objects looked at under one lock.
const OBJECTS_PER_STEP: usize = 16;

/// Blocks found to be moved under one lock: an object's worth.
const STEP_BLOCKS: usize = 1024;

/// Blocks of the mean run below which an object counts as scattered: 128 KiB, about what a disk reads in the time of a seek.
const RUN_BLOCKS: usize = 32;

/// Which blocks of a segment are shared, as far as it was asked.
type Shared = HashMap<SegmentNo, HashSet<u32>>;

/// What [`Engine::defragment_piece`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defragmented {
    /// Blocks of 4 KiB written anew.
    pub moved_blocks: u64,
    /// Where to go on; nowhere, where all was looked at or room became short.
    pub next: Option<u64>,
}

impl Engine {
    /// Rewrites every scattered object in order, as far as there is room. For idle time. Returns the blocks moved.
    ///
    /// # Errors
    /// As [`Engine::sync`].
    pub fn defragment(&self) -> Result<u64> {
        let mut moved = 0;
        let mut next = Some(0);
        let turn = self.turn();
        while let Some(from) = next {
            let piece = self.defragment_in(&turn, from)?;
            moved += piece.moved_blocks;
            next = piece.next;
            while self.checkpoint_step(&turn)? {}
            if self.lock_behind().frees_enough()? {
                self.checkpoint_in(&turn)?;
            }
        }
        self.checkpoint_in(&turn)?;
        Ok(moved)
    }

    /// Does a bounded piece of [`Engine::defragment`], from the object on that the piece before said; the first begins at 0. What it
    /// empties is free again after the next checkpoint, which [`Engine::maintain`] writes when it is due or begun.
    ///
    /// # Errors
    /// As [`Engine::sync`].
    pub fn defragment_piece(&self, from: u64) -> Result<Defragmented> {
        let turn = self.turn();
        self.defragment_in(&turn, from)
    }

    fn defragment_in(&self, turn: &MutexGuard<'_, ()>, from: u64) -> Result<Defragmented> {
        if self.checkpoint_piece(turn)? {
            return Ok(Defragmented { moved_blocks: 0, next: Some(from) });
        }
        let (next, live) = self.lock_behind().defragment_step(from)?;
        self.move_blocks(turn, &live)?;
        if !live.is_empty() {
            // There may be something to check in and to clean.
            self.lock_behind().quiet = None;
        }
        Ok(Defragmented { moved_blocks: live.len() as u64, next })
    }
}

impl Core {
    /// Looks at some objects from inode `from` on. Returns where to go on, and the blocks to move.
    fn defragment_step(&mut self, from: u64) -> Result<(Option<u64>, Vec<Live>)> {
        self.check_writable()?;
        // So that every block is on the disk.
        self.log_seal()?;
        self.settle_all()?;
        self.write_back()?;
        let prefix = Key::new(Tag::Inode);
        let start = Key::new(Tag::Inode).u64(from);
        let found = self.tree.scan(start.bytes(), After::Including, prefix.bytes(), OBJECTS_PER_STEP)?;
        let mut inodes: Vec<u64> =
            found.iter().map(|(k, _)| KeyReader::new(k).u64()).collect::<Result<_>>()?;
        inodes.dedup();
        let last = inodes.last().copied();
        let mut shared = Shared::new();
        let mut live = Vec::new();
        for inode in inodes {
            let room = self.space.available(&*self.disk)?.saturating_sub(u64::from(self.space.reserve()) + 2);
            let blocks = room * u64::from(self.space.segment_blocks()) / 2;
            if live.len() as u64 >= blocks {
                return Ok((None, live));
            }
            live.append(&mut self.scattered_blocks(inode, &mut shared)?);
            if live.len() >= STEP_BLOCKS {
                return Ok((Some(inode + 1), live));
            }
        }
        // Where there was none: the end.
        Ok((last.map(|last| last + 1), live))
    }

    /// The blocks of HEAD that only this object refers to, if they lie scattered.
    fn scattered_blocks(&mut self, inode: u64, shared: &mut Shared) -> Result<Vec<Live>> {
        let object = self.object(inode)?;
        if !object.exists {
            return Ok(Vec::new());
        }
        let mut blocks: Vec<(u32, Address, u32)> = Vec::new();
        for (chunk, first, from, n) in pieces(0, object.blocks()) {
            let table = self.chunk((inode, HEAD, chunk))?;
            for (block, i) in (first..).zip(from..from + n) {
                if let Block::Data(address, crc) = table.get(i) {
                    blocks.push((block, address, crc));
                }
            }
        }
        let joined = |w: &[(u32, Address, u32)]| {
            w[0].0 + 1 == w[1].0
                && w[0].1.segment() == w[1].1.segment()
                && w[0].1.block() + 1 == w[1].1.block()
        };
        let gaps = |w: &[(u32, Address, u32)]| w[0].0 + 1 == w[1].0 && !joined(w);
        let breaks = blocks.windows(2).filter(|w| gaps(w)).count();
        // One break is nobody's fault: the end of a segment.
        if breaks <= (blocks.len() / RUN_BLOCKS).max(1) {
            return Ok(Vec::new());
        }
        let mut live = Vec::new();
        for (block, address, _) in blocks {
            if self.is_shared(address, shared)? {
                continue;
            }
            let mut refs: Vec<BlockRef> = Vec::new();
            let mut crc = 0;
            self.references_to(address, inode, block, &mut refs, &mut crc)?;
            live.push((refs, address, crc));
        }
        Ok(live)
    }

    fn is_shared(&mut self, address: Address, shared: &mut Shared) -> Result<bool> {
        let no = address.segment();
        if let Some(blocks) = shared.get(&no) {
            return Ok(blocks.contains(&address.block()));
        }
        let mut blocks = HashSet::new();
        let prefix = Key::new(Tag::Sharer).u32(no.0);
        for (key, value) in self.tree.scan(prefix.bytes(), After::Including, prefix.bytes(), usize::MAX)? {
            let mut r = KeyReader::new(&key);
            let (_, from) = (r.u32()?, u32::from(r.u16()?));
            let length = value.first_chunk::<2>().map_or(0, |b| u16::from_le_bytes(*b));
            blocks.extend(from..from + u32::from(length));
        }
        let found = blocks.contains(&address.block());
        shared.insert(no, blocks);
        Ok(found)
    }
}
