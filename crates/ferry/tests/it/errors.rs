//! What is said when something is wrong: in `rbd`'s words, and in ferry's.

use crate::harness::{Home, Name, promised};

#[test]
fn rbd_is_answered_in_its_own_lines() {
    let home = Home::new();
    home.ok("create a --size 1M");
    for (line, code, text) in [
        (
            "create a --size 1M",
            17,
            "librbd: rbd image a already exists\nrbd: create error: (17) File exists\n",
        ),
        ("create nopool/a --size 1", 2, "rbd: error opening pool 'nopool': (2) No such file or directory\n"),
        (
            "ls nopool",
            2,
            "rbd: error opening pool 'nopool': (2) No such file or directory\nrbd: listing images failed: (2) No such file or directory\n",
        ),
        ("trash ls nopool", 2, "rbd: error opening pool 'nopool': (2) No such file or directory\n"),
        ("create rbd/n/a --size 1", 2, "rbd: namespace 'n' does not exist.\n"),
        ("info nope", 2, "rbd: error opening image nope: (2) No such file or directory\n"),
        ("rm nope", 2, "rbd: delete error: (2) No such file or directory\n"),
        ("create b --x", 1, "rbd: unrecognised option '--x'\n"),
        ("create b --size foo", 1, "rbd: the argument for option '--size' is invalid\n"),
        ("create b c --size 1", 1, "rbd: too many arguments\n"),
        ("create b", 22, "rbd: must specify --size <M/G/T>\n"),
        ("ls --pretty-format", 22, "rbd: --pretty-format only works when --format is json or xml\n"),
        (
            "create b --size 1 --stripe-unit 4K",
            22,
            "librbd: must specify both (or neither) of stripe-unit and stripe-count\nrbd: create error: (22) Invalid argument\n",
        ),
        (
            "bench a --io-type read --io-size 2M",
            22,
            "rbd: io-size 2 MiB larger than image size 1 MiB\nbench failed: (22) Invalid argument\n",
        ),
    ] {
        assert_eq!(home.rbd_fails(line), (code, text.to_owned()), "rbd {line}");
    }
}

#[test]
fn an_unknown_verb_shows_all_there_are() {
    let home = Home::new();
    let run = home.run(Name::Rbd, "snap foo");
    assert_eq!((run.code, run.err.as_str()), (1, "error: unknown option 'snap foo'\n\n"));
    assert!(run.out.starts_with("usage: rbd <command> ...\n"), "{}", run.out);
    assert!(run.out.contains("\n    snap create (snap add)            Create a snapshot.\n"), "{}", run.out);
    assert_eq!(home.run(Name::Rbd, "").out, run.out);
}

#[test]
fn ferry_says_what_is_safe_and_what_to_do() {
    promised("An error names what failed and why, and where there is something to do, the next command.");
    let home = Home::new();
    home.ok("create a --size 1M");
    for (line, text) in [
        (
            "create a --size 1M",
            "ferry: cannot create image rbd/a: an image of this name exists (image a)\n  \
             the image is untouched; `ferry info rbd/a` describes it\n",
        ),
        (
            "ls nopool",
            "ferry: cannot open pool nopool: no pool has this name (pool nopool)\n  \
             `ferry pool create nopool` makes it; `ferry pool ls` lists those there are\n",
        ),
        ("create a --x", "ferry: unrecognised option '--x'\n"),
    ] {
        assert_eq!(home.fails(line).1, text, "ferry {line}");
    }
}

#[test]
fn a_store_that_is_not_there_and_a_diff_that_is_none_say_what_to_do() {
    let home = unserved();
    home.ok("create a --size 1M");
    std::fs::write(home.path("none"), "rbd diff v1\nq").unwrap();
    let (code, text) = home.fails(&format!("import-diff {} a --no-progress", home.path("none").display()));
    assert_eq!(code, 22, "{text}");
    assert!(text.ends_with("nothing was changed: what `export-diff` wrote is expected\n"), "{text}");
    let store = home.path("home/store");
    std::fs::rename(&store, home.path("elsewhere")).unwrap();
    let (code, text) = home.fails("ls rbd");
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("there is no store") && text.contains("put back, or mount"), "{text}");
    assert!(text.contains(home.path("home/ferry.toml").to_str().unwrap()), "{text}");
    std::fs::rename(home.path("elsewhere"), store).unwrap();
    assert_eq!(home.ok("ls rbd"), "a\n");
}

#[test]
fn a_read_only_pool_refuses_every_change() {
    promised("A pool that is read-only refuses every change with 30 (EROFS) and can be read.");
    let home = Home::new();
    home.ok("create a --size 1M");
    home.ok("snap create a@s");
    home.ok("pool create other");
    home.ok("pool set rbd read-only on");
    assert!(home.ok("pool ls").contains("  read-only "));
    for line in [
        "create b --size 1M",
        "rm a",
        "rename a b",
        "resize a --size 2M",
        "snap create a@t",
        "snap rm a@s",
        "snap rollback a@s",
        "trash mv a",
        "image-meta set a k v",
        "bench a --io-type write --io-total 4K",
        "feature disable a fast-diff",
        "lock add a me",
    ] {
        let (code, err) = home.fails(line);
        assert_eq!(code, 30, "ferry {line}: {err}");
    }
    assert_eq!(home.ok("ls"), "a\n");
    home.ok("export a out");
    home.ok("cp a other/copy");
    home.ok("pool set rbd read-only off");
    home.ok("snap rm a@s");
    home.ok("rm a");
}

