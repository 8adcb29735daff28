//! Changes of size, features, flags, times and metadata.

use ferry_core::{Error, Result, SnapId, Timestamp};

use super::Header;
use crate::encoding::MigrationSide;
use crate::features::{Features, Flags, OpFeatures};

impl Header {
    /// Sets the size; less of the parent, and of the source of a migration, shows where it shrinks below the overlap, and
    /// never more again.
    pub fn set_size(&mut self, size: u64) {
        self.size = size;
        if let Some(record) = self.migration.as_mut().filter(|m| m.side == MigrationSide::Target) {
            record.overlap = record.overlap.min(size);
        }
        if let Some(overlap) = self.parent.as_mut().and_then(|p| p.head_overlap.as_mut()) {
            *overlap = (*overlap).min(size);
        }
    }

    /// Switches operation features on or off and keeps the bit operations in step.
    pub fn set_op_features(&mut self, on: OpFeatures, off: OpFeatures) {
        self.op_features = self.op_features.with(on).without(off);
        self.features = if self.op_features.is_empty() {
            self.features.without(Features::OPERATIONS)
        } else {
            self.features.with(Features::OPERATIONS)
        };
    }

    /// Switches features on.
    ///
    /// # Errors
    /// `Invalid` (22) where one cannot be switched on later, is on already, or needs another.
    pub fn enable_features(&mut self, features: Features) -> Result<()> {
        if !Features::MUTABLE.without(Features::NON_PRIMARY).without(Features::DIRTY_CACHE).contains(features)
        {
            return Err(Error::invalid("cannot update immutable features"));
        }
        if self.features.contains(features) {
            return Err(Error::invalid("one or more requested features are already enabled"));
        }
        if features.contains(Features::JOURNALING) {
            return Err(Error::unsupported("journaling is not supported"));
        }
        let mut wanted = self.features.with(features);
        if features.intersects(Features::FAST_DIFF.with(Features::OBJECT_MAP)) {
            if !wanted.contains(Features::EXCLUSIVE_LOCK) {
                let text =
                    "cannot enable object-map. exclusive-lock must be enabled before enabling object-map.";
                return Err(Error::invalid(text));
            }
            wanted = wanted.with(Features::OBJECT_MAP).with(Features::FAST_DIFF);
            self.set_all_flags(Flags::OBJECT_MAP_INVALID.with(Flags::FAST_DIFF_INVALID), Flags::NONE);
        }
        self.features = wanted;
        Ok(())
    }

    /// Switches features off.
    ///
    /// # Errors
    /// `Invalid` (22) where one cannot be switched off, is off already, or another needs it.
    pub fn disable_features(&mut self, features: Features) -> Result<()> {
        let allowed = Features::MUTABLE.with(Features::DISABLE_ONLY);
        if !allowed.without(Features::NON_PRIMARY).without(Features::DIRTY_CACHE).contains(features) {
            return Err(Error::invalid("cannot update immutable features"));
        }
        if !self.features.intersects(features) {
            return Err(Error::invalid("one or more requested features are already disabled"));
        }
        let mut off = features;
        if off.intersects(Features::FAST_DIFF.with(Features::OBJECT_MAP)) {
            off = off.with(Features::FAST_DIFF).with(Features::OBJECT_MAP);
        }
        let left = self.features.without(off);
        if features.contains(Features::EXCLUSIVE_LOCK) {
            if left.contains(Features::OBJECT_MAP) {
                let text = "cannot disable exclusive-lock. object-map must be disabled before disabling exclusive-lock.";
                return Err(Error::invalid(text));
            }
            if left.contains(Features::JOURNALING) {
                let text = "cannot disable exclusive-lock. journaling must be disabled before disabling exclusive-lock.";
                return Err(Error::invalid(text));
            }
        }
        if off.contains(Features::OBJECT_MAP) {
            self.set_all_flags(Flags::NONE, Flags::OBJECT_MAP_INVALID.with(Flags::FAST_DIFF_INVALID));
        }
        self.features = left;
        Ok(())
    }

    /// Sets and clears flags of HEAD or of one snapshot.
    ///
    /// # Errors
    /// `NotFound` (2) for a snapshot that is not there.
    pub fn set_flags(&mut self, at: SnapId, on: Flags, off: Flags) -> Result<()> {
        let flags = self.flags_at(at)?.with(on).without(off);
        match self.snaps.get_mut(&at) {
            Some(snap) => snap.flags = flags.0,
            None => self.flags = flags,
        }
        Ok(())
    }

    /// Sets and clears flags of HEAD and of all snapshots.
    pub fn set_all_flags(&mut self, on: Flags, off: Flags) {
        self.flags = self.flags.with(on).without(off);
        for snap in self.snaps.values_mut() {
            snap.flags = Flags(snap.flags).with(on).without(off).0;
        }
    }

    /// Notes a write at `now`.
    pub fn set_modified(&mut self, now: Timestamp) {
        self.modified = now;
    }

    /// Notes a read at `now`.
    pub fn set_accessed(&mut self, now: Timestamp) {
        self.accessed = now;
    }
}
