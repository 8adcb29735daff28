//! Images on servers become images here: from the web, an object store and NBD, through the program. A test named `eNN_…` proves
//! that row of the list of what `rbd` lacks (`docs/migration.md`).

pub(crate) mod web;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use web::Web;

use crate::harness::{Home, Name, noise, promised};

const MIB: usize = 1 << 20;

/// Runs a program in the home's directory; it must succeed.
fn tool(home: &Home, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(home.dir()).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A program that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Exports an image to a file and gives its bytes.
fn bytes(home: &Home, image: &str) -> Vec<u8> {
    drop(fs::remove_file(home.path("out")));
    home.ok(&format!("export {image} out"));
    fs::read(home.path("out")).unwrap()
}

fn prepare(home: &Home, spec: &str, target: &str) {
    home.ok(&format!("migration prepare --import-only --source-spec {spec} {target}"));
}

/// Writes `image` as a compressed qcow2 of 40 MiB with a snapshot `old`; the bytes of the snapshot and those of now.
fn qcow2(home: &Home, image: &str) -> (Vec<u8>, Vec<u8>) {
    home.sparse_file(
        "old.raw",
        40 << 20,
        &[(0, b"old"), (7 << 20, &noise(1, 3 * MIB)), (39 << 20, &noise(2, 99))],
    );
    tool(home, "qemu-img", &["convert", "-c", "-O", "qcow2", "old.raw", image]);
    tool(home, "qemu-img", &["snapshot", "-c", "old", image]);
    let write = ["-f", "qcow2", "-c", "write -P 7 8M 1M", "-c", "write -z 39M 64k", image];
    tool(home, "qemu-io", &write);
    tool(home, "qemu-img", &["convert", "-O", "raw", image, "now.raw"]);
    (fs::read(home.path("old.raw")).unwrap(), fs::read(home.path("now.raw")).unwrap())
}

/// An image prepared from `spec`, of what [`qcow2`] made, is used, executed, verified, committed, and right at each step.
fn assert_migrates(home: &Home, spec: &str, (old, now): &(Vec<u8>, Vec<u8>)) {
    prepare(home, spec, "b");
    assert!(bytes(home, "b") == *now);
    // Somewhere.
    home.ok("bench b --io-type write --io-size 4096 --io-total 64K --io-pattern seq");
    let written = bytes(home, "b");
    let differ = now.chunks(4096).zip(written.chunks(4096)).filter(|(a, b)| a != b).count();
    assert!((1..=16).contains(&differ), "{differ} blocks of 4 KiB are written");
    let check = |step: &str| {
        assert!(bytes(home, "b@old") == *old, "the snapshot, {step}");
        assert!(bytes(home, "b") == written, "the image, {step}");
    };
    check("prepared");
    home.ok("migration execute b");
    check("executed");
    home.ok("migration verify b");
    home.ok("migration commit b");
    check("committed");
    assert!(!home.ok("info b").contains("migrating"));
    home.check();
}

#[test]
fn e13_a_compressed_image_on_a_web_server_becomes_an_image() {
    let home = Home::new();
    let points = qcow2(&home, "disk.qcow2");
    let web = Web::start(fs::read(home.path("disk.qcow2")).unwrap(), 0);
    assert_migrates(&home, &web.spec("qcow2"), &points);
}

#[test]
fn an_export_of_an_nbd_server_becomes_an_image() {
    let home = Home::new();
    let points = qcow2(&home, "disk.qcow2");
    let socket = home.path("nbd.sock");
    // The file through NBD, so that its snapshot is seen; and the device that QEMU makes of it.
    let serve = |format: &str| {
        let mut command = Command::new("qemu-nbd");
        command.args(["-r", "-t", "-e", "8", "-f", format, "-k"]).arg(&socket).arg(home.path("disk.qcow2"));
        let process = Process(command.stdin(Stdio::null()).spawn().unwrap());
        while !socket.exists() {
            thread::sleep(Duration::from_millis(5));
        }
        process
    };
    let spec = |format: &str| {
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        format!(r#"{{"stream":{{"type":"nbd","uri":"{uri}"}},"type":"{format}"}}"#)
    };
    let file = serve("raw");
    assert_migrates(&home, &spec("qcow2"), &points);
    drop(file);
    fs::remove_file(&socket).unwrap();

    let _device = serve("qcow2");
    prepare(&home, &spec("raw"), "c");
    home.ok("migration execute c");
    home.ok("migration commit c");
    assert!(bytes(&home, "c") == points.1);
    assert!(used(&home, "c") < 8 << 20, "objects that the server calls holes are not made");
}

/// Bytes that an image takes.
fn used(home: &Home, image: &str) -> u64 {
    let text = home.ok(&format!("du --exact {image} --format json"));
    let at = text.find("\"used_size\":").unwrap() + 12;
    text[at..].chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

#[test]
fn a_slow_server_is_asked_for_little_at_first_and_for_nothing_twice() {
    let home = Home::new();
    let content = noise(5, 24 * MIB);
    let web = Web::start(content.clone(), 4_000_000);
    let _node = home.serve();
    let begun = Instant::now();
    prepare(&home, &web.spec("raw"), "b");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(web.sent() <= 4 << 20, "{} bytes before prepare returned", web.sent());
    let told = home.ok("export add b");
    let uri = told.lines().next().unwrap();
    let last = content.len() - 4096;
    let (skip, from) = (format!("skip={}", last / 4096), format!("if={uri}"));
    let begun = Instant::now();
    tool(&home, "qemu-img", &["dd", "-f", "raw", "-O", "raw", "bs=4096", &skip, &from, "of=last"]);
    // With the start of a client of NBD in it.
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(fs::read(home.path("last")).unwrap() == content[last..]);
    let sent = web.sent();
    assert!(sent <= 5 << 20, "{sent} bytes for the last 4 KiB");
    home.ok("migration execute b");
    home.ok("export rm rbd/b --force");
    home.ok("migration commit b --unverified");
    let (sent, most) = (web.sent(), content.len() as u64 * 105 / 100);
    assert!(sent <= most, "{sent} bytes served, at most {most}");
    assert!(bytes(&home, "b") == content);
}

#[test]
fn e10_a_server_that_fails_stops_an_execute_which_goes_on_when_it_is_repeated() {
    let home = Home::new();
    let content = noise(6, 16 * MIB);
    let web = Web::start(content.clone(), 0);
    prepare(&home, &web.spec("raw"), "b");
    web.fail_after(6 << 20, 404);
    let run = home.run(Name::Ferry, "migration execute b");
    assert_eq!(run.code, 5, "{run:?}");
    let status = home.ok("status b");
    assert!(status.contains("state: executing") || status.contains("state: prepared"), "{status}");
    let failed = web.sent_in_all();
    web.recover();
    home.ok("migration execute b");
    home.ok("migration verify b");
    home.ok("migration commit b");
    assert!(bytes(&home, "b") == content);
    // At most all of it, and a byte for each of the three to see that it is the same object.
    let (sent, most) = (web.sent() - failed, content.len() as u64 + 3);
    assert!(
        sent <= most,
        "copied, verified and verified by the commit: {sent} bytes served since, at most {most}"
    );
}

#[test]
fn what_was_copied_is_not_fetched_again_to_be_verified() {
    let home = Home::new();
    let content = noise(10, 20 * MIB);
    let raw = Web::start(content.clone(), 0);
    let (old, now) = qcow2(&home, "disk.qcow2");
    let qcow2 = Web::start(fs::read(home.path("disk.qcow2")).unwrap(), 0);
    // What tells where the data is is read again, twice: the header, and a table or two for each point in time.
    for (web, format, most) in [(&raw, "raw", 4 << 10), (&qcow2, "qcow2", 1 << 20)] {
        prepare(&home, &web.spec(format), format);
        home.ok(&format!("migration execute {format}"));
        let copied = web.sent_in_all();
        let told = home.ok(&format!("migration verify {format}"));
        assert!(told.contains("by digests kept while copying") && !told.contains("both ends"), "{told}");
        home.ok(&format!("migration commit {format}"));
        let sent = web.sent_in_all() - copied;
        assert!(sent <= most, "{format}: {sent} bytes served to verify and commit, at most {most}");
        let (by_digests, by_reading) = receipt(&home);
        assert!(by_digests > 0 && by_reading == 0, "{by_digests} {by_reading}");
        fs::remove_dir_all(home.path("home/receipts")).unwrap();
    }
    assert!(bytes(&home, "raw") == content && bytes(&home, "qcow2") == now);
    assert!(bytes(&home, "qcow2@old") == old);

    // Who does not trust what was read once has it read again.
    prepare(&home, &raw.spec("raw"), "again");
    home.ok("migration execute again");
    let copied = raw.sent_in_all();
    let told = home.ok("migration verify again --reread");
    assert!(told.contains("both ends read"), "{told}");
    assert!(raw.sent_in_all() - copied >= content.len() as u64);
    // And what changed is refused, digests or not.
    raw.change();
    home.fails("migration verify again");
    home.fails("migration commit again");
}

/// Of the one receipt there is: bytes compared with kept digests, and bytes compared by reading both ends.
fn receipt(home: &Home) -> (u64, u64) {
    let found = fs::read_dir(home.path("home/receipts")).unwrap().next().unwrap().unwrap();
    let text = fs::read_to_string(found.path()).unwrap();
    let sum = |key: &str| {
        let key = format!("\"{key}\": ");
        let numbers = text.lines().filter_map(|l| l.trim().strip_prefix(key.as_str()));
        numbers.map(|n| n.trim_end_matches(',').parse::<u64>().unwrap()).sum()
    };
    (sum("compared_with_kept_digests"), sum("compared_by_reading_both_ends"))
}

#[test]
fn e11_a_server_without_the_object_for_some_seconds_is_waited_for() {
    let home = Home::new();
    let content = noise(7, 12 * MIB);
    let web = Web::start(content.clone(), 0);
    prepare(&home, &web.spec("raw"), "b");
    web.fail_after(4 << 20, 404);
    let other = web.clone();
    let waiting = thread::spawn(move || {
        thread::sleep(Duration::from_secs(5));
        other.recover();
    });
    home.ok("migration execute b");
    waiting.join().unwrap();
    home.ok("migration commit b");
    assert!(bytes(&home, "b") == content);
}

#[test]
fn e10_an_object_that_changed_is_refused_and_only_an_abort_is_left() {
    let home = Home::new();
    let web = Web::start(noise(8, 8 * MIB), 0);
    let node = home.serve();
    prepare(&home, &web.spec("raw"), "b");
    let uri = home.ok("export add b");
    let uri = uri.lines().next().unwrap();
    let read = |offset: &str| {
        let mut command = Command::new("qemu-io");
        let read = command.args(["-r", "-f", "raw", "-c", &format!("read {offset} 64k"), uri]);
        read.output().unwrap().status.success()
    };
    assert!(read("0"));
    web.change();
    // Who has it open gets no bytes of another object either.
    assert!(!read("4M"));
    home.ok("export rm rbd/b --force");
    assert_eq!(node.stop(), 0, "{}", home.log());
    let run = home.run(Name::Ferry, "migration execute b");
    assert_ne!(run.code, 0, "{run:?}");
    assert!(
        home.run(Name::Ferry, "export b out").code != 0,
        "bytes of another object are no bytes of this one"
    );
    // Nobody can tell any more what an abort loses; who says that it does not matter is rid of the target.
    let (code, said) = home.fails("migration abort b");
    assert!(code == 16 && said.contains("cannot be compared with its source"), "{said}");
    home.ok("migration abort b --accept-loss");
    assert_eq!(home.ok("ls"), "");
}

/// Files of a directory that hold `needle`.
fn holding(dir: &Path, needle: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            holding(&path, needle, found);
        } else if path.is_file()
            && fs::read(&path).unwrap().windows(needle.len()).any(|w| w == needle.as_bytes())
        {
            found.push(path.display().to_string());
        }
    }
}

#[test]
fn e12_keys_of_an_object_store_are_in_the_file_of_secrets_and_nowhere_else() {
    let home = Home::new();
    let content = noise(9, 9 * MIB);
    let web = Web::start(content.clone(), 0);
    let node = home.serve();
    let url = web.url();
    let keys = r#""access_key":"AKHUNTER2","secret_key":"hunter2hunter2","session_token":"hunter2token","region":"eu-west-1""#;
    let spec = format!(r#"{{"type":"raw","stream":{{"type":"s3","url":"{url}",{keys}}}}}"#);
    // Not in the list of processes, and not where the search below looks.
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), spec).unwrap();
    home.ok(&format!("migration prepare --import-only --source-spec-path {} b", outside.path().display()));
    let found = || {
        let mut found = Vec::new();
        holding(home.dir(), "hunter2", &mut found);
        holding(home.dir(), "HUNTER2", &mut found);
        found.sort();
        found.dedup();
        found
    };
    let secrets = home.path("home/secrets.toml");
    assert_eq!(found(), [secrets.display().to_string()]);
    assert_eq!(fs::metadata(&secrets).unwrap().permissions().mode() & 0o777, 0o600);
    let said = ["status b", "status b --format json", "info b", "image-meta ls b"]
        .map(|line| home.ok(line))
        .concat();
    assert!(!said.to_lowercase().contains("hunter2"), "{said}");
    assert!(said.contains("***") || said.contains("config://"), "{said}");

    // The keys are found again by a node that was started since.
    node.kill();
    let node = home.serve();
    home.ok("migration execute b");
    assert!(!home.log().to_lowercase().contains("hunter2"), "{}", home.log());
    let running = Command::new("ps").args(["-eo", "args"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&running.stdout).contains("hunter2hunter2"));
    home.ok("migration commit b");
    assert!(bytes(&home, "b") == content);
    assert_eq!(found(), Vec::<String>::new(), "the keys go with the import");
    assert_eq!(node.stop(), 0, "{}", home.log());
    assert!(web.requests().iter().all(|r| r.contains("X-Amz-Signature=") && !r.contains("hunter2hunter2")));
}

