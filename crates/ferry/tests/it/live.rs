//! Migrations of images in use: the client keeps its connection, its device and its mounted file system, and every byte.

use std::fs;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::device::{World, ended_well, run, skipped, until, verified_writes};
use crate::durability::client::{Client, Request};
use crate::durability::ledger::{Content, Ledger};
use crate::durability::load::{Load, Numbers, Subject, check, wait_for_flushes};
use crate::durability::{seed, setting};
use crate::harness::{Home, Name, Node, noise, promised};

/// Blocks of an image under load: 16 MiB.
const BLOCKS: usize = 4096;

/// Pools `rbd` and `fast` in one store, `far` in another.
fn pools(home: &Home) {
    home.ok("pool create fast");
    home.ok("pool create far --path elsewhere");
}

/// A node that offers the image `a` as `vm`, and what is known of that.
fn with_export(home: &Home) -> (Node, Subject) {
    pools(home);
    home.ok("create a --size 16M");
    let node = home.serve();
    home.ok("export add a --name vm");
    (node, Subject { export: "vm", ledger: Arc::new(Ledger::new(BLOCKS, Content::Zero)) })
}

/// Runs a step; how long clients waited for it, in milliseconds, each time they did.
fn step(home: &Home, line: &str) -> Vec<u64> {
    let run = home.run(Name::Ferry, line);
    assert_eq!(run.code, 0, "ferry {line}: {run:?}\n{}", home.log());
    let waits = run.err.lines().filter_map(|l| l.split_once("its clients waited "));
    waits.map(|(_, ms)| ms.strip_suffix(" ms").unwrap().parse().unwrap()).collect()
}

/// A whole migration; how long clients waited.
fn moved(home: &Home, from: &str, to: &str, layout: &str) -> Vec<u64> {
    let waits = step(home, &format!("migration prepare {from} {to} {layout}"));
    step(home, &format!("migration execute {to} --no-progress"));
    step(home, &format!("migration commit {to} --no-progress"));
    waits
}

/// The value below which 99 of 100 are, and the largest.
fn worst(pauses: &mut [u64]) -> (u64, u64) {
    pauses.sort_unstable();
    (pauses[(pauses.len() * 99).div_ceil(100) - 1], pauses[pauses.len() - 1])
}

/// A mounted file system goes to another store and on to another pool, and comes back from a third.
fn moves_while_mounted(world: &World) -> Vec<u64> {
    let home = &world.home;
    pools(home);
    let device = home.ok("device map a").trim().to_owned();
    run("mkfs.ext4", &["-q", "-F", &device]);
    world.mount(&device);
    let fio = verified_writes(world, 8);
    let mut pauses = Vec::new();
    for line in [
        "migration prepare rbd/a far/b --object-size 1M",
        "migration execute far/b --no-progress",
        "migration commit far/b --no-progress",
        "migration prepare far/b fast/c --stripe-unit 64K --stripe-count 3",
        "migration execute fast/c --no-progress",
        "migration commit fast/c --no-progress",
        "migration prepare fast/c far/d",
        "migration execute far/d --no-progress",
    ] {
        let waits = step(home, line);
        assert_eq!(waits.len(), usize::from(line.contains("prepare")), "{line}");
        pauses.extend(waits);
    }
    assert!(home.ok("device ls").contains("far "), "{}", home.ok("device ls"));
    let waits = step(home, "migration abort far/d --no-progress");
    assert_eq!(waits.len(), 1);
    pauses.extend(waits);
    ended_well(fio);
    let lines = home.ok("device ls");
    assert!(lines.lines().count() == 2 && lines.contains("fast ") && lines.contains(&device), "{lines}");
    world.unmount();
    run("fsck.ext4", &["-f", "-n", &device]);
    home.ok("device unmap fast/c");
    home.check();
    pauses
}

#[test]
fn a_file_system_mounted_from_a_node_stays_mounted_while_its_image_moves() {
    if skipped("a_file_system_mounted_from_a_node_stays_mounted_while_its_image_moves") {
        return;
    }
    let world = World::new("64M");
    let node = world.home.serve();
    println!("clients waited {:?} ms", moves_while_mounted(&world));
    assert_eq!(node.stop(), 0, "{}", world.home.log());
}

