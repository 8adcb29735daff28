//! The node: owns the stores of a home, executes commands on them for everybody, and keeps their jobs.
//!
//! ```text
//!   lock the home ─► open its stores ─► open the doors ─► resume jobs ─► ready
//!        ▲                                                                 │ SIGTERM, SIGINT
//!        └── give all free ◄─ close stores ◄─ doors closed ◄─ stop jobs ◄──┘
//! ```

mod metrics;
mod service;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ferry_core::{Env, Errno, Error};

use crate::api::{Done, Events, Failure, NbdListen, Outcome};
use crate::backend::{Got, IfMissing, Owner, RealStores, Taken};
use crate::cancel::Cancel;
use crate::config::{ExportRecord, Home};
use crate::devices::Devices;
use crate::execute;
use crate::exporter::Exporter;
use crate::host::{Host, Stay};
use crate::jobs::Jobs;

/// Name of the directory of jobs in the home.
const JOBS_DIR: &str = "jobs";

/// Name of the socket for NBD in the home.
const NBD_SOCKET: &str = "nbd.sock";

/// What a node does besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServeOptions {
    /// Where clients of NBD come in; on a unix socket in the home where none is named.
    pub nbd: NbdListen,
    /// A loopback address for metrics and health over HTTP.
    pub metrics: Option<SocketAddr>,
}

/// Serves a home until `cancel` is asked for; calls `ready` once commands are taken. Blocks.
///
/// # Errors
/// `Busy` (16) where another node serves the home; `Invalid` for a configuration that is none; those of stores, which are not
/// opened then: whoever needs one hears why.
///
/// # Crash safety
/// Stores are as after any crash; jobs are taken up by the next node.
pub fn serve(
    home: &Home,
    env: Env,
    options: &ServeOptions,
    cancel: &Cancel,
    ready: impl FnOnce(),
) -> Done<()> {
    let owner = own(home)?;
    let host = Host::new(Arc::new(RealStores), env, Stay::Serving);
    let jobs = Jobs::new(&host, home.dir().join(JOBS_DIR));
    host.keep_jobs(Arc::clone(&jobs));
    let devices = Devices::new(home.devices());
    devices.clean();
    // The node itself stays; no mapping has to.
    devices.hold();
    devices.begun(true);
    host.keep_devices(Arc::clone(&devices));
    open_stores(&host, home)?;
    let cannot = |e: Error| Failure::of(&e, "the node cannot start", "rbd: serve error");
    let exporter = export(&host, home, options)?;
    if let Some(address) = options.metrics {
        let address = metrics::listen(&host, address).map_err(cannot)?;
        tracing::info!(%address, "metrics told");
    }
    host.door().open_at(home.dir()).map_err(cannot)?;
    let resumed = jobs.resume().map_err(cannot)?;
    tracing::info!(home = %home.dir().display(), jobs = resumed, "node ready");
    service::ready();
    ready();
    futures_executor::block_on(cancel.asked());
    service::stopping();
    tracing::info!("node stops");
    jobs.stop();
    host.stop_calls();
    jobs.wait();
    host.close_door();
    // After the last command: one of them may have added an export.
    let unmapped = devices.stop();
    let given_back = futures_executor::block_on(exporter.stop());
    let ended = unmapped.and(given_back).and(host.end());
    drop(owner);
    ended.map_err(|e| Failure::of(&e, "a store could not be closed", "rbd: close error"))?;
    tracing::info!("node stopped");
    Ok(())
}

/// Listens for clients of NBD and offers what the node before this one offered.
fn export(host: &Arc<Host>, home: &Home, options: &ServeOptions) -> Done<Arc<Exporter>> {
    let cannot = |e: Error| Failure::of(&e, "the node cannot start", "rbd: serve error");
    let exporter = Arc::new(Exporter::new(host.runtime().map_err(cannot)?, &options.nbd));
    host.keep_exporter(Arc::clone(&exporter));
    let mut sources = Vec::new();
    for (name, record) in home.exports().map_err(cannot)? {
        let record = match record {
            ExportRecord::Image(record) => record,
            ExportRecord::Source(record) => {
                sources.push((name, record));
                continue;
            }
        };
        if let Err(failure) = execute::offer(host, home, &name, &record) {
            // It stays in the list: what keeps it from being offered may be repaired.
            tracing::error!(
                export = name,
                what = failure.what,
                cause = failure.cause,
                "export cannot be offered"
            );
        }
    }
    execute::offer_sources(host, home, sources).map_err(cannot)?;
    // Last: whoever can connect finds the exports.
    let mut listen = options.nbd.clone();
    listen.socket.get_or_insert_with(|| home.dir().join(NBD_SOCKET));
    let given = service::sockets().map_err(cannot)?;
    exporter.listen(&listen, given).map_err(cannot)?;
    Ok(exporter)
}

/// Takes the home, so that it has one node.
fn own(home: &Home) -> Done<Owner> {
    let cannot = |e: Error| Failure::of(&e, "the node cannot start", "rbd: serve error");
    std::fs::create_dir_all(home.dir()).map_err(|e| {
        cannot(Error::io("cannot make the home directory", e).with("directory", home.dir().display()))
    })?;
    let taken = Owner::take(home.dir(), Duration::ZERO, &|_| {}).map_err(|e| {
        if e.errno() == Errno::EBUSY {
            cannot(another(home, e.fact("process").unwrap_or("unknown")))
        } else {
            cannot(e)
        }
    })?;
    match taken {
        Taken::Ours(owner) => Ok(owner),
        Taken::Served(served) => Err(cannot(another(home, &served.process))),
    }
}

/// Somebody serves the home already.
fn another(home: &Home, process: &str) -> Error {
    Error::busy("a node serves this home already").with("home", home.dir().display()).with("node", process)
}

/// Opens the stores that the configuration names. One that cannot be opened does not keep the others from being served.
fn open_stores(host: &Arc<Host>, home: &Home) -> Done<()> {
    let config = home.load();
    let config = config.map_err(|e| Failure::of(&e, "the node cannot start", "rbd: configuration error"))?;
    let mut dirs: Vec<_> = config.pools.keys().filter_map(|pool| home.store_of(&config, pool)).collect();
    dirs.sort();
    dirs.dedup();
    for dir in dirs {
        if let Err(e) = open_store(host, &dir) {
            tracing::error!(store = %dir.display(), error = %e.chain(), "store cannot be opened");
        }
    }
    Ok(())
}

fn open_store(host: &Arc<Host>, dir: &Path) -> ferry_core::Result<()> {
    match host.stores.get(dir, IfMissing::Fail, &Logged)? {
        Got::Opened(_) => host.opened()?,
        Got::Open(_) => {}
        Got::Theirs(served) => return Err(served.busy()),
    }
    tracing::info!(store = %dir.display(), "store opened");
    Ok(())
}

/// What happens goes to the log.
#[derive(Debug)]
struct Logged;

impl Events for Logged {
    fn progress(&self, _: &str, _: u64, _: u64) {}
    fn finished(&self, _: &str, _: Outcome) {}
    fn note(&self, line: &str) {
        tracing::info!(line, "note");
    }
    fn advise(&self, line: &str) {
        tracing::info!(line, "note");
    }
    fn say(&self, line: &str) {
        tracing::info!(line, "said");
    }
    fn measured(&self, _: &crate::api::BenchRow) {}
}
