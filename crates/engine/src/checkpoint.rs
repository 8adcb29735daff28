//! Checkpoints: write what changed of the index, then say in the superblock where it is. Layout: `docs/format/checkpoint.md`.

use std::collections::BTreeSet;

use bytes::Bytes;
use ferry_core::checksum::crc32c;
use ferry_core::{ErrorKind, Result};

use crate::address::Address;
use crate::core::{ChunkKey, Core};
use crate::disk::{Disk, FileId, SegmentNo};
use crate::format::{BatchHeader, Superblock};
use crate::freed::Freed;
use crate::key::{Key, Tag};
use crate::limits::{BLOCK, DIRTY_PAGES_MAX, TAIL_BYTES_MAX};
use crate::record::Record;
use crate::space::{Head, Segment, Space, State};
use crate::tree::DirtyPage;

/// Free files kept for recycling, unless more were prepared or the log goes through more; others are removed, so that what the store takes shrinks with what it
/// holds.
pub(crate) const SPARE_FILES: usize = 4;

/// Segments the medium must have room for, for spare files to be kept at all.
const SPARE_ROOM_SEGMENTS: u64 = 16;

/// Chunks or object records a piece of a checkpoint writes to the index: about 0.2 ms.
const PIECE_CHUNKS: usize = 64;

/// Index pages a piece of a checkpoint writes to the log: about 0.1 ms.
const PIECE_PAGES: usize = 32;

/// Index pages below which the rest of a segment is not worth a batch of its own.
const PIECE_PAGES_MIN: usize = 8;

/// Entries changed during a checkpoint that a piece puts into the index afterwards.
const PIECE_ENTRIES: usize = 128;

/// A checkpoint that is being written: the store as it was when it began, as far as it changes under it.
///
/// Chunks and objects whose last change is of an earlier generation than the present are the checkpoint's still to write; whoever
/// changes one first writes down what it was (`Core::chunk_to_change`). The index is frozen (`Tree::freeze`).
#[derive(Debug)]
pub(crate) struct Checkpointing {
    /// The generation it ended.
    generation: u64,
    /// Last batch it covers.
    sequence: u64,
    next_inode: u64,
    next_version: u64,
    segments: Vec<Segment>,
    /// To be written to the index if they have not been since.
    chunks: Vec<ChunkKey>,
    objects: Vec<u64>,
    /// Bytes of the log's tail when it began.
    tail_bytes: u64,
    /// Whether it was begun because of what clients write, who will go on.
    is_amid_writes: bool,
    /// Whether everything is written, and only to be made durable.
    written: bool,
}

/// What is left of a checkpoint once everything is written: to make all of the log up to it and these segments durable, then
/// to write the superblock.
#[derive(Debug)]
pub(crate) struct SyncJob {
    /// To be written.
    pub(crate) superblock: Superblock,
    /// Segments of the index head to be synced.
    pub(crate) segments: BTreeSet<SegmentNo>,
    /// Segments it frees.
    empty: Vec<SegmentNo>,
    /// See [`Freed::settled_by`].
    settled: Vec<u64>,
}

/// What a piece of a checkpoint came to.
#[derive(Debug)]
pub(crate) enum Piece {
    /// There is no checkpoint, or somebody is making it durable.
    Nothing,
    /// There is more to write.
    More,
    /// Everything is written.
    Sync(Box<SyncJob>),
}

/// What comes behind a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// The log goes on.
    MoreWork,
    /// The store is closed: the next opener need not look for a tail.
    Closing,
}

impl Core {
    /// Says durably that a tail may follow the checkpoint, before anything is appended.
    pub(crate) fn mark_unclean(&mut self) -> Result<()> {
        if !self.superblock.clean {
            return Ok(());
        }
        let next = Superblock {
            generation: self.superblock.generation + 1,
            clean: false,
            ..self.superblock.clone()
        };
        write_superblock(&*self.disk, &next)?;
        self.superblock = next;
        Ok(())
    }

