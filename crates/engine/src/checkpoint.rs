//! Checkpoints: write what changed of the index, then say in the superblock where it is. Layout: `docs/format/checkpoint.md`.

use bytes::Bytes;
use ferry_core::Result;
use ferry_core::checksum::crc32c;

use crate::address::Address;
use crate::core::Core;
use crate::disk::{Disk, FileId, SegmentNo};
use crate::format::Superblock;
use crate::key::{Key, Tag};
use crate::limits::{BATCH_PAYLOAD_BLOCKS, BLOCK, DIRTY_PAGES_MAX, TAIL_BYTES_MAX};
use crate::record::Record;
use crate::space::{Head, Purpose, State};

/// Free files kept for recycling; more are removed, so that what the store takes shrinks with what it holds.
const SPARE_FILES: usize = 4;

/// Segments the medium must have room for, for spare files to be kept at all.
const SPARE_ROOM_SEGMENTS: u64 = 16;

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

    /// Bytes of log after which a checkpoint is due in a small store: a quarter of its capacity.
    fn tail_limit(&self) -> u64 {
        match self.superblock.capacity_bytes {
            0 => u64::MAX,
            bytes => (bytes / 8).max(self.space.segment_bytes() * 2),
        }
    }

    /// Makes everything durable and the log's tail empty.
    ///
    /// # Crash safety
    /// Until the first superblock slot is durable the last checkpoint and its tail hold; after it, this one.
    ///
    /// # Errors
    /// Any failure poisons the store, except `NoSpace` (28) before anything was written.
    pub(crate) fn checkpoint(&mut self, after: After) -> Result<()> {
        self.log.check()?;
        let written = self.log.written_bytes;
        let result = self.mark_unclean().and_then(|()| self.try_checkpoint(after));
        if result.is_err() {
            self.log.poisoned = true;
        }
        self.counters.checkpoints += 1;
        self.counters.checkpoint_bytes += self.log.written_bytes - written;
        result
    }

    fn try_checkpoint(&mut self, after: After) -> Result<()> {
        self.write_back()?;
        self.forget_sharers()?;
        self.write_tree()?;
        let old_table = self.superblock.table;
        if let Some(table) = old_table {
            for address in table_blocks(table) {
                self.space.sub_node(address)?;
            }
        }
        // The batch that takes the table, before the table is encoded: it must describe the segment it lies in.
        self.log.seal(&mut self.space)?;
        let empty: Vec<SegmentNo> = self.space.empty();
        self.space.mark_free(&empty);
        let table = self.write_table()?;
        for address in table_blocks(table) {
            self.space.add_node(address)?;
        }
        self.log.seal(&mut self.space)?;
        self.sync_log()?;
        let next = Superblock {
            generation: self.superblock.generation + 1,
            epoch: self.log.epoch,
            checkpoint_sequence: self.log.last_sequence(),
            root: self.tree.root(),
            table: Some(table),
            next_inode: self.next_inode,
            next_version: self.next_version,
            clean: after == After::Closing,
            ..self.superblock.clone()
        };
        write_superblock(&*self.disk, &next)?;
        self.superblock = next;
        self.log.tail_bytes = 0;
        self.cleaned.clear();
        self.changed = false;
        self.release(&empty)
    }

    /// Makes freed segments usable: their readers must be gone, and files beyond what recycling needs go too.
    fn release(&mut self, empty: &[SegmentNo]) -> Result<()> {
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
            for no in &segments {
                self.disk.forget(FileId::Segment(*no));
            }
            self.space.release(&segments);
        }
        self.retired = waiting;
        let roomy = self.disk.free_bytes()? >= SPARE_ROOM_SEGMENTS * self.space.segment_bytes();
        for no in self.space.spare_files(if roomy { SPARE_FILES } else { 0 }) {
            self.disk.remove(FileId::Segment(no))?;
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

    /// Writes the changed index pages, children first.
    fn write_tree(&mut self) -> Result<()> {
        for page in self.tree.dirty_in_order()? {
            let (bytes, crc) = self.tree.seal(&page);
            let record = Record::Node { level: page.level, crc, key: page.key.clone() };
            let address = self.log.append(
                &mut self.space,
                &self.env,
                (Head::Index, Purpose::Reclaim),
                &[record],
                vec![bytes],
            )?;
            self.tree.place(&page, address, crc)?;
            self.space.add_node(address)?;
        }
        self.settle_tree()
    }

    /// Writes the segment table. It is encoded with the space its own batch takes already counted.
    fn write_table(&mut self) -> Result<(Address, u64, u32)> {
        // Opening a segment for the table changes the table, so the room is made first, with a table as long.
        let bytes = self.space.encode().len() + 2 * 32;
        let blocks = bytes.div_ceil(BLOCK);
        let room = self.log.make_room(&mut self.space, &self.env, table_record_bytes(blocks), blocks)?;
        let encoded = self.space.encode_with(room.segment(), room.end, self.log.next_sequence);
        let mut padded = encoded.clone();
        padded.resize(blocks * BLOCK, 0);
        let payload = Bytes::from(padded);
        let crcs = payload.chunks_exact(BLOCK).map(crc32c).collect();
        let address = self.log.append(
            &mut self.space,
            &self.env,
            (Head::Index, Purpose::Reclaim),
            &[Record::Table { crcs }],
            vec![payload],
        )?;
        assert_eq!(address, room.payload, "the table lies where it says it does");
        Ok((address, encoded.len() as u64, crc32c(&encoded)))
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

const _: () = assert!(BATCH_PAYLOAD_BLOCKS > 0);
