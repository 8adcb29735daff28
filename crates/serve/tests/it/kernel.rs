//! An export as a block device, with real file systems on it.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use ferry_core::ErrorKind;
use ferry_serve::export::Export;
use ferry_serve::fuse::Access;
use ferry_serve::kernel::{Mapped, Options, Unmap, Watchdog, be_watchdog, clean_stale, map};
use rustix::fs::{FallocateFlags, fallocate};
use tempfile::TempDir;

use crate::volatile::Volatile;
use crate::world::{attempt, run};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 320 * MIB;

/// Set where devices are to be those of the kernel's NBD client: in a machine whose kernel has one.
const NBD: &str = "FERRY_TEST_KERNEL_NBD";

/// Where the process that is killed finds its store.
const CHILD: &str = "FERRY_TEST_KERNEL_CHILD";

/// Says why this machine has no devices, if it has none.
#[expect(clippy::print_stdout, reason = "the helper of a test is a test")]
fn skipped(name: &str) -> bool {
    if crate::fuse::skipped(name) {
        return true;
    }
    for needed in ["/dev/loop-control", "/sbin/losetup", "/sbin/mkfs.ext4", "/sbin/mkfs.xfs"] {
        if !Path::new(needed).exists() {
            println!("SKIPPED {name}: {needed} is missing");
            return true;
        }
    }
    false
}

struct World {
    dir: TempDir,
    device: Arc<Volatile>,
    export: Arc<Export>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let device = Arc::new(Volatile::open(&dir.path().join("kept"), SIZE));
        let export = Arc::new(Export::new("a", "", Arc::clone(&device) as _, false));
        Self { dir, device, export }
    }

    fn options(&self) -> Options {
        options(self.dir.path())
    }

    fn map(&self) -> Mapped {
        map_as(&self.export, &self.options())
    }

    /// Nothing is left in the directory of mounts.
    fn check_clean(&self) {
        let left: Vec<_> =
            fs::read_dir(self.dir.path().join("devices")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["lock"]);
    }
}

fn is_nbd() -> bool {
    std::env::var_os(NBD).is_some()
}

fn options(dir: &Path) -> Options {
    let arguments = ["--exact", "kernel::this_program_is_a_watchdog_only_when_it_is_told_to"];
    let watchdog = || Watchdog {
        program: std::env::current_exe().unwrap(),
        arguments: arguments.map(Into::into).into_iter().collect(),
    };
    Options { watchdog: is_nbd().then(watchdog), ..Options::at(dir.join("devices")) }
}

/// Maps it as the kind of device that is wanted.
fn map_as(export: &Arc<Export>, options: &Options) -> Mapped {
    let mapped = map(export, options).unwrap();
    let kind = if is_nbd() { "/dev/nbd" } else { "/dev/loop" };
    assert!(text(mapped.device()).starts_with(kind), "{mapped:?}");
    mapped
}

/// Has somebody who does not know of the mapping take its device away.
fn disconnect(device: &Path) {
    if is_nbd() {
        run("nbd-client", &["-d", text(device)]);
    } else {
        run("losetup", &["--detach", text(device)]);
    }
}

/// What the watchdog of a device is: this test, started once more.
#[test]
fn this_program_is_a_watchdog_only_when_it_is_told_to() {
    if let Some(done) = be_watchdog() {
        done.unwrap();
        std::process::exit(0);
    }
    assert_eq!(Watchdog::this_program().unwrap().program, std::env::current_exe().unwrap());
}

