//! Imports of foreign images, beside what copies them into a file: nbdcopy from nbdkit's curl plug-in, `qemu-img convert`, and
//! `rbd migration execute` on a cluster where one is running.
//!
//! Sources are in the page cache; what was copied is durable when the clock stops. Targets go to a new store each time.

mod web;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::measure::{ROUNDS, Report, median};
use crate::served::{ferry, run, setting};
use web::SlowWeb;

/// Size of the images, where `FERRY_BENCH_MIB` says nothing else. MiB.
const SIZE_MIB: u64 = 1024;
/// What the slow server adds to each answer.
const LATENCY: Duration = Duration::from_millis(20);
/// Where real bytes come from: programs, libraries and texts, which compress as disks do.
const REAL_FILES: &str = "/usr";

/// Executes of imports, and the first access to what is not there yet.
pub(crate) fn foreign(place: &Path, report: &mut Report) -> Result<(), String> {
    let images = Images::make(place)?;
    from_web(place, &images, report)?;
    from_file(place, &images, report)?;
    first_access(place, &images, report)
}

#[expect(clippy::needless_pass_by_value, reason = "what `map_err` calls")]
fn text(e: impl ToString) -> String {
    e.to_string()
}

/// One disk in several forms.
struct Images {
    raw: PathBuf,
    /// How it is made, and the file.
    qcow2: Vec<(&'static str, PathBuf)>,
    mib: u64,
}

impl Images {
    fn make(place: &Path) -> Result<Self, String> {
        let mib = setting("FERRY_BENCH_MIB", SIZE_MIB);
        let raw = place.join("disk.raw");
        let mut file = File::create(&raw).map_err(text)?;
        let mut left = mib << 20;
        fill(&mut file, Path::new(REAL_FILES), &mut left)?;
        // A machine with little on it: the rest is a hole.
        file.set_len(mib << 20).and_then(|()| file.sync_all()).map_err(text)?;
        let forms: [(&str, &[&str]); 3] = [
            ("qcow2", &[]),
            ("qcow2, zlib", &["-c"]),
            ("qcow2, zstd", &["-c", "-o", "compression_type=zstd"]),
        ];
        let mut qcow2 = Vec::new();
        for (number, (name, options)) in forms.into_iter().enumerate() {
            let path = place.join(format!("disk{number}.qcow2"));
            let mut convert = Command::new("qemu-img");
            convert.args(["convert", "-f", "raw", "-O", "qcow2"]).args(options);
            run(convert.arg(&raw).arg(&path))?;
            qcow2.push((name, path));
        }
        Ok(Self { raw, qcow2, mib })
    }
}

/// Appends the bytes of the files below a directory, in the order of their names, until there are enough.
fn fill(to: &mut File, directory: &Path, left: &mut u64) -> Result<(), String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Ok(()) };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if *left == 0 {
            return Ok(());
        }
        let Ok(kind) = path.symlink_metadata() else { continue };
        if kind.is_dir() {
            fill(to, &path, left)?;
        } else if kind.is_file() {
            let Ok(file) = File::open(&path) else { continue };
            *left -= std::io::copy(&mut file.take(*left), to).map_err(text)?;
        }
    }
    Ok(())
}

/// A program that ends with the measurement.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; it is gone in any case.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A port that is free now.
fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(text)?;
    Ok(listener.local_addr().map_err(text)?.port())
}

