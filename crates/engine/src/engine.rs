//! The engine: a store on a [`Disk`], shared by all who use it in this process.
//!
//! Writers take the lock, append to the open batch in memory and leave; whoever flushes writes the batch out and syncs for
//! everybody waiting. No thread of its own.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferry_core::watch::WatchRegistry;
use ferry_core::{Env, Error, ErrorKind, Result};

use crate::cache::Cache;
use crate::checkpoint::{After, Piece, SPARE_FILES, write_superblock};
use crate::cleaner::When;
use crate::core::{Core, Counters};
use crate::disk::{Disk, FileId, SegmentNo};
use crate::format::Superblock;
use crate::freed::Freed;
use crate::limits::{
    BLOCK, CACHE_BYTES_DEFAULT, ROOM_SEGMENTS, SEGMENT_BLOCKS_DEFAULT, SEGMENT_BLOCKS_MAX,
    SEGMENT_BLOCKS_MIN, SEGMENT_BLOCKS_SMALL,
};
use crate::log::Log;
pub use crate::recover::Recovery;
use crate::recover::{need_no_segments, read_superblock, read_table, was_never_made};
use crate::space::Space;
use crate::tree::Tree;

/// How a store is made and used.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Blocks of 4 KiB in a segment, 0 to choose by the room there is; fixed when the store is made.
    pub segment_blocks: u32,
    /// Bytes the store may take; 0 for what the medium has. Fixed when the store is made.
    pub capacity_bytes: u64,
    /// Memory for caches. Bytes.
    pub cache_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_blocks: 0, capacity_bytes: 0, cache_bytes: CACHE_BYTES_DEFAULT }
    }
}

/// What a store holds and what it did since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes of the segments in use.
    pub segment_bytes: u64,
    /// Bytes written in them.
    pub used_bytes: u64,
    /// Bytes of those that are still referred to.
    pub live_bytes: u64,
    /// Bytes clients wrote.
    pub client_bytes: u64,
    /// Bytes appended to the log, all told.
    pub log_bytes: u64,
    /// Of those, by checkpoints.
    pub checkpoint_bytes: u64,
    /// Of those, by the cleaner.
    pub cleaner_bytes: u64,
    /// Checkpoints made.
    pub checkpoints: u64,
    /// Segments cleaned.
    pub cleaned_segments: u64,
    /// Segments that were free again before a checkpoint.
    pub freed_segments: u64,
    /// Whether a checkpoint is being written.
    pub checkpoint_running: bool,
}

/// What clients did to a store since it was opened; what it does to itself is not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Transactions.
    pub changes: u64,
    /// Bytes written.
    pub bytes: u64,
}

/// A log-structured store. See the crate.
#[derive(Debug)]
pub struct Engine {
    pub(crate) core: Mutex<Core>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) watches: WatchRegistry,
    pub(crate) client: ferry_core::ClientId,
    /// See `Store::generation`.
    pub(crate) generation: AtomicU64,
    /// Held by whoever writes a piece of a checkpoint or cleans. Taken before any other.
    turn: Mutex<()>,
    /// Held by whoever waits for `core`: so that background work, which takes it too, does not overtake.
    queue: Mutex<()>,
    /// Whether there may be something to maintain, see [`Engine::wait_for_work`].
    work: Mutex<bool>,
    work_came: Condvar,
    identity: [u8; 16],
    syncing: Mutex<SyncState>,
    synced: Condvar,
    recovery: Recovery,
}

#[derive(Debug, Default)]
struct SyncState {
    running: bool,
}