/// A mounted file system, unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(device: &Path, at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        run("mount", &[text(device), text(at)]);
        Self(at.to_owned())
    }

    fn unmount(self) {
        run("umount", &[text(&self.0)]);
        std::mem::forget(self);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        attempt("umount", &["-l", text(&self.0)]);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn make(kind: &str, device: &Path) {
    let quiet: &[&str] = if kind == "ext4" { &["-q", "-F"] } else { &["-q", "-f"] };
    run(&format!("mkfs.{kind}"), &[quiet, &[text(device)]].concat());
}

/// The file system has no errors.
fn check(kind: &str, device: &Path) {
    if kind == "ext4" {
        run("fsck.ext4", &["-f", "-n", text(device)]);
    } else {
        run("xfs_repair", &["-n", text(device)]);
    }
}

/// Numbers that look random, the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Random operations on a file beside a model of it, compared after each read and at the end.
fn exercise(path: &Path, model: &mut Vec<u8>, seed: u64, steps: u64) {
    let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    let mut file = open();
    let mut numbers = Numbers(seed | 1);
    const MOST: u64 = 8 * MIB;
    let memory = |n: u64| usize::try_from(n).unwrap();
    for step in 0..steps {
        let (offset, length) = (numbers.below(MOST), 1 + numbers.below(256 << 10));
        let size = u64::try_from(model.len()).unwrap();
        match numbers.below(8) {
            0..=2 => {
                let data: Vec<u8> = (0..length)
                    .map(|_| numbers.0.to_le_bytes()[0] ^ u8::try_from(step % 255).unwrap())
                    .collect();
                file.write_all_at(&data, offset).unwrap();
                if model.len() < memory(offset + length) {
                    model.resize(memory(offset + length), 0);
                }
                model[memory(offset)..memory(offset + length)].copy_from_slice(&data);
            }
            3 | 4 if offset + length <= size => {
                let mut data = vec![0; memory(length)];
                file.read_exact_at(&mut data, offset).unwrap();
                assert!(data == model[memory(offset)..memory(offset + length)], "seed {seed}, step {step}");
            }
            5 if offset + length <= size => {
                let way = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&file, way, offset, length).unwrap();
                model[memory(offset)..memory(offset + length)].fill(0);
            }
            6 => {
                file.set_len(offset).unwrap();
                model.resize(memory(offset), 0);
            }
            7 => file.sync_all().unwrap(),
            _ => file = open(),
        }
    }
    file.sync_all().unwrap();
    assert!(fs::read(path).unwrap() == *model, "seed {seed}");
}