#[test]
fn help_and_version_are_there_under_both_names() {
    let home = Home::empty();
    assert!(home.ok("help snap create").starts_with("usage: ferry snap create [--pool <pool>] "));
    assert!(home.ok("create --help").starts_with("usage: ferry create "));
    assert!(home.run(Name::Rbd, "create --help").out.starts_with("usage: rbd <command> ..."));
    assert_eq!(home.ok("version"), home.ok("--version"));
    assert!(home.ok("version").starts_with("ferry "));
    assert!(home.run(Name::Rbd, "--version").out.starts_with("ceph version 16.2.15 "));
}

#[test]
fn a_reader_that_leaves_ends_the_command_quietly() {
    let home = Home::new();
    home.ok("create a --size 1M");
    let mut command = home.command(Name::Ferry);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command.args(["info", "a"]).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(32), b"".as_slice()));
}

/// A store with an image of noise whose data fills more than one segment; the names of its segments.
fn with_segments(home: &Home) -> Vec<std::path::PathBuf> {
    std::fs::write(home.path("noise"), crate::harness::noise(3, 80 << 20)).unwrap();
    home.ok("import noise a");
    let mut segments: Vec<_> = std::fs::read_dir(home.dir().join("home/store/segments"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    segments.sort();
    segments
}

/// A home with the pool `rbd` and never a node in front: one goes on with the files it has open.
fn unserved() -> Home {
    let home = Home::empty();
    home.ok("pool create rbd");
    home
}

#[test]
fn a_file_of_the_store_that_is_missing_is_damage_and_never_zeros() {
    let home = unserved();
    let segments = with_segments(&home);
    let noise = std::fs::read(home.path("noise")).unwrap();
    let mut missed = 0;
    for segment in &segments {
        let aside = home.path("aside");
        std::fs::rename(segment, &aside).unwrap();
        let name = segment.file_name().unwrap().to_str().unwrap();
        let run = home.run(Name::Ferry, "export a out");
        if run.code == 0 {
            // One that holds nothing of the image.
            assert!(std::fs::read(home.path("out")).unwrap() == noise, "wrong bytes without {name}");
            std::fs::remove_file(home.path("out")).unwrap();
        } else {
            missed += 1;
            assert_eq!(run.code, 5, "without {name}: {run:?}");
            assert!(run.err.contains("a file of the store is missing (file "), "{run:?}");
            assert!(
                run.err.contains(name) && run.err.contains("`ferry check` lists what is damaged"),
                "{run:?}"
            );
            assert!(!home.path("out").exists());
            assert_eq!(home.fails("check").0, 5);
        }
        std::fs::rename(&aside, segment).unwrap();
    }
    assert!(missed >= 2, "80 MiB lie in more than one segment");
    home.ok("export a out");
    assert!(std::fs::read(home.path("out")).unwrap() == noise);
    home.check();
}

#[test]
fn no_new_store_takes_the_place_of_one_that_lost_its_superblock() {
    let home = unserved();
    let segments = with_segments(&home);
    let superblock = home.dir().join("home/store/superblock");
    std::fs::rename(&superblock, home.path("aside")).unwrap();
    for line in ["ls", "create b --size 1M", "pool create other", "check"] {
        let (code, err) = home.fails(line);
        assert_eq!(code, 5, "ferry {line}: {err}");
        assert!(err.contains("the superblock of a store is missing, and its segments are there"), "{err}");
    }
    assert!(!superblock.exists() && segments.iter().all(|s| s.exists()));
    std::fs::rename(home.path("aside"), &superblock).unwrap();
    home.ok("export a out");
    assert_eq!(std::fs::read(home.path("out")).unwrap(), std::fs::read(home.path("noise")).unwrap());
}

#[test]
fn what_is_too_large_or_no_text_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let home = Home::new();
    home.ok("create a --size 1M --image-feature layering");
    let (code, err) = home.fails("resize a --size 15E");
    assert_eq!(code, 22, "{err}");
    assert!(err.contains("an image of this size cannot be addressed"), "{err}");
    assert!(home.ok("info a").contains("size 1 MiB in"));
    let (code, err) = home.fails("bench a --io-type write --io-threads 4000000000");
    assert_eq!((code, err.as_str()), (22, "ferry: --io-threads should be at most 65536.\n"));
    let mut command = home.command(Name::Ferry);
    let name = std::ffi::OsStr::from_bytes(b"a\xff");
    let output = command.arg("create").arg(name).args(["--size", "1M"]).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(22), "{err}");
    assert!(err.starts_with("ferry: an argument is not UTF-8: a"), "{err}");
    assert_eq!(home.ok("ls"), "a\n");
    // Wider than a column that `format!` makes.
    let wide = "v".repeat(70_000);
    home.ok(&format!("image-meta set a key {wide}"));
    assert!(home.ok("image-meta ls a").contains(&wide));
}

#[test]
fn a_stream_that_is_none_is_not_blamed_on_the_store() {
    let home = Home::new();
    home.ok("create a --size 1M");
    std::fs::write(home.path("text"), "no stream").unwrap();
    std::fs::write(home.path("cut"), "rbd diff v1\ns").unwrap();
    std::fs::write(
        home.path("order"),
        [b"rbd image v2\nO", &8_u64.to_le_bytes()[..], &[255; 8], b"Erbd image diffs v2\n", &[0; 8]].concat(),
    )
    .unwrap();
    let advice = "what was given to read is damaged, cut short, or of another kind than this command reads";
    for (line, code) in
        [("import-diff text a", 74), ("import-diff cut a", 74), ("import --export-format 2 text b", 74)]
    {
        let (found, err) = home.fails(line);
        assert_eq!(found, code, "ferry {line}: {err}");
        assert!(err.contains(advice) && !err.contains("ferry check"), "ferry {line}: {err}");
    }
    let (code, err) = home.fails("import --export-format 2 order b");
    assert_eq!(code, 33, "{err}");
    assert_eq!(home.ok("ls"), "a\n");
}
