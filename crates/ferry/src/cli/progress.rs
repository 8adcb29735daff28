//! What is shown while a command runs: progress and notes on stderr, rows of a measurement on stdout.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use ferry_node::api::{BenchPattern, BenchRow, BenchType, Command, Events, Outcome};

use super::output::{Node, Program, Spread};
use super::report;

/// The variable that asks for progress and notes as lines of JSON.
const JSON_VARIABLE: &str = "FERRY_PROGRESS";

/// Shows what happens, in the words of `rbd`.
///
/// A stderr or stdout that cannot be written to any more does not stop the command.
#[derive(Debug)]
pub(crate) struct Reporter {
    program: Program,
    shows_progress: bool,
    is_terminal: bool,
    /// Whether everything on stderr is a line of JSON.
    is_json: bool,
    /// What is said before the first row of a measurement.
    heading: Mutex<Option<String>>,
    /// The last percentage shown of each step.
    shown: Mutex<BTreeMap<String, u64>>,
}

impl Reporter {
    /// Shows progress of `command`, if it is wanted.
    pub(crate) fn new(program: Program, shows_progress: bool, command: &Command) -> Self {
        Self {
            program,
            shows_progress,
            is_terminal: super::stderr_is_terminal(),
            is_json: std::env::var_os(JSON_VARIABLE).is_some_and(|value| value == "json"),
            heading: Mutex::new(bench_heading(command)),
            shown: Mutex::default(),
        }
    }

    /// The text for a step that is `done` of `total`, if it has moved by a percent.
    fn step(&self, title: &str, done: u64, total: u64) -> Option<String> {
        let percent =
            u64::try_from(u128::from(done) * 100 / u128::from(total.max(1))).unwrap_or(100).min(100);
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let last = shown.entry(title.to_owned()).or_default();
        if percent <= *last {
            return None;
        }
        *last = percent;
        if self.is_json {
            let counts = [("done", done), ("total", total), ("percent", percent)];
            let counts = counts.map(|(name, count)| Node::number(name, count));
            return Some(json_line([Node::text("step", title)].into_iter().chain(counts)));
        }
        Some(format!("\r{title}: {percent}% complete..."))
    }

    /// The text for the end of a step.
    fn end(&self, title: &str, outcome: Outcome) -> String {
        let last =
            self.shown.lock().unwrap_or_else(PoisonError::into_inner).remove(title).unwrap_or_default();
        if self.is_json {
            let (percent, outcome) = match outcome {
                Outcome::Done => (100, "done"),
                Outcome::Failed => (last, "failed"),
            };
            let outcome = Node::text("outcome", outcome);
            return json_line([Node::text("step", title), Node::number("percent", percent), outcome]);
        }
        match outcome {
            Outcome::Done => format!("\r{title}: 100% complete...done.\n"),
            Outcome::Failed => format!("\r{title}: {last}% complete...failed.\n"),
        }
    }
}

/// The first lines of a measurement.
fn bench_heading(command: &Command) -> Option<String> {
    let Command::Bench { io_type, io_size, io_threads, io_total, pattern, read_percent, .. } = command else {
        return None;
    };
    let (kind, mix) = match io_type {
        BenchType::Read => ("read", String::new()),
        BenchType::Write => ("write", String::new()),
        BenchType::ReadWrite => {
            ("readwrite", format!(" read:write={read_percent}:{}", 100_u64.saturating_sub(*read_percent)))
        }
    };
    let pattern = match pattern {
        BenchPattern::Random => "random",
        BenchPattern::Sequential => "sequential",
        BenchPattern::FullSequential => "full sequential",
    };
    Some(format!(
        "bench  type {kind}{mix} io_size {io_size} io_threads {io_threads} bytes {io_total} pattern {pattern}\n  \
         SEC       OPS   OPS/SEC   BYTES/SEC\n"
    ))
}

/// An object of JSON on a line of its own.
fn json_line(members: impl IntoIterator<Item = Node>) -> String {
    let text = Node::object("", members.into_iter().collect()).json(Spread::Compact);
    format!("{}\n", text.trim_end())
}

/// Writes to stderr, whatever comes of it.
fn tell(text: &str) {
    let mut err = io::stderr().lock();
    drop(err.write_all(text.as_bytes()).and_then(|()| err.flush()));
}

/// Writes to stdout, whatever comes of it: the end of the command meets the same failure and reports it.
fn answer(text: &str) {
    let mut out = io::stdout().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

impl Events for Reporter {
    fn progress(&self, title: &str, done: u64, total: u64) {
        if self.shows_progress
            && let Some(text) = self.step(title, done, total)
        {
            tell(&text);
        }
    }

    fn finished(&self, title: &str, outcome: Outcome) {
        let text = self.end(title, outcome);
        if self.shows_progress {
            tell(&text);
        }
    }

    fn note(&self, line: &str) {
        if self.is_json {
            return tell(&json_line([Node::text("note", line)]));
        }
        // A line must not begin in the middle of a progress line.
        let shown = !self.shown.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        let start = if shown && self.shows_progress && self.is_terminal { "\n" } else { "" };
        tell(&format!("{start}{line}\n"));
    }

    fn advise(&self, line: &str) {
        match self.program {
            Program::Ferry => self.note(line),
            Program::Rbd => {}
        }
    }

    fn say(&self, line: &str) {
        answer(&format!("{line}\n"));
    }

    fn measured(&self, row: &BenchRow) {
        let heading = self.heading.lock().unwrap_or_else(PoisonError::into_inner).take();
        match heading {
            Some(heading) => answer(&heading),
            None => answer(&format!("{}\n", report::bench_row(row))),
        }
    }
}

#[cfg(test)]
mod tests {
    use ferry_node::api::{Command, Outcome};

    use super::super::output::Program;
    use super::Reporter;

    #[test]
    fn progress_is_shown_once_for_each_percent() {
        let reporter = Reporter::new(Program::Ferry, true, &Command::Check { pool: None });
        assert_eq!(reporter.step("Image copy", 0, 400), None);
        assert_eq!(reporter.step("Image copy", 4, 400).as_deref(), Some("\rImage copy: 1% complete..."));
        assert_eq!(reporter.step("Image copy", 7, 400), None);
        assert_eq!(reporter.end("Image copy", Outcome::Failed), "\rImage copy: 1% complete...failed.\n");
        assert_eq!(reporter.end("Image copy", Outcome::Done), "\rImage copy: 100% complete...done.\n");
    }

    #[test]
    fn progress_comes_as_json_where_that_is_asked_for() {
        let reporter =
            Reporter { is_json: true, ..Reporter::new(Program::Ferry, true, &Command::Check { pool: None }) };
        assert_eq!(
            reporter.step("Image copy", 4, 400).as_deref(),
            Some("{\"step\":\"Image copy\",\"done\":4,\"total\":400,\"percent\":1}\n")
        );
        assert_eq!(
            reporter.end("Image copy", Outcome::Failed),
            "{\"step\":\"Image copy\",\"percent\":1,\"outcome\":\"failed\"}\n"
        );
    }

    #[test]
    fn nothing_of_nothing_is_no_progress() {
        let reporter = Reporter::new(Program::Ferry, true, &Command::Check { pool: None });
        assert_eq!(reporter.step("Image copy", 0, 0), None);
    }
}
