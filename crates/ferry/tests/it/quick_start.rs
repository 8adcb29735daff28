//! The quick start of the README, line by line.

use std::fs;
use std::process::Command;

use crate::harness::{Home, root};

/// Commands of the README's quick start and what they are said to print.
fn quick_start() -> Vec<(String, String)> {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let (_, after) =
        readme.split_once("<!-- quick start -->\n```console\n").expect("the quick start is marked");
    let (block, _) = after.split_once("```\n").unwrap();
    let mut steps: Vec<(String, String)> = Vec::new();
    for line in block.lines() {
        match line.strip_prefix("$ ") {
            Some(command) => steps.push((command.to_owned(), String::new())),
            None => {
                let (_, printed) = steps.last_mut().expect("a command comes first");
                printed.push_str(line);
                printed.push('\n');
            }
        }
    }
    steps
}

/// Hides what differs from run to run: times and ids.
fn plain(text: &str) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut line = line.trim_end().to_owned();
        if let Some(at) = line.find(" 2026").filter(|_| line.contains(':')) {
            line.truncate(at.saturating_sub("Sat Nov 21 20:37:27".len()));
        }
        lines.push(line.trim_end().to_owned());
    }
    lines.join("\n")
}

#[test]
fn the_quick_start_does_what_the_readme_says() {
    let home = Home::empty();
    let steps = quick_start();
    assert!(steps.len() >= 8, "{steps:?}");
    for (command, printed) in steps {
        let output = Command::new("sh")
            .arg("-ec")
            .arg(&command)
            .current_dir(home.dir())
            .env("FERRY_HOME", home.path("home"))
            .env("TZ", "UTC")
            .env("PATH", format!("{}:{}", home.dir().display(), std::env::var("PATH").unwrap()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        let out = String::from_utf8(output.stdout).unwrap();
        assert_eq!(plain(&out), plain(&printed), "{command}");
    }
}
