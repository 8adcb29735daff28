//! What happens while a command runs, and the files it works on.

use std::fmt;
use std::fs::File;
use std::io;

use serde::{Deserialize, Serialize};

use super::BenchRow;

/// How a step that showed progress ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It failed.
    Failed,
}

/// Hears what happens while a command runs. Implementations decide what is shown.
pub trait Events: Send + Sync + fmt::Debug {
    /// `done` of `total` of the step called `title`.
    fn progress(&self, title: &str, done: u64, total: u64);
    /// The step is over.
    fn finished(&self, title: &str, outcome: Outcome);
    /// A line for people, beside the result.
    fn note(&self, line: &str);
    /// A line that helps, where there is room for more than what `rbd` says.
    fn advise(&self, line: &str);
    /// A line of the result that cannot wait for the end.
    fn say(&self, line: &str);
    /// A row of a measurement.
    fn measured(&self, row: &BenchRow);
}

/// Something that happened, to be told elsewhere or later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// A step moved: its title, how much is done, how much there is.
    Progress(String, u64, u64),
    /// A step is over.
    Finished(String, Outcome),
    /// A line for people.
    Note(String),
    /// A line that helps.
    Advise(String),
    /// A line of the result.
    Say(String),
    /// A row of a measurement.
    Measured(BenchRow),
}

impl Event {
    /// Tells it.
    pub fn tell(&self, events: &dyn Events) {
        match self {
            Self::Progress(title, done, total) => events.progress(title, *done, *total),
            Self::Finished(title, outcome) => events.finished(title, *outcome),
            Self::Note(line) => events.note(line),
            Self::Advise(line) => events.advise(line),
            Self::Say(line) => events.say(line),
            Self::Measured(row) => events.measured(row),
        }
    }
}

/// Hears what happens as values.
pub trait Hears: Send + Sync + fmt::Debug {
    /// It happened.
    fn hear(&self, event: Event);
}

impl<T: Hears> Events for T {
    fn progress(&self, title: &str, done: u64, total: u64) {
        self.hear(Event::Progress(title.to_owned(), done, total));
    }

    fn finished(&self, title: &str, outcome: Outcome) {
        self.hear(Event::Finished(title.to_owned(), outcome));
    }

    fn note(&self, line: &str) {
        self.hear(Event::Note(line.to_owned()));
    }

    fn advise(&self, line: &str) {
        self.hear(Event::Advise(line.to_owned()));
    }

    fn say(&self, line: &str) {
        self.hear(Event::Say(line.to_owned()));
    }

    fn measured(&self, row: &BenchRow) {
        self.hear(Event::Measured(*row));
    }
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

impl Streams {
    /// The same files once more.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn try_clone(&self) -> io::Result<Self> {
        let again = |file: &Option<File>| file.as_ref().map(File::try_clone).transpose();
        Ok(Self { input: again(&self.input)?, second: again(&self.second)?, output: again(&self.output)? })
    }
}
