//! `ferry demo`: a live migration of an image in use, shown as it happens and checked to the byte.
//!
//! Everything is done by the program itself, called as a user calls it, in a directory that is gone afterwards: two pools in two
//! stores, an image with snapshots, a node that is killed with SIGKILL in the middle of the copy, and a client of NBD that writes
//! from before the first step until after the last.

mod client;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use client::{BLOCK, Connection, Promises, Writer, content};

/// Size of the image. Bytes.
const SIZE: u64 = 256 << 20;

/// Bytes of it that hold data before the client comes: every other object of 4 MiB.
const PIECE: u64 = 4 << 20;

/// How fast the copy goes, so that there is a middle to be killed in. Bytes in a second.
const COPY_RATE: &str = "48M";

/// Per cent of the copy after which the node is killed.
const KILL_AT: u64 = 40;

/// How long one step may take.
const STEP_MAX: Duration = Duration::from_secs(60);

/// The name the client knows the image by.
const EXPORT: &str = "vm";

/// Why the demo failed, in a sentence.
#[derive(Debug)]
pub(crate) struct Failed(String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

fn failed<T>(what: impl Into<String>) -> Result<T, Failed> {
    Err(Failed(what.into()))
}

/// Runs it; tells on `out`.
pub(crate) fn run(out: &mut dyn Write) -> Result<(), Failed> {
    let dir = tempfile::Builder::new().prefix("ferry-demo-").tempdir()?;
    let mut demo =
        Demo { program: std::env::current_exe()?, dir: dir.path().to_owned(), out, began: Instant::now() };
    let done = demo.play();
    let seconds = demo.began.elapsed().as_secs_f32();
    match &done {
        Ok(()) => writeln!(
            out,
            "\nEvery byte the client was promised is there. {seconds:.1} seconds; nothing is left behind."
        )?,
        Err(_) => writeln!(out, "\nThe demo failed after {seconds:.1} seconds.")?,
    }
    dir.close()?;
    done
}

struct Demo<'a> {
    program: PathBuf,
    dir: PathBuf,
    out: &'a mut dyn Write,
    began: Instant,
}