    /// Whether a checkpoint is due: the log's tail or the changed pages have grown large.
    pub(crate) fn checkpoint_due(&self) -> bool {
        self.tail_bytes() > TAIL_BYTES_MAX.min(self.tail_limit()) || self.dirty_estimate() > DIRTY_PAGES_MAX
    }

    /// Whether writers should help with a checkpoint: nobody did it in time, or the one that is being written takes too long.
    pub(crate) fn checkpoint_overdue(&self) -> bool {
        let limit = TAIL_BYTES_MAX.min(self.tail_limit());
        let running =
            self.checkpointing.as_ref().is_some_and(|c| self.log.tail_bytes - c.tail_bytes > limit / 16);
        running || self.tail_bytes() > limit / 4 * 5 || self.dirty_estimate() > DIRTY_PAGES_MAX / 4 * 5
    }

    /// Bytes of log after which a checkpoint is due in a small store: a quarter of its capacity.
    fn tail_limit(&self) -> u64 {
        match self.superblock.capacity_bytes {
            0 => u64::MAX,
            bytes => (bytes / 8).max(self.space.segment_bytes() * 2),
        }
    }

    /// Makes everything durable and the log's tail empty, at once.
    ///
    /// # Crash safety
    /// Until the first superblock slot is durable the last checkpoint and its tail hold; after it, this one.
    ///
    /// # Errors
    /// As [`Core::checkpoint_piece`].
    pub(crate) fn checkpoint(&mut self, after: After) -> Result<()> {
        self.abandon_checkpoint()?;
        self.begin_checkpoint()?;
        loop {
            match self.checkpoint_piece()? {
                Piece::More => {}
                Piece::Nothing => return Ok(()),
                Piece::Sync(mut job) => {
                    job.superblock.clean = after == After::Closing;
                    let synced = self.sync_log().and_then(|()| {
                        job.segments.iter().try_for_each(|no| self.disk.sync(FileId::Segment(*no)))
                    });
                    let written = synced.and_then(|()| write_superblock(&*self.disk, &job.superblock));
                    self.poison_if(&written);
                    written?;
                    self.finish_checkpoint(*job)?;
                    self.remove_spares()?;
                    while self.merge_changes()? {}
                    return Ok(());
                }
            }
        }
    }

    fn poison_if<T>(&mut self, result: &Result<T>) {
        self.log.poisoned |= result.is_err();
    }

    /// Begins a checkpoint of the store as it is now. What changes from here on is kept apart from it.
    ///
    /// # Errors
    /// `NoSpace` (28) with no checkpoint begun; any other failure poisons the store.
    pub(crate) fn begin_checkpoint(&mut self) -> Result<()> {
        self.log.check()?;
        let begun = self.try_begin();
        if begun.as_ref().is_err_and(|e| e.kind() != ErrorKind::NoSpace) {
            self.log.poisoned = true;
        }
        begun
    }

    fn try_begin(&mut self) -> Result<()> {
        assert!(self.checkpointing.is_none(), "one checkpoint at a time");
        self.mark_unclean()?;
        self.log_seal()?;
        self.settle_all()?;
        while self.merge_changes()? {}
        self.forget_sharers()?;
        self.write_pools()?;
        self.log.begin_index();
        self.checkpointing = Some(Box::new(Checkpointing {
            generation: self.generation,
            sequence: self.log.last_sequence(),
            next_inode: self.next_inode,
            next_version: self.next_version,
            segments: self.space.segments(),
            chunks: std::mem::take(&mut self.changed_chunks),
            objects: std::mem::take(&mut self.changed_objects),
            tail_bytes: self.log.tail_bytes,
            is_amid_writes: false,
            written: false,
        }));
        self.generation += 1;
        self.tree.freeze();
        self.changed = false;
        Ok(())
    }

