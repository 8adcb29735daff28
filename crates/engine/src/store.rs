//! The engine as a `Store`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use ferry_core::limits::{OBJECT_PAGE_MAX, OMAP_PAGE_MAX};
use ferry_core::lock::{LockInfo, LockRequest, UnlockRequest};
use ferry_core::store::{Clone as SnapClone, ObjectCursor};
use ferry_core::watch::{NotifyReply, WatchReceiver, WatcherInfo};
use ferry_core::{
    Capabilities, ClientId, Effect, Error, ErrorKind, Guard, Namespace, ObjectId, ObjectPage, OmapPage,
    OmapRead, PoolFlags, PoolId, PoolInfo, PoolStats, ReadOp, ReadReply, Reply, Result, SnapId, SnapSet,
    Store, WriteOp, WriteReply,
};

use crate::address::Block;
use crate::core::Core;
use crate::engine::Engine;
use crate::index::pieces;
use crate::key::{Key, KeyReader, Tag};
use crate::limits::BLOCK;
use crate::object::blocks_of;
use crate::read::ReadJob;
use crate::record::Record;
use crate::space::Purpose;
use crate::tree::After;

impl Engine {
    fn do_write(&self, id: &ObjectId, op: &WriteOp) -> Result<WriteReply> {
        self.make_room_for(op)?;
        let (reply, overdue, rolled) = {
            let mut core = self.lock();
            core.check_writable()?;
            if core.pool(id.pool)?.value.read_only {
                return Err(Error::new(ErrorKind::ReadOnly, "the pool is read-only").with("pool", id.pool));
            }
            let known = core.inode_of(id)?;
            let creates = core.check_guards(id, known, op)?;
            let plan = core.plan(id, known, op, creates)?;
            let bytes: usize = plan.payload.iter().map(Bytes::len).sum();
            core.counters.client_bytes += bytes as u64;
            if plan.records.iter().any(Record::changes_generation) {
                self.next_generation();
            }
            core.commit(plan.purpose, plan.records, plan.payload)?;
            let rolled = std::mem::take(&mut core.log.rolled);
            (WriteReply { version: plan.version }, core.checkpoint_overdue(), rolled)
        };
        if rolled {
            self.call_for_work();
        }
        if overdue {
            self.help_checkpoint()?;
        }
        Ok(reply)
    }

    fn do_read(&self, id: &ObjectId, at: SnapId, op: &ReadOp) -> Result<ReadReply> {
        let (mut reply, job) = {
            let mut core = self.lock();
            core.read_metadata(id, at, op)?
        };
        if let Some(job) = job {
            reply.data = job.run(&*self.disk).map_err(|e| e.with("object", id))?;
        }
        Ok(reply)
    }

    fn do_extents(&self, id: &ObjectId, at: SnapId, offset: u64, length: u64) -> Result<Vec<(u64, u64)>> {
        let mut core = self.lock();
        core.pool(id.pool)?;
        let found = core.version_at(id, at)?;
        Ok(core.plan_read(&found, offset, length)?.into_extents())
    }

    /// Has the bytes of a range brought to memory, without waiting for them.
    fn announce(&self, id: &ObjectId, at: SnapId, offset: u64, length: u64) -> Result<()> {
        let job = {
            let mut core = self.lock();
            let found = core.version_at(id, at)?;
            core.plan_read(&found, offset, length)?
        };
        job.announce(&*self.disk);
        Ok(())
    }

