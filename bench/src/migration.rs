//! Migrations beside plain copies of the same data: `cp`, `qemu-img convert` and, where a cluster is named, `rbd migration execute`.
//!
//! `FERRY_BENCH_MIB` says how large images are, half of them allocated; `FERRY_BENCH_CEPH` names the `ceph.conf` of a cluster with
//! the pool `rbd` (`tests/ceph/single-node.sh start DIR` makes one). Stores, files and cluster should lie on one disk. What is
//! timed ends with everything flushed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::measure::{Numbers, ROUNDS, Report, drop_caches, median};
use crate::nbd::Peer;
use crate::served::{run, setting};

/// Size of what is moved, where nothing else is said. MiB.
const SIZE_MIB: u64 = 4096;
/// How long a measurement of latencies takes, where nothing else is said.
const SECONDS: u64 = 4;
/// How long one measurement beside an execute takes. It counts where the execute was not over before.
const BESIDE_SECONDS: &str = "--runtime=1";

type Done<T> = Result<T, String>;

/// Seconds, and MiB written by the processes that were waited for.
type Cost = (f64, f64);

/// A directory with a home in it, whose pools `one` and `two` are in one store and `far` in another, and a raw file.
struct World {
    place: PathBuf,
    mib: u64,
}

impl World {
    fn new(place: &Path) -> Done<Self> {
        let world = Self { place: place.to_owned(), mib: setting("FERRY_BENCH_MIB", SIZE_MIB) };
        let file = File::create(world.raw()).map_err(|e| e.to_string())?;
        file.set_len(world.mib << 20).map_err(|e| e.to_string())?;
        let rng = Numbers::new(1);
        for mebibyte in (0..world.mib).step_by(2) {
            let data: Vec<u8> = (0..1 << 17).flat_map(|_| rng.below(u64::MAX).to_le_bytes()).collect();
            file.write_all_at(&data, mebibyte << 20).map_err(|e| e.to_string())?;
        }
        file.sync_all().map_err(|e| e.to_string())?;
        world.ferry("pool create one")?;
        world.ferry("pool create two")?;
        world.ferry(&format!("pool create far --path {}", place.join("elsewhere").display()))?;
        world.ferry(&format!("import {} one/a --no-progress", world.raw().display()))?;
        Ok(world)
    }

    fn raw(&self) -> PathBuf {
        self.place.join("raw")
    }

    fn command(&self, line: &str) -> Done<Command> {
        let itself = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut command = Command::new(itself.with_file_name("ferry"));
        command.env("FERRY_HOME", self.place.join("home")).args(line.split_whitespace());
        Ok(command)
    }

    fn ferry(&self, line: &str) -> Done<()> {
        run(&mut self.command(line)?)
    }

    /// What a line costs.
    fn cost(&self, line: &str) -> Done<Cost> {
        cost(|| self.ferry(line))
    }

    /// A node with its exports.
    fn node(&self, export: &str) -> Done<Peer> {
        let socket = self.place.join("ferry.sock");
        let mut serve = self.command("serve")?;
        serve.arg("--socket").arg(&socket).env("FERRY_LOG", "error");
        Peer::start("ferry", export, &socket, &mut serve)
    }
}

/// Time and bytes written while `work` runs.
fn cost(work: impl FnOnce() -> Done<()>) -> Done<Cost> {
    let (began, before) = (Instant::now(), written()?);
    work()?;
    let wall = began.elapsed().as_secs_f64();
    Ok((wall, written()? - before))
}

/// MiB that this process and those it waited for have sent to disks.
fn written() -> Done<f64> {
    let text = std::fs::read_to_string("/proc/self/io").map_err(|e| e.to_string())?;
    let number = text.lines().find_map(|l| l.strip_prefix("write_bytes: "));
    let bytes = number.and_then(|n| n.parse::<f64>().ok()).ok_or("no bytes written are told")?;
    Ok(bytes / f64::from(1 << 20))
}

fn seconds(costs: &[Cost]) -> f64 {
    median(costs.iter().map(|c| c.0).collect())
}

fn mebibytes(costs: &[Cost]) -> f64 {
    median(costs.iter().map(|c| c.1).collect())
}

/// All rows.
pub(crate) fn migration(place: &Path, report: &mut Report) -> Done<()> {
    let world = World::new(place)?;
    between_stores(&world, report)?;
    inside_a_store(&world, report)?;
    empty(&world, report)?;
    beside_clients(&world, report)?;
    latencies(&world, report)
}

