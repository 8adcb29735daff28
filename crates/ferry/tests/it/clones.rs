//! Clones.

use std::fs;

use crate::harness::{Home, promised};

fn with_parent() -> Home {
    let home = Home::new();
    home.sparse_file("disk", 12 << 20, &[(0, b"first"), (9 << 20, b"last")]);
    home.ok("import disk a");
    home.ok("snap create a@s");
    home
}

#[test]
fn a_clone_reads_its_parent_until_it_is_flattened() {
    let home = with_parent();
    home.ok("clone a@s c");
    let info = home.ok("info c");
    assert!(info.contains("\tparent: rbd/a@s\n\toverlap: 12 MiB\n"), "{info}");
    assert_eq!(home.ok("children a@s"), "rbd/c\n");
    assert_eq!(
        home.ok("children a --format json").trim_end(),
        r#"[{"pool":"rbd","pool_namespace":"","image":"c"}]"#
    );
    assert!(home.ok("ls -l").contains("c     12 MiB  rbd/a@s    2"));
    home.ok("export c before");
    home.ok("flatten c");
    home.ok("export c after");
    let disk = fs::read(home.path("disk")).unwrap();
    assert_eq!(fs::read(home.path("before")).unwrap(), disk);
    assert_eq!(fs::read(home.path("after")).unwrap(), disk);
    assert_eq!(home.ok("children a@s"), "");
    assert_eq!(
        home.rbd_fails("flatten c"),
        (22, "librbd: image has no parent\nrbd: flatten error: (22) Invalid argument\n".to_owned())
    );
    home.ok("snap rm a@s");
    home.ok("rm a");
    home.check();
}

#[test]
fn an_older_clone_needs_protection_and_keeps_it() {
    let home = with_parent();
    let (code, err) = home.rbd_fails("clone a@s c --rbd-default-clone-format 1");
    assert_eq!(code, 22);
    assert!(err.ends_with("rbd: clone error: (22) Invalid argument\n"), "{err}");
    home.ok("snap protect a@s");
    home.ok("clone a@s c --rbd-default-clone-format 1");
    let (code, err) = home.rbd_fails("snap unprotect a@s");
    assert_eq!(code, 16);
    assert!(err.contains("cannot unprotect: at least 1 child(ren) ["), "{err}");
    assert!(err.ends_with("rbd: unprotecting snap failed: (16) Device or resource busy\n"), "{err}");
    home.ok("rm c");
    home.ok("snap unprotect a@s");
}

#[test]
fn a_removed_snapshot_with_a_clone_waits_in_the_trash() {
    let home = with_parent();
    home.ok("clone a@s c");
    home.ok("snap rm a@s");
    assert_eq!(home.ok("snap ls a"), "");
    let all = home.ok("snap ls a --all");
    assert!(all.contains("trash (s)"), "{all}");
    home.ok("export c out");
    assert_eq!(fs::read(home.path("out")).unwrap(), fs::read(home.path("disk")).unwrap());
    let kept = "rbd: image has snapshots with linked clones - these must be deleted or flattened before the image can be removed.\n";
    assert_eq!(home.rbd_fails("rm a"), (39, kept.to_owned()));
    home.ok("rm c");
    assert_eq!(home.ok("snap ls a --all"), "");
}

#[test]
fn removal_by_force_makes_clones_independent_first() {
    let home = with_parent();
    home.ok("snap protect a@s");
    home.ok("clone a@s c");
    home.ok("snap rm a@s --force");
    assert_eq!(home.ok("snap ls a --all"), "");
    assert!(!home.ok("info c").contains("parent:"));
    home.ok("export c out");
    assert_eq!(fs::read(home.path("out")).unwrap(), fs::read(home.path("disk")).unwrap());
}

#[test]
fn clones_of_clones_are_descendants() {
    let home = with_parent();
    home.ok("clone a@s b");
    home.ok("snap create b@s");
    home.ok("clone b@s c");
    home.ok("trash mv c");
    assert_eq!(home.ok("children a@s"), "rbd/b\n");
    assert_eq!(home.ok("children a --descendants"), "rbd/b\n");
    let all = home.ok("children a --descendants --all");
    assert!(all.starts_with("rbd/b\nrbd/c (trash "), "{all}");
}

