//! Migrations. A test named `eNN_…` proves that row of the list of what `rbd` lacks (`docs/migration.md`).

use std::fs;

use crate::harness::{Home, Name, noise, promised};

/// A home with pools `rbd` and `fast` in one store, `far` in another, and an image with history.
fn with_image() -> Home {
    let home = Home::new();
    home.ok("pool create fast");
    home.ok("pool create far --path elsewhere");
    home.sparse_file("disk", 24 << 20, &[(0, b"first"), (9 << 20, &noise(3, 300_000)), (20 << 20, b"last")]);
    home.ok("import disk a");
    home.ok("snap create a@s1");
    home.ok("snap protect a@s1");
    home.ok("image-meta set a owner someone");
    home.sparse_file("more", 24 << 20, &[(1 << 20, b"second"), (9 << 20, b"changed")]);
    home.ok("snap create a@s2");
    home
}

/// Exports an image to a file and gives its bytes.
fn bytes(home: &Home, image: &str) -> Vec<u8> {
    let path = home.path("out");
    if path.exists() {
        fs::remove_file(&path).unwrap();
    }
    home.ok(&format!("export {image} out"));
    fs::read(path).unwrap()
}

fn disk(home: &Home) -> Vec<u8> {
    fs::read(home.path("disk")).unwrap()
}

/// What all of a migrated image should be.
fn assert_whole(home: &Home, image: &str) {
    assert!(bytes(home, image) == disk(home), "{image}");
    assert!(bytes(home, &format!("{image}@s1")) == disk(home), "{image}@s1");
    assert!(home.ok(&format!("image-meta get {image} owner")).contains("someone"));
    assert!(
        home.ok(&format!("snap ls {image}")).contains("s1    24 MiB  yes"),
        "{}",
        home.ok(&format!("snap ls {image}"))
    );
}

#[test]
fn an_image_moves_to_another_pool_as_rbd_moves_it() {
    let home = with_image();
    let run = home.run(Name::Rbd, "migration prepare rbd/a fast/b");
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (0, "", ""));
    assert_eq!(home.ok("ls rbd"), "");
    assert_eq!(home.ok("trash ls rbd"), "");
    assert!(home.ok("trash ls --all -l rbd").contains("MIGRATION"));
    let status = home.ok("status fast/b");
    assert!(status.contains("Migration:\n\tsource: rbd/a ("), "{status}");
    assert!(status.contains("\tdestination: fast/b ("), "{status}");
    assert!(status.ends_with("\tstate: prepared\n"), "{status}");
    assert!(home.ok("info fast/b").contains("migrating"));
    assert_whole(&home, "fast/b");
    let (code, err) = home.rbd_fails("migration commit fast/b");
    assert_eq!(
        (code, err.as_str()),
        (
            22,
            "librbd: current migration state is 'prepared' (should be 'executed')\nrbd: committing migration failed: (22) Invalid argument\n"
        )
    );
    assert_eq!(home.rbd_fails("info rbd/a").0, 2);
    let run = home.run(Name::Rbd, "migration execute rbd/a");
    assert_eq!(run.code, 0, "{run:?}");
    assert!(home.ok("status fast/b").ends_with("\tstate: executed\n"));
    let (code, err) = home.rbd_fails("migration execute fast/b");
    assert_eq!(
        (code, err.as_str()),
        (
            22,
            "librbd: current migration state is 'executed' (should be 'prepared')\nrbd: migration failed: (22) Invalid argument\n"
        )
    );
    assert_whole(&home, "fast/b");
    assert_eq!(home.run(Name::Rbd, "migration commit fast/b").code, 0);
    assert_eq!(home.ok("trash ls --all rbd"), "");
    assert!(!home.ok("info fast/b").contains("migrating"));
    assert_whole(&home, "fast/b");
    let (code, err) = home.rbd_fails("migration commit fast/b");
    assert_eq!(code, 22, "{err}");
    assert_eq!(home.rbd_fails("migration execute fast/none").0, 2);
    home.check();
}

#[test]
fn progress_is_told_as_rbd_tells_it() {
    let home = with_image();
    home.ok("migration prepare a fast/b");
    let output = home.command(Name::Rbd).args(["migration", "execute", "fast/b"]).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(err.ends_with("\rImage migration: 100% complete...done.\n"), "{err:?}");
    let output = home.command(Name::Rbd).args(["migration", "commit", "fast/b"]).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(err.ends_with("\rCommit image migration: 100% complete...done.\n"), "{err:?}");
}

