//! Images to and from files.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::harness::{Home, Name, bytes_on_disk, noise, promised};

/// A file with data at its start, in its middle and just before a hole at its end.
fn disk(home: &Home) -> std::path::PathBuf {
    let data = noise(7, 100_000);
    home.sparse_file("disk", 64 << 20, &[(0, &data), (33 << 20, &data), (50 << 20, &data)])
}

#[test]
fn what_goes_in_comes_out_and_holes_stay_holes() {
    promised(
        "Holes of an imported file take no space, and an exported file has holes where the image has none of its own data.",
    );
    let home = Home::new();
    let disk = disk(&home);
    home.ok("import disk a");
    home.ok("export a out");
    assert_eq!(fs::read(home.path("out")).unwrap(), fs::read(&disk).unwrap());
    assert!(bytes_on_disk(&home.path("out")) < 2 << 20, "{}", bytes_on_disk(&home.path("out")));
    let check: serde_json::Value = serde_json::from_str(&home.ok("check --format json")).unwrap();
    let blocks = check["data_blocks"].as_u64().unwrap();
    assert!(blocks < 100, "three times 100,000 bytes take {blocks} blocks of 4 KiB");
}

#[test]
fn qemu_sees_the_same_image() {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        println!("SKIPPED qemu_sees_the_same_image: qemu-img is not installed");
        return;
    }
    let home = Home::new();
    disk(&home);
    home.ok("import disk a");
    home.ok("snap create a@s");
    home.ok("clone a@s c");
    home.ok("export c out");
    let compared = Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "raw"])
        .args([home.path("disk"), home.path("out")])
        .output()
        .unwrap();
    assert!(compared.status.success(), "{compared:?}");
    assert_eq!(String::from_utf8(compared.stdout).unwrap(), "Images are identical.\n");
}

