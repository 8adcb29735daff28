//! Real processes that are killed, and a file system whose power is cut: nothing flushed is missing.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SIM: &str = env!("CARGO_BIN_EXE_ferry-sim");

/// A writer running beside us, and the last number it said was durable.
struct Load {
    child: Child,
    durable: Arc<AtomicU64>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(store: &Path, from: u64) -> Self {
        let mut child = Command::new(SIM)
            .arg("load")
            .arg(store)
            .arg(from.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let durable = Arc::new(AtomicU64::new(from.saturating_sub(1)));
        let (lines, seen) = (BufReader::new(child.stdout.take().unwrap()).lines(), Arc::clone(&durable));
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                match line.parse() {
                    Ok(n) => seen.store(n, Ordering::SeqCst),
                    Err(_) => panic!("the writer failed: {line}"),
                }
            }
        });
        Self { child, durable, reader: Some(reader) }
    }

    fn durable(&self) -> u64 {
        self.durable.load(Ordering::SeqCst)
    }

    /// Kills the writer and returns the last number it said was durable.
    fn kill(mut self) -> u64 {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        self.durable()
    }
}

fn verify(store: &Path, durable: u64) -> String {
    let output = Command::new(SIM).arg("verify").arg(store).arg(durable.to_string()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "durable up to {durable}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

fn pause(round: u64) {
    std::thread::sleep(Duration::from_millis(30 + round * 37 % 220));
}

#[test]
fn nothing_flushed_is_missing_after_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    let mut next = 0;
    for round in 0..20 {
        let load = Load::start(&store, next);
        pause(round);
        while load.durable() < next + 50 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let durable = load.kill();
        verify(&store, durable);
        // Going on behind it writes the same numbers again to whatever was in flight.
        next = durable + 1;
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// A file system in a file, mounted until it is dropped.
struct Mounted {
    at: PathBuf,
}

impl Mounted {
    fn new(file: &Path, at: PathBuf) -> Result<Self, String> {
        std::fs::create_dir_all(&at).map_err(|e| e.to_string())?;
        run("mount", &["-o", "loop", &file.display().to_string(), &at.display().to_string()])?;
        Ok(Self { at })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A writer that was just killed may take a moment to let go.
        for _ in 0..50 {
            if run("umount", &[&self.at.display().to_string()]).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn image(file: &Path, bytes: u64, mkfs: &[&str]) {
    std::fs::File::create(file).unwrap().set_len(bytes).unwrap();
    let path = file.display().to_string();
    let arguments: Vec<&str> = mkfs[1..].iter().copied().chain([path.as_str()]).collect();
    run(mkfs[0], &arguments).unwrap();
}

#[test]
fn nothing_flushed_is_missing_after_a_power_cut() {
    let directory = tempfile::tempdir().unwrap();
    let known = std::fs::read_to_string("/proc/filesystems").unwrap();
    for name in ["xfs", "ext4"] {
        let there = known.lines().any(|l| l.trim() == name) || run("modprobe", &[name]).is_ok();
        if !there {
            println!("SKIPPED nothing_flushed_is_missing_after_a_power_cut: the kernel has no {name}");
            return;
        }
    }
    // Copies by reflink freeze the medium of the file system under load at one moment, as a power cut does.
    let outer_file = directory.path().join("outer");
    image(&outer_file, 2 << 30, &["mkfs.xfs", "-q", "-m", "reflink=1"]);
    let outer = Mounted::new(&outer_file, directory.path().join("xfs")).unwrap();
    let medium = outer.at.join("medium");
    image(&medium, 256 << 20, &["mkfs.ext4", "-q", "-F"]);
    let inner = Mounted::new(&medium, directory.path().join("ext4")).unwrap();
    let load = Load::start(&inner.at.join("store"), 0);
    let mut given_up = 0;
    for round in 0..20 {
        pause(round);
        while load.durable() < 100 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let durable = load.durable();
        let cut = outer.at.join("cut");
        let (from, to) = (medium.display().to_string(), cut.display().to_string());
        run("cp", &["--reflink=always", &from, &to]).unwrap();
        let after = Mounted::new(&cut, directory.path().join("after")).unwrap();
        let text = verify(&after.at.join("store"), durable);
        given_up += u32::from(!text.contains(" 0 bytes given up"));
        drop(after);
        std::fs::remove_file(&cut).unwrap();
    }
    println!("20 cuts, {given_up} of them with un-flushed bytes to give up");
    load.kill();
}
