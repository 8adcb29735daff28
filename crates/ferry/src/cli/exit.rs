//! How a command ends when it did not do what was asked: exit codes and the words for it.

use std::io::{self, Write};

use ferry_core::Errno;
use ferry_node::api::{Failure, Response};

use super::args::Usage;
use super::output::Program;

/// Why the program ends with another code than 0.
#[derive(Debug)]
pub(crate) enum End {
    /// What was typed cannot be meant.
    Usage(Usage),
    /// No verb is called that; the list of verbs goes to stdout.
    UnknownVerb {
        /// What was typed.
        words: String,
        /// The list.
        list: String,
    },
    /// Another process that did the work failed and said why.
    Told {
        /// What it said.
        text: String,
        /// Its exit code.
        code: i32,
    },
    /// The command failed.
    Failed(Failure),
    /// The result could not be written.
    Output(io::Error),
    /// The result says that something is wrong; it has been shown.
    Found(i32),
}

impl From<Usage> for End {
    fn from(usage: Usage) -> Self {
        Self::Usage(usage)
    }
}

impl From<crate::demo::Failed> for End {
    fn from(failed: crate::demo::Failed) -> Self {
        Self::Failed(Failure::plain(Errno::EIO, format!("the demo failed: {failed}")))
    }
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// The exit code for an error number: its low eight bits, as the shell sees `rbd`'s.
pub(crate) fn code(errno: i32) -> u8 {
    errno.to_le_bytes()[0]
}

/// How a command ends that was done but found something wrong.
pub(crate) fn after(response: &Response) -> Option<End> {
    match response {
        Response::Check(report) if !report.damage.is_empty() => Some(End::Found(Errno::EIO.0)),
        Response::Check(_)
        | Response::Done
        | Response::Pools(_)
        | Response::PoolStatistics(_)
        | Response::ImageNames(_)
        | Response::Images(_)
        | Response::Info(_)
        | Response::Status(_)
        | Response::Usage(_)
        | Response::Snaps { .. }
        | Response::Children { .. }
        | Response::Trash { .. }
        | Response::Meta(_)
        | Response::Value(_)
        | Response::Settings { .. }
        | Response::Keys(_)
        | Response::Namespaces(_)
        | Response::Diff(_)
        | Response::Locks(_)
        | Response::Jobs(_)
        | Response::Mapped(_)
        | Response::Devices(_)
        | Response::Exports { .. }
        | Response::Bench(_) => None,
    }
}

impl End {
    /// A verb nobody knows.
    pub(crate) fn unknown(words: &str, list: String) -> Self {
        Self::UnknownVerb { words: words.to_owned(), list }
    }

    /// Tells the user; gives the error number to exit with. A stderr that is gone changes nothing about the end.
    pub(crate) fn tell(&self, program: Program, err: &mut dyn Write) -> i32 {
        let name = program.name();
        let (text, code) = match self {
            Self::Usage(usage) => (format!("{name}: {}\n", usage.text), usage.exit),
            Self::UnknownVerb { words, list } => {
                let told = super::print(list);
                drop(told);
                (format!("error: unknown option '{words}'\n\n"), 1)
            }
            Self::Told { text, code } => (text.clone(), *code),
            Self::Failed(failure) => (failure_text(failure, program), failure.errno),
            // Whoever read our stdout has gone; `rbd` dies without a word too.
            Self::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => (String::new(), Errno::EPIPE.0),
            Self::Output(e) => {
                (format!("{name}: cannot write the result: {e}\n"), e.raw_os_error().unwrap_or(Errno::EIO.0))
            }
            Self::Found(errno) => (String::new(), *errno),
        };
        drop(err.write_all(text.as_bytes()));
        code
    }
}

/// `rbd`'s own lines, or ferry's sentence and what to do next.
fn failure_text(failure: &Failure, program: Program) -> String {
    match program {
        Program::Rbd => failure.rbd.iter().fold(String::new(), |text, line| text + line + "\n"),
        Program::Ferry => {
            let cause = if failure.cause.is_empty() { String::new() } else { format!(": {}", failure.cause) };
            let mut text = format!("ferry: {}{cause}\n", failure.what);
            for sentence in &failure.next {
                text.push_str(&format!("  {sentence}\n"));
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use ferry_core::Error;
    use ferry_node::api::Failure;

    use super::super::output::Program;
    use super::{End, code};

    fn told(end: &End, program: Program) -> (String, i32) {
        let mut err = Vec::new();
        let errno = end.tell(program, &mut err);
        (String::from_utf8(err).unwrap(), errno)
    }

    #[test]
    fn each_name_has_its_own_words_for_a_failure() {
        let error = Error::exists("an image of this name exists").with("image", "a");
        let failure = Failure::of(&error, "cannot create rbd/a", "rbd: create error")
            .after("librbd: rbd image a already exists")
            .advise("nothing was changed");
        let end = End::from(failure);
        assert_eq!(
            told(&end, Program::Rbd),
            ("librbd: rbd image a already exists\nrbd: create error: (17) File exists\n".to_owned(), 17)
        );
        assert_eq!(
            told(&end, Program::Ferry),
            (
                "ferry: cannot create rbd/a: an image of this name exists (image a)\n  nothing was changed\n"
                    .to_owned(),
                17
            )
        );
    }

    #[test]
    fn an_exit_code_is_the_low_byte_of_an_error_number() {
        assert_eq!(code(2), 2);
        assert_eq!(code(122), 122);
        assert_eq!(code(257), 1);
    }
}
