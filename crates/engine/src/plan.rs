//! From a write op to the records that perform it.
//!
//! The effects are played on a draft of the object; what comes out is the difference. Nothing changes before all of it is
//! known to be possible.

use bytes::Bytes;
use ferry_core::limits::{BLOCK_SIZE, OBJECT_SIZE_MAX};
use ferry_core::{Effect, Error, ObjectId, Result, SnapContext, SnapId, WriteOp};

use crate::address::Block;
use crate::core::Core;
use crate::draft::{Draft, Drafts};
use crate::limits::BLOCK;
use crate::object::{ObjectRecord, blocks_of};
use crate::record::{BlockRef, HEAD, Record};
use crate::space::Purpose;

/// What a write op comes to.
#[derive(Debug)]
pub(crate) struct Plan {
    /// In order.
    pub(crate) records: Vec<Record>,
    /// Whole blocks, in the order of the records.
    pub(crate) payload: Vec<Bytes>,
    /// Whose space it takes.
    pub(crate) purpose: Purpose,
    /// Version of the object afterwards.
    pub(crate) version: u64,
}

/// A version of an object.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) inode: u64,
    /// [`HEAD`], or the id of a preserved one.
    pub(crate) version: u64,
    /// Size of its data. Bytes.
    pub(crate) size: u64,
    /// Version number of the object at HEAD, and whether it exists there.
    pub(crate) head: u64,
    pub(crate) exists: bool,
}

/// The object as it will be.
#[derive(Debug)]
struct Scratch {
    inode: u64,
    before: Option<ObjectRecord>,
    exists: bool,
    size: u64,
    blocks: Drafts,
    touches_data: bool,
    metadata: Vec<Record>,
}

impl Core {
    /// Plans `op` on an object that is `known` under an inode, or new. Guards have been looked at.
    pub(crate) fn plan(
        &mut self,
        id: &ObjectId,
        known: Option<u64>,
        op: &WriteOp,
        creates: bool,
    ) -> Result<Plan> {
        op.check(id)?;
        let before = match known {
            Some(inode) => Some(self.object(inode)?.clone()),
            None => None,
        };
        let exists = before.as_ref().is_some_and(|b| b.exists);
        let mut scratch = Scratch {
            inode: known.unwrap_or(self.next_inode),
            exists: exists || creates,
            size: before.as_ref().map_or(0, |b| b.size),
            before,
            blocks: Drafts::default(),
            touches_data: op.touches_data(),
            metadata: Vec::new(),
        };
        for effect in &op.effects {
            self.draft(&mut scratch, id, effect)?;
        }
        let version = self.next_version;
        self.next_version += 1;
        Ok(scratch.finish(id, op.snap_context.as_ref(), version, op.full_try))
    }

    fn draft(&mut self, s: &mut Scratch, id: &ObjectId, effect: &Effect) -> Result<()> {
        match effect {
            Effect::Create
            | Effect::Write { .. }
            | Effect::WriteFull(_)
            | Effect::ShareRange { .. }
            | Effect::OmapSet(_)
            | Effect::XattrSet(..) => s.exists = true,
            Effect::Zero { .. } | Effect::Truncate(_) if !s.exists => return Ok(()),
            Effect::Remove | Effect::OmapRemove(_) | Effect::OmapClear | Effect::XattrRemove(_)
                if !s.exists =>
            {
                return Err(Error::not_found("no such object").with("object", id));
            }
            Effect::Zero { .. }
            | Effect::Truncate(_)
            | Effect::Rollback(_)
            | Effect::CopyObject { .. }
            | Effect::Remove
            | Effect::OmapRemove(_)
            | Effect::OmapClear
            | Effect::XattrRemove(_) => {}
        }
        match effect {
            Effect::Create => Ok(()),
            Effect::Write { offset, data } => self.draft_write(s, *offset, data),
            Effect::WriteFull(data) => {
                s.hole_from(0);
                s.size = 0;
                self.draft_write(s, 0, data)?;
                s.size = data.len() as u64;
                Ok(())
            }
            Effect::Zero { offset, length } => self.draft_zero(s, *offset, *length),
            Effect::Truncate(size) => self.draft_truncate(s, *size),
            Effect::Remove => {
                s.remove();
                Ok(())
            }
            Effect::Rollback(snap) => {
                s.draft_rollback(*snap);
                Ok(())
            }
            Effect::CopyObject { .. } => {
                Err(Error::unsupported("copying objects: ranges are shared").with("object", id))
            }
            Effect::ShareRange { source, at, offset, length, target_offset } => {
                self.draft_share(s, id, (source, *at), (*offset, *length), *target_offset)
            }
            Effect::OmapSet(_)
            | Effect::OmapRemove(_)
            | Effect::OmapClear
            | Effect::XattrSet(..)
            | Effect::XattrRemove(_) => {
                s.draft_metadata(effect);
                Ok(())
            }
        }
    }

