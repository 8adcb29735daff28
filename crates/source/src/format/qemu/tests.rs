use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_core::{BlockSource, ErrorKind, SourcePoint};
use serde_json::{Value, json};

use crate::testing::{bytes_at, open};

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An image of 3 MiB and some sectors with data here and there, in raw and in another format.
fn image(directory: &Path, format: &str, options: &[&str]) -> (Value, Vec<u8>) {
    let (raw, path) = (directory.join("raw"), directory.join(format!("image.{format}")));
    let mut bytes = vec![0; (3 << 20) + 5 * 512];
    bytes[700_000..1_200_000].iter_mut().enumerate().for_each(|(i, b)| *b = u8::try_from(i % 253).unwrap());
    bytes[3_000_000] = 9;
    fs::write(&raw, &bytes).unwrap();
    let (raw, text) = (raw.to_str().unwrap(), path.to_str().unwrap());
    run("qemu-img", &[&["convert", "-f", "raw", "-O", format], options, &[raw, text]].concat());
    (json!({"type": format, "stream": {"type": "file", "file_path": text}}), bytes)
}

/// Whether a server for a file of this directory runs.
fn is_served(directory: &Path) -> bool {
    let text = directory.to_str().unwrap().as_bytes();
    fs::read_dir("/proc").unwrap().any(|entry| {
        let command = fs::read(entry.unwrap().path().join("cmdline")).unwrap_or_default();
        command.starts_with(b"qemu-nbd") && command.windows(text.len()).any(|w| w == text)
    })
}

fn head(source: &Arc<dyn BlockSource>, length: usize) -> Vec<u8> {
    let bytes = bytes_at(source, SourcePoint::Head);
    // Some formats round the size up to what they can say.
    assert!(bytes[length..].iter().all(|b| *b == 0), "{} bytes", bytes.len());
    bytes[..length].to_vec()
}

#[test]
fn formats_of_qemu_hold_what_was_put_into_them() {
    // Not all of them know their holes.
    let mut telling = 0;
    for (format, options) in [
        ("vmdk", &[][..]),
        ("vmdk", &["-o", "subformat=streamOptimized"]),
        ("vhdx", &[]),
        ("vdi", &[]),
        ("vpc", &["-o", "force_size=on"]),
        ("qed", &[]),
        ("parallels", &[]),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let (spec, bytes) = image(directory.path(), format, options);
        let source = open(&spec.to_string()).unwrap();
        assert!(head(&source, bytes.len()) == bytes, "{format}");
        assert!(source.pin().starts_with(format), "{}", source.pin());
        let extents = source.extents(SourcePoint::Head, 0, source.size()).wait().unwrap();
        telling += usize::from(extents.len() > 1);
        assert!(is_served(directory.path()));
        drop(source);
        let began = Instant::now();
        while is_served(directory.path()) {
            assert!(began.elapsed() < Duration::from_secs(10), "the server of {format} lives on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    assert!(telling >= 4, "{telling} formats told of holes");
}

#[test]
fn an_image_that_is_changed_under_its_server_is_a_conflict() {
    let directory = tempfile::tempdir().unwrap();
    let (spec, _) = image(directory.path(), "vdi", &[]);
    let source = open(&spec.to_string()).unwrap();
    source.read(SourcePoint::Head, 0, 4096).wait().unwrap();
    let path = directory.path().join("image.vdi");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes).unwrap();
    assert_eq!(source.read(SourcePoint::Head, 0, 4096).wait().unwrap_err().kind(), ErrorKind::Conflict);
}

#[test]
fn a_file_that_leads_to_another_is_refused_unless_the_spec_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let (mut spec, bytes) = image(directory.path(), "vmdk", &["-o", "subformat=monolithicFlat"]);
    let refused = open(&spec.to_string()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.fact("wanted").unwrap().contains("image-flat.vmdk"), "{refused}");
    spec["data_file"] = json!({"type": "file", "file_path": directory.path().join("image-flat.vmdk")});
    let source = open(&spec.to_string()).unwrap();
    assert!(head(&source, bytes.len()) == bytes);
}

#[test]
fn what_is_no_image_of_the_format_or_in_no_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    fs::write(&path, [7; 70_000]).unwrap();
    let spec = json!({"type": "vhdx", "stream": {"type": "file", "file_path": path}});
    let refused = open(&spec.to_string()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
    assert!(!is_served(directory.path()));
    let spec = json!({"type": "vmdk", "stream": {"type": "http", "url": "http://127.0.0.1:1/x.vmdk"}});
    assert_eq!(open(&spec.to_string()).unwrap_err().kind(), ErrorKind::Unsupported);
}
