//! Images of a cluster as block devices of the kernel: by a process in the background and by a node.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use super::stores::{Ground, stock_map_is_right};
use crate::device::{is_alive, run, size_of, skipped, until};
use crate::harness::{noise, promised};

/// A home with the pool `far` of a cluster, of which nothing stays mapped or mounted whatever becomes of the test.
struct World {
    ground: Ground,
}

impl World {
    fn new(test: &str) -> Option<Self> {
        if skipped(test) {
            return None;
        }
        Ground::new(test).map(|ground| Self { ground })
    }

    fn ok(&self, line: &str) -> String {
        self.ground.home.ok(line)
    }

    /// Maps an image; the device.
    fn map(&self, line: &str) -> String {
        let device = self.ok(line).trim().to_owned();
        assert!(device.starts_with("/dev/loop"), "{device}");
        device
    }

    /// What names the cluster on a command line.
    fn conf(&self) -> String {
        format!("-c {}", self.ground.cluster.conf().display())
    }

    /// What stock `rbd` says; it must succeed.
    fn stock(&self, line: &str) -> String {
        let output = self.ground.stock(line);
        assert!(output.status.success(), "rbd {line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn at(&self) -> PathBuf {
        self.ground.home.path("fs")
    }

    fn mount(&self, device: &str) {
        fs::create_dir_all(self.at()).unwrap();
        run("mount", &[device, self.at().to_str().unwrap()]);
    }

    fn unmount(&self) {
        run("umount", &[self.at().to_str().unwrap()]);
    }

    /// Images and devices that are mapped.
    fn listed(&self) -> Vec<(String, String)> {
        let text = self.ok("device ls --format json");
        let lines: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap_or_default();
        let word = |line: &serde_json::Value, key: &str| line[key].as_str().unwrap().to_owned();
        let spec = |line| match word(line, "snap").as_str() {
            "-" => format!("{}/{}", word(line, "pool"), word(line, "name")),
            snap => format!("{}/{}@{snap}", word(line, "pool"), word(line, "name")),
        };
        lines.iter().map(|line| (spec(line), word(line, "device"))).collect()
    }

    /// The process in the background.
    fn keeper(&self) -> String {
        fs::read_to_string(self.ground.home.path("home/devices/owner")).unwrap().trim().to_owned()
    }

    fn has_socket(&self) -> bool {
        self.ground.home.path("home/devices/control.sock").exists()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let home = &self.ground.home;
        let quietly = |program: &str, arguments: &[&str]| {
            let mut command = Command::new("timeout");
            command.arg("20").arg(program).args(arguments).env("FERRY_HOME", home.path("home"));
            command.env("CEPH_CONF", self.ground.cluster.conf());
            command
                .output()
                .map_or_else(|_| String::new(), |o| String::from_utf8_lossy(&o.stdout).into_owned())
        };
        quietly("umount", &["-l", self.at().to_str().unwrap()]);
        let ferry = home.path("ferry").display().to_string();
        for line in quietly(&ferry, &["device", "ls"]).lines().skip(1) {
            let device = line.split_whitespace().last().unwrap_or_default();
            quietly(&ferry, &["device", "unmap", device, "-o", "force"]);
        }
        // What a node mapped that was killed is cleared away by whoever looks for something else.
        quietly(&ferry, &["device", "unmap", "far/none"]);
        // A cluster that all tests share has room for a limited number of placement groups.
        let pool = self.ground.pool.as_str();
        quietly("ceph", &["osd", "pool", "delete", pool, pool, "--yes-i-really-really-mean-it"]);
    }
}

/// All bytes of a device.
fn bytes_of(device: &str) -> Vec<u8> {
    fs::read(device).unwrap()
}

/// What `device map` is for. `before` goes before each verb, and names a cluster or nothing; `spec` is the image, `far` what stock
/// `rbd` is told.
fn maps(world: &World, before: &str, spec: &str, far: &str) {
    let home = &world.ground.home;
    world.stock(&format!("create {far} --size 24M"));
    let device = world.map(&format!("{before} device map {spec}"));
    assert_eq!(world.listed(), [(spec.to_owned(), device.clone())]);
    let status = world.stock(&format!("status {far}"));
    assert_eq!(status.matches("watcher=").count(), 1, "{status}");
    assert!(world.stock(&format!("lock ls {far}")).contains("auto "), "{status}");
    // Ferry tells the same.
    assert_eq!(world.ok(&format!("{before} status {spec}")), status);
    assert_eq!(size_of(&device), 24 << 20);
    world.stock(&format!("resize {far} --size 32M --no-progress"));
    until("the new size", || size_of(&device) == 32 << 20);
    run("mkfs.ext4", &["-q", "-F", &device]);
    world.mount(&device);
    let (code, err) = home.fails(&format!("device unmap {device}"));
    assert!(code == 16 && err.contains("the device is in use"), "{code} {err}");
    let data = noise(5, 3_000_000);
    fs::write(world.at().join("file"), &data).unwrap();
    world.unmount();
    world.stock(&format!("snap create {far}@s --no-progress"));
    let snap = world.map(&format!("{before} device map {spec}@s"));
    assert_eq!(run("blockdev", &["--getro", &snap]), "1\n");
    let whole = bytes_of(&device);
    assert!(bytes_of(&snap) == whole, "a snapshot shows what was there when it was taken");
    assert_eq!(world.listed().len(), 2);
    run("mount", &["-o", "ro,noload", &snap, world.at().to_str().unwrap()]);
    assert!(fs::read(world.at().join("file")).unwrap() == data);
    world.unmount();
    assert_eq!(home.fails(&format!("device unmap {spec}@none")).0, 22);
    world.ok(&format!("device unmap {snap}"));
    world.ok(&format!("{before} device unmap {spec}"));
    assert_eq!(world.listed(), []);
    assert!(world.ground.stock_bytes(far) == whole);
    assert!(stock_map_is_right(&world.ground, far));
    assert!(!world.stock(&format!("status {far}")).contains("watcher="));
    assert_eq!(world.stock(&format!("lock ls {far}")), "");
}

#[test]
fn a_process_in_the_background_maps_images_of_a_cluster() {
    let Some(world) = World::new("a_process_in_the_background_maps_images_of_a_cluster") else { return };
    promised("Images of a Ceph cluster are mapped like others, those of a pool of the home and");
    promised("On a cluster `status` asks the OSD that serves an image's header who watches it");
    maps(&world, "", "far/a", "far/a");
    let pool = &world.ground.pool;
    maps(&world, &world.conf(), &format!("{pool}/b"), "far/b");
    // Separate commands come to the same process, also those that come at once.
    let devices: Vec<String> = thread::scope(|scope| {
        let (here, there) = (scope.spawn(|| world.map("device map far/a")), &world);
        let line = format!("{} device map {pool}/b", world.conf());
        let other = scope.spawn(move || there.map(&line));
        // What is not there does not disturb them.
        let none = scope.spawn(|| world.ground.home.fails("device map far/none"));
        let (code, err) = none.join().unwrap();
        assert!(code == 2 && err.contains("cannot open image far/none"), "{code} {err}");
        vec![here.join().unwrap(), other.join().unwrap()]
    });
    let keeper = world.keeper();
    let mut listed = world.listed();
    listed.sort();
    let mut all = [("far/a".to_owned(), devices[0].clone()), (format!("{pool}/b"), devices[1].clone())];
    all.sort();
    assert_eq!(listed, all);
    assert!(is_alive(&keeper) && world.has_socket());
    world.ok(&format!("device unmap {pool}/b"));
    assert_eq!(world.listed(), [("far/a".to_owned(), devices[0].clone())]);
    assert!(is_alive(&keeper));
    world.ok(&format!("device unmap {}", devices[0]));
    until("the end of the process", || !is_alive(&keeper));
    assert!(!world.has_socket());
    let left = run("losetup", &["--all"]);
    assert!(!left.contains(world.ground.home.dir().to_str().unwrap()), "{left}");
}

#[test]
fn a_node_maps_images_of_a_cluster() {
    let Some(world) = World::new("a_node_maps_images_of_a_cluster") else { return };
    let (home, pool) = (&world.ground.home, &world.ground.pool);
    let node = home.serve();
    maps(&world, "", "far/a", "far/a");
    assert!(!home.path("home/devices/owner").exists(), "the node serves them");
    // What the home has no name for is kept by a process of its own, next to the node.
    maps(&world, &world.conf(), &format!("{pool}/b"), "far/b");
    let ours = world.map("device map far/a");
    let other = world.map(&format!("{} device map {pool}/b", world.conf()));
    assert_eq!(world.listed().len(), 2);
    let keeper = world.keeper();
    // It moves under its device, as one in a directory does.
    let before = bytes_of(&ours);
    world.ok("migration prepare far/a rbd/moved");
    world.ok("migration execute rbd/moved --no-progress");
    world.ok("migration commit rbd/moved --no-progress");
    let named = world.listed().into_iter().find(|(_, device)| *device == ours);
    assert_eq!(named.unwrap().0, "rbd/moved");
    run("blockdev", &["--flushbufs", &ours]);
    assert!(bytes_of(&ours) == before);
    assert_eq!(node.stop(), 0, "{}", home.log());
    assert_eq!(world.listed(), [(format!("{pool}/b"), other)]);
    world.ok(&format!("device unmap {pool}/b"));
    until("the end of the process", || !is_alive(&keeper));
    home.check();
}

#[test]
fn a_mapped_image_changes_hands_between_its_clients() {
    let Some(world) = World::new("a_mapped_image_changes_hands_between_its_clients") else { return };
    promised(
        "The lock of a mapped image goes to another client that writes, and comes back with the device's next write",
    );
    world.stock("create far/a --size 16M");
    let device = world.map("device map far/a");
    let file = File::options().read(true).write(true).open(&device).unwrap();
    let owner = || world.stock("lock ls far/a").split_whitespace().last().unwrap_or_default().to_owned();
    let ours = owner();
    let mut last = Vec::new();
    for round in 0..3 {
        last = noise(round, 1 << 20);
        file.write_all_at(&last, 8 << 20).unwrap();
        file.sync_all().unwrap();
        assert_eq!(owner(), ours, "round {round}");
        world.stock(
            "bench far/a --io-type write --io-size 4K --io-total 256K --io-threads 1 --io-pattern full-seq",
        );
        world.ok(
            "bench far/a --io-type write --io-size 4K --io-total 64K --io-threads 1 --io-pattern full-seq",
        );
        assert_ne!(owner(), ours, "round {round}");
    }
    drop(file);
    world.ok("device unmap far/a");
    let bytes = world.ground.stock_bytes("far/a");
    assert!(bytes[8 << 20..9 << 20] == last);
    assert!(bytes[..64 << 10].iter().any(|b| *b != 0), "what the others wrote");
    assert!(stock_map_is_right(&world.ground, "far/a"));
}

#[test]
fn ext4_on_an_image_of_a_cluster_survives_the_death_of_its_process() {
    let test = "ext4_on_an_image_of_a_cluster_survives_the_death_of_its_process";
    let Some(world) = World::new(test) else { return };
    world.stock("create far/a --size 48M");
    world.stock("create far/b --size 16M");
    let device = world.map("device map far/a");
    let other = world.map("device map far/b");
    run("mkfs.ext4", &["-q", "-F", &device]);
    world.mount(&device);
    let (path, data) = (world.at().join("synced"), noise(9, 2_000_000));
    fs::write(&path, &data).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    File::open(world.at()).unwrap().sync_all().unwrap();
    let lock = world.stock("lock ls far/a");
    let address = lock.split_whitespace().last().unwrap();
    let keeper = world.keeper();
    run("kill", &["-9", &keeper]);
    until("the death of the process", || !is_alive(&keeper));
    world.unmount();
    assert_eq!(world.listed(), []);
    world.ok(&format!("device unmap {other}"));
    let again = world.map("device map far/a");
    let cut_off = world.ground.cluster.ceph("ceph", "osd blocklist ls");
    assert!(cut_off.contains(address), "{address} is not among {cut_off}");
    world.mount(&again);
    assert!(fs::read(&path).unwrap() == data);
    world.unmount();
    run("fsck.ext4", &["-f", "-n", &again]);
    world.ok("device unmap far/a");
    let left = fs::read_dir(world.ground.home.path("home/devices")).unwrap();
    let mut left: Vec<String> =
        left.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    left.retain(|name| name != "control.sock");
    left.sort();
    assert_eq!(left, ["lock", "owner"]);
}

#[test]
fn images_of_one_name_are_told_apart_by_their_devices() {
    let Some(world) = World::new("images_of_one_name_are_told_apart_by_their_devices") else { return };
    promised(
        "Where images of one name are mapped, in a pool of the home and in one of a cluster, only the device says which is meant",
    );
    let (home, pool) = (&world.ground.home, &world.ground.pool);
    world.stock("create far/a --size 16M");
    world.ok(&format!("pool create {pool}"));
    world.ok(&format!("create {pool}/a --size 8M"));
    let here = world.map(&format!("device map {pool}/a"));
    let there = world.map(&format!("{} device map {pool}/a", world.conf()));
    assert_eq!((size_of(&here), size_of(&there)), (8 << 20, 16 << 20));
    let (code, err) = home.fails(&format!("device unmap {pool}/a"));
    assert!(code == 16 && err.contains(&here) && err.contains(&there), "{code} {err}");
    world.ok(&format!("device unmap {here}"));
    assert_eq!(world.listed(), [(format!("{pool}/a"), there)]);
    world.ok(&format!("device unmap {pool}/a"));
    assert_eq!(world.listed(), []);
    home.check();
}
