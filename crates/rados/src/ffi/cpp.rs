//! Two functions of librados' C++ interface, for what its C interface lacks: where an object has data (ADR 0024), and [copying](copy) one
//! inside the cluster (ADR 0025).
//!
//! A function's name holds the types of its arguments, and librados' own version of its classes; a librados in which any of
//! them is another does not have the name. The layouts are those of libstdc++ on 64-bit systems: part of its ABI, which has
//! kept them since 2015 (`std::string`) and 2004 (`std::map`).

use std::ffi::{c_char, c_int, c_void};
use std::ptr::null_mut;

use libloading::os::unix::Library;

use super::{rados_ioctx_t, size_t};

pub(crate) mod copy;
#[cfg(test)]
mod tests;

/// `int librados::IoCtx::mapext(const std::string&, uint64_t, size_t, std::map<uint64_t, uint64_t>&)`.
const MAPEXT: &[u8] = b"_ZN8librados7v14_2_05IoCtx6mapextERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEEmmRSt3mapImmSt4lessImESaISt4pairIKmmEEE\0";

/// `operator delete(void*)`.
const DELETE: &[u8] = b"_ZdlPv\0";

/// `std::string`, to be read only: its characters stay ours.
#[repr(C)]
struct CppString {
    start: *const c_char,
    length: size_t,
    /// Short texts are kept here, or the capacity.
    _room: [u64; 2],
}

/// `std::_Rb_tree_node_base`.
#[repr(C)]
struct Node {
    color: c_int,
    parent: *mut Node,
    left: *mut Node,
    right: *mut Node,
}

/// `std::_Rb_tree_node<std::pair<const uint64_t, uint64_t>>`.
#[repr(C)]
struct Entry {
    node: Node,
    key: u64,
    value: u64,
}

/// `std::map<uint64_t, uint64_t>`. Its nodes refer to its header, so it stays where it was made.
#[repr(C)]
struct CppMap {
    /// An object without fields, and padding.
    _compare: u64,
    /// The root's parent; left and right are the first node and the last.
    header: Node,
    count: size_t,
}

type Mapext = unsafe extern "C-unwind" fn(
    this: *const rados_ioctx_t,
    object: *const CppString,
    offset: u64,
    length: size_t,
    extents: *mut CppMap,
) -> c_int;

/// Tells where objects have data.
#[derive(Debug)]
pub(crate) struct MapExtents {
    mapext: Mapext,
    delete: unsafe extern "C" fn(*mut c_void),
}

impl MapExtents {
    /// Finds it in a librados.
    pub(super) fn find(library: &Library) -> Option<Self> {
        if cfg!(not(all(target_os = "linux", target_pointer_width = "64"))) {
            return None;
        }
        // SAFETY: the name says what it takes; `this` holds nothing but the context's pointer.
        let mapext = unsafe { library.get::<Mapext>(MAPEXT) }.ok()?;
        // SAFETY: of the libstdc++ that librados itself was loaded with.
        let delete = unsafe { library.get::<unsafe extern "C" fn(*mut c_void)>(DELETE) }.ok()?;
        Some(Self { mapext: *mapext, delete: *delete })
    }

    /// The parts of a range of an object that have data, `(offset, length)` in ascending order, or a negative errno. Waits on
    /// the calling thread.
    ///
    /// # Safety
    /// `io` is an open I/O context.
    pub(crate) unsafe fn ask(
        &self,
        io: rados_ioctx_t,
        object: &[u8],
        (offset, length): (u64, usize),
    ) -> Result<Vec<(u64, u64)>, c_int> {
        let name = CppString { start: object.as_ptr().cast(), length: object.len(), _room: [0; 2] };
        let header = Node { color: 0, parent: null_mut(), left: null_mut(), right: null_mut() };
        let mut map = CppMap { _compare: 0, header, count: 0 };
        // An empty one begins and ends with its header.
        let end = &raw mut map.header;
        (map.header.left, map.header.right) = (end, end);
        // SAFETY: the caller's, and the arguments have the layouts that the function's name asks for; it copies the text.
        let result = unsafe { (self.mapext)(&raw const io, &raw const name, offset, length, &raw mut map) };
        // SAFETY: it was made by libstdc++'s code, and is not used after.
        let found = unsafe { take(&map, self.delete) };
        if result < 0 { Err(result) } else { Ok(found) }
    }
}

/// Takes a map's entries, and frees them.
///
/// # Safety
/// The map's nodes are whole, `delete` frees them, and nobody uses them after.
unsafe fn take(map: &CppMap, delete: unsafe extern "C" fn(*mut c_void)) -> Vec<(u64, u64)> {
    let mut found = Vec::with_capacity(map.count);
    let mut open: Vec<*mut Node> = Vec::new();
    let mut at = map.header.parent;
    while !at.is_null() || !open.is_empty() {
        while !at.is_null() {
            open.push(at);
            // SAFETY: the caller's.
            at = unsafe { (*at).left };
        }
        let Some(node) = open.pop() else { break };
        // SAFETY: all nodes but the header are entries.
        let entry = unsafe { &*node.cast::<Entry>() };
        found.push((entry.key, entry.value));
        // SAFETY: the caller's; what is left of it and it itself are not looked at again.
        at = unsafe { (*node).right };
        // SAFETY: as above.
        unsafe { delete(node.cast()) };
    }
    found
}
