//! QEMU's tools, and sources opened through the public door.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use ferry_core::{BlockSource, Result};
use ferry_source::env::NoSecrets;
use ferry_source::{Env, Origin, SourceSpec};
use serde_json::Value;
use tokio::runtime::Runtime;

/// Runs a program and returns what it prints. Panics with what it says where it fails.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{out}{err}", output.status);
    out.into_owned()
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs commands of `qemu-io` on an image. QEMU refuses to write compressed what is written already, and to go on from there is
/// right: what it reads afterwards counts.
pub(crate) fn qemu_io(format: &str, path: &Path, commands: &[String]) {
    let mut command = Command::new("qemu-io");
    command.args(["-f", format]).stdin(Stdio::null());
    for given in commands {
        command.args(["-c", given]);
    }
    let output = command.arg(path).output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    let refused = said.lines().filter(|line| line.contains("failed")).count();
    let compressed = commands.iter().filter(|c| c.starts_with("write -c")).count();
    // Of version 1 it also refuses to write beside what it compressed, where it cannot read that itself.
    let expected = if format == "qcow" { commands.len() } else { compressed };
    assert!(output.status.success() || (1..=expected).contains(&refused), "{commands:?}: {said}");
}

/// Whether QEMU itself can read the image it made: of version 1 not always, where compressed clusters were written again.
pub(crate) fn is_readable(format: &str, path: &Path) -> bool {
    let read = format!("{}.read", path.display());
    let output = Command::new("qemu-img")
        .args(["convert", "-f", format, "-O", "raw", text(path), &read])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    output.status.success()
}

/// What QEMU reads of an image.
pub(crate) fn bytes_by_qemu(format: &str, path: &Path) -> Vec<u8> {
    converted(path, &["convert", "-f", format, "-O", "raw"])
}

/// What QEMU reads of a snapshot of a qcow2 image, where the device had a size then that it has now too or not: the head's size is
/// the one that QEMU gives a snapshot, unless the image goes back to it.
pub(crate) fn snapshot_by_qemu(path: &Path, name: &str, size: u64, size_now: u64) -> Vec<u8> {
    if size == size_now {
        let chosen = format!("snapshot.name={name}");
        return converted(path, &["convert", "-f", "qcow2", "-O", "raw", "-l", &chosen]);
    }
    let copy = PathBuf::from(format!("{}.copy", path.display()));
    std::fs::copy(path, &copy).unwrap();
    run("qemu-img", &["snapshot", "-a", name, text(&copy)]);
    let bytes = bytes_by_qemu("qcow2", &copy);
    std::fs::remove_file(&copy).unwrap();
    bytes
}

fn converted(path: &Path, arguments: &[&str]) -> Vec<u8> {
    let raw = PathBuf::from(format!("{}.raw", path.display()));
    run("qemu-img", &[arguments, &[text(path), text(&raw)]].concat());
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(&raw).unwrap();
    bytes
}

/// What QEMU says of where an image has data: offset, length, whether it holds data.
pub(crate) fn map_by_qemu(format: &str, path: &Path) -> Vec<(u64, u64, bool)> {
    let said = run("qemu-img", &["map", "-f", format, "--output=json", text(path)]);
    let entries: Value = serde_json::from_str(&said).unwrap();
    let entry = |e: &Value| {
        let number = |key: &str| e[key].as_u64().unwrap();
        (number("start"), number("length"), e["data"] == true)
    };
    entries.as_array().unwrap().iter().map(entry).collect()
}

/// An environment whose runtime lives as long as the tests.
pub(crate) fn env() -> Env {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    });
    Env { runtime: runtime.handle().clone(), secrets: Arc::new(NoSecrets) }
}

/// Opens a spec.
pub(crate) fn open(spec: &Value) -> Result<Arc<dyn BlockSource>> {
    match SourceSpec::parse(&spec.to_string())?.origin() {
        Origin::Image(image) => ferry_source::open(image, &env()).wait(),
        Origin::Native(_) => panic!("a native spec is not opened here"),
    }
}

/// Fails where `docs/SEMANTICS.md` no longer says what a test is about to prove.
pub(crate) fn promises(sentence: &str) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/SEMANTICS.md");
    let text = std::fs::read_to_string(path).unwrap();
    let flat: Vec<&str> = text.split_whitespace().collect();
    assert!(flat.join(" ").contains(sentence), "docs/SEMANTICS.md does not say: {sentence}");
}
