//! The main job of foreign images: a compressed qcow2 of the size of a distribution, with snapshots, on a web server that is held to
//! 4 MB/s and in an object store, becomes an image that is mounted and written while it is copied.

mod servers;

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use servers::{Nginx, ObjectStore, Server};

use crate::device::{World, run, skipped, verified_writes};
use crate::durability::setting;
use crate::harness::{Home, Name};
use crate::main_job::make_disk;

/// Bytes compared at once, to find what changed: a cluster of the image.
const CLUSTER: usize = 64 << 10;
/// What a server may send before prepare is over. Bytes.
const AHEAD_MAX: u64 = 4 << 20;

/// Runs a program in a directory, however long it takes; it must succeed.
fn tool(directory: &Path, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes `disk.qcow2`, compressed, of files of this machine: snapshots `installed` and `used`, and what happened since.
fn make_image(home: &Home, bytes: u64) {
    make_disk(home, bytes);
    let dir = home.dir();
    tool(dir, "qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", "disk", "disk.qcow2"]);
    for (snapshot, source) in [("installed", "/etc"), ("used", "/usr/sbin")] {
        tool(dir, "qemu-img", &["snapshot", "-c", snapshot, "disk.qcow2"]);
        fs::copy(home.path("disk"), home.path("before")).unwrap();
        write_files(home, snapshot, Path::new(source));
        write_changes(home);
    }
    for name in ["before", "disk"] {
        fs::remove_file(home.path(name)).unwrap();
    }
    fs::remove_dir_all(home.path("tree")).unwrap();
}

/// Writes some files of a directory into the file system on `disk`.
fn write_files(home: &Home, prefix: &str, source: &Path) {
    let mut script = String::new();
    let files = fs::read_dir(source).unwrap().flatten().filter(|e| e.file_type().unwrap().is_file());
    for (number, file) in files.take(40).enumerate() {
        script += &format!("write {} {prefix}-{number}\n", file.path().display());
    }
    fs::write(home.path("script"), script).unwrap();
    tool(home.dir(), "debugfs", &["-w", "-f", "script", "disk"]);
}

