//! Pools of a cluster among those of a home, and images that move between the two.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::Cluster;
use crate::durability::ledger::{Content, Ledger};
use crate::durability::load::{Load, Subject, check, wait_for_flushes};
use crate::durability::seed;
use crate::harness::{Home, Name, noise, promised};

/// Longest time stock `rbd` may take: one that waits for ever is not refused.
const STOCK_MAX: Duration = Duration::from_secs(20);

/// A home with the local pool `rbd`, and the pool `far` of a cluster, which calls it something else.
pub(super) struct Ground {
    pub(super) home: Home,
    pub(super) cluster: Cluster,
    pub(super) pool: String,
}

impl Ground {
    pub(super) fn new(test: &str) -> Option<Self> {
        let home = Home::new();
        let cluster = Cluster::for_test(&home, test)?;
        let pool = Cluster::own("vms");
        let ground = Self { home, cluster, pool };
        let said = ground.home.run(Name::Ferry, &ground.create("far"));
        assert_eq!(said.code, 0, "{said:?}");
        assert!(said.err.contains("the cluster had no pool"), "{said:?}");
        Some(ground)
    }

    fn create(&self, name: &str) -> String {
        let (conf, pool) = (self.cluster.conf().display(), &self.pool);
        format!("-c {conf} pool create {name} --rados --rados-pool {pool}")
    }

    /// All bytes of an image, or of a snapshot.
    fn bytes(&self, spec: &str) -> Vec<u8> {
        let out = self.home.path("out");
        drop(fs::remove_file(&out));
        self.home.ok(&format!("export {spec} out --no-progress"));
        fs::read(out).unwrap()
    }

    /// Stock `rbd` on an image of the cluster's pool, given `STOCK_MAX`.
    pub(super) fn stock(&self, line: &str) -> Output {
        let line = line.replace("far/", &format!("{}/", self.pool));
        let (home, conf) = (&self.home, self.cluster.conf());
        let mut command = Command::new("timeout");
        command.arg(STOCK_MAX.as_secs().to_string()).arg("rbd").args(line.split_whitespace());
        command.current_dir(home.dir()).env("CEPH_CONF", conf).stdin(Stdio::null()).output().unwrap()
    }

    pub(super) fn stock_bytes(&self, spec: &str) -> Vec<u8> {
        drop(fs::remove_file(self.home.path("stock.out")));
        let output = self.stock(&format!("export {spec} stock.out --no-progress"));
        assert!(output.status.success(), "{spec}: {output:?}");
        fs::read(self.home.path("stock.out")).unwrap()
    }

    /// fio's engine for images, which is librbd's in another program: whether it can open the image.
    fn fio_opens(&self, image: &str) -> bool {
        let mut fio = Command::new("fio");
        fio.args(["--name=r", "--ioengine=rbd", "--clientname=admin", "--rw=read", "--bs=4k", "--size=64k"]);
        fio.args([format!("--pool={}", self.pool), format!("--rbdname={image}")]);
        let output = fio.env("CEPH_CONF", self.cluster.conf()).current_dir(self.home.dir()).output().unwrap();
        output.status.success()
    }
}

/// Noise with holes.
fn disk(ground: &Ground) -> Vec<u8> {
    let (first, last) = (noise(3, 1 << 20), noise(4, 300_000));
    let path = ground.home.sparse_file("disk", 12 << 20, &[(0, &first), (7 << 20, &last)]);
    fs::read(path).unwrap()
}

#[test]
fn pools_of_a_cluster_are_pools_of_the_home() {
    let Some(ground) = Ground::new("pools_of_a_cluster_are_pools_of_the_home") else { return };
    promised("A pool of a Ceph cluster that the home names is a pool like any other");
    let (home, conf) = (&ground.home, ground.cluster.conf().display().to_string());
    let disk = disk(&ground);
    home.ok("import disk far/a --no-progress");
    assert!(ground.bytes("far/a") == disk && ground.stock_bytes("far/a") == disk);
    // The cluster's own names, as `rbd` would.
    let pool = &ground.pool;
    assert_eq!(home.ok(&format!("-c {conf} ls {pool}")), "a\n");
    assert_eq!(home.ok("ls far"), "a\n");
    let listed = home.ok("pool ls");
    assert!(listed.contains(&format!("Ceph pool {pool} of {conf}")), "{listed}");
    assert!(home.ok("info far/a").contains("size 12 MiB"));
    // Taken twice, in a directory and in a cluster, nowhere.
    assert_eq!(home.fails(&ground.create("far")).0, 17);
    assert_eq!(home.fails(&ground.create("other")).0, 17);
    assert_eq!(home.fails(&format!("{} --path x", ground.create("other"))).0, 22);
    assert_eq!(home.fails("pool create other --rados-pool x").0, 22);
    // A clone and its parent have the home's names, and what a node serves is the same.
    home.ok("snap create far/a@s --no-progress");
    home.ok("clone far/a@s far/c --rbd-default-clone-format 2");
    assert!(home.ok("info far/c").contains("parent: far/a@s"), "{}", home.ok("info far/c"));
    assert_eq!(home.ok("children far/a@s"), "far/c\n");
    let node = home.serve();
    assert_eq!(home.ok("ls far"), "a\nc\n");
    assert!(ground.bytes("far/c") == disk);
    assert_eq!(node.stop(), 0, "{}", home.log());
    // Forgetting the pool leaves it to the cluster.
    let said = home.run(Name::Ferry, "pool rm far");
    assert!(said.code == 0 && said.err.contains("the cluster keeps its pool"), "{said:?}");
    assert_eq!(home.fails("ls far").0, 2);
    assert_eq!(home.ok(&format!("-c {conf} ls {pool}")), "a\nc\n");
    home.ok(&ground.create("far"));
    home.ok("rm far/c --no-progress");
    home.ok("snap rm far/a@s --no-progress");
    home.ok("rm far/a --no-progress");
    ground.cluster.wait_until_none(pool, |name| name.starts_with("rbd_data."));
}

