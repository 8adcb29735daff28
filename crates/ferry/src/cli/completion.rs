//! What a shell needs to complete command lines, written from the table of verbs.

use std::collections::{BTreeMap, BTreeSet};

use super::Plan;
use super::args::{GLOBAL, Verb, Word};

/// The verb.
pub(crate) const VERBS: &[Verb] = &[Verb {
    name: "completion",
    alias: None,
    about: "Write what a shell needs to complete ferry's command lines.",
    words: &[Word::new("shell", "bash")],
    flags: &[],
    remark: "For bash: source <(ferry completion bash)\n",
    convert: |p, _| match p.required_word("shell was not specified")?.as_str() {
        "bash" => Ok(Plan::Print(bash(super::VERBS))),
        other => Err(super::Usage::invalid(format!("no completion for '{other}': bash is what there is"))),
    },
}];

/// A script for bash: words of verbs, then options, then files.
fn bash(verbs: &[&[Verb]]) -> String {
    let mut next: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    let mut options = Vec::new();
    for verb in verbs.iter().copied().flatten() {
        for name in [Some(verb.name), verb.alias].into_iter().flatten() {
            let mut before = String::new();
            for word in name.split(' ') {
                next.entry(before.clone()).or_default().insert(word);
                before = format!("{before}{word} ");
            }
            let flags: BTreeSet<String> =
                verb.all_flags().chain(GLOBAL).map(|flag| format!("--{}", flag.long)).collect();
            options.push((before, flags.into_iter().collect::<Vec<_>>().join(" ")));
        }
    }
    // The longest verb first: `export add` is no image of `export`.
    options.sort_by_key(|(verb, _)| std::cmp::Reverse(verb.len()));
    let mut script = String::from(
        "_ferry() {\n  local word=\"${COMP_WORDS[COMP_CWORD]}\" line=\"\" i\n  \
         for ((i = 1; i < COMP_CWORD; i++)); do\n    [[ ${COMP_WORDS[i]} == -* ]] || line+=\"${COMP_WORDS[i]} \"\n  done\n  \
         if [[ $word == -* ]]; then\n    case \"$line\" in\n",
    );
    for (verb, flags) in &options {
        script
            .push_str(&format!("      \"{verb}\"*) COMPREPLY=($(compgen -W \"{flags}\" -- \"$word\")) ;;\n"));
    }
    script.push_str("    esac\n    return\n  fi\n  case \"$line\" in\n");
    for (before, words) in &next {
        let words: Vec<&str> = words.iter().copied().collect();
        script.push_str(&format!(
            "    \"{before}\") COMPREPLY=($(compgen -W \"{}\" -- \"$word\")) ;;\n",
            words.join(" ")
        ));
    }
    script
        .push_str("    *) COMPREPLY=($(compgen -f -- \"$word\")) ;;\n  esac\n}\ncomplete -F _ferry ferry\n");
    script
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::VERBS;
    use super::bash;

    /// What bash offers behind `words`, the last of which is being typed.
    fn offered(words: &[&str]) -> Vec<String> {
        let script = format!(
            "{}\nCOMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _ferry; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            bash(VERBS)
        );
        let output =
            Command::new("bash").args(["-c", &script, "bash", "ferry"]).args(words).output().unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn bash_completes_verbs_and_their_options() {
        assert_eq!(offered(&["devi"]), ["device"]);
        assert_eq!(offered(&["device", "un"]), ["unmap"]);
        assert_eq!(offered(&["snap", "prot"]), ["protect"]);
        assert_eq!(offered(&["device", "map", "--read"]), ["--read-only"]);
        assert_eq!(offered(&["device", "map", "vm1", "--excl"]), ["--exclusive"]);
        assert!(offered(&["export", "add", "--na"]).contains(&"--name".to_owned()));
    }
}
