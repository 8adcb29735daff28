//! [`RadosStore`]: the contract in librados' terms.
//!
//! - An op's snapshot context, and a read's snapshot, are settings of an I/O context; one is kept for each in use.
//! - What librados' C interface lacks is refused (`list_snaps`, sharing ranges, pool flags) or derived:
//!   what an object's version at a snapshot tells stands in for the list of its versions. Where an object has data its C++ interface tells
//!   (ADR 0024), which copies objects, too (ADR 0025); blocks of zeros are taken out besides. Who watches an object is asked of the OSD that serves it, which answers administrators alone.
//! - Making and removing pools, listing objects and watchers, and rolling back wait on the calling thread; all else is asynchronous.

mod pages;
mod read;
mod watchers;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ferry_core::lock::{LockInfo, LockRequest, UnlockRequest};
use ferry_core::store::{ChildStep, ObjectCursor};
use ferry_core::watch::{NotifyReply, WatchReceiver, WatcherInfo};
use ferry_core::{
    Capabilities, ClientId, Errno, Error, Namespace, ObjectId, ObjectPage, PoolFlags, PoolId, PoolInfo,
    PoolStats, ReadOp, ReadReply, Reply, Result, SnapId, SnapSet, Store, WriteOp, WriteReply,
};
use serde_json::json;

use crate::ffi::ALL_NSPACES;
use crate::handle::listing::Cursor;
use crate::handle::op::Write;
use crate::handle::watch::{bury, end};
use crate::handle::{Cluster, IoCtx, Options, Place, View, c_string, connections};
use crate::limits::{COPY_MIN, IO_CONTEXTS_MAX, LISTINGS_MAX};
use crate::lock::{break_input, lock_input, unlock_input};

/// Listings that can be continued, by number.
#[derive(Debug, Default)]
struct Listings {
    last: u64,
    open: BTreeMap<u64, Cursor>,
}

/// Pools of a Ceph cluster.
pub struct RadosStore {
    cluster: Arc<Cluster>,
    fsid: String,
    identity: [u8; 16],
    address: String,
    contexts: Mutex<HashMap<Place, Arc<IoCtx>>>,
    listings: Mutex<Listings>,
    /// Whether objects are copied inside the cluster, as far as is known.
    copying: Arc<AtomicBool>,
}

impl fmt::Debug for RadosStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RadosStore")
            .field("fsid", &self.fsid)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// The reply of a request, or of the failure to make one.
fn reply<T>(made: Result<impl Future<Output = Result<T>> + Send + 'static>) -> Reply<T> {
    match made {
        Ok(future) => Reply::pending(future),
        Err(e) => Reply::ready(Err(e)),
    }
}

/// Reads `xxxxxxxx-xxxx-…` as 16 bytes.
fn parse_fsid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32).map(u128::to_be_bytes)
}

impl RadosStore {
    /// Connects to a cluster, waiting on the calling thread.
    ///
    /// # Errors
    /// `Unsupported` where librados is not installed; `NotFound` without a configuration; `Denied` or `TimedOut` as the
    /// cluster says.
    pub fn connect(options: &Options) -> Result<Arc<Self>> {
        bury();
        let cluster = Cluster::connect(options)?;
        let (fsid, address) = (cluster.fsid()?, cluster.address()?);
        let identity = parse_fsid(&fsid)
            .ok_or_else(|| Error::corrupt("the cluster's id is none").with("fsid", &fsid))?;
        let (contexts, listings) = (Mutex::default(), Mutex::default());
        let copying = Arc::new(AtomicBool::new(cluster.copies_objects()));
        Ok(Arc::new(Self { cluster, fsid, identity, address, contexts, listings, copying }))
    }

    /// How many connections this process has: none when all stores are gone, and the watches and replies they gave.
    #[must_use]
    pub fn connections() -> usize {
        connections()
    }

    /// Version of the librados in use: that of its interface, not of Ceph.
    #[must_use]
    pub fn library_version(&self) -> String {
        self.cluster.library_version()
    }

    /// The value that the monitors keep under a key (`ceph config-key`), waiting on the calling thread.
    ///
    /// # Errors
    /// `NotFound` where there is none; `Denied` where the user may not read it; `Corrupt` where it is no text.
    pub fn kept_value(&self, key: &str) -> Result<String> {
        let command = json!({"prefix": "config-key get", "key": key}).to_string();
        let value = self.cluster.ask_monitors(&command).map_err(|e| e.with("key", key))?;
        String::from_utf8(value).map_err(|_| Error::corrupt("a kept value is no text").with("key", key))
    }

    /// A context for `place`: one kept, or a new one.
    fn io(&self, place: Place) -> Result<Arc<IoCtx>> {
        let mut contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(io) = contexts.get(&place) {
            return Ok(Arc::clone(io));
        }
        if contexts.len() >= IO_CONTEXTS_MAX {
            // Those in use stay; the others are quickly made again.
            contexts.retain(|_, io| Arc::strong_count(io) > 1);
        }
        let io = IoCtx::open(&self.cluster, &place)?;
        contexts.insert(place, Arc::clone(&io));
        Ok(io)
    }

