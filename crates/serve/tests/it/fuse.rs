//! An export as a file.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ferry_core::BlockDevice;
use ferry_serve::export::Export;
use ferry_serve::fuse::{Access, Mount};
use ferry_serve::traffic::Sort;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use tempfile::TempDir;

use crate::volatile::Volatile;

const MIB: u64 = 1 << 20;

/// Says why this machine cannot mount, if it cannot.
#[expect(clippy::print_stdout, reason = "the helper of a test is a test")]
pub(crate) fn skipped(name: &str) -> bool {
    let why = if !Path::new("/dev/fuse").exists() {
        "/dev/fuse is missing"
    } else if rustix::process::geteuid().is_root() {
        return false;
    } else {
        "mounting needs root"
    };
    println!("SKIPPED {name}: {why}");
    true
}

struct World {
    mount: Option<Mount>,
    device: Arc<Volatile>,
    export: Arc<Export>,
    dir: TempDir,
}

impl World {
    fn new(access: Access, change: impl FnOnce(&mut Volatile)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut device = Volatile::open(&dir.path().join("kept"), 64 * MIB);
        change(&mut device);
        let device = Arc::new(device);
        let export = Arc::new(Export::new("a", "", Arc::clone(&device) as _, false));
        fs::create_dir(dir.path().join("mount")).unwrap();
        let mount = Some(Mount::new(&export, &dir.path().join("mount"), access).unwrap());
        Self { mount, device, export, dir }
    }

    fn open(&self) -> File {
        OpenOptions::new().read(true).write(true).open(self.mount.as_ref().unwrap().file()).unwrap()
    }
}

#[test]
fn a_file_reads_writes_and_seeks_as_the_device_does() {
    if skipped("a_file_reads_writes_and_seeks_as_the_device_does") {
        return;
    }
    let mut world = World::new(Access::ReadWrite, |_| {});
    let file = world.open();
    assert_eq!(file.metadata().unwrap().len(), 64 * MIB);
    let data: Vec<u8> = (0..3 * MIB + 511).map(|n| u8::try_from(n % 251).unwrap() | 1).collect();
    file.write_all_at(&data, 5 * MIB + 100).unwrap();
    let mut back = vec![0; data.len()];
    file.read_exact_at(&mut back, 5 * MIB + 100).unwrap();
    assert!(back == data);
    assert_eq!(seek(&file, SeekFrom::Data(0)).unwrap(), 5 * MIB);
    assert_eq!(seek(&file, SeekFrom::Hole(5 * MIB)).unwrap(), 8 * MIB + 4096);
    assert_eq!(seek(&file, SeekFrom::Data(9 * MIB)).unwrap_err(), Errno::NXIO);
    assert_eq!(seek(&file, SeekFrom::Hole(63 * MIB)).unwrap(), 63 * MIB);
    let stored = world.device.stored();
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 6 * MIB, MIB).unwrap();
    assert_eq!(world.device.stored(), stored - MIB);
    fallocate(&file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, 5 * MIB + 100, 10).unwrap();
    file.read_exact_at(&mut back[..20], 5 * MIB + 100).unwrap();
    assert_eq!((&back[..10], &back[10..20]), (&[0; 10][..], &data[10..20]));
    assert_eq!(fallocate(&file, FallocateFlags::empty(), 0, MIB).unwrap_err(), Errno::OPNOTSUPP);
    let kept = fs::read(world.dir.path().join("kept")).unwrap();
    assert!(kept.iter().all(|b| *b == 0), "nothing was flushed yet");
    file.sync_all().unwrap();
    let kept = fs::read(world.dir.path().join("kept")).unwrap();
    assert!(kept == world.device.read(0, 64 * MIB).wait().unwrap());
    world.device.grow(65 * MIB);
    assert_eq!(file.metadata().unwrap().len(), 65 * MIB);
    assert_eq!(file.set_len(MIB).unwrap_err().raw_os_error(), Some(Errno::PERM.raw_os_error()));
    let writes = world.export.traffic().counts(Sort::Write);
    assert!((4..=5).contains(&writes.requests), "3 MiB in requests of 1 MiB: {writes:?}");
    assert_eq!(world.export.clients(), 1);
    drop(file);
    world.mount.take().unwrap().end().unwrap();
    assert_eq!(world.export.clients(), 0);
    assert_eq!(fs::read_dir(world.dir.path().join("mount")).unwrap().count(), 0);
}

#[test]
fn a_read_only_file_takes_no_writes_and_a_failing_device_gives_errors() {
    if skipped("a_read_only_file_takes_no_writes_and_a_failing_device_gives_errors") {
        return;
    }
    let world = World::new(Access::ReadOnly, |_| {});
    let path = world.mount.as_ref().unwrap().file();
    let refused = OpenOptions::new().write(true).open(&path).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
    let file = File::open(path).unwrap();
    world.device.is_broken.store(true, Ordering::SeqCst);
    let failed = file.read_at(&mut [0; 512], 0).unwrap_err();
    assert_eq!(failed.raw_os_error(), Some(Errno::IO.raw_os_error()));
    world.device.is_broken.store(false, Ordering::SeqCst);
    file.read_exact_at(&mut [0; 512], 0).unwrap();
    assert_eq!(file.read_at(&mut [0; 512], 64 * MIB).unwrap(), 0);
}

#[test]
fn a_slow_request_does_not_stop_others() {
    if skipped("a_slow_request_does_not_stop_others") {
        return;
    }
    let world = World::new(Access::ReadWrite, |device| device.stuck_byte = 10 * MIB);
    let file = world.open();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| world.open().read_exact_at(&mut [0; 4096], 10 * MIB));
        std::thread::sleep(std::time::Duration::from_millis(100));
        for n in 0..100 {
            file.write_all_at(&[7; 4096], n * 4096).unwrap();
            file.read_exact_at(&mut [0; 4096], n * 4096).unwrap();
        }
        file.sync_data().unwrap();
        assert!(!slow.is_finished());
        world.device.free();
        slow.join().unwrap().unwrap();
    });
}

#[test]
fn a_file_in_use_is_taken_away_when_the_mount_ends() {
    if skipped("a_file_in_use_is_taken_away_when_the_mount_ends") {
        return;
    }
    let mut world = World::new(Access::ReadWrite, |_| {});
    let file = world.open();
    world.mount.take().unwrap().end().unwrap();
    file.read_at(&mut [0; 512], 0).unwrap_err();
    assert_eq!(world.export.clients(), 0);
}

#[test]
fn a_mount_that_ends_under_requests_was_served_to_its_end() {
    if skipped("a_mount_that_ends_under_requests_was_served_to_its_end") {
        return;
    }
    // The kernel tells a thread that just took a request, and found the mount gone, something else than the others.
    for round in 0..40 {
        let mut world = World::new(Access::ReadWrite, |_| {});
        let file = world.open();
        std::thread::scope(|scope| {
            for reader in 0..4 {
                let file = &file;
                scope.spawn(move || while file.read_exact_at(&mut [0; 4096], reader * MIB).is_ok() {});
            }
            let ended = world.mount.take().unwrap().abort();
            assert!(ended.is_ok(), "round {round}: {ended:?}");
        });
        assert_eq!(world.export.clients(), 0);
    }
}