#[test]
fn a_file_system_mounted_without_a_node_stays_mounted_while_its_image_moves() {
    if skipped("a_file_system_mounted_without_a_node_stays_mounted_while_its_image_moves") {
        return;
    }
    println!("clients waited {:?} ms", moves_while_mounted(&World::new("64M")));
}

#[test]
fn prepare_gives_way_where_clients_would_wait_too_long() {
    let home = Home::new();
    let (node, subject) = with_export(&home);
    let load = Load::start(&home.path("home/nbd.sock"), std::slice::from_ref(&subject), seed());
    wait_for_flushes(std::slice::from_ref(&subject), 2);
    for _ in 0..5 {
        let (code, err) = home.fails("migration prepare a far/b --pause-limit 0");
        assert_eq!(code, 110, "{err}");
        assert!(err.contains("rbd/a is as it was") && err.contains("--pause-limit"), "{err}");
        assert_eq!(home.ok("ls rbd"), "a\n");
        assert_eq!((home.ok("ls far").as_str(), home.ok("trash ls --all rbd").as_str()), ("", ""));
        let flushes = subject.ledger.acknowledged().1;
        wait_for_flushes(std::slice::from_ref(&subject), flushes + 2);
    }
    step(&home, "migration prepare a far/b");
    load.end();
    check(&home.path("home/nbd.sock"), &subject, &subject.ledger.durable()).unwrap();
    assert_eq!(node.stop(), 0, "{}", home.log());
}

#[test]
fn an_abort_carries_back_what_clients_wrote_before_they_wait() {
    promised("they wait for the last of it, not for all, and not for the target to be removed");
    let home = Home::new();
    pools(&home);
    fs::write(home.path("disk"), noise(5, 24 << 20)).unwrap();
    home.ok("import disk a --object-size 1M --no-progress");
    let node = home.serve();
    home.ok("export add a --name vm");
    let mut client = Client::connect(&home.path("home/nbd.sock"), "vm").unwrap();
    let mut wanted = fs::read(home.path("disk")).unwrap();
    for (to, is_executed) in [("far/a", false), ("far/a", true), ("fast/b", false)] {
        step(&home, &format!("migration prepare a {to} --object-size 4M"));
        if is_executed {
            step(&home, &format!("migration execute {to} --no-progress"));
        }
        let data = noise(u64::from(is_executed) + 20, 1 << 20);
        for n in 0..12 {
            let at = n << 21;
            wanted[at..at + data.len()].copy_from_slice(&data);
            let offset = u64::try_from(at).unwrap();
            let request = Request::Write { offset, data: data.clone(), is_durable: false };
            client.send(1, &request).unwrap();
            assert_eq!(client.receive().unwrap().error, 0);
        }
        assert_eq!(step(&home, &format!("migration abort {to} --no-progress")).len(), 1);
        let log = home.log();
        let line = log.lines().rfind(|l| l.contains("carried back")).unwrap_or_else(|| panic!("{log}"));
        assert_eq!(number_after(line, "ahead_bytes"), 12 << 20, "{line}");
        assert_eq!(number_after(line, "waiting_bytes"), 0, "{line}");
        assert!(client.read(0, wanted.len()).unwrap() == wanted, "{to}, executed: {is_executed}");
    }
    assert_eq!(node.stop(), 0, "{}", home.log());
    home.check();
}