    fn draft_write(&mut self, s: &mut Scratch, offset: u64, data: &Bytes) -> Result<()> {
        let end = bounded(offset, data.len() as u64)?;
        let mut at = offset;
        while at < end {
            let block = index(at / BLOCK_SIZE);
            let from = within(at);
            let taken = within_usize(at - offset);
            let whole = within_usize(end - at) / BLOCK;
            if from == 0 && whole > 0 {
                let part = data.slice(taken..taken + whole * BLOCK);
                s.blocks.put(block, index(whole as u64), Draft::Data(part));
                at += (whole * BLOCK) as u64;
                continue;
            }
            let n = (BLOCK - from).min(within_usize(end - at));
            let mut bytes = self.draft_bytes(s, block)?.unwrap_or_else(|| vec![0; BLOCK]);
            bytes[from..from + n].copy_from_slice(&data[taken..taken + n]);
            s.blocks.put(block, 1, Draft::Data(Bytes::from(bytes)));
            at += n as u64;
        }
        s.size = s.size.max(end);
        Ok(())
    }

    fn draft_zero(&mut self, s: &mut Scratch, offset: u64, length: u64) -> Result<()> {
        let end = bounded(offset, length)?;
        if length == 0 || offset >= s.size {
            return Ok(());
        }
        if end >= s.size {
            return self.draft_truncate(s, offset);
        }
        let mut at = offset;
        while at < end {
            let block = index(at / BLOCK_SIZE);
            let from = within(at);
            let whole = within_usize(end - at) / BLOCK;
            if from == 0 && whole > 0 {
                s.blocks.put(block, index(whole as u64), Draft::Zero);
                at += (whole * BLOCK) as u64;
                continue;
            }
            let n = (BLOCK - from).min(within_usize(end - at));
            if let Some(mut bytes) = self.draft_bytes(s, block)? {
                bytes[from..from + n].fill(0);
                s.blocks.put(block, 1, Draft::Data(Bytes::from(bytes)));
            }
            at += n as u64;
        }
        Ok(())
    }

    fn draft_truncate(&mut self, s: &mut Scratch, size: u64) -> Result<()> {
        bounded(size, 0)?;
        if size < s.size {
            s.hole_from(blocks_of(size));
            let from = within(size);
            if from > 0 {
                let block = index(size / BLOCK_SIZE);
                if let Some(mut bytes) = self.draft_bytes(s, block)? {
                    bytes[from..].fill(0);
                    s.blocks.put(block, 1, Draft::Data(Bytes::from(bytes)));
                }
            }
        }
        s.size = size;
        Ok(())
    }

