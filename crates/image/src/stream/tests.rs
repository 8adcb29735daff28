use bytes::Bytes;
use ferry_core::Errno;
use proptest::prelude::*;

use super::PIECE_MAX;
use super::diff::{DiffFile, DiffHeader, DiffRecord, DiffVersion, DiffWriter};
use super::image::{ImageStreamHeader, ImageStreamReader, ImageStreamWriter};

/// From `a` to `b`, 9 MiB, one write of three bytes and one zero range: written by hand from the format's description.
const V1: &[u8] = b"rbd diff v1\nf\x01\0\0\0at\x01\0\0\0bs\0\0\x90\0\0\0\0\0\
    w\0\x10\0\0\0\0\0\0\x03\0\0\0\0\0\0\0xyzz\0\x20\0\0\0\0\0\0\0\x10\0\0\0\0\0\0e";

const V2: &[u8] = b"rbd diff v2\nf\x05\0\0\0\0\0\0\0\x01\0\0\0at\x05\0\0\0\0\0\0\0\x01\0\0\0b\
    p\x01\0\0\0\0\0\0\0\x01s\x08\0\0\0\0\0\0\0\0\0\x90\0\0\0\0\0\
    w\x13\0\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\x03\0\0\0\0\0\0\0xyz\
    z\x10\0\0\0\0\0\0\0\0\x20\0\0\0\0\0\0\0\x10\0\0\0\0\0\0e";

fn header(is_protected: bool) -> DiffHeader {
    DiffHeader { from_snap: Some("a".into()), to_snap: Some("b".into()), is_protected, size: Some(9 << 20) }
}

fn records() -> Vec<DiffRecord> {
    vec![
        DiffRecord::Write { offset: 4096, data: Bytes::from_static(b"xyz") },
        DiffRecord::Zero { offset: 8192, length: 4096 },
    ]
}

fn write(version: DiffVersion, header: &DiffHeader, records: &[DiffRecord]) -> Vec<u8> {
    let mut writer = DiffWriter::new(Vec::new(), version, header).unwrap();
    for record in records {
        match record {
            DiffRecord::Write { offset, data } => writer.write(*offset, data).unwrap(),
            DiffRecord::Zero { offset, length } => writer.zero(*offset, *length).unwrap(),
        }
    }
    writer.finish().unwrap()
}

fn read(version: DiffVersion, bytes: &[u8]) -> ferry_core::Result<(DiffHeader, Vec<DiffRecord>)> {
    let mut file = DiffFile::new(bytes);
    let mut reader = file.open(version)?;
    let mut records = Vec::new();
    while let Some(record) = reader.next_record()? {
        records.push(record);
    }
    assert!(reader.next_record()?.is_none(), "the end stays the end");
    Ok((reader.header().clone(), records))
}

#[test]
fn diffs_are_written_as_the_format_says() {
    assert_eq!(write(DiffVersion::V1, &header(false), &records()), V1);
    assert_eq!(write(DiffVersion::V2, &header(true), &records()), V2);
}

#[test]
fn diffs_are_read_as_they_were_written() {
    assert_eq!(read(DiffVersion::V1, V1).unwrap(), (header(false), records()));
    assert_eq!(read(DiffVersion::V2, V2).unwrap(), (header(true), records()));
}

#[test]
fn a_stream_cut_anywhere_is_a_bad_message() {
    for (version, bytes) in [(DiffVersion::V1, V1), (DiffVersion::V2, V2)] {
        for n in 0..bytes.len() {
            assert_eq!(read(version, &bytes[..n]).unwrap_err().errno(), Errno::EBADMSG, "{version:?} {n}");
        }
    }
}

