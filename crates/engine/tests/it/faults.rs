//! An operation of the disk that fails: the store refuses to go on, and what was flushed is there when it is opened again.

use std::sync::Arc;

use ferry_core::testing::test_env;
use ferry_core::{ErrorKind, Namespace, ObjectId, PoolId, ReadOp, SnapId, Store, WriteOp};
use ferry_engine::disk::sim::SimDisk;
use ferry_engine::disk::{Disk, FileDisk};
use ferry_engine::{Engine, Options};

const OPTIONS: Options = Options { segment_blocks: 64, capacity_bytes: 0, cache_bytes: 1 << 20 };

fn object(n: u8) -> ObjectId {
    ObjectId::new(PoolId(1), &Namespace::default(), &format!("o{n}"))
}

/// Writes and flushes 40 objects, with a checkpoint now and then. Returns how many were flushed, and the error.
fn play(store: &Engine) -> (u8, Option<ferry_core::Error>) {
    for n in 0..40 {
        let step = || {
            store
                .write(&object(n), WriteOp::new().write(0, vec![n; 30_000]).omap_set("n", vec![n]))
                .wait()?;
            store.flush().wait()?;
            if n % 10 == 9 {
                store.checkpoint()?;
            }
            Ok(())
        };
        if let Err(e) = step() {
            return (n, Some(e));
        }
    }
    (40, None)
}

#[test]
fn any_failing_disk_operation_stops_the_store_and_costs_nothing_flushed() {
    let count = {
        let disk = Arc::new(SimDisk::new(0));
        let store = Engine::create(Arc::clone(&disk) as Arc<dyn Disk>, test_env(0), OPTIONS).unwrap();
        store.create_pool("p").wait().unwrap();
        assert_eq!(play(&store).0, 40);
        disk.operations()
    };
    let mut failed = 0;
    for at in 0..count {
        let disk = Arc::new(SimDisk::new(at));
        let Ok(store) = Engine::create(Arc::clone(&disk) as Arc<dyn Disk>, test_env(0), OPTIONS) else {
            continue;
        };
        store.create_pool("p").wait().unwrap();
        disk.fail_once(at, ErrorKind::Io);
        let (flushed, error) = play(&store);
        let Some(error) = error else { continue };
        failed += 1;
        assert_eq!(error.kind(), ErrorKind::Io, "operation {at}: {}", error.chain());
        let after = store
            .write(&object(99), WriteOp::new().write(0, vec![1]))
            .wait()
            .and_then(|_| store.flush().wait());
        let poisoned = after.as_ref().is_err_and(|e| e.kind() == ErrorKind::Poisoned);
        // A file that could not be made leaves the store as it was; after a failed sync or write nothing may be called durable.
        assert!(poisoned || (after.is_ok() && !disk.syncs().contains(&at)), "operation {at}: {after:?}");
        drop(store);
        for image in [disk.copy(), disk.crash(at)] {
            let store = Engine::open(Arc::new(image), test_env(1), OPTIONS).unwrap();
            for n in 0..flushed {
                let reply = store.read(&object(n), SnapId::HEAD, ReadOp::data(0, 1 << 20)).wait().unwrap();
                assert!(reply.data.to_vec(0, reply.size) == vec![n; 30_000], "operation {at}, object {n}");
            }
            assert!(store.check().unwrap().is_clean(), "operation {at}");
        }
    }
    assert!(failed > 60, "{failed} of {count} operations failed a step");
}

