//! Ferry and stock `rbd` side by side on a real cluster: the same images, the same commands, the same answers.
//!
//! Needs `FERRY_TEST_CEPH=1` and the Debian packages of Ceph; `tests/ceph/single-node.sh` starts the cluster. `FERRY_TEST_CEPH_CONF`
//! names the configuration of one that is there (`cargo xtask test` starts one for all tests): then only those that kill OSDs
//! start their own. Each test has pools of its own there, but for `rbd`, which belongs to
//! [`ferry_answers_as_rbd_on_a_real_cluster`], and the data pool `ecdata`.

mod access;
mod checklist;
mod clusters;
mod copies;
mod deaths;
mod devices;
mod faults;
mod holes;
mod keys;
mod model;
mod owners;
mod points;
mod stores;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Home, Name, noise, root};

/// A cluster that goes when this does.
struct Cluster {
    conf: PathBuf,
    /// Where it was started for this test.
    dir: Option<PathBuf>,
}

impl Cluster {
    /// Starts one in `dir`, or says why not.
    fn start(dir: &Path) -> Result<Self, String> {
        if std::env::var_os("FERRY_TEST_CEPH").is_none() {
            return Err("FERRY_TEST_CEPH is not set".to_owned());
        }
        let run =
            |verb: &str| Command::new(script()).arg(verb).arg(dir).stdin(Stdio::null()).output().unwrap();
        if !run("check").status.success() {
            return Err("Ceph is not installed and cannot be".to_owned());
        }
        let started = run("start");
        assert!(started.status.success(), "{started:?}");
        Ok(Self { conf: dir.join("ceph.conf"), dir: Some(dir.to_owned()) })
    }

    /// A running one, or else one of its own, for `test`, which is skipped where there is none.
    #[expect(clippy::print_stdout, reason = "this is how a test says that it is skipped")]
    fn for_test(home: &Home, test: &str) -> Option<Self> {
        if let Some(conf) = std::env::var_os("FERRY_TEST_CEPH_CONF") {
            return Some(Self { conf: conf.into(), dir: None });
        }
        match Self::start(&home.path("cluster")) {
            Ok(cluster) => Some(cluster),
            Err(reason) => {
                println!("SKIPPED {test}: {reason}");
                None
            }
        }
    }

    /// One of its own, for a test that breaks it.
    #[expect(clippy::print_stdout, reason = "this is how a test says that it is skipped")]
    fn to_break(home: &Home, test: &str) -> Option<Self> {
        let started = Self::start(&home.path("cluster"));
        started.inspect_err(|reason| println!("SKIPPED {test}: {reason}")).ok()
    }

    /// Makes a pool for images.
    fn make_pool(&self, pool: &str) {
        self.ceph("ceph", &format!("osd pool create {pool} 8"));
        self.ceph("rbd", &format!("pool init {pool}"));
    }

    /// Removes a pool with all that is in it.
    fn remove_pool(&self, pool: &str) {
        self.ceph("ceph", &format!("osd pool delete {pool} {pool} --yes-i-really-really-mean-it"));
    }

    fn conf(&self) -> &Path {
        &self.conf
    }