#[test]
fn the_other_version_is_refused() {
    assert_eq!(read(DiffVersion::V1, V2).unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(read(DiffVersion::V2, V1).unwrap_err().errno(), Errno::EINVAL);
}

#[test]
fn v2_passes_over_records_it_does_not_know_and_v1_cannot() {
    let mut v2 = b"rbd diff v2\nQ\x03\0\0\0\0\0\0\0???".to_vec();
    v2.extend_from_slice(&V2[12..]);
    assert_eq!(read(DiffVersion::V2, &v2).unwrap(), (header(true), records()));
    assert_eq!(read(DiffVersion::V1, b"rbd diff v1\nQe").unwrap_err().errno(), Errno::EINVAL);
}

#[test]
fn a_large_record_comes_in_pieces() {
    let data = Bytes::from(vec![7; PIECE_MAX + 5]);
    let bytes = write(DiffVersion::V1, &DiffHeader::default(), &[DiffRecord::Write { offset: 3, data }]);
    let (_, records) = read(DiffVersion::V1, &bytes).unwrap();
    let pieces: Vec<_> = records
        .iter()
        .map(|r| match r {
            DiffRecord::Write { offset, data } => (*offset, data.len()),
            DiffRecord::Zero { .. } => panic!("a write came back as zeros"),
        })
        .collect();
    assert_eq!(pieces, [(3, PIECE_MAX), (3 + PIECE_MAX as u64, 5)]);
}

#[test]
fn lengths_that_lie_are_refused_without_being_believed() {
    let huge = b"rbd diff v1\nw\0\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7fabc";
    assert_eq!(read(DiffVersion::V1, huge).unwrap_err().errno(), Errno::EBADMSG);
    let past_the_end = b"rbd diff v1\nz\x01\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff";
    assert_eq!(read(DiffVersion::V1, past_the_end).unwrap_err().errno(), Errno::EINVAL);
    let name = b"rbd diff v1\nf\xff\xff\xff\xff";
    assert_eq!(read(DiffVersion::V1, name).unwrap_err().errno(), Errno::EINVAL);
    let two_lengths = b"rbd diff v2\nw\x12\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0xyze";
    assert_eq!(read(DiffVersion::V2, two_lengths).unwrap_err().errno(), Errno::EINVAL);
    let late_header = b"rbd diff v1\nz\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0s\0\0\0\0\0\0\0\0e";
    assert_eq!(read(DiffVersion::V1, late_header).unwrap_err().errno(), Errno::EINVAL);
}

fn image_header() -> ImageStreamHeader {
    ImageStreamHeader {
        order: Some(22),
        features: Some(0x3d),
        stripe_unit: Some(4 << 20),
        stripe_count: Some(1),
        metadata: vec![("conf_x".into(), "1".into()), ("k".into(), String::new())],
    }
}

fn image_stream() -> Vec<u8> {
    let mut writer = ImageStreamWriter::new(Vec::new(), &image_header(), 2).unwrap();
    for header in [header(true), DiffHeader { from_snap: Some("b".into()), ..DiffHeader::default() }] {
        let mut diff = writer.diff(&header).unwrap();
        diff.write(5, b"hello").unwrap();
        diff.finish().unwrap();
    }
    writer.finish()
}

fn read_image(bytes: &[u8]) -> ferry_core::Result<(ImageStreamHeader, Vec<DiffHeader>)> {
    let mut reader = ImageStreamReader::new(bytes)?;
    let mut headers = Vec::new();
    while let Some(mut diff) = reader.next_diff()? {
        while diff.next_record()?.is_some() {}
        headers.push(diff.header().clone());
    }
    Ok((reader.header().clone(), headers))
}

#[test]
fn image_streams_are_written_and_read_as_the_format_says() {
    let bytes = image_stream();
    let expected =
        b"rbd image v2\nO\x08\0\0\0\0\0\0\0\x16\0\0\0\0\0\0\0T\x08\0\0\0\0\0\0\0\x3d\0\0\0\0\0\0\0\
        U\x08\0\0\0\0\0\0\0\0\0\x40\0\0\0\0\0C\x08\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\
        M\x0f\0\0\0\0\0\0\0\x06\0\0\0conf_x\x01\0\0\x001M\x09\0\0\0\0\0\0\0\x01\0\0\0k\0\0\0\0\
        Erbd image diffs v2\n\x02\0\0\0\0\0\0\0rbd diff v2\n";
    assert_eq!(bytes[..expected.len()], expected[..]);
    let (header, diffs) = read_image(&bytes).unwrap();
    assert_eq!(header, image_header());
    assert_eq!(diffs.len(), 2);
    for n in 0..bytes.len() {
        assert_eq!(read_image(&bytes[..n]).unwrap_err().errno(), Errno::EBADMSG, "{n}");
    }
}

#[test]
fn image_streams_that_lie_are_refused() {
    let diffs = b"rbd image v2\nErbd image diffs v2\n\xff\xff\xff\xff\xff\xff\xff\xff";
    assert_eq!(read_image(diffs).unwrap_err().errno(), Errno::EINVAL);
    let metadata = b"rbd image v2\nM\xff\xff\xff\xff\xff\xff\xff\xff";
    assert_eq!(read_image(metadata).unwrap_err().errno(), Errno::EINVAL);
    let order = b"rbd image v2\nO\x04\0\0\0\0\0\0\0\x16\0\0\0";
    assert_eq!(read_image(order).unwrap_err().errno(), Errno::EINVAL);
}

proptest! {
    #[test]
    fn random_bytes_behind_a_banner_never_panic(
        version in prop_oneof![Just(DiffVersion::V1), Just(DiffVersion::V2)],
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), prop::sample::select(b"ftpswzeOTUCME".to_vec())], 0..200)
    ) {
        let mut stream = version.banner().as_bytes().to_vec();
        stream.extend_from_slice(&bytes);
        // What can be read at all is written and read again alike.
        if let Ok((header, records)) = read(version, &stream) {
            let again = write(version, &header, &records);
            let (header_again, records_again) = read(version, &again).unwrap();
            prop_assert_eq!(records_again, records);
            prop_assert_eq!(header_again.size, header.size);
        }
        let mut image = b"rbd image v2\n".to_vec();
        image.extend_from_slice(&bytes);
        prop_assert!(read_image(&image).is_err() || image.len() > 40);
    }

    #[test]
    fn a_flipped_byte_never_panics(at in 0_usize..1000, value in any::<u8>()) {
        let mut bytes = image_stream();
        let at = at % bytes.len();
        let changed = bytes[at] != value;
        bytes[at] = value;
        let read = read_image(&bytes);
        prop_assert!(changed || read.is_ok());
    }
}
