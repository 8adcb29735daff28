//! Images over NBD, seen by the clients people use.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::harness::{Home, Name, Run, noise, promised};

/// A process that offers one image.
pub(crate) struct Offer {
    child: Child,
    pub(crate) uri: String,
}

impl Offer {
    pub(crate) fn start(home: &Home, words: &str) -> Self {
        let words = ["nbd", "--socket", "n.sock"].into_iter().chain(words.split_whitespace());
        Self::start_with(home, &words.collect::<Vec<_>>(), "nbd+unix:///")
    }

    fn start_with(home: &Home, words: &[&str], scheme: &str) -> Self {
        let mut child = home.command(Name::Ferry).args(words).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let uri = lines.next().unwrap().unwrap();
        assert!(uri.starts_with(scheme), "{uri}");
        assert!(lines.next().unwrap().unwrap().contains(&format!("file={uri},format=raw")));
        Self { child, uri }
    }

    pub(crate) fn stop(mut self) -> i32 {
        Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs a client; it must succeed.
fn client(dir: &Path, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(dir).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {out}{err}");
    out
}

/// What `nbdinfo` says of a context, `offset length value` by line.
pub(crate) fn map_of(home: &Home, uri: &str, context: &str) -> Vec<(u64, u64, u64)> {
    let map = client(home.dir(), "nbdinfo", &["--json", &format!("--map={context}"), uri]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let number = |part: &serde_json::Value, name: &str| part[name].as_u64().unwrap();
    let parts = map.as_array().unwrap().iter();
    parts.map(|p| (number(p, "offset"), number(p, "length"), number(p, "type"))).collect()
}

#[test]
fn a_client_hears_what_changed_since_a_snapshot() {
    promised("names every byte that changed since");
    let home = Home::new();
    fs::write(home.path("disk"), noise(1, 8 << 20)).unwrap();
    home.ok("import disk a");
    home.ok("snap create a@first");
    let offer = Offer::start(&home, "a");
    let write = |line: &str| client(home.dir(), "qemu-io", &["-f", "raw", "-c", line, &offer.uri]);
    write("write -P 7 1M 4k");
    home.ok("snap create a@second");
    write("discard 5M 64k");
    let listed = client(home.dir(), "nbdinfo", &["--json", &offer.uri]);
    for context in ["base:allocation", "ferry:changed-since:first", "ferry:changed-since:second"] {
        assert!(listed.contains(context), "{listed}");
    }
    let changed = |snapshot: &str| -> Vec<(u64, u64)> {
        let map = map_of(&home, &offer.uri, &format!("ferry:changed-since:{snapshot}"));
        assert_eq!(map.iter().map(|(_, length, _)| length).sum::<u64>(), 8 << 20, "{map:?}");
        map.into_iter().filter(|(_, _, flags)| *flags == 1).map(|(at, length, _)| (at, length)).collect()
    };
    assert_eq!(changed("first"), [(1 << 20, 4096), (5 << 20, 64 << 10)]);
    assert_eq!(changed("second"), [(5 << 20, 64 << 10)]);
    assert_eq!(offer.stop(), 0);
}

#[test]
fn one_image_is_offered_until_interrupted() {
    let home = Home::new();
    let data = noise(1, 3_000_000);
    fs::write(home.path("disk"), &data).unwrap();
    home.ok("import disk a");
    home.ok("snap create a@before");
    let offer = Offer::start(&home, "a");
    client(home.dir(), "qemu-img", &["compare", "-f", "raw", "-F", "raw", "disk", &offer.uri]);
    client(home.dir(), "qemu-io", &["-f", "raw", "-c", "write -P 5 4096 65536", "-c", "flush", &offer.uri]);
    client(home.dir(), "nbdcopy", &[&offer.uri, "copied"]);
    let mut expected = data.clone();
    expected[4096..4096 + 65536].fill(5);
    assert_eq!(&fs::read(home.path("copied")).unwrap()[..data.len()], expected);
    // Everything else works beside it.
    assert!(home.ok("status a").contains("watcher="));
    home.ok("snap create a@after");
    home.ok("export a@before out");
    assert_eq!(fs::read(home.path("out")).unwrap()[..data.len()], data);
    client(home.dir(), "qemu-io", &["-f", "raw", "-c", "read -P 5 4096 65536", &offer.uri]);
    let socket = home.path("n.sock");
    assert!(socket.exists());
    assert_eq!(offer.stop(), 0);
    assert!(!socket.exists());
    assert_eq!(home.ok("status a"), "Watchers: none\n");
    home.ok("export a out2");
    assert_eq!(fs::read(home.path("out2")).unwrap()[..data.len()], expected);
    home.check();
}

#[test]
fn a_snapshot_is_offered_to_be_read() {
    let home = Home::new();
    home.ok("create a --size 1M");
    home.ok("snap create a@s");
    let offer = Offer::start(&home, "a@s --name old");
    let info = client(home.dir(), "nbdinfo", &[&offer.uri]);
    assert!(info.contains("is_read_only: true") && info.contains("export=\"old\""), "{info}");
    let refused =
        Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 4096", &offer.uri]).output().unwrap();
    assert!(!refused.status.success());
}

#[test]
fn an_export_is_named_apart_from_the_user_of_a_cluster() {
    let home = Home::new();
    home.ok("create a --size 1M");
    let offer = Offer::start(&home, "a --export-name vm");
    let info = client(home.dir(), "nbdinfo", &[&offer.uri]);
    assert!(info.contains("export=\"vm\""), "{info}");
    assert_eq!(offer.stop(), 0);
    let (code, err) = home.fails("nbd a --name b --export-name c --socket n.sock");
    assert!(code == 22 && err.contains("given twice"), "{err}");
    // With a cluster, a name is the user's.
    let (code, err) = home.fails("-c ceph.conf nbd a --name vm --socket n.sock");
    assert!(code == 22 && err.contains("--export-name"), "{err}");
    let (code, err) = home.fails("-c ceph.conf export add a --name client.a --export-name vm");
    assert!(code != 22, "both may be given: {err}");
    let (_, err) = home.fails("-c ceph.conf ls --name vm");
    assert!(err.contains("client.NAME") && !err.contains("--export-name"), "{err}");
}

#[test]
fn what_cannot_be_offered_is_said() {
    let home = Home::new();
    home.ok("create a --size 1M");
    assert_eq!(home.fails("nbd a").0, 22);
    assert_eq!(home.fails("nbd b --socket n.sock").0, 2);
    assert!(!home.path("n.sock").exists());
    let (code, err) = home.fails("nbd a --listen 0.0.0.0:0");
    assert_eq!(code, 13, "{err}");
    let offer = Offer::start(&home, "a");
    let (code, err) = home.fails("nbd a --socket n.sock");
    assert_eq!(code, 16, "{err}");
    assert_eq!(offer.stop(), 0);
}

#[test]
fn a_node_offers_images_again_when_it_is_started_again() {
    promised("What a node offers over NBD it offers again when it is started again.");
    let home = Home::new();
    home.ok("create a --size 1M");
    assert_eq!(home.fails("export add a").0, 2);
    let node = home.serve();
    let told = home.ok("export add a --name vm1");
    let uri = told.lines().next().unwrap().to_owned();
    assert_eq!(uri, format!("nbd+unix:///vm1?socket={}", home.path("home/nbd.sock").display()));
    assert_eq!(home.fails("export add a --name vm1").0, 17);
    home.ok("export add a --name ro --read-only");
    client(home.dir(), "qemu-io", &["-f", "raw", "-c", "write -P 9 0 8192", "-c", "flush", &uri]);
    let listed = home.ok("export ls");
    assert!(listed.contains("vm1   rbd/a  1 MiB  read-write"), "{listed}");
    node.kill();
    let node = home.serve();
    client(home.dir(), "qemu-io", &["-f", "raw", "-c", "read -P 9 0 8192", &uri]);
    home.ok("export rm ro");
    assert_eq!(home.fails("export rm ro").0, 2);
    assert_eq!(node.stop(), 0, "{}", home.log());
    let _node = home.serve();
    assert_eq!(home.ok("export ls").lines().count(), 2);
}

#[test]
fn an_export_in_use_is_not_removed_unless_forced() {
    let home = Home::new();
    home.ok("create a --size 1M");
    let _node = home.serve();
    let told = home.ok("export add a");
    let uri = told.lines().next().unwrap();
    let mut client = Command::new("qemu-io").args(["-f", "raw", uri]).stdin(Stdio::piped()).spawn().unwrap();
    let attached = || home.ok("export ls --format json").contains("\"peer\"");
    while !attached() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let Run { code, err, .. } = home.run(Name::Ferry, "export rm rbd/a");
    assert!(code == 16 && err.contains("--force"), "{err}");
    home.ok("export rm rbd/a --force");
    assert_eq!(home.ok("export ls"), "");
    drop(client.stdin.take());
    client.wait().unwrap();
    assert_eq!(home.ok("status a"), "Watchers: none\n");
}

#[test]
fn tcp_clients_speak_tls_where_keys_are_given() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    home.ok("create a --size 1M");
    let keys = home.path("keys.psk");
    fs::write(&keys, "alice:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n").unwrap();
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).unwrap();
    let offer = Offer::start_with(
        &home,
        &["nbd", "a", "--listen", "127.0.0.1:0", "--tls-psk", "keys.psk"],
        "nbds://",
    );
    let with_key =
        offer.uri.replace("nbds://", "nbds://alice@") + &format!("?tls-psk-file={}", keys.display());
    let info = client(home.dir(), "nbdinfo", &[&with_key]);
    assert!(info.contains("with TLS") && info.contains("export-size: 1048576"), "{info}");
    let plain = offer.uri.replace("nbds://", "nbd://");
    let refused = Command::new("nbdinfo").arg(&plain).output().unwrap();
    assert!(!refused.status.success(), "{refused:?}");
    assert_eq!(offer.stop(), 0);
}

#[test]
fn a_foreign_image_is_offered_without_being_imported() {
    let home = Home::new();
    fs::write(home.path("disk"), noise(7, 3 << 20)).unwrap();
    client(home.dir(), "qemu-img", &["convert", "-c", "-O", "qcow2", "disk", "c.qcow2"]);
    let spec = r#"{"type":"qcow2","stream":{"type":"file","file_path":"c.qcow2"}}"#;
    let offer = Offer::start(&home, &format!("--source-spec {spec}"));
    client(home.dir(), "qemu-img", &["compare", "-f", "raw", "-F", "raw", "disk", &offer.uri]);
    let write =
        Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 4096", &offer.uri]).output().unwrap();
    assert!(!write.status.success(), "{write:?}");
    assert_eq!(offer.stop(), 0);
    assert_eq!(home.ok("ls"), "");
}

#[test]
fn the_target_of_an_import_is_used_while_it_is_copied() {
    let home = Home::new();
    let mut disk = noise(8, 24 << 20);
    fs::write(home.path("disk"), &disk).unwrap();
    let spec = format!(
        r#"{{"type":"raw","stream":{{"type":"file","file_path":"{}"}}}}"#,
        home.path("disk").display()
    );
    let node = home.serve();
    home.ok(&format!("migration prepare --import-only --source-spec {spec} a"));
    home.ok("export add a --name a");
    let uri = format!("nbd+unix:///a?socket={}", home.path("home/nbd.sock").display());
    client(home.dir(), "qemu-img", &["compare", "-f", "raw", "-F", "raw", "disk", &uri]);
    client(home.dir(), "qemu-io", &["-f", "raw", "-c", "write -P 9 5M 100k", "-c", "flush", &uri]);
    disk[5 << 20..(5 << 20) + (100 << 10)].fill(9);
    assert_eq!(home.fails("migration abort --accept-loss a").0, 16, "it is in use");
    home.ok("migration execute a");
    client(home.dir(), "qemu-io", &["-f", "raw", "-c", "write -P 8 6M 100k", "-c", "flush", &uri]);
    disk[6 << 20..(6 << 20) + (100 << 10)].fill(8);
    home.ok("migration commit a");
    client(home.dir(), "nbdcopy", &[&uri, "copied"]);
    assert!(fs::read(home.path("copied")).unwrap() == disk);
    home.ok("export rm a");
    node.kill();
    home.ok("export a out");
    assert!(fs::read(home.path("out")).unwrap() == disk);
    home.check();
}
