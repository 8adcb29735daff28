//! Extents.

use super::*;

fn found(offset: u64, data: Vec<u8>) -> Vec<(u64, usize)> {
    extents(offset, data).into_iter().map(|(at, bytes)| (at, bytes.len())).collect()
}

#[test]
fn blocks_of_zeros_are_no_extents() {
    let mut data = vec![0; 5 * 4096];
    data[4096] = 1;
    data[3 * 4096 - 1] = 1;
    assert_eq!(found(0, data), [(4096, 2 * 4096)]);
}

#[test]
fn blocks_are_counted_from_the_start_of_the_object() {
    let mut data = vec![0; 3 * 4096];
    data[4096] = 1;
    assert_eq!(found(100, data), [(4096, 4096)]);
}

#[test]
fn a_short_tail_is_an_extent_or_not() {
    let mut data = vec![0; 4096 + 10];
    assert_eq!(found(0, data.clone()), []);
    data[4096 + 9] = 1;
    assert_eq!(found(0, data), [(4096, 10)]);
    assert_eq!(found(7, Vec::new()), []);
}