#[test]
fn exports_added_before_and_after_a_copy_began_write_as_fast_as_beside_none() {
    promised("A first write to what is not copied yet waits for its own blocks, not for an object");
    let home = Home::new();
    pools(&home);
    fs::write(home.path("disk"), noise(7, 16 << 20)).unwrap();
    home.ok("import disk a --object-size 64K --no-progress");
    let node = home.serve();
    home.ok("migration prepare a far/a --object-size 64K");
    let mut copying = home.command(Name::Ferry);
    let copying = copying.args(["migration", "execute", "far/a", "--limit", "4M", "--no-progress"]);
    let mut copying = copying.spawn().unwrap();
    until("the copy", || home.ok("status far/a").contains("executing ("));
    // Two exports of one image, added while it is copied: three who write it.
    home.ok("export add far/a --name one");
    home.ok("export add far/a --name two");
    let mut clients: Vec<_> = ["one", "two"]
        .map(|name| Client::connect(&home.path("home/nbd.sock"), name).unwrap())
        .into_iter()
        .collect();
    let began = Instant::now();
    let mut wanted = fs::read(home.path("disk")).unwrap();
    for n in 0..2000_u64 {
        let offset = n * 7919 % 4096 * 4096;
        let data = vec![u8::try_from(n % 251).unwrap(); 4096];
        let at = usize::try_from(offset).unwrap();
        wanted[at..at + 4096].copy_from_slice(&data);
        let client = &mut clients[usize::try_from(n % 2).unwrap()];
        let request = Request::Write { offset, data, is_durable: false };
        client.send(n, &request).unwrap();
        assert_eq!(client.receive().unwrap().error, 0);
    }
    let took = began.elapsed();
    println!("2000 writes beside a copy, by two clients in turn: {took:?}");
    // If they took the lock from each other, each would take milliseconds.
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(copying.wait().unwrap().success());
    home.ok("migration commit far/a --no-progress");
    drop(clients);
    home.ok("export far/a out --no-progress");
    assert!(fs::read(home.path("out")).unwrap() == wanted);
    assert_eq!(node.stop(), 0, "{}", home.log());
    home.check();
}

#[test]
fn a_wrong_byte_in_the_copy_of_an_image_in_use_is_found() {
    let home = Home::empty();
    home.ok("pool create rbd");
    pools(&home);
    fs::write(home.path("disk"), noise(4, 3_000_000)).unwrap();
    home.ok("import disk a --no-progress");
    let node = home.try_serve(&["env", "FERRY_FAULT=flip-copied-byte"], &[]).unwrap();
    home.ok("export add a --name vm");
    home.ok("migration prepare a far/a");
    home.ok("migration execute far/a --no-progress");
    for line in ["migration verify far/a", "migration commit far/a"] {
        let (code, err) = home.fails(line);
        assert_eq!(code, 117, "{line}: {err}");
    }
    home.ok("migration abort far/a --no-progress");
    home.ok("export a out --no-progress");
    assert_eq!(fs::read(home.path("out")).unwrap(), fs::read(home.path("disk")).unwrap());
    assert_eq!(node.stop(), 0, "{}", home.log());
}

/// Where the image goes next, layouts up and down, striped and not.
const ROUTE: [(&str, &str); 6] = [
    ("far/a", "--object-size 64K"),
    ("fast/b", "--object-size 1M --stripe-unit 64K --stripe-count 4"),
    ("fast/b", "--object-size 4M"),
    ("rbd/c", "--object-size 128K"),
    ("far/d", "--object-size 8M"),
    ("rbd/a", "--object-size 4M"),
];

