//! Power cuts: the file system below the node is frozen at one moment, and what it was is mounted and served elsewhere.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use super::load::{Load, Numbers, Subject, check, wait_for_flushes};
use super::{prepare, seed, setting};
use crate::harness::Home;

/// Size of the file system the node writes to. Bytes.
const MEDIUM: u64 = 384 << 20;

/// What strace is to do with system calls that make things durable: nothing, successfully.
const NEVER_SYNC: &[&str] = &[
    "strace",
    "--follow-forks",
    "--seccomp-bpf",
    "--quiet=all",
    "--output=/dev/null",
    "--trace=fsync,fdatasync,sync_file_range,syncfs,msync",
    "--inject=fsync,fdatasync,sync_file_range,syncfs,msync:retval=0",
];

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// A file system in a file, mounted until it is dropped.
#[derive(Debug)]
struct Mounted {
    at: PathBuf,
}

impl Mounted {
    fn new(file: &Path, at: PathBuf) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        run("mount", &["-o", "loop", &file.display().to_string(), &at.display().to_string()]).unwrap();
        Self { at }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A node that was just killed may take a moment to let go.
        for _ in 0..50 {
            if run("umount", &[&self.at.display().to_string()]).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A file with an empty file system.
fn medium(file: &Path, bytes: u64, mkfs: &[&str]) {
    std::fs::File::create(file).unwrap().set_len(bytes).unwrap();
    let path = file.display().to_string();
    let arguments: Vec<&str> = mkfs[1..].iter().copied().chain([path.as_str()]).collect();
    run(mkfs[0], &arguments).unwrap();
}

/// What the kernel lacks for these tests.
fn missing() -> Option<&'static str> {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap();
    let has = |name: &str| known.lines().any(|l| l.trim() == name) || run("modprobe", &[name]).is_ok();
    ["xfs", "ext4"].into_iter().find(|name| !has(name))
}

/// A node on an ext4 whose medium is a file on an XFS, where a copy by reflink freezes it at one moment.
///
/// The order of the fields is that in which they end.
#[derive(Debug)]
struct World {
    home: Home,
    _inner: Mounted,
    medium: PathBuf,
    outer: Mounted,
    directory: tempfile::TempDir,
}

/// What the cuts showed.
#[derive(Debug, Default)]
struct Tally {
    old: usize,
    new: usize,
    wrong: Vec<String>,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let outer_file = directory.path().join("outer");
        medium(&outer_file, 3 << 30, &["mkfs.xfs", "-q", "-m", "reflink=1"]);
        let outer = Mounted::new(&outer_file, directory.path().join("xfs"));
        let file = outer.at.join("medium");
        medium(&file, MEDIUM, &["mkfs.ext4", "-q", "-F"]);
        let inner = Mounted::new(&file, directory.path().join("ext4"));
        let home = Home::at(&inner.at);
        home.ok("pool create rbd");
        Self { home, _inner: inner, medium: file, outer, directory }
    }

    /// Cuts the power under a load, and checks what a node finds afterwards.
    fn cut(&self, subjects: &[Subject], tally: &mut Tally) {
        let durable: Vec<_> = subjects.iter().map(|s| s.ledger.durable()).collect();
        let cut = self.outer.at.join("cut");
        let (from, to) = (self.medium.display().to_string(), cut.display().to_string());
        run("cp", &["--reflink=always", &from, &to]).unwrap();
        {
            let after = Mounted::new(&cut, self.directory.path().join("after"));
            let home = Home::at(&after.at);
            match home.try_serve(&[], &[]) {
                Err(e) => tally.wrong.push(format!("no node starts: {e}")),
                Ok(node) => {
                    for (subject, durable) in subjects.iter().zip(&durable) {
                        match check(&home.path("home/nbd.sock"), subject, durable) {
                            Ok((found, _)) => {
                                tally.old += found.old;
                                tally.new += found.new;
                            }
                            Err(e) => tally.wrong.push(e),
                        }
                    }
                    if tally.wrong.is_empty() {
                        home.check();
                    }
                    node.kill();
                }
            }
        }
        std::fs::remove_file(&cut).unwrap();
    }
}

/// `rounds` power cuts under load, on a node run by `under`.
fn cuts(rounds: u64, seed: u64, under: &[&str]) -> Tally {
    let world = World::new();
    let subjects = prepare(&world.home);
    run("sync", &[]).unwrap();
    let node = world.home.try_serve(under, &[]).unwrap();
    let mut numbers = Numbers(seed);
    let mut tally = Tally::default();
    let load = Load::start(&world.home.path("home/nbd.sock"), &subjects, numbers.below(u64::MAX));
    for round in 0..rounds {
        wait_for_flushes(&subjects, 5 * (round + 1));
        thread::sleep(Duration::from_millis(numbers.below(120)));
        world.cut(&subjects, &mut tally);
        if !under.is_empty() && !tally.wrong.is_empty() {
            break;
        }
    }
    node.kill();
    load.end_without_server();
    tally
}

#[test]
fn what_a_client_flushed_is_there_after_a_power_cut() {
    if let Some(name) = missing() {
        println!("SKIPPED what_a_client_flushed_is_there_after_a_power_cut: the kernel has no {name}");
        return;
    }
    let (rounds, seed) = (setting("FERRY_CUTS", 12), seed());
    println!("FERRY_SEED={seed} FERRY_CUTS={rounds}");
    let tally = cuts(rounds, seed, &[]);
    assert!(tally.wrong.is_empty(), "seed {seed}: {:?}", tally.wrong);
    println!(
        "{rounds} cuts: of the blocks written since their last flush, {} new, {} old",
        tally.new, tally.old
    );
}

#[test]
fn what_a_client_committed_block_by_block_is_there_after_a_power_cut() {
    if let Some(name) = missing() {
        println!(
            "SKIPPED what_a_client_committed_block_by_block_is_there_after_a_power_cut: the kernel has no {name}"
        );
        return;
    }
    let (rounds, seed) = (setting("FERRY_CUTS", 12), seed());
    println!("FERRY_SEED={seed} FERRY_CUTS={rounds}");
    let world = World::new();
    let subjects = prepare(&world.home);
    run("sync", &[]).unwrap();
    let node = world.home.try_serve(&[], &[]).unwrap();
    let (mut numbers, mut tally) = (Numbers(seed), Tally::default());
    let socket = world.home.path("home/nbd.sock");
    let load = Load::start_committing(&socket, &subjects[0], numbers.below(u64::MAX));
    for round in 0..rounds {
        // A MiB is written ahead of every 128 or so.
        wait_for_flushes(&subjects[..1], 60 * (round + 1));
        thread::sleep(Duration::from_millis(numbers.below(40)));
        world.cut(&subjects, &mut tally);
    }
    node.kill();
    load.end_without_server();
    assert!(tally.wrong.is_empty(), "seed {seed}: {:?}", tally.wrong);
    let flushes = subjects[0].ledger.acknowledged().1;
    println!("{rounds} cuts amid {flushes} commits of a block");
}

#[test]
fn a_node_whose_syncs_do_nothing_is_caught_by_a_power_cut() {
    if let Some(name) = missing() {
        println!("SKIPPED a_node_whose_syncs_do_nothing_is_caught_by_a_power_cut: the kernel has no {name}");
        return;
    }
    let tally = cuts(12, seed(), NEVER_SYNC);
    assert!(!tally.wrong.is_empty(), "a node that never syncs passes: the test proves nothing");
    println!("caught: {}", tally.wrong[0].chars().take(200).collect::<String>());
}
