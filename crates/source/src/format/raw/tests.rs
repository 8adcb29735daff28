use std::fs;

use bytes::Bytes;
use ferry_core::{DeviceExtent, ErrorKind, ExtentState, SourcePoint};
use serde_json::json;

use crate::format::push_sparse;
use crate::testing::{bytes_at, open};

#[test]
fn a_raw_image_of_an_odd_size_reads_as_the_file_and_stays_sparse() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    let mut bytes = vec![0; 1_000_001];
    bytes[5000] = 1;
    bytes[700_000..].fill(3);
    fs::write(&path, &bytes).unwrap();
    let source = open(&json!({"type":"raw","stream":{"type":"file","file_path":path}}).to_string()).unwrap();
    assert_eq!((source.size(), source.snapshots().len()), (1_000_001, 0));
    assert_eq!(bytes_at(&source, SourcePoint::Head), bytes);
    let sparse = source.read(SourcePoint::Head, 0, 1_000_001).wait().unwrap();
    let shape: Vec<(u64, usize)> = sparse.extents.iter().map(|(at, b)| (*at, b.len())).collect();
    assert_eq!(shape, [(4096, 4096), (696_320, 303_681)]);
    let outside = source.read(SourcePoint::Head, 1_000_000, 2).wait().unwrap_err();
    assert_eq!(outside.kind(), ErrorKind::Invalid);
    let missing = source.read(SourcePoint::Snapshot(0), 0, 1).wait().unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[test]
fn an_empty_file_is_an_image_of_no_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    fs::write(&path, []).unwrap();
    let source = open(&json!({"type":"raw","stream":{"type":"file","file_path":path}}).to_string()).unwrap();
    assert_eq!(source.size(), 0);
    assert_eq!(source.read(SourcePoint::Head, 0, 0).wait().unwrap().extents, []);
    assert_eq!(source.extents(SourcePoint::Head, 0, 0).wait().unwrap(), []);
}

#[test]
fn snapshots_of_a_raw_image_are_its_older_files() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        json!({"type":"file","file_path":path})
    };
    let (old, head) = (vec![1; 300_000], vec![2; 600_000]);
    let spec = json!({"type":"raw","stream":file("head", &head),
        "snapshots":[{"type":"raw","name":"s1","stream":file("s1", &old)}]});
    let source = open(&spec.to_string()).unwrap();
    assert_eq!((source.snapshots()[0].name.as_str(), source.snapshots()[0].size), ("s1", 300_000));
    assert_eq!(bytes_at(&source, SourcePoint::Snapshot(0)), old);
    assert_eq!(bytes_at(&source, SourcePoint::Head), head);
    let changes = source.changes(SourcePoint::Snapshot(0), SourcePoint::Head, 0, 300_000).wait().unwrap();
    assert_eq!(changes, [DeviceExtent { offset: 0, length: 300_000, state: ExtentState::Data }]);
}

#[test]
fn files_are_compared_to_find_what_changed() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        json!({"type":"file","file_path":path})
    };
    let old: Vec<u8> = (0..3_000_001_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let mut new = old.clone();
    for at in [0, 8191, 524_287, 524_288, 2_999_999] {
        new[at] ^= 1;
    }
    let spec = json!({"type":"raw","stream":file("head", &new),
        "snapshots":[{"type":"raw","name":"s1","stream":file("s1", &old)}]});
    let source = open(&spec.to_string()).unwrap();
    let changes = |offset, length| {
        let found =
            source.changes(SourcePoint::Snapshot(0), SourcePoint::Head, offset, length).wait().unwrap();
        assert!(found.iter().all(|e| e.state == ExtentState::Data));
        found.iter().map(|e| (e.offset, e.length)).collect::<Vec<_>>()
    };
    assert_eq!(changes(0, 3_000_001), [(0, 8192), (520_192, 8192), (2_998_272, 1729)]);
    // Inside of units too.
    assert_eq!(changes(100, 8092), [(4096, 4096)]);
    assert_eq!(changes(1, 8190), []);
}

#[test]
fn units_of_zeros_are_left_out_wherever_they_lie() {
    for (offset, bytes, expected) in [
        (0, vec![0; 10_000], vec![]),
        (4000, vec![1; 10], vec![(4000, 10)]),
        (4095, [vec![1], vec![0; 4096], vec![1]].concat(), vec![(4095, 1), (8192, 1)]),
        (100, [vec![0; 3996], vec![9; 5000], vec![0; 3192]].concat(), vec![(4096, 8192)]),
    ] {
        let mut extents = Vec::new();
        push_sparse(&mut extents, offset, &Bytes::from(bytes));
        let shape: Vec<(u64, usize)> = extents.iter().map(|(at, b)| (*at, b.len())).collect();
        assert_eq!(shape, expected);
    }
}