#[test]
fn a_file_that_was_being_made_when_the_process_died_is_made_again() {
    let segment = u64::from(OPTIONS.segment_blocks) * 4096;
    for length in [0, 4096, segment / 2, segment - 4096] {
        let directory = tempfile::tempdir().unwrap();
        let disk = || Arc::new(FileDisk::create(directory.path()).unwrap());
        let store = Engine::create(disk(), test_env(0), OPTIONS).unwrap();
        store.create_pool("p").wait().unwrap();
        store.flush().wait().unwrap();
        drop(store);
        let segments = directory.path().join("segments");
        let next = std::fs::read_dir(&segments).unwrap().count() + 1;
        // A process makes it and dies, and so do the next ones, which use it.
        std::fs::File::create(segments.join(format!("{next:08}"))).unwrap().set_len(length).unwrap();
        for round in 0..3 {
            let store = Engine::open(disk(), test_env(round), OPTIONS).unwrap();
            for n in 0..u8::try_from(round).unwrap() {
                let reply = store.read(&object(n), SnapId::HEAD, ReadOp::data(0, 1 << 20)).wait().unwrap();
                assert!(reply.data.to_vec(0, reply.size) == vec![n; 30_000], "{length}: object {n}");
            }
            let n = u8::try_from(round).unwrap();
            store.write(&object(n), WriteOp::new().write(0, vec![n; 30_000])).wait().unwrap();
            store.flush().wait().unwrap();
        }
        for file in std::fs::read_dir(&segments).unwrap() {
            assert_eq!(file.unwrap().metadata().unwrap().len(), segment, "{length}");
        }
    }
}

#[test]
fn a_store_whose_making_was_cut_short_is_made_anew() {
    let (mut none, mut some) = (0, 0);
    for seed in 0..20 {
        let disk = Arc::new(SimDisk::new(seed));
        disk.take_images(1, seed);
        Engine::create(Arc::clone(&disk) as Arc<dyn Disk>, test_env(seed), OPTIONS).unwrap();
        for (_, image) in disk.taken_images() {
            let image: Arc<dyn Disk> = Arc::new(image);
            let open = || Engine::open(Arc::clone(&image), test_env(seed), OPTIONS);
            let store = match open() {
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    none += 1;
                    Engine::create(Arc::clone(&image), test_env(seed), OPTIONS).unwrap()
                }
                opened => {
                    some += 1;
                    opened.unwrap()
                }
            };
            store.create_pool("p").wait().unwrap();
            store.write(&object(1), WriteOp::new().write(0, vec![1; 30_000])).wait().unwrap();
            store.flush().wait().unwrap();
            drop(store);
            assert!(open().unwrap().check().unwrap().is_clean());
        }
    }
    assert!(none > 60 && some > 30, "{none} images without a store, {some} with one");
}

#[test]
fn what_may_have_been_a_store_is_not_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let disk = || Arc::new(FileDisk::create(directory.path()).unwrap());
    let superblock = directory.path().join("superblock");
    let refuses = |what: &str| {
        let opened = Engine::open(disk(), test_env(0), OPTIONS).unwrap_err();
        assert_eq!(opened.kind(), ErrorKind::Corrupt, "{what}: {}", opened.chain());
        let made = Engine::create(disk(), test_env(0), OPTIONS).unwrap_err();
        assert_eq!(made.kind(), ErrorKind::Exists, "{what}: {}", made.chain());
    };
    for length in [0, 100, 4096, 8192] {
        std::fs::write(&superblock, vec![0; length]).unwrap();
        assert_eq!(Engine::open(disk(), test_env(0), OPTIONS).unwrap_err().kind(), ErrorKind::NotFound);
    }
    // The second slot was written, so the first was durable once.
    let mut second = vec![0; 8192];
    second[8191] = 1;
    std::fs::write(&superblock, second).unwrap();
    refuses("something in the second slot");
    std::fs::write(&superblock, vec![0; 8192]).unwrap();
    let store = Engine::create(disk(), test_env(0), OPTIONS).unwrap();
    store.create_pool("p").wait().unwrap();
    store.flush().wait().unwrap();
    drop(store);
    std::fs::write(&superblock, vec![0; 8192]).unwrap();
    refuses("segments");
}

/// Writes a block of one of 16 objects and flushes it, so many times; how often that went well. Each fifth flush covers two blocks.
fn write_and_flush(store: &Engine, times: u8) -> u8 {
    for n in 0..times {
        let block = |of: u8, value: u8| {
            let offset = u64::from(of / 16) * 4096;
            store.write(&object(of % 16), WriteOp::new().write(offset, vec![value; 4096])).wait()
        };
        let step = || {
            block(n, n)?;
            if n % 5 == 4 {
                block(n - 1, n - 1)?;
            }
            store.flush().wait()
        };
        if step().is_err() {
            return n;
        }
    }
    times
}

