//! Encrypted clients, with certificates and with shared keys, made by the tools of GnuTLS.

use std::path::Path;
use std::sync::Arc;

use ferry_serve::nbd::{Demand, Plain, Security, Tls};
use ferry_serve::testing::MemoryDevice;

use crate::world::{World, attempt, promised, run};

const MIB: u64 = 1 << 20;

/// An authority, with a server's and a client's certificate, in a directory of their own.
fn certificates(directory: &Path, authority: &str) {
    std::fs::create_dir_all(directory).unwrap();
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let key = |name: &str| {
        std::fs::write(path(name), run("certtool", &["--generate-privkey", "--rsa", "--bits", "2048"]))
            .unwrap();
    };
    let template = |text: &str| {
        std::fs::write(path("template"), text).unwrap();
        path("template")
    };
    key("ca-key.pem");
    let info = template(&format!("cn = {authority}\nca\ncert_signing_key\nencryption_key\n"));
    let certtool = |arguments: &[&str]| run("certtool", arguments);
    certtool(&[
        "--generate-self-signed",
        "--load-privkey",
        &path("ca-key.pem"),
        "--template",
        &info,
        "--outfile",
        &path("ca-cert.pem"),
    ]);
    for (name, purpose) in [("server", "tls_www_server"), ("client", "tls_www_client")] {
        key(&format!("{name}-key.pem"));
        let info = template(&format!(
            "cn = {name}\nip_address = 127.0.0.1\ndns_name = localhost\n{purpose}\nsigning_key\nencryption_key\n"
        ));
        certtool(&[
            "--generate-certificate",
            "--load-ca-certificate",
            &path("ca-cert.pem"),
            "--load-ca-privkey",
            &path("ca-key.pem"),
            "--load-privkey",
            &path(&format!("{name}-key.pem")),
            "--template",
            &info,
            "--outfile",
            &path(&format!("{name}-cert.pem")),
        ]);
    }
}

/// A world whose only export is also there over TLS; the port.
fn world(tls: Tls, demand: Demand) -> (World, u16) {
    let world = World::new();
    world.add("a", MemoryDevice::new(8 * MIB).filled(3));
    let address = "127.0.0.1:0".parse().unwrap();
    let bound = world.server.listen_tcp(address, Security::Tls(Arc::new(tls), demand)).unwrap();
    (world, bound.port())
}

#[test]
fn certificates_let_in_whom_the_authority_signed_and_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let (good, bad) = (directory.path().join("good"), directory.path().join("bad"));
    certificates(&good, "good");
    certificates(&bad, "bad");
    let (world, port) = world(Tls::from_directory(&good).unwrap(), Demand::Required);
    let uri = |dir: &Path| format!("nbds://127.0.0.1:{port}/a?tls-certificates={}", dir.display());
    let size = run("nbdinfo", &["--size", &uri(&good)]);
    assert_eq!(size.trim(), (8 * MIB).to_string());
    let out = world.file("out");
    run("nbdcopy", &[&uri(&good), out.to_str().unwrap()]);
    assert!(std::fs::read(&out).unwrap() == world.device("a").contents());

    // Signed by another authority, though it believes in ours; and without any certificate.
    std::fs::copy(good.join("ca-cert.pem"), bad.join("ca-cert.pem")).unwrap();
    assert!(!attempt("nbdinfo", &["--size", &uri(&bad)]).status.success());
    for name in ["client-cert.pem", "client-key.pem"] {
        std::fs::remove_file(bad.join(name)).unwrap();
    }
    assert!(!attempt("nbdinfo", &["--size", &uri(&bad)]).status.success());
    // In plain.
    let plain = attempt("nbdinfo", &["--size", &format!("nbd://127.0.0.1:{port}/a")]);
    assert!(String::from_utf8_lossy(&plain.stderr).contains("TLS"), "{plain:?}");
    assert_eq!(run("nbdinfo", &["--size", &uri(&good)]).trim(), (8 * MIB).to_string());
}

