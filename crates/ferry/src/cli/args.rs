//! The table of verbs and flags, and the parser that reads an argument list by it.
//!
//! Flags and verbs are data: the parser, the help and the checks all read the same tables. The grammar and the complaints are
//! those of `rbd`: options anywhere, `--name value`, `--name=value`, `-n value`, `-nvalue`, switches in a bundle,
//! everything after `--` a word, and every Ceph setting as `--rbd-some-name value`.

mod kind;
mod parse;

use ferry_node::options::Settings;

pub(crate) use kind::{Kind, feature_bits, object_order};
pub(crate) use parse::{Asked, GLOBAL, Parsed, parse};

use super::Plan;
use super::output::Program;

/// One option.
#[derive(Debug)]
pub(crate) struct Flag {
    /// Its name, without the dashes.
    pub(crate) long: &'static str,
    /// Its one-letter name.
    pub(crate) short: Option<char>,
    /// What it takes.
    pub(crate) kind: Kind,
    /// What it is for; an empty text keeps it out of the list of options.
    pub(crate) help: &'static str,
    /// Whether the usage line shows it without brackets.
    pub(crate) required: bool,
    /// What the list of options calls its value.
    pub(crate) value_name: &'static str,
}

impl Flag {
    /// An option.
    pub(crate) const fn new(long: &'static str, kind: Kind, help: &'static str) -> Self {
        Self { long, short: None, kind, help, required: false, value_name: "arg" }
    }

    /// The same with a one-letter name.
    pub(crate) const fn short(mut self, short: char) -> Self {
        self.short = Some(short);
        self
    }

    /// The same with another word for its value.
    pub(crate) const fn value_name(mut self, value_name: &'static str) -> Self {
        self.value_name = value_name;
        self
    }

    /// The same, shown as required.
    pub(crate) const fn required(mut self) -> Self {
        self.required = true;
        self
    }
}

/// A word after the verb.
#[derive(Debug)]
pub(crate) struct Word {
    /// Its name in the usage line.
    pub(crate) name: &'static str,
    /// What it is for.
    pub(crate) help: &'static str,
    /// Whether there may be more of it.
    pub(crate) many: bool,
}

impl Word {
    /// A word that is given once.
    pub(crate) const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help, many: false }
    }
}

/// What a conversion knows besides the arguments.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    /// The settings in force before any pool is known.
    pub(crate) settings: &'a Settings,
    /// The name the program was called by.
    pub(crate) program: Program,
}

impl Context<'_> {
    /// The pool of names that have none.
    pub(crate) fn default_pool(&self) -> &str {
        self.settings.get_global("rbd_default_pool")
    }
}

/// What was typed cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Exit code.
    pub(crate) exit: i32,
    /// The complaint, without the program's name in front.
    pub(crate) text: String,
}

impl Usage {
    /// A complaint of the parser: exit code 1.
    pub(crate) fn syntax(text: impl Into<String>) -> Self {
        Self { exit: 1, text: text.into() }
    }

    /// A complaint about the meaning: exit code 22.
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self { exit: 22, text: text.into() }
    }
}

/// Turns what was typed into what it means.
pub(crate) type Convert = fn(&mut Parsed, &Context<'_>) -> Result<Plan, Usage>;

/// One command.
#[derive(Debug)]
pub(crate) struct Verb {
    /// Its words: `snap create`.
    pub(crate) name: &'static str,
    /// Another way to say it.
    pub(crate) alias: Option<&'static str>,
    /// What it does.
    pub(crate) about: &'static str,
    /// Words it takes.
    pub(crate) words: &'static [Word],
    /// Options it takes, in groups.
    pub(crate) flags: &'static [&'static [Flag]],
    /// What the help says at its end.
    pub(crate) remark: &'static str,
    /// What it means.
    pub(crate) convert: Convert,
}

impl Verb {
    /// Its options.
    pub(crate) fn all_flags(&self) -> impl Iterator<Item = &'static Flag> {
        self.flags.iter().flat_map(|group| group.iter())
    }
}

#[cfg(test)]
mod tests;
