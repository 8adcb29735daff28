//! qemu-nbd and nbdkit: extents, errors, delays, limits, TLS, restarts.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ferry_core::{Errno, ErrorKind, ExtentState, Result};
use ferry_source::Stream;
use ferry_source::stream::nbd::{NbdOptions, NbdStream, open_with};
use tempfile::TempDir;

use super::{Server, assert_reads, certificates, content, free_port, patience, runtime};

/// What is served, a whole number of sectors.
fn disk(dir: &Path) -> Vec<u8> {
    let mut bytes = content();
    bytes.truncate(bytes.len() / 512 * 512);
    std::fs::write(dir.join("disk.raw"), &bytes).unwrap();
    let sparse = Command::new("fallocate").arg("-d").arg(dir.join("disk.raw")).status().unwrap();
    assert!(sparse.success());
    bytes
}

fn qemu_nbd(dir: &Path, clients: &str) -> Server {
    let (socket, pid) = (dir.join("socket"), dir.join("pid"));
    // What a killed one left.
    drop(std::fs::remove_file(&socket));
    drop(std::fs::remove_file(&pid));
    let mut command = Command::new("qemu-nbd");
    command.args(["-r", "-t", "-f", "raw", "-x", "disk", "-e", clients, "-k"]).arg(&socket);
    // Its socket is there a moment before it listens; this file is not.
    command.arg("--pid-file").arg(&pid);
    Server::start(command.arg(dir.join("disk.raw")), || pid.exists())
}

/// Serves the file with these filters, and parameters of theirs.
fn nbdkit(dir: &Path, before: &[&str], after: &[&str]) -> Server {
    let (socket, pid) = (dir.join("socket"), dir.join("pid"));
    drop(std::fs::remove_file(&pid));
    let mut command = Command::new("nbdkit");
    command.args(["-f", "-r", "-U"]).arg(&socket).arg("-P").arg(&pid).args(before);
    command.arg("file").arg(dir.join("disk.raw")).args(after);
    Server::start(&mut command, || pid.exists() && socket.exists())
}

fn open(dir: &Path, export: &str) -> Result<Arc<NbdStream>> {
    let uri = format!("nbd+unix:///{export}?socket={}", dir.join("socket").display());
    let options = NbdOptions { patience: patience(), ..NbdOptions::parse(&uri).unwrap() };
    open_with(options, runtime()).wait()
}

#[test]
fn an_export_is_read_with_what_it_says_of_holes() {
    let dir = TempDir::new().unwrap();
    let bytes = disk(dir.path());
    let _server = qemu_nbd(dir.path(), "8");
    let stream = open(dir.path(), "disk").unwrap();
    assert_reads(&*stream, &bytes);
    assert_eq!(stream.traffic().failures, 0);
    assert!(stream.traffic().connections > 1, "several connections where they see the same");
    let extents = stream.extents(0, bytes.len() as u64).wait().unwrap();
    let zeros: Vec<_> = extents.iter().filter(|e| e.state == ExtentState::Zero).collect();
    assert_eq!(zeros.iter().map(|e| (e.offset, e.length)).collect::<Vec<_>>(), [(3 << 20, 2 << 20)]);
    assert_eq!(extents.iter().map(|e| e.length).sum::<u64>(), bytes.len() as u64);
    assert_eq!(open(dir.path(), "other").unwrap_err().errno(), Errno::ENOENT);
}

#[test]
fn a_server_for_one_client_gets_one_connection() {
    let dir = TempDir::new().unwrap();
    let bytes = disk(dir.path());
    let _server = qemu_nbd(dir.path(), "1");
    let stream = open(dir.path(), "disk").unwrap();
    assert_reads(&*stream, &bytes);
    assert_eq!(stream.traffic().connections, 1);
}

