//! Images as block devices of the kernel.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Home, noise, promised};

/// Set where devices are to be those of the kernel's NBD client: in a machine whose kernel has one.
pub(crate) const NBD: &str = "FERRY_TEST_KERNEL_NBD";

/// Says why this machine has no devices, if it has none.
#[expect(clippy::print_stdout, reason = "the helper of a test is a test")]
pub(crate) fn skipped(name: &str) -> bool {
    for needed in ["/dev/fuse", "/dev/loop-control", "/sbin/losetup", "/sbin/mkfs.ext4", "/sbin/mkfs.xfs"] {
        if !Path::new(needed).exists() {
            println!("SKIPPED {name}: {needed} is missing");
            return true;
        }
    }
    if !is_root() {
        println!("SKIPPED {name}: mapping needs root");
        return true;
    }
    false
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

/// Runs a program; what it said, where it went well.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new("timeout").arg("60").arg(program).args(arguments).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{err}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// A home, of which nothing stays mapped or mounted whatever becomes of the test.
pub(crate) struct World {
    pub(crate) home: Home,
}

impl World {
    pub(crate) fn new(size: &str) -> Self {
        let home = Home::new();
        home.ok(&format!("create a --size {size}"));
        Self { home }
    }

    pub(crate) fn at(&self) -> PathBuf {
        self.home.path("fs")
    }

    pub(crate) fn mount(&self, device: &str) {
        fs::create_dir_all(self.at()).unwrap();
        run("mount", &[device, self.at().to_str().unwrap()]);
    }

    pub(crate) fn unmount(&self) {
        run("umount", &[self.at().to_str().unwrap()]);
    }

    /// The process that serves the default store.
    fn owner(&self) -> String {
        fs::read_to_string(self.home.path("home/store/owner")).unwrap().trim().to_owned()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let quietly = |program: &str, arguments: &[&str]| {
            Command::new("timeout").arg("20").arg(program).args(arguments).output().ok();
        };
        quietly("umount", &["-l", self.at().to_str().unwrap()]);
        let ferry = self.home.path("ferry");
        quietly(
            "env",
            &[
                &format!("FERRY_HOME={}", self.home.path("home").display()),
                ferry.to_str().unwrap(),
                "device",
                "unmap",
                "a",
                "-o",
                "force",
            ],
        );
    }
}

/// Waits until `done` is true.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what} does not happen");
        thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn is_alive(process: &str) -> bool {
    // One that has ended and nobody waits for is not alive.
    fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub(crate) fn size_of(device: &str) -> u64 {
    run("blockdev", &["--getsize64", device]).trim().parse().unwrap()
}

/// fio on a file of the mounted file system, reading back all it writes, for so many seconds.
pub(crate) fn verified_writes(world: &World, seconds: u64) -> Child {
    let fio = Command::new("fio")
        .args(["--name=verified", "--rw=randrw", "--bsrange=4k-64k", "--size=24m", "--ioengine=psync"])
        .args(["--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--fsync=16", "--time_based"])
        .args([format!("--runtime={seconds}"), format!("--directory={}", world.at().display())])
        .current_dir(world.home.dir())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    fio.unwrap()
}

/// It read back what it wrote, to the end.
pub(crate) fn ended_well(fio: Child) {
    let output = fio.wait_with_output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && out.contains("err= 0"), "{out}{err}");
}

/// What `device map` is for, whoever serves it.
fn maps(world: &World) {
    let home = &world.home;
    let device = home.ok("device map a").trim().to_owned();
    let kind = if std::env::var_os(NBD).is_some() { "/dev/nbd" } else { "/dev/loop" };
    assert!(device.starts_with(kind), "{device}");
    let number = device.trim_start_matches(kind);
    let lines: Vec<String> =
        home.ok("device ls").lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        lines,
        ["id pool namespace image snap device".to_owned(), format!("{number} rbd a - {device}")]
    );
    let json: serde_json::Value = serde_json::from_str(&home.ok("device list --format json")).unwrap();
    assert_eq!(json[0]["device"], device.as_str());
    assert_eq!((&json[0]["name"], &json[0]["snap"]), (&"a".into(), &"-".into()));
    assert!(home.ok("status a").contains("watcher="), "{}", home.ok("status a"));
    assert!(home.ok("lock ls a").contains("auto "), "{}", home.ok("lock ls a"));
    let data = noise(5, 3_000_000);
    let file = File::options().read(true).write(true).open(&device).unwrap();
    file.write_all_at(&data, 4 << 20).unwrap();
    file.sync_all().unwrap();
    drop(file);
    home.ok("snap create a@s");
    assert_eq!(size_of(&device), 64 << 20);
    home.ok("resize a --size 100M --no-progress");
    until("the new size", || size_of(&device) == 100 << 20);
    run("mkfs.ext4", &["-q", "-F", &device]);
    world.mount(&device);
    let (code, err) = home.fails("device unmap a");
    assert_eq!(code, 16, "{err}");
    assert!(err.contains("the device is in use"), "{err}");
    fs::write(world.at().join("file"), &data).unwrap();
    world.unmount();
    let snap = home.ok("device map a@s").trim().to_owned();
    assert_eq!(run("blockdev", &["--getro", &snap]), "1\n");
    let mut back = vec![0; data.len()];
    File::open(&snap).unwrap().read_exact_at(&mut back, 4 << 20).unwrap();
    assert!(back == data, "a snapshot shows what was there when it was taken");
    assert_eq!(home.ok("device ls").lines().count(), 3);
    home.ok(&format!("device unmap {snap}"));
    home.ok("device unmap a");
    assert_eq!(home.ok("device ls"), "");
    let (code, err) = home.rbd_fails(&format!("device unmap {device}"));
    assert_eq!(
        (code, err.lines().next()),
        (22, Some(format!("rbd: {device}: not a mapped image or snapshot").as_str()))
    );
    assert!(!home.ok("status a").contains("watcher="));
}

