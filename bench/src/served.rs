//! Images of a node over NBD, beside qemu-nbd on a raw file and on a qcow2, and nbdkit on a file, in the same run.
//!
//! fio, nbdcopy and the servers run on one machine over unix sockets. A row gives operations (or bytes) per second, and the CPU
//! time of the server for each operation.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::measure::{ROUNDS, Report, median};
use crate::nbd::Peer;

/// Size of an image, where `FERRY_BENCH_MIB` says nothing else. MiB.
const SIZE_MIB: u64 = 1024;
/// How long one measurement takes, where `FERRY_BENCH_SECONDS` says nothing else.
const SECONDS: u64 = 4;

/// A number from the environment.
pub(crate) fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Runs a program to its end.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
    }
}

/// The program that was built beside this one.
pub(crate) fn ferry(place: &Path) -> Result<Command, String> {
    let itself = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new(itself.with_file_name("ferry"));
    command.env("FERRY_HOME", place.join("home"));
    Ok(command)
}

/// A node that offers an empty image.
fn node(place: &Path, mib: u64) -> Result<Peer, String> {
    run(ferry(place)?.args(["pool", "create", "rbd"]))?;
    run(ferry(place)?.args(["create", "image", "--size", &format!("{mib}M")]))?;
    let socket = place.join("ferry.sock");
    let mut serve = ferry(place)?;
    serve.arg("serve").arg("--socket").arg(&socket).env("FERRY_LOG", "error");
    let peer = Peer::start("ferry", "image", &socket, &mut serve)?;
    run(ferry(place)?.args(["export", "add", "image", "--name", "image"]))?;
    Ok(peer)
}

/// qemu-nbd on an empty file of `format`.
fn qemu(place: &Path, name: &'static str, format: &str, aio: &str, mib: u64) -> Result<Peer, String> {
    let file = place.join(format!("{format}-{aio}"));
    run(Command::new("qemu-img").args(["create", "-q", "-f", format]).arg(&file).arg(format!("{mib}M")))?;
    let socket = place.join(format!("{format}-{aio}.sock"));
    let mut command = Command::new("qemu-nbd");
    command.args(["-t", "-e", "32", "--cache=writeback", "-f", format, &format!("--aio={aio}"), "-k"]);
    Peer::start(name, "", &socket, command.arg(&socket).arg(file))
}

/// nbdkit on an empty file.
fn nbdkit(place: &Path, mib: u64) -> Result<Peer, String> {
    let (file, socket) = (place.join("nbdkit"), place.join("nbdkit.sock"));
    run(Command::new("truncate").arg(format!("--size={mib}M")).arg(&file))?;
    let mut command = Command::new("nbdkit");
    command.args(["-f", "-U"]).arg(&socket).arg("file").arg(file);
    Peer::start("nbdkit file", "", &socket, &mut command)
}

/// Peers that are compared; ferry is the first. Their images are full of bytes that are not zero.
struct World {
    peers: Vec<Peer>,
    mib: u64,
}

impl World {
    fn new(place: &Path) -> Result<Self, String> {
        let mib = setting("FERRY_BENCH_MIB", SIZE_MIB);
        let peers = vec![
            node(place, mib)?,
            qemu(place, "qemu-nbd raw, threads", "raw", "threads", mib)?,
            qemu(place, "qemu-nbd raw, io_uring", "raw", "io_uring", mib)?,
            qemu(place, "qemu-nbd qcow2, threads", "qcow2", "threads", mib)?,
            qemu(place, "qemu-nbd qcow2, io_uring", "qcow2", "io_uring", mib)?,
            nbdkit(place, mib)?,
        ];
        for peer in &peers {
            let size = format!("--size={mib}m");
            peer.drive(&[
                "--rw=write",
                "--bs=1m",
                "--iodepth=4",
                &size,
                "--refill_buffers",
                "--end_fsync=1",
            ])?;
        }
        Ok(Self { peers, mib })
    }