#[test]
fn migrations_back_to_back_under_clients_cost_no_byte_and_no_connection() {
    let migrations = usize::try_from(setting("FERRY_MIGRATIONS", 12)).unwrap();
    let seed = seed();
    println!("FERRY_SEED={seed} FERRY_MIGRATIONS={migrations}");
    let has_devices = !skipped("the mounted file system of migrations_back_to_back");
    let world = World::new("64M");
    let home = &world.home;
    home.ok("rm a --no-progress");
    let (node, subject) = with_export(home);
    home.ok("create f --size 64M");
    let subjects = std::slice::from_ref(&subject);
    let load = Load::start(&home.path("home/nbd.sock"), subjects, seed);
    let mut device = String::new();
    if has_devices {
        device = home.ok("device map f").trim().to_owned();
        run("mkfs.ext4", &["-q", "-F", &device]);
        world.mount(&device);
    }
    let mut fio = has_devices.then(|| verified_writes(&world, 20));
    let (mut at, mut file_at) = ("rbd/a".to_owned(), "rbd/f".to_owned());
    let mut pauses = Vec::new();
    let began = Instant::now();
    for n in 0..migrations {
        wait_for_flushes(subjects, subject.ledger.acknowledged().1 + 1);
        let (to, layout) = ROUTE[n % ROUTE.len()];
        if n % 5 == 3 {
            pauses.extend(step(home, &format!("migration prepare {at} {to} {layout}")));
            step(home, &format!("migration execute {to} --no-progress"));
            pauses.extend(step(home, &format!("migration abort {to} --no-progress")));
        }
        if n % 3 == 1 {
            home.ok(&format!("snap create {at}@s{n} --no-progress"));
        }
        pauses.extend(moved(home, &at, to, layout));
        to.clone_into(&mut at);
        if has_devices {
            let to = if file_at.starts_with("far") { "fast/f" } else { "far/f" };
            pauses.extend(moved(home, &file_at, to, ""));
            to.clone_into(&mut file_at);
            if fio.as_mut().is_some_and(|fio| fio.try_wait().unwrap().is_some()) {
                ended_well(fio.take().unwrap());
                fio = Some(verified_writes(&world, 20));
            }
        }
    }
    let took = began.elapsed();
    // No connection was made anew: a request that fails, or a server that goes, ends the load with an error.
    load.end();
    if let Some(fio) = fio {
        ended_well(fio);
    }
    check(&home.path("home/nbd.sock"), &subject, &subject.ledger.durable()).unwrap();
    if has_devices {
        world.unmount();
        run("fsck.ext4", &["-f", "-n", &device]);
        home.ok(&format!("device unmap {device}"));
    }
    let (writes, flushes) = subject.ledger.acknowledged();
    let count = pauses.len();
    let (p99, longest) = worst(&mut pauses);
    println!(
        "{migrations} migrations of an export and of a mounted file system each in {took:?}, {writes} writes and {flushes} \
         flushes; {count} pauses: median {} ms, p99 {p99} ms, longest {longest} ms",
        pauses[count / 2]
    );
    for pool in ["rbd", "fast", "far"] {
        assert_eq!(home.ok(&format!("trash ls --all {pool}")), "", "{pool}");
    }
    assert_eq!(node.stop(), 0, "{}", home.log());
    home.check();
    home.ok("check far");
}

/// A node that dies while it starts, which goes on with what a job of the one before it began.
fn start_and_kill(home: &Home, after: Duration) {
    let mut serve = home.command(Name::Ferry);
    let mut serve = serve.arg("serve").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    thread::sleep(after);
    serve.kill().unwrap();
    serve.wait().unwrap();
}

/// Whether an image is the source of a migration; one that goes to another name, or pool, is in the trash.
fn is_source(home: &Home, image: &str) -> bool {
    let status = home.run(Name::Ferry, &format!("status {image}"));
    assert!([0, 2].contains(&status.code), "{status:?}");
    status.code == 2 || status.out.contains("Migration:")
}