#[test]
fn a_power_cut_amid_flushes_of_single_blocks_costs_nothing_flushed() {
    const OPTIONS: Options = Options { segment_blocks: 256, capacity_bytes: 0, cache_bytes: 1 << 20 };
    let play = |stop_at: Option<u64>| {
        let disk = Arc::new(SimDisk::new(7));
        let store = Engine::create(Arc::clone(&disk) as Arc<dyn Disk>, test_env(0), OPTIONS).unwrap();
        store.create_pool("p").wait().unwrap();
        store.flush().wait().unwrap();
        let (began, first) = (disk.written_bytes(), disk.operations());
        stop_at.into_iter().for_each(|at| disk.stop_at(first + at));
        (write_and_flush(&store, 250), disk.written_bytes() - began, disk)
    };
    let (flushed, written, disk) = play(None);
    assert_eq!(flushed, 250);
    // A batch of two blocks for each flush, or of three, written over zeros that were written before: all but the first few, and a MiB
    // more where the last is.
    let batches = (250 * 2 + 50) * 4096;
    assert!((batches * 3 / 2..=batches * 2 + (1 << 20)).contains(&written), "{written} of {batches}");
    let all = disk.operations();
    for at in (0..all).step_by(3) {
        let (flushed, _, disk) = play(Some(at));
        for image in [disk.copy(), disk.crash(at), disk.crash(at + all)] {
            let store = Engine::open(Arc::new(image), test_env(1), OPTIONS).unwrap();
            for n in 0..flushed {
                let range = ReadOp::data(u64::from(n / 16) * 4096, 4096);
                let reply = store.read(&object(n % 16), SnapId::HEAD, range).wait().unwrap();
                assert!(
                    reply.data.to_vec(u64::from(n / 16) * 4096, 4096) == vec![n; 4096],
                    "{at}: block {n}"
                );
            }
            assert!(store.check().unwrap().is_clean(), "operation {at}");
            assert_eq!(write_and_flush(&store, 20), 20);
        }
    }
}

#[test]
fn nothing_is_written_ahead_of_large_flushes_of_few_or_of_what_was_made_ahead() {
    const OPTIONS: Options = Options { segment_blocks: 1024, capacity_bytes: 0, cache_bytes: 1 << 20 };
    let disk = Arc::new(SimDisk::new(7));
    let store = Engine::create(Arc::clone(&disk) as Arc<dyn Disk>, test_env(0), OPTIONS).unwrap();
    store.create_pool("p").wait().unwrap();
    let written = |step: &dyn Fn()| {
        let before = disk.written_bytes();
        step();
        disk.written_bytes() - before
    };
    let few = written(&|| assert_eq!(write_and_flush(&store, 4), 4));
    assert_eq!(few, 4 * 2 * 4096);
    let large = written(&|| {
        for n in 0..10 {
            store.write(&object(n), WriteOp::new().write(0, vec![1; 16 * 4096])).wait().unwrap();
            store.flush().wait().unwrap();
        }
    });
    assert_eq!(large, 10 * 17 * 4096);
    // The segment that is open now is written ahead, the next two are written already.
    store.prepare(2).unwrap();
    let rest = written(&|| assert_eq!(write_and_flush(&store, 250), 250));
    let batches = (250 * 2 + 50) * 4096;
    assert!((batches * 3 / 2..=batches * 2 + (1 << 20)).contains(&rest), "{rest} of {batches}");
    let ahead = written(&|| {
        for _ in 0..2 {
            assert_eq!(write_and_flush(&store, 250), 250);
        }
    });
    assert!((batches * 2..batches * 2 + (2 << 20)).contains(&ahead), "{ahead} of {batches} twice");
    assert!(store.check().unwrap().is_clean());
}
