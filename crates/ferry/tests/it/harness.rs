//! A home of its own for each test, and the program run in it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError::Timeout};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

/// A command that takes longer hangs. The longest here take a second, waiting for an owner 30.
const HANG: Duration = Duration::from_secs(90);

/// As which program to call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Ferry,
    Rbd,
}

/// A directory with a ferry home in it.
#[derive(Debug)]
pub(crate) struct Home {
    node: Mutex<Option<Node>>,
    dir: PathBuf,
    /// Removes the directory, where it was made for this home.
    _made: Option<TempDir>,
}

/// A node that serves the home.
#[derive(Debug)]
pub(crate) struct Node {
    child: Child,
    pid: u32,
}

impl Node {
    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends it as a power cut of the process would.
    pub(crate) fn kill(mut self) {
        self.signal("-KILL");
        self.child.wait().unwrap();
    }

    /// Stops it in good order; how it ended.
    pub(crate) fn stop(mut self) -> i32 {
        self.signal("-TERM");
        self.child.wait().unwrap().code().unwrap_or(-1)
    }

    fn signal(&self, signal: &str) {
        Command::new("kill").args([signal, &self.pid.to_string()]).status().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have been ended already: then its number may be another's, and is left alone.
        if let Ok(None) = self.child.try_wait() {
            self.signal("-KILL");
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// What a run gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) out: String,
    /// Without progress: whatever ends in `\r` was written over.
    pub(crate) err: String,
}

impl Home {
    /// A home without pools.
    pub(crate) fn empty() -> Self {
        let made = tempfile::tempdir().unwrap();
        let home = Self::at(made.path());
        Self { _made: Some(made), ..home }
    }

    /// The home in `dir`, which may be there already and is not removed.
    pub(crate) fn at(dir: &Path) -> Self {
        for name in ["rbd", "ferry"] {
            // A copy of a home has them.
            drop(fs::remove_file(dir.join(name)));
            symlink(env!("CARGO_BIN_EXE_ferry"), dir.join(name)).unwrap();
        }
        Self { node: Mutex::default(), dir: dir.to_owned(), _made: None }
    }

    /// A home with the pool `rbd`. With `FERRY_TEST_SERVED=1` in the environment a node serves it: every test must come out
    /// the same.
    pub(crate) fn new() -> Self {
        let home = Self::empty();
        home.ok("pool create rbd");
        if std::env::var("FERRY_TEST_SERVED").is_ok_and(|v| v == "1") {
            *home.node.lock().unwrap() = Some(home.serve());
        }
        home
    }

    /// Starts a node on the home and waits until it is ready.
    pub(crate) fn serve(&self) -> Node {
        self.serve_with(&[])
    }

    /// Starts a node with options and waits until it is ready.
    pub(crate) fn serve_with(&self, options: &[&str]) -> Node {
        self.try_serve(&[], options).unwrap()
    }

    /// Starts a node on the home, run by the program `under`, and waits until it is ready; what it said where it does not start.
    pub(crate) fn try_serve(&self, under: &[&str], options: &[&str]) -> Result<Node, String> {
        // The one that every test is to come out the same with.
        if let Some(node) = self.node.lock().unwrap().take() {
            assert_eq!(node.stop(), 0, "{}", self.log());
        }
        let plain = self.command(Name::Ferry);
        let mut command = match under {
            [] => plain,
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(plain.get_program()).current_dir(self.dir()).stdin(Stdio::null());
                for (name, value) in plain.get_envs() {
                    match value {
                        Some(value) => command.env(name, value),
                        None => command.env_remove(name),
                    };
                }
                command
            }
        };
        let log = fs::File::create(self.path("node.log")).unwrap();
        let mut child =
            command.arg("serve").args(options).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        // Under another program the node is the child of the child.
        let pid = fs::read_to_string(self.path("home/owner")).ok().and_then(|text| text.trim().parse().ok());
        let pid = pid.filter(|_| !under.is_empty()).unwrap_or(child.id());
        let node = Node { child, pid };
        if line.starts_with("ferry serves ") { Ok(node) } else { Err(format!("{line}{}", self.log())) }
    }

    /// What the last node logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("node.log")).unwrap()
    }

    /// Where commands run.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path where commands run.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// The program with its environment, without arguments.
    pub(crate) fn command(&self, name: Name) -> Command {
        let program = match name {
            Name::Ferry => "ferry",
            Name::Rbd => "rbd",
        };
        let mut command = Command::new(self.path(program));
        command
            .current_dir(self.dir())
            .env("FERRY_HOME", self.path("home"))
            .env("TZ", "UTC")
            .env_remove("CEPH_ARGS")
            // A cluster of this machine is none of these tests' business.
            .env("CEPH_CONF", self.path("no.conf"))
            .stdin(Stdio::null());
        command
    }

    /// Runs a line of words.
    pub(crate) fn run(&self, name: Name, line: &str) -> Run {
        let mut command = self.command(name);
        let child = command
            .args(line.split_whitespace())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Run::of(&finish(child, line, self.dir()))
    }

