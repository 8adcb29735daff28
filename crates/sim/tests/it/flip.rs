//! Flipped bits are detected, every kind of block.

use ferry_sim::flip::{Outcome, closed, reused, stopped};

#[test]
fn a_flipped_bit_is_detected_and_never_read_as_data() {
    let mut outcome = Outcome::default();
    for seed in 0..40 {
        closed(seed, 250, &mut outcome).unwrap();
    }
    println!("{outcome:?}");
    assert_eq!(outcome.reached.len(), 6, "{outcome:?}");
    assert!(outcome.reached.values().sum::<u64>() >= 10_000, "{outcome:?}");
}

#[test]
fn a_flipped_bit_in_the_tail_costs_nothing_that_was_known_durable() {
    let mut outcome = Outcome::default();
    for seed in 0..40 {
        stopped(seed, 50, &mut outcome).unwrap();
    }
    println!("{outcome:?}");
    assert!(outcome.tail_refused > 0, "{outcome:?}");
}

#[test]
fn a_flipped_bit_where_segments_were_used_again_costs_nothing_that_was_known_durable() {
    let mut outcome = Outcome::default();
    let stores = (120..180).filter(|seed| reused(*seed, &mut outcome).unwrap()).count();
    println!("{stores} stores, {outcome:?}");
    assert!(stores >= 30 && outcome.tail_refused > 0, "{stores} stores, {outcome:?}");
}