/// From one store to another, caches dropped, beside plain copies; with verification.
fn between_stores(world: &World, report: &mut Report) -> Done<()> {
    let (raw, out) = (world.raw(), world.place.join("out"));
    let ceph = std::env::var("FERRY_BENCH_CEPH").ok();
    let rbd = |words: &str| {
        let conf = ceph.as_deref().unwrap_or_default();
        run(Command::new("rbd").args(["-c", conf]).args(words.split_whitespace()))
    };
    if ceph.is_some() {
        rbd(&format!("import {} rbd/ferry-bench --no-progress", raw.display()))?;
    }
    let [mut execute, mut verify, mut cp, mut convert, mut ceph_execute] = [const { Vec::new() }; 5];
    for _ in 0..ROUNDS {
        world.ferry("migration prepare one/a far/a")?;
        drop_caches();
        execute.push(world.cost("migration execute far/a --no-progress")?);
        verify.push(world.cost("migration verify far/a --no-progress")?);
        world.ferry("migration abort far/a --no-progress")?;
        drop_caches();
        cp.push(cost(|| {
            run(Command::new("cp").arg("--sparse=always").args([&raw, &out]))?;
            run(Command::new("sync").arg(&out))
        })?);
        std::fs::remove_file(&out).map_err(|e| e.to_string())?;
        drop_caches();
        convert.push(cost(|| {
            run(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).args([&raw, &out]))?;
            run(Command::new("sync").arg(&out))
        })?);
        std::fs::remove_file(&out).map_err(|e| e.to_string())?;
        if ceph.is_some() {
            rbd("migration prepare rbd/ferry-bench rbd/ferry-bench-moved")?;
            drop_caches();
            ceph_execute.push(cost(|| rbd("migration execute rbd/ferry-bench-moved --no-progress"))?);
            rbd("migration abort rbd/ferry-bench-moved --no-progress")?;
        }
    }
    let own = seconds(&execute);
    report.line(format!(
        "migration: {} MiB, half allocated, to another store: {own:.2} s, {:.0} MiB written",
        world.mib,
        mebibytes(&execute)
    ));
    let mut peers = vec![
        ("cp --sparse=always and sync", &cp, 0.85),
        ("qemu-img convert to qcow2 and sync", &convert, 0.9),
    ];
    match ceph {
        Some(_) => {
            peers.push(("rbd migration execute on the cluster", &ceph_execute, 3.0));
            rbd("rm rbd/ferry-bench --no-progress")?;
        }
        None => report.line("migration: no cluster is named by FERRY_BENCH_CEPH".to_owned()),
    }
    for (name, costs, bar) in peers {
        let theirs = seconds(costs);
        report.line(format!(
            "migration: {name}: {theirs:.2} s, {:.0} MiB written: {:.2} x its rate (at least {bar})",
            mebibytes(costs),
            theirs / own
        ));
    }
    let checked = seconds(&verify);
    report.line(format!(
        "migration: with verification after it: {:.2} s, {checked:.2} s of them verification: {:.2} x the rate without (at least 0.8)",
        own + checked,
        own / (own + checked)
    ));
    Ok(())
}

/// Between pools of one store, with another layout too.
fn inside_a_store(world: &World, report: &mut Report) -> Done<()> {
    for (what, layout) in [("same layout", ""), ("objects of 1 MiB", "--object-size 1M")] {
        let mut costs = Vec::new();
        for _ in 0..ROUNDS {
            world.ferry(&format!("migration prepare one/a two/a {layout}"))?;
            drop_caches();
            costs.push(world.cost("migration execute two/a --no-progress")?);
            world.ferry("migration abort two/a --no-progress")?;
        }
        report.line(format!(
            "migration: {} MiB, half allocated, to another pool of the store, {what}: {:.2} s, {:.0} MiB written (under 2 s)",
            world.mib,
            seconds(&costs),
            mebibytes(&costs)
        ));
    }
    Ok(())
}

/// An image of 16 TiB that holds nothing.
fn empty(world: &World, report: &mut Report) -> Done<()> {
    world.ferry("create one/empty --size 16T")?;
    let mut costs = Vec::new();
    for _ in 0..ROUNDS {
        world.ferry("migration prepare one/empty far/empty")?;
        costs.push(world.cost("migration execute far/empty --no-progress")?);
        world.ferry("migration abort far/empty --no-progress")?;
    }
    world.ferry("rm one/empty --no-progress")?;
    report.line(format!("migration: empty, 16 TiB: {:.2} s (under 5 s)", seconds(&costs)));
    Ok(())
}

