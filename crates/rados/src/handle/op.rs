//! Compound operations on one object.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use ferry_core::{Error, Result, SnapId};

use super::completion::{Outcome, submit};
use super::{IoCtx, c_string, copied};
use crate::errno::check;
use crate::ffi::{
    Api, CMPXATTR_OP_EQ, CREATE_EXCLUSIVE, CREATE_IDEMPOTENT, load, rados_read_op_t, rados_write_op_t,
};

/// A compound write being put together. librados copies what it is given.
#[derive(Debug)]
pub(crate) struct Write {
    api: &'static Api,
    raw: rados_write_op_t,
}

/// Start of some bytes, for C.
fn start(bytes: &[u8]) -> *const c_char {
    bytes.as_ptr().cast()
}

impl Write {
    /// An operation that does nothing yet.
    pub(crate) fn new() -> Result<Self> {
        let api = load()?;
        // SAFETY: no preconditions.
        let raw = unsafe { (api.rados_create_write_op)() };
        Ok(Self { api, raw })
    }

    /// Refuses where the object does not exist.
    pub(crate) fn assert_exists(&self) {
        // SAFETY: the handle is open.
        unsafe { (self.api.rados_write_op_assert_exists)(self.raw) };
    }

    /// Refuses another version.
    pub(crate) fn assert_version(&self, version: u64) {
        // SAFETY: the handle is open.
        unsafe { (self.api.rados_write_op_assert_version)(self.raw, version) };
    }

    /// Refuses another xattr.
    pub(crate) fn compare_xattr(&self, name: &str, value: &[u8]) -> Result<()> {
        let name = c_string(name)?;
        // SAFETY: the name ends in NUL, the value has the length given.
        unsafe {
            (self.api.rados_write_op_cmpxattr)(
                self.raw,
                name.as_ptr(),
                CMPXATTR_OP_EQ,
                start(value),
                value.len(),
            );
        };
        Ok(())
    }

    /// Refuses another omap value.
    pub(crate) fn compare_omap(&self, key: &[u8], value: &[u8]) {
        // SAFETY: key and value have the lengths given; a null result is allowed.
        unsafe {
            (self.api.rados_write_op_omap_cmp2)(
                self.raw,
                start(key),
                CMPXATTR_OP_EQ,
                start(value),
                key.len(),
                value.len(),
                null_mut(),
            );
        };
    }

    /// Makes the object; refuses where it exists.
    pub(crate) fn create_exclusive(&self) {
        // SAFETY: the handle is open; the category is unused.
        unsafe { (self.api.rados_write_op_create)(self.raw, CREATE_EXCLUSIVE, null()) };
    }

    /// Makes the object where it does not exist.
    pub(crate) fn create(&self) {
        // SAFETY: the handle is open; the category is unused.
        unsafe { (self.api.rados_write_op_create)(self.raw, CREATE_IDEMPOTENT, null()) };
    }

