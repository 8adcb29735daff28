//! Images between two clusters: both named in the home, or one only by a source spec, with its own user and key.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use super::Cluster;
use crate::durability::ledger::{Content, Ledger};
use crate::durability::load::{Load, Subject, check, wait_for_flushes};
use crate::durability::seed;
use crate::harness::{Home, promised};

/// Blocks of the image under load: 8 MiB.
const BLOCKS: usize = 2048;

/// A home with the local pool `rbd` and the pool `near` of a cluster, and another cluster.
struct Two {
    near: Cluster,
    near_pool: String,
    far: Cluster,
    /// Last, as it is dropped last: the other cluster's directory is in it.
    home: Home,
}

impl Two {
    fn start(test: &str) -> Option<Self> {
        let home = Home::new();
        let near = Cluster::for_test(&home, test)?;
        let far = Cluster::start(&home.path("far-cluster")).unwrap();
        let near_pool = Cluster::own("near");
        let conf = near.conf().display();
        let line = format!("-c {conf} pool create near --rados --rados-pool {near_pool}");
        let made = home.run(crate::harness::Name::Ferry, &line);
        assert_eq!(made.code, 0, "{made:?}");
        far.ceph("rbd", "create rbd/a --size 6M --object-size 1M");
        far.ceph("rbd", "bench rbd/a --io-type write --io-size 64K --io-total 1M --io-pattern rand");
        far.ceph("rbd", "snap create --no-progress rbd/a@one");
        far.ceph("rbd", "bench rbd/a --io-type write --io-size 4K --io-total 256K --io-pattern rand");
        far.ceph("rbd", "snap create --no-progress rbd/a@two");
        Some(Self { home, near, near_pool, far })
    }

    /// What the other cluster's image shows, as its own `rbd` reads it.
    fn far_bytes(&self, spec: &str) -> Vec<u8> {
        let out = self.home.path("far.out");
        drop(fs::remove_file(&out));
        self.far.ceph("rbd", &format!("export --no-progress {spec} {}", out.display()));
        fs::read(out).unwrap()
    }

    fn bytes(&self, spec: &str) -> Vec<u8> {
        let out = self.home.path("out");
        drop(fs::remove_file(&out));
        self.home.ok(&format!("export {spec} out --no-progress"));
        fs::read(out).unwrap()
    }

    /// Writes a few blocks.
    fn write(&self, image: &str) {
        self.home
            .ok(&format!("bench {image} --io-type write --io-size 4K --io-total 128K --io-pattern rand"));
    }

    fn secrets(&self) -> String {
        fs::read_to_string(self.home.path("home/secrets.toml")).unwrap_or_default()
    }

    fn prepare_import(&self, cluster: &str, target: &str) -> (i32, String) {
        let image = r#""type":"native","pool_name":"rbd","image_name":"a","snap_name":"two""#;
        fs::write(self.home.path("spec"), format!("{{{cluster},{image}}}")).unwrap();
        let line = format!("migration prepare --import-only --source-spec-path spec {target}");
        let run = self.home.run(crate::harness::Name::Ferry, &line);
        (run.code, run.err)
    }

    /// Executes and commits what was prepared, with a write before and one in between.
    fn finish(&self, target: &str) {
        let (one, two) = (self.far_bytes("rbd/a@one"), self.far_bytes("rbd/a@two"));
        assert!(self.bytes(target) == two && self.bytes(&format!("{target}@one")) == one, "{target}");
        self.write(target);
        let written = self.bytes(target);
        self.home.ok(&format!("migration execute {target} --no-progress"));
        assert!(self.bytes(target) == written, "{target}");
        self.home.ok(&format!("migration commit {target} --no-progress"));
        assert!(self.bytes(target) == written && self.bytes(&format!("{target}@one")) == one, "{target}");
        assert!(self.far_bytes("rbd/a@two") == two);
    }
}

