//! OSDs that die and come back, and clients that are cut off, under load.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::{Cluster, script, stock};
use crate::durability::client::Client;
use crate::durability::ledger::{BLOCK, Content, Ledger, pattern};
use crate::durability::load::{Load, Numbers, Subject, check, wait_for_flushes};
use crate::durability::{seed, setting};
use crate::harness::{Home, promised};

/// Blocks of an image under load: 8 MiB.
const BLOCKS: usize = 2048;

/// Longest time until all placement groups are whole again after an OSD came back.
const WHOLE_MAX: Duration = Duration::from_secs(120);

impl Cluster {
    /// Kills or starts an OSD of a cluster of this test.
    fn osd(&self, verb: &str, number: u64) {
        let dir = self.dir.as_ref().expect("only a cluster of its own is broken");
        let done = Command::new(script()).arg(verb).arg(dir).arg(number.to_string()).output().unwrap();
        assert!(done.status.success(), "{verb} {number}: {done:?}");
    }

    /// Waits until all placement groups are whole.
    fn wait_until_whole(&self) {
        let began = Instant::now();
        loop {
            let status: serde_json::Value =
                serde_json::from_str(&self.ceph("ceph", "status -f json")).unwrap();
            let (states, all) = (&status["pgmap"]["pgs_by_state"], &status["pgmap"]["num_pgs"]);
            let ups = &status["osdmap"]["num_up_osds"];
            let whole: u64 = states
                .as_array()
                .unwrap()
                .iter()
                .filter(|s| s["state_name"].as_str().unwrap().starts_with("active+clean"))
                .map(|s| s["count"].as_u64().unwrap())
                .sum();
            if *ups == 3 && Some(whole) == all.as_u64() {
                return;
            }
            assert!(began.elapsed() < WHOLE_MAX, "not whole: {status}");
            thread::sleep(Duration::from_millis(500));
        }
    }
}

/// A home with the pool `far` of a cluster, three images in it (of zeros; with its data in an erasure-coded pool; a clone of one that is
/// full of the pattern 1) and what is known of them.
fn prepare(home: &Home, cluster: &Cluster, pool: &str) -> Vec<Subject> {
    let full: Vec<u8> = (0..BLOCKS).flat_map(|at| pattern(Content::Numbered(1), at)).collect();
    fs::write(home.path("full"), full).unwrap();
    let conf = cluster.conf().display();
    home.ok(&format!("-c {conf} pool create far --rados --rados-pool {pool}"));
    let size = (BLOCKS * BLOCK) >> 20;
    home.ok(&format!("create far/plain --size {size}M --object-size 1M"));
    home.ok(&format!("create far/coded --size {size}M --object-size 1M --data-pool ecdata"));
    home.ok("import full far/parent --object-size 1M --no-progress");
    home.ok("snap create far/parent@s --no-progress");
    home.ok("clone far/parent@s far/clone --rbd-default-clone-format 2");
    let of = |export, content| Subject { export, ledger: Arc::new(Ledger::new(BLOCKS, content)) };
    vec![of("plain", Content::Zero), of("coded", Content::Zero), of("clone", Content::Numbered(1))]
}

fn export_all(home: &Home, subjects: &[Subject]) {
    for subject in subjects {
        home.ok(&format!("export add far/{0} --name {0}", subject.export));
    }
}

/// What was acknowledged until now must be there: a cluster acknowledges what it has stored.
fn acknowledged_is_durable(subject: &Subject) {
    let moment = subject.ledger.flush();
    subject.ledger.flushed(moment);
}

/// All bytes of an image, as stock `rbd` reads them.
fn stock_bytes(home: &Home, cluster: &Cluster, image: &str) -> Vec<u8> {
    drop(fs::remove_file(home.path("stock.out")));
    let output = stock(home, cluster, &format!("export --no-progress {image} stock.out"));
    assert!(output.status.success(), "{image}: {output:?}");
    fs::read(home.path("stock.out")).unwrap()
}

/// Stock `rbd` reads what was acknowledged, and finds the object map right.
fn stock_finds_it(home: &Home, cluster: &Cluster, pool: &str, subject: &Subject, seed: u64) {
    let image = format!("{pool}/{}", subject.export);
    let bytes = stock_bytes(home, cluster, &image);
    let found = subject.ledger.check(&subject.ledger.durable(), &bytes);
    found.unwrap_or_else(|e| panic!("{image} of seed {seed}: {e}"));
    let map = stock(home, cluster, &format!("object-map check {image}"));
    let info = stock(home, cluster, &format!("info {image}"));
    let is_valid = !String::from_utf8_lossy(&info.stdout).contains("invalid");
    assert!(map.status.success() && is_valid, "{image} of seed {seed}: {map:?} {info:?}");
}

