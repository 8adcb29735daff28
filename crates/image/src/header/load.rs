//! Reads a header.

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_core::{Error, ErrorKind, ObjectId, PoolId, ReadOp, Result, SnapId, Store};

use super::Header;
use crate::encoding::{
    Children, FORMAT1_HEADER_MAX, Format1Header, GroupRef, KEY_INTENT, MigrationIntent, MigrationRecord,
    PREFIX_METADATA, PREFIX_SNAP_CHILDREN, PREFIX_SNAPSHOT, ParentRecord, SnapshotRecord, decode_i64,
    decode_string, decode_timestamp, decode_u8, decode_u64, encode_string, encode_u8, encode_u64,
    format1_name, header as key, parse_hex_id,
};
use crate::features::{Features, Flags, OpFeatures};

/// How often a header that changes between its pages is read again before giving up. A page holds 1024 keys, so this
/// happens only to images with hundreds of snapshots.
const RETRIES_MAX: usize = 32;

/// Reads all keys of an image's header at one version.
///
/// # Errors
/// `NotFound` (2); `Corrupt`; `Unsupported` where a newer release wrote something that must be understood; `Busy` where it
/// changes faster than it can be read.
pub async fn load(store: &dyn Store, object: &ObjectId) -> Result<Header> {
    for _ in 0..RETRIES_MAX {
        let Some(found) = read_all(store, object).await? else { continue };
        let header = match format1_name(&object.name) {
            Some(_) => Header::from_format1(found),
            None => Header::from_entries(found.version, found.entries),
        };
        return header.map_err(|e| annotate(e, object));
    }
    Err(Error::busy("the image's header changes too fast to be read").with("object", object))
}

/// The error with the object it is about.
fn annotate(error: Error, object: &ObjectId) -> Error {
    let object = object.to_string();
    error.with("object", object)
}

/// A header object.
struct Found {
    version: u64,
    entries: BTreeMap<Bytes, Bytes>,
    /// Its data, which only that of a format-1 image has.
    data: Vec<u8>,
}

/// All of an object at one version; `None` where it changed between two pages.
///
/// # Errors
/// Those of the store.
async fn read_all(store: &dyn Store, object: &ObjectId) -> Result<Option<Found>> {
    let (mut data, wanted) = (Vec::new(), format1_name(&object.name).map(|_| (0, FORMAT1_HEADER_MAX)));
    let mut entries = BTreeMap::new();
    let mut first_version = None;
    let mut after = Bytes::new();
    loop {
        let reply = store
            .read(object, SnapId::HEAD, ReadOp { data: wanted, ..ReadOp::omap_page(after.clone(), "") })
            .await?;
        if *first_version.get_or_insert(reply.version) != reply.version {
            return Ok(None);
        }
        if wanted.is_some() {
            data = reply.data.to_vec(0, reply.size.min(FORMAT1_HEADER_MAX));
        }
        if let Some((last, _)) = reply.omap.entries.last() {
            after = last.clone();
        }
        entries.extend(reply.omap.entries);
        if !reply.omap.more {
            return Ok(Some(Found { version: reply.version, entries, data }));
        }
    }
}

impl Header {
    /// Decodes all keys of a header object.
    ///
    /// # Errors
    /// `Corrupt` where a key that every header has is missing or a value is none; `Unsupported`.
    pub fn from_entries(version: u64, mut entries: BTreeMap<Bytes, Bytes>) -> Result<Self> {
        let order = need(&mut entries, key::ORDER, decode_u8)?;
        if order > 25 {
            return Err(Error::corrupt("an object size out of range").with("order", order));
        }
        let mut header = Self {
            version,
            size: need(&mut entries, key::SIZE, decode_u64)?,
            order,
            features: Features(need(&mut entries, key::FEATURES, decode_u64)?),
            object_prefix: need(&mut entries, key::OBJECT_PREFIX, decode_string)?,
            data_pool: take(&mut entries, key::DATA_POOL_ID, decode_i64)?.map(PoolId),
            stripe_unit: take(&mut entries, key::STRIPE_UNIT, decode_u64)?.unwrap_or(1 << order),
            stripe_count: take(&mut entries, key::STRIPE_COUNT, decode_u64)?.unwrap_or(1),
            flags: Flags(take(&mut entries, key::FLAGS, decode_u64)?.unwrap_or(0)),
            op_features: OpFeatures(take(&mut entries, key::OP_FEATURES, decode_u64)?.unwrap_or(0)),
            parent: take(&mut entries, key::PARENT, ParentRecord::decode)?,
            snap_seq: need(&mut entries, key::SNAP_SEQ, decode_u64)?,
            snaps: BTreeMap::new(),
            children: BTreeMap::new(),
            snap_limit: take(&mut entries, key::SNAP_LIMIT, decode_u64)?,
            created: take(&mut entries, key::CREATE_TIMESTAMP, decode_timestamp)?.unwrap_or_default(),
            accessed: take(&mut entries, key::ACCESS_TIMESTAMP, decode_timestamp)?.unwrap_or_default(),
            modified: take(&mut entries, key::MODIFY_TIMESTAMP, decode_timestamp)?.unwrap_or_default(),
            metadata: BTreeMap::new(),
            migration: take(&mut entries, key::MIGRATION, MigrationRecord::decode)?,
            intent: take(&mut entries, KEY_INTENT, MigrationIntent::decode)?,
            group: take(&mut entries, key::GROUP_REF, GroupRef::decode)?.filter(GroupRef::exists),
            format1: None,
            other: BTreeMap::new(),
        };
        for (key, value) in entries {
            header.take_entry(key, value)?;
        }
        header.check()?;
        Ok(header)
    }

