//! One object with its preserved versions, and what an op does to it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::data::Data;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::ident::SnapId;
use crate::limits::OMAP_PAGE_MAX;
use crate::store::{
    Clone as CloneInfo, Effect, Guard, OmapPage, OmapRead, ReadOp, ReadReply, SnapContext, SnapSet,
    SparseData, WriteOp,
};

/// What is written to.
#[derive(Clone, Debug, Default)]
pub(super) struct Head {
    pub(super) data: Data,
    pub(super) xattrs: BTreeMap<String, Bytes>,
    omap: BTreeMap<Bytes, Bytes>,
}

impl Head {
    /// One with no more than data.
    pub(super) fn of(data: Data) -> Self {
        Self { data, xattrs: BTreeMap::new(), omap: BTreeMap::new() }
    }
}

/// A version kept for snapshots.
#[derive(Clone, Debug)]
struct Preserved {
    id: SnapId,
    /// Ascending.
    snaps: Vec<SnapId>,
    data: Data,
}

/// An object. With neither head nor preserved versions it is not there at all.
#[derive(Clone, Debug, Default)]
pub(super) struct Object {
    pub(super) version: u64,
    pub(super) head: Option<Head>,
    seq: u64,
    /// Oldest first.
    preserved: Vec<Preserved>,
}

/// A guard that failed.
fn conflict(clause: &'static str, errno: Errno) -> Error {
    Error::new(ErrorKind::Conflict, clause).errno_is(errno)
}

/// There is no such object.
pub(super) fn missing() -> Error {
    Error::not_found("no such object")
}

impl Object {
    /// Whether nothing is left.
    pub(super) fn is_gone(&self) -> bool {
        self.head.is_none() && self.preserved.is_empty()
    }

    /// Looks at the guards.
    pub(super) fn check(&self, op: &WriteOp) -> Result<()> {
        let mut created = op.effects.first() == Some(&Effect::Create);
        for guard in &op.guards {
            let head = match (&self.head, guard) {
                (Some(_), Guard::CreateExclusive) => return Err(Error::exists("the object exists")),
                (None, Guard::CreateExclusive) => {
                    created = true;
                    continue;
                }
                (None, Guard::AssertExists | Guard::AssertVersion(_) | Guard::XattrCompare { .. }) => {
                    return Err(missing());
                }
                (None, Guard::OmapCompare { .. }) if !created => return Err(missing()),
                (head, _) => head.as_ref(),
            };
            match guard {
                Guard::CreateExclusive | Guard::AssertExists => {}
                Guard::AssertVersion(asked) if *asked < self.version => {
                    return Err(conflict("the object has changed", Errno::ERANGE));
                }
                Guard::AssertVersion(asked) if *asked > self.version => {
                    return Err(conflict("the object is older than that", Errno::EOVERFLOW));
                }
                Guard::AssertVersion(_) => {}
                Guard::OmapCompare { key, value } => {
                    let found = head.and_then(|h| h.omap.get(key)).map_or(&b""[..], |v| v);
                    if found != value {
                        return Err(conflict("an entry is not what was expected", Errno::ECANCELED));
                    }
                }
                Guard::XattrCompare { name, value } => {
                    let found = head.and_then(|h| h.xattrs.get(name)).map_or(&b""[..], |v| v);
                    if found != value {
                        return Err(conflict("an attribute is not what was expected", Errno::ECANCELED));
                    }
                }
            }
        }
        Ok(())
    }

    /// Keeps what is there for the snapshots of `context` this object has not seen.
    pub(super) fn preserve(&mut self, context: &SnapContext, released: impl Fn(SnapId) -> bool) {
        let seen = self.seq;
        self.seq = seen.max(context.seq);
        let Some(head) = &self.head else { return };
        let mut snaps: Vec<SnapId> =
            context.snaps.iter().copied().filter(|s| s.0 > seen && !released(*s)).collect();
        if snaps.is_empty() {
            return;
        }
        snaps.reverse();
        self.preserved.push(Preserved { id: SnapId(context.seq), snaps, data: head.data.clone() });
    }