/// A user of a cluster, who may use its images; his key.
fn user(conf: &Path, name: &str) -> String {
    let mut ceph = Command::new("ceph");
    ceph.env("CEPH_CONF", conf).args(["auth", "get-or-create-key", name]);
    let output = ceph.args(["mon", "profile rbd", "osd", "profile rbd"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// One test, as a cluster is started for it.
#[test]
fn images_go_from_one_cluster_to_another() {
    let Some(two) = Two::start("images_go_from_one_cluster_to_another") else { return };
    an_image_of_another_cluster_is_imported_as_its_own_user(&two);
    an_image_moves_from_one_cluster_to_another(&two);
    it_moves_under_a_writing_client(&two);
    two.near.remove_pool(&two.near_pool);
}

fn an_image_moves_from_one_cluster_to_another(two: &Two) {
    promised("An image moves from one cluster to another, under its clients too");
    let (home, conf) = (&two.home, two.far.conf().display().to_string());
    home.ok(&format!("-c {conf} pool create far --rados --rados-pool rbd"));
    let (one, head) = (two.far_bytes("rbd/a@one"), two.far_bytes("rbd/a"));
    home.ok("migration prepare far/a near/b");
    assert!(two.bytes("near/b") == head && two.bytes("near/b@one") == one);
    two.write("near/b");
    let written = two.bytes("near/b");
    // Back, with what was written, and forth again.
    home.ok("migration abort near/b --no-progress");
    assert!(two.far_bytes("rbd/a") == written && two.far_bytes("rbd/a@one") == one);
    home.ok("migration prepare far/a near/b");
    two.write("near/b");
    let written = two.bytes("near/b");
    home.ok("migration execute near/b --no-progress");
    home.ok("migration commit near/b --no-progress");
    assert!(two.bytes("near/b") == written && two.bytes("near/b@one") == one);
    assert_eq!(two.far.ceph("rbd", "ls rbd"), "");
    two.far.wait_until_none("rbd", |name| name.starts_with("rbd_data") || name.starts_with("rbd_header"));
}

/// Forth, back by an abort, and forth again, while a client writes and flushes.
#[expect(clippy::print_stdout, reason = "who plays it again wants to know the seed")]
fn it_moves_under_a_writing_client(two: &Two) {
    let (home, seed) = (&two.home, seed());
    println!("FERRY_SEED={seed}");
    home.ok("create far/live --size 8M --object-size 1M");
    let node = home.serve();
    home.ok("export add far/live --name vm");
    let socket = home.path("home/nbd.sock");
    let subject = Subject { export: "vm", ledger: Arc::new(Ledger::new(BLOCKS, Content::Zero)) };
    let subjects = [subject.clone()];
    let load = Load::start(&socket, &subjects, seed);
    wait_for_flushes(&subjects, 5);
    home.ok("snap create far/live@before --no-progress");
    let before = two.bytes("far/live@before");
    home.ok("migration prepare far/live near/live");
    wait_for_flushes(&subjects, 10);
    home.ok("migration abort near/live --no-progress");
    wait_for_flushes(&subjects, 15);
    home.ok("migration prepare far/live near/live");
    home.ok("snap create near/live@between --no-progress");
    let between = two.bytes("near/live@between");
    wait_for_flushes(&subjects, 20);
    home.ok("migration execute near/live --no-progress");
    home.ok("migration commit near/live --no-progress");
    wait_for_flushes(&subjects, 25);
    load.end();
    check(&socket, &subject, &subject.ledger.durable()).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    home.ok("export rm vm");
    assert_eq!(node.stop(), 0, "{}", home.log());
    subject.ledger.check(&subject.ledger.durable(), &two.bytes("near/live")).unwrap();
    assert!(two.bytes("near/live@before") == before && two.bytes("near/live@between") == between);
    assert_eq!(two.far.ceph("rbd", "ls rbd"), "");
    two.far.wait_until_none("rbd", |name| name.starts_with("rbd_data") || name.starts_with("rbd_header"));
}

fn an_image_of_another_cluster_is_imported_as_its_own_user(two: &Two) {
    promised("A native source spec names another cluster and its user");
    let (home, conf) = (&two.home, two.far.conf().display().to_string());
    let key = user(two.far.conf(), "client.backup");
    let spec = format!(r#""config_path":"{conf}","client_name":"client.backup","key":"{key}""#);
    for target in ["near/i", "rbd/i"] {
        let prepared = two.prepare_import(&spec, target);
        assert_eq!(prepared.0, 0, "{prepared:?}");
        let status = home.ok(&format!("status {target}"));
        assert!(status.contains(&conf) && status.contains("config://") && !status.contains(&key), "{status}");
        assert!(two.secrets().contains(&key));
        if target == "near/i" {
            let info: serde_json::Value =
                serde_json::from_str(&home.ok(&format!("info {target} --format json"))).unwrap();
            for record in ["migration", "ferry.migration"] {
                let (pool, id) = (&two.near_pool, info["id"].as_str().unwrap());
                let out = home.path("record");
                let line = format!("-p {pool} getomapval rbd_header.{id} {record} {}", out.display());
                two.near.ceph("rados", &line);
                let record = String::from_utf8_lossy(&fs::read(out).unwrap()).into_owned();
                assert!(record.contains("config://") && !record.contains(&key), "{record}");
            }
        }
        // What an import reads is not removed under it.
        assert_eq!(home.fails(&format!("-c {conf} snap rm rbd/a@one --no-progress")).0, 16);
        two.finish(target);
        assert!(!two.secrets().contains(&key));
    }
    // Where the monitors alone are named, nothing of this machine's configuration is used.
    let text = fs::read_to_string(two.far.conf()).unwrap();
    let mon_host = text.lines().find_map(|line| line.strip_prefix("mon host = ")).unwrap();
    let keyring = two.far.conf().with_file_name("keyring");
    let spec = format!(r#""mon_host":"{mon_host}","keyring_path":"{}""#, keyring.display());
    assert_eq!(two.prepare_import(&spec, "rbd/m").0, 0);
    two.finish("rbd/m");
    // The wrong key is refused, kept nowhere, and nothing is made.
    let wrong = user(two.near.conf(), "client.backup");
    let spec = format!(r#""config_path":"{conf}","client_name":"client.backup","key":"{wrong}""#);
    let refused = two.prepare_import(&spec, "rbd/w");
    assert!(refused.0 != 0 && !refused.1.contains(&wrong), "{refused:?}");
    assert!(!two.secrets().contains(&wrong));
    assert_eq!(home.ok("ls rbd"), "i\nm\n");
    two.near.ceph("ceph", "auth rm client.backup");
    // Nothing is pinned any more.
    home.ok(&format!("-c {conf} snap rm rbd/a@two --no-progress"));
}
