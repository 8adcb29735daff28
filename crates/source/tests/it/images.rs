//! Images of all kinds hold what QEMU reads of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_core::{BlockSource, DeviceExtent, ErrorKind, ExtentState, SourcePoint};
use serde_json::json;

use crate::generate::{Kind, Made, Rng, make, set_incompatible, spec_of};
use crate::qemu::{
    bytes_by_qemu, is_readable, map_by_qemu, open, promises, qemu_io, run, snapshot_by_qemu, text,
};

/// A number from the environment.
fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|n| n.parse().unwrap())
}

/// Fewest images looked at, however slow the machine is.
const IMAGES_MIN: u64 = 10;

/// Checks as many images as `FERRY_IMAGES` says, else as are made in `budget`, from `FERRY_SEED` on.
fn check(kind: Kind, budget: Duration) {
    let began = Instant::now();
    let first = asked("FERRY_SEED").unwrap_or(1);
    let count = asked("FERRY_IMAGES");
    let (mut done, mut unreadable) = (0, 0);
    while count.map_or_else(|| began.elapsed() < budget || done < IMAGES_MIN, |count| done < count) {
        let directory = tempfile::tempdir().unwrap();
        let seed = first + done;
        let made = make(kind, seed, directory.path());
        println!("{kind:?} seed {seed}: {:#?}", made.story);
        done += 1;
        if kind == Kind::Version1 && !is_readable(made.format, &made.path) {
            unreadable += 1;
            continue;
        }
        check_one(&made, &mut Rng(seed));
    }
    println!("{kind:?}: {done} images, seeds {first} to {}, {:?}", first + done - 1, began.elapsed());
    println!("{unreadable} of them QEMU itself cannot read");
    assert!(unreadable * 20 <= done, "{unreadable} of {done} images QEMU itself cannot read");
}

fn check_one(made: &Made, rng: &mut Rng) {
    let source = open(&made.spec).unwrap();
    let snapshots: Vec<(String, u64)> = source.snapshots().iter().map(|s| (s.name.clone(), s.size)).collect();
    assert_eq!(snapshots, made.snapshots);
    let older = (0..made.snapshots.len()).map(SourcePoint::Snapshot);
    let points: Vec<SourcePoint> = older.chain([SourcePoint::Head]).collect();
    let mut before: Option<(SourcePoint, Vec<u8>)> = None;
    for at in points {
        let expected = match at {
            SourcePoint::Snapshot(n) => {
                let (name, size) = &made.snapshots[n];
                snapshot_by_qemu(&made.path, name, *size, source.size())
            }
            SourcePoint::Head => bytes_by_qemu(made.format, &made.path),
        };
        assert_eq!(source.size_at(at), expected.len() as u64, "size at {at:?}");
        check_reads(&source, at, &expected, rng);
        check_extents(&source, at, &expected);
        if let Some((older, bytes)) = &before {
            check_changes(&source, (*older, bytes), (at, &expected));
        }
        before = Some((at, expected));
    }
    check_map(made, &source);
}

