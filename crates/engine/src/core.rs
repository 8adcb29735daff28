//! The store's state in memory: log, index, caches; and how a transaction becomes part of both.
//!
//! Invariants
//! - What the caches hold is what replaying the log to its end would give: every change goes through `Core::apply`.
//! - A failure in the middle of applying poisons the log, as the state in memory is then between two transactions.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use ferry_core::{Env, Error, ObjectId, PoolId, Result};

use crate::address::Address;
use crate::cache::Cache;
use crate::checkpoint::Checkpointing;
use crate::chunk::Chunk;
use crate::disk::{Disk, SegmentNo};
use crate::format::Superblock;
use crate::key::{self, Key, KeyReader, Tag};
use crate::limits::{BLOCK, FRAGMENT_MAX, PAGE_ENTRY_MAX};
use crate::log::Log;
use crate::object::{ObjectRecord, PoolRecord};
use crate::record::{HEAD, Record};
use crate::sharing::Sharing;
use crate::space::{Purpose, Space};
use crate::tree::{After, Tree};

/// Which chunk of which version's table.
pub(crate) type ChunkKey = (u64, u64, u32);

/// A cached thing that may differ from the index.
#[derive(Debug)]
pub(crate) struct Cached<T> {
    /// The thing.
    pub(crate) value: T,
    /// Whether it must be written to the index.
    pub(crate) dirty: bool,
}

/// A cached chunk or object record, and whether the index has it as it is.
#[derive(Debug)]
pub(crate) struct Kept<T> {
    /// The thing.
    pub(crate) value: T,
    /// The generation it was last changed in; 0: as in the index.
    pub(crate) changed: u64,
}

/// For whom an index entry is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layer {
    /// For the store as it is now.
    Live,
    /// For the checkpoint that is being written: the store as it was when that began.
    Frozen,
}

/// The store's state in memory.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) env: Env,
    pub(crate) superblock: Superblock,
    pub(crate) log: Log,
    pub(crate) space: Space,
    pub(crate) tree: Tree,
    pub(crate) chunks: Cache<ChunkKey, Kept<Box<Chunk>>>,
    pub(crate) objects: Cache<u64, Kept<ObjectRecord>>,
    /// Counts the checkpoints begun. What was changed in an earlier generation belongs to the one that is being written.
    pub(crate) generation: u64,
    /// Chunks changed in this generation; some may have left the cache since, or be there twice.
    pub(crate) changed_chunks: Vec<ChunkKey>,
    /// Objects, likewise.
    pub(crate) changed_objects: Vec<u64>,
    /// The checkpoint that is being written.
    pub(crate) checkpointing: Option<Box<Checkpointing>>,
    /// Inode of a name; `None` where no object has it.
    pub(crate) names: Cache<ObjectId, Option<u64>>,
    pub(crate) pools: BTreeMap<i64, Cached<PoolRecord>>,
    pub(crate) next_inode: u64,
    pub(crate) next_version: u64,
    pub(crate) next_pool: i64,
    /// Snapshots released whose versions are still there.
    pub(crate) released: std::collections::BTreeSet<(i64, u64)>,
    /// Shares not yet carried out.
    pub(crate) sharing: Sharing,
    /// Readers in flight hold this; a segment emptied meanwhile is not used again while they do.
    pub(crate) era: Arc<()>,
    /// Segments emptied, with the era whose readers may still look at them.
    pub(crate) retired: Vec<(Arc<()>, Vec<SegmentNo>)>,
    /// Segments that records of the log free, or may.
    pub(crate) freed: crate::freed::Freed,
    /// Free segments whose files are kept.
    pub(crate) keep_files: usize,
    /// Likewise, for as long as the log fills fast: as many as it went through before the last checkpoint; 0 where it does not.
    pub(crate) refill_files: usize,
    /// Live blocks at which cleaning for room was last given up.
    pub(crate) hopeless: Option<u64>,
    /// Transactions of anybody but the cleaner.
    pub(crate) changes: u64,
    /// What may be cleaned before `changes` grows.
    pub(crate) round: crate::cleaner::Round,
    /// `changes` when there was nothing to maintain.
    pub(crate) quiet: Option<u64>,
    /// The segment being emptied.
    pub(crate) cleaning: Option<crate::cleaner::Cleaning>,
    /// Segments with only index pages left in them, all marked to be written elsewhere.
    pub(crate) cleaned: std::collections::BTreeSet<SegmentNo>,
    /// Whether a change since the last checkpoint needs another.
    pub(crate) changed: bool,
    /// Whether the store may be written.
    pub(crate) read_only: bool,
    pub(crate) counters: Counters,
}