/// Writes to the image what `disk` has otherwise than `before`.
fn write_changes(home: &Home) {
    let (old, new) = (home.path("before"), home.path("disk"));
    let (old, new) = (fs::File::open(old).unwrap(), fs::File::open(new).unwrap());
    let size = new.metadata().unwrap().len();
    let (mut a, mut b) = (vec![0; CLUSTER], vec![0; CLUSTER]);
    let mut commands = String::new();
    fs::create_dir(home.path("patches")).unwrap();
    for offset in (0..size).step_by(CLUSTER) {
        old.read_exact_at(&mut a, offset).unwrap();
        new.read_exact_at(&mut b, offset).unwrap();
        if a != b {
            fs::write(home.path(&format!("patches/{offset}")), &b).unwrap();
            commands += &format!("write -s patches/{offset} {offset} {CLUSTER}\n");
        }
    }
    assert!(!commands.is_empty(), "something changed");
    let mut qemu_io = Command::new("qemu-io")
        .args(["-f", "qcow2", "disk.qcow2"])
        .current_dir(home.dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    qemu_io.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    assert!(qemu_io.wait().unwrap().success());
    fs::remove_dir_all(home.path("patches")).unwrap();
}

/// The image at each of its points is what `qemu-img compare` reads there: HEAD as the target's snapshot `head`.
fn compare(home: &Home, target: &str, head: &str) {
    let file = home.path("disk.qcow2");
    for (snap, point) in [("installed", Some("installed")), ("used", Some("used")), (head, None)] {
        let socket = home.path("theirs.sock");
        let mut command = Command::new("qemu-nbd");
        command.args(["-r", "-t", "-f", "qcow2"]);
        command.args(point.iter().flat_map(|name| ["-l", name]));
        let _theirs = Server::start(command.arg("-k").arg(&socket).arg(&file), || socket.exists());
        let told = home.ok(&format!("export add {target}@{snap} --name compared"));
        let (ours, theirs) =
            (told.lines().next().unwrap().to_owned(), format!("nbd+unix:///?socket={}", socket.display()));
        let said = tool(home.dir(), "qemu-img", &["compare", "-f", "raw", "-F", "raw", &theirs, &ours]);
        assert!(said.contains("Images are identical"), "{target}@{snap}: {said}");
        home.ok("export rm compared");
        fs::remove_file(socket).unwrap();
    }
}

/// How long a command took that may take long; it must succeed.
fn timed(home: &Home, line: &str) -> Duration {
    let began = Instant::now();
    let output = home.command(Name::Ferry).args(line.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ferry {line}: {output:?}");
    began.elapsed()
}

/// Reads 4 KiB over NBD, with the start of a client of NBD in it.
fn read_last(home: &Home, uri: &str, size: u64) -> Duration {
    let (skip, from) = (format!("skip={}", size / 4096 - 1), format!("if={uri}"));
    let began = Instant::now();
    tool(home.dir(), "qemu-img", &["dd", "-f", "raw", "-O", "raw", "bs=4096", &skip, &from, "of=last"]);
    began.elapsed()
}

fn size_of(home: &Home) -> u64 {
    let told = tool(home.dir(), "qemu-img", &["info", "--output=json", "disk.qcow2"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    told["virtual-size"].as_u64().unwrap()
}

/// A file system in use: written and read back until it is told to stop.
struct Use {
    process: std::process::Child,
}

impl Use {
    fn start(world: &World) -> Self {
        Self { process: verified_writes(world, 36_000) }
    }

    /// Ends it; nothing may have failed.
    fn stop(self) {
        run("kill", &["-INT", &self.process.id().to_string()]);
        let output = self.process.wait_with_output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(out.contains("err= 0") && !out.contains("verify:"), "{out}{err}");
    }
}

#[test]
fn a_distribution_sized_qcow2_becomes_an_image_while_it_is_used() {
    let name = "a_distribution_sized_qcow2_becomes_an_image_while_it_is_used";
    if skipped(name) {
        return;
    }
    let megabytes = setting("FERRY_FOREIGN_JOB_MIB", 64);
    let world = World::new("1M");
    let home = &world.home;
    make_image(home, megabytes << 20);
    let image = home.path("disk.qcow2");
    let (size, packed) = (size_of(home), fs::metadata(&image).unwrap().len());
    println!("{megabytes} MiB of files, {size} bytes of device, {packed} bytes of compressed image");
    let node = home.serve();
    println!("{}", from_the_web(&world, size));
    println!("{}", from_an_object_store(home));
    assert_eq!(node.stop(), 0, "{}", home.log());
    home.check();
}

/// From nginx: slow while it is copied and used; then as fast as it is, to be compared.
fn from_the_web(world: &World, size: u64) -> String {
    let home = &world.home;
    // At most 8 connections fetch at once.
    let mut nginx = Nginx::start(home.dir(), Some(500_000));
    let spec = format!(r#"{{"type":"qcow2","stream":{{"type":"http","url":"{}/disk.qcow2"}}}}"#, nginx.url());
    let prepared = timed(home, &format!("migration prepare --import-only --source-spec {spec} web"));
    let ahead = nginx.served();
    assert!(ahead <= AHEAD_MAX, "{ahead} bytes before prepare returned");
    home.ok("snap create web@fresh --no-progress");
    let told = home.ok("export add web --name web");
    let last = read_last(home, told.lines().next().unwrap(), size);
    let for_last = nginx.served() - ahead;
    home.ok("export rm web --force");
    let device = home.ok("device map web").trim().to_owned();
    world.mount(&device);
    let used = Use::start(world);
    let took = timed(home, "migration execute web --no-progress");
    used.stop();
    // What the image has allocated is all of the file.
    let (sent, packed) = (nginx.served(), fs::metadata(home.path("disk.qcow2")).unwrap().len());
    assert!(sent * 100 <= packed * 105, "{sent} bytes served of an image of {packed}");
    nginx.restart(None);
    timed(home, "migration verify web --no-progress");
    home.ok("migration commit web --unverified --no-progress");
    compare(home, "web", "fresh");
    world.unmount();
    run("fsck.ext4", &["-f", "-n", &device]);
    home.ok(&format!("device unmap {device}"));
    home.ok("snap purge web --no-progress");
    home.ok("rm web --no-progress");
    // On a machine that does other things.
    assert!(prepared < Duration::from_secs(3) && last < Duration::from_secs(3), "{prepared:?}, {last:?}");
    format!(
        "web: prepared in {prepared:?} with {ahead} bytes; last 4 KiB in {last:?} with {for_last} bytes; \
         executed in {took:?}, {sent} bytes served of {packed}"
    )
}

/// From an object store that checks signatures.
fn from_an_object_store(home: &Home) -> String {
    let store = ObjectStore::start(home.dir());
    store.put("disk.qcow2", &home.path("disk.qcow2"));
    let path = home.path("spec.json");
    fs::write(&path, store.spec("qcow2", "disk.qcow2")).unwrap();
    let prepare = format!("migration prepare --import-only --source-spec-path {} s3", path.display());
    let prepared = timed(home, &prepare);
    home.ok("snap create s3@fresh --no-progress");
    let took = timed(home, "migration execute s3 --no-progress");
    timed(home, "migration verify s3 --no-progress");
    home.ok("migration commit s3 --unverified --no-progress");
    compare(home, "s3", "fresh");
    assert!(prepared < Duration::from_secs(3), "{prepared:?}");
    format!("s3: prepared in {prepared:?}, executed in {took:?}")
}