    fn draft_share(
        &mut self,
        s: &mut Scratch,
        id: &ObjectId,
        (source, at): (&ObjectId, SnapId),
        (offset, length): (u64, u64),
        target_offset: u64,
    ) -> Result<()> {
        let end = bounded(offset, length)?;
        bounded(target_offset, length)?;
        let Found { inode, version, size, .. } = self.version_at(source, at)?;
        let aligned = offset.is_multiple_of(BLOCK_SIZE) && target_offset.is_multiple_of(BLOCK_SIZE);
        if !aligned || (!length.is_multiple_of(BLOCK_SIZE) && end < size) {
            return Err(Error::invalid("a shared range is not whole blocks")
                .with("offset", offset)
                .with("length", length));
        }
        let present = size.min(end).saturating_sub(offset);
        let first = index(offset / BLOCK_SIZE);
        let target = index(target_offset / BLOCK_SIZE);
        let count = blocks_of(present);
        let all = blocks_of(length);
        // The range may end with its source inside a block of which the target has more.
        let tail = within(length);
        let last = (target + all).saturating_sub(1);
        let is_cut = tail > 0 && s.size > target_offset + length;
        let behind = if is_cut { self.draft_bytes(s, last)? } else { None };
        if source == id && version == HEAD {
            // What this op itself may overwrite is taken by value.
            for i in 0..count {
                let draft = match self.resolve(inode, HEAD, first + i)?.0 {
                    Block::Data(address, crc) => Draft::Data(Bytes::from(self.block_bytes_at(address, crc)?)),
                    Block::Absent | Block::Zero | Block::Hole => Draft::Hole,
                };
                s.blocks.put(target + i, 1, draft);
            }
        } else {
            s.blocks.put(target, count, Draft::Shared(BlockRef { inode, version, block: first }));
        }
        s.blocks.put(target + count, all - count, Draft::Hole);
        if let Some(mut bytes) = behind {
            match self.draft_bytes(s, last)? {
                Some(shared) => bytes[..tail].copy_from_slice(&shared[..tail]),
                None => bytes[..tail].fill(0),
            }
            s.blocks.put(last, 1, Draft::Data(Bytes::from(bytes)));
        }
        s.size = s.size.max(target_offset + present);
        Ok(())
    }

    /// The bytes of a block of the draft; `None` where it reads as zeros.
    fn draft_bytes(&mut self, s: &Scratch, block: u32) -> Result<Option<Vec<u8>>> {
        let found = match s.blocks.get(block) {
            Some(Draft::Data(bytes)) => return Ok(Some(bytes.to_vec())),
            Some(Draft::Zero | Draft::Hole) => return Ok(None),
            Some(Draft::Shared(r)) => self.resolve(r.inode, r.version, r.block)?.0,
            None if s.before.as_ref().is_some_and(|b| b.exists && block < b.blocks()) => {
                self.resolve(s.inode, HEAD, block)?.0
            }
            None => return Ok(None),
        };
        match found {
            Block::Data(address, crc) => Ok(Some(self.block_bytes_at(address, crc)?)),
            Block::Absent | Block::Zero | Block::Hole => Ok(None),
        }
    }

    /// What `id` is at `at`.
    ///
    /// # Errors
    /// `NotFound` (2) where it did not exist then.
    pub(crate) fn version_at(&mut self, id: &ObjectId, at: SnapId) -> Result<Found> {
        let missing = || Error::not_found("no such object").with("object", id).with("snapshot", at);
        let inode = self.inode_of(id)?.ok_or_else(missing)?;
        let object = match self.objects.young(&inode) {
            Some(kept) => &kept.value,
            None => self.object(inode)?,
        };
        let (head, exists) = (object.version, object.exists);
        if at.0 > object.snap_seq {
            let found = Found { inode, version: HEAD, size: object.size, head, exists };
            return if exists { Ok(found) } else { Err(missing()) };
        }
        match object.clones.iter().find(|c| c.id >= at.0) {
            Some(clone) if clone.snaps.contains(&at.0) => {
                Ok(Found { inode, version: clone.id, size: clone.size, head, exists })
            }
            _ => Err(missing()),
        }
    }
}

impl Scratch {
    /// Makes every block from `first` on a hole.
    fn hole_from(&mut self, first: u32) {
        // Also what the draft made a hole before: the index still has the blocks the object had.
        let end = blocks_of(self.size).max(self.before.as_ref().map_or(0, ObjectRecord::blocks));
        self.blocks.truncate(first);
        self.blocks.put(first, end.saturating_sub(first), Draft::Hole);
    }

    fn remove(&mut self) {
        self.exists = false;
        self.size = 0;
        self.blocks.clear();
        self.metadata.clear();
    }

