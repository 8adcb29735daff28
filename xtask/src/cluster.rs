//! One Ceph cluster for all tests of a run: started before them, gone after them.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a test finds the cluster's configuration by.
pub(crate) const VARIABLE: &str = "FERRY_TEST_CEPH_CONF";

/// What the directories of clusters are called; the number of the process that started one follows.
const PREFIX: &str = "ferry-xtask-ceph-";

/// A running cluster, ended when dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    dir: PathBuf,
}

impl Cluster {
    /// Starts one, where none is named already. Without one the tests start their own, or say why not.
    ///
    /// # Errors
    /// Those of writing to stderr.
    pub(crate) fn start() -> io::Result<Option<Self>> {
        if std::env::var_os(VARIABLE).is_some() {
            return Ok(None);
        }
        clear_away();
        let dir = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
        writeln!(io::stderr(), "==> starting a Ceph cluster in {}", dir.display())?;
        // Also one that came half into being is ended.
        let cluster = Self { dir };
        if run("start", &cluster.dir) {
            return Ok(Some(cluster));
        }
        writeln!(io::stderr(), "==> it does not start: tests that need one start their own")?;
        Ok(None)
    }

    /// Its configuration.
    pub(crate) fn conf(&self) -> PathBuf {
        self.dir.join("ceph.conf")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        run("stop", &self.dir);
    }
}

/// Runs the script. Whether it succeeded.
fn run(verb: &str, dir: &Path) -> bool {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/ceph/single-node.sh");
    let status = Command::new(script).arg(verb).arg(dir).stdin(Stdio::null()).status();
    status.is_ok_and(|s| s.success())
}

/// Ends the clusters of runs that were killed.
fn clear_away() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix(PREFIX)).and_then(|n| n.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            run("stop", &entry.path());
        }
    }
}