#[test]
fn a_server_that_is_killed_and_started_again_is_waited_for() {
    let dir = TempDir::new().unwrap();
    let bytes = disk(dir.path());
    let slow = || nbdkit(dir.path(), &["--filter=rate"], &["rate=24M"]);
    let server = slow();
    let stream = open(dir.path(), "").unwrap();
    let reading = stream.read(0, bytes.len() as u64);
    std::thread::sleep(Duration::from_millis(400));
    server.kill();
    drop(std::fs::remove_file(dir.path().join("socket")));
    std::thread::sleep(Duration::from_millis(500));
    let server = slow();
    assert!(reading.wait().unwrap() == bytes);
    assert!(stream.traffic().failures > 0);

    // Another size under the same name is another export.
    server.kill();
    drop(std::fs::remove_file(dir.path().join("socket")));
    std::fs::write(dir.path().join("disk.raw"), &bytes[..1 << 20]).unwrap();
    let _server = slow();
    assert_eq!(stream.read(0, 512).wait().unwrap_err().kind(), ErrorKind::Conflict);
}

#[test]
fn errors_now_and_then_are_asked_again_and_those_that_stay_are_told() {
    let dir = TempDir::new().unwrap();
    let bytes = disk(dir.path());
    let server = nbdkit(dir.path(), &["--filter=error"], &["error-pread=EIO", "error-pread-rate=20%"]);
    let stream = open(dir.path(), "").unwrap();
    assert_reads(&*stream, &bytes);
    drop(server);
    drop(std::fs::remove_file(dir.path().join("socket")));
    let _server = nbdkit(dir.path(), &["--filter=error"], &["error-pread=EIO", "error-pread-rate=100%"]);
    let uri = format!("nbd+unix:///?socket={}", dir.path().join("socket").display());
    let mut options = NbdOptions { patience: patience(), ..NbdOptions::parse(&uri).unwrap() };
    options.patience.retry = Duration::from_millis(500);
    let stream = open_with(options, runtime()).wait().unwrap();
    let error = stream.read(0, 4096).wait().unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Unavailable, Errno::EIO), "{}", error.chain());
}

#[test]
fn servers_of_other_habits_are_read_too() {
    let dir = TempDir::new().unwrap();
    let bytes = disk(dir.path());
    let habits: [(&[&str], &[&str]); 5] = [
        (&["--no-sr"], &[]),
        (&["--filter=noextents"], &[]),
        (&["--filter=delay"], &["delay-read=20ms"]),
        (
            &["--filter=blocksize-policy"],
            &["blocksize-minimum=512", "blocksize-maximum=65536", "blocksize-error-policy=error"],
        ),
        (&["--mask-handshake=0"], &[]),
    ];
    for (before, after) in habits {
        let server = nbdkit(dir.path(), before, after);
        let opened = open(dir.path(), "");
        if before == ["--mask-handshake=0"] {
            assert_eq!(opened.unwrap_err().kind(), ErrorKind::Unsupported, "a server of the old style");
        } else {
            let stream = opened.unwrap_or_else(|e| panic!("{before:?}: {}", e.chain()));
            assert_reads(&*stream, &bytes);
            assert_eq!(stream.traffic().failures, 0, "{before:?}");
        }
        server.kill();
        drop(std::fs::remove_file(dir.path().join("socket")));
    }
}

#[test]
fn tls_is_spoken_with_a_server_whose_certificate_is_trusted() {
    let dir = TempDir::new().unwrap();
    let bytes = disk(dir.path());
    certificates(dir.path(), "DNS:localhost,IP:127.0.0.1");
    let port = free_port();
    let mut command = Command::new("nbdkit");
    command.args(["-f", "-r", "-i", "127.0.0.1", "-p", &port.to_string(), "--tls=require"]);
    command.arg(format!("--tls-certificates={}", dir.path().display()));
    command.arg("file").arg(dir.path().join("disk.raw"));
    let _server = Server::start(&mut command, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let open = |scheme: &str, authorities: Option<&str>| {
        let mut options = NbdOptions::parse(&format!("{scheme}://127.0.0.1:{port}/")).unwrap();
        options.patience = patience();
        options.authorities = authorities.map(|a| dir.path().join(a));
        open_with(options, runtime()).wait()
    };
    assert_reads(&*open("nbds", Some("ca-cert.pem")).unwrap(), &bytes);
    assert_eq!(open("nbds", None).unwrap_err().kind(), ErrorKind::Denied);
    let error = open("nbd", None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{}", error.chain());
    assert!(error.chain().contains("nbds://"), "{}", error.chain());
}