#[test]
fn a_node_killed_again_and_again_during_aborts_offers_its_exports_again() {
    let (kills, seed) = (setting("FERRY_ABORT_KILLS", 20), seed());
    println!("FERRY_SEED={seed} FERRY_ABORT_KILLS={kills}");
    let home = Home::new();
    let (node, subject) = with_export(&home);
    assert_eq!(node.stop(), 0, "{}", home.log());
    let (socket, subjects) = (home.path("home/nbd.sock"), std::slice::from_ref(&subject));
    let mut numbers = Numbers(seed);
    let (mut aborted, mut target) = (0, "");
    for round in 0..=kills {
        if numbers.below(3) == 0 {
            start_and_kill(&home, Duration::from_millis(numbers.below(150)));
        }
        let node = home.serve();
        let what = || {
            let records = fs::read_to_string(home.path("home/exports.toml"));
            let jobs = home.run(Name::Ferry, "job ls");
            format!("round {round} of seed {seed}: {records:?} {jobs:?}\n{}", home.log())
        };
        let began = Instant::now();
        let exports = || home.ok("export ls");
        while !exports().contains("vm") {
            // The target is closed while the abort goes on; the export is offered when that is done.
            assert!(began.elapsed() < Duration::from_secs(60), "no export: {}", what());
            thread::sleep(Duration::from_millis(5));
        }
        let (_, image) =
            check(&socket, &subject, &subject.ledger.durable()).unwrap_or_else(|e| panic!("{e}: {}", what()));
        subject.ledger.take_over(&image);
        let load = Load::start(&socket, subjects, numbers.below(u64::MAX));
        while !job(&home).is_null() {
            assert!(began.elapsed() < Duration::from_secs(60), "the abort does not end: {}", what());
            thread::sleep(Duration::from_millis(5));
        }
        // Clients stay while it is switched.
        wait_for_flushes(subjects, subject.ledger.acknowledged().1 + 2);
        // A target of the source's name is offered by that name too: where the abort was killed before it began.
        let is_migrating = is_source(&home, "a");
        let is_back = exports().contains("rbd/a") && !(is_migrating && target == "rbd/a");
        if is_back {
            aborted += 1;
            assert!(!is_migrating, "{}", what());
        }
        if round == kills {
            load.end();
            assert_eq!(node.stop(), 0, "{}", home.log());
            break;
        }
        if is_back {
            let (to, layout) =
                [("far/b", "--object-size 64K"), ("fast/a", ""), ("rbd/a", "--object-size 1M")]
                    [usize::try_from(numbers.below(3)).unwrap()];
            step(&home, &format!("migration prepare a {to} {layout}"));
            target = to;
            if numbers.below(3) == 0 {
                step(&home, &format!("migration execute {to} --no-progress"));
            }
            wait_for_flushes(subjects, subject.ledger.acknowledged().1 + 2);
        }
        let mut abort = home.command(Name::Ferry);
        let abort = abort.args(["migration", "abort", "a", "--no-progress"]);
        let mut abort = abort.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(numbers.below(250)));
        node.kill();
        abort.wait().unwrap();
        load.end_without_server();
    }
    let (writes, flushes) = subject.ledger.acknowledged();
    println!("{kills} kills, {aborted} aborts that came to their end, {writes} writes and {flushes} flushes");
    assert!(aborted * 4 > kills, "{aborted} aborts came to their end");
    // Of the last migration, if that was not aborted; aborts take those of theirs away.
    let drafts = fs::read_dir(home.path("home/receipts")).unwrap().count();
    assert!(drafts <= 1, "{drafts} drafts of receipts are left");
    home.check();
    home.ok("check far");
}

