//! What a user may do who only reads a pool, and images that ferry must not change.

use std::fs;
use std::process::{Command, Output};

use super::{Cluster, ours, stock};
use crate::harness::{Home, Name, noise, promised};

type Program = fn(&Home, &Cluster, &str) -> Output;

/// All bytes of an image or a snapshot, as a program run with `user` reads them.
fn bytes(home: &Home, cluster: &Cluster, program: Program, user: &str, image: &str) -> Vec<u8> {
    drop(fs::remove_file(home.path("out")));
    let output = program(home, cluster, &format!("export --no-progress {image} out {user}"));
    assert!(output.status.success(), "{image}: {output:?}");
    fs::read(home.path("out")).unwrap()
}

/// A user who reads the pool `templates` and writes the pool `own`; the options that make a command his.
pub(super) fn reader(home: &Home, cluster: &Cluster, templates: &str, own: &str) -> String {
    let user = format!("reader-{own}");
    let keyring = home.path("reader.keyring");
    let caps = format!("profile rbd-read-only pool={templates}, profile rbd pool={own}");
    let made = Command::new("ceph")
        .env("CEPH_CONF", cluster.conf())
        .args(["auth", "get-or-create", &format!("client.{user}"), "mon", "profile rbd", "osd", &caps, "-o"])
        .arg(&keyring)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    format!("--id {user} --keyring {}", keyring.display())
}