#[test]
fn qemu_comes_in_with_a_certificate() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path(), "good");
    let (world, port) = world(Tls::from_directory(directory.path()).unwrap(), Demand::Required);
    let out = world.file("out");
    run(
        "qemu-img",
        &[
            "convert",
            "--object",
            &format!("tls-creds-x509,id=tls,endpoint=client,dir={}", directory.path().display()),
            "--image-opts",
            &format!("driver=nbd,host=127.0.0.1,port={port},export=a,tls-creds=tls"),
            "-O",
            "raw",
            out.to_str().unwrap(),
        ],
    );
    assert!(std::fs::read(&out).unwrap() == world.device("a").contents());
}

#[test]
fn shared_keys_let_in_who_knows_one() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    for user in ["alice", "bob"] {
        run("psktool", &["-u", user, "-p", &file("keys.psk")]);
    }
    run("psktool", &["-u", "alice", "-p", &file("wrong.psk")]);
    run("psktool", &["-u", "mallory", "-p", &file("wrong.psk")]);
    let tls = Tls::from_key_file(Path::new(&file("keys.psk"))).unwrap();
    let (world, port) = world(tls, Demand::Required);
    let uri =
        |user: &str, keys: &str| format!("nbds://{user}@127.0.0.1:{port}/a?tls-psk-file={}", file(keys));
    for user in ["alice", "bob"] {
        assert_eq!(run("nbdinfo", &["--size", &uri(user, "keys.psk")]).trim(), (8 * MIB).to_string());
    }
    for user in ["alice", "mallory"] {
        assert!(!attempt("nbdinfo", &["--size", &uri(user, "wrong.psk")]).status.success(), "{user}");
    }
    // QEMU looks for its keys in a directory.
    let out = world.file("out");
    run(
        "qemu-img",
        &[
            "convert",
            "--object",
            &format!("tls-creds-psk,id=tls,endpoint=client,username=bob,dir={}", directory.path().display()),
            "--image-opts",
            &format!("driver=nbd,host=127.0.0.1,port={port},export=a,tls-creds=tls"),
            "-O",
            "raw",
            out.to_str().unwrap(),
        ],
    );
    assert!(std::fs::read(&out).unwrap() == world.device("a").contents());
}

#[test]
fn where_tls_is_allowed_both_come_in() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys.psk");
    run("psktool", &["-u", "alice", "-p", keys.to_str().unwrap()]);
    let (world, port) = world(Tls::from_key_file(&keys).unwrap(), Demand::Allowed);
    let encrypted = format!("nbds://alice@127.0.0.1:{port}/a?tls-psk-file={}", keys.display());
    let plain = format!("nbd://127.0.0.1:{port}/a");
    assert_eq!(run("nbdinfo", &["--size", &plain]).trim(), (8 * MIB).to_string());
    assert_eq!(run("nbdinfo", &["--size", &encrypted]).trim(), (8 * MIB).to_string());
    drop(world);
}

#[test]
fn a_network_sees_no_plain_server_unless_told() {
    promised("TCP without TLS is listened for on loopback only, unless told otherwise.");
    let world = World::new();
    let everywhere = "0.0.0.0:0".parse().unwrap();
    let refused = world.server.listen_tcp(everywhere, Security::Plain).unwrap_err();
    assert_eq!(refused.errno().0, 13);
    let tls = || Arc::new(Tls::with_keys("alice:000102030405060708090a0b0c0d0e0f").unwrap());
    assert!(world.server.listen_tcp(everywhere, Security::Tls(tls(), Demand::Allowed)).is_err());
    // What others on the network would reach is not opened here, so loopback stands for it where it is allowed.
    world.server.listen_tcp("127.0.0.1:0".parse().unwrap(), Security::Plain).unwrap();
    assert_eq!(ferry_serve::nbd::Options::default().plain, Plain::Loopback);
}
