use super::{Command, Request, put_chunk, put_simple};

#[test]
fn a_request_is_read_as_the_protocol_lays_it_out() {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
    bytes[5] = 1;
    bytes[7] = 6;
    bytes[8..16].copy_from_slice(b"cookie!!");
    bytes[22] = 0x10;
    bytes[27] = 9;
    let request = Request::parse(&bytes).unwrap();
    assert_eq!((request.flags, request.command), (1, Command::WriteZeroes));
    assert_eq!(request.cookie.to_be_bytes(), *b"cookie!!");
    assert_eq!((request.offset, request.length), (0x1000, 9));
    bytes[3] = 0;
    assert_eq!(Request::parse(&bytes), None);
}

#[test]
fn the_end_of_a_request_does_not_wrap_around() {
    let request = Request { flags: 0, command: Command::Read, cookie: 0, offset: u64::MAX - 1, length: 2 };
    assert_eq!(request.end(), None);
}

#[test]
fn replies_are_laid_out_as_the_protocol_says() {
    let mut out = Vec::new();
    put_simple(&mut out, 7, Some(super::WireError::NoSpace));
    assert_eq!(out, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 7]);
    out.clear();
    put_chunk(&mut out, super::chunk::OFFSET_DATA, super::chunk::DONE, 7, 9);
    assert_eq!(out, [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 9]);
}
