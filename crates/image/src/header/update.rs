//! Writes a header: creates one, or changes the keys that differ under a version guard.

use bytes::Bytes;
use ferry_core::{Effect, Error, ErrorKind, Guard, ObjectId, Result, Store, WriteOp};

use super::{Header, load};
use crate::encoding::{
    Format1Header, Format1Kept, KEY_INTENT, ParentRecord, Protection, SnapshotRecord, encode_i64,
    encode_string, encode_timestamp, encode_u8, encode_u64, header as key, metadata, snap_children,
    snapshot_key,
};
use crate::features::Features;

/// How often a change that lost against another is computed again. Each loss means that another client's change went
/// in, so this many say that something is wrong.
const RETRIES_MAX: usize = 256;

/// Changes the header: `change` is applied to a copy of what is there now, and what differs is written under the version
/// read. Called again where somebody else was faster. Returns the header as written and what `change` returned.
///
/// # Errors
/// Those of `change`; of [`load`]; `Unsupported` where a changed record holds fields of a newer release; `ReadOnly`;
/// `Busy` where others change it all the time.
///
/// # Crash safety
/// One atomic op; durable after the next flush.
pub async fn update<T>(
    store: &dyn Store,
    object: &ObjectId,
    mut change: impl FnMut(&mut Header) -> Result<T> + Send,
) -> Result<(Header, T)> {
    for _ in 0..RETRIES_MAX {
        let before = load(store, object).await?;
        let mut after = before.clone();
        let output = change(&mut after)?;
        let Some(op) = difference(&before, &mut after)? else { return Ok((after, output)) };
        match store.write(object, op.guard(Guard::AssertVersion(before.version))).await {
            Ok(reply) => {
                after.version = reply.version;
                return Ok((after, output));
            }
            Err(e) if e.kind() == ErrorKind::Conflict => {}
            Err(e) => return Err(e),
        }
    }
    Err(Error::busy("the image's header is changed by others all the time").with("object", object))
}

/// The op that makes a new header.
///
/// # Errors
/// `Unsupported` where a record holds fields of a newer release.
pub fn create_op(header: &Header) -> Result<WriteOp> {
    let mut set = base_entries(header);
    set.extend(header.metadata.iter().map(|(k, v)| (metadata(k), v.clone())));
    set.extend(header.other.clone());
    if let Some(parent) = &header.parent {
        set.push((key::PARENT.into(), parent.encode()?));
    }
    if !header.op_features.is_empty() {
        set.push((key::OP_FEATURES.into(), encode_u64(header.op_features.0)));
    }
    if let Some(migration) = &header.migration {
        set.push((key::MIGRATION.into(), migration.encode()?));
    }
    if let Some(intent) = &header.intent {
        set.push((KEY_INTENT.into(), intent.encode()?));
    }
    for (id, snap) in &header.snaps {
        set.push((snapshot_key(*id), snap.encode()?));
    }
    Ok(WriteOp::new().guard(Guard::CreateExclusive).effect(Effect::OmapSet(set)))
}

/// What every header has.
fn base_entries(header: &Header) -> Vec<(Bytes, Bytes)> {
    let mut set: Vec<(Bytes, Bytes)> = vec![
        (key::SIZE.into(), encode_u64(header.size)),
        (key::ORDER.into(), encode_u8(header.order)),
        (key::FEATURES.into(), encode_u64(header.features.0)),
        (key::OBJECT_PREFIX.into(), encode_string(&header.object_prefix)),
        (key::SNAP_SEQ.into(), encode_u64(header.snap_seq)),
        (key::CREATE_TIMESTAMP.into(), encode_timestamp(header.created)),
        (key::ACCESS_TIMESTAMP.into(), encode_timestamp(header.accessed)),
        (key::MODIFY_TIMESTAMP.into(), encode_timestamp(header.modified)),
    ];
    if let Some(pool) = header.data_pool {
        set.push((key::DATA_POOL_ID.into(), encode_i64(pool.0)));
    }
    if header.features.contains(Features::STRIPING) {
        set.push((key::STRIPE_UNIT.into(), encode_u64(header.stripe_unit)));
        set.push((key::STRIPE_COUNT.into(), encode_u64(header.stripe_count)));
    }
    set
}

/// Keys to set and to remove.
#[derive(Debug, Default)]
struct Edit {
    set: Vec<(Bytes, Bytes)>,
    remove: Vec<Bytes>,
}

impl Edit {
    /// Sets or removes `key` where the two differ.
    fn value<T: PartialEq>(
        &mut self,
        key: impl Into<Bytes>,
        before: Option<&T>,
        after: Option<&T>,
        encode: impl Fn(&T) -> Result<Bytes>,
    ) -> Result<()> {
        match (before, after) {
            (before, Some(after)) if before != Some(after) => self.set.push((key.into(), encode(after)?)),
            (Some(_), None) => self.remove.push(key.into()),
            (None, None) | (_, Some(_)) => {}
        }
        Ok(())
    }

    /// The op, unless there is nothing to do.
    fn into_op(self) -> Option<WriteOp> {
        let mut op = WriteOp::new();
        if self.set.is_empty() && self.remove.is_empty() {
            return None;
        }
        if !self.set.is_empty() {
            op = op.effect(Effect::OmapSet(self.set));
        }
        if !self.remove.is_empty() {
            op = op.effect(Effect::OmapRemove(self.remove));
        }
        Some(op)
    }
}

