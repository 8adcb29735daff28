//! Changes of the link to the parent.

use ferry_core::{Errno, Error, ErrorKind, Result};

use super::Header;
use crate::encoding::ParentRecord;
use crate::features::{Features, OpFeatures};

/// Whether an image that has another parent already may be given a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reattach {
    /// It may not.
    No,
    /// It may: the parent moved.
    Yes,
}

impl Header {
    /// Links HEAD to a parent, showing at most the image's own size of it.
    ///
    /// # Errors
    /// `Unsupported` (8) without layering; `Exists` (17) where it has another parent, or this one from HEAD;
    /// `Invalid` (22) for a parent that is none.
    pub fn attach_parent(&mut self, parent: ParentRecord, reattach: Reattach) -> Result<()> {
        if !self.features.contains(Features::LAYERING) {
            return Err(Error::unsupported("the image lacks layering").errno_is(Errno::ENOEXEC));
        }
        let Some(overlap) = parent.head_overlap.filter(|_| parent.exists()) else {
            return Err(Error::invalid("a parent needs a pool, an image, a snapshot and an overlap"));
        };
        if let (Some(old), Reattach::No) = (&self.parent, reattach)
            && (!old.is_same_snapshot(&parent) || old.head_overlap.is_some())
        {
            return Err(Error::exists("the image has a parent already"));
        }
        self.parent = Some(ParentRecord { head_overlap: Some(overlap.min(self.size)), ..parent });
        Ok(())
    }

    /// Unlinks HEAD from the parent; with deep-flatten all snapshots too. Returns the parent where nothing is linked to it
    /// any more, so that the parent's side can be told.
    ///
    /// # Errors
    /// `NotFound` (2) where HEAD has no parent.
    pub fn detach_parent(&mut self) -> Result<Option<ParentRecord>> {
        let Some(parent) = self.parent.as_mut().filter(|p| p.head_overlap.is_some()) else {
            return Err(Error::new(ErrorKind::NotFound, "the image has no parent"));
        };
        let former = parent.clone();
        parent.head_overlap = None;
        if self.features.contains(Features::DEEP_FLATTEN) {
            for snap in self.snaps.values_mut() {
                snap.parent_overlap = None;
                snap.legacy_parent = None;
            }
        }
        Ok(self.drop_unused_parent().then_some(former))
    }

    /// Whether the link to the parent would be gone after HEAD was detached.
    #[must_use]
    pub fn would_leave_parent(&self) -> bool {
        self.features.contains(Features::DEEP_FLATTEN) || self.snaps.values().all(|s| s.overlap().is_none())
    }

    /// Removes the parent's record where neither HEAD nor a snapshot needs it; whether it did.
    pub(super) fn drop_unused_parent(&mut self) -> bool {
        if self.parent.is_none() || self.needs_parent() {
            return false;
        }
        self.parent = None;
        self.set_op_features(OpFeatures::NONE, OpFeatures::CLONE_CHILD);
        true
    }
}
