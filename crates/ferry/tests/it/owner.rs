//! Stores: who owns one, what a crash leaves, where pools lie.

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use crate::harness::{Home, Name, noise, promised};

#[test]
fn a_command_beside_a_long_one_is_executed_by_it() {
    promised("A process that has a store open for longer than a short command takes serves it");
    let home = Home::new();
    let mut first = home
        .command(Name::Ferry)
        .args(["import", "-", "a", "--no-progress"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = first.stdin.take().unwrap();
    input.write_all(&noise(1, 100_000)).unwrap();
    wait_for_owner(&home, first.id());
    assert_eq!(home.ok("ls"), "a\n");
    home.ok("create b --size 1M");
    // Files go with the command.
    fs::write(home.path("disk"), noise(2, 300_000)).unwrap();
    home.ok("import disk c");
    home.ok("export c out");
    assert_eq!(fs::read(home.path("out")).unwrap(), noise(2, 300_000));
    assert_eq!(home.fails("info nothing").0, 2);
    assert_eq!(first.try_wait().unwrap(), None, "the first command is over");
    drop(input);
    assert!(first.wait().unwrap().success());
    assert_eq!(home.ok("ls"), "a\nb\nc\n");
    assert!(!home.path("home/store/control.sock").exists());
    home.check();
}

#[test]
fn a_command_whose_asker_is_killed_ends() {
    let home = Home::new();
    let import = |name: &str| {
        let mut command = home.command(Name::Ferry);
        command.args(["import", "-", name, "--no-progress"]).stdin(Stdio::piped()).spawn().unwrap()
    };
    let mut owner = import("a");
    wait_for_owner(&home, owner.id());
    while !home.path("home/store/control.sock").exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut guest = import("b");
    guest.stdin.as_mut().unwrap().write_all(&noise(1, 9_000_000)).unwrap();
    while !home.ok("ls").contains("b\n") {
        std::thread::sleep(Duration::from_millis(10));
    }
    guest.kill().unwrap();
    drop(guest.stdin.take());
    guest.wait().unwrap();
    drop(owner.stdin.take());
    // It does not wait for the other one for ever.
    assert!(owner.wait().unwrap().success());
    assert!(home.ok("ls").starts_with("a\n"));
    home.check();
}

/// Waits until the store names its owner.
fn wait_for_owner(home: &Home, pid: u32) {
    let path = home.path("home/store/owner");
    for _ in 0..500 {
        if fs::read_to_string(&path).is_ok_and(|text| text.trim() == pid.to_string()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("nobody owns the store");
}

#[test]
fn a_killed_command_leaves_the_other_images_whole() {
    promised("A command that is killed at any moment leaves every other image as it was.");
    let home = Home::new();
    fs::write(home.path("disk"), noise(5, 3_000_000)).unwrap();
    home.ok("import disk kept");
    for round in 0..5 {
        let mut import = home
            .command(Name::Ferry)
            .args(["import", "-", "half", "--no-progress"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = import.stdin.take().unwrap();
        input.write_all(&noise(round, 2_000_000 * (1 + usize::try_from(round).unwrap()))).unwrap();
        wait_for_owner(&home, import.id());
        import.kill().unwrap();
        import.wait().unwrap();
        home.check();
        home.ok(&format!("export kept out{round}"));
        assert_eq!(
            fs::read(home.path(&format!("out{round}"))).unwrap(),
            fs::read(home.path("disk")).unwrap()
        );
        if home.ok("ls").contains("half\n") {
            home.ok("rm half");
        }
        assert_eq!(home.ok("ls"), "kept\n");
    }
}

#[test]
fn what_was_done_is_there_after_a_kill() {
    promised("A command that has ended with 0 is durable.");
    let home = Home::new();
    home.ok("create a --size 8M");
    home.ok("snap create a@s");
    home.ok("bench a --io-type write --io-total 1M");
    // Nothing is closed properly here: the copy is taken as a crash would leave the directory.
    let copy = home.path("copy");
    let copied = std::process::Command::new("cp")
        .args(["-r"])
        .args([home.path("home"), copy.clone()])
        .status()
        .unwrap();
    assert!(copied.success());
    let mut command = home.command(Name::Ferry);
    let output =
        command.env("FERRY_HOME", &copy).args(["snap", "ls", "a", "--format", "json"]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json[0]["name"], "s");
}

#[test]
fn pools_lie_in_the_home_or_elsewhere() {
    let home = Home::empty();
    assert_eq!(home.ok("pool ls"), "");
    home.ok("pool create one");
    home.ok("pool create two --path far/away");
    home.ok("create one/a --size 1M");
    home.ok("create two/b --size 1M");
    let list: serde_json::Value = serde_json::from_str(&home.ok("pool ls --format json")).unwrap();
    assert_eq!(list[0]["store"], home.path("home/store").to_str().unwrap());
    assert_eq!(list[1]["store"], home.path("far/away").to_str().unwrap());
    assert_eq!(home.fails("pool create one").0, 17);
    assert_eq!(home.fails("pool rm two").0, 39);
    home.ok("rm two/b");
    home.ok("pool rm two");
    promised(
        "A pool that holds an image, in its trash or in a namespace too, or the data of one, is not removed.",
    );
    home.ok("pool create data");
    home.ok("create one/c --size 1M --data-pool data");
    let (code, err) = home.fails("pool rm data");
    assert_eq!(code, 39, "{err}");
    assert!(
        err.contains("images of another pool have their data in this one (images 1, their pool one)"),
        "{err}"
    );
    home.ok("trash mv one/c");
    assert_eq!(home.fails("pool rm data").0, 39);
    home.ok("trash purge one");
    home.ok("pool rm data");
    assert_eq!(home.fails("ls two").0, 2);
    assert_eq!(home.ok("ls one"), "a\n");
    assert_eq!(home.ok("pool stats one"), "Total Images: 1\nTotal Snapshots: 0\nProvisioned Size: 1 MiB\n");
}

#[test]
fn a_store_that_is_there_is_taken_up_with_its_images() {
    let home = Home::empty();
    home.ok("pool create p --path store");
    home.ok("create p/a --size 1M");
    fs::remove_dir_all(home.path("home")).unwrap();
    assert_eq!(home.fails("ls p").0, 2);
    let run = home.run(Name::Ferry, "pool create p --path store");
    assert_eq!(run.code, 0);
    assert!(run.err.contains("it is used as it is"), "{}", run.err);
    assert_eq!(home.ok("ls p"), "a\n");
}

#[test]
fn a_store_that_is_gone_is_named() {
    let home = Home::new();
    home.ok("create a --size 1M");
    fs::rename(home.path("home/store"), home.path("moved")).unwrap();
    let (code, err) = home.fails("ls");
    assert_eq!(code, 2);
    assert!(err.contains(home.path("home/store").to_str().unwrap()), "{err}");
    assert!(home.ok("pool ls").contains("  unavailable: "));
    fs::rename(home.path("moved"), home.path("home/store")).unwrap();
    assert_eq!(home.ok("ls"), "a\n");
}

#[test]
fn a_damaged_byte_is_found_and_never_handed_out() {
    promised("A byte that rotted on the disk is an error that names the object, never data.");
    let home = Home::new();
    let data = noise(9, 1 << 20);
    fs::write(home.path("disk"), &data).unwrap();
    home.ok("import disk a");
    // Flip a bit in the middle of the data, wherever the store keeps it.
    let needle = &data[500_000..500_064];
    let mut flipped = 0;
    for entry in fs::read_dir(home.path("home/store/segments")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(needle.len()).position(|w| w == needle) {
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            flipped += 1;
        }
    }
    assert_eq!(flipped, 1);
    let (code, err) = home.fails("export a out");
    assert_eq!(code, 5, "{err}");
    assert!(err.contains("rbd_data."), "{err}");
    assert!(!home.path("out").exists());
    let check = home.run(Name::Ferry, "check");
    assert_eq!(check.code, 5);
    assert!(check.out.contains("damaged: ") && check.out.ends_with("DAMAGED\n"), "{}", check.out);
}
