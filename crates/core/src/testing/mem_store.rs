//! A `Store` in memory: the contract in its plainest form, and the reference the others are compared with.

mod data;
mod object;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use self::object::{Head, Object, missing};
use crate::env::Env;
use crate::error::{Error, ErrorKind, Result};
use crate::ident::{ClientId, Namespace, ObjectId, PoolId, SnapId};
use crate::limits::{BLOCK_SIZE, OBJECT_PAGE_MAX};
use crate::lock::{LockInfo, LockRequest, UnlockRequest};
use crate::reply::Reply;
use crate::store::{
    Capabilities, Effect, Guard, ObjectCursor, ObjectPage, PoolFlags, PoolInfo, PoolStats, ReadOp, ReadReply,
    SnapSet, SparseData, Store, WriteOp, WriteReply,
};
use crate::watch::{NotifyReply, WatchReceiver, WatchRegistry, WatcherInfo};

/// Key of an object inside its pool.
type Key = (Namespace, Arc<str>);

/// A pool and what it holds.
#[derive(Debug, Default)]
struct Pool {
    name: String,
    flags: PoolFlags,
    objects: BTreeMap<Key, Object>,
    snap_last: u64,
    released: BTreeSet<SnapId>,
}

/// Everything the clients of one store share.
#[derive(Debug, Default)]
struct State {
    pools: BTreeMap<PoolId, Pool>,
    pool_last: i64,
    version_last: u64,
    client_last: u64,
}

/// Pools of objects that vanish with their last owner. Every answer but that of a notify is ready at once.
#[derive(Debug)]
pub struct MemStore {
    state: Arc<Mutex<State>>,
    watches: WatchRegistry,
    client: ClientId,
    identity: [u8; 16],
    capabilities: Capabilities,
}

/// All that is optional.
const EVERYTHING: Capabilities =
    Capabilities { share: true, copy: Some(0), list_snaps: true, list_watchers: true };

impl MemStore {
    /// An empty store that can do everything.
    #[must_use]
    pub fn new(env: &Env) -> Arc<Self> {
        Self::with_capabilities(env, EVERYTHING)
    }

    /// An empty store that refuses what `capabilities` leave out, as a cluster might.
    #[must_use]
    pub fn with_capabilities(env: &Env, capabilities: Capabilities) -> Arc<Self> {
        let mut identity = [0; 16];
        identity[..8].copy_from_slice(&env.rng.next_u64().to_le_bytes());
        identity[8..].copy_from_slice(&env.rng.next_u64().to_le_bytes());
        let state = Arc::new(Mutex::new(State { client_last: 4100, ..State::default() }));
        Arc::new(Self {
            state,
            watches: WatchRegistry::default(),
            client: ClientId(4100),
            identity,
            capabilities,
        })
    }

    /// The same store as another client sees it.
    #[must_use]
    pub fn another_client(&self) -> Arc<Self> {
        let client = {
            let mut state = self.state();
            state.client_last += 1;
            ClientId(state.client_last)
        };
        let (state, watches) = (Arc::clone(&self.state), self.watches.clone());
        Arc::new(Self { state, watches, client, identity: self.identity, capabilities: self.capabilities })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the lock `name` of an object by `change`.
    fn with_lock(
        &self,
        object: &ObjectId,
        name: &str,
        change: impl FnOnce(&mut LockInfo) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.state();
        let attribute = format!("lock.{name}");
        let found =
            state.object(object)?.and_then(|o| o.head.as_ref()).and_then(|h| h.xattrs.get(&attribute));
        let mut info = found.map(|b| LockInfo::decode(b)).transpose()?.unwrap_or_default();
        change(&mut info)?;
        let op = WriteOp::new().effect(Effect::XattrSet(attribute, info.encode()));
        state.write(object, op, self.capabilities).map(drop)
    }

    /// Refuses where an optional part is switched off.
    fn need(has: bool, what: &'static str) -> Result<()> {
        if has { Ok(()) } else { Err(Error::unsupported(what)) }
    }
}

fn no_pool(pool: PoolId) -> Error {
    Error::not_found("no such pool").with("pool", pool)
}

fn key(object: &ObjectId) -> Key {
    (object.namespace.clone(), Arc::clone(&object.name))
}

impl State {
    fn pool(&self, pool: PoolId) -> Result<&Pool> {
        self.pools.get(&pool).ok_or_else(|| no_pool(pool))
    }