    /// Decodes the header object of a format-1 image: size, layout and snapshots are its data, all else are keys.
    fn from_format1(found: Found) -> Result<Self> {
        let stored = Format1Header::decode(&found.data)?;
        let mut entries = found.entries;
        let features = if stored.is_migrating { Features::MIGRATING } else { Features::NONE };
        for (key, value) in [
            (key::ORDER, encode_u8(stored.order)),
            (key::SIZE, encode_u64(stored.size)),
            (key::FEATURES, encode_u64(features.0)),
            (key::OBJECT_PREFIX, encode_string(&stored.object_prefix)),
            (key::SNAP_SEQ, encode_u64(stored.snap_seq)),
        ] {
            entries.insert(key.into(), value);
        }
        let mut header = Self::from_entries(found.version, entries)?;
        let snaps = stored.snaps.into_iter();
        header.snaps = snaps.map(|(id, (size, name))| (id, SnapshotRecord::new(id, &name, size))).collect();
        header.format1 = Some(stored.kept);
        header.check()?;
        Ok(header)
    }

    /// Takes a key that is not one of the fixed ones.
    fn take_entry(&mut self, key: Bytes, value: Bytes) -> Result<()> {
        if let Some(id) = parse_hex_id(&key, PREFIX_SNAPSHOT) {
            let record = SnapshotRecord::decode(&value)?;
            if record.id != id {
                return Err(Error::corrupt("a snapshot record is of another snapshot").with("id", id));
            }
            self.snaps.insert(id, record);
        } else if let Some(id) = parse_hex_id(&key, PREFIX_SNAP_CHILDREN) {
            self.children.insert(id, Children::decode(&value)?);
        } else if let Some(name) = metadata_key(&key) {
            self.metadata.insert(name, value);
        } else {
            self.other.insert(key, value);
        }
        Ok(())
    }

    /// What must hold between the keys for anything to be computed from them.
    fn check(&self) -> Result<()> {
        let divides = self.stripe_unit > 0 && self.object_size().is_multiple_of(self.stripe_unit);
        if !divides || self.stripe_count == 0 {
            return Err(Error::corrupt("a striping that does not fit the object size")
                .with("stripe_unit", self.stripe_unit)
                .with("stripe_count", self.stripe_count));
        }
        if !self.snap_context().is_valid() {
            return Err(Error::corrupt("a snapshot id above the highest ever added"));
        }
        Ok(())
    }
}

/// The user's key of a metadata entry; `None` where it is another key or not text.
fn metadata_key(key: &[u8]) -> Option<String> {
    let name = key.strip_prefix(PREFIX_METADATA.as_bytes())?;
    std::str::from_utf8(name).ok().map(str::to_owned)
}

/// Takes one fixed key out, decoded.
fn take<T>(
    entries: &mut BTreeMap<Bytes, Bytes>,
    key: &'static str,
    decode: impl Fn(&[u8]) -> Result<T>,
) -> Result<Option<T>> {
    entries.remove(key.as_bytes()).map(|v| decode(&v).map_err(|e| e.with("key", key))).transpose()
}

/// Takes a fixed key out that every header has.
fn need<T>(
    entries: &mut BTreeMap<Bytes, Bytes>,
    key: &'static str,
    decode: impl Fn(&[u8]) -> Result<T>,
) -> Result<T> {
    take(entries, key, decode)?
        .ok_or_else(|| Error::new(ErrorKind::Corrupt, "a header lacks a key").with("key", key))
}
