//! Ranges that one object shares with another.
//!
//! A share onto an object that has nothing yet is only noted, and carried out chunk by chunk when somebody looks, when the
//! source is about to change, and at the latest by the next checkpoint: the first write into a clone's object then costs
//! one chunk, however large the object.
//!
//! Invariants
//! - While a share is outstanding its source's blocks have references of their own, so nothing it needs can be freed.
//! - Whoever changes a table calls [`Core::settle_dependents`] first, so the source is as it was when the share was made.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ferry_core::Result;

use crate::address::{Address, Block};
use crate::chunk::Chunk;
use crate::core::Core;
use crate::index::pieces;
use crate::key;
use crate::limits::CHUNK_BLOCKS;
use crate::record::{BlockRef, HEAD};

/// A share not yet carried out for some chunks of the target.
#[derive(Clone, Debug)]
struct Outstanding {
    source: BlockRef,
    count: u32,
    block: u32,
    chunks: BTreeSet<u32>,
}

/// All shares not yet carried out.
#[derive(Debug, Default)]
pub(crate) struct Sharing {
    by_target: HashMap<u64, Vec<Outstanding>>,
    /// Targets of each source.
    by_source: BTreeMap<u64, BTreeSet<u64>>,
}

impl Sharing {
    /// Whether chunk `chunk` of `inode` has a share to be carried out.
    pub(crate) fn concerns(&self, inode: u64, chunk: u32) -> bool {
        !self.by_target.is_empty()
            && self.by_target.get(&inode).is_some_and(|l| l.iter().any(|o| o.chunks.contains(&chunk)))
    }

    /// Forgets what is outstanding for a target that goes.
    pub(crate) fn forget_target(&mut self, inode: u64) {
        if self.by_target.remove(&inode).is_some() {
            for targets in self.by_source.values_mut() {
                targets.remove(&inode);
            }
            self.by_source.retain(|_, targets| !targets.is_empty());
        }
    }

    /// Takes the shares of one chunk: they count as carried out.
    fn take(&mut self, inode: u64, chunk: u32) -> Vec<Outstanding> {
        let Some(list) = self.by_target.get_mut(&inode) else { return Vec::new() };
        let mut taken = Vec::new();
        for o in list.iter_mut() {
            if o.chunks.remove(&chunk) {
                taken.push(Outstanding { chunks: BTreeSet::new(), ..o.clone() });
            }
        }
        if list.iter().all(|o| o.chunks.is_empty()) {
            self.forget_target(inode);
        }
        taken
    }
}

impl Core {
    /// Applies a share: notes it where that is enough, else carries it out.
    pub(crate) fn apply_share(&mut self, source: BlockRef, count: u32, inode: u64, block: u32) -> Result<()> {
        let target = self.object(inode)?;
        let fresh = target.size == 0 && target.clones.is_empty();
        let aligned = (source.block ^ block).is_multiple_of(chunk_blocks());
        if source.inode != inode && fresh && aligned {
            let chunks = pieces(block, count).map(|p| p.0).collect();
            let outstanding = Outstanding { source, count, block, chunks };
            self.sharing.by_target.entry(inode).or_default().push(outstanding);
            self.sharing.by_source.entry(source.inode).or_default().insert(inode);
            return Ok(());
        }
        let mut done = 0;
        while done < count {
            let n = (count - done).min(chunk_blocks());
            let mut blocks = Vec::with_capacity(n as usize);
            for i in 0..n {
                let (found, owner) = self.resolve(source.inode, source.version, source.block + done + i)?;
                let same = source.inode == inode && owner == HEAD && source.block == block;
                blocks.push(if same {
                    None
                } else {
                    Some(if found == Block::Hole { Block::Absent } else { found })
                });
            }
            if blocks.iter().all(Option::is_some) {
                self.set_head(inode, block + done, n, |i| blocks[i as usize].unwrap_or(Block::Absent))?;
            } else {
                for (i, one) in (0..n).zip(&blocks) {
                    if let Some(one) = *one {
                        self.set_head(inode, block + done + i, 1, |_| one)?;
                    }
                }
            }
            if source.inode != inode || source.block != block {
                self.note_sharers(&blocks, inode, block + done)?;
            }
            done += n;
        }
        Ok(())
    }

