//! Applying records: the one place where the meaning of a record is written down.

use bytes::Bytes;
use ferry_core::{Error, Namespace, ObjectId, PoolId, Result};

use crate::address::{Address, Block};
use crate::core::{Cached, Core, name_key};
use crate::key::{Key, KeyReader, Tag};
use crate::limits::CHUNK_BLOCKS;
use crate::object::{CloneRecord, ObjectRecord, PoolRecord, blocks_of};
use crate::record::{BlockRef, HEAD, Record};
use crate::recover::read_batch;
use crate::space::State;
use crate::tree::After;

impl Core {
    /// Applies one record whose payload, if it has one, begins at `at`.
    pub(crate) fn apply(&mut self, record: Record, at: Address) -> Result<()> {
        match record {
            Record::Pool { pool, name, read_only } => self.apply_pool(pool, name, read_only),
            Record::PoolRemove { pool } => {
                self.pools.remove(&pool);
                self.released.retain(|(p, _)| *p != pool);
                self.delete(Key::new(Tag::Pool).i64(pool).bytes())?;
                self.delete_all(&Key::new(Tag::Released).i64(pool))?;
                self.delete_all(&Key::new(Tag::SnapObject).i64(pool))
            }
            Record::SnapAllocate { pool, snap } => {
                let pool = self.pool(PoolId(pool))?;
                pool.value.snap_seq = pool.value.snap_seq.max(snap);
                pool.dirty = true;
                Ok(())
            }
            Record::SnapRelease { pool, snap } => {
                self.released.insert((pool, snap));
                self.put(&Key::new(Tag::Released).i64(pool).u64(snap), &[])
            }
            Record::SnapTrimmed { pool, snap } => {
                self.released.remove(&(pool, snap));
                self.delete(Key::new(Tag::Released).i64(pool).u64(snap).bytes()).map(drop)
            }
            Record::Create { inode, pool, namespace, name, snap_seq } => {
                let id = ObjectId::new(PoolId(pool), &Namespace::new(&namespace), &name);
                self.apply_create(inode, id, snap_seq)
            }
            Record::Revive { inode } => {
                let object = self.object_to_change(inode)?;
                object.exists = true;
                object.size = 0;
                let pool = object.id.pool;
                self.count_objects(pool, 1)
            }
            Record::Remove { inode } => self.apply_remove(inode),
            Record::Preserve { inode, clone, snaps } => self.apply_preserve(inode, clone, snaps),
            Record::DropSnap { inode, snap } => self.apply_drop_snap(inode, snap),
            Record::Data { inode, block, crcs } => {
                let count = u32::try_from(crcs.len()).expect("bounded by a segment");
                self.set_head(inode, block, count, |i| {
                    Block::Data(at.plus(i), crcs.get(i as usize).copied().unwrap_or(0))
                })
            }
            Record::Zero { inode, block, count } => self.set_head(inode, block, count, |_| Block::Zero),
            Record::Hole { inode, block, count } => self.set_head(inode, block, count, |_| Block::Absent),
            Record::Share { source, count, inode, block } => self.apply_share(source, count, inode, block),
            Record::Size { inode, size } => {
                self.object_to_change(inode)?.size = size;
                Ok(())
            }
            Record::Version { inode, version } => {
                self.next_version = self.next_version.max(version + 1);
                self.object_to_change(inode)?.version = version;
                Ok(())
            }
            Record::OmapSet { inode, key, value } => {
                self.put_long(&Key::new(Tag::Omap).u64(inode).text(&key), &value)
            }
            Record::OmapRemove { inode, key } => self.delete_long(&Key::new(Tag::Omap).u64(inode).text(&key)),
            Record::OmapClear { inode } => self.delete_all(&Key::new(Tag::Omap).u64(inode)),
            Record::XattrSet { inode, name, value } => {
                self.put_long(&Key::new(Tag::Xattr).u64(inode).text(name.as_bytes()), &value)
            }
            Record::XattrRemove { inode, name } => {
                self.delete_long(&Key::new(Tag::Xattr).u64(inode).text(name.as_bytes()))
            }
            Record::Adopt { batch } => self.apply_adopt(batch),
            Record::Freed { segments } => self.apply_freed(&segments),
            Record::Copied { .. } | Record::Node { .. } | Record::Table { .. } => Ok(()),
        }
    }

