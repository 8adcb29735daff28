//! What happens while a command runs, and the files it works on.

use std::fmt;
use std::fs::File;

use super::BenchRow;

/// How a step that showed progress ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It failed.
    Failed,
}

/// Hears what happens while a command runs. Implementations decide what is shown.
pub trait Events: Send + Sync + fmt::Debug {
    /// `done` of `total` of the step called `title`.
    fn progress(&self, title: &'static str, done: u64, total: u64);
    /// The step is over.
    fn finished(&self, title: &'static str, outcome: Outcome);
    /// A line for people, beside the result.
    fn note(&self, line: &str);
    /// A line that helps, where there is room for more than what `rbd` says.
    fn advise(&self, line: &str);
    /// A line of the result that cannot wait for the end.
    fn say(&self, line: &str);
    /// A row of a measurement.
    fn measured(&self, row: &BenchRow);
}

/// One step that shows progress. Dropped without [`Progress::done`] it counts as failed.
#[derive(Debug)]
pub struct Progress<'a> {
    events: &'a dyn Events,
    title: &'static str,
    over: bool,
}

impl<'a> Progress<'a> {
    /// Starts a step.
    #[must_use]
    pub fn start(events: &'a dyn Events, title: &'static str) -> Self {
        Self { events, title, over: false }
    }

    /// Tells how far it is.
    pub fn at(&self, done: u64, total: u64) {
        self.events.progress(self.title, done, total);
    }

    /// Ends it well.
    pub fn done(mut self) {
        self.over = true;
        self.events.finished(self.title, Outcome::Done);
    }

    /// Ends it without a word: there was nothing to do.
    pub fn silent(mut self) {
        self.over = true;
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.events.finished(self.title, Outcome::Failed);
        }
    }
}

/// The files of a command. Standard input and output count as files here.
#[derive(Debug, Default)]
pub struct Streams {
    /// What is read.
    pub input: Option<File>,
    /// The second file that is read, where a command reads two.
    pub second: Option<File>,
    /// What is written.
    pub output: Option<File>,
}
