//! Results on paper: plain text, tables, JSON and XML, as `rbd` writes them.
//!
//! JSON and XML come from one tree ([`Node`]), so that they cannot differ in what they say.

mod node;
mod table;
mod time;

use std::io::{self, Write};

use ferry_node::api::Response;

pub(crate) use node::Node;
pub(crate) use table::{Align, Table};
pub(crate) use time::local;

use super::args::{Parsed, Usage};

/// As which program we were called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// `ferry`.
    Ferry,
    /// `rbd`: do as it does, as far as scripts can tell.
    Rbd,
}

impl Program {
    /// Its name in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ferry => "ferry",
            Self::Rbd => "rbd",
        }
    }
}

/// The form of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Plain,
    /// JSON.
    Json,
    /// XML.
    Xml,
}

/// Whether JSON and XML are spread over lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Spread {
    /// One line.
    #[default]
    Compact,
    /// A line for each thing.
    Pretty,
}

/// How a result is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Show {
    /// Form.
    pub(crate) format: Format,
    /// Lines.
    pub(crate) spread: Spread,
}

impl Show {
    /// What the options ask for.
    pub(crate) fn of(p: &Parsed) -> Result<Self, Usage> {
        let format = match p.value("format") {
            Some("json") => Format::Json,
            Some("xml") => Format::Xml,
            Some(_) | None => Format::Plain,
        };
        let spread = if p.is_set("pretty-format") { Spread::Pretty } else { Spread::Compact };
        if format == Format::Plain && spread == Spread::Pretty {
            return Err(Usage::invalid("--pretty-format only works when --format is json or xml"));
        }
        Ok(Self { format, spread })
    }

    /// Writes a tree, or what `plain` makes of the same facts.
    pub(crate) fn write(
        self,
        out: &mut dyn Write,
        tree: impl FnOnce() -> Node,
        plain: impl FnOnce() -> String,
    ) -> io::Result<()> {
        let text = match self.format {
            Format::Plain => plain(),
            Format::Json => tree().json(self.spread),
            Format::Xml => tree().xml(self.spread),
        };
        out.write_all(text.as_bytes())
    }
}

/// Writes a result.
pub(crate) fn write(out: &mut dyn Write, response: &Response, show: Show) -> io::Result<()> {
    use super::report;
    match response {
        Response::Done => Ok(()),
        Response::Pools(pools) => show.write(out, || report::pools_tree(pools), || report::pools(pools)),
        Response::PoolStatistics(s) => {
            show.write(out, || report::statistics_tree(s), || report::statistics(s))
        }
        Response::ImageNames(names) => {
            show.write(out, || Node::names("images", "name", names), || report::lines(names))
        }
        Response::Images(images) => {
            show.write(out, || report::images_tree(images), || report::images(images))
        }
        Response::Info(info) => show.write(out, || report::info_tree(info), || report::info(info)),
        Response::Status(status) => {
            show.write(out, || report::status_tree(status), || report::status(status))
        }
        Response::Usage(usage) => show.write(out, || report::usage_tree(usage), || report::usage(usage)),
        Response::Snaps { snaps, all } => {
            show.write(out, || report::snaps_tree(snaps, *all), || report::snaps(snaps, *all))
        }
        Response::Children { children, all } => {
            show.write(out, || report::children_tree(children, *all), || report::children(children))
        }
        Response::Trash { entries, detail, now } => show.write(
            out,
            || report::trash_tree(entries, *detail, *now),
            || report::trash(entries, *detail, *now),
        ),
        Response::Meta(pairs) => show.write(out, || report::meta_tree(pairs), || report::meta(pairs)),
        Response::Value(value) => writeln!(out, "{value}"),
        Response::Settings { settings, owner } => {
            show.write(out, || report::settings_tree(settings, *owner), || report::settings(settings, *owner))
        }
        Response::Keys(keys) => show.write(out, || Node::names("keys", "key", keys), || report::lines(keys)),
        Response::Namespaces(names) => {
            show.write(out, || report::namespaces_tree(names), || report::namespaces(names))
        }
        Response::Diff(extents) => show.write(out, || report::diff_tree(extents), || report::diff(extents)),
        Response::Locks(locks) => show.write(out, || report::locks_tree(locks), || report::locks(locks)),
        Response::Bench(result) => out.write_all(report::bench(result).as_bytes()),
        Response::Mapped(device) => match device {
            Some(device) => writeln!(out, "{}", device.display()),
            None => Ok(()),
        },
        Response::Devices(devices) => {
            show.write(out, || report::devices_tree(devices), || report::devices(devices))
        }
        Response::Exports { exports, added } => {
            show.write(out, || report::exports_tree(exports), || report::exports(exports, *added))
        }
        Response::Jobs(jobs) => show.write(out, || report::jobs_tree(jobs), || report::jobs(jobs)),
        Response::Check(report) => show.write(out, || report::check_tree(report), || report::check(report)),
    }
}

#[cfg(test)]
mod tests;