    fn apply_pool(&mut self, pool: i64, name: String, read_only: bool) -> Result<()> {
        self.next_pool = self.next_pool.max(pool + 1);
        let entry =
            self.pools.entry(pool).or_insert_with(|| Cached { value: PoolRecord::default(), dirty: true });
        entry.value.name = name;
        entry.value.read_only = read_only;
        entry.dirty = true;
        Ok(())
    }

    fn count_objects(&mut self, pool: PoolId, by: i64) -> Result<()> {
        let pool = self.pool(pool)?;
        pool.value.objects = pool.value.objects.saturating_add_signed(by);
        pool.dirty = true;
        Ok(())
    }

    pub(crate) fn count_blocks(&mut self, pool: PoolId, by: i64) -> Result<()> {
        if by == 0 {
            return Ok(());
        }
        let pool = self.pool(pool)?;
        pool.value.blocks = pool.value.blocks.saturating_add_signed(by);
        pool.dirty = true;
        Ok(())
    }

    fn apply_create(&mut self, inode: u64, id: ObjectId, snap_seq: u64) -> Result<()> {
        self.next_inode = self.next_inode.max(inode + 1);
        self.put(&name_key(&id), &inode.to_le_bytes())?;
        if self.names.is_full() {
            drop(self.names.age());
        }
        self.names.insert(id.clone(), Some(inode));
        let pool = id.pool;
        let value = ObjectRecord { id, exists: true, version: 0, size: 0, snap_seq, clones: Vec::new() };
        self.new_object(inode, value)?;
        self.count_objects(pool, 1)
    }

    fn apply_remove(&mut self, inode: u64) -> Result<()> {
        self.settle_dependents(inode)?;
        let object = self.object(inode)?;
        let blocks = object.blocks();
        if object.clones.is_empty() {
            self.sharing.forget_target(inode);
        }
        self.set_head(inode, 0, blocks, |_| Block::Absent)?;
        self.delete_all(&Key::new(Tag::Omap).u64(inode))?;
        self.delete_all(&Key::new(Tag::Xattr).u64(inode))?;
        let object = self.object_to_change(inode)?;
        object.exists = false;
        object.size = 0;
        let (pool, bare) = (object.id.pool, object.clones.is_empty());
        self.count_objects(pool, -1)?;
        if bare { self.forget_object(inode) } else { Ok(()) }
    }

    /// Drops the record of an object of which nothing is left.
    fn forget_object(&mut self, inode: u64) -> Result<()> {
        // So that a checkpoint that is being written keeps it.
        self.object_to_change(inode)?;
        let Some(object) = self.objects.remove(&inode) else { return Ok(()) };
        self.delete_long(&Key::new(Tag::Inode).u64(inode))?;
        self.delete(name_key(&object.value.id).bytes())?;
        self.names.insert(object.value.id, None);
        Ok(())
    }

    fn apply_preserve(&mut self, inode: u64, clone: u64, mut snaps: Vec<u64>) -> Result<()> {
        snaps.sort_unstable();
        let object = self.object_to_change(inode)?;
        object.snap_seq = object.snap_seq.max(clone);
        if snaps.is_empty() || !object.exists {
            return Ok(());
        }
        let size = object.size;
        let pool = object.id.pool;
        object.clones.push(CloneRecord { id: clone, size, snaps: snaps.clone() });
        for snap in snaps {
            self.put(&Key::new(Tag::SnapObject).i64(pool.0).u64(snap).u64(inode), &[])?;
        }
        Ok(())
    }

