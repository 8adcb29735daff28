use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ferry_core::{DeviceExtent, ErrorKind, ExtentState, Result};

use super::{FileSpec, open};
use crate::stream::Stream;
use crate::testing::env;

fn stream(path: &Path) -> Result<Arc<dyn Stream>> {
    open(&FileSpec { path: path.to_owned() }, &env()).wait()
}

/// Long enough ago for a change now to show in the file's time.
fn age(path: &Path) {
    let then = SystemTime::now() - Duration::from_secs(60);
    File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
}

#[test]
fn what_a_file_holds_is_read_and_its_times_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    let bytes: Vec<u8> = (0..100_001_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    fs::write(&path, &bytes).unwrap();
    age(&path);
    let before = fs::metadata(&path).unwrap();
    let opened = stream(&path).unwrap();
    assert_eq!(opened.size(), 100_001);
    assert_eq!(opened.read(0, 100_001).wait().unwrap(), bytes);
    assert_eq!(opened.read(99_990, 11).wait().unwrap(), &bytes[99_990..]);
    assert_eq!(opened.read(100_001, 0).wait().unwrap().len(), 0);
    let after = fs::metadata(&path).unwrap();
    assert_eq!(
        (before.mtime(), before.ctime(), before.atime()),
        (after.mtime(), after.ctime(), after.atime())
    );
}

#[test]
fn a_range_outside_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    fs::write(&path, [1; 10]).unwrap();
    let opened = stream(&path).unwrap();
    for (offset, length) in [(0, 11), (11, 0), (5, u64::MAX), (u64::MAX, 1)] {
        assert_eq!(opened.read(offset, length).wait().unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(opened.extents(offset, length).wait().unwrap_err().kind(), ErrorKind::Invalid);
    }
}

#[test]
fn holes_of_a_file_are_zeros_without_reading() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    let file = File::create(&path).unwrap();
    file.set_len(10 << 20).unwrap();
    file.write_all_at(&[7; 65536], 4 << 20).unwrap();
    drop(file);
    let extents = stream(&path).unwrap().extents(0, 10 << 20).wait().unwrap();
    let extent = |offset, length, state| DeviceExtent { offset, length, state };
    let expected = [
        extent(0, 4 << 20, ExtentState::Zero),
        extent(4 << 20, 65536, ExtentState::Data),
        extent((4 << 20) + 65536, (6 << 20) - 65536, ExtentState::Zero),
    ];
    assert_eq!(extents, expected);
}

#[test]
fn a_file_that_is_changed_is_a_conflict_for_good() {
    let changes: [fn(&Path); 4] = [
        |path| OpenOptions::new().write(true).open(path).unwrap().set_len(100).unwrap(),
        |path| OpenOptions::new().append(true).open(path).unwrap().write_all(b"x").unwrap(),
        |path| OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"x", 5).unwrap(),
        |path| fs::write(path, [2; 8192]).unwrap(),
    ];
    for change in changes {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        fs::write(&path, [1; 8192]).unwrap();
        age(&path);
        let opened = stream(&path).unwrap();
        let times = fs::metadata(&path).unwrap().modified().unwrap();
        let pin = opened.pin();
        opened.read(0, 8192).wait().unwrap();
        change(&path);
        assert_eq!(opened.read(0, 10).wait().unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(opened.extents(0, 10).wait().unwrap_err().kind(), ErrorKind::Conflict);
        assert_ne!(stream(&path).unwrap().pin(), pin);
        // It does not become what it was by looking like it.
        fs::write(&path, [1; 8192]).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(times).unwrap();
        assert_eq!(opened.read(0, 10).wait().unwrap_err().kind(), ErrorKind::Conflict);
    }
}

#[test]
fn a_file_put_in_the_place_of_the_open_one_does_not_matter_until_it_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let (path, other) = (directory.path().join("a"), directory.path().join("b"));
    fs::write(&path, [1; 4096]).unwrap();
    fs::write(&other, [2; 4096]).unwrap();
    let opened = stream(&path).unwrap();
    let times = fs::metadata(&path).unwrap().modified().unwrap();
    File::options().write(true).open(&other).unwrap().set_modified(times).unwrap();
    fs::rename(&other, &path).unwrap();
    assert_eq!(opened.read(0, 4096).wait().unwrap(), vec![1; 4096]);
    assert_ne!(stream(&path).unwrap().pin(), opened.pin());
}

#[test]
fn what_is_no_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let missing = stream(&directory.path().join("x")).unwrap_err();
    assert_eq!((missing.kind(), missing.errno().0), (ErrorKind::NotFound, 2));
    let said = format!(
        "failed to open file stream '{}/x': (2) No such file or directory",
        directory.path().display()
    );
    assert_eq!(missing.clause(), said);
    assert_eq!(stream(directory.path()).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(stream(Path::new("/dev/null")).unwrap_err().kind(), ErrorKind::Invalid);
}