#[test]
fn an_image_goes_through_pipes() {
    let home = Home::new();
    let bytes = noise(3, 5_000_000);
    let mut import = home
        .command(Name::Ferry)
        .args(["import", "-", "a", "--no-progress"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    import.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(import.wait().unwrap().success());
    assert!(home.ok("info a").contains("size 4.8 MiB in 2 objects"));
    let output = home.command(Name::Ferry).args(["export", "a", "-"]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, bytes);
}

#[test]
fn a_stream_carries_layout_keys_and_snapshots() {
    let home = Home::new();
    disk(&home);
    home.ok("import disk a --object-size 1M --stripe-unit 64K --stripe-count 2");
    home.ok("image-meta set a owner somebody");
    home.ok("snap create a@s1");
    home.ok("snap protect a@s1");
    home.ok("bench a --io-type write --io-total 3M --io-size 1M --io-pattern full-seq --io-threads 1");
    home.ok("snap create a@s2");
    home.ok("resize a --size 80M");
    home.ok("export a a.stream --export-format 2");
    home.ok("import a.stream b --export-format 2");
    let info = home.ok("info b");
    for line in ["size 80 MiB", "order 20 (1 MiB objects)", "stripe unit: 64 KiB\n\tstripe count: 2\n"] {
        assert!(info.contains(line), "{info}");
    }
    assert_eq!(home.ok("image-meta get b owner"), "somebody\n");
    let json: serde_json::Value = serde_json::from_str(&home.ok("snap ls b --format json")).unwrap();
    assert_eq!((&json[0]["name"], &json[0]["protected"]), (&"s1".into(), &"true".into()));
    assert_eq!((&json[1]["name"], &json[1]["protected"]), (&"s2".into(), &"false".into()));
    for at in ["", "@s1", "@s2"] {
        home.ok(&format!("export a{at} one{at}"));
        home.ok(&format!("export b{at} two{at}"));
        assert_eq!(
            fs::read(home.path(&format!("one{at}"))).unwrap(),
            fs::read(home.path(&format!("two{at}"))).unwrap(),
            "{at}"
        );
    }
    home.check();
}

#[test]
fn changes_travel_alone_and_merged() {
    let home = Home::new();
    disk(&home);
    home.ok("import disk a");
    home.ok("snap create a@s1");
    home.ok("bench a --io-type write --io-total 2M --io-size 1M --io-pattern full-seq --io-threads 1");
    home.ok("snap create a@s2");
    home.ok("resize a --size 70M");
    home.ok("snap create a@s3");
    home.ok("export-diff a@s1 d1");
    home.ok("export-diff a@s2 d2 --from-snap s1");
    home.ok("export-diff a@s3 d3 --from-snap s2");
    home.ok("merge-diff d2 d3 d23");
    assert!(fs::read(home.path("d1")).unwrap().starts_with(b"rbd diff v1\n"));
    home.ok("create b --size 1M");
    home.ok("import-diff d1 b");
    home.ok("import-diff d23 b");
    assert_eq!(
        home.rbd_fails("import-diff d1 b"),
        (
            17,
            "end snapshot 's1' already exists, aborting\nrbd: import-diff failed: (17) File exists\n"
                .to_owned()
        )
    );
    home.ok("create c --size 1M");
    assert_eq!(
        home.rbd_fails("import-diff d2 c"),
        (
            22,
            "start snapshot 's1' does not exist in the image, aborting\nrbd: import-diff failed: (22) Invalid argument\n"
                .to_owned()
        )
    );
    home.ok("export a one");
    home.ok("export b two");
    assert_eq!(fs::read(home.path("one")).unwrap(), fs::read(home.path("two")).unwrap());
    let diff = home.ok("diff a@s2 --from-snap s1");
    assert!(diff.starts_with("Offset  Length   Type\n0       2097152  data\n"), "{diff}");
    assert_eq!(home.ok("diff a@s1 --from-snap s1 --format json").trim_end(), "[]");
}

#[test]
fn an_existing_file_is_never_written_over_and_half_an_export_is_removed() {
    promised(
        "`export`, `export-diff` and `merge-diff` never write over a file, and remove their own where they fail.",
    );
    let home = Home::new();
    home.ok("create a --size 1M");
    fs::write(home.path("mine"), "precious").unwrap();
    assert_eq!(home.rbd_fails("export a mine"), (17, "rbd: export error: (17) File exists\n".to_owned()));
    assert_eq!(fs::read(home.path("mine")).unwrap(), b"precious");
    assert_eq!(
        home.rbd_fails("export nope new"),
        (2, "rbd: error opening image nope: (2) No such file or directory\n".to_owned())
    );
    assert!(!home.path("new").exists());
}

#[test]
fn half_an_image_is_removed() {
    promised("An image that `import`, `cp` or `deep cp` cannot complete is removed again.");
    let home = Home::new();
    disk(&home);
    home.ok("import disk a");
    home.ok("export a a.stream --export-format 2");
    let whole = fs::read(home.path("a.stream")).unwrap();
    fs::write(home.path("cut"), &whole[..whole.len() / 2]).unwrap();
    let (code, err) = home.rbd_fails("import cut b --export-format 2");
    assert_eq!((code, err.as_str()), (74, "rbd: import failed: (74) Bad message\n"));
    assert_eq!(home.ok("ls"), "a\n");
    let (_, err) = home.fails("import cut b --export-format 2");
    assert!(err.contains("the source is untouched and the unfinished target was removed"), "{err}");
    home.check();
}

#[test]
fn what_cannot_be_imported_is_said_in_the_words_of_rbd() {
    let home = Home::new();
    home.ok("create a --size 1M");
    fs::write(home.path("file"), "x").unwrap();
    let (code, err) = home.rbd_fails("import . b");
    assert_eq!(code, 21);
    assert!(err.starts_with("rbd: cannot import a directory\n"), "{err}");
    assert_eq!(home.rbd_fails("import nofile b").0, 2);
    let (code, err) = home.rbd_fails("import file a");
    assert_eq!(code, 17);
    assert!(err.ends_with("rbd: import failed: (17) File exists\n"), "{err}");
    assert_eq!(home.rbd_fails("import file nopool/b").0, 2);
    home.ok("import file");
    assert_eq!(home.ok("ls"), "a\nfile\n");
}

#[test]
fn a_full_disk_ends_an_export() {
    let home = Home::new();
    disk(&home);
    home.ok("import disk a");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ended = home.command(Name::Ferry).args(["export", "a", "-"]).stdout(full).output().unwrap();
    let err = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(28), "{err}");
    assert!(err.contains("cannot export rbd/a: cannot write the exported image"), "{err}");
}
