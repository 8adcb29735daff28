//! One step: a command whose output is shown as it comes, kept, and timed.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// What a step did.
#[derive(Debug)]
pub(crate) struct Done {
    /// Its name.
    pub(crate) name: &'static str,
    /// Whether it succeeded.
    pub(crate) ok: bool,
    /// How long it took.
    pub(crate) took: Duration,
    /// All lines it printed.
    pub(crate) lines: Vec<String>,
}

/// Which lines of a step are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// All of them.
    All,
    /// Those that tell of failures, and all behind the summary.
    Verdicts,
}

/// Words in lines that are always shown.
const VERDICTS: &[&str] =
    &["FAIL", "SIGABRT", "SIGSEGV", "TIMEOUT", "SLOW", "SKIPPED ", "error", "Starting ", "panicked"];

/// Runs a command as a step.
///
/// # Errors
/// Those of starting it; a command that fails is no error but a step that is not `ok`.
pub(crate) fn run(name: &'static str, command: &mut Command, shown: Shown) -> io::Result<Done> {
    writeln!(io::stderr(), "==> {name}: {}", text_of(command))?;
    let began = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (sender, receiver) = mpsc::sync_channel(1024);
    let readers = [
        child.stdout.take().map(|out| spawn_reader(out, sender.clone())),
        child.stderr.take().map(|err| spawn_reader(err, sender)),
    ];
    let mut lines = Vec::new();
    let mut shows_all = shown == Shown::All;
    for line in receiver {
        shows_all |= line.trim_start().starts_with("Summary ");
        if shows_all || VERDICTS.iter().any(|word| line.contains(word)) {
            writeln!(io::stderr(), "{line}")?;
        }
        lines.push(line);
    }
    for reader in readers.into_iter().flatten() {
        drop(reader.join());
    }
    let status: ExitStatus = child.wait()?;
    Ok(Done { name, ok: status.success(), took: began.elapsed(), lines })
}

/// Sends the lines of a stream until it ends.
fn spawn_reader(
    stream: impl Read + Send + 'static,
    sender: mpsc::SyncSender<String>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(text).is_err() {
                return;
            }
            line.clear();
        }
    })
}

/// A command as one would type it.
fn text_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
