//! Images on real servers hold what they hold in a file, and little more is served than they hold.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use ferry_core::{BlockSource, SourcePoint};
use serde_json::{Value, json};

use super::Server;
use super::http::Nginx;
use crate::generate::Rng;
use crate::qemu::{bytes_by_qemu, open, promises, qemu_io, run, snapshot_by_qemu, text};

/// Size of the device. Bytes.
const DEVICE: u64 = 80 << 20;

/// A compressed image with holes, a snapshot, and changes since.
fn make(directory: &Path, path: &Path) {
    let raw = directory.join("raw");
    let mut rng = Rng(11);
    let mut bytes = vec![0; usize::try_from(DEVICE).unwrap()];
    for region in bytes.chunks_mut(5 << 20).step_by(3) {
        for words in region.chunks_mut(16) {
            words[..8].copy_from_slice(&rng.next().to_le_bytes());
        }
    }
    std::fs::write(&raw, &bytes).unwrap();
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-c", text(&raw), text(path)]);
    run("qemu-img", &["snapshot", "-c", "before", text(path)]);
    let changes = ["write -P 9 7M 3M", "write -z 30M 2M", "write -P 3 33000 1234", "discard 60M 4M"];
    qemu_io("qcow2", path, &changes.map(str::to_owned));
    std::fs::remove_file(raw).unwrap();
}

/// Compares all points, by pieces several of which are under way.
fn assert_holds(source: &Arc<dyn BlockSource>, points: &[(SourcePoint, Vec<u8>)]) {
    const PIECE: u64 = 4 << 20;
    for (at, expected) in points {
        let pieces = (0..DEVICE / PIECE).map(|i| (i * PIECE, source.read(*at, i * PIECE, PIECE)));
        for (offset, reply) in pieces.collect::<Vec<_>>() {
            let from = usize::try_from(offset).unwrap();
            let got = reply.wait().unwrap().to_vec(offset, PIECE);
            assert!(got == expected[from..from + got.len()], "{at:?}, {offset}");
        }
    }
}

/// Bytes of bodies that the server says it sent.
fn served(nginx: &Nginx) -> u64 {
    let log = std::fs::read_to_string(nginx.dir.path().join("access.log")).unwrap();
    log.lines().map(|line| line.split_whitespace().nth(9).unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn a_compressed_image_with_snapshots_is_the_same_in_a_file_on_a_web_server_and_behind_nbd() {
    promises("Over every stream an image is the same, at each of its snapshots.");
    let nginx = Nginx::start("DNS:localhost");
    let directory = nginx.dir.path();
    let path = directory.join("www/image.qcow2");
    make(directory, &path);
    let points = [
        (SourcePoint::Snapshot(0), snapshot_by_qemu(&path, "before", DEVICE, DEVICE)),
        (SourcePoint::Head, bytes_by_qemu("qcow2", &path)),
    ];
    let spec = |stream: Value| json!({"type": "qcow2", "stream": stream});
    let file = open(&spec(json!({"type": "file", "file_path": path}))).unwrap();
    assert_holds(&file, &points);

    let url = format!("http://127.0.0.1:{}/image.qcow2", nginx.port);
    let web = open(&spec(json!({"type": "http", "url": url}))).unwrap();
    let to_open = served(&nginx);
    assert!(to_open <= 1 << 20, "{to_open} bytes to open");
    assert_eq!(web.snapshots(), file.snapshots());
    // The head alone: what a migration of an image whose snapshots share most of it fetches.
    assert_holds(&web, &points[1..]);
    let size = std::fs::metadata(&path).unwrap().len();
    let all = served(&nginx);
    assert!(all * 100 <= size * 105, "{all} bytes served of a file of {size}");
    assert_holds(&web, &points);

    let socket = directory.join("nbd");
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["-f", "-r", "-U"]).arg(&socket).arg("file").arg(&path);
    let _server = Server::start(&mut nbdkit, || socket.exists());
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let behind = open(&spec(json!({"type": "nbd", "uri": uri}))).unwrap();
    assert_holds(&behind, &points);
}