/// What the engine counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) checkpoints: u64,
    pub(crate) checkpoint_bytes: u64,
    pub(crate) cleaned_segments: u64,
    pub(crate) freed_segments: u64,
    pub(crate) cleaner_bytes: u64,
    pub(crate) client_bytes: u64,
}

impl Core {
    /// Appends a transaction to the log and applies it.
    ///
    /// # Errors
    /// `NoSpace` (28) and `Invalid` with nothing changed; whatever else poisons the store.
    pub(crate) fn commit(
        &mut self,
        purpose: Purpose,
        records: Vec<Record>,
        payload: Vec<Bytes>,
    ) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        self.log.check()?;
        if let Err(e) = self.mark_unclean() {
            self.log.poisoned = true;
            return Err(e);
        }
        let is_upkeep = |r: &Record| matches!(r, Record::Adopt { .. } | Record::Freed { .. });
        self.changes += u64::from(!records.iter().all(is_upkeep));
        let first = self.log.append(&mut self.space, &self.env, purpose, &records, payload)?;
        self.changed = true;
        let applied = self.apply_all(records, first);
        if applied.is_err() {
            self.log.poisoned = true;
        }
        applied
    }

    /// Applies the records of a transaction whose payload begins at `first`.
    pub(crate) fn apply_all(&mut self, records: Vec<Record>, first: Address) -> Result<()> {
        let mut taken = 0;
        for record in records {
            let blocks = u32::try_from(record.payload_crcs().len()).expect("bounded by a segment");
            let at = if blocks > 0 { first.plus(taken) } else { first };
            taken += blocks;
            self.apply(record, at)?;
        }
        Ok(())
    }

    /// Gives back emptied pages' counts to the space table. Called after the tree changed.
    pub(crate) fn settle_tree(&mut self) -> Result<()> {
        for address in self.tree.take_dropped() {
            self.space.sub_node(address)?;
        }
        Ok(())
    }

    /// Sets an index entry.
    pub(crate) fn put(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        self.put_in(Layer::Live, key, value)
    }

    fn put_in(&mut self, layer: Layer, key: &Key, value: &[u8]) -> Result<()> {
        match layer {
            Layer::Live => self.tree.insert(key.bytes(), value)?,
            Layer::Frozen => self.tree.insert_frozen(key.bytes(), value)?,
        }
        self.settle_tree()
    }

    /// Removes an index entry.
    pub(crate) fn delete(&mut self, key: &[u8]) -> Result<bool> {
        self.delete_in(Layer::Live, key)
    }

    fn delete_in(&mut self, layer: Layer, key: &[u8]) -> Result<bool> {
        let found = match layer {
            Layer::Live => self.tree.remove(key)?,
            Layer::Frozen => self.tree.remove_frozen(key)?,
        };
        self.settle_tree()?;
        Ok(found)
    }

    /// Removes all index entries that begin with `prefix`.
    pub(crate) fn delete_all(&mut self, prefix: &Key) -> Result<()> {
        let (mut from, mut after) = (Bytes::copy_from_slice(prefix.bytes()), After::Including);
        while let Some((key, _)) = self.tree.next(&from, after, prefix.bytes())? {
            self.delete(&key)?;
            (from, after) = (key, After::Excluding);
        }
        Ok(())
    }

    /// Sets a value of any length, cut into fragments: the first begins with the length of the whole.
    pub(crate) fn put_long(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        self.put_long_in(Layer::Live, key, value)
    }

    fn put_long_in(&mut self, layer: Layer, key: &Key, value: &[u8]) -> Result<()> {
        if key.bytes().len() + 2 + FRAGMENT_MAX > PAGE_ENTRY_MAX {
            return Err(Error::invalid("a key is too long for the index").with("bytes", key.bytes().len()));
        }
        let mut whole = u32::try_from(value.len()).expect("values are bounded").to_le_bytes().to_vec();
        whole.extend_from_slice(value);
        let count = whole.chunks(FRAGMENT_MAX).count();
        for (i, fragment) in whole.chunks(FRAGMENT_MAX).enumerate() {
            self.put_in(layer, &key.clone().u16(fragment_number(i)), fragment)?;
        }
        for i in count.. {
            if !self.delete_in(layer, key.clone().u16(fragment_number(i)).bytes())? {
                break;
            }
        }
        Ok(())
    }

    /// The value that [`Core::put_long`] set.
    pub(crate) fn get_long(&mut self, key: &Key) -> Result<Option<Bytes>> {
        let Some(first) = self.tree.get(key.clone().u16(0).bytes())? else { return Ok(None) };
        let (length, rest) = long_header(&first)?;
        if length <= rest.len() {
            return Ok(Some(rest));
        }
        let mut value = rest.to_vec();
        for i in 1.. {
            if value.len() >= length {
                break;
            }
            let fragment = self
                .tree
                .get(key.clone().u16(fragment_number(i)).bytes())?
                .ok_or_else(|| Error::corrupt("a fragment of an index value is missing"))?;
            value.extend_from_slice(&fragment);
        }
        if value.len() == length {
            Ok(Some(Bytes::from(value)))
        } else {
            Err(Error::corrupt("an index value is longer than it says"))
        }
    }

    /// Removes the value that [`Core::put_long`] set.
    pub(crate) fn delete_long(&mut self, key: &Key) -> Result<()> {
        for i in 0.. {
            if !self.delete(key.clone().u16(fragment_number(i)).bytes())? {
                break;
            }
        }
        Ok(())
    }

    /// The inode of a name, where an object (or preserved versions of one) has it.
    pub(crate) fn inode_of(&mut self, id: &ObjectId) -> Result<Option<u64>> {
        if let Some(inode) = self.names.young(id) {
            return Ok(*inode);
        }
        if let Some(inode) = self.names.get(id) {
            return Ok(*inode);
        }
        let found = match self.tree.get(name_key(id).bytes())? {
            None => None,
            Some(bytes) => Some(u64::from_le_bytes(
                bytes
                    .as_ref()
                    .try_into()
                    .map_err(|_| Error::corrupt("an inode number has a wrong length"))?,
            )),
        };
        if self.names.is_full() {
            drop(self.names.age());
        }
        self.names.insert(id.clone(), found);
        Ok(found)
    }

    /// The record of an inode.
    pub(crate) fn object(&mut self, inode: u64) -> Result<&ObjectRecord> {
        self.load_object(inode).map(|kept| &kept.value)
    }

    fn load_object(&mut self, inode: u64) -> Result<&mut Kept<ObjectRecord>> {
        if !self.objects.renew(&inode) {
            let bytes = self
                .get_long(&Key::new(Tag::Inode).u64(inode))?
                .ok_or_else(|| Error::corrupt("an object's record is missing").with("inode", inode))?;
            let value = ObjectRecord::decode(&bytes)?;
            self.insert_object(inode, Kept { value, changed: 0 })?;
        }
        Ok(self.objects.young(&inode).expect("it was just renewed or put in"))
    }

    /// The record of an inode, to be changed. A checkpoint that is being written keeps what it was.
    pub(crate) fn object_to_change(&mut self, inode: u64) -> Result<&mut ObjectRecord> {
        let generation = self.generation;
        let kept = self.load_object(inode)?;
        if kept.changed != generation {
            let before = (kept.changed != 0).then(|| kept.value.encode());
            kept.changed = generation;
            self.changed_objects.push(inode);
            if let Some(bytes) = before {
                self.put_long_in(Layer::Frozen, &Key::new(Tag::Inode).u64(inode), &bytes)?;
            }
        }
        Ok(&mut self.objects.young(&inode).expect("it was just looked at").value)
    }

    /// Whether an inode exists.
    pub(crate) fn has_object(&mut self, inode: u64) -> Result<bool> {
        Ok(self.objects.peek(&inode).is_some()
            || self.tree.get(Key::new(Tag::Inode).u64(inode).u16(0).bytes())?.is_some())
    }

    /// Makes a record of an inode that had none.
    pub(crate) fn new_object(&mut self, inode: u64, value: ObjectRecord) -> Result<()> {
        self.changed_objects.push(inode);
        self.insert_object(inode, Kept { value, changed: self.generation })
    }

    /// Puts an object's record into the cache, writing back what has to leave it.
    fn insert_object(&mut self, inode: u64, kept: Kept<ObjectRecord>) -> Result<()> {
        if self.objects.is_full() {
            for (old, kept) in self.objects.age() {
                if kept.changed != 0 {
                    let layer = self.layer_of(kept.changed);
                    self.put_long_in(layer, &Key::new(Tag::Inode).u64(old), &kept.value.encode())?;
                }
            }
        }
        self.objects.insert(inode, kept);
        Ok(())
    }

    /// Where something changed in a generation goes when it is written back.
    fn layer_of(&self, changed: u64) -> Layer {
        if changed == self.generation { Layer::Live } else { Layer::Frozen }
    }

    /// A chunk of a version's table.
    pub(crate) fn chunk(&mut self, at: ChunkKey) -> Result<&Chunk> {
        self.load_chunk(at).map(|kept| &*kept.value)
    }

    fn load_chunk(&mut self, at: ChunkKey) -> Result<&mut Kept<Box<Chunk>>> {
        if at.1 == HEAD && self.sharing.concerns(at.0, at.2) {
            self.settle_chunk(at.0, at.2)?;
        }
        if !self.chunks.renew(&at) {
            let value = match self.tree.get(key::table(at.0, at.1, at.2).bytes())? {
                Some(bytes) => Box::new(Chunk::decode(&bytes)?),
                None => Box::default(),
            };
            if self.chunks.is_full() {
                for (old, kept) in self.chunks.age() {
                    if kept.changed != 0 {
                        self.write_back_chunk(self.layer_of(kept.changed), old, entry_of(&kept.value))?;
                    }
                }
            }
            self.chunks.insert(at, Kept { value, changed: 0 });
        }
        Ok(self.chunks.young(&at).expect("it was just renewed or put in"))
    }

    /// A chunk of a version's table, to be changed. A checkpoint that is being written keeps what it was.
    pub(crate) fn chunk_to_change(&mut self, at: ChunkKey) -> Result<&mut Chunk> {
        let generation = self.generation;
        let kept = self.load_chunk(at)?;
        if kept.changed != generation {
            let before = (kept.changed != 0).then(|| entry_of(&kept.value));
            kept.changed = generation;
            self.changed_chunks.push(at);
            if let Some(entry) = before {
                self.write_back_chunk(Layer::Frozen, at, entry)?;
            }
        }
        Ok(&mut self.chunks.young(&at).expect("it was just looked at").value)
    }

    fn write_back_chunk(&mut self, layer: Layer, at: ChunkKey, entry: Option<Vec<u8>>) -> Result<()> {
        let key = key::table(at.0, at.1, at.2);
        match entry {
            Some(bytes) => self.put_in(layer, &key, &bytes),
            None => self.delete_in(layer, key.bytes()).map(drop),
        }
    }

    /// Writes chunks to the index, where they were last changed in the generation `of`.
    pub(crate) fn write_chunks(&mut self, of: u64, chunks: &[ChunkKey]) -> Result<()> {
        let layer = self.layer_of(of);
        for at in chunks {
            let Some(kept) = self.chunks.peek_mut(at).filter(|kept| kept.changed == of) else { continue };
            kept.changed = 0;
            let entry = entry_of(&kept.value);
            self.write_back_chunk(layer, *at, entry)?;
        }
        Ok(())
    }

    /// Writes object records to the index, where they were last changed in the generation `of`.
    pub(crate) fn write_objects(&mut self, of: u64, objects: &[u64]) -> Result<()> {
        let layer = self.layer_of(of);
        for inode in objects {
            let Some(kept) = self.objects.peek_mut(inode).filter(|kept| kept.changed == of) else { continue };
            kept.changed = 0;
            let bytes = kept.value.encode();
            self.put_long_in(layer, &Key::new(Tag::Inode).u64(*inode), &bytes)?;
        }
        Ok(())
    }

    /// Writes everything changed in the caches to the index.
    pub(crate) fn write_back(&mut self) -> Result<()> {
        self.settle_all()?;
        self.write_frozen()?;
        let chunks = std::mem::take(&mut self.changed_chunks);
        self.write_chunks(self.generation, &chunks)?;
        let objects = std::mem::take(&mut self.changed_objects);
        self.write_objects(self.generation, &objects)?;
        self.write_pools()
    }

    /// Writes changed pools to the index.
    pub(crate) fn write_pools(&mut self) -> Result<()> {
        let pools: Vec<(i64, Vec<u8>)> =
            self.pools.iter().filter(|(_, p)| p.dirty).map(|(id, p)| (*id, p.value.encode())).collect();
        for (id, bytes) in pools {
            self.put(&Key::new(Tag::Pool).i64(id), &bytes)?;
            if let Some(pool) = self.pools.get_mut(&id) {
                pool.dirty = false;
            }
        }
        Ok(())
    }

    /// Reads the pools and the released snapshots from the index, at open.
    pub(crate) fn load_pools(&mut self) -> Result<()> {
        let prefix = Key::new(Tag::Pool);
        for (key, value) in self.tree.scan(prefix.bytes(), After::Including, prefix.bytes(), usize::MAX)? {
            let id = KeyReader::new(&key).i64()?;
            self.pools.insert(id, Cached { value: PoolRecord::decode(&value)?, dirty: false });
            self.next_pool = self.next_pool.max(id + 1);
        }
        let prefix = Key::new(Tag::Released);
        for (key, _) in self.tree.scan(prefix.bytes(), After::Including, prefix.bytes(), usize::MAX)? {
            let mut r = KeyReader::new(&key);
            self.released.insert((r.i64()?, r.u64()?));
        }
        Ok(())
    }

    /// A pool, or the error that names it.
    pub(crate) fn pool(&mut self, pool: PoolId) -> Result<&mut Cached<PoolRecord>> {
        self.pools
            .get_mut(&pool.0)
            .ok_or_else(|| Error::not_found("no such pool in this store").with("pool", pool))
    }

    /// Changed state that would be lost without a checkpoint, in index pages to write.
    pub(crate) fn dirty_estimate(&self) -> usize {
        self.tree.dirty_pages()
    }

    /// Bytes of the segments' headers and batches written since the last checkpoint.
    pub(crate) fn tail_bytes(&self) -> u64 {
        self.log.tail_bytes
    }

    /// Bytes of one block range.
    pub(crate) fn block_bytes(blocks: u32) -> u64 {
        u64::from(blocks) * BLOCK as u64
    }
}

/// What the index says of a chunk: nothing where every block is absent.
fn entry_of(chunk: &Chunk) -> Option<Vec<u8>> {
    (!chunk.is_empty()).then(|| chunk.encode())
}

/// Key of a name.
pub(crate) fn name_key(id: &ObjectId) -> Key {
    Key::new(Tag::Name).i64(id.pool.0).text(id.namespace.as_str().as_bytes()).text(id.name.as_bytes())
}

fn fragment_number(i: usize) -> u16 {
    u16::try_from(i).expect("values are bounded to fewer fragments")
}

/// Length of the whole and the bytes of the first fragment.
pub(crate) fn long_header(first: &Bytes) -> Result<(usize, Bytes)> {
    let header: [u8; 4] = first
        .get(..4)
        .and_then(|b| b.try_into().ok())
        .ok_or_else(|| Error::corrupt("an index value is cut short"))?;
    Ok((u32::from_le_bytes(header) as usize, first.slice(4..)))
}
