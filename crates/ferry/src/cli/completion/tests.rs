//! The scripts, run by the shells they are for.

use std::process::Command;

use super::super::VERBS;
use super::{Table, bash, fish, zsh};

/// What a shell says to a script, line by line.
fn said(shell: &str, arguments: &[&str]) -> Vec<String> {
    let output = Command::new(shell).args(arguments).output().unwrap();
    assert!(output.stderr.is_empty(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// What bash offers behind `words`, the last of which is being typed.
fn offered_by_bash(words: &[&str]) -> Vec<String> {
    let script = format!(
        "{}\nCOMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _ferry; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        bash::script(&Table::of(VERBS))
    );
    said("bash", &[&["-c", &script, "bash", "ferry"], words].concat())
}

/// What zsh is told to choose from; it leaves out itself what does not begin as the word does.
fn offered_by_zsh(typed: &[&str]) -> Vec<String> {
    let script = format!(
        "compdef() {{ }}; compadd() {{ shift; print -l -- $@ }}; _files() {{ print files }}\n{}\n\
         words=(\"$@\"); CURRENT=$#; _ferry",
        zsh::script(&Table::of(VERBS))
    );
    let last = (*typed.last().unwrap()).to_owned();
    let all = said("zsh", &[&["-fc", &script, "zsh", "ferry"], typed].concat());
    all.into_iter().filter(|word| word.starts_with(&last) || word == "files").collect()
}

/// What fish offers behind a line.
fn offered_by_fish(line: &str) -> Vec<String> {
    let home = tempfile::tempdir().unwrap();
    // It is too long for an argument.
    let file = home.path().join("ferry.fish");
    std::fs::write(&file, fish::script(&Table::of(VERBS))).unwrap();
    let script = format!("source {}; complete -C {line:?}", file.display());
    let output = Command::new("fish")
        .args(["--no-config", "-c", &script])
        .env("HOME", home.path())
        .env("XDG_CONFIG_HOME", home.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|l| l.split('\t').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn bash_completes_verbs_and_their_options() {
    assert_eq!(offered_by_bash(&["devi"]), ["device"]);
    assert_eq!(offered_by_bash(&["device", "un"]), ["unmap"]);
    assert_eq!(offered_by_bash(&["snap", "prot"]), ["protect"]);
    assert_eq!(offered_by_bash(&["device", "map", "--read"]), ["--read-only"]);
    assert_eq!(offered_by_bash(&["device", "map", "vm1", "--excl"]), ["--exclusive"]);
    assert!(offered_by_bash(&["export", "add", "--na"]).contains(&"--name".to_owned()));
}

#[test]
fn zsh_completes_verbs_and_their_options() {
    assert_eq!(offered_by_zsh(&["devi"]), ["device"]);
    assert_eq!(offered_by_zsh(&["device", "un"]), ["unmap"]);
    assert_eq!(offered_by_zsh(&["device", "map", "--read"]), ["--read-only"]);
    assert_eq!(offered_by_zsh(&["device", "map", "vm1", "--excl"]), ["--exclusive"]);
    assert!(offered_by_zsh(&["export", "add", "--na"]).contains(&"--name".to_owned()));
    assert_eq!(offered_by_zsh(&["import", "disk"]), ["files"]);
}

#[test]
fn fish_completes_verbs_and_their_options() {
    assert_eq!(offered_by_fish("ferry devi"), ["device"]);
    assert_eq!(offered_by_fish("ferry device un"), ["unmap"]);
    assert_eq!(offered_by_fish("ferry device map --read"), ["--read-only"]);
    assert!(offered_by_fish("ferry export add --na").contains(&"--name".to_owned()));
    assert!(!offered_by_fish("ferry export add --export").contains(&"--export-format".to_owned()));
}
