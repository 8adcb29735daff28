//! Reading and writing while segments are emptied and used again.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use ferry_core::testing::test_env;
use ferry_core::{Effect, Namespace, ObjectId, PoolId, ReadOp, Result, SnapContext, SnapId, Store, WriteOp};
use ferry_engine::disk::sim::SimDisk;
use ferry_engine::disk::{Disk, FileId, SegmentNo};
use ferry_engine::{Engine, Options};

fn object(pool: PoolId, n: usize) -> ObjectId {
    ObjectId::new(pool, &Namespace::default(), &format!("o{n}"))
}

fn content(n: usize) -> Vec<u8> {
    (0..100_000).map(|i| u8::try_from((i * 7 + n * 13) % 251).unwrap()).collect()
}

fn write(store: &Engine, pool: PoolId, n: usize, bytes: Vec<u8>) {
    store.write(&object(pool, n), WriteOp::new().write(0, bytes)).wait().unwrap();
}

fn remove(store: &Engine, pool: PoolId, n: usize) {
    store.write(&object(pool, n), WriteOp::new().effect(Effect::Remove)).wait().unwrap();
}

fn read(store: &Engine, pool: PoolId, n: usize) -> Vec<u8> {
    let reply = store.read(&object(pool, n), SnapId::HEAD, ReadOp::data(0, 200_000)).wait().unwrap();
    reply.data.to_vec(0, reply.size)
}

#[test]
fn what_is_written_while_a_segment_is_emptied_stays_as_written() {
    // Segments the cleaner needs several steps for.
    let options = Options { segment_blocks: 1024, capacity_bytes: 0, cache_bytes: 1 << 20 };
    let store = Engine::create(Arc::new(SimDisk::new(1)), test_env(1), options).unwrap();
    let pool = store.create_pool("p").wait().unwrap();
    for n in 0..400 {
        write(&store, pool, n, content(n));
    }
    for n in (0..400).filter(|n| n % 4 != 0) {
        remove(&store, pool, n);
    }
    let mut written = vec![0; 100];
    let mut round = 0;
    while store.statistics().cleaned_segments < 4 {
        round += 1;
        assert!(round < 2000, "nothing is cleaned: {:?}", store.statistics());
        store.maintain().unwrap();
        // In pieces: now what was moved last is written, now what will be next.
        let i = round * 7 % 100;
        write(&store, pool, i * 4, content(i + round * 1000));
        written[i] = round;
    }
    for (i, round) in written.iter().enumerate() {
        let wanted = if *round == 0 { content(i * 4) } else { content(i + round * 1000) };
        assert!(read(&store, pool, i * 4) == wanted, "object {i}, written in round {round}");
    }
    assert!(store.check().unwrap().is_clean());
}

/// A disk on which something else happens in the middle of the next read, or of the next that was announced.
struct Interrupted {
    disk: SimDisk,
    act: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    before_many: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    before_removal: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    /// Files made or removed.
    changes: AtomicUsize,
}

impl Interrupted {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            disk: SimDisk::new(1),
            act: Mutex::default(),
            before_many: Mutex::default(),
            before_removal: Mutex::default(),
            changes: AtomicUsize::new(0),
        })
    }
}

impl fmt::Debug for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.disk.fmt(f)
    }
}

impl Disk for Interrupted {
    fn read(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let act = self.act.lock().unwrap().take();
        if let Some(act) = act {
            act();
        }
        self.disk.read(file, offset, buffer)
    }

    fn segments(&self) -> Result<Vec<SegmentNo>> {
        self.disk.segments()
    }

    fn has_superblock(&self) -> Result<bool> {
        self.disk.has_superblock()
    }

    fn create(&self, file: FileId, length: u64) -> Result<()> {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.disk.create(file, length)
    }

    fn remove(&self, file: FileId) -> Result<()> {
        self.changes.fetch_add(1, Ordering::SeqCst);
        let act = self.before_removal.lock().unwrap().take();
        if let Some(act) = act {
            act();
        }
        self.disk.remove(file)
    }

    fn length(&self, file: FileId) -> Result<u64> {
        self.disk.length(file)
    }

