//! Images on a Ceph cluster: ferry beside librbd, on the cluster `CEPH_CONF` names, in the same run.
//!
//! `FERRY_BENCH_POOL` (`rbd`) is the pool; `FERRY_BENCH_MIB` and `FERRY_BENCH_SECONDS` make it shorter. Images are called `bench-*` and are
//! removed afterwards.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::measure::{ROUNDS, Report, median};
use crate::nbd::Peer;
use crate::served::{run, setting};

/// Size of an image, where `FERRY_BENCH_MIB` says nothing else. MiB.
const SIZE_MIB: u64 = 512;
/// How long one measurement takes, where `FERRY_BENCH_SECONDS` says nothing else.
const SECONDS: u64 = 5;

/// The cluster and a pool of it.
struct Place {
    conf: String,
    pool: String,
    mib: u64,
    seconds: u64,
}

impl Place {
    fn image(&self, name: &str) -> String {
        format!("{}/bench-{name}", self.pool)
    }

    /// Stock `rbd`.
    fn rbd(&self, line: &str) -> Command {
        let mut command = Command::new("rbd");
        command.env("CEPH_CONF", &self.conf).args(line.split_whitespace());
        command
    }

    /// The program that was built beside this one.
    fn ferry(&self, line: &str) -> Result<Command, String> {
        let itself = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut command = Command::new(itself.with_file_name("ferry"));
        command.args(["-c", &self.conf]).args(line.split_whitespace());
        Ok(command)
    }

