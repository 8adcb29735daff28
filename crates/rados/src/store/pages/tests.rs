//! Cursors and prefixes with NULs in them.

use ferry_core::ErrorKind;

use super::*;

fn entries(keys: &[&'static [u8]]) -> Vec<(Bytes, Bytes)> {
    keys.iter().map(|k| (Bytes::from_static(k), Bytes::new())).collect()
}

fn page(after: &'static [u8], prefix: &'static [u8], max: usize) -> Page {
    let (after, prefix) = (Bytes::from_static(after), Bytes::from_static(prefix));
    Page::new(OmapRead::Page { after, prefix, max })
}

#[test]
fn a_cursor_is_told_up_to_its_first_nul() {
    let asked = page(b"a\0b", b"", 2);
    let OmapStep::Page { after, max, .. } = asked.step() else { panic!("a page") };
    assert_eq!((after.as_bytes(), max), (&b"a"[..], OMAP_SKIP_MAX));
    let came = entries(&[b"a\0a", b"a\0b", b"a\0c", b"b", b"c"]);
    let picked = asked.pick(came, false).unwrap();
    assert_eq!(picked, OmapPage { entries: entries(&[b"a\0c", b"b"]), more: true });
}

#[test]
fn a_prefix_is_told_up_to_its_first_nul() {
    let asked = page(b"", b"a\0b", 10);
    let came = entries(&[b"a\0a", b"a\0b1", b"a\0b2", b"a\0c"]);
    let picked = asked.pick(came, true).unwrap();
    assert_eq!(picked, OmapPage { entries: entries(&[b"a\0b1", b"a\0b2"]), more: false });
}

#[test]
fn a_cursor_that_cannot_be_passed_is_refused() {
    let error = page(b"a\0z", b"", 10).pick(entries(&[b"a\0a", b"a\0b"]), true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn plain_pages_pass_as_they_came() {
    let asked = page(b"a", b"b", 2);
    let OmapStep::Page { max, .. } = asked.step() else { panic!("a page") };
    assert_eq!(max, 2);
    let came = entries(&[b"b1", b"b2"]);
    assert_eq!(asked.pick(came.clone(), true).unwrap(), OmapPage { entries: came, more: true });
}