    /// Sets blocks of HEAD; what the newest preserved version needs of them goes to it.
    #[expect(clippy::needless_range_loop, reason = "several tables are walked by one index")]
    pub(crate) fn set_head(
        &mut self,
        inode: u64,
        block: u32,
        count: u32,
        new: impl Fn(u32) -> Block,
    ) -> Result<()> {
        self.settle_dependents(inode)?;
        let object = self.object(inode)?;
        let pool = object.id.pool;
        let keepers = keepers(&object.clones);
        let mut balance = 0_i64;
        for (chunk, first, from, n) in pieces(block, count) {
            let mut old = [Block::Absent; CHUNK_BLOCKS];
            let head = self.chunk((inode, HEAD, chunk))?;
            let mut differs = false;
            for i in 0..n {
                old[i] = head.get(from + i);
                differs |= old[i] != new(first + offset(i) - block);
            }
            if !differs {
                continue;
            }
            let head = self.chunk_to_change((inode, HEAD, chunk))?;
            for i in 0..n {
                head.set(from + i, new(first + offset(i) - block));
            }
            let mut kept = [false; CHUNK_BLOCKS];
            for (id, low, high) in overlapping(&keepers, first, n) {
                let fresh = |i: usize| new(first + offset(i) - block);
                let clone = self.chunk((inode, id, chunk))?;
                if (low..high).all(|i| old[i] == fresh(i) || clone.get(from + i) != Block::Absent) {
                    continue;
                }
                let clone = self.chunk_to_change((inode, id, chunk))?;
                for i in low..high {
                    if old[i] != fresh(i) && clone.get(from + i) == Block::Absent {
                        clone.set(from + i, if old[i] == Block::Absent { Block::Hole } else { old[i] });
                        kept[i] = true;
                    }
                }
            }
            for i in 0..n {
                let fresh = new(first + offset(i) - block);
                if old[i] == fresh {
                    continue;
                }
                self.space.add(fresh)?;
                balance += i64::from(fresh.address().is_some());
                if !kept[i] {
                    self.space.sub(old[i])?;
                    balance -= i64::from(old[i].address().is_some());
                }
            }
        }
        self.count_blocks(pool, balance)
    }

    /// What block `block` is at `version`, and which version says so.
    pub(crate) fn resolve(&mut self, inode: u64, version: u64, block: u32) -> Result<(Block, u64)> {
        if version != HEAD {
            let object = self.object(inode)?;
            let start = object.clones.partition_point(|c| c.id < version);
            let ids: Vec<u64> = object.clones[start..].iter().map(|c| c.id).collect();
            for id in ids {
                let (chunk, i) = split(block);
                match self.chunk((inode, id, chunk))?.get(i) {
                    Block::Absent => {}
                    found => return Ok((found, id)),
                }
            }
        }
        let (chunk, i) = split(block);
        Ok((self.chunk((inode, HEAD, chunk))?.get(i), HEAD))
    }

    fn apply_drop_snap(&mut self, inode: u64, snap: u64) -> Result<()> {
        let object = self.object(inode)?;
        let pool = object.id.pool;
        let position = object.clones.iter().position(|c| c.snaps.contains(&snap));
        if let Some(i) = position {
            let clone = &mut self.object_to_change(inode)?.clones[i];
            clone.snaps.retain(|s| *s != snap);
            if clone.snaps.is_empty() {
                self.drop_clone(inode, i)?;
            }
        }
        self.delete(Key::new(Tag::SnapObject).i64(pool.0).u64(snap).u64(inode).bytes())?;
        let object = self.object(inode)?;
        if !object.exists && object.clones.is_empty() { self.forget_object(inode) } else { Ok(()) }
    }

