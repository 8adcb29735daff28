//! The bytes the class takes.

use super::*;

#[test]
fn unlocking_is_a_frame_of_two_strings() {
    let request = UnlockRequest { name: "rbd_lock".into(), cookie: "auto 1".into() };
    let expected = b"\x01\x01\x16\0\0\0\x08\0\0\0rbd_lock\x06\0\0\0auto 1";
    assert_eq!(unlock_input(&request), &expected[..]);
}

#[test]
fn locking_carries_kind_tag_and_flags() {
    let request = LockRequest {
        name: "l".into(),
        kind: LockKind::Shared,
        cookie: "c".into(),
        tag: "t".into(),
        description: String::new(),
        renew: true,
    };
    let expected = b"\x01\x01\x1d\0\0\0\x01\0\0\0l\x02\x01\0\0\0c\x01\0\0\0t\0\0\0\0\0\0\0\0\0\0\0\0\x01";
    assert_eq!(lock_input(&request), &expected[..]);
}

#[test]
fn breaking_names_the_holder() {
    let request = UnlockRequest { name: "l".into(), cookie: "c".into() };
    let expected = b"\x01\x01\x13\0\0\0\x01\0\0\0l\x08\x02\x01\0\0\0\0\0\0\x01\0\0\0c";
    assert_eq!(break_input(&request, ClientId(0x102)), &expected[..]);
}