    /// Writes bytes.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        // SAFETY: the bytes have the length given.
        unsafe { (self.api.rados_write_op_write)(self.raw, start(data), data.len(), offset) };
    }

    /// Replaces all bytes.
    pub(crate) fn write_full(&self, data: &[u8]) {
        // SAFETY: the bytes have the length given.
        unsafe { (self.api.rados_write_op_write_full)(self.raw, start(data), data.len()) };
    }

    /// Zeroes a range.
    pub(crate) fn zero(&self, offset: u64, length: u64) {
        // SAFETY: the handle is open.
        unsafe { (self.api.rados_write_op_zero)(self.raw, offset, length) };
    }

    /// Sets the size.
    pub(crate) fn truncate(&self, size: u64) {
        // SAFETY: the handle is open.
        unsafe { (self.api.rados_write_op_truncate)(self.raw, size) };
    }

    /// Makes the object a copy of another, as `source` sees that.
    pub(crate) fn copy_from(&self, source: &IoCtx, object: &CStr) -> Result<()> {
        let copy_from = self.api.copy_from.as_ref();
        let copy_from =
            copy_from.ok_or_else(|| Error::unsupported("this librados copies no objects in a cluster"))?;
        // SAFETY: both handles are open.
        unsafe { copy_from.add(self.raw, source.raw, object.to_bytes()) };
        Ok(())
    }

    /// Removes the object.
    pub(crate) fn remove(&self) {
        // SAFETY: the handle is open.
        unsafe { (self.api.rados_write_op_remove)(self.raw) };
    }

    /// Sets omap entries.
    pub(crate) fn set_omap(&self, entries: &[(Bytes, Bytes)]) {
        let keys: Vec<*const c_char> = entries.iter().map(|(k, _)| start(k)).collect();
        let key_lengths: Vec<usize> = entries.iter().map(|(k, _)| k.len()).collect();
        let values: Vec<*const c_char> = entries.iter().map(|(_, v)| start(v)).collect();
        let value_lengths: Vec<usize> = entries.iter().map(|(_, v)| v.len()).collect();
        // SAFETY: four arrays of one length, whose pointers have the lengths beside them.
        unsafe {
            (self.api.rados_write_op_omap_set2)(
                self.raw,
                keys.as_ptr(),
                values.as_ptr(),
                key_lengths.as_ptr(),
                value_lengths.as_ptr(),
                entries.len(),
            );
        };
    }

    /// Removes omap keys.
    pub(crate) fn remove_omap(&self, keys: &[Bytes]) {
        let pointers: Vec<*const c_char> = keys.iter().map(|k| start(k)).collect();
        let lengths: Vec<usize> = keys.iter().map(Bytes::len).collect();
        // SAFETY: two arrays of one length, whose pointers have the lengths beside them.
        unsafe {
            (self.api.rados_write_op_omap_rm_keys2)(
                self.raw,
                pointers.as_ptr(),
                lengths.as_ptr(),
                keys.len(),
            );
        };
    }

    /// Removes all omap entries.
    pub(crate) fn clear_omap(&self) {
        // SAFETY: the handle is open.
        unsafe { (self.api.rados_write_op_omap_clear)(self.raw) };
    }

    /// Sets an xattr.
    pub(crate) fn set_xattr(&self, name: &str, value: &[u8]) -> Result<()> {
        let name = c_string(name)?;
        // SAFETY: the name ends in NUL, the value has the length given.
        unsafe { (self.api.rados_write_op_setxattr)(self.raw, name.as_ptr(), start(value), value.len()) };
        Ok(())
    }

    /// Removes an xattr.
    pub(crate) fn remove_xattr(&self, name: &str) -> Result<()> {
        let name = c_string(name)?;
        // SAFETY: the name ends in NUL.
        unsafe { (self.api.rados_write_op_rmxattr)(self.raw, name.as_ptr()) };
        Ok(())
    }

    /// Calls a method of an object class.
    pub(crate) fn exec(&self, class: &CStr, method: &CStr, input: &[u8]) {
        // SAFETY: the names end in NUL, the input has the length given; a null result is allowed.
        unsafe {
            (self.api.rados_write_op_exec)(
                self.raw,
                class.as_ptr(),
                method.as_ptr(),
                start(input),
                input.len(),
                null_mut(),
            );
        };
    }

    /// Submits the operation; the object's version after it. `changed` is when the object is said to change, in seconds since 1970; now
    /// where nothing is said.
    pub(crate) fn submit(
        self,
        io: &Arc<IoCtx>,
        object: &CStr,
        changed: Option<i64>,
        clause: &'static str,
    ) -> Result<impl Future<Output = Result<u64>> + Send + use<>> {
        let mut changed = changed;
        let time = changed.as_mut().map_or(null_mut(), std::ptr::from_mut);
        let pending = submit(io, (), |completion| {
            // SAFETY: handles are open, the name ends in NUL, a null time means now and another is copied; librados takes the steps over.
            unsafe {
                (self.api.rados_aio_write_op_operate)(self.raw, io.raw, completion, object.as_ptr(), time, 0)
            }
        })?;
        Ok(async move {
            let outcome = pending.await?;
            check(outcome.result, clause)?;
            Ok(outcome.version)
        })
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        // SAFETY: the handle is not used after.
        unsafe { (self.api.rados_release_write_op)(self.raw) };
    }
}

/// What librados writes to during a read. Iterators are made when the step is added and freed with this.
#[derive(Debug)]
struct Target {
    api: &'static Api,
    parts: Vec<Part>,
    size: AtomicU64,
    changed: AtomicI64,
    xattrs: AtomicPtr<c_void>,
    omap: AtomicPtr<c_void>,
    more: AtomicU8,
    /// Results of the steps; that of the whole is enough, but not every step takes a null.
    results: [AtomicI32; 3],
}

/// A part of the data that is read.
#[derive(Debug)]
struct Part {
    offset: u64,
    /// Empty, with room for what is asked for: zeros first would be a twentieth of a large read's CPU.
    buffer: Vec<u8>,
    bytes_read: AtomicUsize,
    result: AtomicI32,
}

impl Part {
    fn new((offset, length): (u64, usize)) -> Self {
        let (bytes_read, result) = (AtomicUsize::new(0), AtomicI32::new(0));
        Self { offset, buffer: Vec::with_capacity(length), bytes_read, result }
    }