#[test]
fn status_in_json_has_the_keys_of_rbd() {
    let home = with_image();
    home.ok("migration prepare a fast/b");
    let json = home.ok("status fast/b --format json");
    let keys = [
        "source_pool_name",
        "source_pool_namespace",
        "source_image_name",
        "source_image_id",
        "dest_pool_name",
        "dest_pool_namespace",
        "dest_image_name",
        "dest_image_id",
        "state",
        "state_description",
    ];
    let mut at = 0;
    for key in keys {
        let found = json[at..].find(&format!("\"{key}\":")).unwrap_or_else(|| panic!("{key} in {json}"));
        at += found;
    }
}

#[test]
fn an_image_gets_another_layout_under_its_name() {
    let home = with_image();
    home.ok("migration prepare a --object-size 1M");
    assert!(home.ok("info a").contains("order 20 (1 MiB objects)"));
    home.ok("migration execute a");
    home.ok("migration commit a");
    assert_whole(&home, "a");
    home.ok("migration prepare a a --object-size 8M --stripe-unit 64K --stripe-count 3");
    home.ok("migration execute a");
    home.ok("migration abort a");
    assert!(home.ok("info a").contains("order 20 (1 MiB objects)"));
    assert_whole(&home, "a");
    home.check();
}

#[test]
fn an_image_moves_to_another_store_and_back() {
    let home = with_image();
    home.ok("migration prepare a far/b");
    assert_whole(&home, "far/b");
    assert!(home.ok("status far/b").contains("\tsource: rbd/a ("));
    home.ok("migration execute far/b");
    let table = home.ok("migration verify far/b");
    assert_eq!(table.matches("equal").count(), 3, "{table}");
    home.ok("migration commit far/b");
    assert_whole(&home, "far/b");
    home.ok("migration prepare far/b rbd/a --object-size 64K");
    home.ok("migration execute a");
    home.ok("migration commit a");
    assert_whole(&home, "a");
    home.check();
}

#[test]
fn e05_an_abort_that_cannot_give_the_name_back_destroys_nothing() {
    let home = with_image();
    home.ok("migration prepare a fast/b");
    home.ok("create a --size 1M");
    let (code, err) = home.fails("migration abort fast/b");
    assert_eq!(code, 17, "{err}");
    assert!(err.contains("nothing was changed: both ends are there"), "{err}");
    assert_whole(&home, "fast/b");
    home.ok("rm a");
    home.ok("migration abort fast/b");
    assert_whole(&home, "a");
}

#[test]
fn e06_an_abort_keeps_what_was_written_and_refuses_what_it_would_lose() {
    let home = with_image();
    home.ok("migration prepare a fast/b");
    home.ok("snap create fast/b@since");
    home.ok("resize fast/b --size 30M");
    let (code, err) = home.fails("migration abort fast/b");
    assert_eq!(code, 16, "{err}");
    assert!(err.contains("would be lost: snapshot since was taken since"), "{err}");
    assert!(err.contains("would be lost: its size was changed"), "{err}");
    home.ok("resize fast/b --size 24M --allow-shrink");
    home.ok("snap rm fast/b@since");
    // Data where there was none and over data, zeros over part of an object that has data, and over all of another.
    let mut now = disk(&home);
    let (new, mut diff) = (noise(12, 200_000), b"rbd diff v1\n".to_vec());
    for (at, data) in [(1 << 20, &new), (9_100_000, &new)] {
        diff.push(b'w');
        diff.extend([at as u64, data.len() as u64].map(u64::to_le_bytes).concat());
        diff.extend(data);
        now[at..at + data.len()].copy_from_slice(data);
    }
    for zeros in [9_500_000..9_600_000, 20 << 20..24 << 20] {
        diff.push(b'z');
        diff.extend([zeros.start as u64, zeros.len() as u64].map(u64::to_le_bytes).concat());
        now[zeros].fill(0);
    }
    diff.push(b'e');
    fs::write(home.path("diff"), diff).unwrap();
    home.ok("import-diff diff fast/b");
    assert!(bytes(&home, "fast/b") == now);
    home.ok("migration abort fast/b");
    assert!(bytes(&home, "a") == now);
    assert!(bytes(&home, "a@s1") == disk(&home));
}