    fn draft_rollback(&mut self, snap: SnapId) {
        let Some(before) = &self.before else { return };
        if snap.0 > before.snap_seq {
            return;
        }
        let Some(clone) = before.clones.iter().find(|c| c.id >= snap.0).filter(|c| c.snaps.contains(&snap.0))
        else {
            if self.exists {
                self.remove();
            }
            return;
        };
        let (id, size) = (clone.id, clone.size);
        self.exists = true;
        self.hole_from(0);
        self.blocks.put(
            0,
            blocks_of(size),
            Draft::Shared(BlockRef { inode: self.inode, version: id, block: 0 }),
        );
        self.size = size;
    }

    fn draft_metadata(&mut self, effect: &Effect) {
        let inode = self.inode;
        match effect {
            Effect::OmapSet(entries) => {
                for (key, value) in entries {
                    self.metadata.push(Record::OmapSet { inode, key: key.clone(), value: value.clone() });
                }
            }
            Effect::OmapRemove(keys) => {
                let removals = keys.iter().map(|key| Record::OmapRemove { inode, key: key.clone() });
                self.metadata.extend(removals);
            }
            Effect::OmapClear => self.metadata.push(Record::OmapClear { inode }),
            Effect::XattrSet(name, value) => {
                self.metadata.push(Record::XattrSet { inode, name: name.clone(), value: value.clone() });
            }
            Effect::XattrRemove(name) => {
                self.metadata.push(Record::XattrRemove { inode, name: name.clone() });
            }
            Effect::Create
            | Effect::Write { .. }
            | Effect::WriteFull(_)
            | Effect::Zero { .. }
            | Effect::Truncate(_)
            | Effect::Remove
            | Effect::Rollback(_)
            | Effect::CopyObject { .. }
            | Effect::ShareRange { .. } => {}
        }
    }

    /// The records that make the object what the draft says.
    fn finish(self, id: &ObjectId, context: Option<&SnapContext>, version: u64, full_try: bool) -> Plan {
        let existed = self.before.as_ref().is_some_and(|b| b.exists);
        let mut records = Vec::new();
        let mut payload = Vec::new();
        let inode = self.inode;
        let seen = self.before.as_ref().map_or(0, |b| b.snap_seq);
        let context = context.filter(|_| self.touches_data);
        if let Some(c) = context.filter(|c| self.before.is_some() && c.seq > seen) {
            let snaps = if existed {
                c.snaps.iter().map(|s| s.0).filter(|s| *s > seen).collect()
            } else {
                Vec::new()
            };
            records.push(Record::Preserve { inode, clone: c.seq, snaps });
        }
        if !self.exists {
            if existed {
                records.push(Record::Remove { inode });
            }
            return Plan { records, payload, purpose: Purpose::Reclaim, version };
        }
        if self.before.is_none() {
            records.push(Record::Create {
                inode,
                pool: id.pool.0,
                namespace: id.namespace.as_str().to_owned(),
                name: id.name.to_string(),
                snap_seq: context.map_or(0, |c| c.seq),
            });
        } else if !existed {
            records.push(Record::Revive { inode });
        }
        self.blocks.emit(inode, &mut records, &mut payload);
        if self.size != self.before.as_ref().map_or(0, |b| b.size) {
            records.push(Record::Size { inode, size: self.size });
        }
        records.extend(self.metadata);
        if !records.is_empty() {
            records.push(Record::Version { inode, version });
        }
        let purpose = match (full_try, payload.is_empty()) {
            (true, _) => Purpose::Reclaim,
            (false, true) => Purpose::Metadata,
            (false, false) => Purpose::Client,
        };
        Plan { records, payload, purpose, version }
    }
}

fn bounded(offset: u64, length: u64) -> Result<u64> {
    offset.checked_add(length).filter(|end| *end <= OBJECT_SIZE_MAX).ok_or_else(|| {
        Error::invalid("a range past the largest object").with("offset", offset).with("length", length)
    })
}

fn index(block: u64) -> u32 {
    u32::try_from(block).expect("objects are bounded")
}

fn within(offset: u64) -> usize {
    usize::try_from(offset % BLOCK_SIZE).expect("below a block")
}

fn within_usize(n: u64) -> usize {
    usize::try_from(n).expect("objects are bounded")
}