    /// Does a bounded piece of the checkpoint that is being written, if there is one.
    ///
    /// # Crash safety
    /// Nothing points at what it writes before the superblock does.
    ///
    /// # Errors
    /// `NoSpace` (28): the checkpoint is given up, nothing is lost. Any other failure poisons the store.
    pub(crate) fn checkpoint_piece(&mut self) -> Result<Piece> {
        self.log.check()?;
        let written = self.log.written_bytes;
        let piece = self.try_piece();
        self.counters.checkpoint_bytes += self.log.written_bytes - written;
        match piece {
            Err(e) if e.kind() == ErrorKind::NoSpace && !self.log.poisoned => {
                self.abandon_checkpoint()?;
                Err(e)
            }
            done => {
                self.poison_if(&done);
                done
            }
        }
    }

    fn try_piece(&mut self) -> Result<Piece> {
        let Some(running) = &mut self.checkpointing else { return Ok(Piece::Nothing) };
        let generation = running.generation;
        if !running.chunks.is_empty() {
            let rest = running.chunks.len().saturating_sub(PIECE_CHUNKS);
            let chunks = running.chunks.split_off(rest);
            self.write_chunks(generation, &chunks)?;
            return Ok(Piece::More);
        }
        if !running.objects.is_empty() {
            let rest = running.objects.len().saturating_sub(PIECE_CHUNKS);
            let objects = running.objects.split_off(rest);
            self.write_objects(generation, &objects)?;
            return Ok(Piece::More);
        }
        if self.write_pages(PIECE_PAGES)? {
            return Ok(Piece::More);
        }
        if running_is_written(self.checkpointing.as_deref_mut()) {
            return Ok(Piece::Nothing);
        }
        self.write_table().map(|job| Piece::Sync(Box::new(job)))
    }

    /// Writes what the running checkpoint has yet to write of the caches, all of it, to the index.
    pub(crate) fn write_frozen(&mut self) -> Result<()> {
        let Some(running) = &mut self.checkpointing else { return Ok(()) };
        let generation = running.generation;
        let (chunks, objects) = (std::mem::take(&mut running.chunks), std::mem::take(&mut running.objects));
        self.write_chunks(generation, &chunks)?;
        self.write_objects(generation, &objects)
    }

    /// Gives up the checkpoint that is being written: what it has written so far is the index as good as what it was before.
    pub(crate) fn abandon_checkpoint(&mut self) -> Result<()> {
        self.write_frozen()?;
        if self.checkpointing.take().is_some() {
            self.changed = true;
            self.tree.thaw();
        }
        while self.merge_changes()? {}
        Ok(())
    }

    /// Puts some of what changed during the last checkpoint into the index. `true` where there is more.
    pub(crate) fn merge_changes(&mut self) -> Result<bool> {
        let more = self.tree.merge_apart(PIECE_ENTRIES)?;
        self.settle_tree()?;
        Ok(more)
    }

    /// Ends a checkpoint whose superblock is durable.
    pub(crate) fn finish_checkpoint(&mut self, job: SyncJob) -> Result<()> {
        let Some(done) = self.checkpointing.take() else { return Ok(()) };
        self.superblock = job.superblock;
        self.log.tail_bytes -= done.tail_bytes;
        self.cleaned.clear();
        self.counters.checkpoints += 1;
        self.tree.thaw();
        self.refill_files = if done.is_amid_writes { self.refill_after(done.tail_bytes) } else { 0 };
        // What records freed was so when it began, and is now in its table.
        let mut empty = job.empty;
        empty.append(&mut self.freed.checkpointed(job.settled));
        self.release(&empty)
    }

    /// As [`Core::begin_checkpoint`], because of what clients write: as much will follow, and needs as many files.
    pub(crate) fn begin_checkpoint_amid_writes(&mut self) -> Result<()> {
        self.begin_checkpoint()?;
        if let Some(running) = &mut self.checkpointing {
            running.is_amid_writes = true;
        }
        Ok(())
    }

