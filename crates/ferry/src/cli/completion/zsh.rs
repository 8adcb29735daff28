//! Completion in zsh: words of verbs, then options, then files.

use super::{Table, names};

/// The script, for a file `_ferry` in `fpath` or to be sourced.
pub(super) fn script(table: &Table) -> String {
    let mut script = String::from(
        "#compdef ferry\n_ferry() {\n  local word=\"${words[CURRENT]}\" line=\"\" i\n  \
         for ((i = 2; i < CURRENT; i++)); do\n    [[ ${words[i]} == -* ]] || line+=\"${words[i]} \"\n  done\n  \
         if [[ $word == -* ]]; then\n    case \"$line\" in\n",
    );
    for (verb, flags) in &table.options {
        script.push_str(&format!("      \"{verb}\"*) compadd -- {} ;;\n", names(flags)));
    }
    script.push_str("    esac\n    return\n  fi\n  case \"$line\" in\n");
    for (before, words) in &table.next {
        let words: Vec<&str> = words.iter().copied().collect();
        script.push_str(&format!("    \"{before}\") compadd -- {} ;;\n", words.join(" ")));
    }
    script.push_str(
        "    *) _files ;;\n  esac\n}\n\
         if [[ ${funcstack[1]} == _ferry ]]; then _ferry \"$@\"; else compdef _ferry ferry; fi\n",
    );
    script
}