/// The op that makes `before` into `after`; `None` where they are the same.
///
/// A parent that an old release kept in a snapshot's record moves to key `parent` when that record changes.
fn difference(before: &Header, after: &mut Header) -> Result<Option<WriteOp>> {
    let Some(kept) = after.format1 else { return difference_of_keys(before, after) };
    let data = format1_data(after, kept)?;
    let rewritten = format1_data(before, kept)? != data;
    // What the data says is no key.
    let mut keys = after.clone();
    (keys.size, keys.features, keys.snap_seq) = (before.size, before.features, before.snap_seq);
    keys.snaps.clone_from(&before.snaps);
    let op = difference_of_keys(before, &mut keys)?;
    if !rewritten {
        return Ok(op);
    }
    Ok(Some(op.unwrap_or_default().effect(Effect::WriteFull(data))))
}

/// The data of a format-1 image's header.
///
/// # Errors
/// `Unsupported` (95) where the header says what such an image cannot have.
fn format1_data(header: &Header, kept: Format1Kept) -> Result<Bytes> {
    let is_plain = |s: &SnapshotRecord| {
        s.namespace.is_user() && s.protection == Protection::Unprotected && s.child_count == 0
    };
    let has_more = header.parent.is_some()
        || !header.op_features.is_empty()
        || !header.snaps.values().all(is_plain)
        || !header.features.without(Features::MIGRATING).is_empty();
    if has_more {
        header.need_format2()?;
    }
    let snaps = header.snaps.iter().map(|(id, s)| (*id, (s.size, s.name.clone()))).collect();
    Format1Header {
        is_migrating: header.features.contains(Features::MIGRATING),
        object_prefix: header.object_prefix.clone(),
        order: header.order,
        size: header.size,
        snap_seq: header.snap_seq,
        snaps,
        kept,
    }
    .encode()
}

/// As [`difference`], of what are keys.
fn difference_of_keys(before: &Header, after: &mut Header) -> Result<Option<WriteOp>> {
    move_legacy_parents(before, after);
    let mut edit = Edit::default();
    let u64_value = |v: &u64| Ok(encode_u64(*v));
    // Absent and 0 are the same for these two, but `flags` once set stays as a key.
    let some = |v: u64| (v != 0).then_some(v);
    edit.value(key::SIZE, Some(&before.size), Some(&after.size), u64_value)?;
    edit.value(key::FEATURES, Some(&before.features.0), Some(&after.features.0), u64_value)?;
    edit.value(key::FLAGS, Some(&before.flags.0), Some(&after.flags.0), u64_value)?;
    edit.value(
        key::OP_FEATURES,
        some(before.op_features.0).as_ref(),
        some(after.op_features.0).as_ref(),
        u64_value,
    )?;
    edit.value(key::PARENT, before.parent.as_ref(), after.parent.as_ref(), ParentRecord::encode)?;
    edit.value(key::SNAP_SEQ, Some(&before.snap_seq), Some(&after.snap_seq), u64_value)?;
    edit.value(key::SNAP_LIMIT, before.snap_limit.as_ref(), after.snap_limit.as_ref(), u64_value)?;
    for (name, old, new) in [
        (key::CREATE_TIMESTAMP, before.created, after.created),
        (key::ACCESS_TIMESTAMP, before.accessed, after.accessed),
        (key::MODIFY_TIMESTAMP, before.modified, after.modified),
    ] {
        edit.value(name, Some(&old), Some(&new), |t| Ok(encode_timestamp(*t)))?;
    }
    edit.value(key::MIGRATION, before.migration.as_ref(), after.migration.as_ref(), |m| m.encode())?;
    edit.value(KEY_INTENT, before.intent.as_ref(), after.intent.as_ref(), |i| i.encode())?;
    edit.value(key::GROUP_REF, before.group.as_ref(), after.group.as_ref(), |g| g.encode())?;
    differing(&mut edit, &before.snaps, &after.snaps, |id| snapshot_key(*id), |s| s.encode())?;
    differing(&mut edit, &before.children, &after.children, |id| snap_children(*id), |c| c.encode())?;
    differing(&mut edit, &before.metadata, &after.metadata, |k| metadata(k), |v| Ok(v.clone()))?;
    differing(&mut edit, &before.other, &after.other, Bytes::clone, |v| Ok(v.clone()))?;
    Ok(edit.into_op())
}

/// Sets and removes the entries in which two maps differ.
fn differing<K: Ord, V: PartialEq>(
    edit: &mut Edit,
    before: &std::collections::BTreeMap<K, V>,
    after: &std::collections::BTreeMap<K, V>,
    key: impl Fn(&K) -> Bytes,
    encode: impl Fn(&V) -> Result<Bytes>,
) -> Result<()> {
    for (k, v) in after {
        edit.value(key(k), before.get(k), Some(v), &encode)?;
    }
    edit.remove.extend(before.keys().filter(|k| !after.contains_key(k)).map(key));
    Ok(())
}

/// Moves embedded parents out of the snapshot records that are about to be written.
fn move_legacy_parents(before: &Header, after: &mut Header) {
    let mut moved = None;
    for (id, record) in &mut after.snaps {
        if before.snaps.get(id) == Some(record) || record.legacy_parent.is_none() {
            continue;
        }
        record.parent_overlap = record.overlap();
        moved = moved.or(record.legacy_parent.take());
        record.legacy_parent = None;
    }
    if let (Some(parent), None) = (moved, &after.parent) {
        after.parent = Some(ParentRecord { head_overlap: None, newer: false, ..parent });
    }
}
