//! What the house style asks of the sources, where a test can see it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::root;

/// Lines of a file without its tests before it should be looked at again.
const LINES_MAX: usize = 800;

/// Imports as `docs/ARCHITECTURE.md` draws them: the block marked `imports`.
fn drawn() -> BTreeMap<String, BTreeSet<String>> {
    let text = fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let (_, after) = text.split_once("```imports\n").expect("the imports are marked");
    let (block, _) = after.split_once("```").unwrap();
    let mut arrows = BTreeMap::new();
    for line in block.lines() {
        let (name, targets) = line.split_once("──►").expect("name ──► names");
        let targets = targets.split_whitespace().filter(|t| *t != "·").map(str::to_owned).collect();
        arrows.insert(name.trim().to_owned(), targets);
    }
    arrows
}

/// Crates this one may name, by its manifest; what only its tests name does not count.
fn named(manifest: &str) -> BTreeSet<String> {
    let mut in_dependencies = false;
    let mut names = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            in_dependencies = line == "[dependencies]";
        } else if let (true, Some(rest)) = (in_dependencies, line.strip_prefix("ferry-")) {
            names.insert(rest.split(['.', ' ', '=']).next().unwrap().to_owned());
        }
    }
    names
}

/// All Rust files below a directory.
fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn crates_import_what_the_architecture_draws() {
    let drawn = drawn();
    let mut real = BTreeMap::new();
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let dir = entry.unwrap().path();
        let Ok(manifest) = fs::read_to_string(dir.join("Cargo.toml")) else { continue };
        let name = dir.file_name().unwrap().to_str().unwrap().to_owned();
        real.insert(name, named(&manifest));
    }
    assert_eq!(real, drawn, "left: the manifests; right: docs/ARCHITECTURE.md");
}

#[test]
fn crates_with_bans_of_their_own_repeat_those_of_the_root() {
    let base = fs::read_to_string(root().join("clippy.toml")).unwrap();
    let mut looked_at = 0;
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let path = entry.unwrap().path().join("clippy.toml");
        let Ok(own) = fs::read_to_string(&path) else { continue };
        looked_at += 1;
        for line in base.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#')) {
            assert!(own.lines().any(|l| l == line), "{} lacks: {line}", path.display());
        }
    }
    assert!(looked_at >= 3, "only {looked_at} crates have bans of their own");
}

#[test]
fn every_ignored_test_says_why() {
    let mut files = Vec::new();
    rust_files(&root().join("crates"), &mut files);
    for path in files {
        for line in fs::read_to_string(&path).unwrap().lines() {
            assert!(line.trim() != "#[ignore]", "{} has a test ignored without a reason", path.display());
        }
    }
}

#[test]
fn no_file_is_too_long_to_read() {
    let mut files = Vec::new();
    rust_files(&root().join("crates"), &mut files);
    assert!(files.len() > 50);
    for path in files {
        let is_test = path.components().any(|c| c.as_os_str() == "tests") || path.ends_with("tests.rs");
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(is_test || lines <= LINES_MAX, "{} has {lines} lines", path.display());
    }
}

#[test]
fn every_crate_says_what_it_is_in_its_first_line() {
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let dir = entry.unwrap().path();
        let top = ["src/lib.rs", "src/main.rs"].map(|f| dir.join(f)).into_iter().find(|f| f.exists());
        let Some(top) = top else { continue };
        let text = fs::read_to_string(&top).unwrap();
        assert!(text.starts_with("//! "), "{} has no door sign", top.display());
    }
}
