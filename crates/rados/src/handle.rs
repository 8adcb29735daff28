//! Owners of librados' handles: a connection, I/O contexts; below them commands, operations, completions, extents, watches, listings.
//!
//! # Invariants
//! - An I/O context outlives the requests submitted on it: dropping one waits for them ([`completion::InFlight`]).
//! - What librados writes to lives in an `Arc` that the request's completion holds.
//! - No owner is dropped on librados' own threads: `rados_shutdown` would wait for the thread it runs on.

mod command;
pub(crate) mod completion;
pub(crate) mod extents;
pub(crate) mod listing;
pub(crate) mod op;
pub(crate) mod watch;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::path::PathBuf;
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ferry_core::{Error, Namespace, PoolId, PoolStats, Result, SnapId};

use self::completion::InFlight;
use self::extents::Streak;
use crate::errno::{check, error};
use crate::ffi::{Api, load, rados_ioctx_t, rados_pool_stat_t, rados_t};
use crate::limits::{BLOCKLIST_SECONDS, MONITOR_TIMEOUT_SECONDS, NAME_MAX};

/// How to reach a cluster.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The configuration file; `None` looks where Ceph does (`$CEPH_CONF`, `/etc/ceph/ceph.conf`, …).
    pub config_file: Option<PathBuf>,
    /// The user without `client.`; `None` is `admin`.
    pub user: Option<String>,
    /// Settings that override the file's, by name.
    pub settings: BTreeMap<String, String>,
}

/// A text for C.
pub(crate) fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid("a name with a NUL in it"))
}

