//! Imports: `migration prepare --import-only`. A test named `eNN_…` proves that row of the list of what `rbd` lacks
//! (`docs/migration.md`).

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::harness::{Home, Name, noise, promised};

const MIB: u64 = 1 << 20;

/// A home with pools `rbd` and `fast` in one store and `far` in another, and a sparse file `disk`.
fn with_disk() -> Home {
    let home = Home::new();
    home.ok("pool create fast");
    home.ok("pool create far --path elsewhere");
    home.sparse_file(
        "disk",
        24 * MIB,
        &[(0, b"first"), (9 * MIB, &noise(3, 300_000)), (20 * MIB, b"last"), (24 * MIB - 3, b"end")],
    );
    home
}

/// The spec of a raw image in a file.
fn raw(home: &Home, name: &str) -> String {
    let path = home.path(name);
    format!(r#"{{"stream":{{"file_path":"{}","type":"file"}},"type":"raw"}}"#, path.display())
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

/// What must not change of a file that is imported from.
fn standing(path: &Path) -> (Vec<u8>, i64, i64) {
    let metadata = fs::metadata(path).unwrap();
    (fs::read(path).unwrap(), metadata.mtime(), metadata.mtime_nsec())
}

/// Bytes that an image takes.
fn used(home: &Home, image: &str) -> u64 {
    let text = home.ok(&format!("du --exact {image} --format json"));
    let key = "\"used_size\":";
    let at = text.find(key).unwrap_or_else(|| panic!("{text}")) + key.len();
    text[at..].chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

#[test]
fn a_file_becomes_an_image_that_is_used_at_once() {
    promised("its bytes and its time of change are the same after execute, commit and abort.");
    let home = with_disk();
    let (spec, before) = (raw(&home, "disk"), standing(&home.path("disk")));
    let run = home.run(Name::Rbd, &format!("migration prepare --import-only --source-spec {spec} fast/b"));
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (0, "", ""));
    let id = home.ok("info fast/b");
    let id = id.lines().find_map(|l| l.trim().strip_prefix("id: ")).unwrap().to_owned();
    let status = home.ok("status fast/b");
    let wanted = format!(
        "Watchers: none\nMigration:\n\tsource: {spec}\n\tdestination: fast/b ({id})\n\tstate: prepared\n"
    );
    assert_eq!(status, wanted);
    let json = home.ok("status fast/b --format json");
    assert!(json.contains(&format!("\"source_spec\":\"{}\"", spec.replace('"', "\\\""))), "{json}");
    assert!(bytes(&home, "fast/b") == before.0);

    home.ok("snap create fast/b@old");
    home.ok("clone fast/b@old fast/c --rbd-default-clone-format 2");
    home.ok("bench fast/b --io-type write --io-size 4096 --io-total 64K --io-pattern seq");
    home.ok("resize fast/b --size 32M");
    let now = bytes(&home, "fast/b");
    let differing = |block: &(&[u8], &[u8])| block.0 != block.1;
    let changed = now.chunks(4096).zip(before.0.chunks(4096)).filter(differing).count();
    assert!(now.len() == 32 << 20 && (1..=16).contains(&changed), "{changed} blocks");
    assert!(bytes(&home, "fast/b@old") == before.0 && bytes(&home, "fast/c") == before.0);
    assert!(home.ok("diff fast/b --from-snap old").contains("data"));

    home.ok("migration execute fast/b");
    assert!(home.ok("status fast/b").ends_with("\tstate: executed\n"));
    home.ok("migration verify fast/b");
    home.ok("migration commit fast/b --force");
    assert!(!home.ok("info fast/b").contains("migrating"));
    assert!(standing(&home.path("disk")) == before, "the source is as it was");
    fs::remove_file(home.path("disk")).unwrap();
    assert!(bytes(&home, "fast/b") == now);
    assert!(bytes(&home, "fast/b@old") == before.0 && bytes(&home, "fast/c") == before.0);
    assert_eq!(home.rbd_fails("migration commit fast/b").0, 22);
    let receipts: Vec<_> = fs::read_dir(home.path("home/receipts")).unwrap().collect();
    assert_eq!(receipts.len(), 1);
    home.check();
}

#[test]
fn snapshots_in_a_spec_become_snapshots_of_the_image() {
    let home = with_disk();
    home.sparse_file("older", 16 * MIB, &[(0, b"older"), (9 * MIB, &noise(3, 300_000))]);
    let stream = |name: &str| format!(r#"{{"file_path":"{name}","type":"file"}}"#);
    let spec = format!(
        r#"{{"type":"raw","stream":{},"snapshots":[{{"type":"raw","name":"one","stream":{}}},{{"type":"raw","name":"two","stream":{}}}]}}"#,
        stream("disk"),
        stream("older"),
        stream("disk")
    );
    fs::write(home.path("spec.json"), spec).unwrap();
    home.ok("migration prepare --import-only --source-spec-path spec.json b");
    let check = |home: &Home| {
        let listed = home.ok("snap ls b");
        assert!(listed.contains("one   16 MiB") && listed.contains("two   24 MiB"), "{listed}");
        assert!(bytes(home, "b@one") == fs::read(home.path("older")).unwrap());
        assert!(bytes(home, "b@two") == fs::read(home.path("disk")).unwrap());
        assert!(bytes(home, "b") == fs::read(home.path("disk")).unwrap());
    };
    check(&home);
    home.ok("bench b --io-type write --io-size 4096 --io-total 4096 --io-pattern seq");
    home.ok("snap rollback b@two");
    check(&home);
    home.ok("migration execute b");
    check(&home);
    home.ok("migration commit b");
    check(&home);
}

#[test]
fn an_abort_takes_the_target_away_and_says_first_what_is_lost() {
    let home = with_disk();
    let (spec, before) = (raw(&home, "disk"), standing(&home.path("disk")));
    prepare(&home, &spec, "b");
    home.ok("migration execute b");
    home.ok("migration abort b");
    assert_eq!(home.ok("ls"), "");
    assert_eq!(home.ok("trash ls --all"), "");

    prepare(&home, &spec, "b");
    home.ok("bench b --io-type write --io-size 4096 --io-total 4096 --io-pattern seq");
    home.ok("snap create b@mine");
    let (code, err) = home.fails("migration abort b");
    assert_eq!(code, 16);
    assert!(err.contains("snapshot mine was taken since") && err.contains("written to"), "{err}");
    assert!(home.ok("ls").contains('b'));
    home.ok("migration abort --accept-loss b");

    prepare(&home, &spec, "b");
    home.ok("bench b --io-type write --io-size 4096 --io-total 4096 --io-pattern seq");
    assert_eq!(home.run(Name::Rbd, "migration abort b").code, 0, "rbd loses all by design");
    assert_eq!(home.ok("ls"), "");
    assert_eq!(home.rbd_fails("migration abort b").0, 2);
    assert!(standing(&home.path("disk")) == before, "the source is as it was");
    home.check();
}

#[test]
fn what_is_wrong_with_a_command_is_told_as_rbd_tells_it() {
    let home = with_disk();
    let spec = raw(&home, "disk");
    let both = format!("--source-spec {spec} --source-spec-path x");
    for (arguments, code, line) in [
        (format!("--import-only {both} b"), 22, "rbd: cannot specify both source-spec and source-spec-path"),
        ("--import-only --source-spec-path /nonexistent b".to_owned(), 2, "rbd: error opening /nonexistent"),
        (format!("--import-only --source-spec {spec}"), 22, "rbd: image name was not specified"),
        (
            format!("--source-spec {spec} b"),
            22,
            "rbd: --import-only must be used in combination with source-spec/source-spec-path",
        ),
        ("--import-only rbd/a b".to_owned(), 22, "rbd: snapshot name was not specified"),
    ] {
        let (got, err) = home.rbd_fails(&format!("migration prepare {arguments}"));
        assert_eq!((got, err), (code, format!("{line}\n")), "{arguments}");
    }
    for (spec, code, line) in [
        ("nonsense", 74, "invalid source-spec JSON"),
        (r#"{"stream":{}}"#, 22, "failed to locate format type value"),
        (r#"{"type":"tar"}"#, 38, "unknown or unsupported format type 'tar'"),
        (r#"{"type":"raw"}"#, 22, "failed to locate stream object"),
        (r#"{"type":"raw","stream":{"type":"ftp"}}"#, 38, "unknown or unsupported stream type 'ftp'"),
        (r#"{"type":"raw","stream":{"type":"file"}}"#, 22, "failed to locate 'file_path' key"),
        (r#"{"type":"native","pool_name":"none","image_name":"a","snap_name":"s"}"#, 2, "invalid pool name"),
    ] {
        let (got, err) = home.rbd_fails(&format!("migration prepare --import-only --source-spec {spec} b"));
        let errno = err.lines().next_back().unwrap_or_default().to_owned();
        assert_eq!(got, code, "{spec}: {err}");
        assert_eq!(err.lines().next().unwrap_or_default(), format!("librbd: {line}"), "{spec}");
        assert!(errno.starts_with(&format!("rbd: preparing import migration failed: ({code})")), "{errno}");
    }
    home.ok("create taken --size 1M");
    let run = format!("migration prepare --import-only --source-spec {spec} taken");
    assert_eq!(home.rbd_fails(&run).0, 17);
    assert_eq!(home.ok("ls"), "taken\n");
    assert_eq!(home.ok("trash ls --all"), "");
}

#[test]
fn the_same_prepare_again_is_done_already() {
    let home = with_disk();
    let spec = raw(&home, "disk");
    prepare(&home, &spec, "b");
    prepare(&home, &spec, "b");
    let run = home.run(Name::Rbd, &format!("migration prepare --import-only --source-spec {spec} b"));
    assert_eq!(run.code, 17, "{run:?}");
    assert!(bytes(&home, "b") == fs::read(home.path("disk")).unwrap());
}

#[test]
fn e10_a_file_that_changed_or_was_cut_is_an_error_and_never_zeros() {
    promised("A source of an import whose bytes changed is an error, never data.");
    let home = with_disk();
    let node = home.serve();
    prepare(&home, &raw(&home, "disk"), "b");
    let uri = home.ok("export add b");
    let uri = uri.lines().next().unwrap();
    let read = || {
        let mut command = Command::new("qemu-io");
        let read = command.args(["-r", "-f", "raw", "-c", "read 20M 64k", uri]).output().unwrap();
        read.status.success()
    };
    assert!(read());
    let file = fs::OpenOptions::new().write(true).open(home.path("disk")).unwrap();
    file.set_len(10 * MIB).unwrap();
    // Who has it open gets no zeros either.
    assert!(!read());
    home.ok("export rm rbd/b --force");
    assert_eq!(node.stop(), 0, "{}", home.log());
    let (code, err) = home.fails("export b out");
    assert_ne!(code, 0);
    assert!(err.contains("changed"), "{err}");
    assert_ne!(home.fails("migration execute b").0, 0);
    let state = home.ok("status b");
    assert!(!state.contains("state: executed"), "{state}");
    assert_eq!(home.fails("migration commit b").0, 22);
    home.ok("migration abort --accept-loss b");
    assert_eq!(home.ok("ls"), "");
}

#[test]
fn e14_zeros_and_holes_take_no_space() {
    let home = with_disk();
    // 8 MiB of zeros that are written, not holes.
    let file = fs::File::create(home.path("zeros")).unwrap();
    file.set_len(64 * MIB).unwrap();
    file.write_all_at(&vec![0; 8 << 20], 16 * MIB).unwrap();
    file.write_all_at(&noise(5, 65536), 40 * MIB).unwrap();
    prepare(&home, &raw(&home, "zeros"), "b");
    home.ok("migration execute b");
    home.ok("migration commit b");
    let taken = used(&home, "b");
    assert!((65536..=70_000).contains(&taken), "{taken} bytes for 64 KiB of data");
    assert!(bytes(&home, "b") == fs::read(home.path("zeros")).unwrap());
}

#[test]
fn e15_a_snapshot_that_is_imported_cannot_vanish() {
    promised("A snapshot that an import reads is not removed before the import is committed or aborted.");
    let home = with_disk();
    home.ok("import disk a");
    home.ok("snap create a@s1");
    home.ok("bench a --io-type write --io-size 4096 --io-total 64K --io-pattern seq");
    home.ok("snap create a@s2");
    home.ok("snap create a@s3");
    let (s1, s2) = (bytes(&home, "a@s1"), bytes(&home, "a@s2"));
    for target in ["fast/b", "far/b"] {
        home.ok(&format!("migration prepare --import-only a@s2 {target}"));
        home.ok("bench a --io-type write --io-size 4096 --io-total 1M --io-pattern seq");
        let check = || {
            assert!(bytes(&home, target) == s2, "{target}");
            assert!(bytes(&home, &format!("{target}@s1")) == s1, "{target}@s1");
            let listed = home.ok(&format!("snap ls {target}"));
            assert!(listed.contains("s2") && !listed.contains("s3"), "{listed}");
        };
        check();
        for snap in ["s1", "s2"] {
            let (code, err) = home.fails(&format!("snap rm a@{snap}"));
            assert_eq!(code, 16, "{err}");
            assert!(err.contains("being imported") && err.contains("ferry migration commit"), "{err}");
        }
        assert_eq!(home.fails("snap purge a").0, 16);
        assert_eq!(home.fails("rm a").0, 39);
        assert_eq!(home.fails("migration prepare a fast/moved").0, 16);
        home.ok("trash mv a");
        let id = home.ok("trash ls").split_whitespace().next().unwrap().to_owned();
        assert_eq!(home.fails(&format!("trash rm {id}")).0, 39);
        assert_eq!(home.fails("trash purge").0, 39);
        check();
        home.ok(&format!("trash restore {id}"));
        home.ok(&format!("migration execute {target}"));
        check();
        home.ok(&format!("migration commit {target}"));
        check();
        home.ok("snap create a@free");
        home.ok("snap rm a@free");
    }
    home.ok("migration prepare --import-only a@s2 fast/c");
    home.ok("migration abort fast/c");
    home.ok("snap purge a");
    home.ok("rm a");
    assert!(bytes(&home, "fast/b") == s2 && bytes(&home, "far/b@s1") == s1);
    home.check();
}

#[test]
fn e15_a_spec_of_an_image_of_another_cluster_never_means_one_of_this_home() {
    let home = with_disk();
    home.ok("import disk a");
    home.ok("snap create a@s1");
    let with = |more: &str| {
        format!(r#"{{"type":"native","pool_name":"rbd","image_name":"a","snap_name":"s1"{more}}}"#)
    };
    let run = format!("migration prepare --import-only --source-spec {} b", with(r#","cluster_name":"x""#));
    assert_ne!(home.rbd_fails(&run).0, 0);
    assert!(!home.ok("ls").contains('b'));
    prepare(&home, &with(""), "b");
    assert!(home.ok("status b").contains("source: {\"image_name\":\"a\",\"pool_name\":\"rbd\""));
    home.ok("migration execute b");
    home.ok("migration commit b");
    home.ok("snap rm a@s1");
}

#[test]
fn no_data_moves_inside_a_store() {
    let home = with_disk();
    home.sparse_file("big", 256 * MIB, &[(0, &noise(9, 64 << 20))]);
    home.ok("import big a");
    home.ok("snap create a@s");
    let size = || {
        let out = Command::new("du").args(["-s", "-B1"]).arg(home.path("home/store")).output().unwrap();
        String::from_utf8(out.stdout).unwrap().split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    // A node makes a segment ahead once nobody has written for a moment.
    let mut before = size();
    loop {
        thread::sleep(Duration::from_secs(1));
        let now = size();
        if std::mem::replace(&mut before, now) == now {
            break;
        }
    }
    home.ok("migration prepare --import-only a@s fast/b");
    home.ok("migration execute fast/b");
    home.ok("migration commit fast/b");
    assert!(size() < before + (40 << 20), "{before} became {}", size());
    assert!(bytes(&home, "fast/b") == fs::read(home.path("big")).unwrap());
}

#[test]
fn secrets_of_a_spec_are_kept_in_one_file_only() {
    let home = with_disk();
    let server = Server::start(&home);
    let url = format!("http://user:hunter2@127.0.0.1:{}/disk?signature=hunter2", server.port);
    let spec = format!(r#"{{"type":"raw","stream":{{"type":"http","url":"{url}"}}}}"#);
    prepare(&home, &spec, "b");
    let status = home.ok("status b") + &home.ok("status b --format json");
    assert!(status.contains("source: ") && !status.contains("hunter2"), "{status}");
    assert!(bytes(&home, "b") == fs::read(home.path("disk")).unwrap());
    let found =
        Command::new("grep").args(["-rlE", "hunter2|dXNlcjpodW50ZXIy"]).arg(home.path("home")).output();
    let found = String::from_utf8(found.unwrap().stdout).unwrap();
    let secrets = home.path("home/secrets.toml");
    assert_eq!(found.trim(), secrets.display().to_string());
    assert_eq!(fs::metadata(&secrets).unwrap().permissions().mode() & 0o777, 0o600);
    home.ok("migration execute b");
    home.ok("migration commit b");
    assert!(!fs::read_to_string(&secrets).unwrap().contains("hunter2"), "they go with the import");
    assert!(bytes(&home, "b") == fs::read(home.path("disk")).unwrap());
}

#[test]
fn a_qcow2_file_comes_with_its_snapshots() {
    let home = with_disk();
    let run = |words: &[&str]| {
        let done = Command::new(words[0]).args(&words[1..]).current_dir(home.dir()).output().unwrap();
        assert!(done.status.success(), "{words:?}: {done:?}");
    };
    run(&["qemu-img", "convert", "-c", "-O", "qcow2", "disk", "a.qcow2"]);
    run(&["qemu-img", "snapshot", "-c", "one", "a.qcow2"]);
    run(&["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 100k", "a.qcow2"]);
    run(&["qemu-img", "snapshot", "-c", "two", "a.qcow2"]);
    prepare(&home, r#"{"type":"qcow2","stream":{"type":"file","file_path":"a.qcow2"}}"#, "b");
    assert!(home.ok("status b").contains("\"type\":\"qcow2\""));
    assert!(bytes(&home, "b@one") == fs::read(home.path("disk")).unwrap());
    run(&["qemu-img", "convert", "-O", "raw", "a.qcow2", "a.raw"]);
    assert!(bytes(&home, "b") == fs::read(home.path("a.raw")).unwrap());
    home.ok("migration execute b");
    home.ok("migration commit b");
    assert!(bytes(&home, "b@one") == fs::read(home.path("disk")).unwrap());
    assert!(bytes(&home, "b@two") == fs::read(home.path("a.raw")).unwrap());
    assert!(bytes(&home, "b") == fs::read(home.path("a.raw")).unwrap());
}

#[test]
fn import_takes_any_format_with_its_snapshots() {
    let home = with_disk();
    let run = |words: &[&str]| {
        let done = Command::new(words[0]).args(&words[1..]).current_dir(home.dir()).output().unwrap();
        assert!(done.status.success(), "{words:?}: {done:?}");
    };
    run(&["qemu-img", "convert", "-c", "-O", "qcow2", "disk", "a.qcow2"]);
    run(&["qemu-img", "snapshot", "-c", "one", "a.qcow2"]);
    home.ok("import --source-format qcow2 a.qcow2 b");
    assert!(bytes(&home, "b") == fs::read(home.path("disk")).unwrap());
    assert!(bytes(&home, "b@one") == fs::read(home.path("disk")).unwrap());
    assert!(!home.ok("info b").contains("migrating"));
    assert!(used(&home, "b") < 6 << 20, "objects count up to their last byte, holes do not");
    home.ok(&format!("import --source-spec {} c", raw(&home, "disk")));
    assert!(bytes(&home, "c") == fs::read(home.path("disk")).unwrap());
    home.ok("import --source-format raw disk");
    assert!(bytes(&home, "disk") == fs::read(home.path("disk")).unwrap());
    assert_eq!(home.fails("import --source-format qcow2 a.qcow2 b").0, 17);
    assert_ne!(home.fails("import --source-format qcow2 disk d").0, 0);
    // Damaged in the middle: nothing is left of the image.
    let file = fs::OpenOptions::new().write(true).open(home.path("a.qcow2")).unwrap();
    file.set_len(fs::metadata(home.path("a.qcow2")).unwrap().len() / 3).unwrap();
    assert_ne!(home.fails("import --source-format qcow2 a.qcow2 d").0, 0);
    assert_eq!(home.ok("ls"), "b\nc\ndisk\n");
    assert_eq!(home.ok("trash ls --all"), "");
    home.check();
}

#[test]
fn the_program_may_die_at_any_moment_of_an_import() {
    let home = with_disk();
    let spec = raw(&home, "disk");
    let disk = fs::read(home.path("disk")).unwrap();
    for round in 0..12_u64 {
        for line in [
            format!("migration prepare --import-only --source-spec {spec} b"),
            "migration execute b".to_owned(),
        ] {
            let mut command = home.command(Name::Ferry);
            command.args(line.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            thread::sleep(Duration::from_millis(3 + round * 5));
            Command::new("kill").args(["-KILL", &child.id().to_string()]).status().unwrap();
            child.wait().unwrap();
            let again = home.run(Name::Ferry, &line);
            assert!(again.code == 0 || again.err.contains("'executed'"), "{line}: {again:?}");
            assert!(bytes(&home, "b") == disk, "round {round}");
        }
        let end = if round % 2 == 0 { "migration commit b" } else { "migration abort b" };
        home.ok(end);
        if round % 2 == 0 {
            assert!(bytes(&home, "b") == disk, "round {round}");
            home.ok("rm b");
        }
        assert_eq!(home.ok("ls") + &home.ok("trash ls --all"), "");
    }
    home.check();
}

/// Python's file server, with ranges: `nbdkit` and others are not at hand everywhere.
struct Server {
    child: std::process::Child,
    port: u16,
}

impl Server {
    fn start(home: &Home) -> Self {
        use std::io::BufRead;
        let script = r#"
import http.server, os, re, sys
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def do_HEAD(self): self.answer(False)
    def do_GET(self): self.answer(True)
    def answer(self, body):
        path = os.path.join(".", self.path.split("?")[0].strip("/"))
        if self.headers.get("Authorization") != "Basic dXNlcjpodW50ZXIy" or "signature=hunter2" not in self.path:
            self.send_response(403); self.send_header("Content-Length", "0"); self.end_headers(); return
        data = open(path, "rb").read()
        m = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if m:
            a = int(m[1]); b = int(m[2]) if m[2] else len(data) - 1; b = min(b, len(data) - 1)
            self.send_response(206); self.send_header("Content-Range", f"bytes {a}-{b}/{len(data)}")
            part = data[a:b + 1]
        else:
            self.send_response(200); part = data
        self.send_header("ETag", '"x"'); self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part))); self.end_headers()
        if body: self.wfile.write(part)
s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), H)
print(s.server_port, flush=True)
s.serve_forever()
"#;
        let mut child = Command::new("python3")
            .args(["-c", script])
            .current_dir(home.dir())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        Self { child, port: line.trim().parse().unwrap() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn e26_specs_that_crash_rbd_are_refused() {
    let home = with_disk();
    let stream = r#"{"file_path":"disk","type":"file"}"#;
    let snap = format!(r#"{{"type":"raw","name":"one","stream":{stream}}}"#);
    let native = |rest: &str| format!(r#"{{"type":"native","pool_name":"rbd",{rest},"snap_name":"s1"}}"#);
    for (spec, wanted, text) in [
        (
            format!(r#"{{"type":"raw","stream":{stream},"snapshots":[{snap},{snap}]}}"#),
            22,
            "two snapshots have the same name",
        ),
        (native(r#""image_name":"nosuch""#), 2, "no such image"),
        (native(r#""pool_namespace":"nosuch","image_name":"a""#), 2, "no such namespace"),
    ] {
        let (code, err) = home.fails(&format!("migration prepare --import-only --source-spec {spec} b"));
        assert!(code == wanted && err.contains(text), "{spec}: {code} {err}");
        assert_eq!((home.ok("ls"), home.ok("trash ls --all")), (String::new(), String::new()), "{spec}");
    }
}