    /// Runs one of Ceph's programs; it must succeed. Gives stdout.
    fn ceph(&self, program: &str, line: &str) -> String {
        let mut command = Command::new(program);
        command.env("CEPH_CONF", self.conf()).stdin(Stdio::null());
        let output = command.args(line.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "{program} {line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until no object of a pool has a name that `is_left`: what only released snapshots showed goes in the background.
    fn wait_until_none(&self, pool: &str, is_left: impl Fn(&str) -> bool) {
        let began = Instant::now();
        loop {
            let all = self.ceph("rados", &format!("-p {pool} ls"));
            let left: Vec<&str> = all.lines().filter(|name| is_left(name)).collect();
            if left.is_empty() {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "left in {pool}: {left:?}");
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// A pool's name that no other test on this cluster uses.
    fn own(name: &str) -> String {
        static LAST: AtomicU32 = AtomicU32::new(0);
        format!("{name}{}-{}", std::process::id(), LAST.fetch_add(1, Ordering::Relaxed))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            drop(Command::new(script()).arg("stop").arg(dir).output());
        }
    }
}

fn script() -> PathBuf {
    root().join("tests/ceph/single-node.sh")
}

/// Made once, with stock `rbd`.
const SETUP: &str = "
create x --size 20M
bench x --io-type write --io-total 5M --io-pattern seq
snap create x@s1
snap create x@s2
snap protect x@s1
clone x@s1 xc
image-meta set x k v
namespace create rbd/n
create rbd/n/i --size 3M
create st --size 30M --object-size 1M --stripe-unit 64K --stripe-count 4 --data-pool ecdata
create nofeat --size 5M --image-feature layering
lock add nofeat lk
create tr --size 4M
trash mv tr
create tr2 --size 4M
trash mv tr2 --expires-at tomorrow
";

/// Asked of both; none of them changes anything.
const SAME: &str = "
ls
ls -l
ls --format json
ls --format xml
ls -l --format json
ls -l --format xml
ls -l --format json --pretty-format
ls -l --format xml --pretty-format
ls nopool
ls rbd/n
ls rbd/nons
ls -l rbd/n
info x
info x@s1
info x@nope
info nope
info xc
info xc --format json
info x@s1 --format json --pretty-format
info st
info st --format xml
info nofeat
info rbd/n/i
info -p rbd --image-id 1234
status x
status x --format json
status x --format xml
status nope
snap ls x
snap ls x --all
snap ls x --format json
snap ls x --format xml
snap ls nope
snap ls st
snap protect x@s1
snap protect x@nope
snap unprotect x@s1
snap unprotect x@s2
snap rm x@s1
snap rm x@nope
snap rename x@s1 x@s2
snap rename x@nope x@z
snap create x@s1
snap create nope@s1
snap rollback x@nope
snap limit set x
children x
children x@s1
children x@s1 --format json
children x --all --format json
children x --descendants
children nope
children x@nope
du
du x
du x@s1
du nope
du x --format json
du --format json
du x --format xml
du nofeat
du -p rbd --namespace n
du x --from-snap s1
du x --merge-snapshots
du x --exact
diff x
diff x --whole-object
diff x@s1 --format json
diff x --from-snap s1
diff x --from-snap nope
diff x@s2 --from-snap s1 --format xml
diff nope
trash ls
trash ls -l
trash ls --all
trash ls -l --format json
trash ls --format xml
trash ls nopool
trash restore 1234
trash rm 1234
trash mv nope
namespace ls
namespace ls --format json
namespace ls --format xml
namespace create rbd/n
namespace rm rbd/n
namespace rm rbd/nons
namespace create rbd
image-meta ls x
image-meta ls x --format json
image-meta ls x --format xml
image-meta ls st
image-meta get x k
image-meta get x nok
image-meta rm x nok
image-meta get nope k
config image ls x
config image ls x --format json
config pool ls rbd
config image get x rbd_cache
config image set x bogus 1
config image set x rbd_bogus 1
config pool get rbd rbd_cache
config global get bad rbd_cache
config image rm x rbd_cache
lock ls x
lock ls nofeat
lock ls nofeat --format json
lock ls nofeat --format xml
lock add nofeat other
lock rm nofeat lk client.1
lock rm nofeat lk nonsense
create nopool/x --size 1M
create rbd/nons/x --size 1M
create y --size 1M --object-size 64M
create y --size 1M --stripe-unit 4K
create y --size 1M --stripe-unit 3K --stripe-count 2
create y --size 1M --stripe-unit 8M --stripe-count 2
create y --size 1M --image-feature object-map
create y --size 1M --data-pool nopool
create y --size 1M --image-format 3
rename x x
rename x xc
rename nope z
rm x
rm nope
rm nopool/x
resize x --size 5M
resize x --size 20M
resize nope --size 1
resize x
cp x xc
cp nope z
cp x@nope z
deep cp nope z
clone x@s1 xc
clone x@nope z
clone nope@s z
flatten nope
import /nonexistent
import .
export nope
export x@nope out
export-diff x out --from-snap nope
import-diff /nonexistent x
feature disable x layering
feature enable x journaling2
object-map check nope
pool stats
pool stats --format json
pool stats rbd/n
pool stats nopool
bench x
bench x --io-type write --io-size 0
bench x --io-type write --io-size 100M
bench nope --io-type read
sparsify nope
merge-diff /nonexistent a b
";

/// Where a line of Ceph's log begins: `2026-11-21T…`.
fn log_line(text: &str) -> Option<usize> {
    let is_stamp = |at: usize| {
        let stamp = text.as_bytes().get(at..at + 11);
        stamp.is_some_and(|s| s.starts_with(b"20") && s[4] == b'-' && s[7] == b'-' && s[10] == b'T')
    };
    (0..text.len()).find(|at| is_stamp(*at))
}

/// What of stderr scripts see: without progress and without librbd's log, which stock `rbd` writes from another thread into
/// the middle of its lines.
fn said(text: &str) -> String {
    let mut text = text.to_owned();
    while let Some(at) = log_line(&text) {
        let end = text[at..].find('\n').map_or(text.len(), |n| at + n + 1);
        text.replace_range(at..end, "");
    }
    let lines = text
        .split(['\n', '\r'])
        .filter(|line| !line.is_empty() && !line.contains("% complete") && !line.starts_with("librbd: "));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Stock `rbd`.
fn stock(home: &Home, cluster: &Cluster, line: &str) -> Output {
    let mut command = Command::new("rbd");
    command.current_dir(home.dir()).env("CEPH_CONF", cluster.conf()).env("TZ", "UTC").stdin(Stdio::null());
    // Without it no image of format 1 is made any more.
    command.env("RBD_FORCE_ALLOW_V1", "1");
    command.args(line.split_whitespace()).output().unwrap()
}

/// Ferry, called as `rbd`.
fn ours(home: &Home, cluster: &Cluster, line: &str) -> Output {
    let mut command = home.command(Name::Rbd);
    command.env("CEPH_CONF", cluster.conf()).args(line.split_whitespace()).output().unwrap()
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|l| !l.is_empty())
}

/// All that can be seen of an answer.
fn seen(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), said(&text(&output.stderr)))
}

#[test]
fn ferry_answers_as_rbd_on_a_real_cluster() {
    let home = Home::empty();
    let Some(cluster) = Cluster::for_test(&home, "ferry_answers_as_rbd_on_a_real_cluster") else { return };
    if cluster.dir.is_none() {
        // An earlier run may have left something.
        cluster.remove_pool("rbd");
        cluster.make_pool("rbd");
    }
    for line in lines(SETUP) {
        let output = stock(&home, &cluster, line);
        assert!(output.status.success(), "rbd {line}: {output:?}");
    }
    let mut differences = Vec::new();
    for line in lines(SAME) {
        let (wanted, got) = (seen(&stock(&home, &cluster, line)), seen(&ours(&home, &cluster, line)));
        if wanted != got {
            differences.push(format!("rbd {line}\n  stock: {wanted:?}\n  ferry: {got:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    hand_over(&home, &cluster);
    imports(&home, &cluster);
}

/// Imports that one prepared and the other executes, those of raw files and of snapshots; all others `rbd` refuses.
fn imports(home: &Home, cluster: &Cluster) {
    let disk = fs::read(home.path("disk")).unwrap();
    let path = home.path("disk");
    let raw = format!(r#"{{"stream":{{"file_path":"{}","type":"file"}},"type":"raw"}}"#, path.display());
    type Program = fn(&Home, &Cluster, &str) -> Output;
    let ok = |program: Program, line: &str| {
        let output = program(home, cluster, line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let bytes = |program: Program, image: &str| {
        drop(fs::remove_file(home.path("i.out")));
        ok(program, &format!("export {image} i.out"));
        fs::read(home.path("i.out")).unwrap()
    };
    let programs: [(Program, Program, &str); 2] = [(stock, ours, "si"), (ours, stock, "oi")];
    for (first, second, image) in programs {
        ok(first, &format!("migration prepare --import-only --source-spec {raw} {image}"));
        assert_eq!(ok(stock, &format!("status {image}")), ok(ours, &format!("status {image}")));
        assert!(bytes(second, image) == disk && bytes(first, image) == disk, "{image} prepared");
        ok(first, &format!("bench {image} --io-type write --io-total 256K --io-pattern rand"));
        ok(second, &format!("bench {image} --io-type write --io-total 256K --io-pattern rand"));
        let now = bytes(first, image);
        assert!(bytes(second, image) == now, "{image} written");
        ok(second, &format!("migration execute {image}"));
        assert!(bytes(first, image) == now && bytes(second, image) == now, "{image} executed");
        ok(first, &format!("migration commit {image}"));
        assert!(bytes(first, image) == now && bytes(second, image) == now, "{image} committed");
        // What is left of it must not be taken for something to be finished, or taken away.
        for verb in ["commit", "abort"] {
            assert_eq!(ours(home, cluster, &format!("migration {verb} {image}")).status.code(), Some(22));
        }
        let again =
            ours(home, cluster, &format!("migration prepare --import-only --source-spec {raw} {image}"));
        assert_eq!(again.status.code(), Some(17), "{again:?}");
        assert!(bytes(stock, image) == now, "{image} left alone");
    }
    ok(ours, "import disk ni");
    ok(ours, "snap create ni@s");
    ok(ours, "migration prepare --import-only ni@s no");
    ok(stock, "migration prepare --import-only ni@s ns");
    let source = |image: &str| {
        let status = ok(stock, &format!("status {image}"));
        assert_eq!(status, ok(ours, &format!("status {image}")));
        status.lines().find(|l| l.contains("source:")).unwrap().to_owned()
    };
    assert_eq!(source("no"), source("ns"));
    assert!(bytes(stock, "no") == disk && bytes(ours, "no") == disk);
    assert_eq!(ours(home, cluster, "snap rm ni@s").status.code(), Some(16));
    assert!(!ours(home, cluster, "export ns n.out").status.success(), "rbd pins nothing: refused");
    ok(stock, "migration execute no");
    ok(stock, "migration abort ns");
    ok(ours, "migration commit no");
    ok(ours, "snap rm ni@s");
    assert!(bytes(stock, "no") == disk && bytes(ours, "no") == disk);
    let made = Command::new("qemu-img")
        .args(["convert", "-c", "-O", "qcow2", "disk", "c.qcow2"])
        .current_dir(home.dir())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let compressed = r#"{"type":"qcow","stream":{"type":"file","file_path":"c.qcow2"}}"#;
    ok(ours, &format!("migration prepare --import-only --source-spec {compressed} qi"));
    let refused = stock(home, cluster, "export qi q.out");
    assert!(!refused.status.success(), "rbd reads garbage out of compressed clusters: {refused:?}");
    assert!(bytes(ours, "qi")[..disk.len()] == disk);
    ok(ours, "migration abort qi");
}

/// What one wrote, the other reads and goes on with.
fn hand_over(home: &Home, cluster: &Cluster) {
    fs::write(home.path("disk"), noise(11, 9_000_000)).unwrap();
    let disk = fs::read(home.path("disk")).unwrap();
    type Program = fn(&Home, &Cluster, &str) -> Output;
    let programs: [(Program, Program, &str); 2] = [(stock, ours, "s"), (ours, stock, "o")];
    for (first, second, tag) in programs {
        for (program, line) in [
            (first, format!("import disk {tag}a --object-size 1M --stripe-unit 64K --stripe-count 2")),
            (second, format!("export {tag}a {tag}a.out")),
            (second, format!("snap create {tag}a@one")),
            (first, format!("bench {tag}a --io-type write --io-total 1M --io-pattern rand")),
            (second, format!("clone {tag}a@one {tag}b --rbd-default-clone-format 2")),
            (first, format!("export {tag}b {tag}b.out")),
            (first, format!("snap rm {tag}a@one")),
            (second, format!("flatten {tag}b")),
            (first, format!("export {tag}b {tag}c.out")),
            (second, format!("object-map check {tag}a")),
            (first, format!("trash mv {tag}b")),
            (second, format!("rm {tag}a")),
        ] {
            let output = program(home, cluster, &line);
            assert!(output.status.success(), "{line}: {output:?}");
        }
        for out in ["a", "b", "c"] {
            let path = home.path(&format!("{tag}{out}.out"));
            assert_eq!(fs::read(&path).unwrap(), disk, "{}", path.display());
        }
    }
}
