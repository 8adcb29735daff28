//! A full store loses nothing, lets go of what is removed, and works again.

use std::sync::Arc;

use ferry_core::testing::test_env;
use ferry_core::{
    Effect, ErrorKind, Namespace, ObjectId, PoolId, ReadOp, SnapContext, SnapId, Store, WriteOp,
};
use ferry_engine::disk::sim::SimDisk;
use ferry_engine::disk::{Disk, FileId};
use ferry_engine::{Engine, Options};

const OPTIONS: Options = Options { segment_blocks: 64, capacity_bytes: 40 * 64 * 4096, cache_bytes: 1 << 20 };

fn object(pool: PoolId, n: usize) -> ObjectId {
    ObjectId::new(pool, &Namespace::default(), &format!("o{n}"))
}

fn content(n: usize) -> Vec<u8> {
    (0..100_000).map(|i| u8::try_from((i * 7 + n * 13) % 251).unwrap()).collect()
}

/// Writes objects until the store is full. Returns how many there are.
fn fill(store: &Engine, pool: PoolId) -> usize {
    for n in 0..10_000 {
        match store.write(&object(pool, n), WriteOp::new().write(0, content(n))).wait() {
            Ok(_) => {}
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::NoSpace, "{}", e.chain());
                assert_eq!(e.errno().0, 28);
                return n;
            }
        }
    }
    panic!("the store never fills");
}

fn expect(store: &Engine, pool: PoolId, objects: impl Iterator<Item = usize>) {
    for n in objects {
        let reply = store.read(&object(pool, n), SnapId::HEAD, ReadOp::data(0, 200_000)).wait().unwrap();
        assert!(reply.data.to_vec(0, reply.size) == content(n), "object {n}");
    }
}

fn remove(n: usize, pool: PoolId, store: &Engine) {
    store.write(&object(pool, n), WriteOp::new().effect(Effect::Remove).full_try()).wait().unwrap();
}

#[test]
fn a_full_store_keeps_everything_and_takes_more_after_removals() {
    let disk = Arc::new(SimDisk::new(1));
    let store = Engine::create(Arc::clone(&disk) as Arc<dyn Disk>, test_env(1), OPTIONS).unwrap();
    let pool = store.create_pool("p").wait().unwrap();
    let count = fill(&store, pool);
    assert!(count > 50, "most of the capacity is for clients: {count}");
    expect(&store, pool, 0..count);
    store.flush().wait().unwrap();
    // Scattered removals: no segment becomes empty by itself, so the cleaner has to work.
    for n in (0..count).step_by(3) {
        remove(n, pool, &store);
    }
    // Nearly as many fit again: the cleaner's own head takes a segment, and the small segments waste some of theirs.
    let again = count / 3 * 4 / 5 * 3;
    for n in (0..again).step_by(3) {
        store.write(&object(pool, n), WriteOp::new().write(0, content(n))).wait().unwrap();
    }
    let there = || (0..count).filter(|n| n % 3 != 0 || *n < again);
    expect(&store, pool, there());
    assert!(store.check().unwrap().is_clean());
    store.close().unwrap();
    drop(store);
    let store = Engine::open(disk, test_env(2), OPTIONS).unwrap();
    expect(&store, pool, there());
    assert!(store.check().unwrap().is_clean());
}

#[test]
fn a_full_medium_is_no_worse_than_a_full_store() {
    let disk = Arc::new(SimDisk::new(1));
    let options = Options { capacity_bytes: 0, ..OPTIONS };
    let store = Engine::create(Arc::clone(&disk) as Arc<dyn Disk>, test_env(1), options).unwrap();
    disk.set_capacity(20 * 64 * 4096);
    let pool = store.create_pool("p").wait().unwrap();
    let count = fill(&store, pool);
    expect(&store, pool, 0..count);
    store.flush().wait().unwrap();
    for n in 0..count / 2 {
        remove(n, pool, &store);
    }
    for n in 0..count / 3 {
        store.write(&object(pool, n), WriteOp::new().write(0, content(n))).wait().unwrap();
    }
    expect(&store, pool, 0..count / 3);
    expect(&store, pool, count / 2..count);
    assert!(store.check().unwrap().is_clean());
}

