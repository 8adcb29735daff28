//! Tests of the feature rules.

use ferry_core::Errno;

use super::Features;

#[test]
fn the_default_features_have_rbds_value_and_names() {
    assert_eq!(
        Features::DEFAULT.to_string(),
        "layering, exclusive-lock, object-map, fast-diff, deep-flatten"
    );
    assert_eq!(Features::DEFAULT.for_create().unwrap(), Features::DEFAULT);
    let named = Features::NAMED.iter().fold(Features::NONE, |all, (bit, _)| all.with(*bit));
    assert_eq!(named, Features::ALL);
}

#[test]
fn object_map_and_fast_diff_come_together() {
    let parse = |t| Features::parse(t).unwrap().for_create();
    assert_eq!(parse("exclusive-lock,object-map").unwrap(), Features(0x1C));
    assert_eq!(parse("exclusive-lock,fast-diff").unwrap(), Features(0x04));
    assert_eq!(parse("object-map").unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(parse("journaling").unwrap_err().errno(), Errno::EINVAL);
}

#[test]
fn what_no_user_sets_is_refused() {
    for text in ["operations", "migrating", "bogus", "", "4096"] {
        assert_eq!(Features::parse(text).unwrap_err().errno(), Errno::EINVAL, "{text}");
    }
    assert_eq!(Features::parse("61").unwrap(), Features::DEFAULT);
    assert_eq!(Features(1 << 20).for_create().unwrap_err().errno(), Errno::ENOSYS);
    assert_eq!(Features::OPERATIONS.for_create().unwrap_err().errno(), Errno::EINVAL);
}

#[test]
fn unknown_bits_may_be_read_but_not_written() {
    let newer = Features(0x1000).with(Features::DEFAULT);
    newer.check_readable().unwrap();
    assert_eq!(newer.check_writable().unwrap_err().errno(), Errno::ENOSYS);
    assert_eq!(Features::DIRTY_CACHE.check_readable().unwrap_err().errno(), Errno::ENOSYS);
    assert_eq!(Features::NON_PRIMARY.check_writable().unwrap_err().errno(), Errno::EROFS);
    Features::DEFAULT.with(Features::MIGRATING).check_writable().unwrap();
}
