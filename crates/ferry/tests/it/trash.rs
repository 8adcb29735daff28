//! The trash.

use crate::harness::Home;

#[test]
fn an_image_comes_back_from_the_trash() {
    let home = Home::new();
    home.sparse_file("disk", 4 << 20, &[(1 << 20, b"kept")]);
    home.ok("import disk a");
    home.ok("trash mv a");
    assert_eq!(home.ok("ls"), "");
    let list = home.ok("trash ls");
    let (id, name) = list.trim_end().split_once(' ').unwrap();
    assert_eq!(name, "a");
    assert_eq!(home.ok("trash ls --format json").trim_end(), format!(r#"[{{"id":"{id}","name":"a"}}]"#));
    let long = home.ok("trash ls -l");
    assert!(
        long.starts_with("ID ") && long.contains("  USER    ") && long.contains("  expired at "),
        "{long}"
    );
    home.ok(&format!("trash restore {id} --image b"));
    assert_eq!((home.ok("ls"), home.ok("trash ls")), ("b\n".to_owned(), String::new()));
    home.ok("export b out");
    assert_eq!(std::fs::read(home.path("out")).unwrap(), std::fs::read(home.path("disk")).unwrap());
}

#[test]
fn an_image_is_safe_until_its_time() {
    let home = Home::new();
    home.ok("create a --size 1");
    home.ok("create b --size 1");
    home.ok("trash mv a --expires-at tomorrow");
    home.ok("trash mv b");
    let long = home.ok("trash ls -l");
    assert!(long.contains("protected until "), "{long}");
    home.ok("trash purge");
    let list = home.ok("trash ls");
    let (id, name) = list.trim_end().split_once(' ').unwrap();
    assert_eq!(name, "a");
    assert_eq!(
        home.rbd_fails(&format!("trash rm {id}")),
        (
            1,
            "\nDeferment time has not expired, please use --force if you really want to remove the image\n"
                .to_owned()
        )
    );
    home.ok(&format!("trash rm {id} --force"));
    assert_eq!(home.ok("trash ls"), "");
}

#[test]
fn what_cannot_be_done_is_said_in_the_words_of_rbd() {
    let home = Home::new();
    home.ok("create a --size 1");
    assert_eq!(
        home.rbd_fails("trash mv a --expires-at nonsense"),
        (22, "rbd: error calling /bin/date: (22) Invalid argument\n".to_owned())
    );
    assert_eq!(
        home.rbd_fails("trash mv a --expires-at yesterday"),
        (22, "rbd: cannot use a date in the past as an expiration date\n".to_owned())
    );
    assert_eq!(
        home.rbd_fails("trash restore 123"),
        (2, "rbd: error: image does not exist in trash\n".to_owned())
    );
    assert_eq!(home.ok("ls"), "a\n");
}
