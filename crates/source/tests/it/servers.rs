//! Streams from real servers: nginx, an object store, qemu-nbd and nbdkit.

mod http;
mod images;
mod nbd;
mod s3;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ferry_source::Stream;
use ferry_source::stream::Patience;
use tokio::runtime::{Handle, Runtime};

/// Size of what is served: several pieces, and no whole number of anything.
const SIZE: usize = 9_000_123;

/// Bytes that are the same each time and nowhere repeated, with a hole of zeros in the middle.
fn content() -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut all: Vec<u8> = Vec::with_capacity(SIZE + 8);
    while all.len() < SIZE {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        all.extend(state.to_le_bytes());
    }
    all.truncate(SIZE);
    all[3 << 20..5 << 20].fill(0);
    all
}

/// A runtime that lives as long as the tests.
fn runtime() -> &'static Handle {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let make = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    RUNTIME.get_or_init(make).handle()
}

/// Patience of a test: long enough for a server to restart.
fn patience() -> Patience {
    Patience { retry: Duration::from_secs(10), idle: Duration::from_secs(5), ..Patience::default() }
}

/// A port nobody listens on now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Reads all at once, and a few ranges that fit nothing.
fn assert_reads(stream: &dyn Stream, content: &[u8]) {
    assert_eq!(stream.size(), content.len() as u64);
    assert!(stream.read(0, content.len() as u64).wait().unwrap() == content, "all bytes are right");
    for (offset, length) in [(0, 1), (4095, 4097), (1 << 20, 300_000), (content.len() - 77, 77)] {
        let read = stream.read(offset as u64, length as u64).wait().unwrap();
        assert!(read == content[offset..offset + length], "bytes at {offset} are right");
    }
}

/// A server that ends with the test.
struct Server(Child);

impl Server {
    /// Starts a program and waits until `is_there`.
    fn start(command: &mut Command, is_there: impl Fn() -> bool) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let mut server = Self(child.unwrap_or_else(|e| panic!("{command:?}: {e}")));
        let begun = Instant::now();
        while !is_there() {
            assert!(server.0.try_wait().unwrap().is_none(), "{command:?} has ended");
            assert!(begun.elapsed() < Duration::from_secs(30), "{command:?} does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// Ends it without a word.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// An authority, and certificates it signed for these names: `ca-cert.pem`, `server-cert.pem`, `server-key.pem`.
fn certificates(dir: &Path, names: &str) {
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let key =
        ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    let authority = ["-subj", "/CN=authority", "-keyout", "ca-key.pem", "-out", "ca-cert.pem"];
    openssl(&[&key[..], &authority].concat());
    let names = format!("subjectAltName={names}");
    let usage = ["-addext", "basicConstraints=CA:FALSE", "-addext", "extendedKeyUsage=serverAuth"];
    let signed = ["-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-addext", &names, "-subj", "/CN=server"];
    let server = ["-keyout", "server-key.pem", "-out", "server-cert.pem"];
    openssl(&[&key[..], &signed, &usage, &server].concat());
}
