//! Migrations that ferry prepared, and `rbd`, which knows nothing of points of prepare, wrote to or ended.

use std::fs;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Cluster, stock};
use crate::harness::{Home, Name, Run, noise, promised};

/// Size of the image: 16 objects.
const SIZE: usize = 16 << 20;

/// A pool of a cluster with the image `a`, which is full.
struct Ground {
    home: Home,
    cluster: Cluster,
    pool: String,
}

impl Ground {
    fn new(test: &str) -> Option<Self> {
        let home = Home::empty();
        let cluster = Cluster::for_test(&home, test)?;
        let pool = Cluster::own("points");
        cluster.make_pool(&pool);
        fs::write(home.path("disk"), noise(5, SIZE)).unwrap();
        let ground = Self { home, cluster, pool };
        ground.ferry("import disk %/a --object-size 1M --no-progress");
        ground.ferry("snap create %/a@s --no-progress");
        Some(ground)
    }

    fn run(&self, line: &str) -> Run {
        let conf = self.cluster.conf().display();
        self.home.run(Name::Ferry, &format!("-c {conf} {}", line.replace('%', &self.pool)))
    }

    /// Ferry by its own name, which compares before it commits; it must succeed. Gives stdout.
    fn ferry(&self, line: &str) -> String {
        let run = self.run(line);
        assert_eq!(run.code, 0, "ferry {line}: {run:?}");
        run.out
    }

    fn try_rbd(&self, line: &str) -> Output {
        stock(&self.home, &self.cluster, &line.replace('%', &self.pool))
    }

