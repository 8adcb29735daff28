//! A cluster for one run, gone after it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use ferry_rados::{Options, RadosStore};
use tempfile::TempDir;

/// The script, from this crate.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/ceph/single-node.sh");

/// A running cluster.
pub(crate) struct Cluster {
    config_file: PathBuf,
    /// Ours to stop, where we started it.
    home: Option<TempDir>,
}

impl Cluster {
    /// Starts one, or says why `test` is skipped.
    pub(crate) fn start(test: &str) -> Option<Self> {
        if let Some(config_file) = std::env::var_os("FERRY_TEST_CEPH_CONF") {
            return Some(Self { config_file: config_file.into(), home: None });
        }
        if std::env::var_os("FERRY_TEST_CEPH").is_none_or(|v| v != "1") {
            println!("SKIPPED {test}: FERRY_TEST_CEPH=1 is not set");
            return None;
        }
        let check = Command::new(SCRIPT).arg("check").output().expect("the script is in the tree");
        if !check.status.success() {
            println!("SKIPPED {test}: {}", String::from_utf8_lossy(&check.stderr).trim());
            return None;
        }
        let home = tempfile::Builder::new().prefix("ferry-ceph.").tempdir().expect("a directory");
        let cluster = home.path().join("cluster");
        let started = Command::new(SCRIPT).arg("start").arg(&cluster).stdin(Stdio::null()).status();
        assert!(started.expect("the script runs").success(), "the cluster does not start");
        Some(Self { config_file: cluster.join("ceph.conf"), home: Some(home) })
    }

    /// A new client.
    pub(crate) fn connect(&self) -> Arc<RadosStore> {
        let options = Options { config_file: Some(self.config_file.clone()), ..Options::default() };
        RadosStore::connect(&options).unwrap_or_else(|e| panic!("{}", e.chain()))
    }

    /// Runs one of Ceph's commands.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> String {
        let Output { status, stdout, stderr } = Command::new(program)
            .arg("-c")
            .arg(&self.config_file)
            .args(arguments)
            .output()
            .expect("it is installed");
        assert!(status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).expect("text")
    }

    /// The configuration's path.
    pub(crate) fn config_file(&self) -> &Path {
        &self.config_file
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            let stopped = Command::new(SCRIPT).arg("stop").arg(home.path().join("cluster")).status();
            assert!(stopped.is_ok_and(|s| s.success()), "the cluster does not stop");
        }
    }
}
