//! Snapshots.

use crate::harness::Home;

/// An image of 8 MiB, written before and after its snapshot `s`.
fn with_snapshot() -> Home {
    let home = Home::new();
    home.sparse_file("old", 8 << 20, &[(0, b"old"), (5 << 20, b"old")]);
    home.sparse_file("new", 8 << 20, &[(0, b"new")]);
    home.ok("import old a");
    home.ok("snap create a@s");
    home
}

#[test]
fn a_snapshot_is_listed_renamed_and_removed() {
    let home = with_snapshot();
    let list = home.ok("snap ls a");
    let mut lines = list.lines();
    assert_eq!(lines.next().unwrap(), "SNAPID  NAME  SIZE   PROTECTED  TIMESTAMP               ");
    let row = lines.next().unwrap();
    assert!(row.starts_with("     ") && row.contains("  s     8 MiB             "), "{row}");
    home.ok("snap rename a@s a@t");
    let json: serde_json::Value = serde_json::from_str(&home.ok("snap ls a --format json")).unwrap();
    assert_eq!(json[0]["name"], "t");
    assert_eq!(json[0]["protected"], "false");
    assert_eq!(json[0]["size"], 8 << 20);
    assert_eq!(
        home.rbd_fails("snap create a@t"),
        (17, "rbd: failed to create snapshot: (17) File exists\n".to_owned())
    );
    home.ok("snap rm a@t");
    assert_eq!(home.ok("snap ls a"), "");
    assert_eq!(
        home.rbd_fails("snap rm a@t"),
        (2, "rbd: failed to remove snapshot: (2) No such file or directory\n".to_owned())
    );
}

#[test]
fn a_rollback_brings_the_bytes_of_the_snapshot_back() {
    let home = with_snapshot();
    home.ok("bench a --io-type write --io-total 8M --io-size 1M --io-pattern full-seq --io-threads 1");
    home.ok("export a@s out.snap");
    home.ok("export a out.head");
    assert_ne!(std::fs::read(home.path("out.head")).unwrap(), std::fs::read(home.path("old")).unwrap());
    home.ok("snap rollback a@s");
    home.ok("export a out.back");
    for file in ["out.snap", "out.back"] {
        assert_eq!(
            std::fs::read(home.path(file)).unwrap(),
            std::fs::read(home.path("old")).unwrap(),
            "{file}"
        );
    }
    home.check();
}

#[test]
fn a_protected_snapshot_stays() {
    let home = with_snapshot();
    home.ok("snap protect a@s");
    assert_eq!(home.rbd_fails("snap protect a@s"), (16, "rbd: snap is already protected\n".to_owned()));
    assert_eq!(
        home.rbd_fails("snap rm a@s"),
        (16, "rbd: snapshot 's' is protected from removal.\n".to_owned())
    );
    let purge = home.run(crate::harness::Name::Rbd, "snap purge a");
    assert_eq!(
        (purge.code, purge.out.as_str()),
        (
            0,
            "rbd: error removing snapshot(s) 's', which is protected - these must be unprotected with `rbd snap unprotect`.\n"
        )
    );
    home.ok("snap unprotect a@s");
    assert_eq!(home.rbd_fails("snap unprotect a@s"), (22, "rbd: snap is already unprotected\n".to_owned()));
    home.ok("snap purge a");
    assert_eq!(home.ok("snap ls a"), "");
}

#[test]
fn an_image_with_snapshots_is_not_removed() {
    let home = with_snapshot();
    assert_eq!(
        home.rbd_fails("rm a"),
        (
            39,
            "rbd: image has snapshots - these must be deleted with 'rbd snap purge' before the image can be removed.\n"
                .to_owned()
        )
    );
    assert_eq!(home.ok("ls"), "a\n");
}

#[test]
fn a_limit_holds_until_it_is_lifted() {
    let home = with_snapshot();
    home.ok("snap limit set a --limit 1");
    assert!(home.ok("info a").contains("snapshot_limit: 1\n"));
    assert_eq!(
        home.rbd_fails("snap create a@t"),
        (122, "rbd: failed to create snapshot: (122) Disk quota exceeded\n".to_owned())
    );
    home.ok("snap limit clear a");
    home.ok("snap create a@t");
}

#[test]
fn a_snapshot_that_is_not_there_is_named() {
    let home = with_snapshot();
    assert_eq!(
        home.rbd_fails("info a@nope"),
        (2, "error setting snapshot context: (2) No such file or directory\n".to_owned())
    );
}
