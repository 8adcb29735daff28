//! The header of an image: everything about one image but its data.
//!
//! Invariants
//! - A [`Header`] is one consistent picture: all its keys were read at the same version of the object.
//! - A change is computed on a copy and written as one op under that version, so of two changes at the same time one is
//!   refused and computed again. Keys this code does not know, and records it did not change, are never written.
//! - `features` has the bit operations exactly while `op_features` is not 0.

mod children;
mod layout;
mod load;
mod migrating;
mod parent;
mod pins;
mod points;
mod snapshots;
mod update;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use ferry_core::{Error, ObjectId, PoolId, Result, SnapContext, SnapId, Timestamp};

use crate::encoding::{
    Children, Format1Kept, GroupRef, MigrationIntent, MigrationRecord, ParentRecord, SnapshotNamespace,
    SnapshotRecord,
};
use crate::features::{Features, Flags, OpFeatures};

pub use load::load;
pub use migrating::{CARRYING_BACK, Opening, SourceLink};
pub use parent::Reattach;
pub use snapshots::RemovedSnapshot;
pub use update::{create_op, update};

/// One consistent picture of an image's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version of the object all this was read at; 0 for one not yet written.
    pub version: u64,
    /// Size of the image. Bytes.
    pub size: u64,
    /// Objects have `1 << order` bytes.
    pub order: u8,
    /// What the image can do.
    pub features: Features,
    /// What the names of its data objects begin with, without the dot before the number.
    pub object_prefix: String,
    /// Where the data lies, if in another pool than the header.
    pub data_pool: Option<PoolId>,
    /// Bytes of one stripe in one object; the object size where the header does not say.
    pub stripe_unit: u64,
    /// Over how many objects a stripe goes; 1 where the header does not say.
    pub stripe_count: u64,
    /// Validity of HEAD's object map.
    pub flags: Flags,
    /// What is going on with the image.
    pub op_features: OpFeatures,
    /// What it is a clone of; see [`Header::parent_at`].
    pub parent: Option<ParentRecord>,
    /// Highest snapshot id ever added.
    pub snap_seq: u64,
    /// All snapshots, those in the trash too.
    pub snaps: BTreeMap<SnapId, SnapshotRecord>,
    /// The v2 clones of each snapshot that has some.
    pub children: BTreeMap<SnapId, Children>,
    /// How many snapshots there may be.
    pub snap_limit: Option<u64>,
    /// When it was made; zero where unknown.
    pub created: Timestamp,
    /// When it was last read, to about a minute; zero where unknown.
    pub accessed: Timestamp,
    /// When it was last written, to about a minute; zero where unknown.
    pub modified: Timestamp,
    /// Image-meta: raw bytes by the user's key.
    pub metadata: BTreeMap<String, Bytes>,
    /// A migration under way.
    pub migration: Option<MigrationRecord>,
    /// What ferry notes about it beyond that.
    pub intent: Option<MigrationIntent>,
    /// The consistency group it is in.
    pub group: Option<GroupRef>,
    /// For an image of format 1, what else its header has; see [`crate::encoding::Format1Header`].
    pub format1: Option<Format1Kept>,
    /// Keys of ferry's own (`ferry.*`) and of other releases, as they are.
    pub other: BTreeMap<Bytes, Bytes>,
}

/// A parent as HEAD or one snapshot sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentLink {
    /// The parent's image and snapshot.
    pub parent: ParentRecord,
    /// Bytes of it that show.
    pub overlap: u64,
}

impl Header {
    /// Size of one object. Bytes.
    #[must_use]
    pub fn object_size(&self) -> u64 {
        1 << self.order
    }

    /// How many digits the number in the name of a data object has at least.
    #[must_use]
    pub fn name_digits(&self) -> usize {
        if self.format1.is_some() { 12 } else { 16 }
    }

    /// Refuses what an image of format 1 cannot have.
    ///
    /// # Errors
    /// `Unsupported` (95).
    pub fn need_format2(&self) -> Result<()> {
        if self.format1.is_none() {
            return Ok(());
        }
        Err(Error::unsupported("an image of format 1 cannot do that: a migration makes it one of format 2"))
    }

