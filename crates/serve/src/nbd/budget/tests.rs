use std::sync::Arc;

use super::Budget;

#[test]
fn whoever_keeps_its_part_leaves_something_for_the_next() {
    let budget = Arc::new(Budget::new(1 << 20));
    let mut kept = Vec::new();
    let mut last = usize::MAX;
    for _ in 0..20 {
        let lease = budget.take(1, 1 << 20).unwrap();
        assert!(lease.bytes() <= last);
        last = lease.bytes();
        kept.push(lease);
    }
    assert_eq!(budget.held(), kept.iter().map(super::Lease::bytes).sum::<usize>());
    assert!(budget.held() < 1 << 20);
    drop(kept);
    assert_eq!(budget.held(), 0);
}

#[test]
fn less_than_the_least_is_nothing() {
    let budget = Arc::new(Budget::new(800));
    assert!(budget.take(101, 200).is_none());
    // A part of what was asked for is a power of two.
    assert!(budget.take(65, 200).is_none());
    assert_eq!(budget.take(64, 200).unwrap().bytes(), 64);
    assert_eq!(budget.take(1, 20).unwrap().bytes(), 20);
}
