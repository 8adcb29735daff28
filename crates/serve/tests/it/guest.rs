//! The tests of devices once more, in a machine whose kernel has an NBD client: many kernels have none.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The script that runs a program in such a machine.
fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guest/run-tests.sh")
}

#[test]
fn the_kernels_nbd_client_passes_the_tests_of_devices() {
    let program = std::env::current_exe().unwrap();
    // Where its kernel is kept for a build directory.
    let cache = program.ancestors().nth(2).unwrap().join("guest");
    let output = Command::new(script())
        .arg(cache)
        .arg(&program)
        .args(["kernel::", "--test-threads=1", "--nocapture"])
        .env("FERRY_TEST_KERNEL_NBD", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let all = || format!("{}\n{said}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}", all());
    assert!(!said.contains("SKIPPED "), "{}", all());
    assert!(said.contains("test result: ok. 9 passed;"), "{}", all());
}