/// nginx on the files of `place`; it and its port.
fn nginx(place: &Path) -> Result<(Process, u16), String> {
    let port = free_port()?;
    let (root, config) = (place.display(), place.join("nginx.conf"));
    let lines = format!(
        "daemon off; master_process off; pid {root}/nginx.pid; error_log {root}/nginx.log;\n\
         events {{}}\n\
         http {{ access_log off; sendfile on; server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
    );
    File::create(&config).and_then(|mut file| file.write_all(lines.as_bytes())).map_err(text)?;
    let mut command = Command::new("nginx");
    let child = command.arg("-p").arg(place).arg("-c").arg(&config).stderr(Stdio::null()).spawn();
    let process = Process(child.map_err(|e| format!("nginx: {e}"))?);
    let until = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if Instant::now() > until {
            return Err("nginx does not listen".to_owned());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((process, port))
}

/// Seconds that `work` takes once the disk is quiet.
fn seconds(work: impl FnOnce() -> Result<(), String>) -> Result<f64, String> {
    rustix::fs::sync();
    let began = Instant::now();
    work()?;
    Ok(began.elapsed().as_secs_f64())
}

/// Seconds that ferry takes to execute the import of a spec.
fn execute(place: &Path, spec: &str) -> Result<f64, String> {
    prepare(place, spec)?;
    let took = seconds(|| run(ferry(place)?.args(["migration", "execute", "disk", "--no-progress"])))?;
    std::fs::remove_dir_all(place.join("home")).map_err(text)?;
    Ok(took)
}

/// Prepares the import of a spec in a new home.
fn prepare(place: &Path, spec: &str) -> Result<(), String> {
    run(ferry(place)?.args(["pool", "create", "rbd"]))?;
    run(ferry(place)?.args(["migration", "prepare", "--import-only", "--source-spec", spec, "disk"]))
}

/// Seconds that `rbd` takes for the same on a running cluster; `None` where `FERRY_BENCH_CEPH` does not name its configuration.
fn execute_on_ceph(spec: &str) -> Result<Option<f64>, String> {
    let Some(config) = std::env::var_os("FERRY_BENCH_CEPH") else { return Ok(None) };
    let rbd = || {
        let mut command = Command::new("rbd");
        command.arg("-c").arg(&config);
        command
    };
    // `rbd migration prepare` knows no `--no-progress`.
    run(rbd().args(["migration", "prepare", "--import-only", "--source-spec", spec, "rbd/bench-foreign"]))?;
    let took = seconds(|| run(rbd().args(["migration", "execute", "rbd/bench-foreign", "--no-progress"])))?;
    run(rbd().args(["migration", "commit", "rbd/bench-foreign", "--no-progress"]))?;
    run(rbd().args(["rm", "rbd/bench-foreign", "--no-progress"]))?;
    Ok(Some(took))
}

/// A row: ferry beside a peer.
fn row(report: &mut Report, what: &str, ours: Vec<f64>, peer: &str, theirs: Vec<f64>, bar: &str) {
    let (ours, theirs) = (median(ours), median(theirs));
    let ratio = theirs / ours;
    report.line(format!(
        "foreign: {what}: {ours:.3} s, {peer} {theirs:.3} s: {ratio:.2} x its rate (bar {bar})"
    ));
}

/// From a web server on the loopback, beside nbdcopy of the same object to a file.
fn from_web(place: &Path, images: &Images, report: &mut Report) -> Result<(), String> {
    let (_nginx, port) = nginx(place)?;
    let out = place.join("copied");
    for (format, path) in [("raw", &images.raw), ("qcow", &images.qcow2[0].1)] {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let url = format!("http://127.0.0.1:{port}/{name}");
        let spec = format!(r#"{{"type":"{format}","stream":{{"type":"http","url":"{url}"}}}}"#);
        let (mut ours, mut theirs, mut ceph) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(execute(place, &spec)?);
            theirs.push(seconds(|| {
                let copy = format!("nbdcopy --connections=4 \"$uri\" '{}'", out.display());
                run(Command::new("nbdkit")
                    .args(["-U", "-", "curl", &format!("url={url}"), "--run"])
                    .arg(copy))?;
                run(Command::new("sync").arg(&out))
            })?);
            std::fs::remove_file(&out).map_err(text)?;
            ceph.extend(execute_on_ceph(&spec)?);
        }
        let what = format!("execute of {} MiB from http, {format}", images.mib);
        if !ceph.is_empty() {
            row(report, &what, ours.clone(), "rbd on Ceph", ceph, "3.0");
        }
        row(report, &what, ours, "nbdcopy from nbdkit curl", theirs, "1.0");
    }
    Ok(())
}

/// From a file, beside `qemu-img convert` to a raw one.
fn from_file(place: &Path, images: &Images, report: &mut Report) -> Result<(), String> {
    let out = place.join("converted");
    for (name, path) in &images.qcow2 {
        let file = path.display();
        let spec = format!(r#"{{"type":"qcow","stream":{{"type":"file","file_path":"{file}"}}}}"#);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(execute(place, &spec)?);
            theirs.push(seconds(|| {
                let mut convert = Command::new("qemu-img");
                run(convert.args(["convert", "-f", "qcow2", "-O", "raw"]).arg(path).arg(&out))?;
                run(Command::new("sync").arg(&out))
            })?);
            std::fs::remove_file(&out).map_err(text)?;
        }
        let what = format!("execute of {} MiB from a file, {name}", images.mib);
        row(report, &what, ours, "qemu-img convert and sync", theirs, "1.0");
    }
    Ok(())
}

/// The first read and write of ranges that were not fetched yet, from a server that takes its time for each answer.
fn first_access(place: &Path, images: &Images, report: &mut Report) -> Result<(), String> {
    let bar = 3.0 * LATENCY.as_secs_f64() * 1e3;
    for (format, path) in [("raw", &images.raw), ("qcow", &images.qcow2[0].1), ("qcow", &images.qcow2[1].1)] {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for (what, rw) in [("read", "read"), ("write", "write")] {
            let web = SlowWeb::start(path, LATENCY).map_err(text)?;
            let url = format!("http://127.0.0.1:{}/{name}", web.port());
            let spec = format!(r#"{{"type":"{format}","stream":{{"type":"http","url":"{url}"}}}}"#);
            prepare(place, &spec)?;
            let (middle, p99) = served(place, rw, images.mib)?;
            std::fs::remove_dir_all(place.join("home")).map_err(text)?;
            report.line(format!(
                "foreign: first 4 KiB {what} of {name}, {} ms for each answer: p50 {middle:.1} ms, p99 {p99:.1} ms (bar {bar:.0})",
                LATENCY.as_millis()
            ));
        }
    }
    Ok(())
}

/// Milliseconds of a request of 4 KiB to each object of the image once, one at a time: median and p99.
fn served(place: &Path, rw: &str, mib: u64) -> Result<(f64, f64), String> {
    let socket = place.join("foreign.sock");
    let mut serve = ferry(place)?;
    serve.arg("serve").arg("--socket").arg(&socket).env("FERRY_LOG", "error");
    let node = crate::nbd::Peer::start("ferry", "disk", &socket, &mut serve)?;
    run(ferry(place)?.args(["export", "add", "disk", "--name", "disk"]))?;
    // Objects are of 4 MiB.
    let output = Command::new("fio")
        .args(["--name=first", "--ioengine=nbd", "--output-format=json", "--bs=4k", "--iodepth=1"])
        .args([format!("--rw={rw}:4092k"), format!("--size={mib}m"), format!("--uri={}", node.uri)])
        .arg(format!("--number_ios={}", mib / 4))
        .output()
        .map_err(|e| format!("fio: {e}"))?;
    let told = String::from_utf8_lossy(&output.stdout);
    let from = told.find('{').ok_or_else(|| format!("fio: {}", String::from_utf8_lossy(&output.stderr)))?;
    let json: serde_json::Value = serde_json::from_str(&told[from..]).map_err(text)?;
    let latencies = &json["jobs"][0][rw]["clat_ns"];
    let at = |share: &str| latencies["percentile"][share].as_f64().ok_or("fio: no latencies");
    Ok((at("50.000000")? / 1e6, at("99.000000")? / 1e6))
}