impl Engine {
    /// Makes an empty store on a disk that has none.
    ///
    /// # Errors
    /// `Exists` (17) where there is one; `Invalid` for options out of bounds.
    ///
    /// # Crash safety
    /// A crash leaves a store or none: the same call begins anew.
    pub fn create(disk: Arc<dyn Disk>, env: Env, options: Options) -> Result<Arc<Self>> {
        if disk.has_superblock()? && !was_never_made(&*disk)? {
            return Err(Error::exists("there is a store here").with("directory", disk.describe()));
        }
        need_no_segments(&*disk)?;
        let segment_blocks = match options.segment_blocks {
            0 => fitting_segment_blocks(&*disk, options.capacity_bytes)?,
            blocks => blocks,
        };
        if !(SEGMENT_BLOCKS_MIN..=SEGMENT_BLOCKS_MAX).contains(&segment_blocks) {
            return Err(Error::invalid("a segment's size out of bounds").with("blocks", segment_blocks));
        }
        let mut store = [0; 16];
        store[..8].copy_from_slice(&env.rng.next_u64().to_le_bytes());
        store[8..].copy_from_slice(&env.rng.next_u64().to_le_bytes());
        let superblock = Superblock {
            store,
            generation: 1,
            epoch: 1,
            opens: 0,
            segment_blocks,
            capacity_bytes: options.capacity_bytes,
            checkpoint_sequence: 0,
            root: None,
            table: None,
            next_inode: 1,
            next_version: 1,
            clean: true,
        };
        disk.create(FileId::Superblock, 2 * BLOCK as u64)?;
        write_superblock(&*disk, &superblock)?;
        Self::open(disk, env, options)
    }

    /// Opens a store for reading and writing, recovering what a crash left.
    ///
    /// # Errors
    /// `NotFound` (2) where there is none, `Corrupt` where it is damaged, `Unsupported` where a newer ferry made it.
    ///
    /// # Crash safety
    /// A crash while opening leaves the store as it was; opening again does the same.
    pub fn open(disk: Arc<dyn Disk>, env: Env, options: Options) -> Result<Arc<Self>> {
        Self::open_as(disk, env, options, false)
    }