#[test]
fn e07_what_was_cut_off_and_grown_again_is_zeros() {
    let home = with_image();
    home.ok("migration prepare a fast/b");
    home.ok("resize fast/b --size 6M --allow-shrink");
    home.ok("resize fast/b --size 24M");
    let mut wanted = disk(&home);
    wanted[6 << 20..].fill(0);
    assert!(bytes(&home, "fast/b") == wanted);
    home.ok("migration execute fast/b");
    assert!(bytes(&home, "fast/b") == wanted);
    home.ok("migration commit fast/b");
    assert!(bytes(&home, "fast/b") == wanted);
    assert!(bytes(&home, "fast/b@s1") == disk(&home));
}

#[test]
fn e08_a_snapshot_can_be_removed_before_it_was_copied() {
    let home = with_image();
    home.ok("migration prepare a fast/b");
    home.ok("snap rm fast/b@s2");
    home.ok("migration execute fast/b");
    home.ok("migration commit fast/b");
    assert_whole(&home, "fast/b");
}

#[test]
fn e09_a_diff_of_a_target_is_that_of_its_source() {
    let home = with_image();
    home.ok("bench a --io-type write --io-size 64K --io-total 256K --io-pattern seq");
    home.ok("snap create a@s3");
    // A target may tell more of what has become zeros.
    let lists = |image: &str| {
        ["", "--whole-object"].map(|kind| {
            let list = home.ok(&format!("diff {image}@s3 --from-snap s1 {kind}"));
            let data = list.lines().filter(|l| l.ends_with("data"));
            data.map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        })
    };
    let before = lists("a");
    assert!(before.iter().all(|list| !list.is_empty()), "{before:?}");
    home.ok("migration prepare a fast/b");
    assert_eq!(lists("fast/b"), before);
    home.ok("export-diff fast/b@s3 --from-snap s1 diff");
    home.ok("import disk c");
    home.ok("snap create c@s1");
    home.ok("import-diff diff c");
    assert!(bytes(&home, "c") == bytes(&home, "fast/b@s3"));
}

#[test]
fn e16_an_empty_image_of_16_tib_takes_seconds() {
    let home = with_image();
    home.ok("create big --size 16T");
    home.ok("migration prepare big fast/big");
    let began = std::time::Instant::now();
    home.ok("migration execute fast/big");
    home.ok("migration commit fast/big");
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}

#[test]
fn e21_a_lock_taken_by_hand_is_named() {
    let home = with_image();
    home.ok("lock add a mine");
    let (code, err) = home.fails("migration prepare a fast/b");
    assert_eq!(code, 16, "{err}");
    assert!(err.contains("locked by hand") && err.contains("mine"), "{err}");
    assert_whole(&home, "a");
}

#[test]
fn e23_the_target_is_in_the_pool_of_the_source_and_stripes_fit() {
    let home = with_image();
    home.ok("migration prepare a fast/b");
    home.ok("migration execute fast/b");
    home.ok("migration commit fast/b");
    home.ok("migration prepare fast/b --object-size 64K");
    assert_eq!(home.ok("ls fast"), "b\n");
    home.ok("migration abort fast/b");
    let (code, err) = home.rbd_fails("migration prepare fast/b fast/b --object-size 1M");
    assert_eq!(code, 22, "{err}");
    assert!(err.contains("stripe unit is not a factor of the object size"), "{err}");
    assert_whole(&home, "fast/b");
}

#[test]
fn e24_snapshots_keep_their_times() {
    let home = with_image();
    let times = |image: &str| -> Vec<String> {
        let list = home.ok(&format!("snap ls {image} --format json"));
        list.split("\"timestamp\":").skip(1).map(|t| t[..26].to_owned()).collect()
    };
    let before = times("a");
    assert_eq!(before.len(), 2);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    home.ok("migration prepare a far/b");
    assert_eq!(times("far/b"), before);
}

#[test]
fn e20_clones_move_with_their_parent_and_flattened_ones_are_forgotten() {
    let home = with_image();
    home.ok("clone a@s1 c");
    home.ok("migration prepare a fast/b");
    assert_eq!(home.ok("children fast/b@s1"), "rbd/c\n");
    assert!(bytes(&home, "c") == disk(&home));
    home.ok("migration execute fast/b");
    let (code, err) = home.rbd_fails("migration commit fast/b");
    assert_eq!(
        (code, err.as_str()),
        (
            16,
            "rbd: the image has a descendant: \n  rbd/c\nWarning: in-use, read-only descendant images will not detect the parent update.\nEnsure no descendant images are opened read-only and run again with force flag.\n"
        )
    );
    home.ok("migration commit --force fast/b");
    assert!(bytes(&home, "c") == disk(&home));
    // The clone itself moves, and leaves its parent.
    home.ok("migration prepare c far/c --flatten");
    home.ok("migration execute far/c");
    home.ok("migration commit far/c");
    assert_eq!(home.ok("children fast/b@s1"), "");
    assert!(bytes(&home, "far/c") == disk(&home));
    home.ok("snap unprotect fast/b@s1");
    home.check();
}