#[test]
fn a_clone_stays_in_the_store_of_its_parent() {
    promised(
        "A clone lies in the store of its parent; across stores it is refused, and the error names the command that copies instead.",
    );
    let home = with_parent();
    home.ok("pool create near");
    home.ok("pool create far --path elsewhere");
    home.ok("clone a@s near/c");
    assert!(home.ok("info near/c").contains("parent: rbd/a@s"));
    assert_eq!(
        home.rbd_fails("clone a@s far/c"),
        (18, "rbd: clone error: (18) Invalid cross-device link\n".to_owned())
    );
    let (_, err) = home.fails("clone a@s far/c");
    assert!(err.contains("`ferry deep cp rbd/a@s far/c` makes a full copy there"), "{err}");
    home.ok("deep cp rbd/a@s far/c");
    home.ok("export far/c out");
    assert_eq!(fs::read(home.path("out")).unwrap(), fs::read(home.path("disk")).unwrap());
}

#[test]
fn a_deep_copy_of_a_clone_is_a_clone_of_the_same_parent_unless_it_is_flattened() {
    promised("`deep cp` of a clone makes a clone of the same snapshot, in whichever pool of the store");
    promised("with `--flatten`, and in another store, it makes an image that owns all it shows.");
    let home = with_parent();
    home.ok("pool create other");
    home.ok("clone a@s c");
    home.ok("snap create c@one");
    home.ok("resize c --size 8M --allow-shrink");
    home.ok("resize c --size 16M");
    home.ok("snap create c@two");
    home.ok("snap protect c@two");
    home.ok("deep cp c other/copy --object-size 1M");
    home.ok("deep cp c@one early");
    home.ok("deep cp c full --flatten");
    let overlap = |spec: &str| {
        let info = home.ok(&format!("info {spec}"));
        let line = |key: &str| info.lines().find_map(|l| l.trim().strip_prefix(key).map(str::to_owned));
        (line("parent: "), line("overlap: "))
    };
    let linked = |overlap: &str| (Some("rbd/a@s".to_owned()), Some(overlap.to_owned()));
    for (spec, wanted) in [
        ("other/copy@one", linked("12 MiB")),
        ("other/copy@two", linked("8 MiB")),
        ("other/copy", linked("8 MiB")),
        ("early@one", linked("12 MiB")),
        ("early", linked("12 MiB")),
        ("full@one", (None, None)),
        ("full", (None, None)),
    ] {
        assert_eq!(overlap(spec), wanted, "{spec}");
    }
    assert!(home.ok("info other/copy@two").contains("protected: True"));
    assert_eq!(home.ok("children a@s"), "other/copy\nrbd/c\nrbd/early\n");
    assert!(home.ok("info other/copy").contains("order 20 (1 MiB objects)"));
    // What it does not hold itself takes no space.
    assert!(home.ok("du -p other copy --exact").contains("\n<TOTAL>        16 MiB   0 B\n"));
    for copy in ["other/copy", "full"] {
        for at in ["@one", "@two", ""] {
            home.ok(&format!("export c{at} wanted"));
            home.ok(&format!("export {copy}{at} found"));
            assert_eq!(fs::read(home.path("wanted")).unwrap(), fs::read(home.path("found")).unwrap());
            fs::remove_file(home.path("wanted")).unwrap();
            fs::remove_file(home.path("found")).unwrap();
        }
    }
    // Its snapshot shows what HEAD has lost, and keeps its link.
    home.ok("flatten other/copy");
    assert_eq!(overlap("other/copy"), (None, None));
    assert_eq!(overlap("other/copy@one"), linked("12 MiB"));
    home.ok("flatten early");
    assert_eq!(home.ok("children a@s"), "other/copy\nrbd/c\n");
    home.check();
}

#[test]
fn a_deep_copy_that_cannot_share_the_parent_says_what_can_be_done() {
    let home = with_parent();
    home.ok("clone a@s c");
    home.ok("snap rm a@s");
    let (code, err) = home.fails("deep cp c copy");
    assert_eq!(code, 22, "{err}");
    assert!(err.contains("only a user's snapshot can be cloned"), "{err}");
    assert!(err.contains("with --flatten the copy owns all its data"), "{err}");
    assert_eq!(home.ok("ls"), "a\nc\n");
    home.ok("deep cp c copy --flatten");
    home.ok("export c one");
    home.ok("export copy two");
    assert_eq!(fs::read(home.path("one")).unwrap(), fs::read(home.path("two")).unwrap());
}
