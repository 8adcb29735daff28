//! The C interface of librados 16.2, of what is called here, in the header's names; loaded at run time.
#![allow(non_camel_case_types)]

use std::ffi::{c_char, c_int, c_void};
use std::fmt;
use std::sync::OnceLock;

use ferry_core::{Error, Result};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

pub(crate) mod cpp;
#[cfg(test)]
mod tests;

pub(crate) type rados_t = *mut c_void;
pub(crate) type rados_ioctx_t = *mut c_void;
pub(crate) type rados_completion_t = *mut c_void;
pub(crate) type rados_write_op_t = *mut c_void;
pub(crate) type rados_read_op_t = *mut c_void;
pub(crate) type rados_omap_iter_t = *mut c_void;
pub(crate) type rados_xattrs_iter_t = *mut c_void;
pub(crate) type rados_object_list_cursor = *mut c_void;
pub(crate) type size_t = usize;
/// 64 bits wherever Ceph is built.
pub(crate) type time_t = i64;
/// Called on librados' finisher thread when an operation is done.
pub(crate) type rados_callback_t = unsafe extern "C" fn(rados_completion_t, *mut c_void);
/// Called for each notify: `arg, notify_id, handle, notifier_id, data, data_len`.
pub(crate) type rados_watchcb2_t = unsafe extern "C" fn(*mut c_void, u64, u64, u64, *mut c_void, size_t);
/// Called when a watch is lost: `arg, cookie, err`.
pub(crate) type rados_watcherrcb_t = unsafe extern "C" fn(*mut c_void, u64, c_int);

/// `LIBRADOS_CMPXATTR_OP_EQ`.
pub(crate) const CMPXATTR_OP_EQ: u8 = 1;
/// `LIBRADOS_CREATE_EXCLUSIVE` and `_IDEMPOTENT`.
pub(crate) const CREATE_EXCLUSIVE: c_int = 1;
pub(crate) const CREATE_IDEMPOTENT: c_int = 0;
/// `LIBRADOS_ALL_NSPACES`.
pub(crate) const ALL_NSPACES: &str = "\u{1}";

/// `struct rados_pool_stat_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct rados_pool_stat_t {
    pub(crate) num_bytes: u64,
    pub(crate) num_kb: u64,
    pub(crate) num_objects: u64,
    pub(crate) num_object_clones: u64,
    pub(crate) num_object_copies: u64,
    pub(crate) num_objects_missing_on_primary: u64,
    pub(crate) num_objects_unfound: u64,
    pub(crate) num_objects_degraded: u64,
    pub(crate) num_rd: u64,
    pub(crate) num_rd_kb: u64,
    pub(crate) num_wr: u64,
    pub(crate) num_wr_kb: u64,
    pub(crate) num_user_bytes: u64,
    pub(crate) compressed_bytes_orig: u64,
    pub(crate) compressed_bytes: u64,
    pub(crate) compressed_bytes_alloc: u64,
}

/// `rados_object_list_item`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct rados_object_list_item {
    pub(crate) oid_length: size_t,
    pub(crate) oid: *mut c_char,
    pub(crate) nspace_length: size_t,
    pub(crate) nspace: *mut c_char,
    pub(crate) locator_length: size_t,
    pub(crate) locator: *mut c_char,
}

macro_rules! api {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)?;)*) => {
        /// The functions of one loaded librados.
        pub(crate) struct Api {
            $(pub(crate) $name: unsafe extern "C" fn($($arg: $type),*) $(-> $result)?,)*
            /// What the C interface lacks; `None` where this librados has it under another name.
            pub(crate) map_extents: Option<cpp::MapExtents>,
            /// As above.
            pub(crate) copy_from: Option<cpp::copy::CopyFrom>,
            /// Holds the code the functions are in.
            _library: Library,
        }

        impl Api {
            /// Finds all functions.
            fn resolve(library: Library) -> Result<Self> {
                Ok(Self {
                    $($name: {
                        // SAFETY: the signatures in this file are those of librados.h, checked by hand.
                        let found = unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) };
                        *found.map_err(|e| {
                            Error::unsupported("this librados lacks a function").with("function", stringify!($name)).because(e)
                        })?
                    },)*
                    map_extents: cpp::MapExtents::find(&library),
                    copy_from: cpp::copy::CopyFrom::find(&library),
                    _library: library,
                })
            }
        }
    };
}