fn holds_a_file_system(kind: &str) {
    let world = World::new();
    let mapped = world.map();
    make(kind, mapped.device());
    let at = world.dir.path().join("fs");
    let mut model = Vec::new();
    let file = at.join("file");
    let mounted = Mounted::new(mapped.device(), &at);
    exercise(&file, &mut model, 4711, 400);
    fs::write(at.join("big"), vec![5; 64 << 20]).unwrap();
    run("sync", &["-f", text(&at)]);
    let stored = world.device.stored();
    fs::remove_file(at.join("big")).unwrap();
    // A file system may take the blocks of a removed file back a little later.
    for _ in 0..100 {
        run("sync", &["-f", text(&at)]);
        run("fstrim", &[text(&at)]);
        if world.device.stored() + (60 << 20) < stored {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    assert!(world.device.stored() + (60 << 20) < stored, "{} of {stored} are left", world.device.stored());
    mounted.unmount();
    check(kind, mapped.device());
    mapped.unmap(Unmap::IfUnused).unwrap();
    assert!(!mapped.is_live());
    world.check_clean();
    assert_eq!(world.export.clients(), 0);

    let mapped = world.map();
    let mounted = Mounted::new(mapped.device(), &at);
    assert!(fs::read(&file).unwrap() == model);
    exercise(&file, &mut model, 42, 100);
    mounted.unmount();
    check(kind, mapped.device());
    mapped.unmap(Unmap::IfUnused).unwrap();
}

#[test]
fn ext4_holds_what_was_written_and_gives_space_back() {
    if !skipped("ext4_holds_what_was_written_and_gives_space_back") {
        holds_a_file_system("ext4");
    }
}

#[test]
fn xfs_holds_what_was_written_and_gives_space_back() {
    if !skipped("xfs_holds_what_was_written_and_gives_space_back") {
        holds_a_file_system("xfs");
    }
}

#[test]
fn a_device_in_use_is_not_taken_away_except_by_force() {
    if skipped("a_device_in_use_is_not_taken_away_except_by_force") {
        return;
    }
    let world = World::new();
    let mapped = world.map();
    let at = world.dir.path().join("fs");
    make("ext4", mapped.device());
    let mounted = Mounted::new(mapped.device(), &at);
    let error = mapped.unmap(Unmap::IfUnused).unwrap_err();
    assert_eq!((error.kind(), error.errno().0), (ErrorKind::Busy, 16));
    assert_eq!(error.fact("by"), Some(text(&at)));
    mounted.unmount();
    let mut reader =
        Command::new("sleep").arg("60").stdin(File::open(mapped.device()).unwrap()).spawn().unwrap();
    let error = mapped.unmap(Unmap::IfUnused).unwrap_err();
    assert_eq!(error.fact("by"), Some(format!("process {}", reader.id()).as_str()));
    reader.kill().unwrap();
    reader.wait().unwrap();
    let mounted = Mounted::new(mapped.device(), &at);
    mapped.unmap(Unmap::ByForce).unwrap();
    let written =
        fs::write(at.join("lost"), [1; 4096]).and_then(|()| File::open(at.join("lost"))?.sync_all());
    written.unwrap_err();
    mounted.unmount();
    world.check_clean();
    // It was never written in part only: a log replay makes it whole.
    let mapped = world.map();
    Mounted::new(mapped.device(), &at).unmount();
    check("ext4", mapped.device());
    mapped.unmap(Unmap::IfUnused).unwrap();
    mapped.unmap(Unmap::IfUnused).unwrap();
}

#[test]
fn a_device_has_the_size_the_sectors_and_the_access_that_were_asked_for() {
    if skipped("a_device_has_the_size_the_sectors_and_the_access_that_were_asked_for") {
        return;
    }
    let world = World::new();
    let size =
        |mapped: &Mapped| run("blockdev", &["--getsize64", text(mapped.device())]).trim().parse::<u64>();
    let options = Options { access: Access::ReadOnly, sector_size: Some(4096), ..world.options() };
    let mapped = map_as(&world.export, &options);
    assert_eq!(run("blockdev", &["--getro", "--getss", text(mapped.device())]), "1\n4096\n");
    mapped.unmap(Unmap::IfUnused).unwrap();
    let mapped = world.map();
    assert_eq!(run("blockdev", &["--getro", "--getss", text(mapped.device())]), "0\n512\n");
    assert_eq!(size(&mapped).unwrap(), SIZE);
    make("ext4", mapped.device());
    let at = world.dir.path().join("fs");
    let mounted = Mounted::new(mapped.device(), &at);
    world.device.grow(SIZE + 100 * MIB);
    mapped.resized().unwrap();
    assert_eq!(size(&mapped).unwrap(), SIZE + 100 * MIB);
    mounted.unmount();
    check("ext4", mapped.device());
    run("resize2fs", &["-f", text(mapped.device())]);
    check("ext4", mapped.device());
    disconnect(mapped.device());
    while mapped.is_live() {
        thread::yield_now();
    }
    mapped.unmap(Unmap::IfUnused).unwrap();
    world.check_clean();
    let bad = map(&world.export, &Options { sector_size: Some(7), ..world.options() }).unwrap_err();
    assert_eq!(bad.kind(), ErrorKind::Invalid, "{bad}");
    world.check_clean();
}

/// A process that maps a device and waits to be killed.
struct Victim {
    child: Child,
    device: PathBuf,
}

impl Victim {
    fn start(dir: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "kernel::what_was_synced_to_ext4_survives_the_death_of_the_process",
                "--nocapture",
            ])
            .env(CHILD, dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mapped = lines
            .map(Result::unwrap)
            .find_map(|line| line.split_once("mapped ").map(|(_, d)| PathBuf::from(d)));
        Self { child, device: mapped.unwrap() }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[expect(clippy::print_stdout, reason = "a test of its own program reads it")]
/// What the process does that is killed: a test of this program, started once more with [`CHILD`] in its environment.
fn serve_until_killed(dir: &Path) -> ! {
    let device = Arc::new(Volatile::open(&dir.join("kept"), SIZE));
    let export = Arc::new(Export::new("a", "", device, false));
    let mapped = map_as(&export, &options(dir));
    println!("mapped {}", mapped.device().display());
    loop {
        thread::park();
    }
}

fn survives_kills(kind: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (at, devices) = (dir.path().join("fs"), dir.path().join("devices"));
    let mut synced = Vec::new();
    for round in 0..3_u8 {
        let victim = Victim::start(dir.path());
        if round == 0 {
            make(kind, &victim.device);
        }
        let mounted = Mounted::new(&victim.device, &at);
        for (path, content) in &synced {
            assert!(fs::read(path).unwrap() == *content, "{kind}, round {round}: {path:?}");
        }
        for n in 0..10_u8 {
            let path = at.join(format!("{round}-{n}"));
            let content = vec![round * 16 + n + 1; 100_000 + usize::from(n) * 1000];
            fs::write(&path, &content).unwrap();
            File::open(&path).unwrap().sync_all().unwrap();
            File::open(&at).unwrap().sync_all().unwrap();
            synced.push((path, content));
        }
        // Under way when the process dies, and never promised.
        fs::write(at.join("unsynced"), vec![9; 20 << 20]).unwrap();
        assert_eq!(clean_stale(&devices).unwrap(), ferry_serve::kernel::Cleaned::default(), "it lives");
        let device = victim.device.clone();
        victim.kill();
        File::open(&device).unwrap().read_at(&mut [0; 4096], SIZE - 4096).unwrap_err();
        mounted.unmount();
        let cleaned = clean_stale(&devices).unwrap();
        assert_eq!((cleaned.devices, cleaned.directories.len()), (vec![device], 1));
    }
    let victim = Victim::start(dir.path());
    Mounted::new(&victim.device, &at).unmount();
    check(kind, &victim.device);
    let mounted = Mounted::new(&victim.device, &at);
    for (path, content) in &synced {
        assert!(fs::read(path).unwrap() == *content, "{kind}: {path:?}");
    }
    // This time what is left is cleared away while it is mounted.
    let device = victim.device.clone();
    victim.kill();
    assert_eq!(clean_stale(&devices).unwrap().devices, [device]);
    mounted.unmount();
    assert_eq!(clean_stale(&devices).unwrap(), ferry_serve::kernel::Cleaned::default());
}

/// Threads of a process that the system takes for ones that write back what others dirtied.
fn flushing_threads(process: u32) -> usize {
    /// `PF_MEMALLOC_NOIO` and `PF_LOCAL_THROTTLE`.
    const FLAGS: u64 = 0x0018_0000;
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("stat")).ok());
    // The ninth field; names may have blanks in them, and end with the last parenthesis.
    let flags = stats.filter_map(|stat| stat.rsplit_once(") ")?.1.split(' ').nth(6)?.parse::<u64>().ok());
    flags.filter(|flags| flags & FLAGS == FLAGS).count()
}

#[test]
fn who_serves_a_device_does_not_wait_for_its_being_written_back() {
    if skipped("who_serves_a_device_does_not_wait_for_its_being_written_back") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let victim = Victim::start(dir.path());
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    // `CAP_SYS_RESOURCE`, which root has, but not in every container.
    let may = u64::from_str_radix(capabilities.trim(), 16).unwrap() >> 24 & 1 == 1;
    assert_eq!(flushing_threads(victim.child.id()) > 0, may);
    assert_eq!(flushing_threads(std::process::id()), 0, "who maps is not changed");
    victim.kill();
    clean_stale(&dir.path().join("devices")).unwrap();
}

#[test]
fn what_is_under_way_when_the_process_dies_fails() {
    if skipped("what_is_under_way_when_the_process_dies_fails") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let victim = Victim::start(dir.path());
    let device = victim.device.clone();
    // Stopped, it answers nothing any more.
    run("kill", &["-STOP", &victim.child.id().to_string()]);
    let (ended, outcome) = mpsc::channel();
    let asked = device.clone();
    thread::spawn(move || {
        let read = File::open(&asked).and_then(|file| file.read_at(&mut [0; 4096], SIZE / 2));
        ended.send(read).unwrap();
    });
    let early = outcome.recv_timeout(Duration::from_millis(500));
    assert_eq!(early.map(|read| read.is_ok()), Err(mpsc::RecvTimeoutError::Timeout), "nobody answers");
    victim.kill();
    outcome.recv_timeout(Duration::from_secs(60)).expect("it ends with the process").unwrap_err();
    clean_stale(&dir.path().join("devices")).unwrap();
    assert_eq!(fs::read_dir(dir.path().join("devices")).unwrap().count(), 1, "the lock alone");
}

#[test]
fn what_was_synced_to_ext4_survives_the_death_of_the_process() {
    if let Some(dir) = std::env::var_os(CHILD) {
        serve_until_killed(Path::new(&dir));
    }
    if !skipped("what_was_synced_to_ext4_survives_the_death_of_the_process") {
        survives_kills("ext4");
    }
}

#[test]
fn what_was_synced_to_xfs_survives_the_death_of_the_process() {
    if !skipped("what_was_synced_to_xfs_survives_the_death_of_the_process") {
        survives_kills("xfs");
    }
}