#[test]
fn who_only_reads_a_pool_of_templates_clones_from_it() {
    let test = "who_only_reads_a_pool_of_templates_clones_from_it";
    let home = Home::empty();
    let Some(cluster) = Cluster::for_test(&home, test) else { return };
    promised("A user who only reads a pool of a cluster clones from its snapshots");
    let (templates, own) = (Cluster::own("templates"), Cluster::own("clones"));
    for pool in [&templates, &own] {
        cluster.make_pool(pool);
    }
    fs::write(home.path("disk"), noise(9, 5 << 20)).unwrap();
    let disk = fs::read(home.path("disk")).unwrap();
    let user = reader(&home, &cluster, &templates, &own);
    let admin = |line: &str| {
        let output = stock(&home, &cluster, line);
        assert!(output.status.success(), "rbd {line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    admin(&format!("import --no-progress disk {templates}/t --object-size 1M"));
    admin(&format!("snap create --no-progress {templates}/t@s"));
    admin(&format!("snap protect {templates}/t@s"));
    for (program, tag) in [(ours as Program, "f"), (stock, "r")] {
        let as_user = |line: &str| program(&home, &cluster, &format!("{line} {user}"));
        let ok = |line: &str| {
            let output = as_user(line);
            assert!(output.status.success(), "{tag} {line}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(ok(&format!("ls {templates}")), "t\n");
        assert!(bytes(&home, &cluster, program, &user, &format!("{templates}/t@s")) == disk);
        for format in ["1", "2"] {
            let clone = format!("{own}/{tag}{format}");
            ok(&format!("clone {templates}/t@s {clone} --rbd-default-clone-format {format}"));
            let children = admin(&format!("children {templates}/t@s"));
            assert!(children.contains(&clone), "format {format} by {tag}: {children}");
            assert!(bytes(&home, &cluster, program, &user, &clone) == disk);
            ok(&format!("bench {clone} --io-type write --io-size 4K --io-total 64K --io-pattern rand"));
            let now = bytes(&home, &cluster, ours, &user, &clone);
            assert!(now != disk && now == bytes(&home, &cluster, stock, &user, &clone));
        }
        ok(&format!("flatten --no-progress {own}/{tag}2"));
        ok(&format!("rm --no-progress {own}/{tag}1"));
        assert_eq!(admin(&format!("children {templates}/t@s")), "", "by {tag}");
        assert_eq!(admin(&format!("info {own}/{tag}2")).matches("parent:").count(), 0);
        // What is not theirs to change stays.
        for line in [
            format!("create {templates}/x --size 1M"),
            format!("snap create --no-progress {templates}/t@x"),
            format!("bench {templates}/t --io-type write --io-size 4K --io-total 4K"),
            format!("rm --no-progress {templates}/t"),
        ] {
            let output = as_user(&line);
            assert!(output.status.code().is_some_and(|code| code != 0), "{tag} {line}: {output:?}");
        }
        assert!(bytes(&home, &cluster, stock, "", &format!("{templates}/t")) == disk);
    }
    admin(&format!("snap unprotect {templates}/t@s"));
    admin(&format!("snap rm --no-progress {templates}/t@s"));
    for pool in [&templates, &own] {
        cluster.remove_pool(pool);
    }
}

/// Commands that change an image; `%` is it.
const CHANGES: &[&str] = &[
    "bench % --io-type write --io-size 4K --io-total 64K",
    "snap create --no-progress %@new",
    "snap rm --no-progress %@s",
    "snap rollback --no-progress %@s",
    "snap protect %@s",
    "resize --no-progress % --size 20M",
    "image-meta set % key value",
    "sparsify --no-progress %",
    "object-map rebuild --no-progress %",
    "feature disable % fast-diff",
    "migration prepare % %2",
    "trash mv %",
    "rm --no-progress %",
];

/// A bit set in the features of an image by hand, as a newer release or another client would have.
fn set_features(cluster: &Cluster, home: &Home, pool: &str, image: &str, bit: u64) {
    let info = stock(home, cluster, &format!("info {pool}/{image} --format json"));
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    let header = format!("rbd_header.{}", info["id"].as_str().unwrap());
    let value = home.path("features");
    cluster.ceph("rados", &format!("-p {pool} getomapval {header} features {}", value.display()));
    let before = u64::from_le_bytes(fs::read(&value).unwrap().try_into().unwrap());
    fs::write(&value, (before | bit).to_le_bytes()).unwrap();
    let text = format!("-p {pool} setomapval {header} features --input-file {}", value.display());
    cluster.ceph("rados", &text);
}

/// All that is in a pool: objects with their omaps and data.
fn dump(cluster: &Cluster, home: &Home, pool: &str) -> Vec<String> {
    let all = cluster.ceph("rados", &format!("-p {pool} ls"));
    let mut names: Vec<&str> = all.lines().collect();
    names.sort_unstable();
    let of = |name: &&str| {
        let keys = cluster.ceph("rados", &format!("-p {pool} listomapvals {name}"));
        let out = home.path("object");
        cluster.ceph("rados", &format!("-p {pool} get {name} {}", out.display()));
        format!("{name} {keys} {:x}", sum_of(&fs::read(&out).unwrap()))
    };
    names.iter().map(of).collect()
}

/// A number that stands for bytes, to compare two states.
fn sum_of(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, b| (sum ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn images_that_ferry_does_not_maintain_are_read_and_not_changed() {
    let test = "images_that_ferry_does_not_maintain_are_read_and_not_changed";
    let home = Home::empty();
    let Some(cluster) = Cluster::for_test(&home, test) else { return };
    promised("An image with a feature that ferry does not maintain is not changed, and the reason is told");
    let pool = Cluster::own("strange");
    cluster.make_pool(&pool);
    fs::write(home.path("disk"), noise(10, 5 << 20)).unwrap();
    let disk = fs::read(home.path("disk")).unwrap();
    // The features, whether it may be read, the exit code of what would change it, and what is said.
    let kinds: [(&str, u64, bool, i32, &str); 4] = [
        ("journaling", 0x40, true, 38, "journaling"),
        ("non-primary", 0x400, true, 30, "not primary"),
        ("dirty-cache", 0x800, false, 38, "dirty-cache"),
        ("unknown", 0x1000, true, 38, "0x1000"),
    ];
    for (kind, bit, is_read, code, said) in kinds {
        let image = format!("{pool}/{kind}");
        for line in
            [format!("import --no-progress disk {image}"), format!("snap create --no-progress {image}@s")]
        {
            let output = stock(&home, &cluster, &line);
            assert!(output.status.success(), "{line}: {output:?}");
        }
        if kind == "journaling" {
            let output = stock(&home, &cluster, &format!("feature enable {image} journaling"));
            assert!(output.status.success(), "{output:?}");
        } else {
            set_features(&cluster, &home, &pool, kind, bit);
        }
        let before = dump(&cluster, &home, &pool);
        let conf = cluster.conf().display();
        let ferry = |line: &str| home.run(Name::Ferry, &format!("-c {conf} {line}"));
        if is_read {
            for at in ["", "@s"] {
                assert!(bytes(&home, &cluster, ours, "", &format!("{image}{at}")) == disk, "{kind}{at}");
            }
            let info = ferry(&format!("info {image}"));
            assert_eq!(info.code, 0, "{info:?}");
        } else {
            let refused = ferry(&format!("export --no-progress {image} out2"));
            assert_eq!(refused.code, code, "{kind}: {refused:?}");
        }
        let mut wrong = Vec::new();
        for line in CHANGES {
            let refused = ferry(&line.replace('%', &image));
            if refused.code != code || !refused.err.contains(said) {
                wrong.push(format!("{line}: {refused:?}"));
            }
        }
        assert!(wrong.is_empty(), "{kind}:\n{}", wrong.join("\n"));
        let after = dump(&cluster, &home, &pool);
        let changed: Vec<_> = before.iter().zip(&after).filter(|(a, b)| a != b).collect();
        assert!(changed.is_empty() && before.len() == after.len(), "{kind} was changed: {changed:?}");
    }
    cluster.remove_pool(&pool);
}
