//! What a shell needs to complete command lines, written from the table of verbs.

mod bash;
mod fish;
mod zsh;

use std::collections::{BTreeMap, BTreeSet};

use super::Plan;
use super::args::{Flag, GLOBAL, Verb, Word};

/// The verb.
pub(crate) const VERBS: &[Verb] = &[Verb {
    name: "completion",
    alias: None,
    about: "Write what a shell needs to complete ferry's command lines.",
    words: &[Word::new("shell", "bash, zsh or fish")],
    flags: &[],
    remark: "For bash: source <(ferry completion bash)\n\
             For zsh:  source <(ferry completion zsh)\n\
             For fish: ferry completion fish | source\n",
    convert: |p, _| match p.required_word("shell was not specified")?.as_str() {
        "bash" => Ok(Plan::Print(bash::script(&Table::of(super::VERBS)))),
        "zsh" => Ok(Plan::Print(zsh::script(&Table::of(super::VERBS)))),
        "fish" => Ok(Plan::Print(fish::script(&Table::of(super::VERBS)))),
        other => {
            Err(super::Usage::invalid(format!("no completion for '{other}': bash, zsh and fish are known")))
        }
    },
}];

/// What may follow what.
#[derive(Debug)]
struct Table {
    /// By the words before, each with a blank behind it: the words of verbs that may come next.
    next: BTreeMap<String, BTreeSet<&'static str>>,
    /// By the words of a verb, likewise, the longest verb first (`export add` is no image of `export`): its options.
    options: Vec<(String, Vec<&'static Flag>)>,
}

impl Table {
    fn of(verbs: &[&'static [Verb]]) -> Self {
        let mut next: BTreeMap<String, BTreeSet<&'static str>> = BTreeMap::new();
        let mut options = Vec::new();
        for verb in verbs.iter().copied().flatten() {
            for name in [Some(verb.name), verb.alias].into_iter().flatten() {
                let mut before = String::new();
                for word in name.split(' ') {
                    next.entry(before.clone()).or_default().insert(word);
                    before = format!("{before}{word} ");
                }
                let mut flags: Vec<&'static Flag> = verb.all_flags().chain(GLOBAL).collect();
                flags.sort_by_key(|flag| flag.long);
                flags.dedup_by_key(|flag| flag.long);
                options.push((before, flags));
            }
        }
        options.sort_by_key(|(verb, _)| std::cmp::Reverse(verb.len()));
        Self { next, options }
    }
}

/// `--name` of each, with blanks between.
fn names(flags: &[&Flag]) -> String {
    flags.iter().map(|flag| format!("--{}", flag.long)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