    /// Files the log will go through before the next checkpoint frees any, if it goes on as it did before this one. Kept for it,
    /// they need not be made anew while writers wait, nor their pages.
    fn refill_after(&self, tail_bytes: u64) -> usize {
        // The next one is written while the log goes on.
        let bytes = tail_bytes.min(TAIL_BYTES_MAX) / 4 * 5;
        let files = usize::try_from(bytes.div_ceil(self.space.segment_bytes())).expect("a tail is bounded");
        // Tails are not equally long: one that is short takes little back.
        (files + SPARE_FILES).max(self.refill_files.saturating_sub(1))
    }

    /// Free files to keep, where the medium has so many bytes left.
    fn files_to_keep(&self, free_bytes: u64) -> usize {
        let leaves_room =
            |files: u64| free_bytes >= (SPARE_ROOM_SEGMENTS + files) * self.space.segment_bytes();
        if self.refill_files > self.keep_files && leaves_room(self.refill_files as u64) {
            self.refill_files
        } else if leaves_room(0) {
            self.keep_files
        } else {
            0
        }
    }

    /// Makes freed segments usable: their readers must be gone.
    pub(crate) fn release(&mut self, empty: &[SegmentNo]) -> Result<()> {
        if empty.is_empty() {
            return Ok(());
        }
        self.retired.push((std::mem::take(&mut self.era), empty.to_vec()));
        self.release_retired()
    }

    /// Takes back segments whose last reader is gone.
    pub(crate) fn release_retired(&mut self) -> Result<()> {
        let mut waiting = Vec::new();
        for (era, segments) in std::mem::take(&mut self.retired) {
            if std::sync::Arc::strong_count(&era) > 1 {
                waiting.push((era, segments));
                continue;
            }
            // What is overwritten soon is overwritten faster where its pages are still there.
            if self.refill_files == 0 {
                for no in &segments {
                    self.disk.forget(FileId::Segment(*no));
                }
            }
            self.space.release(&segments);
        }
        self.retired = waiting;
        Ok(())
    }

    /// A file more than recycling needs, to be removed, then told to [`Space::removed`].
    pub(crate) fn take_spare(&mut self) -> Result<Option<SegmentNo>> {
        let keep = self.files_to_keep(self.disk.free_bytes()?);
        Ok(self.space.take_spare(keep))
    }

    /// Removes files that recycling does not need.
    pub(crate) fn remove_spares(&mut self) -> Result<()> {
        while let Some(no) = self.take_spare()? {
            let removed = self.disk.remove(FileId::Segment(no));
            self.space.removed();
            removed?;
        }
        Ok(())
    }

    /// Removes the notes about sharers of segments nothing points into any more.
    fn forget_sharers(&mut self) -> Result<()> {
        let bare: Vec<SegmentNo> = self
            .space
            .iter()
            .filter(|(_, s)| s.state == State::Sealed && s.references == 0)
            .map(|(no, _)| no)
            .collect();
        for no in bare {
            self.delete_all(&Key::new(Tag::Sharer).u32(no.0))?;
        }
        Ok(())
    }

    /// Writes some changed index pages, children first, in one batch. `true` where there were any.
    fn write_pages(&mut self, max: usize) -> Result<bool> {
        let mut pages = self.tree.dirty_in_order(max)?;
        if pages.is_empty() {
            return Ok(false);
        }
        let records =
            |pages: &[DirtyPage]| -> usize { pages.iter().map(|p| page_record_bytes(p.key.len())).sum() };
        // As many as the segment has room for, as long as that is more than a few.
        let left = self.log.left(&self.space, Head::Index) as usize;
        let most = if left > PIECE_PAGES_MIN { left } else { self.space.segment_blocks() as usize - 1 };
        while BatchHeader::blocks_for(records(&pages)) as usize + pages.len() > most {
            pages.pop();
        }
        let room = self.log.room(&mut self.space, &self.env, Head::Index, records(&pages), pages.len())?;
        let (mut written, mut payload) = (Vec::with_capacity(pages.len()), Vec::with_capacity(pages.len()));
        for (i, page) in (0..).zip(pages) {
            let (bytes, crc) = self.tree.seal(&page);
            let address = room.payload.plus(i);
            self.tree.place(&page, address, crc)?;
            self.space.add_node(address)?;
            written.push(Record::Node { level: page.level, crc, key: page.key });
            payload.push(bytes);
        }
        self.settle_tree()?;
        self.log.write_index(&mut self.space, room, &written, payload)?;
        Ok(true)
    }

