//! A process that outlives the one that serves a device, for as long as it takes to let go of it.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use ferry_core::{Error, Result};

use super::nbd::disconnect_all;

/// Tells a process that it is one, and of which devices.
const OF: &str = "FERRY_WATCHDOG_OF";

/// Whether this program has [`be_watchdog`] at its beginning.
static CAN_BE_ONE: AtomicBool = AtomicBool::new(false);

/// How to start one: a program whose first act is [`be_watchdog`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watchdog {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// One that was started. It ends when this is dropped, or when this process is dead, and lets go of the device then.
#[derive(Debug)]
pub(super) struct Watching(Child);

impl Watchdog {
    /// This very program, where it began with [`be_watchdog`].
    #[must_use]
    pub fn this_program() -> Option<Self> {
        let program = CAN_BE_ONE.load(Ordering::Relaxed).then(std::env::current_exe)?.ok()?;
        // For people who list processes.
        Some(Self { program, arguments: vec!["watchdog-of-a-device".into()] })
    }

    /// Starts one for the devices that say `identity`.
    pub(super) fn start(&self, identity: &str) -> Result<Watching> {
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .env(OF, identity)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What ends us by the keyboard is not meant for it.
            .process_group(0)
            .spawn();
        child.map(Watching).map_err(|e| {
            Error::io("cannot start the watchdog of a device", e).with("program", self.program.display())
        })
    }
}

impl Watching {
    /// Ends it. The device is gone, so it does nothing.
    pub(super) fn end(self) {
        drop(self);
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        if let Err(e) = self.0.wait() {
            tracing::warn!(error = %e, "the watchdog of a device was not seen to end");
        }
    }
}

/// Where this process was started as a watchdog: waits until the one that serves the device is dead or has let go of it, and takes
/// the device away then. `None` where it was not. Blocks.
///
/// # Errors
/// Those of the kernel.
#[must_use]
pub fn be_watchdog() -> Option<Result<()>> {
    CAN_BE_ONE.store(true, Ordering::Relaxed);
    let identity = std::env::var(OF).ok()?;
    // Nothing is ever written; it ends when the other end is closed, however that came.
    io::copy(&mut io::stdin().lock(), &mut io::sink()).ok();
    Some(disconnect_all(&identity).map(drop))
}
