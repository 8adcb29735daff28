//! Completion in fish: words of verbs, then options with what they are for, then files.

use super::Table;

/// The script.
pub(super) fn script(table: &Table) -> String {
    let mut script = String::from(
        "function __ferry_words\n  \
         set -l words (commandline -opc | string match -v -- '-*')\n  \
         test (count $words) -gt 1; and printf '%s ' $words[2..]\nend\n\
         function __ferry_after\n  test \"$(__ferry_words)\" = \"$argv[1]\"\nend\n\
         function __ferry_in\n  set -l words (__ferry_words)\n  \
         for verb in $argv[2..]\n    string match -q -- \"$verb*\" \"$words\"; and return 1\n  end\n  \
         string match -q -- \"$argv[1]*\" \"$words\"\nend\n",
    );
    for (before, words) in &table.next {
        let words: Vec<&str> = words.iter().copied().collect();
        script.push_str(&format!(
            "complete -c ferry -n \"__ferry_after '{before}'\" -f -a '{}'\n",
            words.join(" ")
        ));
    }
    for (verb, flags) in &table.options {
        // Longer verbs that begin with this one have options of their own.
        let others = table.options.iter().filter(|(v, _)| v != verb && v.starts_with(verb.as_str()));
        let others: String = others.map(|(v, _)| format!(" '{v}'")).collect();
        for flag in flags {
            let short = flag.short.map(|s| format!(" -s {s}")).unwrap_or_default();
            let value = if flag.kind.takes_value() { " -r" } else { "" };
            let help = flag.help.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', " ");
            script.push_str(&format!(
                "complete -c ferry -n \"__ferry_in '{verb}'{others}\" -l {}{short}{value} -d '{help}'\n",
                flag.long
            ));
        }
    }
    script
}