    /// Writes the segment table, in which the space its own batch takes is already counted. What is left is to make all durable.
    fn write_table(&mut self) -> Result<SyncJob> {
        // Opening a segment for the table changes the table, so the room is made first, with a table as long.
        let blocks = self.space.table_bytes_max().div_ceil(BLOCK);
        let room =
            self.log.room(&mut self.space, &self.env, Head::Index, table_record_bytes(blocks), blocks)?;
        for address in self.superblock.table.into_iter().flat_map(table_blocks) {
            self.space.sub_node(address)?;
        }
        let own = self.space.entry(room.segment());
        let before = own.used;
        own.used = room.end;
        own.last_sequence = self.log.next_sequence;
        let running = self.checkpointing.as_deref_mut().expect("a checkpoint is being written");
        running.written = true;
        let mut table = self.space.table_of(&running.segments, &self.log.of_index);
        let empty = Space::empty_of(&table);
        Space::free_in(&mut table, &empty);
        self.space.mark_free(&empty);
        let encoded = Space::encode(&table);
        let superblock = Superblock {
            generation: self.superblock.generation + 1,
            epoch: self.log.epoch,
            checkpoint_sequence: running.sequence,
            root: self.tree.root(),
            table: Some((room.payload, encoded.len() as u64, crc32c(&encoded))),
            next_inode: running.next_inode,
            next_version: running.next_version,
            clean: false,
            ..self.superblock.clone()
        };
        let mut padded = encoded;
        padded.resize(blocks * BLOCK, 0);
        let payload = Bytes::from(padded);
        let crcs = payload.chunks_exact(BLOCK).map(crc32c).collect();
        self.space.entry(room.segment()).used = before;
        self.log.write_index(&mut self.space, room, &[Record::Table { crcs }], vec![payload])?;
        for address in superblock.table.into_iter().flat_map(table_blocks) {
            self.space.add_node(address)?;
        }
        let settled = Freed::settled_by(&table);
        Ok(SyncJob { superblock, empty, settled, segments: self.log.take_unsynced_index() })
    }

    /// Syncs every segment written since the last sync, holding the lock.
    pub(crate) fn sync_log(&mut self) -> Result<()> {
        let upto = self.log.last_sequence();
        for no in self.log.take_unsynced() {
            if let Err(e) = self.disk.sync(FileId::Segment(no)) {
                self.log.poisoned = true;
                return Err(e);
            }
        }
        self.log.durable_upto = self.log.durable_upto.max(upto);
        Ok(())
    }
}

/// Whether a running checkpoint has been written and waits to become durable.
fn running_is_written(running: Option<&mut Checkpointing>) -> bool {
    running.is_none_or(|r| r.written)
}

/// Bytes of the record of a page with a key of `key` bytes.
fn page_record_bytes(key: usize) -> usize {
    1 + 1 + 4 + 4 + key
}

/// Bytes of the record of a table of `blocks` blocks.
fn table_record_bytes(blocks: usize) -> usize {
    1 + 4 + blocks * 4
}

/// Blocks a segment table occupies.
pub(crate) fn table_blocks((address, bytes, _): (Address, u64, u32)) -> impl Iterator<Item = Address> {
    let blocks = u32::try_from(bytes.div_ceil(BLOCK as u64)).expect("a table is inside a segment");
    (0..blocks).map(move |i| address.plus(i))
}

/// Writes both slots, each made durable before the next is touched.
pub(crate) fn write_superblock(disk: &dyn Disk, superblock: &Superblock) -> Result<()> {
    for slot in 0..2 {
        disk.write(
            FileId::Superblock,
            u64::from(slot) * BLOCK as u64,
            &[Bytes::from(superblock.encode(slot))],
        )?;
        disk.sync(FileId::Superblock)?;
    }
    Ok(())
}