    /// What data writes must preserve: all snapshots of every kind, and the point of prepare of a migration, newest first.
    #[must_use]
    pub fn snap_context(&self) -> SnapContext {
        let mut snaps: Vec<SnapId> = self.snaps.keys().copied().chain(self.base().map(|b| b.snap)).collect();
        snaps.sort_unstable_by(|a, b| b.cmp(a));
        SnapContext { seq: self.snap_seq, snaps: Arc::from(snaps) }
    }

    /// The snapshot with this id.
    ///
    /// # Errors
    /// `NotFound` (2).
    pub fn snap(&self, id: SnapId) -> Result<&SnapshotRecord> {
        self.snaps.get(&id).ok_or_else(|| Error::not_found("no such snapshot").with("id", id))
    }

    /// The user's snapshot called `name`.
    ///
    /// # Errors
    /// `NotFound` (2).
    pub fn user_snap(&self, name: &str) -> Result<&SnapshotRecord> {
        self.snaps
            .values()
            .find(|s| s.namespace == SnapshotNamespace::User && s.name == name)
            .ok_or_else(|| Error::not_found("no such snapshot").with("snapshot", name))
    }

    /// Size of the image at `at`. Bytes.
    ///
    /// # Errors
    /// `NotFound` (2) for a snapshot that is not there.
    pub fn size_at(&self, at: SnapId) -> Result<u64> {
        match self.base() {
            _ if at == SnapId::HEAD => Ok(self.size),
            Some(base) if base.snap == at => Ok(base.size),
            Some(_) | None => Ok(self.snap(at)?.size),
        }
    }

    /// Validity of the object map at `at`.
    ///
    /// # Errors
    /// `NotFound` (2) for a snapshot that is not there.
    pub fn flags_at(&self, at: SnapId) -> Result<Flags> {
        match self.base() {
            _ if at == SnapId::HEAD => Ok(self.flags),
            // It has no object map.
            Some(base) if base.snap == at => Ok(Flags::OBJECT_MAP_INVALID.with(Flags::FAST_DIFF_INVALID)),
            Some(_) | None => Ok(Flags(self.snap(at)?.flags)),
        }
    }

    /// The parent and how much of it shows at `at`; `None` where nothing is asked of a parent there.
    ///
    /// # Errors
    /// `NotFound` (2) for a snapshot that is not there.
    pub fn parent_at(&self, at: SnapId) -> Result<Option<ParentLink>> {
        let overlap = match self.base() {
            _ if at == SnapId::HEAD => self.parent.as_ref().and_then(|p| p.head_overlap),
            Some(base) if base.snap == at => base.parent_overlap,
            Some(_) | None => self.snap(at)?.overlap(),
        };
        let Some(overlap) = overlap else { return Ok(None) };
        Ok(self.parent_spec().map(|parent| ParentLink { parent: parent.clone(), overlap }))
    }

    /// The parent that HEAD or any snapshot is linked to.
    #[must_use]
    pub fn parent_spec(&self) -> Option<&ParentRecord> {
        self.parent.as_ref().or_else(|| self.snaps.values().find_map(|s| s.legacy_parent.as_ref()))
    }

    /// Whether the link to the parent is of the older kind, which stands in `rbd_children`.
    #[must_use]
    pub fn is_v1_clone(&self) -> bool {
        self.parent_spec().is_some() && !self.op_features.contains(OpFeatures::CLONE_CHILD)
    }

    /// Whether HEAD or a snapshot still needs the parent.
    #[must_use]
    pub fn needs_parent(&self) -> bool {
        self.parent.as_ref().is_some_and(|p| p.head_overlap.is_some())
            || self.snaps.values().any(|s| s.overlap().is_some())
    }

    /// The pool the data lies in; `image_pool` is the header's.
    #[must_use]
    pub fn data_pool_or(&self, image_pool: PoolId) -> PoolId {
        self.data_pool.unwrap_or(image_pool)
    }
}

/// Where a header lies.
#[must_use]
pub fn object(pool: PoolId, namespace: &ferry_core::Namespace, id: &str) -> ObjectId {
    ObjectId::new(pool, namespace, &crate::encoding::header_object(id))
}