#[test]
fn e01_clients_go_on_and_those_that_ferry_does_not_serve_are_refused() {
    let home = Home::new();
    let (node, _) = with_export(&home);
    let mut client = Client::connect(&home.path("home/nbd.sock"), "vm").unwrap();
    let mut wanted = vec![0; BLOCKS * 4096];
    let mut writes = |what: &str, at: usize| {
        let data = vec![u8::try_from(at % 250 + 1).unwrap(); 4096];
        wanted[at * 4096..(at + 1) * 4096].copy_from_slice(&data);
        let offset = u64::try_from(at * 4096).unwrap();
        client.send(1, &Request::Write { offset, data, is_durable: true }).unwrap();
        assert_eq!(client.receive().unwrap().error, 0, "{what}");
        assert!(client.read(0, wanted.len()).unwrap() == wanted, "{what}");
    };
    writes("before", 3);
    // It has the image open, and cannot be switched.
    let mut watch = home.command(Name::Ferry);
    let mut watch = watch.args(["watch", "a"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    until("two watchers", || home.ok("status a").matches("watcher=").count() == 2);
    let (code, err) = home.fails("migration prepare a far/b");
    assert!(code == 16 && err.contains("image has watchers") && err.contains("rbd/a is as it was"), "{err}");
    writes("refused", 700);
    drop(watch.stdin.take());
    assert!(watch.wait().unwrap().success());
    let pauses = step(&home, "migration prepare a far/b --object-size 64K");
    assert_eq!(pauses.len(), 1);
    writes("prepared", 1500);
    assert!(home.ok("export ls").contains("far/b"));
    step(&home, "migration execute far/b --no-progress");
    writes("executed", 2500);
    step(&home, "migration commit far/b --no-progress");
    writes("committed", 3500);
    let receipts: Vec<_> = fs::read_dir(home.path("home/receipts")).unwrap().collect();
    let receipt = fs::read(receipts[0].as_ref().unwrap().path()).unwrap();
    let receipt: serde_json::Value = serde_json::from_slice(&receipt).unwrap();
    let told = serde_json::json!([{ "clients_of": "export vm", "milliseconds": pauses[0] }]);
    assert!(receipts.len() == 1 && receipt["pauses"] == told, "{receipt}");
    assert_eq!(node.stop(), 0, "{}", home.log());
}

#[test]
fn e02_readers_follow_the_image_as_writers_do() {
    let home = Home::new();
    let (node, _) = with_export(&home);
    home.ok("export add a --name reader --read-only");
    let socket = home.path("home/nbd.sock");
    let (mut writer, mut reader) =
        (Client::connect(&socket, "vm").unwrap(), Client::connect(&socket, "reader").unwrap());
    let mut wanted = vec![0; BLOCKS * 4096];
    let mut seen = |what: &str, at: usize| {
        let data = vec![u8::try_from(at % 250 + 1).unwrap(); 4096];
        wanted[at * 4096..(at + 1) * 4096].copy_from_slice(&data);
        let offset = u64::try_from(at * 4096).unwrap();
        writer.send(1, &Request::Write { offset, data, is_durable: false }).unwrap();
        assert_eq!(writer.receive().unwrap().error, 0);
        assert!(reader.read(0, wanted.len()).unwrap() == wanted, "{what}");
    };
    seen("before", 3);
    step(&home, "migration prepare a far/b --object-size 64K");
    seen("prepared", 700);
    step(&home, "migration execute far/b --no-progress");
    seen("executed", 1500);
    step(&home, "migration commit far/b --no-progress");
    seen("committed", 2500);
    step(&home, "migration prepare far/b a");
    seen("prepared again", 3500);
    step(&home, "migration abort far/b --no-progress");
    seen("aborted", 4000);
    // One whose image nobody writes hears of nothing by itself.
    fs::write(home.path("disk"), noise(6, 3 << 20)).unwrap();
    home.ok("import disk c --object-size 1M --no-progress");
    home.ok("resize c --size 8M --no-progress");
    home.ok("export add c --name alone --read-only");
    let mut alone = Client::connect(&socket, "alone").unwrap();
    let mut wanted = fs::read(home.path("disk")).unwrap();
    wanted.resize(8 << 20, 0);
    for line in ["prepare c far/c", "execute far/c --no-progress", "commit far/c --no-progress"] {
        step(&home, &format!("migration {line}"));
        assert!(alone.read(0, wanted.len()).unwrap() == wanted, "{line}");
    }
    assert!(home.ok("status far/c").starts_with("Watchers:"));
    assert_eq!(node.stop(), 0, "{}", home.log());
}

/// The first job that runs.
fn job(home: &Home) -> serde_json::Value {
    let jobs: serde_json::Value = serde_json::from_str(&home.ok("job ls --format json")).unwrap();
    jobs.as_array().unwrap().iter().find(|j| j["state"] == "running").cloned().unwrap_or_default()
}

/// Begins to copy an image of 16 MiB to another store, slowly, and waits for a part of it.
fn copying(home: &Home, image: &str, limit: &str) -> (Child, u64) {
    fs::write(home.path("disk"), noise(11, 16 << 20)).unwrap();
    home.ok(&format!("import disk {image} --object-size 64K --no-progress"));
    home.ok(&format!("migration prepare {image} far/{image} --object-size 64K"));
    let mut execute = home.command(Name::Ferry);
    let execute =
        execute.args(["migration", "execute", &format!("far/{image}"), "--limit", limit, "--no-progress"]);
    let child = execute.stderr(Stdio::null()).spawn().unwrap();
    until("a part of the copy", || job(home)["done_bytes"].as_u64().is_some_and(|d| d >= 2 << 20));
    (child, job(home)["id"].as_u64().unwrap())
}

/// Bytes that the last execute of the node copied itself.
fn copied(home: &Home) -> u64 {
    let log = home.log();
    let line = log.lines().rfind(|l| l.contains("migration executed")).unwrap_or_else(|| panic!("{log}"));
    number_after(line, "copied_bytes")
}

/// A number in a line of the log.
fn number_after(line: &str, name: &str) -> u64 {
    let (_, number) = line.split_once(name).unwrap_or_else(|| panic!("{name}: {line}"));
    // Between them may be what colours them.
    let (_, number) = number.split_once('=').unwrap_or(("", number));
    let digits: String =
        number.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

#[test]
fn e17_a_copy_tells_how_far_it_is_and_can_be_paused_limited_and_cancelled() {
    let home = Home::new();
    pools(&home);
    let node = home.serve();
    let (mut child, id) = copying(&home, "a", "2M");
    let running = job(&home);
    let number = |field: &str| running[field].as_u64().unwrap_or_else(|| panic!("{field}: {running}"));
    assert_eq!(number("total_bytes"), 16 << 20);
    assert!((1 << 19..4 << 20).contains(&number("bytes_per_second")), "{running}");
    assert!((1..40).contains(&number("seconds_left")), "{running}");
    let shown = home.ok("job ls");
    assert!(shown.contains(" of 16 MiB, ") && shown.contains(" s left"), "{shown}");
    assert!(shown.contains("/s (at most 2 MiB/s), ") && number("rate_limit") == 2 << 20, "{shown}");
    assert!(home.ok("status far/a").contains("% complete)"), "{}", home.ok("status far/a"));
    home.ok(&format!("job pause {id}"));
    thread::sleep(Duration::from_millis(300));
    let paused = job(&home);
    assert_eq!(paused["paused"], true);
    // Whoever reads the header again does not wait for a paused copy.
    home.ok("snap create far/a@meanwhile --no-progress");
    thread::sleep(Duration::from_millis(700));
    assert_eq!(job(&home)["done_bytes"], paused["done_bytes"]);
    assert!(home.ok("job ls").contains("paused "));
    home.ok(&format!("job limit {id} --rate 0 --in-flight 2"));
    assert!(home.ok("job ls").contains("/s (2 objects at once)"), "{}", home.ok("job ls"));
    assert_eq!((job(&home)["rate_limit"].as_u64(), job(&home)["in_flight"].as_u64()), (None, Some(2)));
    // Whoever attaches hears at once how it stands.
    let mut attached = home.command(Name::Ferry);
    let attached = attached.args(["job", "attach", &id.to_string(), "--no-progress"]).stderr(Stdio::piped());
    let attached = attached.spawn().unwrap();
    thread::sleep(Duration::from_millis(300));
    home.ok(&format!("job resume {id}"));
    let heard = String::from_utf8(attached.wait_with_output().unwrap().stderr).unwrap();
    assert!(heard.contains("is paused: ") && heard.contains(" of 16 MiB, "), "{heard}");
    assert!(child.wait().unwrap().success());
    assert!(home.ok("status far/a").contains("state: executed"));
    // One that was cancelled goes on where it was.
    let (mut child, id) = copying(&home, "b", "2M");
    home.ok(&format!("job cancel {id}"));
    assert!(!child.wait().unwrap().success());
    assert!(home.ok("job ls").contains("cancelled"));
    home.ok("migration execute far/b --no-progress");
    assert!((8 << 20..=14 << 20).contains(&copied(&home)), "{} copied after {}", copied(&home), 2 << 20);
    for image in ["a", "b"] {
        home.ok(&format!("migration commit far/{image} --no-progress"));
    }
    assert_eq!(node.stop(), 0, "{}", home.log());
}

#[test]
fn a_copy_that_was_killed_goes_on_where_it_was() {
    let home = Home::new();
    pools(&home);
    let node = home.serve();
    let (mut child, id) = copying(&home, "a", "8M");
    until("half of the copy", || job(&home)["done_bytes"].as_u64().is_some_and(|d| d >= 8 << 20));
    node.kill();
    child.wait().unwrap();
    let node = home.serve();
    home.ok(&format!("job attach {id} --no-progress"));
    assert!(home.ok("status far/a").contains("state: executed"));
    // What was under way, or in memory only, when the node was killed is copied again.
    assert!((1 << 20..=12 << 20).contains(&copied(&home)), "{}", copied(&home));
    home.ok("migration commit far/a --no-progress");
    assert_eq!(node.stop(), 0, "{}", home.log());
}
