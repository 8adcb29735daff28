//! What is made of a library that has the names.

use std::cell::Cell;
use std::mem::{offset_of, size_of};

use super::*;

thread_local! {
    static COUNTED: Cell<size_t> = const { Cell::new(0) };
}

#[test]
fn a_compound_lies_behind_the_second_field() {
    assert_eq!((size_of::<CppOperation>(), offset_of!(CppOperation, steps)), (16, 8));
}

#[test]
fn the_installed_librados_counts_the_steps_of_both_interfaces_alike() {
    // SAFETY: loading it runs what Ceph's authors meant to run.
    let Ok(library) = (unsafe { Library::new("librados.so.2") }) else {
        panic!("librados is installed with the cluster of the tests");
    };
    assert!(CopyFrom::find(&library).is_some());
    // One that counts something else is not trusted.
    unsafe extern "C-unwind" fn other(_: *mut CppOperation) -> size_t {
        COUNTED.set(COUNTED.get() + 2);
        COUNTED.get()
    }
    assert_eq!(counts_alike(&library, other), Some(false));
}

#[test]
fn a_library_without_the_names_copies_nothing() {
    // SAFETY: it is loaded already.
    let library = unsafe { Library::new("libc.so.6") }.expect("the C library is there");
    assert!(CopyFrom::find(&library).is_none());
}
