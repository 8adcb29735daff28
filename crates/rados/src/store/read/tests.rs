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

#[test]
fn parts_leave_long_holes_out_and_stay_in_the_range() {
    const K: u64 = 1024;
    let range = (100 * K, 1000 << 10);
    let told = [(0, 50 * K), (90 * K, 20 * K), (126 * K, 4 * K), (147 * K, 3 * K), (1000 * K, 900 * K)];
    let expected = [(100 * K, 30 << 10), (147 * K, 3 << 10), (1000 * K, 100 << 10)];
    assert_eq!(parts(&told, range, 16 * K), expected);
    assert_eq!(parts(&[], range, 16 * K), []);
    assert_eq!(parts(&[(0, u64::MAX)], range, 0), [range], "whatever is said");
    let side_by_side = [(200 * K, K), (201 * K, K), (203 * K, K)];
    assert_eq!(parts(&side_by_side, range, 0), [(200 * K, 2 << 10), (203 * K, 1 << 10)]);
}
