//! Completion in bash: words of verbs, then options, then files.

use super::{Table, names};

/// The script.
pub(super) fn script(table: &Table) -> String {
    let mut script = String::from(
        "_ferry() {\n  local word=\"${COMP_WORDS[COMP_CWORD]}\" line=\"\" i\n  \
         for ((i = 1; i < COMP_CWORD; i++)); do\n    [[ ${COMP_WORDS[i]} == -* ]] || line+=\"${COMP_WORDS[i]} \"\n  done\n  \
         if [[ $word == -* ]]; then\n    case \"$line\" in\n",
    );
    for (verb, flags) in &table.options {
        let flags = names(flags);
        script
            .push_str(&format!("      \"{verb}\"*) COMPREPLY=($(compgen -W \"{flags}\" -- \"$word\")) ;;\n"));
    }
    script.push_str("    esac\n    return\n  fi\n  case \"$line\" in\n");
    for (before, words) in &table.next {
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