#[test]
fn a_node_offers_a_foreign_image_to_be_read_only_and_again_after_a_restart() {
    promised("A node offers a foreign image without importing it, read-only.");
    let home = Home::new();
    let (_, now) = qcow2(&home, "disk.qcow2");
    let web = Web::start(fs::read(home.path("disk.qcow2")).unwrap(), 0);
    let url = web.url();
    let node = home.serve();
    let keys = r#""access_key":"AKHUNTER2","secret_key":"hunter2hunter2","region":"eu-west-1""#;
    let spec = format!(r#"{{"type":"qcow2","stream":{{"type":"s3","url":"{url}",{keys}}}}}"#);
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), spec).unwrap();
    let add = format!("export add --source-spec-path {}", outside.path().display());
    assert_eq!(home.fails(&add).0, 22, "it needs a name");
    let told = home.ok(&format!("{add} --name far"));
    let uri = told.lines().next().unwrap().to_owned();
    let is_right = || {
        tool(&home, "nbdcopy", &[&uri, "copied"]);
        assert!(fs::read(home.path("copied")).unwrap() == now);
    };
    is_right();
    assert_eq!(home.fails(&format!("{add} --name far")).0, 17, "the name is taken");
    let refused = Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 4096", &uri]).output().unwrap();
    assert!(!refused.status.success(), "{refused:?}");
    let found = || {
        let mut found = Vec::new();
        holding(home.dir(), "hunter2", &mut found);
        holding(home.dir(), "HUNTER2", &mut found);
        found.dedup();
        found
    };
    let secrets = [home.path("home/secrets.toml").display().to_string()];
    assert_eq!(found(), secrets);
    let listed = home.ok("export ls") + &home.ok("export ls --format json");
    assert!(listed.contains("read-only") && listed.contains(r#""source":""#), "{listed}");
    assert!(!listed.to_lowercase().contains("hunter2"), "{listed}");

    // The next node offers it at once, or as soon as the server is there again.
    assert_eq!(node.stop(), 0, "{}", home.log());
    let node = home.serve();
    is_right();
    node.kill();
    web.fail_after(0, 503);
    let node = home.serve();
    assert_eq!(home.ok("export ls"), "");
    web.recover();
    let began = Instant::now();
    while home.ok("export ls").is_empty() {
        assert!(began.elapsed() < Duration::from_secs(30), "it is not offered again: {}", home.log());
        thread::sleep(Duration::from_millis(50));
    }
    is_right();
    assert_eq!(found(), secrets);

    // Another object is not offered in its place.
    assert_eq!(node.stop(), 0, "{}", home.log());
    web.change();
    let node = home.serve();
    assert_eq!(home.ok("export ls"), "");
    assert!(home.log().contains("has changed since it was offered"), "{}", home.log());
    home.ok("export rm far");
    assert_eq!(home.fails("export rm far").0, 2);
    assert_eq!(found(), Vec::<String>::new(), "the keys go with the export");
    assert_eq!(home.ok("ls"), "");
    assert_eq!(node.stop(), 0, "{}", home.log());
}