api! {
    // The cluster.
    fn rados_version(major: *mut c_int, minor: *mut c_int, extra: *mut c_int);
    fn rados_create2(cluster: *mut rados_t, cluster_name: *const c_char, name: *const c_char, flags: u64) -> c_int;
    fn rados_conf_read_file(cluster: rados_t, path: *const c_char) -> c_int;
    fn rados_conf_parse_env(cluster: rados_t, variable: *const c_char) -> c_int;
    fn rados_conf_set(cluster: rados_t, option: *const c_char, value: *const c_char) -> c_int;
    fn rados_connect(cluster: rados_t) -> c_int;
    fn rados_shutdown(cluster: rados_t);
    fn rados_cluster_fsid(cluster: rados_t, buf: *mut c_char, len: size_t) -> c_int;
    fn rados_get_instance_id(cluster: rados_t) -> u64;
    fn rados_getaddrs(cluster: rados_t, addrs: *mut *mut c_char) -> c_int;
    fn rados_buffer_free(buf: *mut c_char);
    fn rados_blocklist_add(cluster: rados_t, client_address: *const c_char, expire_seconds: u32) -> c_int;
    fn rados_mon_command(cluster: rados_t, cmd: *const *const c_char, cmdlen: size_t, inbuf: *const c_char, inbuflen: size_t, outbuf: *mut *mut c_char, outbuflen: *mut size_t, outs: *mut *mut c_char, outslen: *mut size_t) -> c_int;
    fn rados_osd_command(cluster: rados_t, osdid: c_int, cmd: *const *const c_char, cmdlen: size_t, inbuf: *const c_char, inbuflen: size_t, outbuf: *mut *mut c_char, outbuflen: *mut size_t, outs: *mut *mut c_char, outslen: *mut size_t) -> c_int;
    fn rados_wait_for_latest_osdmap(cluster: rados_t) -> c_int;
    fn rados_pool_list(cluster: rados_t, buf: *mut c_char, len: size_t) -> c_int;
    fn rados_pool_lookup(cluster: rados_t, pool: *const c_char) -> i64;
    fn rados_pool_reverse_lookup(cluster: rados_t, id: i64, buf: *mut c_char, maxlen: size_t) -> c_int;
    fn rados_pool_create(cluster: rados_t, pool: *const c_char) -> c_int;
    fn rados_pool_delete(cluster: rados_t, pool: *const c_char) -> c_int;

    // I/O contexts.
    fn rados_ioctx_create2(cluster: rados_t, pool: i64, io: *mut rados_ioctx_t) -> c_int;
    fn rados_ioctx_destroy(io: rados_ioctx_t);
    fn rados_ioctx_set_namespace(io: rados_ioctx_t, namespace: *const c_char);
    fn rados_ioctx_pool_stat(io: rados_ioctx_t, stats: *mut rados_pool_stat_t) -> c_int;
    fn rados_application_enable(io: rados_ioctx_t, application: *const c_char, force: c_int) -> c_int;
    fn rados_get_last_version(io: rados_ioctx_t) -> u64;

    // Listing objects.
    fn rados_object_list_begin(io: rados_ioctx_t) -> rados_object_list_cursor;
    fn rados_object_list_end(io: rados_ioctx_t) -> rados_object_list_cursor;
    fn rados_object_list_is_end(io: rados_ioctx_t, cursor: rados_object_list_cursor) -> c_int;
    fn rados_object_list_cursor_free(io: rados_ioctx_t, cursor: rados_object_list_cursor);
    fn rados_object_list(io: rados_ioctx_t, start: rados_object_list_cursor, finish: rados_object_list_cursor, result_size: size_t, filter: *const c_char, filter_len: size_t, results: *mut rados_object_list_item, next: *mut rados_object_list_cursor) -> c_int;
    fn rados_object_list_free(result_size: size_t, results: *mut rados_object_list_item);

    // Self-managed snapshots.
    fn rados_ioctx_snap_set_read(io: rados_ioctx_t, id: u64);
    fn rados_ioctx_selfmanaged_snap_set_write_ctx(io: rados_ioctx_t, seq: u64, snaps: *mut u64, count: c_int) -> c_int;
    fn rados_ioctx_selfmanaged_snap_rollback(io: rados_ioctx_t, oid: *const c_char, id: u64) -> c_int;
    fn rados_aio_ioctx_selfmanaged_snap_create(io: rados_ioctx_t, id: *mut u64, completion: rados_completion_t);
    fn rados_aio_ioctx_selfmanaged_snap_remove(io: rados_ioctx_t, id: u64, completion: rados_completion_t);

    // Completions.
    fn rados_aio_create_completion2(arg: *mut c_void, complete: rados_callback_t, completion: *mut rados_completion_t) -> c_int;
    fn rados_aio_release(completion: rados_completion_t);
    fn rados_aio_get_return_value(completion: rados_completion_t) -> c_int;
    fn rados_aio_get_version(completion: rados_completion_t) -> u64;

    // Write operations.
    fn rados_create_write_op() -> rados_write_op_t;
    fn rados_release_write_op(op: rados_write_op_t);
    fn rados_write_op_assert_exists(op: rados_write_op_t);
    fn rados_write_op_assert_version(op: rados_write_op_t, version: u64);
    fn rados_write_op_cmpxattr(op: rados_write_op_t, name: *const c_char, comparison: u8, value: *const c_char, len: size_t);
    fn rados_write_op_omap_cmp2(op: rados_write_op_t, key: *const c_char, comparison: u8, value: *const c_char, key_len: size_t, val_len: size_t, prval: *mut c_int);
    fn rados_write_op_setxattr(op: rados_write_op_t, name: *const c_char, value: *const c_char, len: size_t);
    fn rados_write_op_rmxattr(op: rados_write_op_t, name: *const c_char);
    fn rados_write_op_create(op: rados_write_op_t, exclusive: c_int, category: *const c_char);
    fn rados_write_op_write(op: rados_write_op_t, buf: *const c_char, len: size_t, offset: u64);
    fn rados_write_op_write_full(op: rados_write_op_t, buf: *const c_char, len: size_t);
    fn rados_write_op_remove(op: rados_write_op_t);
    fn rados_write_op_truncate(op: rados_write_op_t, offset: u64);
    fn rados_write_op_zero(op: rados_write_op_t, offset: u64, len: u64);
    fn rados_write_op_exec(op: rados_write_op_t, class: *const c_char, method: *const c_char, buf: *const c_char, len: size_t, prval: *mut c_int);
    fn rados_write_op_omap_set2(op: rados_write_op_t, keys: *const *const c_char, values: *const *const c_char, key_lens: *const size_t, val_lens: *const size_t, count: size_t);
    fn rados_write_op_omap_rm_keys2(op: rados_write_op_t, keys: *const *const c_char, key_lens: *const size_t, count: size_t);
    fn rados_write_op_omap_clear(op: rados_write_op_t);
    fn rados_aio_write_op_operate(op: rados_write_op_t, io: rados_ioctx_t, completion: rados_completion_t, oid: *const c_char, mtime: *mut time_t, flags: c_int) -> c_int;

    // Read operations.
    fn rados_create_read_op() -> rados_read_op_t;
    fn rados_release_read_op(op: rados_read_op_t);
    fn rados_read_op_assert_version(op: rados_read_op_t, version: u64);
    fn rados_read_op_read(op: rados_read_op_t, offset: u64, len: size_t, buf: *mut c_char, bytes_read: *mut size_t, prval: *mut c_int);
    fn rados_read_op_stat(op: rados_read_op_t, size: *mut u64, mtime: *mut time_t, prval: *mut c_int);
    fn rados_read_op_getxattrs(op: rados_read_op_t, iter: *mut rados_xattrs_iter_t, prval: *mut c_int);
    fn rados_getxattrs_next(iter: rados_xattrs_iter_t, name: *mut *const c_char, value: *mut *const c_char, len: *mut size_t) -> c_int;
    fn rados_getxattrs_end(iter: rados_xattrs_iter_t);
    fn rados_read_op_omap_get_vals2(op: rados_read_op_t, start_after: *const c_char, filter_prefix: *const c_char, max: u64, iter: *mut rados_omap_iter_t, more: *mut u8, prval: *mut c_int);
    fn rados_read_op_omap_get_vals_by_keys2(op: rados_read_op_t, keys: *const *const c_char, count: size_t, key_lens: *const size_t, iter: *mut rados_omap_iter_t, prval: *mut c_int);
    fn rados_omap_get_next2(iter: rados_omap_iter_t, key: *mut *mut c_char, value: *mut *mut c_char, key_len: *mut size_t, val_len: *mut size_t) -> c_int;
    fn rados_omap_get_end(iter: rados_omap_iter_t);
    fn rados_aio_read_op_operate(op: rados_read_op_t, io: rados_ioctx_t, completion: rados_completion_t, oid: *const c_char, flags: c_int) -> c_int;

    // Watch and notify.
    fn rados_aio_watch2(io: rados_ioctx_t, oid: *const c_char, completion: rados_completion_t, handle: *mut u64, callback: rados_watchcb2_t, error: rados_watcherrcb_t, timeout: u32, arg: *mut c_void) -> c_int;
    fn rados_aio_unwatch(io: rados_ioctx_t, cookie: u64, completion: rados_completion_t) -> c_int;
    fn rados_aio_notify(io: rados_ioctx_t, oid: *const c_char, completion: rados_completion_t, buf: *const c_char, len: c_int, timeout_ms: u64, reply: *mut *mut c_char, reply_len: *mut size_t) -> c_int;
    fn rados_watch_flush(cluster: rados_t) -> c_int;
    fn rados_notify_ack(io: rados_ioctx_t, oid: *const c_char, notify_id: u64, cookie: u64, buf: *const c_char, len: c_int) -> c_int;
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Api")
    }
}

/// The library's name: the only ABI there has been since 2013.
const LIBRARY: &str = "librados.so.2";

/// The functions of librados. Loaded once and never unloaded: its threads live as long as the process.
///
/// # Errors
/// `Unsupported` where the library, or a function in it, is missing; another call looks again.
pub(crate) fn load() -> Result<&'static Api> {
    static LOADED: OnceLock<Api> = OnceLock::new();
    if let Some(api) = LOADED.get() {
        return Ok(api);
    }
    let api = open(LIBRARY)?;
    Ok(LOADED.get_or_init(|| api))
}

/// Loads a library by name.
fn open(name: &str) -> Result<Api> {
    // All functions at once, so that nothing is missing in the middle of a request; Ceph's own symbols stay private.
    // SAFETY: librados' initialisers have no preconditions.
    let library = unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) };
    let library = library.map_err(|e| {
        Error::unsupported("librados is not installed (Debian: package librados2)")
            .with("library", name)
            .because(e)
    })?;
    Api::resolve(library)
}