    /// The bytes, once the read went well.
    fn take(self) -> (u64, Vec<u8>) {
        let (mut data, mut bytes_read) = (self.buffer, self.bytes_read);
        let length = (*bytes_read.get_mut()).min(data.capacity());
        // SAFETY: the read went well, so librados has written that many bytes.
        unsafe { data.set_len(length) };
        (self.offset, data)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let (xattrs, omap) = (*self.xattrs.get_mut(), *self.omap.get_mut());
        if !xattrs.is_null() {
            // SAFETY: librados made it, the read is over, and it is not used after.
            unsafe { (self.api.rados_getxattrs_end)(xattrs) };
        }
        if !omap.is_null() {
            // SAFETY: as above.
            unsafe { (self.api.rados_omap_get_end)(omap) };
        }
    }
}

/// Which omap entries to read.
#[derive(Debug)]
pub(crate) enum OmapStep<'a> {
    /// These keys.
    Keys(&'a [Bytes]),
    /// Up to `max` behind `after`, beginning with `prefix`.
    Page {
        /// Without NUL.
        after: CString,
        /// Without NUL.
        prefix: CString,
        /// How many.
        max: u64,
    },
}

/// A compound read being put together.
#[derive(Debug)]
pub(crate) struct Read {
    api: &'static Api,
    raw: rados_read_op_t,
    target: Arc<Target>,
}

/// What a read gave.
#[derive(Debug)]
pub(crate) struct Found {
    /// The object's version, at the snapshot read.
    pub(crate) version: u64,
    /// Its size, where it was asked for. Bytes.
    pub(crate) size: u64,
    /// When it was last changed, or said to be, where its size was asked for. Seconds since 1970.
    pub(crate) changed: i64,
    /// The bytes asked for, as far as there are: the offset of each part, and what it holds.
    pub(crate) data: Vec<(u64, Vec<u8>)>,
    /// Names and values.
    pub(crate) xattrs: Vec<(String, Bytes)>,
    /// In key order.
    pub(crate) omap: Vec<(Bytes, Bytes)>,
    /// Whether there are more omap entries.
    pub(crate) more: bool,
}

impl Read {
    /// A read of `data`: parts, `(offset, length)` in bytes; and of the size, unless the data is wanted alone.
    pub(crate) fn new(data: &[(u64, usize)], is_data_alone: bool) -> Result<Self> {
        let api = load()?;
        let asked = data.iter().copied().filter(|(_, length)| *length > 0);
        let target = Arc::new(Target {
            api,
            parts: asked.clone().map(Part::new).collect(),
            size: AtomicU64::new(0),
            changed: AtomicI64::new(0),
            xattrs: AtomicPtr::default(),
            omap: AtomicPtr::default(),
            more: AtomicU8::new(0),
            results: Default::default(),
        });
        // SAFETY: no preconditions.
        let raw = unsafe { (api.rados_create_read_op)() };
        let mut read = Self { api, raw, target };
        let t = Arc::get_mut(&mut read.target).expect("nobody else has it yet");
        // Without any step it would not be seen whether the object exists.
        if !is_data_alone || t.parts.is_empty() {
            // SAFETY: the target outlives the request: its completion holds it.
            unsafe {
                (api.rados_read_op_stat)(raw, t.size.as_ptr(), t.changed.as_ptr(), t.results[0].as_ptr());
            };
        }
        for (part, (offset, length)) in t.parts.iter_mut().zip(asked) {
            let (read_to, result) = (part.bytes_read.as_ptr(), part.result.as_ptr());
            let start = part.buffer.as_mut_ptr();
            // SAFETY: as above; the buffer has room for the length given and is not touched until the read is over.
            unsafe { (api.rados_read_op_read)(raw, offset, length, start.cast(), read_to, result) };
        }
        Ok(read)
    }

    /// Fails where the object has another version.
    pub(crate) fn assert_version(&self, version: u64) {
        // SAFETY: the handle is open.
        unsafe { (self.api.rados_read_op_assert_version)(self.raw, version) };
    }

    /// Reads all xattrs too.
    pub(crate) fn xattrs(&self) {
        let (iterator, result) = (self.target.xattrs.as_ptr(), self.target.results[1].as_ptr());
        // SAFETY: the target outlives the request.
        unsafe { (self.api.rados_read_op_getxattrs)(self.raw, iterator, result) };
    }

    /// Reads omap entries too.
    pub(crate) fn omap(&self, step: &OmapStep<'_>) {
        let (iterator, result) = (self.target.omap.as_ptr(), self.target.results[2].as_ptr());
        match step {
            OmapStep::Keys(keys) => {
                let pointers: Vec<*const c_char> = keys.iter().map(|k| start(k)).collect();
                let lengths: Vec<usize> = keys.iter().map(Bytes::len).collect();
                // SAFETY: two arrays of one length, copied; the target outlives the request.
                unsafe {
                    (self.api.rados_read_op_omap_get_vals_by_keys2)(
                        self.raw,
                        pointers.as_ptr(),
                        keys.len(),
                        lengths.as_ptr(),
                        iterator,
                        result,
                    );
                };
            }
            OmapStep::Page { after, prefix, max } => {
                let more = self.target.more.as_ptr();
                // SAFETY: the texts end in NUL and are copied; the target outlives the request.
                unsafe {
                    (self.api.rados_read_op_omap_get_vals2)(
                        self.raw,
                        after.as_ptr(),
                        prefix.as_ptr(),
                        *max,
                        iterator,
                        more,
                        result,
                    );
                };
            }
        }
    }