    /// The pool, if it may be written to.
    fn writable(&mut self, pool: PoolId) -> Result<&mut Pool> {
        let found = self.pools.get_mut(&pool).ok_or_else(|| no_pool(pool))?;
        if found.flags.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "the pool is read-only").with("pool", &found.name));
        }
        Ok(found)
    }

    fn object(&self, object: &ObjectId) -> Result<Option<&Object>> {
        Ok(self.pool(object.pool)?.objects.get(&key(object)))
    }

    /// The object, if its head exists.
    fn existing(&self, object: &ObjectId) -> Result<&Object> {
        self.object(object)?.filter(|o| o.head.is_some()).ok_or_else(missing)
    }

    /// Performs an op on a copy and keeps the copy if all went well.
    fn write(&mut self, id: &ObjectId, op: WriteOp, can: Capabilities) -> Result<WriteReply> {
        op.check(id)?;
        let version = self.version_last + 1;
        let pool = self.writable(id.pool)?;
        let mut object = pool.objects.get(&key(id)).cloned().unwrap_or_default();
        object.check(&op)?;
        if op.touches_data()
            && let Some(context) = &op.snap_context
        {
            object.preserve(context, |s| pool.released.contains(&s));
        }
        let creates = op.guards.contains(&Guard::CreateExclusive);
        if creates {
            object.made();
        }
        let changes = creates || !op.effects.is_empty();
        let (stamp, copies) = (op.stamp, op.copies());
        for effect in op.effects {
            match effect {
                Effect::ShareRange { source, at, offset, length, target_offset } => {
                    MemStore::need(can.share, "sharing ranges of objects")?;
                    let from = self.object(&source)?.and_then(|o| o.at(at)).cloned().ok_or_else(missing)?;
                    if length % BLOCK_SIZE != 0 && offset + length < from.size {
                        return Err(Error::invalid("a shared range that ends inside a block"));
                    }
                    object.made().data.share(&from, offset, length, target_offset);
                }
                Effect::CopyObject { source, at, .. } => {
                    MemStore::need(can.copy.is_some(), "copying objects")?;
                    let from = self.object(&source)?.and_then(|o| o.at(at)).cloned().ok_or_else(missing)?;
                    *object.made() = Head::of(from);
                }
                other => object.apply(other)?,
            }
        }
        if changes {
            // What was copied brought its own.
            if let Some(head) = object.head.as_mut().filter(|_| !copies) {
                head.data.stamp = stamp;
            }
            object.version = version;
            self.version_last = version;
        }
        let reply = WriteReply { version: object.version };
        let objects = &mut self.writable(id.pool)?.objects;
        if object.is_gone() {
            objects.remove(&key(id));
        } else {
            objects.insert(key(id), object);
        }
        Ok(reply)
    }
}

impl Store for MemStore {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn client(&self) -> ClientId {
        self.client
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }

    fn identity(&self) -> [u8; 16] {
        self.identity
    }

    fn pools(&self) -> Reply<Vec<PoolInfo>> {
        let state = self.state();
        let info = |(id, p): (&PoolId, &Pool)| PoolInfo { id: *id, name: p.name.clone(), flags: p.flags };
        Reply::ready(Ok(state.pools.iter().map(info).collect()))
    }

    fn create_pool(&self, name: &str) -> Reply<PoolId> {
        let mut state = self.state();
        if state.pools.values().any(|p| p.name == name) {
            return Reply::ready(Err(Error::exists("the pool exists").with("pool", name)));
        }
        state.pool_last += 1;
        let id = PoolId(state.pool_last);
        state.pools.insert(id, Pool { name: name.to_owned(), ..Pool::default() });
        Reply::ready(Ok(id))
    }

    fn remove_pool(&self, pool: PoolId) -> Reply<()> {
        let mut state = self.state();
        let allowed = state.writable(pool).map(drop);
        if allowed.is_ok() {
            state.pools.remove(&pool);
        }
        Reply::ready(allowed)
    }

    fn set_pool_flags(&self, pool: PoolId, flags: PoolFlags) -> Reply<()> {
        let mut state = self.state();
        let found = state.pools.get_mut(&pool).ok_or_else(|| no_pool(pool));
        Reply::ready(found.map(|p| p.flags = flags))
    }

    fn pool_stats(&self, pool: PoolId) -> Reply<PoolStats> {
        let state = self.state();
        Reply::ready(state.pool(pool).map(|p| PoolStats {
            objects: p.objects.values().filter(|o| o.head.is_some()).count() as u64,
            used_bytes: p.objects.values().map(Object::used).sum(),
        }))
    }

    fn write(&self, object: &ObjectId, op: WriteOp) -> Reply<WriteReply> {
        Reply::ready(self.state().write(object, op, self.capabilities))
    }

    fn read(&self, object: &ObjectId, at: SnapId, op: ReadOp) -> Reply<ReadReply> {
        let state = self.state();
        let found = state.object(object).and_then(|o| o.ok_or_else(missing));
        Reply::ready(found.and_then(|o| o.read(at, &op)))
    }

    fn extents(&self, object: &ObjectId, at: SnapId, offset: u64, length: u64) -> Reply<Vec<(u64, u64)>> {
        let state = self.state();
        let found = state.object(object).and_then(|o| o.ok_or_else(missing));
        let read = found.and_then(|o| o.read(at, &ReadOp::data(offset, length)));
        let ranges = |data: SparseData| data.extents.iter().map(|(at, b)| (*at, b.len() as u64)).collect();
        Reply::ready(read.map(|reply| ranges(reply.data)))
    }

