//! Images as wholes.

use crate::harness::{Home, Name, promised};

#[test]
fn an_image_is_made_listed_described_and_removed() {
    let home = Home::new();
    assert_eq!(home.ok("ls"), "");
    assert_eq!(home.ok("create a --size 64"), "");
    home.ok("create rbd/b --size 1G --object-size 1M --stripe-unit 64K --stripe-count 4");
    assert_eq!(home.ok("ls"), "a\nb\n");
    assert_eq!(home.ok("ls --format json").trim_end(), r#"["a","b"]"#);
    assert_eq!(home.ok("ls --format xml").trim_end(), "<images><name>a</name><name>b</name></images>");
    assert_eq!(home.ok("ls --format json --pretty-format"), "[\n    \"a\",\n    \"b\"\n]\n");
    assert_eq!(
        home.ok("ls -l"),
        "NAME  SIZE    PARENT  FMT  PROT  LOCK\n\
         a     64 MiB            2            \n\
         b      1 GiB            2            \n"
    );
    let info = home.ok("info b");
    for line in [
        "rbd image 'b':\n\tsize 1 GiB in 1024 objects\n\torder 20 (1 MiB objects)\n\tsnapshot_count: 0\n\tid: ",
        "\tformat: 2\n\tfeatures: layering, striping, exclusive-lock, object-map, fast-diff, deep-flatten\n\t\
         op_features: \n\tflags: \n\tcreate_timestamp: ",
        "\tstripe unit: 64 KiB\n\tstripe count: 4\n",
    ] {
        assert!(info.contains(line), "{info}");
    }
    home.ok("rm a");
    assert_eq!(home.ok("ls"), "b\n");
}

#[test]
fn json_and_the_id_name_the_same_image() {
    let home = Home::new();
    home.ok("create a --size 10M");
    let info: serde_json::Value = serde_json::from_str(&home.ok("info a --format json")).unwrap();
    let id = info["id"].as_str().unwrap();
    assert_eq!(info["block_name_prefix"], format!("rbd_data.{id}"));
    assert_eq!((info["size"].as_u64(), info["objects"].as_u64()), (Some(10 << 20), Some(3)));
    let by_id: serde_json::Value =
        serde_json::from_str(&home.ok(&format!("info -p rbd --image-id {id} --format json"))).unwrap();
    assert_eq!((by_id.get("name"), &by_id["size"]), (None, &info["size"]));
    assert_eq!(
        home.rbd_fails(&format!("info rbd/a --image-id {id}")),
        (22, "rbd: trying to access image using both name and id. \n".to_owned())
    );
}

#[test]
fn a_size_changes_both_ways_but_shrinks_only_when_told() {
    let home = Home::new();
    home.ok("create a --size 10M");
    home.ok("resize a --size 20M");
    assert_eq!(
        home.rbd_fails("resize a --size 5M"),
        (22, "rbd: shrinking an image is only allowed with the --allow-shrink flag\n".to_owned())
    );
    assert_eq!(
        home.rbd_fails("resize a --size 20M"),
        (22, "rbd: new size is equal to original size \n".to_owned())
    );
    home.ok("resize a --size 5M --allow-shrink");
    assert!(home.ok("info a").contains("size 5 MiB in 2 objects"));
}

#[test]
fn progress_goes_to_stderr_in_the_form_of_rbd() {
    let home = Home::new();
    home.ok("create a --size 10M");
    let mut command = home.command(Name::Rbd);
    let output = command.args(["resize", "a", "--size", "20M"]).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(err.ends_with("\rResizing image: 100% complete...done.\n"), "{err:?}");
    assert_eq!(output.stdout, b"");
    let output =
        home.command(Name::Rbd).args(["resize", "a", "--size", "30M", "--no-progress"]).output().unwrap();
    assert_eq!(output.stderr, b"");
}

#[test]
fn a_name_changes_inside_its_pool_only() {
    let home = Home::new();
    home.ok("pool create other");
    home.ok("create a --size 1");
    home.ok("create b --size 1");
    home.ok("rename a c");
    home.ok("mv rbd/c d");
    assert_eq!(home.ok("ls"), "b\nd\n");
    assert_eq!(home.rbd_fails("rename b d"), (17, "rbd: rename error: (17) File exists\n".to_owned()));
    assert_eq!(
        home.rbd_fails("rename b other/b"),
        (22, "rbd: mv/rename across pools not supported\nsource pool: rbd dest pool: other\n".to_owned())
    );
}

#[test]
fn a_copy_is_an_image_of_its_own() {
    let home = Home::new();
    home.sparse_file("disk", 12 << 20, &[(5 << 20, b"data")]);
    home.ok("import disk a --no-progress");
    home.ok("snap create a@s");
    home.ok("cp a@s b");
    home.ok("deep cp a c");
    assert_eq!(home.ok("snap ls b"), "");
    assert!(home.ok("snap ls c").contains("  s     12 MiB  "));
    for image in ["b", "c", "c@s"] {
        home.ok(&format!("export {image} out.{image}"));
        assert_eq!(
            std::fs::read(home.path(&format!("out.{image}"))).unwrap(),
            std::fs::read(home.path("disk")).unwrap(),
            "{image}"
        );
    }
    assert_eq!(home.rbd_fails("cp a b"), (17, "rbd: copy failed: (17) File exists\n".to_owned()));
    home.ok("rm b");
    home.check();
}

#[test]
fn used_space_is_counted_by_snapshot() {
    let home = Home::new();
    home.sparse_file("disk", 9 << 20, &[(0, &[1; 4096]), (8 << 20, &[1; 4096])]);
    home.ok("import disk i");
    assert_eq!(home.ok("du i"), "NAME  PROVISIONED  USED \ni           9 MiB  5 MiB\n");
    home.ok("snap create i@s");
    assert_eq!(
        home.ok("du i"),
        "NAME     PROVISIONED  USED \n\
         i@s            9 MiB  5 MiB\n\
         i              9 MiB    0 B\n\
         <TOTAL>        9 MiB  5 MiB\n"
    );
    assert_eq!(home.ok("du i --exact --merge-snapshots"), home.ok("du i --merge-snapshots --exact"));
    assert_eq!(
        home.rbd_fails("du nope"),
        (2, "specified image nope is not found.\nrbd: du failed: (2) No such file or directory\n".to_owned())
    );
}

#[test]
fn namespaces_hold_images_apart() {
    let home = Home::new();
    home.ok("namespace create rbd/n");
    home.ok("create a --size 1");
    home.ok("create rbd/n/a --size 2");
    assert_eq!(home.ok("namespace ls"), "NAME\nn   \n");
    assert_eq!(home.ok("namespace ls --format json").trim_end(), r#"[{"name":"n"}]"#);
    assert!(home.ok("info rbd/n/a").contains("size 2 MiB"));
    assert!(home.ok("info a").contains("size 1 MiB"));
    assert_eq!(
        home.rbd_fails("namespace rm rbd/n"),
        (16, "rbd: namespace contains images which must be deleted first.\n".to_owned())
    );
    assert_eq!(
        home.rbd_fails("ls rbd/m"),
        (
            2,
            "rbd: namespace 'm' does not exist.\nrbd: listing images failed: (2) No such file or directory\n"
                .to_owned()
        )
    );
    home.ok("rm --namespace n a");
    home.ok("namespace rm rbd/n");
    assert_eq!(home.ok("ls"), "a\n");
}

#[test]
fn a_locked_image_says_who_holds_it() {
    let home = Home::new();
    home.ok("create a --size 1");
    assert_eq!(home.ok("lock ls a"), "");
    home.ok("lock add a me");
    let list = home.ok("lock ls a");
    assert!(list.starts_with("There is 1 exclusive lock on this image.\nLocker "), "{list}");
    assert!(home.ok("ls -l").contains(" excl\n"));
    assert_eq!(
        home.rbd_fails("lock add a you"),
        (16, "rbd: lock is already held by someone else\n".to_owned())
    );
    let locker = list.lines().nth(2).unwrap().split(' ').next().unwrap();
    home.ok(&format!("lock rm a me {locker}"));
    home.ok("lock add a x --shared t");
    home.ok("lock add a y --shared t");
    assert!(home.ok("lock ls a").starts_with("There are 2 shared locks on this image.\nLock tag: t\n"));
}

#[test]
fn a_measurement_ends_with_its_sum() {
    let home = Home::new();
    home.ok("create a --size 4M");
    let out = home.ok("bench a --io-type write --io-total 256K --io-size 4K");
    let mut lines = out.lines();
    assert_eq!(
        lines.next().unwrap(),
        "bench  type write io_size 4096 io_threads 16 bytes 262144 pattern sequential"
    );
    assert_eq!(lines.next().unwrap(), "  SEC       OPS   OPS/SEC   BYTES/SEC");
    assert!(out.lines().last().unwrap().starts_with("elapsed: 0   ops: 64   ops/sec: "), "{out}");
    assert_eq!(home.rbd_fails("bench a"), (22, "rbd: --io-type must be specified.\n".to_owned()));
}

#[test]
fn features_change_where_they_can() {
    let home = Home::new();
    home.ok("create a --size 8M");
    home.ok("feature disable a object-map");
    assert!(home.ok("info a").contains("features: layering, exclusive-lock, deep-flatten\n"));
    home.ok("feature enable a object-map fast-diff");
    assert!(home.ok("info a").contains("flags: object map invalid, fast diff invalid\n"));
    home.ok("object-map rebuild a");
    assert!(home.ok("info a").contains("flags: \n"));
    home.ok("object-map check a");
    let (code, err) = home.rbd_fails("feature disable a layering");
    assert_eq!(code, 22);
    assert!(err.contains("cannot update immutable features"), "{err}");
}

#[test]
fn thick_provisioning_takes_the_space_at_once() {
    let home = Home::new();
    home.ok("create thick --size 4M --thick-provision");
    let info: serde_json::Value = serde_json::from_str(&home.ok("du thick --format json")).unwrap();
    assert_eq!(info["images"][0]["used_size"], 4 << 20);
}

/// When an image was made, last read and last written, as `info` tells it.
fn times(home: &Home, image: &str) -> [String; 3] {
    let info: serde_json::Value =
        serde_json::from_str(&home.ok(&format!("info {image} --format json"))).unwrap();
    ["create_timestamp", "access_timestamp", "modify_timestamp"]
        .map(|key| info[key].as_str().expect("a text").to_owned())
}

#[test]
fn the_times_of_an_image_follow_its_use() {
    promised("`info` tells when an image was last read and last written, to about a minute.");
    let home = Home::new();
    home.ok("create a --size 10M");
    home.ok("create young --size 10M");
    home.ok("config image set a rbd_mtime_update_interval 1");
    home.ok("config image set a rbd_atime_update_interval 1");
    std::thread::sleep(std::time::Duration::from_millis(2100));
    home.ok("bench a --io-type write --io-size 4K --io-total 64K");
    home.ok("bench young --io-type write --io-size 4K --io-total 64K");
    let [created, read, written] = times(&home, "a");
    assert_eq!(read, created);
    assert_ne!(written, created);
    home.ok("export a out");
    let [_, read, still] = times(&home, "a");
    assert_ne!(read, created);
    assert_eq!(still, written);
    // Its times are younger than a minute.
    let [created, read, written] = times(&home, "young");
    assert_eq!((&read, &written), (&created, &created));
}

#[test]
fn a_list_of_changes_names_blocks() {
    promised(
        "`diff`, `du --exact` and NBD's `base:allocation` tell what holds bytes block by block of 4 KiB;",
    );
    let home = Home::new();
    home.sparse_file("disk", 10 << 20, &[(1 << 20, &[7; 8192]), (9 << 20, &[7; 4096])]);
    home.ok("import disk a");
    let list = |line: &str| -> Vec<(u64, u64, String)> {
        let found: serde_json::Value =
            serde_json::from_str(&home.ok(&format!("{line} --format json"))).unwrap();
        let number = |value: &serde_json::Value| value.as_u64().unwrap();
        let of = |e: &serde_json::Value| {
            (number(&e["offset"]), number(&e["length"]), e["exists"].as_str().unwrap().to_owned())
        };
        found.as_array().unwrap().iter().map(of).collect()
    };
    let data = |offset, length| (offset, length, "true".to_owned());
    assert_eq!(list("diff a"), [data(1 << 20, 8192), data(9 << 20, 4096)]);
    assert_eq!(list("diff a --whole-object"), [data(0, 4 << 20), data(8 << 20, 2 << 20)]);
    assert!(home.ok("du a --exact --format json").contains(r#""used_size":12288"#));
    home.ok("snap create a@s");
    home.ok("clone a@s c");
    assert_eq!(list("diff c"), list("diff a"), "what shows through is listed as finely");
    assert_eq!(list("diff a --from-snap s"), []);
}

#[test]
fn stripes_of_zero_are_none_as_for_rbd() {
    let home = Home::new();
    home.ok("create s --size 8M --stripe-unit 64K --stripe-count 4");
    for line in ["create a", "migration prepare s"] {
        for zeros in ["--stripe-unit 0", "--stripe-count 0", "--stripe-unit 0 --stripe-count 0"] {
            let size = if line.starts_with("create") { "--size 8M" } else { "a" };
            for name in [Name::Ferry, Name::Rbd] {
                let run = home.run(name, &format!("{line} {size} {zeros}"));
                assert_eq!((run.code, run.err.as_str()), (0, ""), "{line} {zeros}");
                let info = home.ok("info a");
                assert!(!info.contains("strip"), "{line} {zeros}: {info}");
                home.ok(if line.starts_with("create") { "rm a --no-progress" } else { "migration abort a" });
            }
        }
        for half in ["--stripe-unit 0 --stripe-count 4", "--stripe-unit 64K --stripe-count 0"] {
            let size = if line.starts_with("create") { "--size 8M" } else { "a" };
            let (code, err) = home.fails(&format!("{line} {size} {half}"));
            let text = "must specify both (or neither) of stripe-unit and stripe-count";
            assert!(code == 22 && err.contains(text), "{line} {half}: {err}");
        }
    }
    home.ok("cp s a --stripe-unit 0 --no-progress");
    assert!(!home.ok("info a").contains("stripe unit"));
    assert_eq!(home.ok("ls"), "a\ns\n");
}