    /// Runs as ferry; it must succeed. Gives stdout.
    pub(crate) fn ok(&self, line: &str) -> String {
        let run = self.run(Name::Ferry, line);
        assert_eq!(run.code, 0, "ferry {line}: {run:?}");
        run.out
    }

    /// Runs as `rbd`; it must fail. Gives the exit code and stderr without progress.
    pub(crate) fn rbd_fails(&self, line: &str) -> (i32, String) {
        let run = self.run(Name::Rbd, line);
        assert_ne!(run.code, 0, "rbd {line}: {run:?}");
        (run.code, run.err)
    }

    /// Runs as ferry; it must fail. Gives the exit code and stderr without progress.
    pub(crate) fn fails(&self, line: &str) -> (i32, String) {
        let run = self.run(Name::Ferry, line);
        assert_ne!(run.code, 0, "ferry {line}: {run:?}");
        (run.code, run.err)
    }

    /// Writes a file of `size` bytes with `data` at each of `offsets` and holes elsewhere.
    pub(crate) fn sparse_file(&self, name: &str, size: u64, parts: &[(u64, &[u8])]) -> PathBuf {
        use std::os::unix::fs::FileExt;
        let path = self.path(name);
        let file = fs::File::create(&path).unwrap();
        file.set_len(size).unwrap();
        for (offset, data) in parts {
            file.write_all_at(data, *offset).unwrap();
        }
        path
    }

    /// A store is whole.
    pub(crate) fn check(&self) {
        let report = self.ok("check");
        assert!(report.ends_with("no damage found\n"), "{report}");
    }
}

impl Run {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Self {
            code: output.status.code().unwrap_or(-1),
            out: text(&output.stdout),
            err: without_progress(&text(&output.stderr)),
        }
    }
}

/// Waits for a command run in the home in `dir`, and kills one that hangs, having asked what it and the node do.
fn finish(child: Child, line: &str, dir: &Path) -> Output {
    let (pid, dir) = (child.id(), dir.to_owned());
    let (done, waiting) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        let mut waited = 0;
        let hangs = loop {
            if waiting.recv_timeout(Duration::from_secs(1)) != Err(Timeout) {
                break false;
            }
            // While they are halted from outside, nothing hangs.
            waited += u64::from(!states(&dir, pid).iter().any(|(_, _, state)| state.contains("(stopped)")));
            if waited >= HANG.as_secs() {
                break true;
            }
        };
        let seen = hangs.then(|| what_they_do(&dir, pid));
        if hangs {
            Command::new("kill").arg(pid.to_string()).status().unwrap();
        }
        seen
    });
    let output = child.wait_with_output().unwrap();
    drop(done);
    if let Some(seen) = watchdog.join().unwrap() {
        panic!("{line} hangs: {output:?}\n{seen}");
    }
    output
}

/// A command and the node of the home in `dir`: which process, and what the system says of it.
fn states(dir: &Path, command: u32) -> [(&'static str, String, String); 2] {
    let owner = fs::read_to_string(dir.join("home/owner")).unwrap_or_default();
    [("command", command.to_string()), ("node", owner.trim().to_owned())].map(|(who, pid)| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let state = status.lines().find(|l| l.starts_with("State:")).unwrap_or("gone").to_owned();
        (who, pid, state)
    })
}

/// What a command that hangs and the node of its home do: their states, the stacks of their threads where `gdb` is there, the jobs
/// of the node and the end of its log.
fn what_they_do(dir: &Path, command: u32) -> String {
    let mut seen = String::new();
    for (who, pid, state) in states(dir, command) {
        seen += &format!("-- {who} {pid}: {state}\n");
        let arguments = ["20", "gdb", "-p", &pid, "-batch", "-ex", "thread apply all bt 24"];
        let stacks = Command::new("timeout").args(arguments).output();
        let stacks =
            stacks.map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stdout).into_owned());
        let telling = stacks.lines().filter(|l| l.starts_with("Thread ") || l.starts_with('#'));
        telling.for_each(|l| seen += &format!("{l}\n"));
    }
    let jobs = Command::new("timeout")
        .args(["5", "./ferry", "job", "ls"])
        .current_dir(dir)
        .env("FERRY_HOME", dir.join("home"))
        .output();
    seen += &format!("-- jobs: {:?}\n", jobs.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()));
    let log = fs::read_to_string(dir.join("node.log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    seen + "-- log:\n" + &lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Leaves out lines of progress.
fn without_progress(text: &str) -> String {
    let shown = text.split_inclusive('\n').filter(|line| !line.starts_with('\r'));
    shown.collect()
}

/// Bytes that look like nothing in particular, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

/// The root of the sources.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Asserts that `docs/SEMANTICS.md` promises what a test proves.
pub(crate) fn promised(sentence: &str) {
    let text = fs::read_to_string(root().join("docs/SEMANTICS.md")).unwrap();
    let flat: Vec<&str> = text.split_whitespace().collect();
    assert!(flat.join(" ").contains(sentence), "docs/SEMANTICS.md does not say: {sentence}");
}

/// Bytes a file takes on its disk.
pub(crate) fn bytes_on_disk(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).unwrap().blocks() * 512
}