    /// Drives those of the peers whose names start with one of `names`, in turns; tells all, and ferry's rate as a multiple of
    /// the best whose name starts with `against`.
    fn row(
        &self,
        report: &mut Report,
        what: &str,
        names: &[&str],
        against: &[&str],
        arguments: &[&str],
    ) -> Result<(), String> {
        let seconds = setting("FERRY_BENCH_SECONDS", SECONDS);
        let starts = |peer: &Peer, names: &[&str]| names.iter().any(|name| peer.name.starts_with(name));
        let wanted: Vec<&Peer> = self.peers.iter().filter(|peer| starts(peer, names)).collect();
        let mut results = vec![Vec::new(); wanted.len()];
        let jobs =
            arguments.iter().find_map(|a| a.strip_prefix("--numjobs=")).map_or(1, |n| n.parse().unwrap_or(1));
        for _ in 0..ROUNDS {
            for (peer, results) in wanted.iter().zip(&mut results) {
                let common = [
                    format!("--size={}m", self.mib / jobs),
                    format!("--offset_increment={}m", self.mib / jobs),
                    format!("--runtime={seconds}"),
                    "--time_based".to_owned(),
                ];
                let all: Vec<&str> =
                    arguments.iter().copied().chain(common.iter().map(String::as_str)).collect();
                results.push(peer.drive(&all)?);
            }
        }
        let rate = |i: usize| median(results[i].iter().map(|r: &(f64, f64)| r.0).collect());
        let cost = |i: usize| median(results[i].iter().map(|r: &(f64, f64)| r.1).collect());
        for (i, peer) in wanted.iter().enumerate() {
            report.line(format!(
                "served: {what}, {}: {:.2} K/s, {:.2} us of CPU each",
                peer.name,
                rate(i) / 1000.0,
                cost(i)
            ));
        }
        let of = |names: &[&str]| {
            let peers = wanted.iter().enumerate().skip(1).filter(|(_, peer)| starts(peer, names));
            peers.map(|(i, _)| i).max_by(|a, b| rate(*a).total_cmp(&rate(*b)))
        };
        for names in against {
            if let Some(best) = of(&[names]) {
                report.line(format!(
                    "served: {what}: {:.2} x the rate of {}, {:.2} x its CPU each",
                    rate(0) / rate(best),
                    wanted[best].name,
                    cost(0) / cost(best)
                ));
            }
        }
        Ok(())
    }

    /// Medians of what `measure` says of ferry and of nbdkit, in turns.
    fn beside_nbdkit(&self, measure: impl Fn(&Peer) -> Result<f64, String>) -> Result<(f64, f64), String> {
        let wanted: Vec<&Peer> =
            self.peers.iter().filter(|p| p.name == "ferry" || p.name.starts_with("nbdkit")).collect();
        let mut results = vec![Vec::new(); wanted.len()];
        for _ in 0..ROUNDS {
            for (peer, results) in wanted.iter().zip(&mut results) {
                results.push(measure(peer)?);
            }
        }
        Ok((median(results[0].clone()), median(results[1].clone())))
    }

    /// Reads all of an image with nbdcopy.
    fn copy(&self, report: &mut Report) -> Result<(), String> {
        let (ours, theirs) = self.beside_nbdkit(|peer| {
            let began = Instant::now();
            run(Command::new("nbdcopy").args([&peer.uri, "null:"]))?;
            Ok(began.elapsed().as_secs_f64())
        })?;
        report.line(format!(
            "served: nbdcopy of {} MiB to null: {ours:.3} s, from nbdkit file {theirs:.3} s: {:.2} x its rate",
            self.mib,
            theirs / ours
        ));
        Ok(())
    }

    /// Writes all of an image, to the end of a flush.
    fn write_and_flush(&self, report: &mut Report) -> Result<(), String> {
        let size = format!("--size={}m", self.mib);
        let load = ["--rw=write", "--bs=1m", "--iodepth=4", &size, "--end_fsync=1"];
        let (ours, theirs) = self.beside_nbdkit(|peer| Ok(peer.drive(&load)?.0))?;
        report.line(format!(
            "served: 1 MiB sequential writes of {} MiB and a flush: {ours:.0}/s, nbdkit file {theirs:.0}/s: {:.2} x its rate",
            self.mib,
            ours / theirs
        ));
        Ok(())
    }
}

