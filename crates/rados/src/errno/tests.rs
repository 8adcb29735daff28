//! Numbers and their kinds.

use super::*;

#[test]
fn guards_that_fail_are_conflicts_with_their_own_number() {
    for number in [34, 75, 125] {
        let e = error(-number, "x");
        assert_eq!((e.kind(), e.errno()), (ErrorKind::Conflict, Errno(number)));
    }
}

#[test]
fn a_blocklisted_client_is_fenced() {
    assert_eq!(error(-108, "x").kind(), ErrorKind::Fenced);
}

#[test]
fn unknown_numbers_are_kept() {
    let e = error(-4095, "x");
    assert_eq!((e.kind(), e.errno()), (ErrorKind::Io, Errno(4095)));
    assert_eq!(error(i32::MIN, "x").kind(), ErrorKind::Io);
}

#[test]
fn counts_pass() {
    assert_eq!(check(7, "x").unwrap(), 7);
    assert_eq!(check(-2, "x").unwrap_err().kind(), ErrorKind::NotFound);
}