/// What clients of the target get done while it is copied as fast as that goes, and afterwards.
fn beside_clients(world: &World, report: &mut Report) -> Done<()> {
    let size = format!("--size={}m", world.mib);
    let load = ["--rw=randrw", "--bs=4k", "--iodepth=32", "--time_based", BESIDE_SECONDS, &size];
    let (mut before, mut beside, mut idle) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        world.ferry("migration prepare one/a far/a")?;
        drop_caches();
        let peer = world.node("vm")?;
        world.ferry("export add far/a --name vm")?;
        before.push(peer.drive(&load)?.0);
        drop_caches();
        let mut execute = world.command("migration execute far/a --no-progress")?;
        let mut execute =
            Running(execute.stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(|e| e.to_string())?);
        loop {
            let (rate, _) = peer.drive(&load)?;
            if execute.is_over()? {
                break;
            }
            beside.push(rate);
        }
        for _ in 0..2 {
            idle.push(peer.drive(&load)?.0);
        }
        world.ferry("export rm vm --force")?;
        world.ferry("migration abort far/a --no-progress")?;
        peer.stop()?;
    }
    if beside.is_empty() {
        report.line(
            "migration: the execute is over within a second: clients beside it were not measured".to_owned(),
        );
        return Ok(());
    }
    let [before, beside, idle] = [before, beside, idle].map(|rates| median(rates) / 1000.0);
    report.line(format!(
        "migration: clients, 4 KiB random reads and writes, depth 32, while it is copied: {beside:.1} K/s, afterwards {idle:.1} K/s: \
         {:.2} x (at least 0.5); before, when nothing was copied: {before:.1} K/s, {:.2} x",
        beside / idle,
        beside / before
    ));
    Ok(())
}

/// A command under way.
struct Running(Child);

impl Running {
    /// Whether it has come to its end, which must be a good one.
    fn is_over(&mut self) -> Done<bool> {
        match self.0.try_wait().map_err(|e| e.to_string())? {
            Some(status) if !status.success() => Err(format!("an execute ended with {status}")),
            ended => Ok(ended.is_some()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; it is gone in any case.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Single requests to a target of which nothing was copied yet, beside those to the same after commit.
fn latencies(world: &World, report: &mut Report) -> Done<()> {
    let (size, runtime) =
        (format!("--size={}m", world.mib), format!("--runtime={}", setting("FERRY_BENCH_SECONDS", SECONDS)));
    for (what, target) in [("another store", "far/a"), ("another pool of the store", "two/a")] {
        let mut results = [const { Vec::new() }; 4];
        let mut at = "one/a".to_owned();
        for round in 0..ROUNDS {
            let to = if at == "one/a" { target } else { "one/a" };
            let source_is_one = at == "one/a";
            world.ferry(&format!("migration prepare {at} {to}"))?;
            let peer = world.node("vm")?;
            world.ferry(&format!("export add {to} --name vm"))?;
            for (n, committed) in [(0, false), (2, true)] {
                if committed {
                    world.ferry(&format!("migration execute {to} --no-progress"))?;
                    world.ferry(&format!("migration commit {to} --no-progress"))?;
                }
                for (m, way) in [(0, "read"), (1, "write")] {
                    let seed = format!("--randseed={}", round * 4 + n + m);
                    let rw = format!("--rw=rand{way}");
                    let load = [&*rw, "--bs=4k", "--iodepth=1", "--time_based", &runtime, &size, &seed];
                    let tail = peer.p99(way, &load)?;
                    // On the way back the source is the other one: only one direction is told.
                    if source_is_one {
                        results[n + m].push(tail);
                    }
                }
            }
            world.ferry("export rm vm --force")?;
            peer.stop()?;
            to.clone_into(&mut at);
        }
        if at != "one/a" {
            world.ferry(&format!("migration prepare {at} one/a"))?;
            world.ferry("migration execute one/a --no-progress")?;
            world.ferry("migration commit one/a --no-progress")?;
        }
        let [reads, writes, reads_after, writes_after] = results.map(median);
        for (way, before, after) in [("reads", reads, reads_after), ("writes", writes, writes_after)] {
            report.line(format!(
                "migration: 4 KiB {way} of a target in {what}, one at a time: p99 {before:.0} us before execute, {after:.0} us after \
                 commit: {:.2} x (3 at most)",
                before / after
            ));
        }
    }
    Ok(())
}