    /// Runs `change` on the lock `name` of an object and stores what comes of it, unless it changed meanwhile: then again.
    fn change_lock(
        &self,
        id: &ObjectId,
        name: &str,
        change: impl Fn(&mut LockInfo) -> Result<()>,
    ) -> Result<()> {
        let attribute = format!("lock.{name}");
        loop {
            let (exists, before) = {
                let mut core = self.lock();
                (core.version_at(id, SnapId::HEAD).is_ok(), core.lock_value(id, &attribute)?)
            };
            let mut info =
                before.as_ref().map_or_else(|| Ok(LockInfo::default()), |b| LockInfo::decode(b))?;
            change(&mut info)?;
            let guard = if exists {
                Guard::XattrCompare { name: attribute.clone(), value: before.unwrap_or_default() }
            } else {
                Guard::CreateExclusive
            };
            let set = Effect::XattrSet(attribute.clone(), info.encode());
            match self.do_write(id, &WriteOp::new().guard(guard).effect(set).full_try()) {
                Err(e)
                    if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::Exists | ErrorKind::NotFound) => {}
                done => return done.map(drop),
            }
        }
    }

    fn pool_change(&self, change: impl FnOnce(&mut Core) -> Result<Vec<Record>>) -> Result<()> {
        let mut core = self.lock();
        core.check_writable()?;
        let records = change(&mut core)?;
        core.commit(Purpose::Metadata, records, Vec::new())
    }

    /// Something was made, removed or said otherwise: what others found out before may be wrong.
    fn next_generation(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    fn do_remove_pool(&self, pool: PoolId) -> Result<()> {
        self.next_generation();
        if self.lock().pool(pool)?.value.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "the pool is read-only").with("pool", pool));
        }
        loop {
            let mut core = self.lock();
            core.check_writable()?;
            let prefix = Key::new(Tag::Name).i64(pool.0);
            let Some((_, inode)) = core.tree.next(prefix.bytes(), After::Including, prefix.bytes())? else {
                break;
            };
            let inode: [u8; 8] = inode
                .as_ref()
                .try_into()
                .map_err(|_| Error::corrupt("an inode number has a wrong length"))?;
            let inode = u64::from_le_bytes(inode);
            let object = core.object(inode)?.clone();
            let mut records: Vec<Record> = object
                .clones
                .iter()
                .flat_map(|c| c.snaps.iter().map(|s| Record::DropSnap { inode, snap: *s }))
                .collect();
            if object.exists {
                records.insert(0, Record::Remove { inode });
            }
            core.commit(Purpose::Reclaim, records, Vec::new())?;
        }
        self.lock().commit(Purpose::Reclaim, vec![Record::PoolRemove { pool: pool.0 }], Vec::new())
    }

    fn do_list_snaps(&self, id: &ObjectId) -> Result<SnapSet> {
        let mut core = self.lock();
        let missing = || Error::not_found("no such object").with("object", id);
        let inode = core.inode_of(id)?.ok_or_else(missing)?;
        let object = core.object(inode)?.clone();
        let mut clones = Vec::new();
        for (i, clone) in object.clones.iter().enumerate() {
            let newer = object.clones.get(i + 1).map_or(object.size, |c| c.size);
            clones.push(SnapClone {
                id: SnapId(clone.id),
                snaps: clone.snaps.iter().map(|s| SnapId(*s)).collect(),
                size: clone.size,
                overlap: core.overlap(inode, clone.id, clone.size.min(newer))?,
            });
        }
        Ok(SnapSet { seq: object.snap_seq, head_size: object.exists.then_some(object.size), clones })
    }

    fn do_list_objects(
        &self,
        pool: PoolId,
        namespace: Option<&Namespace>,
        after: Option<ObjectCursor>,
        max: usize,
    ) -> Result<ObjectPage> {
        let mut core = self.lock();
        core.pool(pool)?;
        let mut prefix = Key::new(Tag::Name).i64(pool.0);
        if let Some(namespace) = namespace {
            prefix = prefix.text(namespace.as_str().as_bytes());
        }
        let max = max.clamp(1, OBJECT_PAGE_MAX);
        let mut from = after.map_or_else(|| prefix.bytes().to_vec(), |c| c.0.to_vec());
        let mut objects = Vec::new();
        loop {
            let found = core.tree.scan(&from, After::Excluding, prefix.bytes(), max)?;
            let Some(last) = found.last() else { return Ok(ObjectPage { objects, next: None }) };
            from = last.0.to_vec();
            for (key, inode) in &found {
                let mut r = KeyReader::new(key);
                r.i64()?;
                let (namespace, name) = (utf8(r.text()?)?, utf8(r.text()?)?);
                let inode = inode.as_ref().try_into().map(u64::from_le_bytes);
                let inode = inode.map_err(|_| Error::corrupt("an inode number has a wrong length"))?;
                if core.object(inode)?.exists {
                    objects.push((Namespace::new(&namespace), Arc::from(name.as_str())));
                    if objects.len() == max {
                        return Ok(ObjectPage { objects, next: Some(ObjectCursor(key.clone())) });
                    }
                }
            }
        }
    }

    /// Drops versions of released snapshots, some objects at a time. `true` where there is more to do.
    pub(crate) fn trim_step(&self) -> Result<bool> {
        let mut core = self.lock();
        if core.read_only || core.log.poisoned {
            return Ok(false);
        }
        let Some((pool, snap)) = core.released.first().copied() else { return Ok(false) };
        let inodes = core.objects_of_snap(pool, snap, 64)?;
        let records = if inodes.is_empty() {
            vec![Record::SnapTrimmed { pool, snap }]
        } else {
            inodes.into_iter().map(|inode| Record::DropSnap { inode, snap }).collect()
        };
        core.commit(Purpose::Reclaim, records, Vec::new())?;
        Ok(true)
    }

    /// Before data is written to a store that runs full: give back what can be given back.
    fn make_room_for(&self, op: &WriteOp) -> Result<()> {
        let writes = op.effects.iter().any(|e| matches!(e, Effect::Write { .. } | Effect::WriteFull(_)));
        if writes && self.is_short()? {
            self.reclaim(2)?;
        }
        Ok(())
    }

    /// Whether little more than the reserve is left.
    pub(crate) fn is_short(&self) -> Result<bool> {
        let core = self.lock();
        if core.read_only || core.log.poisoned || core.log.has_room(&core.space) {
            return Ok(false);
        }
        core.is_nearly_short()
    }
}

