//! Clones.

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
    let disk = std::fs::read(home.path("disk")).unwrap();
    assert_eq!(std::fs::read(home.path("before")).unwrap(), disk);
    assert_eq!(std::fs::read(home.path("after")).unwrap(), disk);
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
    assert_eq!(std::fs::read(home.path("out")).unwrap(), std::fs::read(home.path("disk")).unwrap());
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
    assert_eq!(std::fs::read(home.path("out")).unwrap(), std::fs::read(home.path("disk")).unwrap());
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
    assert_eq!(std::fs::read(home.path("out")).unwrap(), std::fs::read(home.path("disk")).unwrap());
}
