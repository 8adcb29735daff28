//! Changes of the sets of v2 clones.

use ferry_core::{Error, Result, SnapId};

use super::Header;
use crate::encoding::ChildSpec;
use crate::features::OpFeatures;

impl Header {
    /// Notes that `child` is a clone of a snapshot.
    ///
    /// # Errors
    /// `NotFound` (2) where the snapshot is not there or in the trash; `Exists` (17) where it is noted already.
    pub fn attach_child(&mut self, snap: SnapId, child: ChildSpec) -> Result<()> {
        let record = self
            .snaps
            .get_mut(&snap)
            .filter(|s| !s.namespace.is_trash())
            .ok_or_else(|| Error::not_found("no such snapshot to clone").with("id", snap))?;
        let children = self.children.entry(snap).or_default();
        if !children.set.insert(child) {
            return Err(Error::exists("the clone is noted already"));
        }
        record.child_count += 1;
        self.set_op_features(OpFeatures::CLONE_PARENT, OpFeatures::NONE);
        Ok(())
    }

    /// Forgets a clone. Whether the snapshot is now in the trash without clones, so that it can go.
    ///
    /// # Errors
    /// `NotFound` (2) where it is not noted; `Invalid` (22) where the count disagrees with the set.
    pub fn detach_child(&mut self, snap: SnapId, child: &ChildSpec) -> Result<bool> {
        let unknown = || Error::not_found("the clone is not noted").with("id", snap);
        let record = self.snaps.get_mut(&snap).ok_or_else(unknown)?;
        let children = self.children.get_mut(&snap).ok_or_else(unknown)?;
        if u32::try_from(children.set.len()).ok() != Some(record.child_count) {
            return Err(Error::invalid("a snapshot's count of clones is wrong").with("id", snap));
        }
        if !children.set.remove(child) {
            return Err(unknown());
        }
        record.child_count -= 1;
        let can_go = record.child_count == 0 && record.namespace.is_trash();
        if children.set.is_empty() {
            self.children.remove(&snap);
        }
        if self.children.is_empty() {
            self.set_op_features(OpFeatures::NONE, OpFeatures::CLONE_PARENT);
        }
        Ok(can_go)
    }
}