    fn will_read(&self, ranges: &[(FileId, u64, u64)]) {
        let act = self.before_many.lock().unwrap().take();
        if let Some(act) = act {
            act();
        }
        self.disk.will_read(ranges);
    }

    fn write(&self, file: FileId, offset: u64, parts: &[Bytes]) -> Result<()> {
        self.disk.write(file, offset, parts)
    }

    fn sync(&self, file: FileId) -> Result<()> {
        self.disk.sync(file)
    }

    fn forget(&self, file: FileId) {
        self.disk.forget(file);
    }

    fn free_bytes(&self) -> Result<u64> {
        self.disk.free_bytes()
    }

    fn describe(&self) -> String {
        self.disk.describe()
    }
}

#[test]
fn what_will_be_read_is_told_to_the_disk_and_waited_for_by_nobody() {
    let disk = Interrupted::new();
    let options = Options { segment_blocks: 64, capacity_bytes: 0, cache_bytes: 1 << 20 };
    let store = Engine::create(Arc::clone(&disk) as Arc<dyn Disk>, test_env(1), options).unwrap();
    let pool = store.create_pool("p").wait().unwrap();
    write(&store, pool, 0, content(0));
    store.flush().wait().unwrap();
    let (told, read_from) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (telling, reading) = (Arc::clone(&told), Arc::clone(&read_from));
    *disk.before_many.lock().unwrap() = Some(Box::new(move || {
        telling.fetch_add(1, Ordering::SeqCst);
    }));
    *disk.act.lock().unwrap() = Some(Box::new(move || {
        reading.fetch_add(1, Ordering::SeqCst);
    }));
    // One that is not there, a snapshot that is not, and nothing of one that is.
    store.will_read(&object(pool, 1), SnapId::HEAD, 0, 4096);
    store.will_read(&object(PoolId(99), 0), SnapId::HEAD, 0, 4096);
    store.will_read(&object(pool, 0), SnapId::HEAD, 1 << 20, 4096);
    assert_eq!(told.load(Ordering::SeqCst), 0);
    store.will_read(&object(pool, 0), SnapId::HEAD, 0, u64::MAX);
    assert_eq!((told.load(Ordering::SeqCst), read_from.load(Ordering::SeqCst)), (1, 0));
    assert!(read(&store, pool, 0) == content(0));
    assert_eq!(read_from.load(Ordering::SeqCst), 1);
}

#[test]
fn a_segment_is_not_used_again_while_somebody_reads_from_it() {
    let disk = Interrupted::new();
    let options = Options { segment_blocks: 64, capacity_bytes: 0, cache_bytes: 1 << 20 };
    let store = Engine::create(Arc::clone(&disk) as Arc<dyn Disk>, test_env(1), options).unwrap();
    let pool = store.create_pool("p").wait().unwrap();
    for n in 0..10 {
        write(&store, pool, n, content(n));
    }
    store.checkpoint().unwrap();
    let other = Arc::clone(&store);
    *disk.act.lock().unwrap() = Some(Box::new(move || {
        for n in 0..10 {
            remove(&other, pool, n);
        }
        other.checkpoint().unwrap();
        for n in 10..20 {
            write(&other, pool, n, content(n));
        }
        other.flush().wait().unwrap();
    }));
    assert!(read(&store, pool, 0) == content(0));
    assert!(disk.act.lock().unwrap().is_none(), "the read was not interrupted");
    for n in 10..20 {
        assert!(read(&store, pool, n) == content(n), "object {n}");
    }
}