    /// Submits the read.
    pub(crate) fn submit(
        self,
        io: &Arc<IoCtx>,
        object: &CStr,
    ) -> Result<impl Future<Output = Result<Found>> + Send + use<>> {
        let pending = submit(io, Arc::clone(&self.target), |completion| {
            // SAFETY: handles are open and the name ends in NUL; librados takes the steps over.
            unsafe { (self.api.rados_aio_read_op_operate)(self.raw, io.raw, completion, object.as_ptr(), 0) }
        })?;
        drop(self);
        Ok(async move { found(pending.await?) })
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        // SAFETY: the handle is not used after.
        unsafe { (self.api.rados_release_read_op)(self.raw) };
    }
}

/// Takes a read's results out of what librados wrote to.
fn found(outcome: Outcome<Arc<Target>>) -> Result<Found> {
    check(outcome.result, "reading an object")?;
    let mut target = Arc::into_inner(outcome.payload).expect("the request was the last to hold its target");
    let parts = std::mem::take(&mut target.parts);
    Ok(Found {
        version: outcome.version,
        size: *target.size.get_mut(),
        changed: *target.changed.get_mut(),
        data: parts.into_iter().map(Part::take).collect(),
        xattrs: target.take_xattrs()?,
        omap: target.take_omap()?,
        more: *target.more.get_mut() != 0,
    })
}

impl Target {
    fn take_xattrs(&mut self) -> Result<Vec<(String, Bytes)>> {
        let iterator = *self.xattrs.get_mut();
        let mut all = Vec::new();
        while !iterator.is_null() {
            let (mut name, mut value, mut length) = (null(), null(), 0);
            // SAFETY: the iterator is open; three places to fill.
            let next = unsafe {
                (self.api.rados_getxattrs_next)(iterator, &raw mut name, &raw mut value, &raw mut length)
            };
            check(next, "reading attributes")?;
            if name.is_null() {
                break;
            }
            // SAFETY: a name ends in NUL and stays while the iterator does.
            let text = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
            all.push((text, copied(value, length).into()));
        }
        Ok(all)
    }

    fn take_omap(&mut self) -> Result<Vec<(Bytes, Bytes)>> {
        let iterator = *self.omap.get_mut();
        let mut all = Vec::new();
        while !iterator.is_null() {
            let (mut key, mut value, mut key_length, mut value_length) = (null_mut(), null_mut(), 0, 0);
            // SAFETY: the iterator is open; four places to fill.
            let next = unsafe {
                (self.api.rados_omap_get_next2)(
                    iterator,
                    &raw mut key,
                    &raw mut value,
                    &raw mut key_length,
                    &raw mut value_length,
                )
            };
            check(next, "reading entries")?;
            if key.is_null() {
                break;
            }
            all.push((copied(key, key_length).into(), copied(value, value_length).into()));
        }
        Ok(all)
    }
}

impl IoCtx {
    /// Asks for a new snapshot id.
    pub(crate) fn allocate_snap(
        self: &Arc<Self>,
    ) -> Result<impl Future<Output = Result<SnapId>> + Send + use<>> {
        let id = Arc::new(AtomicU64::new(0));
        let place = id.as_ptr();
        let pending = submit(self, id, |completion| {
            // SAFETY: the number outlives the request: its completion holds it.
            unsafe { (self.api().rados_aio_ioctx_selfmanaged_snap_create)(self.raw, place, completion) };
            0
        })?;
        Ok(async move {
            let outcome = pending.await?;
            check(outcome.result, "taking a snapshot's number")?;
            Ok(SnapId(outcome.payload.load(Ordering::Acquire)))
        })
    }

    /// Gives a snapshot id up.
    pub(crate) fn release_snap(
        self: &Arc<Self>,
        snap: SnapId,
    ) -> Result<impl Future<Output = Result<()>> + Send + use<>> {
        let pending = submit(self, (), |completion| {
            // SAFETY: handles are open.
            unsafe { (self.api().rados_aio_ioctx_selfmanaged_snap_remove)(self.raw, snap.0, completion) };
            0
        })?;
        Ok(async move {
            let result: c_int = pending.await?.result;
            match check(result, "giving up a snapshot's number") {
                Err(e) if e.errno() != ferry_core::Errno::ENOENT => Err(e),
                Ok(_) | Err(_) => Ok::<(), Error>(()),
            }
        })
    }
}
