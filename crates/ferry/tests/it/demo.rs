//! The demo shows what it says.

use std::fs;

use crate::harness::{Home, Name};

#[test]
fn the_demo_moves_an_image_under_its_client_and_leaves_nothing_behind() {
    let home = Home::empty();
    fs::create_dir(home.path("tmp")).unwrap();
    let output = home.command(Name::Ferry).arg("demo").env("TMPDIR", home.path("tmp")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for shown in [
        "export vm goes on with there/vm; its clients waited ",
        "gets SIGKILL at ",
        "snapshot monday: all right",
        "snapshot tuesday: all right",
        "Every byte the client was promised is there.",
    ] {
        assert!(text.contains(shown), "{shown:?} is not in: {text}");
    }
    assert_eq!(fs::read_dir(home.path("tmp")).unwrap().count(), 0);
    assert!(!home.path("home").exists());
}

#[test]
fn the_demo_fails_where_a_byte_of_the_copy_is_wrong() {
    let home = Home::empty();
    fs::create_dir(home.path("tmp")).unwrap();
    let mut demo = home.command(Name::Ferry);
    let demo = demo.arg("demo").env("TMPDIR", home.path("tmp")).env("FERRY_FAULT", "flip-copied-byte");
    let output = demo.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("source and target of there/vm differ"), "{text}");
    assert!(!text.contains("Every byte the client was promised is there."), "{text}");
    assert_eq!(fs::read_dir(home.path("tmp")).unwrap().count(), 0);
}
