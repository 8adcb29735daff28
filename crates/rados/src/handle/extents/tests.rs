//! When holes are looked for.

use super::*;

#[test]
fn objects_without_holes_are_looked_at_less_and_less_and_one_with_holes_changes_that() {
    let streak = Streak::default();
    let looks = |n: usize| (0..n).filter(|_| streak.wants_look()).count();
    assert_eq!(looks(FULL_STREAK), FULL_STREAK);
    assert_eq!(looks(10 * FULL_STREAK), 10);
    streak.note(900, 1000);
    assert_eq!(looks(10 * FULL_STREAK), 10, "a tenth of holes is none");
    streak.note(100, 1000);
    assert_eq!(looks(FULL_STREAK), FULL_STREAK);
}

#[test]
fn no_more_threads_wait_than_allowed() {
    let waiting: Vec<_> = std::iter::from_fn(Waiting::begin).collect();
    assert_eq!(waiting.len(), EXTENT_THREADS_MAX);
    drop(waiting);
    assert!(Waiting::begin().is_some());
}