fn differ(one: &[u8], other: &[u8]) -> Option<usize> {
    one.iter().zip(other).position(|(a, b)| a != b)
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

fn check_reads(source: &Arc<dyn BlockSource>, at: SourcePoint, expected: &[u8], rng: &mut Rng) {
    let size = expected.len() as u64;
    let all = source.read(at, 0, size).wait().unwrap();
    let mut end = 0;
    for (offset, bytes) in &all.extents {
        assert!(*offset >= end && !bytes.is_empty(), "extents in order at {at:?}: {offset} after {end}");
        end = offset + bytes.len() as u64;
    }
    assert!(end <= size);
    assert_eq!(differ(&all.to_vec(0, size), expected), None, "whole at {at:?}");
    for _ in 0..8 {
        let offset = rng.below(size);
        let length = 1 + rng.below((size - offset).min(200_000));
        let got = source.read(at, offset, length).wait().unwrap().to_vec(offset, length);
        let wanted = &expected[index(offset)..index(offset + length)];
        assert_eq!(differ(&got, wanted), None, "{offset}+{length} at {at:?}");
    }
    let outside = source.read(at, size, 1).wait().unwrap_err();
    assert_eq!(outside.kind(), ErrorKind::Invalid);
}

/// Checks that extents follow each other without gaps, and returns them.
fn gapless(extents: Vec<DeviceExtent>, size: u64) -> Vec<DeviceExtent> {
    let mut end = 0;
    for extent in &extents {
        assert_eq!(extent.offset, end);
        assert_ne!(extent.length, 0);
        end += extent.length;
    }
    assert_eq!(end, size);
    extents
}

fn check_extents(source: &Arc<dyn BlockSource>, at: SourcePoint, expected: &[u8]) {
    let size = expected.len() as u64;
    for extent in gapless(source.extents(at, 0, size).wait().unwrap(), size) {
        let bytes = &expected[index(extent.offset)..index(extent.offset + extent.length)];
        let is_zero = bytes.iter().all(|b| *b == 0);
        assert!(extent.state == ExtentState::Data || is_zero, "{extent:?} at {at:?} is not zero");
    }
}

/// What differs is named, with the right state.
fn check_changes(source: &Arc<dyn BlockSource>, older: (SourcePoint, &[u8]), newer: (SourcePoint, &[u8])) {
    let size = older.1.len().min(newer.1.len()) as u64;
    let changes = source.changes(older.0, newer.0, 0, size).wait().unwrap();
    let mut end = 0;
    let same = |from: u64, to: u64| {
        let found = differ(&older.1[index(from)..index(to)], &newer.1[index(from)..index(to)]);
        assert_eq!(found, None, "not named between {from} and {to}, {:?} to {:?}", older.0, newer.0);
    };
    for change in &changes {
        assert!(change.offset >= end, "{changes:?}");
        same(end, change.offset);
        end = change.offset + change.length;
        let bytes = &newer.1[index(change.offset)..index(end)];
        assert!(change.state == ExtentState::Data || bytes.iter().all(|b| *b == 0), "{change:?}");
    }
    same(end, size);
}

/// Data is nowhere but where QEMU says it is. What is zeros here was compared with the bytes: holes of a data file are seen that
/// QEMU does not look for.
fn check_map(made: &Made, source: &Arc<dyn BlockSource>) {
    let size = source.size();
    let extents = gapless(source.extents(SourcePoint::Head, 0, size).wait().unwrap(), size);
    for (start, length, is_data) in map_by_qemu(made.format, &made.path) {
        let end = (start + length).min(size);
        let inside = extents.iter().filter(|e| e.offset < end && e.offset + e.length > start);
        for extent in inside.filter(|e| e.state == ExtentState::Data) {
            assert!(is_data, "{extent:?} is no data for QEMU ({start}+{length})");
        }
    }
}

const BUDGET: Duration = Duration::from_secs(14);

#[test]
fn qcow2_images_hold_what_qemu_reads() {
    promises("A qcow or qcow2 image holds, at each of its snapshots, what QEMU reads there.");
    check(Kind::Alone, BUDGET);
}

#[test]
fn chains_of_images_hold_what_qemu_reads() {
    check(Kind::Chain, BUDGET);
}

#[test]
fn images_with_a_data_file_hold_what_qemu_reads() {
    check(Kind::DataFile, BUDGET / 2);
}

#[test]
fn images_of_version_1_hold_what_qemu_reads() {
    check(Kind::Version1, BUDGET / 2);
}

#[test]
fn a_snapshot_shares_what_was_not_changed_since() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", text(&path), "64M"]);
    qemu_io("qcow2", &path, &["write -P 1 0 64M".to_owned()]);
    run("qemu-img", &["snapshot", "-c", "first", text(&path)]);
    qemu_io("qcow2", &path, &["write -P 2 10M 100".to_owned(), "write -z 20M 64k".to_owned()]);
    let source = open(&spec_of("qcow2", &path)).unwrap();
    let changes = source.changes(SourcePoint::Snapshot(0), SourcePoint::Head, 0, 64 << 20).wait().unwrap();
    let extent = |offset, length, state| DeviceExtent { offset, length, state };
    let expected = [extent(10 << 20, 65536, ExtentState::Data), extent(20 << 20, 65536, ExtentState::Zero)];
    assert_eq!(changes, expected);
    let taken = source.snapshots()[0].taken.unwrap();
    assert!(taken.seconds > 1_700_000_000, "{taken:?}");
}

