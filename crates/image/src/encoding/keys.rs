//! Omap keys. Hex ids are 16 lower-case digits, so key order is number order.

use bytes::Bytes;
use ferry_core::SnapId;

/// Before the id in the keys of snapshot records.
pub const PREFIX_SNAPSHOT: &str = "snapshot_";
/// Before the snapshot id in the keys of v2 child sets.
pub const PREFIX_SNAP_CHILDREN: &str = "snap_children_";
/// Before the user's key in image-meta and pool metadata; the value is raw bytes.
pub const PREFIX_METADATA: &str = "metadata_";
/// Whether a namespace's directory takes images.
pub const KEY_DIRECTORY_STATE: &str = "state";

/// Fixed keys of the header object.
pub mod header {
    /// u64, bytes.
    pub const SIZE: &str = "size";
    /// u8, the object size is `1 << order`.
    pub const ORDER: &str = "order";
    /// u64, a mask.
    pub const FEATURES: &str = "features";
    /// String, without the dot before the object number.
    pub const OBJECT_PREFIX: &str = "object_prefix";
    /// u64, the highest snapshot id ever added.
    pub const SNAP_SEQ: &str = "snap_seq";
    /// Time of creation.
    pub const CREATE_TIMESTAMP: &str = "create_timestamp";
    /// Time of the last read, coarse.
    pub const ACCESS_TIMESTAMP: &str = "access_timestamp";
    /// Time of the last write, coarse.
    pub const MODIFY_TIMESTAMP: &str = "modify_timestamp";
    /// i64, with feature data-pool.
    pub const DATA_POOL_ID: &str = "data_pool_id";
    /// u64, bytes, with feature striping.
    pub const STRIPE_UNIT: &str = "stripe_unit";
    /// u64, with feature striping.
    pub const STRIPE_COUNT: &str = "stripe_count";
    /// u64, a mask; absent is 0.
    pub const FLAGS: &str = "flags";
    /// u64, a mask; absent is 0; goes with feature operations.
    pub const OP_FEATURES: &str = "op_features";
    /// A parent record.
    pub const PARENT: &str = "parent";
    /// u64, how many snapshots there may be; absent is no limit.
    pub const SNAP_LIMIT: &str = "snap_limit";
    /// A migration record, with feature migrating.
    pub const MIGRATION: &str = "migration";
    /// A reference to a consistency group.
    pub const GROUP_REF: &str = "rbd_group_ref";
}

/// Key of a snapshot's record in the header.
#[must_use]
pub fn snapshot(id: SnapId) -> Bytes {
    Bytes::from(format!("{PREFIX_SNAPSHOT}{:016x}", id.0))
}

/// Key of a snapshot's set of v2 children in the header.
#[must_use]
pub fn snap_children(id: SnapId) -> Bytes {
    Bytes::from(format!("{PREFIX_SNAP_CHILDREN}{:016x}", id.0))
}

/// Key of an image's or a pool's metadata.
#[must_use]
pub fn metadata(key: &str) -> Bytes {
    Bytes::from(format!("{PREFIX_METADATA}{key}"))
}

/// Key of an image's id in the directory.
#[must_use]
pub fn directory_name(name: &str) -> Bytes {
    Bytes::from(format!("name_{name}"))
}

/// Key of an image's name in the directory.
#[must_use]
pub fn directory_id(id: &str) -> Bytes {
    Bytes::from(format!("id_{id}"))
}

/// Key of a namespace in the pool's list of them.
#[must_use]
pub fn namespace_name(name: &str) -> Bytes {
    Bytes::from(format!("name_{name}"))
}

/// Key of a trash entry.
#[must_use]
pub fn trash(id: &str) -> Bytes {
    Bytes::from(format!("id_{id}"))
}

/// The id in a key that is `prefix` and 16 lower-case hex digits; `None` for any other key.
#[must_use]
pub fn parse_hex_id(key: &[u8], prefix: &str) -> Option<SnapId> {
    let digits = key.strip_prefix(prefix.as_bytes())?;
    let lower = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
    if digits.len() != 16 || !digits.iter().all(lower) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok().map(SnapId)
}