#[test]
fn what_comes_from_another_store_is_closed_to_rbd_until_it_is_executed() {
    let Some(ground) = Ground::new("what_comes_from_another_store_is_closed_to_rbd_until_it_is_executed")
    else {
        return;
    };
    promised("Stock `rbd` refuses an image that comes from another store until it is executed");
    let home = &ground.home;
    let disk = disk(&ground);
    home.ok("import disk a --object-size 1M --no-progress");
    home.ok("snap create a@s --no-progress");
    home.ok("migration prepare a far/b");
    assert!(ground.bytes("far/b") == disk && ground.bytes("far/b@s") == disk);
    home.ok("bench far/b --io-type write --io-size 4K --io-total 256K --io-pattern rand");
    let written = ground.bytes("far/b");
    assert!(written != disk);
    let refusals = [
        "info far/b",
        "status far/b",
        "export far/b x",
        "bench far/b --io-type write --io-size 4K --io-total 4K",
        "snap ls far/b",
        "snap create far/b@t",
        "flatten far/b",
        "resize far/b --size 20M",
        "cp far/b far/c",
        "rm far/b",
        "trash mv far/b",
        "migration execute far/b",
        "migration commit far/b",
        "migration abort far/b",
    ];
    for line in refusals {
        let output = ground.stock(line);
        let code = output.status.code();
        assert!(code.is_some_and(|code| code != 0 && code < 124), "rbd {line}: {output:?}");
    }
    assert!(!ground.fio_opens("b"), "fio reads what is not there yet");
    assert!(ground.bytes("far/b") == written, "rbd has changed it");
    assert!(ground.bytes("far/b@s") == disk, "rbd has changed its snapshot");
    assert!(home.ok("status far/b").contains("source: rbd/a "), "{}", home.ok("status far/b"));
    home.ok("migration execute far/b --no-progress");
    assert!(ground.stock_bytes("far/b") == written && ground.stock_bytes("far/b@s") == disk);
    assert!(ground.fio_opens("b"));
    assert!(stock_map_is_right(&ground, "far/b"));
    home.ok("migration commit far/b --no-progress");
    assert!(ground.stock_bytes("far/b") == written && ground.stock_bytes("far/b@s") == disk);
    assert_eq!(home.ok("ls rbd"), "");
    // And back, where the source is the cluster's: `rbd` leaves it alone too.
    home.ok("migration prepare far/b a");
    for line in ["info far/b", "migration execute far/b", "migration abort far/b", "migration commit far/b"] {
        let output = ground.stock(line);
        let code = output.status.code();
        assert!(code.is_some_and(|code| code != 0 && code < 124), "rbd {line}: {output:?}");
    }
    home.ok("bench a --io-type write --io-size 4K --io-total 64K --io-pattern rand");
    let again = ground.bytes("a");
    home.ok("migration abort a --no-progress");
    assert!(ground.stock_bytes("far/b") == again, "an abort loses what was written");
    home.ok("migration prepare far/b a");
    home.ok("migration execute a --no-progress");
    home.ok("migration commit a --no-progress");
    assert!(ground.bytes("a") == again && ground.bytes("a@s") == disk);
    ground.cluster.wait_until_none(&ground.pool, |name| name.starts_with("rbd_data."));
    home.check();
}

/// Whether stock `rbd` finds the object map as it must be.
pub(super) fn stock_map_is_right(ground: &Ground, image: &str) -> bool {
    let info = ground.stock(&format!("info {image}"));
    let info = String::from_utf8(info.stdout).unwrap();
    info.contains("object-map")
        && !info.contains("invalid")
        && ground.stock(&format!("object-map check {image}")).status.success()
}

