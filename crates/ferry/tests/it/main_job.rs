//! The main job: a disk of the size of a distribution, with snapshots and a clone, is moved three times while it is used: to
//! another pool, to another layout under its name, to another store.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::device::{World, ended_well, run, skipped, verified_writes};
use crate::durability::setting;
use crate::harness::{Home, Name};

/// Takes files of this machine until they are `bytes` together, and makes a file system of them.
pub(crate) fn make_disk(home: &Home, bytes: u64) {
    let tree = home.path("tree");
    fs::create_dir(&tree).unwrap();
    let mut left = bytes;
    for from in ["/etc", "/usr/bin", "/usr/share", "/usr/sbin", "/usr/lib"] {
        take(Path::new(from), &tree.join(from.trim_start_matches('/')), &mut left);
    }
    let size = (bytes * 2).next_multiple_of(64 << 20).max(128 << 20);
    let disk = home.path("disk");
    fs::File::create(&disk).unwrap().set_len(size).unwrap();
    // However long it takes.
    let made = Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(tree).arg(disk).output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// Copies a directory, as much of it as there is room for.
fn take(from: &Path, to: &Path, left: &mut u64) {
    let Ok(entries) = fs::read_dir(from) else { return };
    fs::create_dir_all(to).unwrap();
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (Ok(kind), target) = (entry.file_type(), to.join(entry.file_name())) else { continue };
        if kind.is_dir() {
            take(&entry.path(), &target, left);
        } else if kind.is_symlink() {
            let link = fs::read_link(entry.path()).unwrap();
            drop(std::os::unix::fs::symlink(link, target));
        } else if kind.is_file() {
            let size = entry.metadata().map_or(0, |m| m.len());
            if size <= *left && fs::copy(entry.path(), &target).is_ok() {
                *left -= size;
            }
        }
    }
}

/// A checksum of an image, or of a snapshot of it, as it is exported.
fn sum(home: &Home, spec: &str) -> String {
    let mut export = home.command(Name::Ferry);
    let export = export.args(["export", spec, "-", "--no-progress"]).stdout(Stdio::piped());
    let mut export = export.spawn().unwrap();
    let output = Command::new("sha256sum").stdin(export.stdout.take().unwrap()).output().unwrap();
    assert!(export.wait().unwrap().success(), "{spec}");
    String::from_utf8(output.stdout).unwrap()
}

/// Checksums of all files below a directory of the mounted file system.
fn sums(world: &World, below: &str) -> String {
    let script = format!(
        "cd {}/{below} && find . -type f -print0 | sort -z | xargs -0 sha256sum",
        world.at().display()
    );
    run("sh", &["-c", &script])
}

#[test]
fn a_distribution_sized_disk_moves_three_times_while_it_is_used() {
    if skipped("a_distribution_sized_disk_moves_three_times_while_it_is_used") {
        return;
    }
    let megabytes = setting("FERRY_MAIN_JOB_MIB", 150);
    let world = World::new("1M");
    let home = &world.home;
    home.ok("pool create fast");
    home.ok("pool create far --path elsewhere");
    make_disk(home, megabytes << 20);
    home.ok("import disk rbd/root --no-progress");
    home.ok("snap create rbd/root@installed --no-progress");
    home.ok("snap protect rbd/root@installed");
    let node = home.serve();
    let device = home.ok("device map rbd/root").trim().to_owned();
    world.mount(&device);
    let (etc, bin) = (sums(&world, "etc"), sums(&world, "usr"));
    // Something happens to the installed system before it is moved.
    run(
        "sh",
        &["-c", &format!("cp -r {0}/etc {0}/etc.old && rm -rf {0}/usr/sbin && sync", world.at().display())],
    );
    home.ok("snap create rbd/root@used --no-progress");
    home.ok("clone rbd/root@installed rbd/guest");
    let began = Instant::now();
    let (installed, guest) = (sum(home, "rbd/root@installed"), sum(home, "rbd/guest"));
    let used = sum(home, "rbd/root@used");
    let fio = verified_writes(&world, setting("FERRY_MAIN_JOB_SECONDS", 15));
    let mut told = Vec::new();
    for (from, to, layout) in [
        ("rbd/root", "fast/root", ""),
        ("fast/root", "fast/root", "--object-size 1M --stripe-unit 64K --stripe-count 4"),
        ("fast/root", "far/root", ""),
    ] {
        if to == "far/root" {
            // Clones stay in their store: they must not hang on it any more.
            home.ok("flatten rbd/guest --no-progress");
        }
        let began = Instant::now();
        let prepared = home.run(Name::Ferry, &format!("migration prepare {from} {to} {layout}"));
        assert_eq!(prepared.code, 0, "{prepared:?}");
        home.ok(&format!("migration execute {to} --no-progress"));
        let copied = began.elapsed();
        home.ok(&format!("migration verify {to} --no-progress"));
        home.ok(&format!("migration commit {to} --force --unverified --no-progress"));
        told.push(format!("{from} to {to}: {copied:?} to copy, {}", prepared.err.trim()));
        assert_eq!(sum(home, &format!("{to}@installed")), installed, "{to}");
        assert_eq!(sum(home, &format!("{to}@used")), used, "{to}");
        assert_eq!(sum(home, "rbd/guest"), guest, "{to}");
    }
    ended_well(fio);
    // What was not touched is there through the mount that was never given up.
    assert_eq!(sums(&world, "etc"), etc);
    assert_eq!(sums(&world, "etc.old"), etc);
    let kept: Vec<&str> = bin.lines().filter(|l| !l.contains("./sbin/")).collect();
    assert_eq!(sums(&world, "usr").lines().collect::<Vec<_>>(), kept);
    assert!(home.ok("device ls").contains(&device));
    world.unmount();
    run("fsck.ext4", &["-f", "-n", &device]);
    home.ok(&format!("device unmap {device}"));
    println!("{megabytes} MiB of files, {:?} in all\n{}", began.elapsed(), told.join("\n"));
    assert_eq!(node.stop(), 0, "{}", home.log());
    home.check();
    home.ok("check far");
}
