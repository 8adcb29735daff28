//! Maps as libstdc++ has them in memory.

use std::cell::Cell;
use std::mem::{offset_of, size_of};

use super::*;

thread_local! {
    static FREED: Cell<usize> = const { Cell::new(0) };
}

unsafe extern "C" fn free(node: *mut c_void) {
    FREED.set(FREED.get() + 1);
    // SAFETY: `entry` made it.
    drop(unsafe { Box::from_raw(node.cast::<Entry>()) });
}

fn entry(key: u64, left: *mut Node, right: *mut Node) -> *mut Node {
    let node = Node { color: 0, parent: null_mut(), left, right };
    Box::into_raw(Box::new(Entry { node, key, value: key * 10 })).cast()
}

fn taken(root: *mut Node) -> (Vec<(u64, u64)>, usize) {
    let header = Node { color: 0, parent: root, left: null_mut(), right: null_mut() };
    let map = CppMap { _compare: 0, header, count: 0 };
    FREED.set(0);
    // SAFETY: the tree is whole, and `free` frees what `entry` made.
    (unsafe { take(&map, free) }, FREED.get())
}

#[test]
fn layouts_are_those_of_libstdcxx() {
    assert_eq!((size_of::<CppString>(), size_of::<CppMap>(), size_of::<Entry>()), (32, 48, 48));
    assert_eq!((offset_of!(CppMap, header), offset_of!(CppMap, count), offset_of!(Entry, key)), (8, 40, 32));
    assert_eq!((offset_of!(Node, parent), offset_of!(Node, left), offset_of!(Node, right)), (8, 16, 24));
}

#[test]
fn entries_come_in_order_and_each_node_is_freed() {
    assert_eq!(taken(null_mut()), (Vec::new(), 0));
    let lower = entry(2, entry(1, null_mut(), null_mut()), entry(3, null_mut(), null_mut()));
    let upper = entry(6, entry(5, null_mut(), null_mut()), null_mut());
    let all = [1, 2, 3, 4, 5, 6].map(|key| (key, key * 10));
    assert_eq!(taken(entry(4, lower, upper)), (all.to_vec(), 6));
    let line = entry(1, null_mut(), entry(2, null_mut(), entry(3, null_mut(), null_mut())));
    assert_eq!(taken(line), (vec![(1, 10), (2, 20), (3, 30)], 3));
}
