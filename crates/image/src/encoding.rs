//! The records of RBD format 2, byte for byte: what lies in omap values and small objects.
//!
//! Every record decodes and encodes in one file. A decoder takes older layouts and skips what a newer release added;
//! such a record says so in its field `newer` and refuses to be encoded, because writing it back would drop what this
//! code cannot see.
//!
//! Source: Ceph 16.2.15; layouts and examples in `docs/format/rbd-metadata.md`.

mod children;
mod directory;
mod format1;
mod group;
mod intent;
mod keys;
mod migration;
mod names;
mod notify;
mod parent;
mod pin;
mod snapshot;
#[cfg(test)]
mod tests;
mod trash;
mod value;

pub use children::{ChildSpec, Children, V1Children, v1_children_key};
pub use directory::{DirectoryState, decode_directory_state, encode_directory_state};
pub use format1::{FORMAT1_HEADER_MAX, Format1Directory, Format1Header, Format1Kept};
pub use group::GroupRef;
pub use intent::{BasePoint, KEY_INTENT, MigrationIntent, MigrationPeer, MigrationPhase, Origin};
pub use keys::{
    KEY_DIRECTORY_STATE, PREFIX_METADATA, PREFIX_SNAP_CHILDREN, PREFIX_SNAPSHOT, directory_id,
    directory_name, header, metadata, namespace_name, parse_hex_id, snap_children, snapshot as snapshot_key,
    trash as trash_key,
};
pub use migration::{MigrationRecord, MigrationSide, MigrationState};
pub use names::{
    CHILDREN_OBJECT, DIRECTORY_OBJECT, INFO_OBJECT, INFO_VALIDATED, LOCK_NAME, LOCK_TAG, NAMESPACE_OBJECT,
    TRASH_OBJECT, data_prefix, format1_name, header_object, id_object, object_map_object, told_id,
    v1_header_object,
};
pub use notify::{Message, NotifyClient, RequestId, decode_response, encode_response};
pub use parent::ParentRecord;
pub use pin::{ImportPin, pin_key, pinned_by};
pub use snapshot::{MirrorSnapshot, Protection, SnapshotNamespace, SnapshotRecord};
pub use trash::{TrashEntry, TrashNotice, TrashSource, TrashState};
pub use value::{
    decode_i64, decode_string, decode_timestamp, decode_u8, decode_u64, encode_i64, encode_string,
    encode_timestamp, encode_u8, encode_u64,
};

use ferry_core::{Error, Result};

/// Refuses to write back a record that holds fields of a newer release.
fn refuse_newer(newer: bool, record: &'static str) -> Result<()> {
    if newer {
        return Err(Error::unsupported("a record was written by a newer release and is left as it is")
            .with("record", record));
    }
    Ok(())
}
