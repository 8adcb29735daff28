//! Objects that the OSDs copy by themselves: of migrations, of copies, of clones flattened or written to.

use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::stores::Ground;
use crate::harness::{noise, promised};
use crate::nbd::Offer;

const OBJECT: u64 = 4 << 20;

impl Ground {
    /// What `rados stat` and `rados listxattr` say of an object of an image: when it changed, and its attributes.
    fn object(&self, image: &str, number: u64) -> (String, String) {
        let info = self.stock(&format!("info {image} --format json"));
        let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
        let object = format!("{}.{number:016x}", info["block_name_prefix"].as_str().unwrap());
        let pool = &self.pool;
        let stat = self.cluster.ceph("rados", &format!("-p {pool} stat {object}"));
        let changed = stat.split_once(" mtime ").unwrap().1.split_once(',').unwrap().0.to_owned();
        (changed, self.cluster.ceph("rados", &format!("-p {pool} listxattr {object}")))
    }

    /// Has a client write to an image.
    fn write(&self, image: &str, what: &str) {
        let offer = Offer::start(&self.home, image);
        let mut client = Command::new("qemu-io");
        let written = client.args(["-f", "raw", "-c", what, "-c", "flush", &offer.uri]).output().unwrap();
        assert!(written.status.success(), "{written:?}");
        assert_eq!(offer.stop(), 0);
    }
}

/// Waits until an object that is written now has another time of change than one written before.
fn wait_for_the_next_second() {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let begun = now();
    while now() == begun {
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn osds_copy_full_objects_by_themselves() {
    let Some(ground) = Ground::new("osds_copy_full_objects_by_themselves") else { return };
    promised("the OSDs copy objects that have no holes by themselves");
    // Full objects, one with a hole, and a short one.
    let (hole, size) = (2 * OBJECT + (1 << 20), 4 * OBJECT + 12345);
    let after = 3 * OBJECT - (1 << 20);
    let [head, tail] =
        [(0, hole), (after, size - after)].map(|(at, n)| noise(at, usize::try_from(n).unwrap()));
    let disk = fs::read(ground.home.sparse_file("disk", size, &[(0, &head), (after, &tail)])).unwrap();
    let made = ground.stock("import --no-progress --sparse-size 4K disk far/a");
    assert!(made.status.success(), "{made:?}");
    ground.home.ok("snap create far/a@s --no-progress");
    wait_for_the_next_second();

    // A clone and a copy: an object that was copied has the time of change of its source, as the OSD gives it that.
    ground.home.ok("clone far/a@s far/child");
    ground.home.ok("flatten far/child --no-progress");
    ground.home.ok("cp far/a far/copy --no-progress");
    for image in ["far/child", "far/copy"] {
        let is_copied = |n| ground.object(image, n).0 == ground.object("far/a", n).0;
        assert_eq!((0..5).map(is_copied).collect::<Vec<_>>(), [true, true, false, true, false], "{image}");
        assert!(ground.stock_bytes(image) == disk, "{image}");
    }

    // A migration, to replicated objects and to coded ones, and back by way of another size of object.
    for (target, layout) in
        [("far/b", ""), ("far/c", "--data-pool ecdata"), ("far/d", ""), ("far/e", "--object-size 8M")]
    {
        let source = match target {
            "far/b" => "far/a",
            "far/c" => "far/b",
            "far/d" => "far/c",
            _ => "far/d",
        };
        ground.home.ok(&format!("migration prepare {source} {target} {layout}"));
        ground.home.ok(&format!("migration execute {target} --no-progress"));
        let verified = ground.home.ok(&format!("migration verify {target} --no-progress"));
        assert_eq!(verified.lines().filter(|l| l.contains("equal")).count(), 2, "{verified}");
        if target == "far/b" {
            // Nobody but the OSDs read the others.
            let told = format!("({} by digests kept while copying", (2 << 20) + 4 * 4096);
            assert_eq!(verified.matches(&told).count(), 2, "{verified}");
            let (changed, attributes) = ground.object(target, 0);
            // Seconds, where they are less than ten years.
            let is_old = !changed.contains('T') || changed.starts_with("19");
            assert!(is_old, "it has the stamp of a copy: {changed}");
            assert_eq!(attributes, "");
        }
        if target == "far/d" {
            // Nothing tells where coded objects have holes.
            assert!(!verified.contains("both ends read"), "they are read to be copied: {verified}");
        }
        ground.home.ok(&format!("migration commit {target} --no-progress"));
        assert!(
            ground.stock_bytes(target) == disk && ground.stock_bytes(&format!("{target}@s")) == disk,
            "{target}"
        );
    }
    for line in ["rm far/child", "rm far/copy", "snap rm far/e@s", "rm far/e"] {
        ground.home.ok(&format!("{line} --no-progress"));
    }
}

#[test]
fn first_writes_to_a_clone_lie_over_what_the_osds_copied() {
    let Some(ground) = Ground::new("first_writes_to_a_clone_lie_over_what_the_osds_copied") else { return };
    let disk = noise(3, usize::try_from(3 * OBJECT).unwrap());
    fs::write(ground.home.path("disk"), &disk).unwrap();
    let made = ground.stock("import --no-progress disk far/t");
    assert!(made.status.success(), "{made:?}");
    let imported = ground.object("far/t", 1).0;
    ground.home.ok("snap create far/t@s --no-progress");
    wait_for_the_next_second();
    // What the parent is later shows nowhere.
    ground.write("far/t", "write -P 0xee 0 12M");
    assert_ne!(ground.object("far/t", 1).0, imported);
    ground.home.ok("clone far/t@s far/v");
    let mut expected = disk;
    let at = usize::try_from(OBJECT).unwrap() + 8192;
    expected[at..at + 4096].fill(0xab);
    ground.write("far/v", &format!("write -P 0xab {at} 4096"));
    assert!(ground.stock_bytes("far/v") == expected);
    // An OSD gives a copy the time of change of its source.
    assert_eq!(ground.object("far/v", 1).0, imported);
    for line in ["rm far/v", "snap rm far/t@s", "rm far/t"] {
        ground.home.ok(&format!("{line} --no-progress"));
    }
}