#[test]
fn e28_a_commit_leaves_a_receipt() {
    let home = with_image();
    home.ok("migration prepare a far/b");
    home.ok("migration execute far/b");
    // Where it cannot be kept nothing is committed.
    fs::write(home.path("home/receipts"), "").unwrap();
    let err = home.fails("migration commit far/b").1;
    assert!(err.contains("cannot keep the receipt of a migration"), "{err}");
    assert!(home.ok("status far/b").contains("executed"));
    fs::remove_file(home.path("home/receipts")).unwrap();
    let run = home.run(Name::Ferry, "migration commit far/b");
    let path = run.err.lines().find_map(|l| l.strip_prefix("receipt: ")).unwrap_or_else(|| panic!("{run:?}"));
    let text = fs::read_to_string(path).unwrap();
    assert_eq!(text.matches("\"equal\": true").count(), 3, "{text}");
    // What was copied from another store was not read there again to be compared.
    assert!(text.contains("\"compared_by_reading_both_ends\": 0,"), "{text}");
    let compared = text.lines().filter(|l| l.contains("\"compared_with_kept_digests\": "));
    assert!(compared.clone().count() == 3 && compared.clone().any(|l| !l.ends_with(": 0,")), "{text}");
}

#[test]
fn what_is_migrating_is_not_removed() {
    let home = with_image();
    home.ok("migration prepare a fast/b");
    assert_eq!(home.fails("rm fast/b").0, 16);
    assert_eq!(home.fails("trash mv fast/b").0, 16);
    let list = home.ok("trash ls --all rbd");
    let id = list.split_whitespace().next().unwrap();
    assert_eq!(home.fails(&format!("trash rm rbd/{id} --force")).0, 30);
    assert_eq!(home.fails(&format!("trash restore rbd/{id}")).0, 22);
    assert_eq!(home.fails("migration prepare fast/b rbd/c").0, 16);
    home.ok("migration abort a");
    assert_whole(&home, "a");
    home.check();
}

#[test]
fn e28_a_wrong_byte_in_the_copy_is_found_by_verify_and_commit() {
    // Without a node: the fault is that of the process which copies.
    let home = Home::empty();
    home.ok("pool create rbd");
    home.ok("pool create far --path elsewhere");
    fs::write(home.path("disk"), noise(4, 3_000_000)).unwrap();
    home.ok("import disk a");
    home.ok("migration prepare a far/a");
    let mut execute = home.command(Name::Ferry);
    let execute = execute.args(["migration", "execute", "far/a"]).env("FERRY_FAULT", "flip-copied-byte");
    assert!(execute.output().unwrap().status.success());
    for step in ["migration verify far/a", "migration commit far/a"] {
        let (code, err) = home.fails(step);
        assert_eq!(code, 117, "{step}: {err}");
    }
    // Nothing is lost: back to the source, and once more without the fault.
    home.ok("migration abort far/a");
    home.ok("export a out");
    assert_eq!(fs::read(home.path("out")).unwrap(), fs::read(home.path("disk")).unwrap());
    home.ok("migration prepare a far/a");
    home.ok("migration execute far/a");
    home.ok("migration commit far/a");
}

#[test]
fn e22_what_keeps_a_migrating_image_from_going_is_said() {
    let home = with_image();
    home.ok("migration prepare a fast/b");
    let (code, err) = home.fails("rm fast/b --no-progress");
    assert_eq!(code, 16, "{err}");
    assert!(
        err.contains("image is migrating") && err.contains("`ferry migration abort fast/b` goes back"),
        "{err}"
    );
    assert!(!err.contains("watchers"), "{err}");
    // As `rbd`, its lines.
    let (code, err) = home.rbd_fails("rm fast/b");
    assert_eq!((code, err.lines().next()), (16, Some("rbd: error: image still has watchers")));
}

#[test]
fn e26_options_that_crash_rbd_are_refused() {
    let home = with_image();
    for options in ["--journal-pool rbd", "--journal-splay-width 4", "--journal-object-size 4M", "--order 99"]
    {
        let (code, err) = home.fails(&format!("migration prepare a fast/b {options}"));
        assert!((1..100).contains(&code), "{options}: {code} {err}");
        assert_eq!(home.ok("ls rbd"), "a\n", "{options}");
    }
    assert_whole(&home, "a");
}