    fn is_full(&self, object: &ObjectId, at: SnapId, length: u64) -> Reply<bool> {
        let state = self.state();
        let found = state.object(object).and_then(|o| o.ok_or_else(missing));
        let read = found.and_then(|o| o.read(at, &ReadOp::data(0, length)));
        Reply::ready(read.map(|reply| {
            let data: u64 = reply.data.extents.iter().map(|(_, b)| b.len() as u64).sum();
            data == length
        }))
    }

    fn list_snaps(&self, object: &ObjectId) -> Reply<SnapSet> {
        if let Err(e) = Self::need(self.capabilities.list_snaps, "listing an object's versions") {
            return Reply::ready(Err(e));
        }
        let state = self.state();
        let found = state.object(object).and_then(|o| o.ok_or_else(missing));
        Reply::ready(found.map(Object::snap_set))
    }

    fn allocate_snap(&self, pool: PoolId) -> Reply<SnapId> {
        Reply::ready(self.state().writable(pool).map(|p| {
            p.snap_last += 1;
            SnapId(p.snap_last)
        }))
    }

    fn release_snap(&self, pool: PoolId, snap: SnapId) -> Reply<()> {
        Reply::ready(self.state().writable(pool).map(|p| {
            p.released.insert(snap);
            p.objects.values_mut().for_each(|o| o.release(snap));
            p.objects.retain(|_, o| !o.is_gone());
        }))
    }

    fn list_objects(
        &self,
        pool: PoolId,
        namespace: Option<&Namespace>,
        after: Option<ObjectCursor>,
        max: usize,
    ) -> Reply<ObjectPage> {
        let state = self.state();
        Reply::ready(state.pool(pool).and_then(|p| {
            let start = match after {
                Some(cursor) => Bound::Excluded(decode_cursor(&cursor)?),
                None => Bound::Unbounded,
            };
            let mut all = p
                .objects
                .range((start, Bound::Unbounded))
                .filter(|((n, _), o)| o.head.is_some() && namespace.is_none_or(|asked| asked == n))
                .map(|(key, _)| key.clone());
            let objects: Vec<Key> = all.by_ref().take(max.clamp(1, OBJECT_PAGE_MAX)).collect();
            let next = all.next().and(objects.last()).map(encode_cursor);
            Ok(ObjectPage { objects, next })
        }))
    }

    fn watch(&self, object: &ObjectId) -> Reply<WatchReceiver> {
        let state = self.state();
        let exists = state.existing(object).map(drop);
        Reply::ready(exists.map(|()| self.watches.watch(object, self.client, self.address())))
    }

    fn notify(&self, object: &ObjectId, payload: Bytes, _timeout: Duration) -> Reply<NotifyReply> {
        if let Err(e) = self.state().existing(object) {
            return Reply::ready(Err(e));
        }
        let answers = self.watches.notify(object, self.client, &payload);
        Reply::pending(async move { Ok(answers.await) })
    }

    fn list_watchers(&self, object: &ObjectId) -> Reply<Vec<WatcherInfo>> {
        let allowed = Self::need(self.capabilities.list_watchers, "listing watchers")
            .and_then(|()| self.state().existing(object).map(drop));
        Reply::ready(allowed.map(|()| self.watches.list(object)))
    }

    fn lock(&self, object: &ObjectId, request: LockRequest) -> Reply<()> {
        let address = self.address();
        Reply::ready(self.with_lock(object, &request.name, |info| info.take(self.client, &address, &request)))
    }

    fn unlock(&self, object: &ObjectId, request: UnlockRequest) -> Reply<()> {
        self.break_lock(object, request, self.client)
    }

    fn break_lock(&self, object: &ObjectId, request: UnlockRequest, locker: ClientId) -> Reply<()> {
        Reply::ready(self.with_lock(object, &request.name, |info| info.drop_hold(locker, &request.cookie)))
    }

    fn cut_off(&self, _address: &str) -> Reply<()> {
        // Its clients live in this process.
        Reply::ready(Ok(()))
    }

    fn lock_info(&self, object: &ObjectId, name: &str) -> Reply<LockInfo> {
        let state = self.state();
        Reply::ready(state.existing(object).and_then(|o| {
            let found = o.head.as_ref().and_then(|h| h.xattrs.get(&format!("lock.{name}")));
            found.map_or_else(|| Ok(LockInfo::default()), |b| LockInfo::decode(b))
        }))
    }

    fn flush(&self) -> Reply<()> {
        Reply::ready(Ok(()))
    }

    fn address(&self) -> String {
        format!("127.0.0.1:0/{}", self.client.0)
    }
}

/// The last key listed: namespace, NUL, name.
fn encode_cursor((namespace, name): &Key) -> ObjectCursor {
    ObjectCursor(Bytes::from(format!("{namespace}\0{name}")))
}

/// Reads what [`encode_cursor`] wrote.
fn decode_cursor(cursor: &ObjectCursor) -> Result<Key> {
    let text = std::str::from_utf8(&cursor.0).ok().and_then(|t| t.split_once('\0'));
    let (namespace, name) = text.ok_or_else(|| Error::invalid("a cursor of another store"))?;
    Ok((Namespace::new(namespace), Arc::from(name)))
}
