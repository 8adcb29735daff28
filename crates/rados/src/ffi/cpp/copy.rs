//! The step that copies an object inside the cluster, which librados' C interface lacks (ADR 0025).
//!
//! A compound is the same thing in both interfaces: in C++ it lies behind the second field of an `ObjectWriteOperation`, in C
//! the handle is its address. That this is so in the library at hand is tried out before it is relied on.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::null;

use libloading::os::unix::Library;

use super::CppString;
use crate::ffi::{CREATE_IDEMPOTENT, rados_ioctx_t, rados_write_op_t, size_t};

#[cfg(test)]
mod tests;

/// `void librados::ObjectWriteOperation::copy_from(const std::string&, const librados::IoCtx&, uint64_t, uint32_t)`.
const COPY_FROM: &[u8] = b"_ZN8librados7v14_2_020ObjectWriteOperation9copy_fromERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEERKNS0_5IoCtxEmj\0";

/// `size_t librados::ObjectOperation::size()`.
const SIZE: &[u8] = b"_ZN8librados7v14_2_015ObjectOperation4sizeEv\0";

/// `librados::ObjectWriteOperation`, for functions that are not virtual.
#[repr(C)]
struct CppOperation {
    _virtual: *const c_void,
    steps: rados_write_op_t,
}

type CopyStep = unsafe extern "C-unwind" fn(
    this: *mut CppOperation,
    source: *const CppString,
    io: *const rados_ioctx_t,
    version: u64,
    advice: u32,
);

type Size = unsafe extern "C-unwind" fn(this: *mut CppOperation) -> size_t;

/// Adds steps that copy objects.
#[derive(Debug)]
pub(crate) struct CopyFrom {
    step: CopyStep,
}

impl CopyFrom {
    /// Finds it in a librados.
    pub(in crate::ffi) fn find(library: &Library) -> Option<Self> {
        if cfg!(not(all(target_os = "linux", target_pointer_width = "64"))) {
            return None;
        }
        // SAFETY: the name says what it takes; `this` has the layout above, as `counts_alike` finds out.
        let step = unsafe { library.get::<CopyStep>(COPY_FROM) }.ok()?;
        // SAFETY: as above.
        let size = unsafe { library.get::<Size>(SIZE) }.ok()?;
        counts_alike(library, *size)?.then_some(Self { step: *step })
    }

    /// Adds the step to a compound: the object is given the bytes that `source` has where `io` reads.
    ///
    /// # Safety
    /// `steps` is an open compound and `io` an open I/O context.
    pub(crate) unsafe fn add(&self, steps: rados_write_op_t, io: rados_ioctx_t, source: &[u8]) {
        let name = CppString { start: source.as_ptr().cast(), length: source.len(), _room: [0; 2] };
        let mut operation = CppOperation { _virtual: null(), steps };
        // SAFETY: the caller's, and the arguments have the layouts that the function's name asks for; it copies all it needs.
        unsafe { (self.step)(&raw mut operation, &raw const name, &raw const io, 0, 0) };
    }
}

/// Whether the C++ interface sees the steps that the C interface put into a compound, one after the other.
fn counts_alike(library: &Library, size: Size) -> Option<bool> {
    type Create = unsafe extern "C" fn() -> rados_write_op_t;
    type Step = unsafe extern "C" fn(rados_write_op_t, c_int, *const c_char);
    type Release = unsafe extern "C" fn(rados_write_op_t);
    // SAFETY: of librados.h.
    let create = unsafe { library.get::<Create>(b"rados_create_write_op\0") }.ok()?;
    // SAFETY: as above.
    let step = unsafe { library.get::<Step>(b"rados_write_op_create\0") }.ok()?;
    // SAFETY: as above.
    let release = unsafe { library.get::<Release>(b"rados_release_write_op\0") }.ok()?;
    // SAFETY: no preconditions.
    let steps = unsafe { create() };
    let mut operation = CppOperation { _virtual: null(), steps };
    let is_alike = (0..3).all(|count| {
        // SAFETY: the compound is open.
        let counted = unsafe { size(&raw mut operation) };
        // SAFETY: as above; the category is unused.
        unsafe { step(steps, CREATE_IDEMPOTENT, null()) };
        counted == count
    });
    // SAFETY: it is not used after.
    unsafe { release(steps) };
    Some(is_alike)
}