fn utf8(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| Error::corrupt("an object's name is not UTF-8").because(e))
}

impl Core {
    /// What a read asks for, but for the data's bytes, which the job fetches.
    fn read_metadata(
        &mut self,
        id: &ObjectId,
        at: SnapId,
        op: &ReadOp,
    ) -> Result<(ReadReply, Option<ReadJob>)> {
        self.pool(id.pool)?;
        let found = self.version_at(id, at)?;
        let mut reply = ReadReply { version: found.head, size: found.size, ..ReadReply::default() };
        if op.xattrs && found.exists {
            reply.xattrs = self.xattrs(found.inode)?.into_iter().collect();
        }
        if let Some(wanted) = op.omap.as_ref().filter(|_| found.exists) {
            reply.omap = self.read_omap(found.inode, wanted)?;
        }
        let job = match op.data {
            Some((offset, length)) => Some(self.plan_read(&found, offset, length)?),
            None => None,
        };
        Ok((reply, job))
    }

    fn read_omap(&mut self, inode: u64, wanted: &OmapRead) -> Result<OmapPage> {
        match wanted {
            OmapRead::Keys(keys) => {
                let mut entries = Vec::new();
                for key in keys {
                    if let Some(value) = self.get_long(&Key::new(Tag::Omap).u64(inode).text(key))? {
                        entries.push((key.clone(), value));
                    }
                }
                entries.sort();
                entries.dedup();
                Ok(OmapPage { entries, more: false })
            }
            OmapRead::Page { after, prefix, max } => {
                let max = (*max).min(OMAP_PAGE_MAX);
                let base = Key::new(Tag::Omap).u64(inode);
                let from =
                    if after.is_empty() { base.clone() } else { base.clone().text(after).u16(u16::MAX) };
                let within = base.text_prefix(prefix);
                let mut found = self.long_entries(&within, from.bytes(), After::Excluding, max + 1)?;
                let more = found.len() > max;
                found.truncate(max);
                let entries = found.into_iter().map(|(k, v)| (Bytes::from(k), v)).collect();
                Ok(OmapPage { entries, more })
            }
        }
    }

