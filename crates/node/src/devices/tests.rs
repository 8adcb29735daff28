//! Tests of whether a process stays for mappings.

use std::thread;
use std::time::Duration;

use super::Devices;

#[test]
fn others_wait_until_it_is_known_whether_the_process_stays() {
    let dir = tempfile::tempdir().unwrap();
    let devices = Devices::new(dir.path().to_path_buf());
    assert!(devices.begin().is_none(), "nobody keeps the process");
    for is_kept in [false, true] {
        assert!(devices.hold() && !devices.hold());
        thread::scope(|scope| {
            let other = scope.spawn(|| devices.begin());
            thread::sleep(Duration::from_millis(30));
            assert!(!other.is_finished());
            devices.begun(is_kept);
            assert_eq!(other.join().unwrap().is_some(), is_kept);
        });
    }
}

#[test]
fn a_process_ends_when_nothing_is_mapped_and_takes_nothing_then() {
    let dir = tempfile::tempdir().unwrap();
    let devices = Devices::new(dir.path().to_path_buf());
    devices.hold();
    devices.begun(true);
    let coming = devices.begin().unwrap();
    assert!(!devices.close_if_unused());
    drop(coming);
    assert!(devices.close_if_unused());
    assert!(devices.begin().is_none() && !devices.hold());
}