    /// A context for an object.
    fn io_of(&self, object: &ObjectId, view: View) -> Result<Arc<IoCtx>> {
        self.io(Place { pool: object.pool, namespace: object.namespace.clone(), view })
    }

    /// A context for a pool.
    fn io_pool(&self, pool: PoolId) -> Result<Arc<IoCtx>> {
        self.io(Place { pool, namespace: Namespace::default(), view: View::Head })
    }

    /// Calls a method of the class `lock` on an object.
    fn lock_step(&self, object: &ObjectId, method: &'static CStr, input: &[u8]) -> Reply<()> {
        self.class_step(object, (c"lock", method), input, "the lock was refused")
    }

    /// Calls a method of a class on an object; `refused` is what is said where it fails.
    fn class_step(
        &self,
        object: &ObjectId,
        (class, method): (&'static CStr, &'static CStr),
        input: &[u8],
        refused: &'static str,
    ) -> Reply<()> {
        let made = self.io_of(object, View::Head).and_then(|io| {
            let op = Write::new()?;
            op.exec(class, method, input);
            op.submit(&io, &object_name(object)?, None, refused)
        });
        let object = object.clone();
        reply(made.map(|done| async move {
            match done.await {
                Ok(_) => Ok(()),
                Err(e) => Err(e.with("object", object)),
            }
        }))
    }

    /// Takes a pool's objects page by page.
    fn list_page(
        &self,
        pool: PoolId,
        namespace: Option<&Namespace>,
        after: Option<&ObjectCursor>,
        max: usize,
    ) -> Result<ObjectPage> {
        let mut listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
        let max = max.clamp(1, ferry_core::limits::OBJECT_PAGE_MAX);
        let (objects, next) = if let Some(cursor) = after {
            let number = <[u8; 8]>::try_from(&cursor.0[..]).map(u64::from_le_bytes);
            let number = number.map_err(|_| Error::invalid("a cursor of another store"))?;
            let open = listings.open.get(&number);
            // Errno: what readdir says of a position it does not know.
            open.ok_or_else(|| Error::invalid("the listing is too old to go on").errno_is(Errno::ESTALE))?
                .next(max)?
        } else {
            let namespace = namespace.cloned().unwrap_or_else(|| Namespace::new(ALL_NSPACES));
            Cursor::begin(&self.io(Place { pool, namespace, view: View::Head })?).next(max)?
        };
        let next = next.map(|cursor| {
            listings.last += 1;
            let number = listings.last;
            listings.open.insert(number, cursor);
            if listings.open.len() > LISTINGS_MAX {
                listings.open.pop_first();
            }
            ObjectCursor(Bytes::copy_from_slice(&number.to_le_bytes()))
        });
        Ok(ObjectPage { objects, next })
    }
}

/// An object's name for C.
fn object_name(object: &ObjectId) -> Result<CString> {
    c_string(&object.name)
}

impl Drop for RadosStore {
    fn drop(&mut self) {
        self.listings.get_mut().unwrap_or_else(PoisonError::into_inner).open.clear();
        let contexts = std::mem::take(self.contexts.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.cluster.set_ended();
        end(&self.cluster, || contexts.values().for_each(|io| io.settle()));
    }
}

impl Store for RadosStore {
    fn capabilities(&self) -> Capabilities {
        let copy = self.copying.load(Ordering::Acquire).then_some(COPY_MIN);
        Capabilities { share: false, copy, list_snaps: false, list_watchers: false }
    }

    fn client(&self) -> ClientId {
        ClientId(self.cluster.instance_id())
    }

    fn describe(&self) -> String {
        format!("ceph {}", self.fsid)
    }

    fn identity(&self) -> [u8; 16] {
        self.identity
    }

    fn pools(&self) -> Reply<Vec<PoolInfo>> {
        Reply::ready(self.cluster.pool_names().map(|names| {
            // A pool removed since its name was listed is left out.
            let found = names.into_iter().filter_map(|name| Some((self.cluster.pool_id(&name).ok()?, name)));
            let info = |(id, name)| PoolInfo { id, name, flags: PoolFlags::default() };
            let mut pools: Vec<PoolInfo> = found.map(info).collect();
            pools.sort_by_key(|p| p.id);
            pools
        }))
    }

    fn create_pool(&self, name: &str) -> Reply<PoolId> {
        let make = || {
            self.cluster.create_pool(name)?;
            self.cluster.catch_up()?;
            let id = self.cluster.pool_id(name)?;
            self.io_pool(id)?.enable_rbd()?;
            Ok(id)
        };
        Reply::ready(make())
    }

    fn remove_pool(&self, pool: PoolId) -> Reply<()> {
        let removed = self.cluster.pool_name(pool).and_then(|name| self.cluster.remove_pool(&name));
        if removed.is_ok() {
            let mut contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
            contexts.retain(|place, _| place.pool != pool);
        }
        Reply::ready(removed.and_then(|()| self.cluster.catch_up()))
    }