#[test]
fn what_changes_while_it_is_copied_stays_as_changed() {
    let disk = Interrupted::new();
    let options = Options { segment_blocks: 256, capacity_bytes: 0, cache_bytes: 1 << 20 };
    let store = Engine::create(Arc::clone(&disk) as Arc<dyn Disk>, test_env(1), options).unwrap();
    let pool = store.create_pool("p").wait().unwrap();
    for n in 0..40 {
        write(&store, pool, n, content(n));
    }
    for n in (0..40).filter(|n| n % 4 != 0) {
        remove(&store, pool, n);
    }
    store.checkpoint().unwrap();
    let snap = store.allocate_snap(pool).wait().unwrap();
    let other = Arc::clone(&store);
    // While the first blocks are read to be copied, everything that lives changes: overwritten, preserved or removed.
    *disk.before_many.lock().unwrap() = Some(Box::new(move || {
        for n in (0..40).step_by(8) {
            write(&other, pool, n, content(n + 1000));
        }
        for n in (4..40).step_by(16) {
            let context = SnapContext { seq: snap.0, snaps: Arc::from([snap].as_slice()) };
            let op = WriteOp::new().under(context).write(0, content(n + 2000));
            other.write(&object(pool, n), op).wait().unwrap();
        }
        for n in (12..40).step_by(16) {
            remove(&other, pool, n);
        }
    }));
    while store.clean_one().unwrap() {}
    assert!(disk.before_many.lock().unwrap().is_none(), "nothing was copied");
    let expect = |store: &Engine| {
        for n in (0..40).step_by(8) {
            assert!(read(store, pool, n) == content(n + 1000), "object {n}");
        }
        for n in (4..40).step_by(16) {
            assert!(read(store, pool, n) == content(n + 2000), "object {n}");
            let reply = store.read(&object(pool, n), snap, ReadOp::data(0, 200_000)).wait().unwrap();
            assert!(reply.data.to_vec(0, reply.size) == content(n), "object {n} at the snapshot");
        }
        for n in (12..40).step_by(16) {
            assert!(store.read(&object(pool, n), SnapId::HEAD, ReadOp::data(0, 1)).wait().is_err());
        }
        assert!(store.check().unwrap().is_clean());
    };
    expect(&store);
    store.flush().wait().unwrap();
    drop(store);
    let image = Arc::new(disk.disk.crash(1));
    expect(&Engine::open(image, test_env(2), options).unwrap());
}

#[test]
#[expect(clippy::disallowed_methods, reason = "somebody else writes while a file is removed")]
fn a_log_that_goes_round_neither_makes_nor_removes_files_until_it_rests() {
    let disk = Interrupted::new();
    let options = Options { segment_blocks: 64, capacity_bytes: 0, cache_bytes: 1 << 20 };
    let store = Engine::create(Arc::clone(&disk) as Arc<dyn Disk>, test_env(1), options).unwrap();
    let pool = store.create_pool("p").wait().unwrap();
    let mut round = 0;
    let mut overwrite = |checkpoints: u64| {
        let end = store.statistics().checkpoints + checkpoints;
        while store.statistics().checkpoints < end {
            round += 1;
            write(&store, pool, round % 20, content(round));
            // Somebody is at it now and then, a little at a time.
            if round % 3 == 0 {
                store.maintain().unwrap();
            }
        }
    };
    overwrite(10);
    let before = disk.changes.load(Ordering::SeqCst);
    overwrite(20);
    let changed = disk.changes.load(Ordering::SeqCst) - before;
    assert!(changed <= 2, "{changed} files were made or removed");
    // At rest what is not needed goes, and nobody waits for that.
    let (done, is_done) = std::sync::mpsc::channel();
    let other = Arc::clone(&store);
    *disk.before_removal.lock().unwrap() = Some(Box::new(move || {
        std::thread::spawn(move || {
            write(&other, pool, 100, content(100));
            done.send(read(&other, pool, 100) == content(100)).unwrap();
        });
        assert!(is_done.recv_timeout(Duration::from_secs(20)).unwrap(), "it was read as it was written");
    }));
    while store.maintain().unwrap() {}
    let files = disk.segments().unwrap().len();
    write(&store, pool, 0, content(0));
    assert!(store.begin_checkpoint().unwrap());
    while store.maintain().unwrap() {}
    assert!(disk.before_removal.lock().unwrap().is_none(), "no file was removed");
    let statistics = store.statistics();
    let in_use = usize::try_from(statistics.segment_bytes / store.segment_bytes()).unwrap();
    assert!(disk.segments().unwrap().len() <= in_use + 4, "{files} files, {in_use} segments in use");
    assert!(store.check().unwrap().is_clean());
}
