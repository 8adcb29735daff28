//! Objects of a cluster with holes inside: what clients hear of them, and what a migration makes of them.

use std::fs;

use super::stores::Ground;
use crate::harness::{noise, promised};
use crate::nbd::{Offer, map_of};

const SIZE: u64 = 40 << 20;

/// Where there is data: blocks of 4 to 64 KiB, some in each object of 4 MiB but the last.
fn pieces() -> impl Iterator<Item = (u64, u64)> {
    let at = |object: u64| {
        [(300 << 10, 4 << 10), (1 << 20, 64 << 10), ((3 << 20) + 512, 5000)].map(|(o, n)| (object + o, n))
    };
    (0..9).flat_map(move |object| at(object << 22))
}

/// What a client of an image hears of holes: offset, length, and 0 for data.
fn map(ground: &Ground, image: &str) -> Vec<(u64, u64, u64)> {
    let offer = Offer::start(&ground.home, image);
    let map = map_of(&ground.home, &offer.uri, "base:allocation");
    // Killed, it would leave a watch, for whose end others wait.
    assert_eq!(offer.stop(), 0);
    map
}

/// That each byte that is not zero is in a part told to be data, and how many bytes such parts have.
fn told(disk: &[u8], map: &[(u64, u64, u64)]) -> u64 {
    let mut data = 0;
    for (offset, length, kind) in map {
        let is_data = *kind == 0;
        let range = usize::try_from(*offset).unwrap()..usize::try_from(offset + length).unwrap();
        assert!(is_data || disk[range].iter().all(|b| *b == 0), "data in a hole at {offset}+{length}");
        data += if is_data { *length } else { 0 };
    }
    data
}

#[test]
fn holes_inside_objects_are_told_to_clients_and_stay_holes_in_a_migration() {
    let Some(ground) = Ground::new("holes_inside_objects_are_told_to_clients_and_stay_holes_in_a_migration")
    else {
        return;
    };
    promised("NBD clients hear of what the OSDs hold");
    let parts: Vec<_> = pieces().map(|(at, n)| (at, noise(at, usize::try_from(n).unwrap()))).collect();
    let slices: Vec<(u64, &[u8])> = parts.iter().map(|(at, data)| (*at, &data[..])).collect();
    let disk = fs::read(ground.home.sparse_file("disk", SIZE, &slices)).unwrap();
    let written: u64 = pieces().map(|(_, n)| n).sum();
    let made = ground.stock("import --no-progress --sparse-size 4K disk far/a");
    assert!(made.status.success(), "{made:?}");
    let map = map(&ground, "far/a");
    let data = told(&disk, &map);
    assert!((written..2 * written).contains(&data), "{data} bytes are told for {written}: {map:?}");
    // To other objects of the cluster, with a snapshot, and on to a directory and back.
    ground.home.ok("snap create far/a@s --no-progress");
    for target in ["far/b", "rbd/c", "far/d"] {
        let source = match target {
            "far/b" => "far/a",
            "rbd/c" => "far/b",
            _ => "rbd/c",
        };
        ground.home.ok(&format!("migration prepare {source} {target}"));
        ground.home.ok(&format!("migration execute {target} --no-progress"));
        ground.home.ok(&format!("migration commit {target} --no-progress"));
        for spec in [target.to_owned(), format!("{target}@s")] {
            let out = ground.home.path("out");
            drop(fs::remove_file(&out));
            ground.home.ok(&format!("export {spec} out --no-progress"));
            assert!(fs::read(out).unwrap() == disk, "{spec}");
        }
        let data = told(&disk, &self::map(&ground, target));
        assert!((written..2 * written).contains(&data), "{target}: {data} bytes are told for {written}");
    }
    assert!(ground.stock_bytes("far/d") == disk && ground.stock_bytes("far/d@s") == disk);
    ground.home.ok("snap rm far/d@s --no-progress");
    ground.home.ok("rm far/d --no-progress");
}