#[test]
fn names_of_snapshots_are_made_to_differ() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", text(&path), "1M"]);
    for name in ["a", "a", "b@c", ""] {
        run("qemu-img", &["snapshot", "-c", name, text(&path)]);
    }
    let source = open(&spec_of("qcow", &path)).unwrap();
    let names: Vec<&str> = source.snapshots().iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names[..3], ["a", "a (2)", "b@c"]);
    assert_eq!(names[3].len(), 36, "{names:?}");
}

#[test]
fn an_image_that_needs_another_file_is_refused_unless_the_spec_names_it() {
    promises("A foreign image does not decide which other files are opened: the spec names them.");
    let directory = tempfile::tempdir().unwrap();
    let (base, path) = (directory.path().join("base.raw"), directory.path().join("a.qcow2"));
    std::fs::write(&base, [7; 65536]).unwrap();
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", text(&base), text(&path)]);
    let refused = open(&spec_of("qcow2", &path)).unwrap_err();
    assert_eq!((refused.kind(), refused.fact("key")), (ErrorKind::Unsupported, Some("backing")));
    assert!(refused.fact("wanted").unwrap().contains("base.raw"), "{refused}");
    let mut spec = spec_of("qcow2", &path);
    spec["backing"] = spec_of("raw", &base);
    let source = open(&spec).unwrap();
    assert_eq!(source.read(SourcePoint::Head, 0, 65536).wait().unwrap().to_vec(0, 65536), [7; 65536]);
    // And the other way round.
    let mut spec = spec_of("raw", &base);
    spec["backing"] = spec_of("raw", &base);
    assert_eq!(open(&spec).unwrap_err().kind(), ErrorKind::Invalid);
    let alone = directory.path().join("b.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", text(&alone), "1M"]);
    let mut spec = spec_of("qcow2", &alone);
    spec["data_file"] = json!({"type": "file", "file_path": base});
    assert_eq!(open(&spec).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    promises("What of a foreign image cannot be read rightly is refused by name.");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.qcow2");
    let create = |options: &[&str]| {
        let arguments = [&["create", "-q", "-f", "qcow2"], options, &[text(&path), "1M"]].concat();
        run("qemu-img", &arguments);
    };
    let refusal = |format: &str| {
        let e = open(&spec_of(format, &path)).unwrap_err();
        (e.clause().to_owned(), e.errno().0, e.to_string())
    };
    let secret = [
        "--object",
        "secret,id=s,data=abc",
        "-o",
        "encrypt.format=luks,encrypt.iter-time=10,encrypt.key-secret=s",
    ];
    create(&secret);
    let (clause, errno, whole) = refusal("qcow2");
    assert_eq!((clause.as_str(), errno), ("invalid or unsupported encryption method", 22));
    assert!(whole.contains("LUKS"), "{whole}");
    create(&[]);
    set_incompatible(&path, 2);
    assert!(refusal("qcow2").0.contains("damaged"));
    let mut spec = spec_of("qcow2", &path);
    spec["accept_corrupt"] = json!(true);
    assert_eq!(open(&spec).unwrap().size(), 1 << 20);
    create(&[]);
    set_incompatible(&path, 0x80);
    let (clause, errno, whole) = refusal("qcow2");
    assert_eq!((clause.as_str(), errno), ("unknown incompatible feature enabled", 22));
    assert!(whole.contains("bit 7"), "{whole}");
    for (bytes, clause, errno) in [
        (&b"QFI\xfb\0\0\0\x09 and more"[..], "invalid QCOW header version 9", 22),
        (b"not an image at all", "invalid QCOW header magic", 22),
        (b"QFI", "the file is too short for a QCOW header", 34),
        (b"QFI\xfb\0\0\0\x03", "the file is too short for a QCOW header", 34),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let refused = refusal("qcow");
        assert_eq!((refused.0.as_str(), refused.1), (clause, errno));
    }
    run("qemu-img", &["create", "-q", "-f", "qcow", text(&path), "1M"]);
    assert_eq!(refusal("qcow2").0, "invalid QCOW header version 1");
}
