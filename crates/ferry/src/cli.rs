//! The command line: parse into what was typed, convert once into what it means, execute, show.

mod args;
mod clone;
mod cluster;
mod completion;
mod device;
mod exit;
mod export;
mod feature;
mod files;
#[cfg(test)]
mod golden;
mod help;
mod image;
mod job;
mod man;
mod meta;
mod migration;
mod namespace;
mod output;
mod pool;
mod progress;
mod report;
mod serve;
mod signals;
mod snap;
mod spec;
mod transfer;
mod trash;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use ferry_core::{Errno, Error};
use ferry_node::Node;
use ferry_node::api::{Command, DeviceCommand, Failure, Request, Response, Streams};
use ferry_node::cancel::Cancel;
use ferry_node::config::Home;
use ferry_node::options::Settings;
use ferry_node::serve::ServeOptions;

use args::{Asked, Context, Usage, Verb};
use files::Files;
use output::{Program, Show};
use progress::Reporter;

/// All verbs, by noun.
const VERBS: &[&[Verb]] = &[
    clone::VERBS,
    completion::VERBS,
    device::VERBS,
    export::VERBS,
    feature::VERBS,
    image::VERBS,
    job::VERBS,
    man::VERBS,
    meta::VERBS,
    migration::VERBS,
    namespace::VERBS,
    pool::VERBS,
    serve::VERBS,
    snap::VERBS,
    transfer::VERBS,
    trash::VERBS,
];

/// The verbs that `rbd` has, and those of its own without which ferry could not do them.
const RBD_VERBS: &[&[Verb]] = &[
    clone::VERBS,
    device::VERBS,
    feature::VERBS,
    image::VERBS,
    meta::VERBS,
    migration::VERBS,
    namespace::VERBS,
    pool::VERBS,
    snap::VERBS,
    transfer::VERBS,
    trash::VERBS,
];

/// What a command line means.
#[derive(Debug)]
pub(crate) enum Plan {
    /// Say which program this is.
    Version,
    /// Show a text that needs no store.
    Print(String),
    /// Show a migration.
    Demo,
    /// Be the node of the home.
    Serve(ServeOptions),
    /// Execute a command on files.
    Run {
        /// The command.
        command: Box<Command>,
        /// Its files, not opened yet.
        files: Files,
    },
}

impl Plan {
    /// A command without files.
    fn run(command: Command) -> Result<Self, Usage> {
        Self::run_on(command, Files::default())
    }

    /// A command on files. A result, as conversions end with it.
    fn run_on(command: Command, files: Files) -> Result<Self, Usage> {
        Ok(Self::Run { command: Box::new(command), files })
    }
}