/// A line of `/proc/PID/status`, in MiB.
fn memory(pid: u32, line: &str) -> Result<f64, String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| e.to_string())?;
    let text = status.lines().find_map(|l| l.strip_prefix(line)).ok_or("no such line")?;
    let number = text.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()).ok_or("no number")?;
    Ok(number / 1024.0)
}

/// What an image of a node costs its clients, beside what others serve.
pub(crate) fn served(place: &Path, report: &mut Report) -> Result<(), String> {
    let world = World::new(place)?;
    let all = &["ferry", "qemu-nbd", "nbdkit"][..];
    let files = &["ferry", "qemu-nbd raw", "nbdkit"][..];
    let writers = &["ferry", "qemu-nbd"][..];
    let (raw, qcow2) = ("qemu-nbd raw", "qemu-nbd qcow2");
    // Images are filled in order now.
    for (what, rw) in [("1 MiB sequential reads", "--rw=read"), ("1 MiB sequential writes", "--rw=write")] {
        world.row(report, what, all, &[raw, "nbdkit"], &[rw, "--bs=1m", "--iodepth=4"])?;
    }
    world.write_and_flush(report)?;
    world.copy(report)?;
    for jobs in ["--numjobs=1", "--numjobs=2"] {
        let what =
            if jobs.ends_with('1') { "4 KiB random reads" } else { "4 KiB random reads, 2 connections" };
        let load = ["--rw=randread", "--bs=4k", "--iodepth=32", jobs];
        world.row(report, what, files, &[raw, "nbdkit"], &load)?;
    }
    let load = ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--fsync=32"];
    world.row(report, "4 KiB random writes, a flush every 32", writers, &[raw, qcow2], &load)?;
    let load = ["--rw=randwrite", "--bs=4k", "--iodepth=32"];
    world.row(report, "4 KiB random writes, no flush", writers, &[raw, qcow2], &load)?;
    let load = ["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"];
    world.row(report, "4 KiB write and flush, one at a time", files, &[raw], &load)?;
    let (what, load) =
        ("1 MiB sequential reads, after random writes", ["--rw=read", "--bs=1m", "--iodepth=4"]);
    world.row(report, what, all, &[raw, "nbdkit"], &load)
}

/// Memory of a node while many clients send large requests.
pub(crate) fn served_memory(place: &Path, report: &mut Report) -> Result<(), String> {
    let mib = setting("FERRY_BENCH_MIB", SIZE_MIB);
    let peer = node(place, mib)?;
    let (size, pid) = (format!("--size={mib}m"), peer.pid());
    // The cache of the store is warm.
    peer.drive(&["--rw=write", "--bs=1m", "--iodepth=4", &size, "--refill_buffers"])?;
    peer.drive(&["--rw=read", "--bs=1m", "--iodepth=4", &size])?;
    peer.drive(&["--rw=randwrite", "--bs=4k", "--iodepth=32", &size, "--runtime=3", "--time_based"])?;
    let before = memory(pid, "VmRSS:")?;
    for (what, rw) in [("writing", "--rw=write"), ("reading", "--rw=read")] {
        std::fs::write(PathBuf::from(format!("/proc/{pid}/clear_refs")), "5").map_err(|e| e.to_string())?;
        peer.drive(&[rw, "--bs=32m", "--iodepth=2", "--numjobs=16", &size, "--runtime=10", "--time_based"])?;
        let most = memory(pid, "VmHWM:")?;
        report.line(format!(
            "served-memory: 16 connections {what} 32 MiB at a time: {most:.0} MiB at most, {before:.0} MiB before: {:.0} MiB above",
            most - before
        ));
    }
    Ok(())
}