    /// Drops preserved version `i`: what the next older one sees through it goes to that one.
    #[expect(clippy::needless_range_loop, reason = "several tables are walked by one index")]
    fn drop_clone(&mut self, inode: u64, i: usize) -> Result<()> {
        self.settle_dependents(inode)?;
        let object = self.object_to_change(inode)?;
        let gone = object.clones.remove(i);
        let keepers = keepers(&object.clones[..i]);
        let pool = object.id.pool;
        let mut balance = 0_i64;
        for (chunk, first, _, n) in pieces(0, blocks_of(gone.size)) {
            if self.chunk((inode, gone.id, chunk))?.is_empty() {
                continue;
            }
            let table = std::mem::take(self.chunk_to_change((inode, gone.id, chunk))?);
            let mut kept = [false; CHUNK_BLOCKS];
            for (id, low, high) in overlapping(&keepers, first, n) {
                let below = self.chunk((inode, id, chunk))?;
                if (low..high).all(|j| table.get(j) == Block::Absent || below.get(j) != Block::Absent) {
                    continue;
                }
                let below = self.chunk_to_change((inode, id, chunk))?;
                for j in low..high {
                    if table.get(j) != Block::Absent && below.get(j) == Block::Absent {
                        below.set(j, table.get(j));
                        kept[j] = true;
                    }
                }
            }
            for j in (0..n).filter(|j| !kept[*j]) {
                self.space.sub(table.get(j))?;
                balance -= i64::from(table.get(j).address().is_some());
            }
        }
        self.count_blocks(pool, balance)
    }

    /// Points whoever still has the blocks a batch has copies of to the copies. The batch was durable before the record that says
    /// so was written.
    fn apply_adopt(&mut self, batch: Address) -> Result<()> {
        let segment = self.space.get(batch.segment()).copied().unwrap_or_default();
        let missing =
            || Error::corrupt("copies of blocks are not where they were made").with("address", batch);
        if batch.block() >= segment.used {
            return Err(missing());
        }
        let header = read_batch(&*self.disk, batch, segment.life, self.space.segment_blocks())
            .map_err(|e| missing().because(e))?;
        if segment.state == State::Free {
            // Found by a replay, which has to find it there again should it be cut off: whether anything in it is used or not.
            self.space.entry(batch.segment()).state = State::Sealed;
        }
        let mut at = batch.plus(header.header_blocks);
        let count = Record::decode_all(&header.records)?;
        for (i, record) in count.iter().enumerate() {
            let blocks = u32::try_from(record.payload_crcs().len()).expect("bounded by a segment");
            if let Record::Copied { refs, from, crcs } = record {
                if from.len() != crcs.len() {
                    return Err(Error::corrupt("copies without their origin").with("address", batch));
                }
                self.adopt_run(refs, from, crcs, at)?;
            }
            if i + 1 < count.len() {
                at = at.plus(blocks);
            }
        }
        Ok(())
    }

    fn adopt_run(&mut self, refs: &[BlockRef], from: &[Address], crcs: &[u32], at: Address) -> Result<()> {
        for r in refs {
            self.settle_dependents(r.inode)?;
        }
        for (n, r) in refs.iter().enumerate() {
            if !self.has_version(r.inode, r.version)? {
                continue;
            }
            let mut moved: Vec<Option<Block>> = vec![None; crcs.len()];
            for ((i, crc), from) in (0..).zip(crcs).zip(from) {
                let (chunk, slot) = split(r.block + i);
                let key = (r.inode, r.version, chunk);
                let old = Block::Data(*from, *crc);
                if self.chunk(key)?.get(slot) != old {
                    continue;
                }
                let new = Block::Data(at.plus(i), *crc);
                self.chunk_to_change(key)?.set(slot, new);
                self.space.sub(old)?;
                self.space.add(new)?;
                moved[i as usize] = Some(new);
            }
            if n > 0 {
                self.note_sharers(&moved, r.inode, r.block)?;
            }
        }
        Ok(())
    }

    /// Whether a version of an object exists.
    fn has_version(&mut self, inode: u64, version: u64) -> Result<bool> {
        if !self.has_object(inode)? {
            return Ok(false);
        }
        let object = self.object(inode)?;
        Ok(version == HEAD || object.clones.iter().any(|c| c.id == version))
    }

    /// Objects with a version preserved for a snapshot, up to `max` of them.
    pub(crate) fn objects_of_snap(&mut self, pool: i64, snap: u64, max: usize) -> Result<Vec<u64>> {
        let prefix = Key::new(Tag::SnapObject).i64(pool).u64(snap);
        let found = self.tree.scan(prefix.bytes(), After::Including, prefix.bytes(), max)?;
        found
            .iter()
            .map(|(key, _)| {
                let mut r = KeyReader::new(key);
                r.i64()?;
                r.u64()?;
                r.u64()
            })
            .collect()
    }

