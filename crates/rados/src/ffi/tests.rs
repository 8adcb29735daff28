//! What is said where librados is missing.

use ferry_core::ErrorKind;

use super::*;

#[test]
fn a_missing_library_is_unsupported_and_named() {
    let error = open("librados-of-another-world.so.9").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.chain().contains("librados-of-another-world.so.9"), "{}", error.chain());
    assert!(error.clause().contains("librados2"), "it names the package");
}

#[test]
fn a_library_without_the_functions_is_unsupported_and_names_one() {
    let error = open("libc.so.6").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.fact("function"), Some("rados_version"));
}