    /// Ranges of a preserved version that the next newer one has unchanged, up to `end` bytes.
    fn overlap(&mut self, inode: u64, clone: u64, end: u64) -> Result<Vec<(u64, u64)>> {
        let mut same: Vec<(u64, u64)> = Vec::new();
        for (chunk, first, from, n) in pieces(0, blocks_of(end)) {
            let table = self.chunk((inode, clone, chunk))?.clone();
            for i in 0..n {
                if table.get(from + i) != Block::Absent {
                    continue;
                }
                let offset = Self::block_bytes(first) + (i * BLOCK) as u64;
                let length = (end - offset).min(BLOCK as u64);
                match same.last_mut() {
                    Some(last) if last.0 + last.1 == offset => last.1 += length,
                    _ => same.push((offset, length)),
                }
            }
        }
        Ok(same)
    }

    /// The xattr that holds a lock; `None` where it or the object does not exist.
    fn lock_value(&mut self, id: &ObjectId, attribute: &str) -> Result<Option<Bytes>> {
        self.pool(id.pool)?;
        match self.inode_of(id)? {
            Some(inode) if self.object(inode)?.exists => {
                self.get_long(&Key::new(Tag::Xattr).u64(inode).text(attribute.as_bytes()))
            }
            _ => Ok(None),
        }
    }
}

impl Store for Engine {
    fn capabilities(&self) -> Capabilities {
        Capabilities { share: true, copy: None, list_snaps: true, list_watchers: true }
    }

    fn client(&self) -> ClientId {
        self.client
    }

    fn generation(&self) -> Option<u64> {
        Some(self.generation.load(Ordering::Acquire))
    }

    fn describe(&self) -> String {
        self.disk.describe()
    }

    fn identity(&self) -> [u8; 16] {
        Self::identity(self)
    }

    fn pools(&self) -> Reply<Vec<PoolInfo>> {
        let core = self.lock();
        let pools = core.pools.iter().map(|(id, p)| PoolInfo {
            id: PoolId(*id),
            name: p.value.name.clone(),
            flags: PoolFlags { read_only: p.value.read_only },
        });
        Reply::ready(Ok(pools.collect()))
    }

    fn create_pool(&self, name: &str) -> Reply<PoolId> {
        let mut made = PoolId(0);
        let result = self.pool_change(|core| {
            if name.is_empty() {
                return Err(Error::invalid("a pool needs a name"));
            }
            if core.pools.values().any(|p| p.value.name == name) {
                return Err(Error::exists("the pool exists").with("pool", name));
            }
            made = PoolId(core.next_pool);
            Ok(vec![Record::Pool { pool: made.0, name: name.to_owned(), read_only: false }])
        });
        Reply::ready(result.map(|()| made))
    }

    fn remove_pool(&self, pool: PoolId) -> Reply<()> {
        Reply::ready(self.do_remove_pool(pool))
    }

    fn set_pool_flags(&self, pool: PoolId, flags: PoolFlags) -> Reply<()> {
        Reply::ready(self.pool_change(|core| {
            let name = core.pool(pool)?.value.name.clone();
            Ok(vec![Record::Pool { pool: pool.0, name, read_only: flags.read_only }])
        }))
    }

    fn pool_stats(&self, pool: PoolId) -> Reply<PoolStats> {
        Reply::ready(
            self.lock()
                .pool(pool)
                .map(|p| PoolStats { objects: p.value.objects, used_bytes: p.value.blocks * BLOCK as u64 }),
        )
    }

    fn write(&self, object: &ObjectId, op: WriteOp) -> Reply<WriteReply> {
        Reply::ready(self.do_write(object, &op))
    }

    fn read(&self, object: &ObjectId, at: SnapId, op: ReadOp) -> Reply<ReadReply> {
        Reply::ready(self.do_read(object, at, &op))
    }

    fn extents(&self, object: &ObjectId, at: SnapId, offset: u64, length: u64) -> Reply<Vec<(u64, u64)>> {
        Reply::ready(self.do_extents(object, at, offset, length))
    }

    fn will_read(&self, object: &ObjectId, at: SnapId, offset: u64, length: u64) {
        // One that is not there, or whose index cannot be read: the read says so.
        self.announce(object, at, offset, length).ok();
    }

