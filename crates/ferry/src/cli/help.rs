//! Help, written from the table of verbs in the layout of `rbd help`.

use super::args::{Flag, GLOBAL, Verb};
use super::output::Program;

/// Columns of a line.
const LINE_WIDTH: usize = 80;

/// Descriptions begin here at the latest, counted from 0.
const DESCRIPTION_OFFSET_MAX: usize = 37;

/// Names of options have at least this many columns.
const NAME_WIDTH_MIN: usize = 20;

/// Writes `text` after `offset` columns that are taken, indenting its lines to `indent` and breaking them before the last
/// `delimiter` (or after the last blank) that fits.
fn flow(out: &mut String, text: &str, indent: usize, offset: usize, delimiter: char) {
    let mut line = String::new();
    let mut taken = offset;
    let mut end_line = |line: &mut String, taken: &mut usize| {
        if *taken > indent {
            out.push('\n');
            *taken = 0;
        }
        out.extend(std::iter::repeat_n(' ', indent.saturating_sub(*taken)));
        out.push_str(line);
        out.push('\n');
        line.clear();
        *taken = 0;
    };
    for c in text.chars() {
        if c == '\n' {
            end_line(&mut line, &mut taken);
            continue;
        }
        if indent + line.len() >= LINE_WIDTH {
            let wanted = line.rfind(delimiter).filter(|_| delimiter != ' ');
            let at = wanted.or_else(|| line.rfind(' ').map(|i| i + 1)).filter(|at| *at > 0);
            let rest = at.map(|at| line.split_off(at)).unwrap_or_default();
            let broken_at_blank = wanted.is_none() && at.is_some();
            if broken_at_blank {
                line.truncate(line.trim_end().len());
            }
            end_line(&mut line, &mut taken);
            line = rest;
        }
        line.push(c);
    }
    if !line.is_empty() {
        end_line(&mut line, &mut taken);
    }
}

/// `-p [ --pool ] arg`.
fn flag_name(flag: &Flag) -> String {
    let name = match flag.short {
        Some(short) => format!("-{short} [ --{} ]", flag.long),
        None => format!("--{}", flag.long),
    };
    if flag.kind.takes_value() { format!("{name} {}", flag.value_name) } else { name }
}

/// Help of one verb.
pub(crate) fn of_verb(verb: &Verb, program: Program) -> String {
    let mut out = format!("usage: {} {}", program.name(), verb.name);
    let offset = out.len();
    let indent = offset.min(DESCRIPTION_OFFSET_MAX) + 1;
    let mut options = String::new();
    for flag in verb.all_flags() {
        let value = if flag.kind.takes_value() { format!(" <{}>", flag.long) } else { String::new() };
        if flag.required {
            options.push_str(&format!("--{}{value} ", flag.long));
        } else {
            options.push_str(&format!("[--{}{value}] ", flag.long));
        }
    }
    let mut words = String::new();
    for word in verb.words {
        words.push_str(&format!("<{}> ", word.name));
        if word.many {
            words.push_str(&format!("[<{}> ...] ", word.name));
        }
    }
    match (options.is_empty(), words.is_empty()) {
        (true, true) => out.push('\n'),
        (true, false) => flow(&mut out, &words, indent, offset, ' '),
        (false, _) => {
            flow(&mut out, &options, indent, offset, '[');
            if !words.is_empty() {
                flow(&mut out, &words, indent, 0, ' ');
            }
        }
    }
    out.push_str(&format!("\n{}\n\n", verb.about));
    details(&mut out, verb);
    out.push_str(verb.remark);
    out
}

/// The lists of words and options.
fn details(out: &mut String, verb: &Verb) {
    let shown = || verb.all_flags().filter(|f| !f.help.is_empty());
    // A blank is counted behind each name, also where no value follows.
    let blank = |f: &Flag| usize::from(!f.kind.takes_value());
    let names =
        shown().map(|f| flag_name(f).len() + blank(f)).chain(verb.words.iter().map(|w| w.name.len() + 3));
    let width = names.fold(NAME_WIDTH_MIN, usize::max) + 2;
    let indent = width.min(DESCRIPTION_OFFSET_MAX) + 1;
    if !verb.words.is_empty() {
        out.push_str("Positional arguments\n");
        for word in verb.words {
            let name = format!("  <{}>", word.name);
            out.push_str(&name);
            flow(out, &format!("{}\n", word.help), indent, name.len(), ' ');
        }
        out.push('\n');
    }
    if shown().next().is_some() {
        out.push_str("Optional arguments\n");
        for flag in shown() {
            let name = format!("  {}", flag_name(flag));
            out.push_str(&name);
            flow(out, &format!("{}\n", flag.help), indent, name.len(), ' ');
        }
        out.push('\n');
    }
}

/// `snap list (snap ls)`, `config pool list (... ls)`.
fn verb_name(verb: &Verb) -> String {
    let Some(alias) = verb.alias else { return verb.name.to_owned() };
    let (name, other): (Vec<&str>, Vec<&str>) = (verb.name.split(' ').collect(), alias.split(' ').collect());
    let same = name.iter().zip(&other).take_while(|(a, b)| a == b).count();
    if same < 2 {
        format!("{} ({alias})", verb.name)
    } else {
        format!("{} (... {})", verb.name, other[same..].join(" "))
    }
}

/// The list of verbs.
pub(crate) fn of_all(verbs: &'static [&'static [Verb]], program: Program) -> String {
    let mut listed: Vec<&Verb> = verbs.iter().flat_map(|g| g.iter()).collect();
    listed.sort_by_key(|v| v.name);
    let about = match program {
        Program::Rbd => "Command-line interface for managing Ceph RBD images.",
        Program::Ferry => "Block images that keep working while they move.",
    };
    let name = program.name();
    let mut out = format!("usage: {name} <command> ...\n\n{about}\n\nPositional arguments:\n  <command>\n");
    let width = listed.iter().map(|v| verb_name(v).len()).max().unwrap_or_default() + 4;
    let indent = width.min(DESCRIPTION_OFFSET_MAX) + 1;
    for verb in listed {
        let line = format!("    {}", verb_name(verb));
        out.push_str(&line);
        flow(&mut out, &format!("{}\n", verb.about), indent, line.len(), ' ');
    }
    out.push_str("\nOptional arguments:\n");
    for flag in GLOBAL {
        let line = format!("  {}", flag_name(flag));
        out.push_str(&line);
        flow(&mut out, &format!("{}\n", flag.help), indent, line.len(), ' ');
    }
    out.push_str(&format!("\nSee '{name} help <command>' for help on a specific command.\n"));
    out
}