#[test]
fn a_process_in_the_background_serves_devices_and_ends_with_the_last() {
    if skipped("a_process_in_the_background_serves_devices_and_ends_with_the_last") {
        return;
    }
    promised("A process that was started for mapped devices ends when the last one is unmapped.");
    let world = World::new("64M");
    maps(&world);
    world.home.ok("device map a");
    let owner = world.owner();
    assert!(is_alive(&owner));
    world.home.ok("device unmap a");
    until("the end of the process", || !is_alive(&owner));
    world.home.check();
    let (code, err) = world.home.fails("device map none");
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("cannot open image rbd/none"), "{err}");
}

#[test]
fn a_node_serves_devices() {
    if skipped("a_node_serves_devices") {
        return;
    }
    let world = World::new("64M");
    let node = world.home.serve();
    maps(&world);
    let device = world.home.ok("device map a --read-only -o sector_size=4096").trim().to_owned();
    assert_eq!(run("blockdev", &["--getro", "--getss", &device]), "1\n4096\n");
    assert_eq!(node.stop(), 0, "{}", world.home.log());
    let left = run("losetup", &["--all"]);
    assert!(!left.contains(world.home.dir().to_str().unwrap()), "{left}");
    assert!(!is_left(&device), "{device}");
    world.home.check();
    if std::env::var_os(NBD).is_some() {
        let device = world.home.ok("device map a --device-type loop").trim().to_owned();
        assert!(device.starts_with("/dev/loop"), "{device}");
        world.home.ok("device unmap a");
    }
}

/// Whether somebody serves it: one of the kernel's NBD client says whose it is.
fn is_left(device: &str) -> bool {
    let name = device.trim_start_matches("/dev/");
    name.starts_with("nbd") && Path::new("/sys/block").join(name).join("backend").exists()
}

fn survives(kind: &str) {
    promised(
        "what was synced to a file system on a mapped device is there after the process that serves it was killed",
    );
    let world = World::new("400M");
    let home = &world.home;
    let data = noise(9, 1_000_000);
    let check = |device: &str| match kind {
        "ext4" => run("fsck.ext4", &["-f", "-n", device]),
        _ => run("xfs_repair", &["-n", device]),
    };
    for round in 0..3 {
        let device = home.ok("device map a").trim().to_owned();
        if round == 0 {
            run(&format!("mkfs.{kind}"), &[if kind == "ext4" { "-F" } else { "-f" }, "-q", &device]);
        }
        world.mount(&device);
        for earlier in 0..round {
            assert!(fs::read(world.at().join(format!("synced-{earlier}"))).unwrap() == data, "round {round}");
        }
        let path = world.at().join(format!("synced-{round}"));
        fs::write(&path, &data).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        File::open(world.at()).unwrap().sync_all().unwrap();
        fs::write(world.at().join("unsynced"), noise(round, 20_000_000)).unwrap();
        let owner = world.owner();
        run("kill", &["-9", &owner]);
        until("the death of the process", || !is_alive(&owner));
        world.unmount();
    }
    let device = home.ok("device map a").trim().to_owned();
    world.mount(&device);
    world.unmount();
    check(&device);
    world.mount(&device);
    for round in 0..3 {
        assert!(fs::read(world.at().join(format!("synced-{round}"))).unwrap() == data, "round {round}");
    }
    world.unmount();
    home.ok("device unmap a");
    home.check();
    let left = fs::read_dir(home.path("home/devices")).unwrap().count();
    assert_eq!(left, 1, "the lock alone");
}

#[test]
fn ext4_on_a_device_survives_the_death_of_its_process() {
    if !skipped("ext4_on_a_device_survives_the_death_of_its_process") {
        survives("ext4");
    }
}

#[test]
fn xfs_on_a_device_survives_the_death_of_its_process() {
    if !skipped("xfs_on_a_device_survives_the_death_of_its_process") {
        survives("xfs");
    }
}