    fn set_pool_flags(&self, pool: PoolId, _flags: PoolFlags) -> Reply<()> {
        let known = self.cluster.pool_name(pool);
        Reply::ready(
            known.and_then(|_| Err(Error::unsupported("flags on a pool of a cluster").with("pool", pool))),
        )
    }

    fn pool_stats(&self, pool: PoolId) -> Reply<PoolStats> {
        Reply::ready(self.io_pool(pool).and_then(|io| io.pool_stats()))
    }

    fn write(&self, object: &ObjectId, op: WriteOp) -> Reply<WriteReply> {
        match write::plan(object, op, &|source, view| self.io_of(source, view)) {
            Err(e) => Reply::ready(Err(e)),
            Ok(write::Plan::Nothing) => reply(self.version_of(object)),
            Ok(write::Plan::Rollback { view, snap }) => Reply::ready(self.roll_back(object, view, snap)),
            Ok(write::Plan::Steps { view, steps, stamp, copies }) => {
                reply(self.submit_write(object, view, (steps, stamp, copies)))
            }
        }
    }

    fn read(&self, object: &ObjectId, at: SnapId, op: ReadOp) -> Reply<ReadReply> {
        reply(self.submit_read(object, at, op))
    }

    fn find_extents(
        &self,
        object: &ObjectId,
        at: SnapId,
        offset: u64,
        length: u64,
    ) -> Reply<Vec<(u64, u64)>> {
        reply(self.submit_extents(object, at, (offset, length)))
    }

    fn is_full(&self, object: &ObjectId, at: SnapId, length: u64) -> Reply<bool> {
        reply(self.submit_is_full(object, at, length))
    }

    fn is_same_at(&self, object: &ObjectId, one: SnapId, other: SnapId) -> Reply<bool> {
        reply(self.compare_versions(object, one, other))
    }

    fn list_snaps(&self, object: &ObjectId) -> Reply<SnapSet> {
        let refused = Error::unsupported("listing an object's versions through librados' C interface");
        Reply::ready(Err(refused.with("object", object)))
    }

    fn allocate_snap(&self, pool: PoolId) -> Reply<SnapId> {
        reply(self.io_pool(pool).and_then(|io| io.allocate_snap()))
    }

    fn release_snap(&self, pool: PoolId, snap: SnapId) -> Reply<()> {
        reply(self.io_pool(pool).and_then(|io| io.release_snap(snap)))
    }

    fn list_objects(
        &self,
        pool: PoolId,
        namespace: Option<&Namespace>,
        after: Option<ObjectCursor>,
        max: usize,
    ) -> Reply<ObjectPage> {
        Reply::ready(self.list_page(pool, namespace, after.as_ref(), max))
    }

    fn watch(&self, object: &ObjectId) -> Reply<WatchReceiver> {
        let io = self.io_of(object, View::Head);
        reply(io.and_then(|io| io.watch(&object_name(object)?)))
    }

    fn notify(&self, object: &ObjectId, payload: Bytes, timeout: Duration) -> Reply<NotifyReply> {
        let io = self.io_of(object, View::Head);
        reply(io.and_then(|io| io.notify(&object_name(object)?, &payload, timeout)))
    }

    fn list_watchers(&self, object: &ObjectId) -> Reply<Vec<WatcherInfo>> {
        Reply::ready(watchers::list(&self.cluster, object).map_err(|e| e.with("object", object)))
    }

    fn lock(&self, object: &ObjectId, request: LockRequest) -> Reply<()> {
        self.lock_step(object, c"lock", &lock_input(&request))
    }

    fn unlock(&self, object: &ObjectId, request: UnlockRequest) -> Reply<()> {
        self.lock_step(object, c"unlock", &unlock_input(&request))
    }

    fn break_lock(&self, object: &ObjectId, request: UnlockRequest, locker: ClientId) -> Reply<()> {
        self.lock_step(object, c"break_lock", &break_input(&request, locker))
    }

    fn change_child(&self, object: &ObjectId, step: ChildStep, input: Bytes) -> Reply<()> {
        let method = match step {
            ChildStep::Attach => c"child_attach",
            ChildStep::Detach => c"child_detach",
        };
        self.class_step(object, (c"rbd", method), &input, "the parent's header was not changed")
    }

    fn cut_off(&self, address: &str) -> Reply<()> {
        Reply::ready(self.cluster.cut_off(address).map_err(|e| e.with("address", address)))
    }

    fn lock_info(&self, object: &ObjectId, name: &str) -> Reply<LockInfo> {
        let ask = ReadOp { xattrs: true, ..ReadOp::default() };
        let (asked, name) = (self.submit_read(object, SnapId::HEAD, ask), format!("lock.{name}"));
        reply(asked.map(|asked| async move {
            let found = asked.await?.xattrs.remove(&name);
            found.map_or_else(|| Ok(LockInfo::default()), |bytes| LockInfo::decode(&bytes))
        }))
    }

    fn flush(&self) -> Reply<()> {
        // The cluster acknowledges a write when it is on stable storage.
        Reply::ready(Ok(()))
    }

    fn address(&self) -> String {
        self.address.clone()
    }
}
