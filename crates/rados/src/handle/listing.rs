//! Listing the objects of a pool.

use std::ffi::c_char;
use std::ptr::{null, null_mut};
use std::sync::Arc;

use ferry_core::{Namespace, Result};

use super::{IoCtx, copied};
use crate::errno::check;
use crate::ffi::{rados_object_list_cursor, rados_object_list_item};

/// Namespace and name of each object of a page.
type Objects = Vec<(Namespace, Arc<str>)>;

/// Where a listing stands.
#[derive(Debug)]
pub(crate) struct Cursor {
    io: Arc<IoCtx>,
    raw: rados_object_list_cursor,
}

// SAFETY: a cursor is a value librados neither shares nor locks; it is used by one owner at a time.
unsafe impl Send for Cursor {}

impl Drop for Cursor {
    fn drop(&mut self) {
        // SAFETY: librados made it for this context, and it is not used after.
        unsafe { (self.io.api().rados_object_list_cursor_free)(self.io.raw, self.raw) };
    }
}

/// A name of C as text.
fn text(start: *const c_char, length: usize) -> String {
    String::from_utf8(copied(start, length))
        .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

impl Cursor {
    /// Before the first object.
    pub(crate) fn begin(io: &Arc<IoCtx>) -> Self {
        // SAFETY: the handle is open.
        let raw = unsafe { (io.api().rados_object_list_begin)(io.raw) };
        Self { io: Arc::clone(io), raw }
    }

    /// Up to `max` objects from here on, waiting on the calling thread, and where to go on if there are more.
    pub(crate) fn next(&self, max: usize) -> Result<(Objects, Option<Self>)> {
        let (api, io) = (self.io.api(), self.io.raw);
        // SAFETY: the handle is open.
        let end = unsafe { (api.rados_object_list_end)(io) };
        let end = Self { io: Arc::clone(&self.io), raw: end };
        let empty = rados_object_list_item {
            oid_length: 0,
            oid: null_mut(),
            nspace_length: 0,
            nspace: null_mut(),
            locator_length: 0,
            locator: null_mut(),
        };
        let mut items = vec![empty; max];
        let mut next = Self::begin(&self.io);
        let place = &raw mut next.raw;
        // SAFETY: cursors are this context's, the array has the length given, `next` is a cursor to be moved on.
        let listed = unsafe {
            (api.rados_object_list)(io, self.raw, end.raw, max, null(), 0, items.as_mut_ptr(), place)
        };
        let listed = check(listed, "listing objects")? as usize;
        let objects = items[..listed].iter().map(|item| {
            let namespace = text(item.nspace, item.nspace_length);
            (Namespace::new(&namespace), Arc::from(text(item.oid, item.oid_length)))
        });
        let objects = objects.collect();
        // SAFETY: frees the texts of the items librados filled, which were copied.
        unsafe { (api.rados_object_list_free)(listed, items.as_mut_ptr()) };
        // SAFETY: the cursor is this context's.
        let is_end = unsafe { (api.rados_object_list_is_end)(io, next.raw) };
        Ok((objects, (is_end == 0).then_some(next)))
    }
}