/// Runs the program with this process's arguments.
pub(crate) fn main() -> ExitCode {
    if let Some(done) = ferry_node::be_watchdog() {
        // Nobody is there to be told more.
        return if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let is_rbd = Path::new(&name).file_name().is_some_and(|n| n == "rbd");
    let program = if is_rbd { Program::Rbd } else { Program::Ferry };
    // Another name in the place of one that is no text would be another image, or file.
    let arguments: Result<Vec<String>, exit::End> = arguments
        .map(|a| {
            a.into_string()
                .map_err(|a| Usage::invalid(format!("an argument is not UTF-8: {}", a.display())).into())
        })
        .collect();
    let code = match arguments.and_then(|arguments| run(program, &arguments)) {
        Ok(()) => 0,
        Err(end) => end.tell(program, &mut io::stderr().lock()),
    };
    ExitCode::from(exit::code(code))
}

/// Does what the arguments ask for.
fn run(program: Program, arguments: &[String]) -> Result<(), exit::End> {
    let verbs = match program {
        Program::Ferry => VERBS,
        Program::Rbd => RBD_VERBS,
    };
    let (verb, mut parsed) = match args::parse(arguments, verbs)? {
        Asked::Verb(verb, parsed) => (verb, parsed),
        // `rbd create --help` shows the list of commands.
        Asked::Help(Some(verb))
            if program == Program::Ferry || arguments.first().is_some_and(|a| a == "help") =>
        {
            return Ok(print(&help::of_verb(verb, program))?);
        }
        Asked::Help(_) => return Ok(print(&help::of_all(verbs, program))?),
        Asked::Version => return Ok(print(&version(program))?),
        Asked::Unknown(words) => {
            let all = help::of_all(verbs, program);
            return Err(exit::End::unknown(&words, all));
        }
    };
    let home = Home::from_env(|name| std::env::var(name).ok()).map_err(configuration_failed)?;
    let config = home.load().map_err(configuration_failed)?;
    let settings = Settings::new(&config, parsed.overrides());
    let overrides = parsed.overrides().clone();
    let cluster = cluster::of(program, verb, &parsed)?;
    let show = Show::of(&parsed)?;
    let plan = (verb.convert)(&mut parsed, &Context { settings: &settings, program })?;
    let (command, files) = match plan {
        Plan::Version => return Ok(print(&version(program))?),
        Plan::Print(text) => return Ok(print(&text)?),
        Plan::Demo => return crate::demo::run(&mut io::stdout().lock()).map_err(exit::End::from),
        Plan::Serve(options) => return be_the_node(&home, &options),
        Plan::Run { command, files } => (command, files),
    };
    let reporter = Reporter::new(program, !parsed.is_set("no-progress"), &command);
    let mut opened = files.open(&command, &reporter)?;
    let env = ferry_node::env::system_env().map_err(configuration_failed)?;
    let node = Node::new(home, env);
    let request = Request { command: *command, overrides, cluster };
    let cancel = Cancel::new();
    let is_holder = matches!(request.command, Command::Device(DeviceCommand::Hold(_)));
    if request.command.lasts() || is_holder {
        signals::ask_at_signals(&cancel)?;
    }
    if matches!(request.command, Command::Watch { .. }) {
        signals::ask_at_enter(&cancel)?;
    }
    let mut result = node.execute(&request, opened.streams(), &reporter, &cancel);
    if is_holder {
        result =
            device::until_taken(result, || node.execute(&request, Streams::default(), &reporter, &cancel));
    }
    match result {
        Ok(Response::Mapped(None)) => Ok(print(&format!("{}\n", device::hold()?))?),
        Ok(response) => {
            opened.keep();
            let failure = exit::after(&response);
            output::write(&mut io::stdout().lock(), &response, show)?;
            io::stdout().flush()?;
            failure.map_or(Ok(()), Err)
        }
        Err(failure) => Err(failure.into()),
    }
}

/// Serves the home until a signal comes.
fn be_the_node(home: &Home, options: &ServeOptions) -> Result<(), exit::End> {
    let level = std::env::var("FERRY_LOG").ok().and_then(|level| level.parse().ok());
    tracing_subscriber::fmt()
        .with_max_level(level.unwrap_or(tracing_subscriber::filter::LevelFilter::INFO))
        .with_writer(io::stderr)
        .with_ansi(stderr_is_terminal())
        .init();
    let cancel = Cancel::new();
    signals::ask_at_signals(&cancel)?;
    let env = ferry_node::env::system_env().map_err(configuration_failed)?;
    let ready = || {
        // Whoever waits for this line reads it; if nobody does, the node serves all the same.
        print(&format!("ferry serves {}\n", home.dir().display())).ok();
    };
    Ok(ferry_node::serve::serve(home, env, options, &cancel, ready)?)
}

/// Writes a text to stdout.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Which program this is. Under the name of `rbd` scripts look for the Ceph release it behaves like.
fn version(program: Program) -> String {
    let ours = env!("CARGO_PKG_VERSION");
    match program {
        Program::Ferry => format!("ferry {ours}\n"),
        Program::Rbd => format!("ceph version 16.2.15 (ferry {ours}) pacific (stable)\n"),
    }
}

/// A home or a configuration that cannot be read.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn configuration_failed(error: Error) -> exit::End {
    Failure::of(&error, "cannot read the configuration", "rbd: configuration error").into()
}

/// Whether people are looking at stderr.
fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// The error of a file that cannot be opened.
fn open_failed(what: &str, path: &str, error: io::Error, rbd: &str) -> Failure {
    let error = Error::io("cannot open the file", error).with("file", path);
    let errno: Errno = error.errno();
    Failure::of(&error, what, rbd).lines([format!("{rbd}: {errno}")])
}