    /// Opens a store for reading only: nothing is written, a tail is replayed in memory.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_read_only(disk: Arc<dyn Disk>, env: Env, options: Options) -> Result<Arc<Self>> {
        Self::open_as(disk, env, options, true)
    }

    fn open_as(disk: Arc<dyn Disk>, env: Env, options: Options, read_only: bool) -> Result<Arc<Self>> {
        let (superblock, damaged) = read_superblock(&*disk)?;
        let mut space = read_table(&*disk, &superblock)?;
        let mut files = disk.segments()?;
        files.sort_unstable();
        set_files(&mut space, &*disk, &files)?;
        let mut core = new_core(&disk, env, superblock, space, options);
        core.read_only = read_only;
        core.load_pools()?;
        let (recovery, epoch) = core.replay(&files, damaged)?;
        set_files(&mut core.space, &*disk, &files)?;
        core.settle_tree()?;
        core.superblock.opens += 1;
        if damaged && !read_only {
            core.superblock.generation += 1;
            write_superblock(&*disk, &core.superblock)?;
        }
        let unclean = recovery.batches > 0 || recovery.dropped_bytes > 0 || recovery.left_behind;
        if unclean {
            core.superblock.opens += 1;
            core.log.epoch = epoch;
            core.log.abandon_heads(&mut core.space);
            core.changed = true;
            if !read_only {
                core.settle_replay()?;
                core.checkpoint(After::MoreWork)?;
            }
        }
        let client = ferry_core::ClientId(4096 + core.superblock.opens);
        let identity = core.superblock.store;
        Ok(Arc::new(Self {
            core: Mutex::new(core),
            disk,
            watches: WatchRegistry::default(),
            client,
            generation: AtomicU64::new(1),
            turn: Mutex::default(),
            queue: Mutex::default(),
            work: Mutex::default(),
            work_came: Condvar::new(),
            identity,
            syncing: Mutex::default(),
            synced: Condvar::new(),
            recovery,
        }))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Core> {
        match self.core.try_lock() {
            Ok(core) => core,
            Err(_) => self.lock_behind(),
        }
    }

    /// The state, for background work: whoever waits for it goes first.
    pub(crate) fn lock_behind(&self) -> MutexGuard<'_, Core> {
        let _queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to write pieces of checkpoints and to clean. Never asked for with anything locked.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What opening found.
    #[must_use]
    pub fn recovery(&self) -> Recovery {
        self.recovery
    }

    /// The store's identity.
    #[must_use]
    pub fn identity(&self) -> [u8; 16] {
        self.identity
    }

    /// Makes everything acknowledged durable: whoever comes first syncs, the others wait for a sync that began after them.
    ///
    /// # Errors
    /// A failed sync poisons the store: what of the last writes is on disk is known only after opening it again.
    pub fn sync(&self) -> Result<()> {
        let wanted = {
            let mut core = self.lock();
            core.log.check()?;
            core.log_seal()?;
            core.log.last_sequence()
        };
        let mut state = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            {
                let core = self.lock();
                core.log.check()?;
                if core.log.durable_upto >= wanted {
                    return Ok(());
                }
            }
            if state.running {
                state = self.synced.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.running = true;
            drop(state);
            let result = self.sync_once();
            state = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
            state.running = false;
            self.synced.notify_all();
            result?;
        }
    }

    /// Syncs what is written now, outside the lock.
    fn sync_once(&self) -> Result<()> {
        let (segments, upto) = {
            let mut core = self.lock();
            core.log.check()?;
            core.log_seal()?;
            (core.log.take_unsynced(), core.log.last_sequence())
        };
        while self.write_ahead()? {}
        let result = segments.iter().try_for_each(|no| self.disk.sync(FileId::Segment(*no)));
        let mut core = self.lock();
        match result {
            Ok(()) => core.log.durable_upto = core.log.durable_upto.max(upto),
            Err(_) => core.log.poisoned = true,
        }
        result
    }

    /// Writes a little ahead of the log, so that the syncs after this one are cheap; whether there is more to write.
    fn write_ahead(&self) -> Result<bool> {
        let mut core = self.lock();
        let Core { log, space, .. } = &mut *core;
        log.write_ahead(space)
    }

    /// Writes a checkpoint if anything changed since the last: the next open has nothing to replay but what is written meanwhile.
    /// Others read and write while it is made; none waits for more than a small piece of it.
    ///
    /// # Errors
    /// As [`Engine::sync`]; `NoSpace` (28) where there is no room for it, with nothing lost.
    pub fn checkpoint(&self) -> Result<()> {
        let turn = self.turn();
        self.checkpoint_in(&turn)
    }

    /// Begins a checkpoint for [`Engine::maintain`] to write, unless one is being written or nothing changed. `true` if it did.
    ///
    /// # Errors
    /// As [`Engine::sync`].
    pub fn begin_checkpoint(&self) -> Result<bool> {
        let _turn = self.turn();
        let mut core = self.lock_behind();
        if core.read_only || !core.changed || core.checkpointing.is_some() {
            return Ok(false);
        }
        core.begin_checkpoint().map(|()| true)
    }

    /// [`Engine::checkpoint`] for who has the turn.
    pub(crate) fn checkpoint_in(&self, turn: &MutexGuard<'_, ()>) -> Result<()> {
        // One that began before may lack what was written since.
        while self.checkpoint_piece(turn)? {}
        {
            let mut core = self.lock_behind();
            if core.read_only || !core.changed {
                return Ok(());
            }
            core.begin_checkpoint()?;
        }
        while self.checkpoint_piece(turn)? {}
        Ok(())
    }

    /// Does a piece of the checkpoint that is being written, or of what follows it. `false` where there is neither.
    pub(crate) fn checkpoint_piece(&self, turn: &MutexGuard<'_, ()>) -> Result<bool> {
        let job = {
            let mut core = self.lock_behind();
            if core.checkpointing.is_none() {
                return core.merge_changes();
            }
            match core.checkpoint_piece()? {
                Piece::Nothing => return Ok(false),
                Piece::More => return Ok(true),
                Piece::Sync(job) => job,
            }
        };
        // Without the lock: nobody else writes the superblock or to the index head, who does has the turn.
        let written = self
            .sync()
            .and_then(|()| job.segments.iter().try_for_each(|no| self.disk.sync(FileId::Segment(*no))))
            .and_then(|()| write_superblock(&*self.disk, &job.superblock));
        let mut core = self.lock_behind();
        if let Err(e) = written {
            core.log.poisoned = true;
            return Err(e);
        }
        core.finish_checkpoint(*job)?;
        drop(core);
        self.remove_spares(turn)?;
        Ok(true)
    }

    /// Removes files that recycling does not need. Without the lock: it takes the file system some ten milliseconds each.
    pub(crate) fn remove_spares(&self, _turn: &MutexGuard<'_, ()>) -> Result<()> {
        loop {
            let spare = {
                let mut core = self.lock_behind();
                if core.read_only { None } else { core.take_spare()? }
            };
            let Some(no) = spare else { return Ok(()) };
            let removed = self.disk.remove(FileId::Segment(no));
            self.lock_behind().space.removed();
            removed?;
        }
    }

    /// Begins a checkpoint where one is due, or goes on with the one that is being written. `true` where there was something to do.
    pub(crate) fn checkpoint_step(&self, turn: &MutexGuard<'_, ()>) -> Result<bool> {
        if self.checkpoint_piece(turn)? {
            return Ok(true);
        }
        let mut core = self.lock_behind();
        if core.read_only || core.log.poisoned || !core.checkpoint_due() {
            return Ok(false);
        }
        core.begin_checkpoint_amid_writes()?;
        Ok(true)
    }

    /// A writer's share of a checkpoint that is overdue, unless somebody is at it: one piece. It has written already, so that a
    /// checkpoint finds no room is not its failure: [`Engine::maintain`] and the next write that needs room will say so.
    pub(crate) fn help_checkpoint(&self) -> Result<()> {
        let Ok(turn) = self.turn.try_lock() else { return Ok(()) };
        match self.checkpoint_step(&turn) {
            Err(e) if e.kind() == ErrorKind::NoSpace => Ok(()),
            done => done.map(drop),
        }
    }

    /// Waits for a running sync, so that nothing it covers is counted durable too early by another.
    fn sync_turn(&self) -> MutexGuard<'_, SyncState> {
        let mut state = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        while state.running {
            state = self.synced.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    /// What the store holds and did.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let core = self.lock();
        let (used, live) = core.space.usage();
        let counters = core.counters;
        let Counters { checkpoints, checkpoint_bytes, cleaned_segments, freed_segments, .. } = counters;
        Statistics {
            segment_bytes: core.space.segment_bytes() * core.space.in_use(),
            used_bytes: used * BLOCK as u64,
            live_bytes: live * BLOCK as u64,
            client_bytes: counters.client_bytes,
            log_bytes: core.log.written_bytes,
            checkpoint_bytes,
            cleaner_bytes: counters.cleaner_bytes,
            checkpoints,
            cleaned_segments,
            freed_segments,
            checkpoint_running: core.checkpointing.is_some(),
        }
    }

    /// Does a little of what can wait: drops versions of released snapshots, writes checkpoints, cleans. `true` where there is more.
    ///
    /// The owner of a store that stays open runs it on one background thread:
    ///
    /// ```text
    /// while !stopping() {
    ///     if !engine.maintain()? {
    ///         engine.wait_for_work(Duration::from_millis(100));
    ///     }
    /// }
    /// ```
    ///
    /// - A call's work is bounded: it holds what readers and writers need for about 0.2 ms at the longest, and they go first if they
    ///   wait; it may wait for the disk, which they do not. A call with nothing to do is one look under the lock.
    /// - A loop until `false` ends if others do not write meanwhile, and soon even if they do.
    /// - Called too seldom, writers find no room and clean themselves; a checkpoint that is overdue is written by them, a small piece a
    ///   write. So it is not needed for safety, only for latency.
    /// - Calls from several threads take turns.
    /// - In longer idle times, which [`Engine::activity`] tells: [`Engine::tidy`], so that what is dead takes less room;
    ///   [`Engine::begin_checkpoint`], so that opening after a crash has less
    ///   to replay; [`Engine::prepare_one`], so that flushes are cheap; [`Engine::defragment_piece`], so that reading through what was
    ///   written at random is sequential.
    ///
    /// # Errors
    /// As [`Engine::sync`]; `NoSpace` (28) where there is no room to work in, with nothing lost: removals make some.
    pub fn maintain(&self) -> Result<bool> {
        let changes = {
            let core = self.lock();
            if core.is_quiet() {
                return Ok(false);
            }
            core.changes
        };
        if self.trim_step()? {
            return Ok(true);
        }
        let turn = self.turn();
        let more = self.checkpoint_step(&turn)? || self.clean_step(&turn, When::AmidWrites)?;
        if !more {
            self.lock_behind().quiet = Some(changes);
        }
        Ok(more)
    }

    /// Cleans a little more than [`Engine::maintain`] does while clients write: what they left behind beyond two fifths of what is
    /// used. For a pause, after [`Engine::maintain`] had nothing to do. `true` where there is more; a loop until `false` ends.
    ///
    /// # Errors
    /// As [`Engine::maintain`].
    pub fn tidy(&self) -> Result<bool> {
        let turn = self.turn();
        Ok(self.checkpoint_step(&turn)? || self.clean_step(&turn, When::Paused)?)
    }

    /// What clients did to the store since it was opened.
    #[must_use]
    pub fn activity(&self) -> Activity {
        let core = self.lock();
        Activity { changes: core.changes, bytes: core.counters.client_bytes }
    }

    /// Waits until there may be something to [`Engine::maintain`]: a writer took another segment. At most so long.
    pub fn wait_for_work(&self, at_most: Duration) {
        let work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.work_came.wait_timeout_while(work, at_most, |there| !*there);
        let (mut work, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *work = false;
    }

    /// Says that there may be something to maintain.
    pub(crate) fn call_for_work(&self) {
        *self.work.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.work_came.notify_one();
    }

    /// Makes free segments ahead of need, written with zeros, so that a flush finds its blocks allocated: on most file systems
    /// that halves its cost. For idle time; `count` is how many should be ready.
    ///
    /// # Errors
    /// Those of the operating system; running out of room is none.
    pub fn prepare(&self, count: usize) -> Result<()> {
        while self.prepare_one(count)? {}
        Ok(())
    }

    /// Makes one of them, unless there are `count`; whether it did. One segment is written and synced.
    ///
    /// # Errors
    /// Those of the operating system; running out of room is none.
    pub fn prepare_one(&self, count: usize) -> Result<bool> {
        let (no, bytes) = {
            let mut core = self.lock_behind();
            core.check_writable()?;
            core.keep_files = SPARE_FILES.max(count);
            let spare = core.space.available(&*self.disk)? > u64::from(core.space.reserve());
            if core.space.ready() >= count || !spare {
                return Ok(false);
            }
            (core.space.take_unmade(), core.space.segment_bytes())
        };
        let made = self.make_segment(no, bytes);
        let mut core = self.lock_behind();
        match made {
            Ok(()) => {
                core.space.add_file(no);
                Ok(true)
            }
            Err(e) => {
                core.space.give_back(no);
                if e.kind() == ErrorKind::NoSpace { Ok(false) } else { Err(e) }
            }
        }
    }

    /// Bytes of a segment.
    #[must_use]
    pub fn segment_bytes(&self) -> u64 {
        self.lock().space.segment_bytes()
    }

    /// Makes the file of a segment and writes it through.
    fn make_segment(&self, no: SegmentNo, bytes: u64) -> Result<()> {
        let file = FileId::Segment(no);
        self.disk.create(file, bytes)?;
        let zeros = bytes::Bytes::from(vec![0; 1 << 20]);
        let mut at = 0;
        while at < bytes {
            let n = (bytes - at).min(1 << 20);
            let part = zeros.slice(..usize::try_from(n).expect("a mebibyte"));
            self.disk.write(file, at, &[part])?;
            at += n;
        }
        self.disk.sync(file)?;
        self.disk.forget(file);
        Ok(())
    }

    /// Makes the store ready for the next opener. What was acknowledged before is durable when this returns.
    ///
    /// # Errors
    /// As [`Engine::sync`]; nothing flushed before is lost.
    pub fn close(&self) -> Result<()> {
        let _turn = self.turn();
        let _sync = self.sync_turn();
        let mut core = self.lock();
        if core.read_only || (!core.changed && core.superblock.clean) {
            return Ok(());
        }
        core.checkpoint(After::Closing)
    }
}

/// Segments so small that the handful kept in reserve is a small part of the room there is, but not smaller than large writes
/// need.
fn fitting_segment_blocks(disk: &dyn Disk, capacity_bytes: u64) -> Result<u32> {
    let room = if capacity_bytes == 0 { disk.free_bytes()? } else { capacity_bytes };
    let mut blocks = SEGMENT_BLOCKS_DEFAULT;
    while blocks > SEGMENT_BLOCKS_SMALL && u64::from(blocks) * BLOCK as u64 * ROOM_SEGMENTS > room {
        blocks /= 2;
    }
    Ok(blocks)
}

/// Says which files of free segments are ready to be used. One that is shorter than a segment was being made when a process died, and
/// is made again: what is written to it could not be told from a file that was never used.
fn set_files(space: &mut Space, disk: &dyn Disk, files: &[SegmentNo]) -> Result<()> {
    let mut ready = Vec::new();
    for no in files.iter().filter(|no| space.is_free(**no)) {
        if disk.length(FileId::Segment(*no))? >= space.segment_bytes() {
            ready.push(*no);
        }
    }
    space.set_files(ready);
    Ok(())
}

/// The state in memory of a store whose superblock and segment table were read.
fn new_core(disk: &Arc<dyn Disk>, env: Env, superblock: Superblock, space: Space, options: Options) -> Core {
    // Half for index pages; a third for chunks of tables, about 900 bytes each with their place in the map; the rest for
    // object records and names.
    let pages = options.cache_bytes / 2 / (BLOCK + 128);
    let chunks = options.cache_bytes / 3 / 900;
    let objects = options.cache_bytes / 6 / 600;
    let freed = Freed::new(&space);
    let log = Log::new(
        Arc::clone(disk),
        superblock.store,
        superblock.epoch,
        superblock.checkpoint_sequence,
        &space,
    );
    Core {
        disk: Arc::clone(disk),
        env,
        tree: Tree::open(Arc::clone(disk), superblock.root, pages),
        log,
        space,
        chunks: Cache::new(chunks / 2),
        objects: Cache::new(objects / 2),
        generation: 1,
        changed_chunks: Vec::new(),
        changed_objects: Vec::new(),
        checkpointing: None,
        names: Cache::new(objects / 2),
        pools: std::collections::BTreeMap::new(),
        next_inode: superblock.next_inode,
        next_version: superblock.next_version,
        next_pool: 1,
        released: std::collections::BTreeSet::new(),
        sharing: crate::sharing::Sharing::default(),
        era: Arc::new(()),
        retired: Vec::new(),
        freed,
        hopeless: None,
        keep_files: SPARE_FILES,
        refill_files: 0,
        changes: 0,
        round: crate::cleaner::Round::default(),
        quiet: None,
        cleaning: None,
        cleaned: std::collections::BTreeSet::new(),
        changed: false,
        read_only: false,
        counters: Counters::default(),
        superblock,
    }
}

impl Core {
    /// Whether there was nothing to maintain the last time and nothing changed since.
    fn is_quiet(&self) -> bool {
        self.quiet == Some(self.changes)
            && self.retired.is_empty()
            && self.checkpointing.is_none()
            && !self.tree.has_apart()
    }

    /// Writes the open batch out.
    pub(crate) fn log_seal(&mut self) -> Result<()> {
        self.log.seal(&mut self.space)
    }

    /// Fails where the store may not be written.
    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "the store is open for reading only")
                .with("store", self.disk.describe()));
        }
        self.log.check()
    }
}
