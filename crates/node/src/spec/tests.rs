use super::{SnapInput, SnapPresence, Validation, Wanted, resolve_pool};

/// Reads one word under `wanted` and prints what it means.
fn read(word: &str, wanted: Wanted) -> Result<String, String> {
    SnapInput::default()
        .resolve(|| Some(word.to_owned()), "rbd", wanted)
        .map(|s| s.to_string())
        .map_err(|e| e.to_string())
}

#[test]
fn a_spec_has_up_to_four_parts() {
    let wanted = Wanted::source(SnapPresence::Permitted);
    for (word, meaning) in [
        ("a", "rbd/a"),
        ("p/a", "p/a"),
        ("p/n/a", "p/n/a"),
        ("p/n/a@s", "p/n/a@s"),
        ("a@s", "rbd/a@s"),
        ("a@b@c", "rbd/a@b@c"),
        ("a/b/c/d", "a/b/c/d"),
        ("p@x/a", "p@x/a"),
        ("/a", "rbd//a"),
    ] {
        assert_eq!(read(word, wanted).as_deref(), Ok(meaning), "{word}");
    }
}

#[test]
fn names_being_made_hold_no_slash_and_no_at() {
    for word in ["pool/", "a/b/c/d", "a@", "@s", "p/n/", "p@x/a"] {
        assert_eq!(read(word, Wanted::target()), Err(format!("invalid spec '{word}'")), "{word}");
    }
    let snap = Wanted::source(SnapPresence::Required).read(Validation::Snap);
    assert_eq!(read("a@s@t", snap), Err("invalid spec 'a@s@t'".to_owned()));
    assert_eq!(read("a@s", snap).as_deref(), Ok("rbd/a@s"));
}

#[test]
fn what_is_missing_or_too_much_is_said_in_the_words_of_rbd() {
    let none = Wanted::source(SnapPresence::None);
    assert_eq!(read("", none), Err("image name was not specified".to_owned()));
    assert_eq!(
        read("a@s", none),
        Err("snapshot name specified for a command that doesn't use it".to_owned())
    );
    assert_eq!(
        read("a", Wanted::source(SnapPresence::Required)),
        Err("snapshot name was not specified".to_owned())
    );
    assert_eq!(read("", Wanted::target()), Err("destination image name was not specified".to_owned()));
}

#[test]
fn options_and_words_complete_each_other() {
    let input = SnapInput {
        pool: Some("p".to_owned()),
        namespace: Some("n".to_owned()),
        snap: Some("s".to_owned()),
        image: None,
    };
    let wanted = Wanted::source(SnapPresence::Permitted);
    let spec = input.clone().resolve(|| Some("a".to_owned()), "rbd", wanted).unwrap();
    assert_eq!(spec.to_string(), "p/n/a@s");
    let spec = input.resolve(|| Some("q/b@t".to_owned()), "rbd", wanted).unwrap();
    assert_eq!(spec.to_string(), "q/n/b@t");
    let whole = SnapInput { image: Some("q/b@t".to_owned()), ..SnapInput::default() };
    let spec = whole.resolve(|| panic!("the word belongs to the next argument"), "rbd", wanted).unwrap();
    assert_eq!(spec.to_string(), "q/b@t");
}

#[test]
fn a_pool_spec_has_a_pool_and_perhaps_a_namespace() {
    let read = |word| resolve_pool(word, None, None, "rbd").map(|p| p.to_string()).map_err(|e| e.to_string());
    assert_eq!(read(None).as_deref(), Ok("rbd"));
    assert_eq!(read(Some("p/n")).as_deref(), Ok("p/n"));
    assert_eq!(read(Some("p/n@x")), Err("invalid namespace 'n@x'".to_owned()));
    let mixed = resolve_pool(Some("p"), None, Some("n"), "rbd").unwrap();
    assert_eq!(mixed.to_string(), "p/n");
}