#[test]
fn rbd_may_commit_what_ferry_has_executed() {
    let Some(ground) = Ground::new("rbd_may_commit_what_ferry_has_executed") else { return };
    let home = &ground.home;
    let disk = disk(&ground);
    home.ok("import disk a --no-progress");
    home.ok("migration prepare a far/b");
    home.ok("migration execute far/b --no-progress");
    let committed = ground.stock("migration commit far/b");
    assert!(committed.status.success(), "{committed:?}");
    assert!(ground.stock_bytes("far/b") == disk && ground.bytes("far/b") == disk);
    // What is left is the source.
    home.ok("migration commit a --no-progress");
    assert_eq!(home.ok("ls rbd"), "");
    assert_eq!(home.ok("trash ls rbd --all"), "");
    assert!(ground.stock_bytes("far/b") == disk);
    home.check();
}

/// Blocks of the image under load: 16 MiB.
const BLOCKS: usize = 4096;

#[test]
fn an_image_moves_through_a_cluster_and_a_directory_under_a_writing_client() {
    let Some(ground) = Ground::new("an_image_moves_through_a_cluster_and_a_directory_under_a_writing_client")
    else {
        return;
    };
    promised(
        "An image moves between a directory and a Ceph cluster, either way, with its history and under its clients",
    );
    let (home, seed) = (&ground.home, seed());
    println!("FERRY_SEED={seed}");
    home.ok("create far/a --size 16M");
    let node = home.serve();
    home.ok("export add far/a --name vm");
    let socket = home.path("home/nbd.sock");
    let subject = Subject { export: "vm", ledger: Arc::new(Ledger::new(BLOCKS, Content::Zero)) };
    let subjects = [subject.clone()];
    let load = Load::start(&socket, &subjects, seed);
    let mut snaps: Vec<(String, Vec<u8>)> = Vec::new();
    let mut flushes = 0;
    let moves = [
        ("far/a", "far/b", "--data-pool ecdata --object-size 1M"),
        ("far/b", "rbd/c", "--stripe-unit 64K --stripe-count 2"),
        ("rbd/c", "far/d", ""),
    ];
    for (from, to, layout) in moves {
        let began = Instant::now();
        let name = format!("before-{}", &to[4..]);
        home.ok(&format!("snap create {from}@{name} --no-progress"));
        snaps.push((name.clone(), ground.bytes(&format!("{from}@{name}"))));
        flushes += 5;
        wait_for_flushes(&subjects, flushes);
        home.ok(&format!("migration prepare {from} {to} {layout}"));
        // Taken while it is on the way: part of it is at the source still.
        let under_way = format!("on-the-way-to-{}", &to[4..]);
        home.ok(&format!("snap create {to}@{under_way} --no-progress"));
        snaps.push((under_way.clone(), ground.bytes(&format!("{to}@{under_way}"))));
        home.ok(&format!("migration execute {to} --no-progress"));
        home.ok(&format!("migration commit {to} --no-progress"));
        for (snap, bytes) in &snaps {
            assert!(ground.bytes(&format!("{to}@{snap}")) == *bytes, "{to}@{snap} of seed {seed}");
        }
        println!("{from} to {to}: {:.1} s", began.elapsed().as_secs_f64());
    }
    thread::sleep(Duration::from_millis(300));
    load.end();
    check(&socket, &subject, &subject.ledger.durable()).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    println!("writes and flushes: {:?}", subject.ledger.acknowledged());
    home.ok("export rm vm");
    assert_eq!(node.stop(), 0, "{}", home.log());
    // What stock `rbd` sees of it, and what is left in the places it passed through.
    let head = ground.bytes("far/d");
    subject.ledger.check(&subject.ledger.durable(), &head).unwrap();
    assert!(ground.stock_bytes("far/d") == head);
    for (snap, bytes) in &snaps {
        assert!(ground.stock_bytes(&format!("far/d@{snap}")) == *bytes, "{snap} of seed {seed}");
    }
    assert!(stock_map_is_right(&ground, "far/d"));
    let prefix =
        format!("rbd_data.{}", home.ok("info far/d").split("id: ").nth(1).unwrap().lines().next().unwrap());
    let is_strange = |name: &str| name.starts_with("rbd_data.") && !name.starts_with(&prefix);
    ground.cluster.wait_until_none(&ground.pool, is_strange);
    let pool_id = ground.cluster.ceph("ceph", &format!("osd pool stats {} -f json", ground.pool));
    let id = serde_json::from_str::<serde_json::Value>(&pool_id).unwrap()[0]["pool_id"].to_string();
    let in_ec = format!("rbd_data.{id}.");
    ground.cluster.wait_until_none("ecdata", |name| name.starts_with(&in_ec));
    assert_eq!(home.ok("ls rbd"), "");
    home.check();
}
