//! Settings, secrets, keys of images.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use crate::harness::{Home, Name, promised};

#[test]
fn the_nearest_setting_counts() {
    let home = Home::new();
    home.ok("config global set global rbd_default_order 21");
    home.ok("create a --size 1M");
    home.ok("config pool set rbd rbd_default_order 20");
    home.ok("create b --size 1M");
    home.ok("create c --size 1M --rbd-default-order 19");
    home.ok("create d --size 1M --order 18");
    for (image, order) in [("a", 21), ("b", 20), ("c", 19), ("d", 18)] {
        assert!(home.ok(&format!("info {image}")).contains(&format!("\torder {order} (")), "{image}");
    }
    assert_eq!(
        home.ok("config global ls global"),
        "Name               Value  Section\nrbd_default_order  21     global \n"
    );
    assert!(home.ok("config pool ls rbd").contains("\nrbd_default_order "));
    home.ok("config pool rm rbd rbd_default_order");
    home.ok("config global rm global rbd_default_order");
    assert_eq!(home.ok("config global ls global"), "");
    assert_eq!(
        home.rbd_fails("config global get global rbd_default_order"),
        (2, "rbd: rbd_default_order is not set\n".to_owned())
    );
}

#[test]
fn an_image_has_settings_of_its_own() {
    let home = Home::new();
    home.ok("create a --size 1M");
    home.ok("config image set a rbd_cache false");
    assert_eq!(home.ok("config image get a rbd_cache"), "false\n");
    let list = home.ok("config image ls a");
    assert!(list.starts_with("There are 77 values:\nName "), "{list}");
    let row = list.lines().find(|l| l.starts_with("rbd_cache ")).unwrap();
    assert!(row.contains(" false ") && row.trim_end().ends_with(" image"), "{row}");
    assert_eq!(home.rbd_fails("config image set a bogus 1"), (22, "rbd: not rbd option: bogus\n".to_owned()));
    home.ok("config image rm a rbd_cache");
    assert_eq!(home.rbd_fails("config image get a rbd_cache"), (2, "rbd: rbd_cache is not set\n".to_owned()));
}

#[test]
fn keys_of_an_image_are_kept() {
    let home = Home::new();
    home.ok("create a --size 1M");
    assert_eq!(home.ok("image-meta ls a"), "There are 0 metadata on this image.\n");
    home.ok("image-meta set a k v");
    assert_eq!(home.ok("image-meta ls a"), "There is 1 metadatum on this image:\n\nKey  Value\nk    v    \n");
    home.ok("image-meta set a l w");
    assert!(home.ok("image-meta ls a").starts_with("There are 2 metadata on this image:\n"));
    assert_eq!(home.ok("image-meta ls a --format json").trim_end(), r#"{"k":"v","l":"w"}"#);
    assert_eq!(home.ok("image-meta get a k"), "v\n");
    home.ok("image-meta rm a k");
    assert_eq!(home.rbd_fails("image-meta get a k").0, 2);
}

#[test]
fn a_secret_comes_from_stdin_and_is_kept_from_others() {
    promised(
        "Secrets are kept in a file that only its owner can read, and are never shown but by `config-key get`.",
    );
    let home = Home::new();
    let mut set = home
        .command(Name::Ferry)
        .args(["config-key", "set", "s3/secret"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    set.stdin.take().unwrap().write_all(b"hush\n").unwrap();
    let output = set.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stderr, b"set s3/secret\n");
    assert_eq!(home.ok("config-key get s3/secret"), "hush\n");
    assert_eq!(home.ok("config-key ls"), "s3/secret\n");
    let file = home.path("home/secrets.toml");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(home.run(Name::Ferry, "config-key rm s3/secret").err, "key deleted\n");
    assert_eq!(home.ok("config-key ls"), "");
}