    /// Stock `rbd`; it must succeed. Gives stdout.
    fn rbd(&self, line: &str) -> String {
        let output = self.try_rbd(line);
        assert!(output.status.success(), "rbd {line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn rados(&self, line: &str) -> String {
        self.cluster.ceph("rados", &format!("-p {} {line}", self.pool))
    }

    /// Has librbd discard an object whole.
    fn discard(&self, image: &str, object: usize) {
        let script = "\
            with rbd.Image(io, sys.argv[3]) as image:\n\
            \x20   image.discard(int(sys.argv[4]), int(sys.argv[5]))\n";
        let length = SIZE / 16;
        self.python(script, &[image, &(object * length).to_string(), &length.to_string()]);
    }

    /// Changes a byte of an object, and leaves its time of change as it was: as a copy would that went wrong.
    fn make_wrong(&self, object: &str) {
        let script = "\
            import time\n\
            changed = int(time.mktime(io.stat(sys.argv[3])[1]))\n\
            with rados.WriteOpCtx() as op:\n\
            \x20   op.write(b'x', 5000)\n\
            \x20   io.operate_write_op(op, sys.argv[3], mtime=changed)\n";
        self.python(script, &[object]);
    }

    /// Runs a script that has the pool as `io` and arguments from the third on.
    fn python(&self, script: &str, arguments: &[&str]) {
        let begin = "import sys, rados, rbd\n\
            cluster = rados.Rados(conffile=sys.argv[1]); cluster.connect()\n\
            io = cluster.open_ioctx(sys.argv[2])\n";
        let mut python = Command::new(super::model::PYTHON);
        python.args(["-c", &format!("{begin}{script}io.close()\ncluster.shutdown()\n")]);
        let output = python.arg(self.cluster.conf()).arg(&self.pool).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn bytes(&self, image: &str) -> Vec<u8> {
        drop(fs::remove_file(self.home.path("out")));
        self.rbd(&format!("export --no-progress {image} out"));
        fs::read(self.home.path("out")).unwrap()
    }

    /// Some writes at random, small beside the image.
    fn write(&self, program: impl Fn(&Self, &str) -> String, image: &str) {
        program(
            self,
            &format!("bench {image} --io-type write --io-size 4K --io-total 32K --io-pattern rand"),
        );
    }

    /// Where the image's data objects are, as the beginning of their names.
    fn prefix(&self, image: &str) -> String {
        let info: Value = serde_json::from_str(&self.rbd(&format!("info {image} --format json"))).unwrap();
        info["block_name_prefix"].as_str().unwrap().to_owned()
    }

    /// How many older versions of objects the pool holds, as the cluster counts them, which is some seconds late.
    fn versions(&self) -> u64 {
        let df: Value = serde_json::from_str(&self.cluster.ceph("rados", "df --format json")).unwrap();
        let pools = df["pools"].as_array().unwrap().iter();
        // One that was just made is not counted yet.
        let Some(pool) = pools.into_iter().find(|p| p["name"] == self.pool.as_str()) else { return 0 };
        let count = &pool["num_object_clones"];
        count.as_u64().or_else(|| count.as_str().and_then(|s| s.parse().ok())).unwrap()
    }

    fn wait_for_versions(&self, what: &str, is_right: impl Fn(u64) -> bool) {
        let began = Instant::now();
        while !is_right(self.versions()) {
            assert!(began.elapsed() < Duration::from_secs(60), "{what}: {} older versions", self.versions());
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

#[test]
fn what_rbd_wrote_since_prepare_does_not_keep_ferry_from_committing() {
    let test = "what_rbd_wrote_since_prepare_does_not_keep_ferry_from_committing";
    let Some(ground) = Ground::new(test) else { return };
    promised("left out of the comparison as of prepare, and counted");
    both_write_and_ferry_commits(&ground);
    ground.cluster.remove_pool(&ground.pool);
}

/// Without any snapshot `rbd` writes under no snapshot context at all, and preserves nothing.
#[test]
fn what_rbd_wrote_to_an_image_without_snapshots_does_not_keep_ferry_from_committing() {
    let test = "what_rbd_wrote_to_an_image_without_snapshots_does_not_keep_ferry_from_committing";
    let Some(ground) = Ground::new(test) else { return };
    ground.ferry("snap rm %/a@s --no-progress");
    both_write_and_ferry_commits(&ground);
    ground.cluster.remove_pool(&ground.pool);
}

/// Both write before and after the image is copied, on the same objects and on others.
fn both_write_and_ferry_commits(ground: &Ground) {
    ground.ferry("migration prepare %/a %/b");
    ground.write(Ground::rbd, "%/b");
    ground.write(Ground::ferry, "%/b");
    ground.ferry("migration execute %/b --no-progress");
    ground.write(Ground::rbd, "%/b");
    let before = ground.bytes("%/b");
    assert!(before != fs::read(ground.home.path("disk")).unwrap());
    let told = ground.ferry("migration verify %/b --no-progress");
    assert!(told.contains("equal") && told.contains("not compared: another program wrote there"), "{told}");
    ground.ferry("migration commit %/b --no-progress");
    assert!(ground.bytes("%/b") == before);
    // And where `rbd` copied all of it.
    ground.ferry("migration prepare %/b %/c");
    ground.write(Ground::ferry, "%/c");
    ground.rbd("migration execute --no-progress %/c");
    let before = ground.bytes("%/c");
    ground.ferry("migration commit %/c --no-progress");
    assert!(ground.bytes("%/c") == before);
}

#[test]
fn what_rbd_discarded_since_prepare_does_not_keep_ferry_from_committing() {
    let test = "what_rbd_discarded_since_prepare_does_not_keep_ferry_from_committing";
    for has_snapshot in [true, false] {
        let Some(ground) = Ground::new(test) else { return };
        if !has_snapshot {
            ground.ferry("snap rm %/a@s --no-progress");
        }
        ground.ferry("migration prepare %/a %/b");
        ground.discard("b", 1);
        ground.ferry("migration execute %/b --no-progress");
        ground.discard("b", 3);
        let before = ground.bytes("%/b");
        let object = SIZE / 16;
        assert!([1, 3].iter().all(|n| before[n * object..][..object].iter().all(|b| *b == 0)));
        let told = ground.ferry("migration verify %/b --no-progress");
        let counted = told.contains("not compared: another program wrote there");
        assert!(told.contains("equal") && counted, "{has_snapshot}: {told}");
        ground.ferry("migration commit %/b --no-progress");
        assert!(ground.bytes("%/b") == before);
        ground.cluster.remove_pool(&ground.pool);
    }
}

#[test]
fn a_wrong_copy_is_found_though_rbd_wrote_too() {
    let Some(ground) = Ground::new("a_wrong_copy_is_found_though_rbd_wrote_too") else { return };
    a_wrong_copy_is_refused(&ground);
    ground.cluster.remove_pool(&ground.pool);
}

/// A copy that went wrong or was lost, and was not written since, is refused.
#[test]
fn a_wrong_copy_of_an_image_without_snapshots_is_found_though_rbd_wrote_too() {
    let test = "a_wrong_copy_of_an_image_without_snapshots_is_found_though_rbd_wrote_too";
    let Some(ground) = Ground::new(test) else { return };
    ground.ferry("snap rm %/a@s --no-progress");
    ground.ferry("migration prepare %/a %/b");
    ground.rbd("bench %/b --io-type write --io-size 4K --io-total 4K --io-pattern seq");
    ground.ferry("migration execute %/b --no-progress");
    let prefix = ground.prefix("%/b");
    ground.rados(&format!("rm {prefix}.{:016x}", 2));
    let refused = ground.run("migration commit %/b --no-progress");
    assert_eq!(refused.code, 117, "{refused:?}");
    ground.ferry("migration abort %/b --no-progress");
    ground.ferry("migration prepare %/a %/b");
    ground.rbd("bench %/b --io-type write --io-size 4K --io-total 4K --io-pattern seq");
    ground.ferry("migration execute %/b --no-progress");
    let prefix = ground.prefix("%/b");
    ground.make_wrong(&format!("{prefix}.{:016x}", 2));
    let refused = ground.run("migration commit %/b --no-progress");
    assert_eq!(refused.code, 117, "{refused:?}");
    ground.cluster.remove_pool(&ground.pool);
}

fn a_wrong_copy_is_refused(ground: &Ground) {
    ground.ferry("migration prepare %/a %/b");
    ground.ferry("migration execute %/b --no-progress");
    let before = ground.bytes("%/b");
    let prefix = ground.prefix("%/b");
    // rbd writes the first object; the second one gets a wrong byte, the third is lost.
    ground.rbd("bench %/b --io-type write --io-size 4K --io-total 4K --io-pattern seq");
    let rados = |line: &str| ground.rados(line);
    let object = |n: u64| format!("{prefix}.{n:016x}");
    fs::write(ground.home.path("byte"), "x").unwrap();
    rados(&format!("put {} {} --offset 5000", object(1), ground.home.path("byte").display()));
    let refused = ground.run("migration commit %/b --no-progress");
    assert_eq!(refused.code, 117, "{refused:?}");
    assert!(refused.err.contains(&(SIZE / 16 + 5000).to_string()), "{refused:?}");
    // Made right again, and another one lost.
    fs::write(ground.home.path("byte"), &before[SIZE / 16 + 5000..][..1]).unwrap();
    rados(&format!("put {} {} --offset 5000", object(1), ground.home.path("byte").display()));
    let told = ground.ferry("migration verify %/b --no-progress");
    assert!(!told.contains("differs"), "{told}");
    rados(&format!("rm {}", object(2)));
    let refused = ground.run("migration commit %/b --no-progress");
    assert_eq!(refused.code, 117, "{refused:?}");
}

#[test]
fn points_of_prepare_go_where_rbd_ended_the_migration() {
    let Some(ground) = Ground::new("points_of_prepare_go_where_rbd_ended_the_migration") else { return };
    promised("where `rbd` ended it, when ferry next writes the image");
    ground.ferry("snap rm %/a@s --no-progress");
    ground.ferry("migration prepare %/a %/b");
    ground.write(Ground::ferry, "%/b");
    ground.wait_for_versions("what ferry writes preserves the point of prepare", |n| n > 0);
    ground.rbd("migration execute --no-progress %/b");
    ground.rbd("migration commit --no-progress %/b");
    let before = ground.bytes("%/b");
    ground.write(Ground::ferry, "%/b");
    ground.wait_for_versions("committed by rbd", |n| n == 0);
    assert_eq!(ground.bytes("%/b").len(), before.len());
    let before = ground.bytes("%/b");
    ground.ferry("migration prepare %/b %/c");
    ground.write(Ground::ferry, "%/c");
    ground.wait_for_versions("what ferry writes preserves the point of prepare", |n| n > 0);
    let prefix = ground.prefix("%/c");
    ground.rbd("migration abort --no-progress %/c");
    assert!(ground.bytes("%/b") != before, "what was written was not given back");
    ground.write(Ground::ferry, "%/b");
    ground.wait_for_versions("aborted by rbd", |n| n == 0);
    ground.cluster.wait_until_none(&ground.pool, |name| name.starts_with(&prefix));
    let keys =
        |object: &str| ground.cluster.ceph("rados", &format!("-p {} listomapkeys {object}", ground.pool));
    let id = ground.prefix("%/b").replace("rbd_data", "rbd_header");
    assert!(!keys(&id).contains("ferry.target-point"), "{}", keys(&id));
    ground.cluster.remove_pool(&ground.pool);
}