    /// Applies one effect that looks at no other object.
    pub(super) fn apply(&mut self, effect: Effect) -> Result<()> {
        match effect {
            Effect::Create => drop(self.made()),
            Effect::Write { offset, data } => self.made().data.write(offset, &data),
            Effect::WriteFull(data) => {
                let head = self.made();
                head.data = Data::default();
                head.data.write(0, &data);
            }
            Effect::Zero { offset, length } => {
                if let Some(head) = &mut self.head {
                    head.data.zero(offset, length);
                }
            }
            Effect::Truncate(size) => {
                if let Some(head) = &mut self.head {
                    head.data.truncate(size);
                }
            }
            Effect::Remove => drop(self.head.take().ok_or_else(missing)?),
            Effect::Rollback(snap) => self.roll_back(snap),
            Effect::ShareRange { .. } => return Err(Error::unsupported("sharing ranges of objects")),
            Effect::CopyObject { .. } => return Err(Error::unsupported("copying objects")),
            Effect::OmapSet(entries) => self.made().omap.extend(entries),
            Effect::OmapRemove(keys) => {
                let head = self.head.as_mut().ok_or_else(missing)?;
                for key in keys {
                    head.omap.remove(&key);
                }
            }
            Effect::OmapClear => self.head.as_mut().ok_or_else(missing)?.omap.clear(),
            Effect::XattrSet(name, value) => drop(self.made().xattrs.insert(name, value)),
            Effect::XattrRemove(name) => drop(self.head.as_mut().ok_or_else(missing)?.xattrs.remove(&name)),
        }
        Ok(())
    }

    /// The head, made where it does not exist.
    pub(super) fn made(&mut self) -> &mut Head {
        self.head.get_or_insert_default()
    }

    /// Makes the head what it was at `snap`.
    fn roll_back(&mut self, snap: SnapId) {
        if snap.0 > self.seq {
            return;
        }
        match self.at(snap).cloned() {
            Some(data) => self.made().data = data,
            None => self.head = None,
        }
    }

    /// The data at a snapshot or HEAD, `None` where the object did not exist.
    pub(super) fn at(&self, snap: SnapId) -> Option<&Data> {
        if snap.0 > self.seq {
            return self.head.as_ref().map(|h| &h.data);
        }
        let version = self.preserved.iter().find(|p| p.id >= snap)?;
        version.snaps.contains(&snap).then_some(&version.data)
    }

    /// Drops `snap` from the versions, and versions nobody reads any more.
    pub(super) fn release(&mut self, snap: SnapId) {
        for version in &mut self.preserved {
            version.snaps.retain(|s| *s != snap);
        }
        self.preserved.retain(|v| !v.snaps.is_empty());
    }

    /// Answers a read.
    pub(super) fn read(&self, snap: SnapId, op: &ReadOp) -> Result<ReadReply> {
        let data = self.at(snap).ok_or_else(missing)?;
        let extents = op.data.map_or_else(Vec::new, |(offset, length)| data.extents(offset, length));
        let head = self.head.as_ref();
        Ok(ReadReply {
            version: self.version,
            size: data.size,
            stamp: data.stamp,
            data: SparseData { extents },
            xattrs: if op.xattrs {
                head.map(|h| h.xattrs.clone()).unwrap_or_default()
            } else {
                BTreeMap::new()
            },
            omap: match (&op.omap, head) {
                (Some(asked), Some(head)) => omap_page(&head.omap, asked),
                (None, _) | (_, None) => OmapPage::default(),
            },
        })
    }

    /// All versions.
    pub(super) fn snap_set(&self) -> SnapSet {
        let heads = self.head.as_ref().map(|h| &h.data);
        let newer = self.preserved.iter().skip(1).map(|p| Some(&p.data)).chain([heads]);
        let clones = self.preserved.iter().zip(newer).map(|(p, newer)| CloneInfo {
            id: p.id,
            snaps: p.snaps.clone(),
            size: p.data.size,
            overlap: newer.map_or_else(Vec::new, |n| p.data.unchanged(n)),
        });
        SnapSet { seq: self.seq, head_size: heads.map(|d| d.size), clones: clones.collect() }
    }

    /// Bytes of all versions, shared blocks counted for each.
    pub(super) fn used(&self) -> u64 {
        self.head.iter().map(|h| &h.data).chain(self.preserved.iter().map(|p| &p.data)).map(Data::used).sum()
    }
}

/// Picks omap entries.
fn omap_page(omap: &BTreeMap<Bytes, Bytes>, asked: &OmapRead) -> OmapPage {
    let owned = |(k, v): (&Bytes, &Bytes)| (k.clone(), v.clone());
    match asked {
        OmapRead::Keys(keys) => {
            let mut keys: Vec<&Bytes> = keys.iter().collect();
            keys.sort();
            keys.dedup();
            let entries = keys.into_iter().filter_map(|k| omap.get_key_value(k)).map(owned).collect();
            OmapPage { entries, more: false }
        }
        OmapRead::Page { after, prefix, max } => {
            let mut matching = omap
                .range(prefix.clone()..)
                .take_while(|(k, _)| k.starts_with(prefix))
                .filter(|(k, _)| *k > after);
            let entries = matching.by_ref().take((*max).min(OMAP_PAGE_MAX)).map(owned).collect();
            OmapPage { entries, more: matching.next().is_some() }
        }
    }
}
