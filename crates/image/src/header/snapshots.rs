//! Changes of the snapshots.

use ferry_core::{Errno, Error, ErrorKind, Result, SnapId, Timestamp};

use super::Header;
use crate::encoding::{ParentRecord, Protection, SnapshotNamespace, SnapshotRecord};
use crate::features::{Features, OpFeatures};

/// What removing a snapshot's record leaves to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedSnapshot {
    /// The record as it was.
    pub record: SnapshotRecord,
    /// The parent that nothing is linked to any more.
    pub former_parent: Option<ParentRecord>,
}

impl Header {
    /// Adds a snapshot of HEAD as it is.
    ///
    /// # Errors
    /// `Conflict` (116) where `id` is not above all before: allocate another; `Exists` (17); `NoSpace` (122) at the limit;
    /// `Invalid` (22) for an empty name; `ReadOnly` (30) for a target that an abort carries back.
    pub fn add_snapshot(
        &mut self,
        id: SnapId,
        name: &str,
        namespace: SnapshotNamespace,
        now: Timestamp,
    ) -> Result<()> {
        self.check_new_snapshot(name, &namespace)?;
        if id.0 <= self.snap_seq || id > SnapId::MAX {
            return Err(
                Error::new(ErrorKind::Conflict, "a snapshot id that is not new").errno_is(Errno::ESTALE)
            );
        }
        self.snap_seq = id.0;
        self.note_overlap(id);
        self.snaps.insert(
            id,
            SnapshotRecord {
                namespace,
                flags: self.flags.0,
                timestamp: now,
                parent_overlap: self.parent.as_ref().and_then(|p| p.head_overlap),
                ..SnapshotRecord::new(id, name, self.size)
            },
        );
        Ok(())
    }

    /// Whether a snapshot of this name may be added.
    ///
    /// # Errors
    /// As [`Header::add_snapshot`].
    pub fn check_new_snapshot(&self, name: &str, namespace: &SnapshotNamespace) -> Result<()> {
        if name.is_empty() {
            return Err(Error::invalid("a snapshot needs a name"));
        }
        if self.is_carried_back() {
            // Where it has no object it would show the source, which is being written.
            return Err(Error::new(ErrorKind::ReadOnly, "migration is being aborted"));
        }
        if self.snaps.values().any(|s| s.name == name && s.namespace == *namespace) {
            return Err(Error::exists("snapshot exists").with("snapshot", name));
        }
        let count = u64::try_from(self.snaps.len()).expect("a count fits 64 bits");
        if self.snap_limit.is_some_and(|limit| count >= limit) {
            return Err(Error::new(ErrorKind::NoSpace, "the image may have no more snapshots")
                .errno_is(Errno::EDQUOT)
                .with("limit", count));
        }
        Ok(())
    }

    /// Renames a user's snapshot.
    ///
    /// # Errors
    /// `NotFound` (2); `Exists` (17) where a user's snapshot has the name, this one too; `Invalid` (22) for others'.
    pub fn rename_snapshot(&mut self, id: SnapId, name: &str) -> Result<()> {
        if name.is_empty() {
            return Err(Error::invalid("a snapshot needs a name"));
        }
        if !self.snap(id)?.namespace.is_user() {
            return Err(Error::invalid("only a user's snapshot can be renamed"));
        }
        if self.user_snap(name).is_ok() {
            return Err(Error::exists("snapshot exists").with("snapshot", name));
        }
        if let Some(snap) = self.snaps.get_mut(&id) {
            name.clone_into(&mut snap.name);
        }
        Ok(())
    }

    /// Moves a snapshot to the trash namespace under the name `uuid`, where clones may go on using it.
    ///
    /// # Errors
    /// `NotFound` (2); `Busy` (16) where it is protected or being imported; `Exists` (17) where it is there already; `Invalid` (22) where
    /// another release's kind of snapshot is meant.
    pub fn trash_snapshot(&mut self, id: SnapId, uuid: &str) -> Result<()> {
        self.check_unpinned(id)?;
        let snap =
            self.snaps.get_mut(&id).ok_or_else(|| Error::not_found("no such snapshot").with("id", id))?;
        if snap.protection != Protection::Unprotected {
            return Err(Error::busy("snapshot is protected").with("snapshot", &snap.name));
        }
        if matches!(snap.namespace, SnapshotNamespace::Unknown { .. }) {
            return Err(Error::invalid("a kind of snapshot this release does not know").with("id", id));
        }
        if snap.namespace.is_trash() {
            return Err(Error::exists("snapshot is in the trash already").with("id", id));
        }
        let original_name = std::mem::replace(&mut snap.name, uuid.to_owned());
        snap.namespace = SnapshotNamespace::Trash { original_name, original_type: snap.namespace.code() };
        self.set_op_features(OpFeatures::SNAP_TRASH, OpFeatures::NONE);
        Ok(())
    }

    /// Removes a snapshot's record.
    ///
    /// # Errors
    /// `NotFound` (2); `Busy` (16) where it is protected, has v2 clones or is being imported.
    pub fn remove_snapshot(&mut self, id: SnapId) -> Result<RemovedSnapshot> {
        self.check_unpinned(id)?;
        let snap = self.snap(id)?;
        if snap.protection != Protection::Unprotected {
            return Err(Error::busy("snapshot is protected").with("snapshot", &snap.name));
        }
        if snap.child_count > 0 {
            return Err(Error::busy("snapshot has clones").with("clones", snap.child_count));
        }
        let parent = self.parent_spec().cloned();
        let Some(record) = self.snaps.remove(&id) else {
            return Err(Error::not_found("no such snapshot").with("id", id));
        };
        self.forget_overlap(id);
        if !self.snaps.values().any(|s| s.namespace.is_trash()) {
            self.set_op_features(OpFeatures::NONE, OpFeatures::SNAP_TRASH);
        }
        let was_linked = record.overlap().is_some();
        let former_parent = if was_linked && (self.drop_unused_parent() || self.parent_spec().is_none()) {
            parent
        } else {
            None
        };
        Ok(RemovedSnapshot { record, former_parent })
    }

    /// The parent that nothing would be linked to after a snapshot was removed.
    #[must_use]
    pub fn parent_only_of(&self, id: SnapId) -> Option<ParentRecord> {
        let linked = |s: &SnapshotRecord| s.overlap().is_some();
        let head_linked = self.parent.as_ref().is_some_and(|p| p.head_overlap.is_some());
        if head_linked || !self.snaps.get(&id).is_some_and(linked) {
            return None;
        }
        if self.snaps.values().any(|s| s.id != id && linked(s)) {
            return None;
        }
        self.parent_spec().cloned()
    }

    /// Sets how a snapshot is protected.
    ///
    /// # Errors
    /// `NotFound` (2); `Unsupported` (8) without layering.
    pub fn set_protection(&mut self, id: SnapId, protection: Protection) -> Result<()> {
        if !self.features.contains(Features::LAYERING) {
            return Err(Error::unsupported("the image lacks layering").errno_is(Errno::ENOEXEC));
        }
        let snap =
            self.snaps.get_mut(&id).ok_or_else(|| Error::not_found("no such snapshot").with("id", id))?;
        snap.protection = protection;
        Ok(())
    }
}
