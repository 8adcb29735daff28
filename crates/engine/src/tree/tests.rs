use std::collections::BTreeMap;
use std::sync::Arc;

use ferry_core::testing::TestRng;

use super::{After, Tree};
use crate::address::Address;
use crate::disk::sim::SimDisk;
use crate::disk::{Disk, FileId, SegmentNo};

/// Writes the changed pages one behind the other, as a checkpoint does.
fn write_out(tree: &mut Tree, disk: &SimDisk, next: &mut u32) {
    while write_some(tree, disk, next, usize::MAX) {}
}

/// Writes some of them. `false` where there were none.
fn write_some(tree: &mut Tree, disk: &SimDisk, next: &mut u32, max: usize) -> bool {
    let pages = tree.dirty_in_order(max).unwrap();
    let any = !pages.is_empty();
    for page in pages {
        let (bytes, crc) = tree.seal(&page);
        let address = Address::new(SegmentNo(1 + *next / 1000), *next % 1000);
        disk.write(FileId::Segment(address.segment()), u64::from(address.block()) * 4096, &[bytes]).unwrap();
        tree.place(&page, address, crc).unwrap();
        *next += 1;
    }
    any
}

/// Everything in a tree.
fn all(tree: &mut Tree) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let all = tree.scan(b"", After::Including, b"", usize::MAX).unwrap();
    all.into_iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect()
}

#[test]
fn what_changes_while_frozen_pages_are_written_is_seen_at_once_and_written_the_next_time() {
    for seed in 0..6 {
        let rng = TestRng::new(seed);
        let disk = Arc::new(SimDisk::new(seed));
        for n in 1..60 {
            disk.create(FileId::Segment(SegmentNo(n)), 1000 * 4096).unwrap();
        }
        let mut tree = Tree::open(Arc::clone(&disk) as Arc<dyn Disk>, None, 16);
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut next = 0;
        let space = [60, 400][usize::try_from(seed % 2).unwrap()];
        let change = |tree: &mut Tree, model: &mut BTreeMap<Vec<u8>, Vec<u8>>| {
            let key = format!("{:05}", rng.below(space)).into_bytes();
            if rng.one_in(3) {
                assert_eq!(tree.remove(&key).unwrap(), model.remove(&key).is_some());
            } else {
                let value = vec![7; usize::try_from(rng.below(700)).unwrap()];
                tree.insert(&key, &value).unwrap();
                model.insert(key, value);
            }
            let from = format!("{:05}", rng.below(space)).into_bytes();
            let some = tree.scan(&from, After::Excluding, b"0", 5).unwrap();
            let want = model.range(from.clone()..).filter(|(k, _)| **k != from).take(5);
            assert!(some.iter().map(|e| (&e.0[..], &e.1[..])).eq(want.map(|e| (&e.0[..], &e.1[..]))));
            assert_eq!(tree.get(&from).unwrap().as_deref(), model.get(&from).map(Vec::as_slice));
        };
        for _ in 0..40 {
            for _ in 0..rng.below(100) {
                change(&mut tree, &mut model);
                tree.merge_apart(1).unwrap();
            }
            while tree.merge_apart(9).unwrap() {}
            tree.freeze();
            let frozen = model.clone();
            while write_some(&mut tree, &disk, &mut next, 3) {
                change(&mut tree, &mut model);
                change(&mut tree, &mut model);
            }
            let mut written = Tree::open(Arc::clone(&disk) as Arc<dyn Disk>, tree.root(), 16);
            assert!(all(&mut written) == frozen, "seed {seed}: the pages written are not those frozen");
            tree.thaw();
            assert!(all(&mut tree) == model, "seed {seed}");
        }
    }
}

#[test]
fn random_entries_match_an_ordered_map_across_write_outs() {
    for seed in 0..6 {
        let rng = TestRng::new(seed);
        let disk = Arc::new(SimDisk::new(seed));
        for n in 1..60 {
            disk.create(FileId::Segment(SegmentNo(n)), 1000 * 4096).unwrap();
        }
        let mut tree = Tree::open(Arc::clone(&disk) as Arc<dyn Disk>, None, 16);
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut next = 0;
        let space = [40, 400, 4000][usize::try_from(seed % 3).unwrap()];
        for step in 0..12_000 {
            let mut key = format!("{:05}", rng.below(space)).into_bytes();
            if rng.one_in(4) {
                key.extend(std::iter::repeat_n(b'x', usize::try_from(rng.below(900)).unwrap()));
            }
            let grow = step % 4000 < 2500;
            if rng.below(10) < if grow { 7 } else { 2 } {
                let value = vec![u8::try_from(step % 251).unwrap(); usize::try_from(rng.below(990)).unwrap()];
                tree.insert(&key, &value).unwrap();
                model.insert(key, value);
            } else {
                let from = model.range(key.clone()..).next().map_or(key, |e| e.0.clone());
                assert_eq!(tree.remove(&from).unwrap(), model.remove(&from).is_some());
            }
            if step % 997 == 0 {
                write_out(&mut tree, &disk, &mut next);
                let root = tree.root();
                tree = Tree::open(Arc::clone(&disk) as Arc<dyn Disk>, root, 16);
            }
            if step % 500 == 0 {
                let all = tree.scan(b"", After::Including, b"", usize::MAX).unwrap();
                assert!(
                    all.iter().map(|(k, v)| (&k[..], &v[..])).eq(model.iter().map(|(k, v)| (&k[..], &v[..])))
                );
                let prefix = format!("{:03}", rng.below(100)).into_bytes();
                let some = tree.scan(&prefix, After::Excluding, &prefix, 7).unwrap();
                let want = model.iter().filter(|(k, _)| k.starts_with(&prefix) && **k != prefix).take(7);
                assert!(some.iter().map(|e| &e.0[..]).eq(want.map(|e| &e.0[..])), "seed {seed} step {step}");
            }
        }
    }
}

#[test]
fn a_flipped_bit_in_a_page_is_an_error_and_not_an_answer() {
    let disk = Arc::new(SimDisk::new(0));
    disk.create(FileId::Segment(SegmentNo(1)), 1000 * 4096).unwrap();
    let mut tree = Tree::open(Arc::clone(&disk) as Arc<dyn Disk>, None, 16);
    for n in 0..200_u32 {
        tree.insert(&n.to_be_bytes(), &[7; 100]).unwrap();
    }
    let mut next = 0;
    write_out(&mut tree, &disk, &mut next);
    let root = tree.root();
    for page in 0..u64::from(next) {
        disk.flip(FileId::Segment(SegmentNo(1)), page * 4096 + 77 * page % 4096, 3);
        let mut tree = Tree::open(Arc::clone(&disk) as Arc<dyn Disk>, root, 16);
        let wrong = (0..200_u32).filter(|n| tree.get(&n.to_be_bytes()).is_err()).count();
        assert!(wrong > 0, "page {page}");
        disk.flip(FileId::Segment(SegmentNo(1)), page * 4096 + 77 * page % 4096, 3);
    }
}