    /// All xattrs of an object.
    pub(crate) fn xattrs(&mut self, inode: u64) -> Result<Vec<(String, Bytes)>> {
        let prefix = Key::new(Tag::Xattr).u64(inode);
        let found = self.long_entries(&prefix, prefix.bytes(), After::Including, usize::MAX)?;
        found
            .into_iter()
            .map(|(name, value)| {
                String::from_utf8(name)
                    .map(|n| (n, value))
                    .map_err(|e| Error::corrupt("an xattr's name").because(e))
            })
            .collect()
    }

    /// Up to `max` long values whose keys begin with `prefix` (a tag and a number) and come after `from`.
    pub(crate) fn long_entries(
        &mut self,
        prefix: &Key,
        from: &[u8],
        mut after: After,
        max: usize,
    ) -> Result<Vec<(Vec<u8>, Bytes)>> {
        let mut found = Vec::new();
        let mut from = from.to_vec();
        while found.len() < max {
            let page = self.tree.scan(&from, after, prefix.bytes(), (max - found.len()).min(64))?;
            let Some(last) = page.last() else { break };
            from = last.0.to_vec();
            after = After::Excluding;
            for (key, _) in page {
                if !key.ends_with(&[0, 0]) {
                    continue;
                }
                let mut r = KeyReader::new(&key);
                r.u64()?;
                let name = r.text()?;
                if r.u16()? != 0 || found.len() >= max {
                    continue;
                }
                let whole = Key::new(tag_of(&key)?).u64(KeyReader::new(&key).u64()?).text(&name);
                let value =
                    self.get_long(&whole)?.ok_or_else(|| Error::corrupt("an index value vanished"))?;
                found.push((name, value));
            }
        }
        Ok(found)
    }
}

/// `(clone, first block, end block)`: which preserved version keeps what HEAD loses of a block.
///
/// It is the newest whose size covers the block: a newer but smaller one says nothing of it, and an older one looks
/// through that to HEAD.
fn keepers(clones: &[CloneRecord]) -> Vec<(u64, u32, u32)> {
    let mut found = Vec::new();
    let mut covered = 0;
    for clone in clones.iter().rev() {
        let blocks = blocks_of(clone.size);
        if blocks > covered {
            found.push((clone.id, covered, blocks));
            covered = blocks;
        }
    }
    found
}

/// The keepers of `n` blocks from `first` on, each with the part of them it keeps.
fn overlapping(
    keepers: &[(u64, u32, u32)],
    first: u32,
    n: usize,
) -> impl Iterator<Item = (u64, usize, usize)> + use<'_> {
    let end = first + offset(n);
    keepers.iter().filter_map(move |(id, low, high)| {
        let (low, high) = ((*low).max(first), (*high).min(end));
        (low < high).then(|| (*id, (low - first) as usize, (high - first) as usize))
    })
}

fn tag_of(key: &[u8]) -> Result<Tag> {
    match key.first() {
        Some(b'M') => Ok(Tag::Omap),
        Some(b'X') => Ok(Tag::Xattr),
        _ => Err(Error::corrupt("a key of another kind")),
    }
}

/// Chunk and place in it of a block.
pub(crate) fn split(block: u32) -> (u32, usize) {
    let n = offset(CHUNK_BLOCKS);
    (block / n, (block % n) as usize)
}

fn offset(i: usize) -> u32 {
    u32::try_from(i).expect("a chunk is small")
}

/// `(chunk, first block, place in the chunk, blocks)` of each chunk a range touches.
pub(crate) fn pieces(block: u32, count: u32) -> impl Iterator<Item = (u32, u32, usize, usize)> {
    let end = block + count;
    let mut at = block;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let (chunk, from) = split(at);
            let n = (CHUNK_BLOCKS - from).min((end - at) as usize);
            let piece = (chunk, at, from, n);
            at += offset(n);
            piece
        })
    })
}