#[test]
fn an_osd_killed_and_started_again_under_load_loses_no_acknowledged_write() {
    let test = "an_osd_killed_and_started_again_under_load_loses_no_acknowledged_write";
    let home = Home::empty();
    let Some(cluster) = Cluster::to_break(&home, test) else { return };
    promised(
        "Clients of an image on a cluster wait while an OSD is away, and no write that was acknowledged is lost",
    );
    let (seed, rounds) = (seed(), setting("FERRY_OSD_KILLS", 3));
    println!("FERRY_SEED={seed} FERRY_OSD_KILLS={rounds}");
    let mut numbers = Numbers(seed);
    let subjects = prepare(&home, &cluster, "rbd");
    let node = home.serve();
    export_all(&home, &subjects);
    let socket = home.path("home/nbd.sock");
    let load = Load::start(&socket, &subjects, seed);
    for round in 0..rounds {
        // One is faster than another.
        for subject in &subjects {
            wait_for_flushes(std::slice::from_ref(subject), subject.ledger.acknowledged().1 + 3);
        }
        let began = Instant::now();
        let osd = round % 3;
        cluster.osd("osd-kill", osd);
        thread::sleep(Duration::from_millis(500 + numbers.below(4000)));
        cluster.osd("osd-start", osd);
        cluster.wait_until_whole();
        println!("OSD {osd}: whole again {:.1} s after it was killed", began.elapsed().as_secs_f64());
    }
    thread::sleep(Duration::from_millis(500));
    // Every request has gone well: none fails, they wait.
    load.end();
    for subject in &subjects {
        acknowledged_is_durable(subject);
        check(&socket, subject, &subject.ledger.durable()).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        println!("{}: writes and flushes {:?}", subject.export, subject.ledger.acknowledged());
    }
    assert_eq!(node.stop(), 0, "{}", home.log());
    for subject in &subjects {
        stock_finds_it(&home, &cluster, "rbd", subject, seed);
    }
}

#[test]
fn a_client_that_is_cut_off_under_load_fails_and_serves_nothing_stale() {
    let test = "a_client_that_is_cut_off_under_load_fails_and_serves_nothing_stale";
    let home = Home::empty();
    let Some(cluster) = Cluster::for_test(&home, test) else { return };
    promised("A client that the cluster has cut off fails its requests: it serves nothing stale");
    let seed = seed();
    println!("FERRY_SEED={seed}");
    let pool = Cluster::own("cut");
    cluster.make_pool(&pool);
    let subjects = prepare(&home, &cluster, &pool);
    let node = home.serve();
    export_all(&home, &subjects);
    let socket = home.path("home/nbd.sock");
    let load = Load::start(&socket, &subjects, seed);
    wait_for_flushes(&subjects, 10);
    let lock = String::from_utf8(stock(&home, &cluster, &format!("lock ls {pool}/plain")).stdout).unwrap();
    let address = lock.split_whitespace().last().unwrap().to_owned();
    cluster.ceph("ceph", &format!("osd blocklist add {address}"));
    let ends = load.outcomes();
    for end in &ends {
        let error = end.as_ref().expect_err("a client that was cut off goes on").to_string();
        assert!(error.contains("failed with 108"), "no clear error: {error}");
    }
    for subject in &subjects {
        acknowledged_is_durable(subject);
        stock_finds_it(&home, &cluster, &pool, subject, seed);
    }
    // What others write now it must not hide behind what it has read before.
    let line = format!("bench {pool}/plain --io-type write --io-size 4K --io-total 1M --io-pattern rand");
    assert!(stock(&home, &cluster, &line).status.success());
    for subject in &subjects {
        let read = Client::connect(&socket, subject.export).and_then(|mut c| c.read(0, BLOCK));
        assert!(read.is_err(), "{} is still read", subject.export);
    }
    let log = home.log();
    assert!(log.contains("cut off") || log.contains("watch on the image was lost"), "nobody is told: {log}");
    node.stop();
    // A new client goes on.
    let node = home.serve();
    let after = stock_bytes(&home, &cluster, &format!("{pool}/plain"));
    let read = crate::durability::load::read(&socket, "plain").unwrap();
    assert!(read == after, "what the next node serves is not what is there");
    assert_eq!(node.stop(), 0, "{}", home.log());
    cluster.remove_pool(&pool);
}
