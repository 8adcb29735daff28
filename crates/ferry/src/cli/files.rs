//! The files of a command: opened here, with the rights and the directory of whoever called.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use ferry_core::{Errno, Error};
use ferry_node::api::{Command, Failure, Progress, Streams, TransferCommand};

use super::open_failed;
use super::progress::Reporter;

/// The one last line of `rbd` that tells no error number.
const MERGE_FAILED: &str = "rbd: merge-diff error";

/// Of commands of which `rbd` only says that the file cannot be opened.
const OPEN_FAILED: &str = "rbd: error opening";

/// Names of the files of a command; `-` is standard input or output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Files {
    /// What is read.
    pub(crate) input: Option<String>,
    /// The second file that is read.
    pub(crate) second: Option<String>,
    /// What is written; a file of that name must not exist yet.
    pub(crate) output: Option<String>,
}

/// Opened files. A new file is removed again unless it is kept.
#[derive(Debug)]
pub(crate) struct Opened {
    streams: Streams,
    created: Option<String>,
}

impl Opened {
    /// The files, once.
    pub(crate) fn streams(&mut self) -> Streams {
        std::mem::take(&mut self.streams)
    }

    /// Keeps the file that was made.
    pub(crate) fn keep(&mut self) {
        self.created = None;
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(path) = self.created.take() {
            // Half an export must not look like a whole one. What cannot be removed was not made by us.
            drop(std::fs::remove_file(path));
        }
    }
}

/// What `rbd` calls the command in its last line, and the title of its progress.
fn words(command: &Command) -> (&'static str, Option<&'static str>) {
    match command {
        Command::Transfer(transfer) => match transfer {
            TransferCommand::ImportFrom { .. } => (OPEN_FAILED, None),
            TransferCommand::Import { .. } => ("rbd: import failed", Some("Importing image")),
            TransferCommand::Export { .. } => ("rbd: export error", Some("Exporting image")),
            TransferCommand::ExportDiff { .. } => ("rbd: export-diff error", Some("Exporting image")),
            TransferCommand::ImportDiff { .. } => ("rbd: import-diff failed", Some("Importing image diff")),
            TransferCommand::MergeDiff => (MERGE_FAILED, Some("Merging image diff")),
            TransferCommand::Diff { .. } => ("rbd: diff error", None),
        },
        Command::Pool(_)
        | Command::Image(_)
        | Command::Usage(_)
        | Command::Snap(_)
        | Command::Clone(_)
        | Command::Trash(_)
        | Command::Meta(_)
        | Command::Config { .. }
        | Command::ConfigKey(_)
        | Command::Namespace(_)
        | Command::Feature { .. }
        | Command::ObjectMap { .. }
        | Command::Lock { .. }
        | Command::Bench { .. }
        | Command::Check { .. }
        | Command::Job(_)
        | Command::Device(_)
        | Command::Export(_)
        | Command::Watch { .. } => ("rbd: open error", None),
        Command::Migration(_) | Command::Nbd(_) => (OPEN_FAILED, None),
    }
}

impl Files {
    /// Opens them.
    pub(crate) fn open(&self, command: &Command, reporter: &Reporter) -> Result<Opened, Failure> {
        let (rbd, title) = words(command);
        let step = title.map(|title| Progress::start(reporter, title));
        let input = self.input.as_deref().map(|path| open_input(path, rbd)).transpose()?;
        let second = self.second.as_deref().map(|path| open_input(path, rbd)).transpose()?;
        let output = self.output.as_deref().map(|path| create_output(path, rbd)).transpose()?;
        let created = self.output.clone().filter(|path| path != "-");
        let opened = Opened { streams: Streams { input, second, output }, created };
        if let Some(step) = step {
            step.silent();
        }
        Ok(opened)
    }
}

/// A handle of our own to one of the standard streams.
fn standard(stream: &impl AsFd, name: &str, rbd: &str) -> Result<File, Failure> {
    let handle = stream.as_fd().try_clone_to_owned();
    handle.map(File::from).map_err(|e| open_failed(&format!("cannot use {name}"), name, e, rbd))
}

/// A file that is read.
fn open_input(path: &str, rbd: &str) -> Result<File, Failure> {
    if path == "-" {
        return standard(&io::stdin(), "standard input", rbd);
    }
    let file = File::open(path).map_err(|e| {
        let mut failure = open_failed("cannot read", path, e, rbd);
        if rbd == MERGE_FAILED {
            failure = failure.lines([rbd]);
        }
        if rbd == OPEN_FAILED {
            failure = failure.lines::<String>([]);
        }
        failure.after(format!("rbd: error opening {path}")).advise("no image was changed")
    })?;
    let is_dir = file.metadata().is_ok_and(|m| m.is_dir());
    if is_dir {
        let error = Error::invalid("it is a directory").errno_is(Errno::EISDIR).with("file", path);
        return Err(Failure::of(&error, "cannot import", rbd)
            .after("rbd: cannot import a directory")
            .advise("no image was made; name a file or a block device"));
    }
    Ok(file)
}

/// A file that is written and does not exist yet.
fn create_output(path: &str, rbd: &str) -> Result<File, Failure> {
    if path == "-" {
        return standard(&io::stdout(), "standard output", rbd);
    }
    OpenOptions::new().write(true).read(true).create_new(true).mode(0o644).open(path).map_err(|e| {
        let exists = e.kind() == io::ErrorKind::AlreadyExists;
        let failure = open_failed("cannot make the file", path, e, rbd);
        if exists {
            failure.advise("an existing file is never written over: remove it or name another")
        } else {
            failure
        }
    })
}
