//! The server by itself: a device in memory behind it, beside nbdkit's memory plugin, driven by fio in the same run.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_serve::export::{Export, Exports};
use ferry_serve::nbd::{Options, Security, Server};
use ferry_serve::testing::{FlatDevice, NullDevice};

use crate::measure::{ROUNDS, Report, median};

/// Size of the devices: small enough not to leave the processor's reach of memory. Bytes.
const SIZE: usize = 256 << 20;
/// How long one measurement takes, where nothing else is said. Seconds.
const SECONDS: &str = "5";

/// Serves a device in memory, or none at all, on a unix socket until it is killed: what runs in the process that is measured.
pub(crate) fn serve(socket: &Path) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    let exports = Arc::new(Exports::default());
    let memory = Export::new("memory", "", Arc::new(FlatDevice::new(SIZE)), false);
    let null = Export::new("null", "", Arc::new(NullDevice::new()), false);
    for export in [memory, null] {
        exports.add(export).map_err(|e| e.chain())?;
    }
    let server = Server::new(exports, Options::default(), runtime.handle().clone());
    server.listen_unix(socket, Security::Plain).map_err(|e| e.chain())?;
    loop {
        std::thread::park();
    }
}

/// A server in a process of its own; killed when dropped.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    child: Child,
    pub(crate) uri: String,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself; it is gone in any case.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Peer {
    pub(crate) fn start(
        name: &'static str,
        export: &str,
        socket: &Path,
        command: &mut Command,
    ) -> Result<Self, String> {
        let child = command.stdout(Stdio::null()).spawn().map_err(|e| format!("{name}: {e}"))?;
        let peer = Self { name, child, uri: format!("nbd+unix:///{export}?socket={}", socket.display()) };
        let until = Instant::now() + Duration::from_secs(10);
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            if Instant::now() > until {
                return Err(format!("{name} does not listen"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(peer)
    }

    /// CPU time it has used. Seconds.
    fn cpu(&self) -> Result<f64, String> {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).map_err(|e| e.to_string())?;
        let (_, rest) = stat.rsplit_once(") ").ok_or("no process")?;
        let ticks = |n: usize| rest.split(' ').nth(n).and_then(|f| f.parse::<f64>().ok()).ok_or("no ticks");
        let per_second = rustix::param::clock_ticks_per_second();
        Ok((ticks(11)? + ticks(12)?) / per_second as f64)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it in good order.
    pub(crate) fn stop(mut self) -> Result<(), String> {
        let asked = Command::new("kill").arg(self.pid().to_string()).status().map_err(|e| e.to_string())?;
        let ended = self.child.wait().map_err(|e| e.to_string())?;
        if asked.success() && ended.success() {
            Ok(())
        } else {
            Err(format!("{} ended with {ended}", self.name))
        }
    }

    /// Operations per second, and microseconds of the server's CPU for each.
    pub(crate) fn drive(&self, arguments: &[&str]) -> Result<(f64, f64), String> {
        let before = self.cpu()?;
        let jobs = self.fio(arguments)?;
        let used = self.cpu()? - before;
        let (mut operations, mut rate) = (0.0, 0.0);
        for job in &jobs {
            for way in ["read", "write"] {
                operations += job[way]["total_ios"].as_f64().unwrap_or(0.0);
                rate += job[way]["iops"].as_f64().unwrap_or(0.0);
            }
        }
        if operations < 1.0 {
            return Err(format!("fio did nothing: {arguments:?}"));
        }
        Ok((rate, used * 1e6 / operations))
    }

    /// How long 99 of 100 requests of one way (`read`, `write`) take at most. Microseconds.
    pub(crate) fn p99(&self, way: &str, arguments: &[&str]) -> Result<f64, String> {
        let jobs = self.fio(arguments)?;
        let tail = jobs.first().and_then(|job| job[way]["clat_ns"]["percentile"]["99.000000"].as_f64());
        tail.map(|ns| ns / 1000.0).ok_or_else(|| format!("fio tells no latencies: {arguments:?}"))
    }

    /// What fio tells of its jobs.
    fn fio(&self, arguments: &[&str]) -> Result<Vec<serde_json::Value>, String> {
        let output = Command::new("fio")
            .args(["--name=bench", "--ioengine=nbd", "--output-format=json"])
            .arg(format!("--uri={}", self.uri))
            .args(arguments)
            .output()
            .map_err(|e| format!("fio: {e}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let from =
            text.find('{').ok_or_else(|| format!("fio: {}", String::from_utf8_lossy(&output.stderr)))?;
        let json: serde_json::Value = serde_json::from_str(&text[from..]).map_err(|e| e.to_string())?;
        let said = || String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            return Err(format!("fio: {}", said()));
        }
        json["jobs"].as_array().cloned().ok_or_else(|| format!("fio: no jobs: {}", said()))
    }
}

/// Requests of 4 KiB at depth 32: what the server itself costs.
pub(crate) fn overhead(place: &Path, report: &mut Report) -> Result<(), String> {
    let seconds = std::env::var("FERRY_BENCH_SECONDS").unwrap_or_else(|_| SECONDS.to_owned());
    let itself = std::env::current_exe().map_err(|e| e.to_string())?;
    let socket = |name: &str| place.join(name);
    let ours = |name, export: &'static str| {
        let socket = socket(export);
        Peer::start(name, export, &socket, Command::new(&itself).arg("--serve-memory").arg(&socket))
    };
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["-f", "-U"]).arg(socket("nbdkit")).args(["memory", &SIZE.to_string()]);
    let peers = [
        Peer::start("nbdkit memory", "", &socket("nbdkit"), &mut nbdkit)?,
        ours("ferry, nothing behind it", "null")?,
        ours("ferry, memory behind it", "memory")?,
    ];
    for peer in &peers {
        // What is not zero: neither side may leave anything out.
        peer.drive(&["--rw=write", "--bs=1m", "--iodepth=4", &format!("--size={SIZE}"), "--refill_buffers"])?;
    }
    for (name, rw, jobs) in
        [("reads", "randread", 1), ("writes", "randwrite", 1), ("reads, 2 connections", "randread", 2)]
    {
        let mut results = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            for (peer, results) in peers.iter().zip(&mut results) {
                results.push(peer.drive(&[
                    &format!("--rw={rw}"),
                    "--bs=4k",
                    "--iodepth=32",
                    &format!("--numjobs={jobs}"),
                    &format!("--size={SIZE}"),
                    "--time_based",
                    &format!("--runtime={seconds}"),
                ])?);
            }
        }
        let middle =
            |i: usize, cost: bool| median(results[i].iter().map(|r| if cost { r.1 } else { r.0 }).collect());
        for (i, peer) in peers.iter().enumerate() {
            let (rate, cost) = (middle(i, false) / 1000.0, middle(i, true));
            report.line(format!(
                "nbd-overhead: 4 KiB {name}, {}: {rate:.0} K/s, {cost:.2} us of CPU each",
                peer.name
            ));
        }
        let ratio = |i| middle(i, true) / middle(0, true);
        let (null, memory) = (ratio(1), ratio(2));
        report.line(format!(
            "nbd-overhead: 4 KiB {name}: {null:.2} of nbdkit's CPU (bar 0.55), {memory:.2} with memory behind it"
        ));
    }
    Ok(())
}
