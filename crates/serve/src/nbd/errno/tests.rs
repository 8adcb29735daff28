use ferry_core::{Errno, Error, ErrorKind};

use super::wire_error;

#[test]
fn failures_keep_their_meaning_on_the_wire() {
    let number = |kind| wire_error(&Error::new(kind, "")).number();
    assert_eq!(number(ErrorKind::ReadOnly), 1);
    assert_eq!(number(ErrorKind::Corrupt), 5);
    assert_eq!(number(ErrorKind::Invalid), 22);
    assert_eq!(number(ErrorKind::NoSpace), 28);
    assert_eq!(number(ErrorKind::Unsupported), 95);
    assert_eq!(number(ErrorKind::Fenced), 108);
    let memory = Error::new(ErrorKind::Internal, "").errno_is(Errno::ENOMEM);
    assert_eq!(wire_error(&memory).number(), 12);
}