    /// Carries out what is outstanding for one chunk of HEAD's table.
    pub(crate) fn settle_chunk(&mut self, inode: u64, chunk: u32) -> Result<()> {
        for share in self.sharing.take(inode, chunk) {
            let pool = self.object(inode)?.id.pool;
            let mut balance = 0;
            for (_, first, from, n) in pieces(share.block, share.count).filter(|p| p.0 == chunk) {
                let (there, _) = crate::index::split(share.source.block + (first - share.block));
                let table = self.resolved_chunk(share.source.inode, share.source.version, there)?;
                let mut blocks = Vec::with_capacity(n);
                let entry = self.chunk_to_change((inode, HEAD, chunk))?;
                for i in from..from + n {
                    let found = table.get(i);
                    entry.set(i, found);
                    blocks.push(Some(found));
                }
                for block in blocks.iter().flatten() {
                    self.space.add(*block)?;
                    balance += i64::from(block.address().is_some());
                }
                self.note_sharers(&blocks, inode, first)?;
            }
            self.count_blocks(pool, balance)?;
        }
        Ok(())
    }

    /// Carries out every share from `source`, which is about to change.
    pub(crate) fn settle_dependents(&mut self, source: u64) -> Result<()> {
        let Some(targets) = self.sharing.by_source.get(&source) else { return Ok(()) };
        for target in targets.clone() {
            self.settle_target(target)?;
        }
        Ok(())
    }

    /// Carries out every share there is.
    pub(crate) fn settle_all(&mut self) -> Result<()> {
        let mut targets: Vec<u64> = self.sharing.by_target.keys().copied().collect();
        targets.sort_unstable();
        targets.into_iter().try_for_each(|target| self.settle_target(target))
    }

    fn settle_target(&mut self, target: u64) -> Result<()> {
        let chunks: BTreeSet<u32> = self
            .sharing
            .by_target
            .get(&target)
            .map_or_else(BTreeSet::new, |l| l.iter().flat_map(|o| o.chunks.iter().copied()).collect());
        chunks.into_iter().try_for_each(|chunk| self.settle_chunk(target, chunk))
    }

    /// What a version's blocks are, one chunk of them, seen through newer versions.
    pub(crate) fn resolved_chunk(&mut self, inode: u64, version: u64, chunk: u32) -> Result<Chunk> {
        let mut ids: Vec<u64> = Vec::new();
        if version != HEAD {
            let object = self.object(inode)?;
            ids.extend(object.clones.iter().map(|c| c.id).filter(|id| *id >= version));
        }
        let mut found = Chunk::default();
        for id in ids {
            let table = self.chunk((inode, id, chunk))?;
            if !table.is_empty() {
                fill_absent(&mut found, table);
            }
        }
        let head = self.chunk((inode, HEAD, chunk))?;
        if found.is_empty() {
            return Ok(head.clone());
        }
        fill_absent(&mut found, head);
        for i in 0..CHUNK_BLOCKS {
            if found.get(i) == Block::Hole {
                found.set(i, Block::Absent);
            }
        }
        Ok(found)
    }

    /// Notes for the cleaner who else uses these blocks, run by run.
    pub(crate) fn note_sharers(&mut self, blocks: &[Option<Block>], inode: u64, block: u32) -> Result<()> {
        let mut runs: Vec<(Address, u32, u16)> = Vec::new();
        for (i, entry) in (0..).zip(blocks) {
            let Some(address) = entry.and_then(Block::address) else { continue };
            if let Some((first, target, length)) = runs.last_mut()
                && first.segment() == address.segment()
                && first.block() + u32::from(*length) == address.block()
                && *target + u32::from(*length) == block + i
            {
                *length += 1;
                continue;
            }
            runs.push((address, block + i, 1));
        }
        for (first, target, length) in runs {
            let from = u16::try_from(first.block()).expect("16 bits");
            self.put(&key::sharer(first.segment(), from, inode, target), &length.to_le_bytes())?;
        }
        Ok(())
    }
}

/// Takes from `below` what `found` says nothing of.
fn fill_absent(found: &mut Chunk, below: &Chunk) {
    for i in 0..CHUNK_BLOCKS {
        if found.get(i) == Block::Absent {
            found.set(i, below.get(i));
        }
    }
}

fn chunk_blocks() -> u32 {
    u32::try_from(CHUNK_BLOCKS).expect("a chunk is small")
}
