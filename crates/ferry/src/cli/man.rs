//! The manual page, written from the table of verbs.

use super::Plan;
use super::args::{Flag, GLOBAL, Verb};

/// The verb.
pub(crate) const VERBS: &[Verb] = &[Verb {
    name: "man",
    alias: None,
    about: "Write the manual page, in the language of man.",
    words: &[],
    flags: &[],
    remark: "To read it: ferry man | man -l -\n",
    convert: |_, _| Ok(Plan::Print(page(super::VERBS))),
}];

/// What every page of this program ends with.
const FILES: &str = r".SH FILES
.TP
.I $FERRY_HOME
Where pools and settings are; else
.I ferry
in the user's data directory.
.TP
.I ferry.toml
In the home: pools and settings.
.TP
.I secrets.toml
In the home: what nobody else may read.
.SH EXIT STATUS
0, or the number of the error as in
.BR errno (3);
1 for a command line that cannot be read.
.SH SEE ALSO
.BR qemu-img (1),
.BR nbdinfo (1),
.BR rbd (8)
";

/// Text as it is to be seen, whatever it holds.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        // A dot or a quote at the start would be an order to the formatter.
        if line.starts_with(['.', '\'']) {
            out.push_str("\\&");
        }
        for c in line.chars() {
            match c {
                '\\' => out.push_str("\\e"),
                '-' => out.push_str("\\-"),
                c => out.push(c),
            }
        }
        out.push('\n');
    }
    out
}

/// One line in bold.
fn bold(text: &str) -> String {
    format!("\\fB{}\\fR", plain(text).trim_end())
}

/// An option with what it is for.
fn option(out: &mut String, flag: &Flag) {
    out.push_str(".TP\n");
    if let Some(short) = flag.short {
        out.push_str(&format!("{}, ", bold(&format!("-{short}"))));
    }
    out.push_str(&bold(&format!("--{}", flag.long)));
    if flag.kind.takes_value() {
        out.push_str(&format!(" \\fI{}\\fR", plain(flag.value_name).trim_end()));
    }
    out.push('\n');
    out.push_str(&plain(if flag.help.is_empty() { "The same as a word of the command." } else { flag.help }));
}

/// A verb with its words and options.
fn verb(out: &mut String, verb: &Verb) {
    out.push_str(&format!(".SS \"{}", plain(verb.name).trim_end()));
    for word in verb.words {
        out.push_str(&format!(" {}{}", plain(word.name).trim_end(), if word.many { " ..." } else { "" }));
    }
    out.push_str("\"\n");
    out.push_str(&plain(verb.about));
    if let Some(alias) = verb.alias {
        out.push_str(&format!("Also: {}.\n", bold(alias)));
    }
    for word in verb.words {
        out.push_str(&format!(".TP\n\\fI{}\\fR\n{}", plain(word.name).trim_end(), plain(word.help)));
    }
    verb.all_flags().for_each(|flag| option(out, flag));
    if !verb.remark.is_empty() {
        out.push_str(&format!(".PP\n.nf\n{}.fi\n", plain(verb.remark)));
    }
}

/// The page.
fn page(verbs: &[&'static [Verb]]) -> String {
    let mut out = format!(".TH FERRY 1 \"\" \"ferry {}\" \"User Commands\"\n", env!("CARGO_PKG_VERSION"));
    out.push_str(".SH NAME\nferry \\- block images that keep working while they move\n");
    out.push_str(".SH SYNOPSIS\n.B ferry\n.I command\n[\\fIoption\\fR ...] [\\fIargument\\fR ...]\n");
    out.push_str(".SH DESCRIPTION\nImages are written as [\\fIpool\\fR/[\\fInamespace\\fR/]]\\fIimage\\fR[@\\fIsnapshot\\fR].\n");
    out.push_str("Called by the name\n.BR rbd ,\nthe program behaves as that does.\n.SH COMMANDS\n");
    let mut sorted: Vec<&Verb> = verbs.iter().flat_map(|group| group.iter()).collect();
    sorted.sort_by_key(|v| v.name);
    sorted.into_iter().for_each(|v| verb(&mut out, v));
    out.push_str(".SH OPTIONS OF ALL COMMANDS\n");
    GLOBAL.iter().for_each(|flag| option(&mut out, flag));
    out.push_str(FILES);
    out
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::super::VERBS;
    use super::page;

    /// The page as it is read on a terminal, and what the formatter complained of.
    fn formatted() -> (String, String) {
        let mut groff = Command::new("groff")
            .args(["-man", "-Tascii", "-ww", "-P-c", "-P-b", "-P-u", "-rLL=200n"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = groff.stdin.take().unwrap();
        let text = page(VERBS);
        let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()).unwrap());
        let output = groff.wait_with_output().unwrap();
        writer.join().unwrap();
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    #[test]
    fn the_page_has_every_verb_and_option_and_nothing_the_formatter_minds() {
        let (text, complaints) = formatted();
        assert_eq!(complaints, "");
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for verb in VERBS.iter().copied().flatten() {
            assert!(lines.iter().any(|line| line.starts_with(verb.name)), "{}", verb.name);
            for flag in verb.all_flags() {
                let name = format!("--{}", flag.long);
                assert!(lines.iter().any(|line| line.contains(&name)), "{} {name}", verb.name);
            }
        }
    }
}