/// The bytes behind a pointer of C, copied; none for a null one.
fn copied(start: *const c_char, length: usize) -> Vec<u8> {
    if start.is_null() || length == 0 {
        return Vec::new();
    }
    // SAFETY: librados gave the pair of pointer and length, and keeps the bytes while its handle is held here.
    unsafe { std::slice::from_raw_parts(start.cast::<u8>(), length) }.to_vec()
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Cluster {
    api: &'static Api,
    raw: rados_t,
    /// Whether the store is gone: what is left of the connection ends by itself.
    has_ended: AtomicBool,
}

/// Connections of this process.
static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

/// How many connections this process has.
pub(crate) fn connections() -> usize {
    CONNECTIONS.load(Ordering::Acquire)
}

// SAFETY: librados allows calls on one cluster handle from any threads at once.
unsafe impl Send for Cluster {}
// SAFETY: as above.
unsafe impl Sync for Cluster {}

impl Cluster {
    /// Connects.
    pub(crate) fn connect(options: &Options) -> Result<Arc<Self>> {
        let api = load()?;
        let user = c_string(&format!("client.{}", options.user.as_deref().unwrap_or("admin")))?;
        let mut raw = null_mut();
        // SAFETY: the names end in NUL, `raw` takes the handle.
        let made = unsafe { (api.rados_create2)(&raw mut raw, c"ceph".as_ptr(), user.as_ptr(), 0) };
        check(made, "preparing a connection")?;
        CONNECTIONS.fetch_add(1, Ordering::AcqRel);
        let cluster = Self { api, raw, has_ended: AtomicBool::new(false) };
        let timeout = MONITOR_TIMEOUT_SECONDS.to_string();
        cluster.set("client_mount_timeout", &timeout)?;
        cluster.set("rados_mon_op_timeout", &timeout)?;
        cluster.configure(options)?;
        // SAFETY: the handle is configured and not connected yet.
        let connected = unsafe { (api.rados_connect)(cluster.raw) };
        check(connected, "connecting to the cluster").map_err(|e| e.with("user", user.to_string_lossy()))?;
        Ok(Arc::new(cluster))
    }

    /// Reads the file, the environment and the overrides, in this order.
    fn configure(&self, options: &Options) -> Result<()> {
        let path = options.config_file.as_ref().map(|p| c_string(&p.to_string_lossy())).transpose()?;
        let pointer = path.as_ref().map_or(null(), |p| p.as_ptr());
        // SAFETY: a null path means the default ones.
        let read = unsafe { (self.api.rados_conf_read_file)(self.raw, pointer) };
        check(read, "reading the cluster's configuration file").map_err(|e| match &options.config_file {
            Some(path) => e.with("file", path.display()),
            None => e,
        })?;
        // SAFETY: a null name means CEPH_ARGS.
        let parsed = unsafe { (self.api.rados_conf_parse_env)(self.raw, null()) };
        check(parsed, "reading CEPH_ARGS")?;
        options.settings.iter().try_for_each(|(name, value)| self.set(name, value))
    }

    fn set(&self, name: &str, value: &str) -> Result<()> {
        let (option, text) = (c_string(name)?, c_string(value)?);
        // SAFETY: both texts end in NUL.
        let set = unsafe { (self.api.rados_conf_set)(self.raw, option.as_ptr(), text.as_ptr()) };
        check(set, "setting an option of the cluster").map_err(|e| e.with("option", name)).map(drop)
    }

    /// Whether the library can have objects copied inside the cluster.
    pub(crate) fn copies_objects(&self) -> bool {
        self.api.copy_from.is_some()
    }

    /// The library's version.
    pub(crate) fn library_version(&self) -> String {
        let (mut major, mut minor, mut extra) = (0, 0, 0);
        // SAFETY: three numbers to fill.
        unsafe { (self.api.rados_version)(&raw mut major, &raw mut minor, &raw mut extra) };
        format!("{major}.{minor}.{extra}")
    }

    /// The cluster's id, as text.
    pub(crate) fn fsid(&self) -> Result<String> {
        let mut buffer = [0_u8; 64];
        // SAFETY: the buffer has the length given.
        let n = unsafe { (self.api.rados_cluster_fsid)(self.raw, buffer.as_mut_ptr().cast(), buffer.len()) };
        check(n, "asking for the cluster's id")?;
        Ok(text_until_nul(&buffer))
    }

    /// The number the cluster gave this client.
    pub(crate) fn instance_id(&self) -> u64 {
        // SAFETY: the handle is connected.
        unsafe { (self.api.rados_get_instance_id)(self.raw) }
    }

    /// This client's address.
    pub(crate) fn address(&self) -> Result<String> {
        let mut text: *mut c_char = null_mut();
        // SAFETY: `text` takes a string made for us.
        let asked = unsafe { (self.api.rados_getaddrs)(self.raw, &raw mut text) };
        check(asked, "asking for the client's address")?;
        // SAFETY: a successful call gave a string that ends in NUL.
        let address = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
        // SAFETY: it was made by malloc, which is what this call undoes.
        unsafe { (self.api.rados_buffer_free)(text) };
        Ok(address)
    }

    /// Names of all pools.
    pub(crate) fn pool_names(&self) -> Result<Vec<String>> {
        let mut buffer = vec![0_u8; 64 << 10];
        loop {
            // SAFETY: the buffer has the length given.
            let needed =
                unsafe { (self.api.rados_pool_list)(self.raw, buffer.as_mut_ptr().cast(), buffer.len()) };
            let needed = check(needed, "listing pools")? as usize;
            if needed <= buffer.len() {
                break;
            }
            buffer.resize(needed + NAME_MAX, 0);
        }
        let names = buffer.split(|b| *b == 0).take_while(|n| !n.is_empty());
        Ok(names.map(|n| String::from_utf8_lossy(n).into_owned()).collect())
    }

    /// A pool's number.
    pub(crate) fn pool_id(&self, name: &str) -> Result<PoolId> {
        let c_name = c_string(name)?;
        // SAFETY: the name ends in NUL.
        let id = unsafe { (self.api.rados_pool_lookup)(self.raw, c_name.as_ptr()) };
        if id < 0 {
            let result = i32::try_from(id).unwrap_or(i32::MIN);
            return Err(error(result, "looking up a pool").with("pool", name));
        }
        Ok(PoolId(id))
    }

    /// A pool's name.
    pub(crate) fn pool_name(&self, pool: PoolId) -> Result<String> {
        let mut buffer = [0_u8; NAME_MAX];
        // SAFETY: the buffer has the length given.
        let n = unsafe {
            (self.api.rados_pool_reverse_lookup)(self.raw, pool.0, buffer.as_mut_ptr().cast(), buffer.len())
        };
        check(n, "no such pool").map_err(|e| e.with("pool", pool))?;
        Ok(text_until_nul(&buffer))
    }

    /// Makes a pool with the cluster's defaults.
    pub(crate) fn create_pool(&self, name: &str) -> Result<()> {
        let c_name = c_string(name)?;
        // SAFETY: the name ends in NUL.
        let made = unsafe { (self.api.rados_pool_create)(self.raw, c_name.as_ptr()) };
        check(made, "making a pool").map_err(|e| e.with("pool", name)).map(drop)
    }

    /// Removes a pool with all its objects.
    pub(crate) fn remove_pool(&self, name: &str) -> Result<()> {
        let c_name = c_string(name)?;
        // SAFETY: the name ends in NUL.
        let removed = unsafe { (self.api.rados_pool_delete)(self.raw, c_name.as_ptr()) };
        check(removed, "removing a pool").map_err(|e| e.with("pool", name)).map(drop)
    }

    /// Puts a client on the list of those that nobody listens to, and waits until this client's requests say so too.
    pub(crate) fn cut_off(&self, address: &str) -> Result<()> {
        let c_address = c_string(address)?;
        // SAFETY: the address ends in NUL.
        let listed =
            unsafe { (self.api.rados_blocklist_add)(self.raw, c_address.as_ptr(), BLOCKLIST_SECONDS) };
        check(listed, "cutting a client off")?;
        self.catch_up()
    }

    /// The store is gone.
    pub(crate) fn set_ended(&self) {
        self.has_ended.store(true, Ordering::Release);
    }

    /// Whether the store is gone.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Waits until librados has come back from all callbacks of watches it has begun.
    pub(crate) fn wait_for_callbacks(&self) {
        // SAFETY: the handle is open.
        unsafe { (self.api.rados_watch_flush)(self.raw) };
    }

    /// Waits until this client knows what the monitors know.
    pub(crate) fn catch_up(&self) -> Result<()> {
        // SAFETY: the handle is connected.
        let caught_up = unsafe { (self.api.rados_wait_for_latest_osdmap)(self.raw) };
        check(caught_up, "waiting for the cluster's map").map(drop)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SAFETY: the handle is not used after; I/O contexts hold this owner, so none is left.
        unsafe { (self.api.rados_shutdown)(self.raw) };
        CONNECTIONS.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The text before the first NUL.
fn text_until_nul(buffer: &[u8]) -> String {
    let end = buffer.iter().position(|b| *b == 0).unwrap_or(buffer.len());
    String::from_utf8_lossy(&buffer[..end]).into_owned()
}

/// What an I/O context sees and preserves.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum View {
    /// HEAD, preserving nothing.
    Head,
    /// HEAD, preserving what a snapshot context says.
    Writing {
        /// Newest snapshot ever taken.
        seq: u64,
        /// Those that exist, newest first.
        snaps: Arc<[SnapId]>,
    },
    /// A snapshot, for reading.
    At(SnapId),
}

/// A place and a view of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// The pool.
    pub(crate) pool: PoolId,
    /// The namespace; [`crate::ffi::ALL_NSPACES`] for listing all.
    pub(crate) namespace: Namespace,
    /// The view.
    pub(crate) view: View,
}

/// An I/O context.
#[derive(Debug)]
pub(crate) struct IoCtx {
    cluster: Arc<Cluster>,
    raw: rados_ioctx_t,
    in_flight: Arc<InFlight>,
    /// Whether it was found out that nothing here tells where objects have data.
    lacks_extents: AtomicBool,
    /// Of the long objects read here: whether to look for holes in the next.
    pub(crate) full_objects: Streak,
}

// SAFETY: librados allows requests on one I/O context from any threads at once; its settings are made before it is shared.
unsafe impl Send for IoCtx {}
// SAFETY: as above.
unsafe impl Sync for IoCtx {}

impl IoCtx {
    /// Opens a context. `NotFound` (2) for an unknown pool.
    pub(crate) fn open(cluster: &Arc<Cluster>, place: &Place) -> Result<Arc<Self>> {
        let api = cluster.api;
        let namespace = c_string(place.namespace.as_str())?;
        let mut raw = null_mut();
        // SAFETY: `raw` takes the handle.
        let made = unsafe { (api.rados_ioctx_create2)(cluster.raw, place.pool.0, &raw mut raw) };
        check(made, "no such pool").map_err(|e| e.with("pool", place.pool))?;
        let (in_flight, lacks_extents) = (Arc::default(), AtomicBool::new(false));
        let full_objects = Streak::default();
        let io = Self { cluster: Arc::clone(cluster), raw, in_flight, lacks_extents, full_objects };
        // SAFETY: the name ends in NUL.
        unsafe { (api.rados_ioctx_set_namespace)(io.raw, namespace.as_ptr()) };
        match &place.view {
            View::Head => {}
            View::At(snap) => {
                // SAFETY: any number will do.
                unsafe { (api.rados_ioctx_snap_set_read)(io.raw, snap.0) };
            }
            View::Writing { seq, snaps } => {
                let mut ids: Vec<u64> = snaps.iter().map(|s| s.0).collect();
                let count = i32::try_from(ids.len()).map_err(|_| Error::invalid("too many snapshots"))?;
                // SAFETY: the array has the length given and is only read.
                let set = unsafe {
                    (api.rados_ioctx_selfmanaged_snap_set_write_ctx)(io.raw, *seq, ids.as_mut_ptr(), count)
                };
                check(set, "a snapshot context out of order")?;
            }
        }
        Ok(Arc::new(io))
    }

    fn api(&self) -> &'static Api {
        self.cluster.api
    }

    /// Counts what the pool holds.
    pub(crate) fn pool_stats(&self) -> Result<PoolStats> {
        let mut stats = rados_pool_stat_t::default();
        // SAFETY: the struct is that of the header.
        let asked = unsafe { (self.api().rados_ioctx_pool_stat)(self.raw, &raw mut stats) };
        check(asked, "counting a pool")?;
        let objects = stats.num_objects.saturating_sub(stats.num_object_clones);
        Ok(PoolStats { objects, used_bytes: stats.num_bytes })
    }

    /// Says that the pool is for block images, as `rbd pool init` does.
    pub(crate) fn enable_rbd(&self) -> Result<()> {
        // SAFETY: the name ends in NUL.
        let enabled = unsafe { (self.api().rados_application_enable)(self.raw, c"rbd".as_ptr(), 0) };
        check(enabled, "saying what a pool is for").map(drop)
    }

    /// Waits until nothing is under way here any more.
    pub(crate) fn settle(&self) {
        self.in_flight.wait_until_none();
    }

    /// Rolls an object back, waiting on the calling thread; the version after. librados' C interface has this request in
    /// no other form. Give it a context of its own: the version is the context's last.
    pub(crate) fn roll_back(&self, object: &CStr, snap: SnapId) -> Result<u64> {
        // SAFETY: the name ends in NUL.
        let done =
            unsafe { (self.api().rados_ioctx_selfmanaged_snap_rollback)(self.raw, object.as_ptr(), snap.0) };
        check(done, "rolling an object back")?;
        // SAFETY: the handle is open.
        Ok(unsafe { (self.api().rados_get_last_version)(self.raw) })
    }
}

impl Drop for IoCtx {
    fn drop(&mut self) {
        self.in_flight.wait_until_none();
        // SAFETY: no request uses the handle any more, and nothing will.
        unsafe { (self.api().rados_ioctx_destroy)(self.raw) };
    }
}