#[test]
fn a_released_snapshot_gives_its_space_back_on_a_full_store() {
    let store = Engine::create(Arc::new(SimDisk::new(1)), test_env(1), OPTIONS).unwrap();
    let pool = store.create_pool("p").wait().unwrap();
    let half = 35;
    for n in 0..half {
        store.write(&object(pool, n), WriteOp::new().write(0, content(n))).wait().unwrap();
    }
    let snap = store.allocate_snap(pool).wait().unwrap();
    let context = SnapContext { seq: snap.0, snaps: Arc::from([snap].as_slice()) };
    let mut overwritten = 0;
    let full = (0..half).chain(0..half).find_map(|n| {
        let op = WriteOp::new().under(context.clone()).write(0, content(n));
        overwritten += 1;
        store.write(&object(pool, n), op).wait().err()
    });
    if let Some(e) = full {
        assert_eq!(e.kind(), ErrorKind::NoSpace);
    }
    store.release_snap(pool, snap).wait().unwrap();
    for n in 0..half {
        store.write(&object(pool, n), WriteOp::new().write(0, content(n))).wait().unwrap();
    }
    expect(&store, pool, 0..half);
    assert!(store.check().unwrap().is_clean());
}

#[test]
fn files_shrink_with_what_the_store_holds() {
    let disk = Arc::new(SimDisk::new(1));
    let options = Options { capacity_bytes: 0, ..OPTIONS };
    let store = Engine::create(Arc::clone(&disk) as Arc<dyn Disk>, test_env(1), options).unwrap();
    let pool = store.create_pool("p").wait().unwrap();
    for n in 0..200 {
        store.write(&object(pool, n), WriteOp::new().write(0, content(n))).wait().unwrap();
    }
    store.checkpoint().unwrap();
    let segments = || disk.files().iter().filter(|(f, _)| matches!(f, FileId::Segment(_))).count();
    let before = segments();
    for n in 0..200 {
        remove(n, pool, &store);
    }
    store.checkpoint().unwrap();
    store.checkpoint().unwrap();
    assert!(before > 70 && segments() <= 8, "{before} files, then {}", segments());
}

/// Segments in use once everything that pays has been cleaned.
fn segments_after_cleaning(store: &Engine) -> u64 {
    let mut calls = 0;
    while store.clean_one().unwrap() {
        calls += 1;
        assert!(calls < 1000, "the cleaner finds no end: {:?}", store.statistics());
    }
    store.checkpoint().unwrap();
    assert!(store.check().unwrap().is_clean());
    store.statistics().segment_bytes / (64 * 4096)
}

#[test]
fn what_only_a_sharer_still_has_does_not_hold_its_segment() {
    let options = Options { capacity_bytes: 0, ..OPTIONS };
    let store = Engine::create(Arc::new(SimDisk::new(1)), test_env(1), options).unwrap();
    let pool = store.create_pool("p").wait().unwrap();
    for n in 0..200 {
        store.write(&object(pool, n), WriteOp::new().write(0, content(n))).wait().unwrap();
    }
    // One block of each goes on living in another object, and its first owner is gone.
    for n in 0..200 {
        let share = Effect::ShareRange {
            source: object(pool, n),
            at: SnapId::HEAD,
            offset: 8192,
            length: 4096,
            target_offset: 0,
        };
        store
            .write(&object(pool, 1000 + n), WriteOp::new().effect(Effect::Create).effect(share))
            .wait()
            .unwrap();
    }
    store.flush().wait().unwrap();
    let before = store.statistics().segment_bytes / (64 * 4096);
    for n in 0..200 {
        remove(n, pool, &store);
    }
    let after = segments_after_cleaning(&store);
    assert!(before > 70 && after < 20, "{before} segments, {after} once cleaned");
    for n in 0..200 {
        let reply = store.read(&object(pool, 1000 + n), SnapId::HEAD, ReadOp::data(0, 4096)).wait().unwrap();
        assert!(reply.data.to_vec(0, 4096) == content(n)[8192..12288], "object {n}");
    }
}

#[test]
fn index_pages_that_never_change_do_not_hold_their_segments() {
    let options = Options { capacity_bytes: 0, ..OPTIONS };
    let store = Engine::create(Arc::new(SimDisk::new(1)), test_env(1), options).unwrap();
    let pool = store.create_pool("p").wait().unwrap();
    let set = |n: usize, value: u8| {
        let op = WriteOp::new().omap_set(format!("{n:06}"), vec![value; 400]);
        store.write(&object(pool, 0), op).wait().unwrap();
    };
    // About 1,300 pages in 20 segments and more.
    for n in 0..10_000 {
        set(n, 1);
    }
    store.checkpoint().unwrap();
    // All but some neighbours change: every old segment keeps a few of its pages.
    for n in (0..10_000).filter(|n| n % 400 < 360) {
        set(n, 2);
    }
    store.checkpoint().unwrap();
    let statistics = store.statistics();
    let before = statistics.segment_bytes / (64 * 4096);
    let after = segments_after_cleaning(&store);
    let needed = store.statistics().live_bytes / (64 * 4096);
    assert!(
        before > needed + 15 && after < needed + 8,
        "{before} segments, {after} once cleaned, {needed} needed"
    );
}