#[test]
fn e29_another_migration_of_the_image_is_refused_until_the_first_is_over() {
    let home = with_image();
    home.ok("migration prepare a fast/b");
    let (code, err) = home.fails("migration prepare fast/b rbd/c");
    assert_eq!(code, 16, "{err}");
    assert!(err.contains("image is migrating") && err.contains("`ferry migration commit fast/b`"), "{err}");
    home.ok("migration execute fast/b");
    home.ok("migration commit fast/b");
    home.ok("migration prepare fast/b rbd/c");
    assert_whole(&home, "rbd/c");
}

#[test]
fn an_image_of_a_namespace_moves_with_its_data_pools() {
    let home = with_image();
    for line in [
        "pool create data",
        "pool create fardata --path elsewhere",
        "namespace create rbd/one",
        "namespace create far/two",
        "deep cp a rbd/one/a --data-pool data --no-progress",
    ] {
        home.ok(line);
    }
    home.ok("image-meta set rbd/one/a owner someone");
    for (from, to, options) in [
        ("rbd/one/a", "far/two/b", "--data-pool fardata --object-size 128K"),
        ("far/two/b", "rbd/one/c", "--data-pool data --object-size 1M --stripe-unit 64K --stripe-count 3"),
        ("rbd/one/c", "fast/d", ""),
        ("fast/d", "rbd/one/a", "--data-pool data"),
    ] {
        home.ok(&format!("migration prepare {from} {to} {options}"));
        assert_whole(&home, to);
        home.ok(&format!("migration execute {to}"));
        if to == "rbd/one/c" {
            home.ok(&format!("migration abort {to}"));
            assert_whole(&home, from);
            home.ok(&format!("migration prepare {from} {to} {options}"));
            home.ok(&format!("migration execute {to}"));
        }
        home.ok(&format!("migration commit {to}"));
        assert_whole(&home, to);
        let pool = options.split(' ').nth(1).filter(|_| options.contains("data-pool"));
        let info = home.ok(&format!("info {to}"));
        assert_eq!(info.contains("data_pool: "), pool.is_some(), "{info}");
        assert!(pool.is_none_or(|pool| info.contains(&format!("data_pool: {pool}"))), "{info}");
    }
    home.check();
    home.ok("check far");
}

#[test]
fn clones_that_show_less_of_their_parent_are_led_as_they_are() {
    promised(
        "A migration leads the clones of an image to its target, and an abort back, as they are. `rbd` has each of them show as much of its \
         parent as any clone",
    );
    let home = with_image();
    for clone in ["cut", "flat"] {
        // With other features a flatten would flatten the snapshots too.
        home.ok(&format!("clone a@s1 {clone} --image-feature layering"));
        home.ok(&format!("snap create {clone}@one"));
    }
    for size in ["2M --allow-shrink", "24M"] {
        home.ok(&format!("resize cut --size {size}"));
    }
    home.ok("flatten flat");
    let overlap = |spec: &str| {
        let info = home.ok(&format!("info {spec}"));
        let line = |key: &str| info.lines().find_map(|l| l.trim().strip_prefix(key).map(str::to_owned));
        line("parent: ").zip(line("overlap: "))
    };
    let shown = || ["cut", "cut@one", "flat", "flat@one"].map(|spec| bytes(&home, spec));
    let before = shown();
    assert!(before[0][2 << 20..].iter().all(|b| *b == 0) && before[1] == before[2]);
    let check = |parent: &str, what: &str| {
        let linked = |overlap: &str| Some((format!("{parent}@s1"), overlap.to_owned()));
        let wanted =
            [("cut", linked("2 MiB")), ("cut@one", linked("24 MiB")), ("flat@one", linked("24 MiB"))];
        for (spec, wanted) in wanted.into_iter().chain([("flat", None)]) {
            assert_eq!(overlap(spec), wanted, "{spec}, {what}");
        }
        assert!(shown() == before, "{what}");
    };
    check("rbd/a", "before");
    home.ok("migration prepare a fast/b");
    check("fast/b", "prepared");
    home.ok("migration abort fast/b");
    check("rbd/a", "aborted");
    home.ok("migration prepare a fast/b");
    home.ok("migration execute fast/b");
    home.ok("migration commit --force fast/b");
    check("fast/b", "committed");
    home.check();
}