/// A node; killed when it is forgotten.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        // It may have been killed already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Demo<'_> {
    fn play(&mut self) -> Result<(), Failed> {
        self.title("Two pools in two stores, and an image with history")?;
        let disk = self.make_disk()?;
        self.ferry("pool create here")?;
        self.ferry("pool create there --path other-store")?;
        self.ferry("import disk.raw here/vm --no-progress")?;
        self.ferry("snap create here/vm@monday --no-progress")?;

        self.title("A node offers it, and a client writes to it from now on")?;
        let node = self.node()?;
        self.ferry(&format!("export add here/vm --name {EXPORT}"))?;
        let writer = Writer::start(self.socket(), EXPORT, SIZE / BLOCK as u64)?;
        self.writes(&writer, 300)?;
        self.ferry("snap create here/vm@tuesday --no-progress")?;
        self.quiet("export here/vm@tuesday tuesday-before.raw --no-progress")?;

        self.title("The image moves to the other store, in objects of 1 MiB, under the client")?;
        self.ferry("migration prepare here/vm there/vm --object-size 1M")?;
        self.writes(&writer, 300)?;
        self.ferry("status there/vm")?;
        let node = self.copy_and_kill(node, &writer)?;

        self.title("Both ends are compared, and the source goes")?;
        self.ferry("migration verify there/vm --no-progress")?;
        self.ferry("migration commit there/vm --no-progress")?;
        self.writes(&writer, 300)?;

        self.title("What the client was promised, byte by byte")?;
        let promises = writer.stop()?;
        self.check(&promises, &disk)?;
        drop(node);
        Ok(())
    }

    fn title(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "\n== {text}")?;
        self.out.flush()
    }

    fn say(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "   {text}")?;
        self.out.flush()
    }

    /// The program, in the directory of the demo and with its home there.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.args(line.split_whitespace()).current_dir(&self.dir).env("FERRY_HOME", self.dir.join("home"));
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command and shows it.
    fn ferry(&mut self, line: &str) -> Result<String, Failed> {
        writeln!(self.out, "$ ferry {line}")?;
        self.out.flush()?;
        let (out, err) = self.quiet(line)?;
        // What was written over on a terminal is not shown.
        let notes = err.lines().map(|l| l.rsplit('\r').next().unwrap_or(l).to_owned());
        for text in out.lines().map(str::to_owned).chain(notes).filter(|l| !l.is_empty()) {
            self.say(&text)?;
        }
        Ok(out)
    }

    /// Runs a command; what it wrote.
    fn quiet(&self, line: &str) -> Result<(String, String), Failed> {
        let output = self.command(line).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        if output.status.success() { Ok((out, err)) } else { failed(format!("`ferry {line}` failed: {err}")) }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("home/nbd.sock")
    }

    /// Starts a node and waits until it takes commands.
    fn node(&mut self) -> Result<Node, Failed> {
        writeln!(self.out, "$ ferry serve &")?;
        let log = File::create(self.dir.join("node.log"))?;
        let mut child = self.command("serve").stdout(Stdio::piped()).stderr(log).spawn()?;
        let ready = child.stdout.take();
        let node = Node(child);
        let mut line = String::new();
        if let Some(ready) = ready {
            BufReader::new(ready).read_line(&mut line)?;
        }
        if !line.starts_with("ferry serves") {
            let log = fs::read_to_string(self.dir.join("node.log"))?;
            return failed(format!("the node does not start: {log}"));
        }
        self.say(&format!("process {}", node.0.id()))?;
        Ok(node)
    }

    /// Waits until the client has written so many blocks more.
    fn writes(&mut self, writer: &Writer, more: u64) -> Result<(), Failed> {
        let (from, began) = (writer.writes(), Instant::now());
        while writer.writes() < from + more {
            if writer.has_ended() || began.elapsed() > STEP_MAX {
                return failed("the client does not get on");
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(self.say(&format!("the client goes on: {} blocks written", writer.writes()))?)
    }

    /// Copies, kills the node in the middle, and lets the next one go on.
    fn copy_and_kill(&mut self, node: Node, writer: &Writer) -> Result<Node, Failed> {
        let line = format!("migration execute there/vm --limit {COPY_RATE} --no-progress");
        writeln!(self.out, "$ ferry {line} &")?;
        let mut asker = self.command(&line).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let began = Instant::now();
        let percent = loop {
            let percent = self.percent()?;
            if percent.is_some_and(|p| p >= KILL_AT) {
                break percent.unwrap_or_default();
            }
            if began.elapsed() > STEP_MAX {
                return failed("the copy does not get on");
            }
            thread::sleep(Duration::from_millis(20));
        };
        let pid = node.0.id();
        // `kill` is SIGKILL.
        drop(node);
        asker.wait()?;
        self.say(&format!("process {pid} gets SIGKILL at {percent}% of the copy"))?;
        let node = self.node()?;
        self.writes(writer, 100)?;
        self.ferry("job ls")?;
        self.ferry("job attach 1 --no-progress")?;
        self.ferry("status there/vm")?;
        Ok(node)
    }

    /// How far the copy is.
    fn percent(&self) -> Result<Option<u64>, Failed> {
        let (status, _) = self.quiet("status there/vm")?;
        let (Some((_, after)), true) = (status.split_once("executing ("), true) else { return Ok(None) };
        Ok(after.split('%').next().and_then(|p| p.parse().ok()))
    }

    /// Makes the file that is imported: data in every other piece, holes between.
    fn make_disk(&mut self) -> Result<Vec<u8>, Failed> {
        let file = File::create(self.dir.join("disk.raw"))?;
        file.set_len(SIZE)?;
        let mut disk =
            vec![0; usize::try_from(SIZE).map_err(|_| Failed("the machine is too small".to_owned()))?];
        for (block, bytes) in (0..).zip(disk.chunks_exact_mut(BLOCK)) {
            if (block * BLOCK as u64 / PIECE).is_multiple_of(2) {
                bytes.copy_from_slice(&content(block, 0));
                file.write_all_at(bytes, block * BLOCK as u64)?;
            }
        }
        self.say(&format!("disk.raw: {} MiB, half of it data", SIZE >> 20))?;
        Ok(disk)
    }

    fn check(&mut self, promises: &Promises, disk: &[u8]) -> Result<(), Failed> {
        self.say(&format!(
            "{} writes, {} blocks flushed; the server was gone {} time(s), for {} ms at most; the slowest request else took {} ms",
            promises.writes,
            promises.flushed.len(),
            promises.reconnects,
            promises.longest_gap.as_millis(),
            promises.slowest.as_millis(),
        ))?;
        if promises.reconnects == 0 {
            return failed("the node was not killed under the client");
        }
        let mut reader = Connection::open(&self.socket(), EXPORT)?;
        for (block, original) in (0..).zip(disk.chunks_exact(BLOCK)) {
            let read = reader.read(block)?;
            let (expected, by) = match promises.flushed.get(&block) {
                Some(number) => (content(block, *number).to_vec(), format!("write {number}")),
                None => (original.to_vec(), "the import".to_owned()),
            };
            if read[..] != expected[..] {
                return failed(format!("block {block} is not what {by} left there"));
            }
        }
        self.say(&format!("the image: {} blocks, all right", SIZE / BLOCK as u64))?;
        drop(reader);
        for (snap, file) in [("monday", "disk.raw"), ("tuesday", "tuesday-before.raw")] {
            let exported = format!("{snap}.raw");
            self.quiet(&format!("export there/vm@{snap} {exported} --no-progress"))?;
            if !same(&self.dir.join(file), &self.dir.join(&exported))? {
                return failed(format!("snapshot {snap} is not what it was"));
            }
            self.say(&format!("snapshot {snap}: all right"))?;
        }
        self.ferry("check here")?;
        self.ferry("check there")?;
        let left = self.quiet("ls here")?.0 + &self.quiet("trash ls --all here")?.0;
        if left.is_empty() { Ok(()) } else { failed(format!("something of the source is left: {left}")) }
    }
}

/// Whether two files hold the same bytes.
fn same(a: &Path, b: &Path) -> io::Result<bool> {
    let (mut a, mut b) = (BufReader::new(File::open(a)?), BufReader::new(File::open(b)?));
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let n = a.read(&mut left)?;
        if n == 0 {
            return Ok(b.read(&mut right)? == 0);
        }
        match b.read_exact(&mut right[..n]) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            other => other?,
        }
        if left[..n] != right[..n] {
            return Ok(false);
        }
    }
}