    /// Operations per second of fio's engine for images, which is librbd without a cache.
    fn librbd(&self, image: &str, arguments: &[&str]) -> Result<f64, String> {
        let mut fio = Command::new("fio");
        fio.args(["--name=bench", "--ioengine=rbd", "--clientname=admin", "--output-format=json"]);
        fio.args([format!("--pool={}", self.pool), format!("--rbdname=bench-{image}")]);
        // fio's engine takes settings from the cluster's configuration only.
        let output = fio
            .env("CEPH_CONF", &self.conf)
            .env("CEPH_ARGS", "--rbd-cache=false")
            .args(arguments)
            .output()
            .map_err(|e| format!("fio: {e}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let said = || format!("fio: {}", String::from_utf8_lossy(&output.stderr));
        let json = serde_json::from_str::<serde_json::Value>(&text[text.find('{').ok_or_else(said)?..]);
        let json = json.map_err(|e| e.to_string())?;
        let rate: f64 = ["read", "write"].iter().filter_map(|w| json["jobs"][0][w]["iops"].as_f64()).sum();
        if rate > 0.0 { Ok(rate) } else { Err(said()) }
    }

    /// How long a command takes, in seconds.
    fn timed(&self, mut command: Command) -> Result<f64, String> {
        let began = Instant::now();
        run(&mut command)?;
        Ok(began.elapsed().as_secs_f64())
    }
}

/// What the environment names.
fn place() -> Result<Place, String> {
    Ok(Place {
        conf: std::env::var("CEPH_CONF").map_err(|_| "CEPH_CONF names no cluster".to_owned())?,
        pool: std::env::var("FERRY_BENCH_POOL").unwrap_or_else(|_| "rbd".to_owned()),
        mib: setting("FERRY_BENCH_MIB", SIZE_MIB),
        seconds: setting("FERRY_BENCH_SECONDS", SECONDS),
    })
}

/// ferry over NBD beside fio's engine, on an image each, in turns.
pub(crate) fn requests(directory: &Path, report: &mut Report) -> Result<(), String> {
    let at = place()?;
    let size = format!("--size={}m", at.mib);
    for name in ["ours", "theirs"] {
        run(&mut at.rbd(&format!("create {} --size {}M", at.image(name), at.mib)))?;
    }
    let socket = directory.join("nbd.sock");
    let mut nbd = at.ferry(&format!("nbd {} --socket {}", at.image("ours"), socket.display()))?;
    let ours = Peer::start("ferry", &at.image("ours"), &socket, &mut nbd)?;
    let fill = ["--rw=write", "--bs=1m", "--iodepth=4", &size, "--refill_buffers"];
    ours.drive(&fill)?;
    at.librbd("theirs", &fill)?;
    let runtime = format!("--runtime={}", at.seconds);
    for (what, rw, bs, depth) in [
        ("4 KiB random reads", "randread", "4k", "32"),
        ("4 KiB random writes", "randwrite", "4k", "32"),
        ("1 MiB sequential reads", "read", "1m", "8"),
        ("1 MiB sequential writes", "write", "1m", "8"),
    ] {
        let (rw, bs, depth) = (format!("--rw={rw}"), format!("--bs={bs}"), format!("--iodepth={depth}"));
        let arguments = [&*rw, &*bs, &*depth, &*size, "--time_based", &*runtime];
        let (mut mine, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            mine.push(ours.drive(&arguments)?.0);
            theirs.push(at.librbd("theirs", &arguments)?);
        }
        let (mine, theirs) = (median(mine), median(theirs));
        let ratio = mine / theirs;
        report.line(format!("ceph: {what}: ferry {mine:.0}/s, librbd {theirs:.0}/s: {ratio:.2} (bar 1.0)"));
    }
    // One that is killed leaves a watch, for whose end `rbd rm` waits.
    ours.stop()?;
    for name in ["ours", "theirs"] {
        run(&mut at.rbd(&format!("rm --no-progress {}", at.image(name))))?;
    }
    Ok(())
}

/// The first 4 KiB write into each of many objects of a clone.
pub(crate) fn first_writes(directory: &Path, report: &mut Report) -> Result<(), String> {
    let at = place()?;
    let (parent, size) = (at.image("parent"), format!("--size={}m", at.mib));
    run(&mut at.rbd(&format!("create {parent} --size {}M", at.mib)))?;
    at.librbd("parent", &["--rw=write", "--bs=1m", "--iodepth=4", &size, "--refill_buffers"])?;
    run(&mut at.rbd(&format!("snap create --no-progress {parent}@s")))?;
    // One write into each object of 4 MiB: without an end fio begins anew, in objects that were copied.
    let once = format!("--io_size={}k", at.mib);
    let writes = ["--rw=write:4092k", "--bs=4k", "--iodepth=1", &size, &once];
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for name in ["ours", "theirs"] {
            let clone = format!("clone {parent}@s {} --rbd-default-clone-format 2", at.image(name));
            run(&mut at.rbd(&clone))?;
        }
        let socket = directory.join("clone.sock");
        // The server of the round before left its socket.
        drop(std::fs::remove_file(&socket));
        let offered = format!("nbd {} --socket {}", at.image("ours"), socket.display());
        let ours = Peer::start("ferry", &at.image("ours"), &socket, &mut at.ferry(&offered)?)?;
        mine.push(ours.drive(&writes)?.0);
        theirs.push(at.librbd("theirs", &writes)?);
        ours.stop()?;
        for name in ["ours", "theirs"] {
            run(&mut at.rbd(&format!("rm --no-progress {}", at.image(name))))?;
        }
    }
    let (mine, theirs) = (median(mine), median(theirs));
    let ratio = mine / theirs;
    report.line(format!(
        "ceph: first 4 KiB write into objects of a clone: ferry {mine:.0}/s, librbd {theirs:.0}/s: {ratio:.2} (bar 1.0)"
    ));
    run(&mut at.rbd(&format!("snap rm --no-progress {parent}@s")))?;
    run(&mut at.rbd(&format!("rm --no-progress {parent}")))
}

/// How long `migration execute` takes: of a full image, one that is a tenth allocated, and an empty one of 1 TiB.
pub(crate) fn migrations(_directory: &Path, report: &mut Report) -> Result<(), String> {
    let at = place()?;
    let mib = at.mib;
    for (what, size, written, bar) in [
        ("a full image", mib, mib, 1.1),
        ("a tenth allocated", mib * 10, mib, 3.0),
        ("an empty image of 1 TiB", 1 << 20, 0, 10.0),
    ] {
        let (mut mine, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            for is_ours in [true, false] {
                let (source, target) = (at.image("from"), at.image("to"));
                run(&mut at.rbd(&format!("create {source} --size {size}M")))?;
                if written > 0 {
                    at.librbd(
                        "from",
                        &[
                            "--rw=write",
                            "--bs=1m",
                            "--iodepth=4",
                            &format!("--size={written}m"),
                            "--refill_buffers",
                        ],
                    )?;
                }
                let line = |verb: &str, rest: &str| format!("migration {verb} {rest}");
                let execute = line("execute", &format!("--no-progress {target}"));
                let commit = line("commit", &format!("--no-progress {target}"));
                let prepare = line("prepare", &format!("{source} {target}"));
                if is_ours {
                    run(&mut at.ferry(&prepare)?)?;
                    mine.push(at.timed(at.ferry(&execute)?)?);
                    run(&mut at.ferry(&format!("{commit} --unverified"))?)?;
                } else {
                    run(&mut at.rbd(&prepare))?;
                    theirs.push(at.timed(at.rbd(&execute))?);
                    run(&mut at.rbd(&commit))?;
                }
                run(&mut at.rbd(&format!("rm --no-progress {target}")))?;
            }
        }
        let (mine, theirs) = (median(mine), median(theirs));
        let ratio = theirs / mine;
        report.line(format!(
            "ceph: migration execute, {what}: ferry {mine:.2} s, rbd {theirs:.2} s: {ratio:.2} times as fast (bar {bar})"
        ));
    }
    Ok(())
}
