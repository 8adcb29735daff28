use std::os::unix::fs::PermissionsExt;

use ferry_core::ErrorKind;

use super::{Tls, hexadecimal};

const KEY: &str = "000102030405060708090a0b0c0d0e0f";

#[test]
fn a_key_is_read_from_hexadecimal() {
    assert_eq!(hexadecimal("00fFa0").unwrap(), [0, 255, 0xa0]);
    assert_eq!(hexadecimal("0"), None);
    assert_eq!(hexadecimal("0g"), None);
}

#[test]
fn keys_are_lines_of_user_and_key_and_errors_do_not_show_them() {
    assert!(Tls::with_keys(&format!("alice:{KEY}\n\nbob:{KEY}{KEY}\n")).is_ok());
    for wrong in ["", "alice", "alice:0011", &format!(":{KEY}"), &format!("alice:{KEY}0")] {
        let error = Tls::with_keys(wrong).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(!error.chain().contains("0011") && !error.chain().contains(KEY));
    }
}

#[test]
fn keys_that_everybody_may_read_are_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("alice:{KEY}\n")).unwrap();
    let allow = |mode| std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    allow(0o604);
    assert_eq!(Tls::from_key_file(file.path()).unwrap_err().kind(), ErrorKind::Denied);
    allow(0o640);
    assert!(Tls::from_key_file(file.path()).is_ok());
}

#[test]
fn certificates_that_are_none_are_refused() {
    let error = Tls::with_certificates(b"a", b"b", b"c").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}