    fn list_snaps(&self, object: &ObjectId) -> Reply<SnapSet> {
        Reply::ready(self.do_list_snaps(object))
    }

    fn allocate_snap(&self, pool: PoolId) -> Reply<SnapId> {
        let mut given = SnapId(0);
        let result = self.pool_change(|core| {
            let pool_record = &core.pool(pool)?.value;
            if pool_record.read_only {
                return Err(Error::new(ErrorKind::ReadOnly, "the pool is read-only").with("pool", pool));
            }
            given = SnapId(pool_record.snap_seq + 1);
            Ok(vec![Record::SnapAllocate { pool: pool.0, snap: given.0 }])
        });
        Reply::ready(result.map(|()| given))
    }

    fn release_snap(&self, pool: PoolId, snap: SnapId) -> Reply<()> {
        let released = {
            let mut core = self.lock();
            let check = core.check_writable().and_then(|()| core.pool(pool).map(|p| p.value.read_only));
            match check {
                Err(e) => Err(e),
                Ok(true) => Err(Error::new(ErrorKind::ReadOnly, "the pool is read-only").with("pool", pool)),
                Ok(false) => {
                    let record = Record::SnapRelease { pool: pool.0, snap: snap.0 };
                    self.next_generation();
                    core.commit(Purpose::Reclaim, vec![record], Vec::new())
                }
            }
        };
        Reply::ready(released.and_then(|()| {
            while self.trim_step()? {}
            Ok(())
        }))
    }

    fn list_objects(
        &self,
        pool: PoolId,
        namespace: Option<&Namespace>,
        after: Option<ObjectCursor>,
        max: usize,
    ) -> Reply<ObjectPage> {
        Reply::ready(self.do_list_objects(pool, namespace, after, max))
    }

    fn watch(&self, object: &ObjectId) -> Reply<WatchReceiver> {
        let exists = self.lock().version_at(object, SnapId::HEAD);
        Reply::ready(exists.map(|_| self.watches.watch(object, self.client, self.address())))
    }

    fn notify(&self, object: &ObjectId, payload: Bytes, _timeout: Duration) -> Reply<NotifyReply> {
        if let Err(e) = self.lock().version_at(object, SnapId::HEAD) {
            return Reply::ready(Err(e));
        }
        let answers = self.watches.notify(object, self.client, &payload);
        Reply::pending(async move { Ok(answers.await) })
    }

    fn list_watchers(&self, object: &ObjectId) -> Reply<Vec<WatcherInfo>> {
        let exists = self.lock().version_at(object, SnapId::HEAD);
        Reply::ready(exists.map(|_| self.watches.list(object)))
    }

    fn lock(&self, object: &ObjectId, request: LockRequest) -> Reply<()> {
        Reply::ready(
            self.change_lock(object, &request.name, |info| info.take(self.client, &self.address(), &request)),
        )
    }

    fn unlock(&self, object: &ObjectId, request: UnlockRequest) -> Reply<()> {
        Reply::ready(
            self.change_lock(object, &request.name, |info| info.drop_hold(self.client, &request.cookie)),
        )
    }

    fn break_lock(&self, object: &ObjectId, request: UnlockRequest, locker: ClientId) -> Reply<()> {
        Reply::ready(self.change_lock(object, &request.name, |info| info.drop_hold(locker, &request.cookie)))
    }

    fn cut_off(&self, _address: &str) -> Reply<()> {
        // Its clients live in this process, which owns the store.
        Reply::ready(Ok(()))
    }

    fn lock_info(&self, object: &ObjectId, name: &str) -> Reply<LockInfo> {
        let mut core = Engine::lock(self);
        let value = core
            .version_at(object, SnapId::HEAD)
            .and_then(|_| core.lock_value(object, &format!("lock.{name}")));
        Reply::ready(value.and_then(|v| v.map_or_else(|| Ok(LockInfo::default()), |b| LockInfo::decode(&b))))
    }

    fn flush(&self) -> Reply<()> {
        Reply::ready(self.sync())
    }

    fn address(&self) -> String {
        format!("127.0.0.1:0/{}", self.client.0)
    }
}
