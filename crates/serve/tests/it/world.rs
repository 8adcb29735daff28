//! A server in this process, on a unix socket of a directory of its own.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;

use ferry_serve::export::{Export, Exports};
use ferry_serve::nbd::{Options, Security, Server};
use ferry_serve::testing::MemoryDevice;
use tokio::runtime::Runtime;

/// See the module.
pub(crate) struct World {
    pub(crate) runtime: Runtime,
    pub(crate) exports: Arc<Exports>,
    pub(crate) server: Arc<Server>,
    pub(crate) directory: tempfile::TempDir,
    devices: std::sync::Mutex<Vec<(String, Arc<MemoryDevice>)>>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        let exports = Arc::new(Exports::default());
        let server = Server::new(Arc::clone(&exports), options, runtime.handle().clone());
        let directory = tempfile::tempdir().unwrap();
        server.listen_unix(&directory.path().join("socket"), Security::Plain).unwrap();
        Self { runtime, exports, server, directory, devices: std::sync::Mutex::default() }
    }

    pub(crate) fn add(&self, name: &str, device: MemoryDevice) -> Arc<MemoryDevice> {
        let device = Arc::new(device);
        self.exports.add(Export::new(name, "", Arc::clone(&device) as _, false)).unwrap();
        self.devices.lock().unwrap().push((name.to_owned(), Arc::clone(&device)));
        device
    }

    pub(crate) fn device(&self, name: &str) -> Arc<MemoryDevice> {
        let devices = self.devices.lock().unwrap();
        Arc::clone(&devices.iter().find(|d| d.0 == name).unwrap().1)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// Runs a program; what it said, where it went well.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = attempt(program, arguments);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{err}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a program.
pub(crate) fn attempt(program: &str, arguments: &[&str]) -> Output {
    Command::new("timeout").arg("120").arg(program).args(arguments).output().unwrap()
}

/// Whether this process runs this test alone, so that its memory can be measured; runs it in another one where not.
pub(crate) fn alone(name: &str) -> bool {
    if std::env::var_os("FERRY_TEST_ALONE").is_some() {
        return true;
    }
    let itself = std::env::current_exe().unwrap();
    let output = Command::new(itself).args(["--exact", name]).env("FERRY_TEST_ALONE", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{err}");
    false
}

/// Fails where `docs/SEMANTICS.md` no longer says what a test is about to prove.
pub(crate) fn promised(sentence: &str) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/SEMANTICS.md");
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains(sentence), "docs/SEMANTICS.md does not say: {sentence}");
}