#[test]
fn cleaning_and_maintaining_come_to_an_end() {
    for seed in 0..12 {
        let store = Engine::create(Arc::new(SimDisk::new(seed)), test_env(seed), OPTIONS).unwrap();
        let pool = store.create_pool("p").wait().unwrap();
        // Small batches: nearly every segment has a tenth of it in headers, so there is always something that looks dead.
        for n in 0..900 {
            let at = (n * 7 % 50) as u64 * 4096;
            let op = WriteOp::new().write(at, vec![3; 4096]).omap_set(format!("{n}"), vec![1; 50]);
            store.write(&object(pool, n % 9 + usize::try_from(seed).unwrap()), op).wait().unwrap();
            if n % 3 == 0 {
                store.flush().wait().unwrap();
            }
        }
        let mut calls = 0;
        while store.maintain().unwrap() || store.tidy().unwrap() {
            calls += 1;
            assert!(calls < 5000, "seed {seed}: maintaining finds no end: {:?}", store.statistics());
        }
        segments_after_cleaning(&store);
        while store.maintain().unwrap() || store.tidy().unwrap() {
            calls += 1;
            assert!(calls < 10_000, "seed {seed}: maintaining finds no end: {:?}", store.statistics());
        }
        let written = store.statistics().log_bytes;
        assert!(
            !store.maintain().unwrap() && !store.tidy().unwrap() && store.statistics().log_bytes == written,
            "nothing to do is nothing done"
        );
    }
}

#[test]
fn objects_written_at_random_are_put_in_order_piece_by_piece() {
    let disk = Arc::new(SimDisk::new(1));
    let store = Engine::create(Arc::clone(&disk) as Arc<dyn Disk>, test_env(1), OPTIONS).unwrap();
    let pool = store.create_pool("p").wait().unwrap();
    let mut wanted: Vec<Vec<u8>> = (0..20).map(content).collect();
    for n in 0..20 {
        store.write(&object(pool, n), WriteOp::new().write(0, content(n))).wait().unwrap();
    }
    assert_eq!(store.defragment().unwrap(), 0, "they are in order");
    for i in 0..480 {
        // A block of one object after the other.
        let (n, block) = (i % 20, i / 20 * 7 % 24);
        let data = vec![u8::try_from(i % 251).unwrap(); 4096];
        wanted[n][block * 4096..(block + 1) * 4096].copy_from_slice(&data);
        store.write(&object(pool, n), WriteOp::new().write(block as u64 * 4096, data)).wait().unwrap();
    }
    let before = store.activity();
    let (mut next, mut moved, mut pieces) = (Some(0), 0, 0);
    while let Some(from) = next {
        let piece = store.defragment_piece(from).unwrap();
        (next, moved, pieces) = (piece.next, moved + piece.moved_blocks, pieces + 1);
    }
    assert!((480..=20 * 25).contains(&moved) && pieces > 1, "{moved} blocks in {pieces} pieces");
    assert_eq!(store.activity(), before, "clients did nothing");
    for (n, wanted) in wanted.iter().enumerate() {
        let reply = store.read(&object(pool, n), SnapId::HEAD, ReadOp::data(0, 200_000)).wait().unwrap();
        assert!(reply.data.to_vec(0, reply.size) == *wanted, "object {n}");
    }
    assert_eq!(store.defragment().unwrap(), 0, "they are in order again");
    assert!(store.check().unwrap().is_clean());
}

#[test]
fn segments_are_made_ahead_one_by_one() {
    let disk = Arc::new(SimDisk::new(1));
    let store = Engine::create(Arc::clone(&disk) as Arc<dyn Disk>, test_env(1), OPTIONS).unwrap();
    let files = || disk.segments().unwrap().len();
    let before = files();
    assert!(store.prepare_one(2).unwrap());
    assert!(store.prepare_one(2).unwrap());
    assert!(!store.prepare_one(2).unwrap());
    assert_eq!(files(), before + 2);
    assert_eq!(store.segment_bytes(), 64 * 4096);
}
