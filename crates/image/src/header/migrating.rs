//! What an image that is one end of a migration may be opened for.

use ferry_core::{Error, ErrorKind, Result, SnapId};

use super::Header;
use crate::encoding::{BasePoint, MigrationRecord, MigrationSide, MigrationState, Origin};
use crate::features::Features;

/// How an image is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// To be read.
    ReadOnly,
    /// To be changed.
    ReadWrite,
}

/// What shows of the source of a migration where its target has no object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceLink {
    /// The source's snapshot, or its HEAD; of a foreign source see [`crate::revision::source_point`].
    pub snap: SnapId,
    /// Bytes of it that show.
    pub overlap: u64,
}

/// The description in the records of both ends while an abort carries back what is written to the target, which is still in use.
pub const CARRYING_BACK: &str = "carrying back";

impl Header {
    /// Whether an abort carries back what was written to the target, which is still in use, or was cut off doing that.
    #[must_use]
    pub fn is_carried_back(&self) -> bool {
        self.migration.as_ref().is_some_and(|m| m.description == CARRYING_BACK)
    }

    /// The point of prepare of the migration this image is the target of.
    #[must_use]
    pub fn base(&self) -> Option<BasePoint> {
        self.intent.as_ref().and_then(|i| i.base)
    }

    /// What shows of the source at `at`; `None` where nothing does because the image is no target, or holds all its data.
    ///
    /// # Errors
    /// `NotFound` (2) for a snapshot that is not there.
    pub fn source_at(&self, at: SnapId) -> Result<Option<SourceLink>> {
        let Some(record) = self.migration.as_ref().filter(|_| self.redirects()) else { return Ok(None) };
        let size = self.size_at(at)?;
        let head = self.source_head();
        if at == SnapId::HEAD {
            return Ok(Some(SourceLink { snap: head, overlap: record.overlap.min(size) }));
        }
        if let Some(snap) = record.source_snap(at) {
            return Ok(Some(SourceLink { snap, overlap: size }));
        }
        // Taken since, or the point of prepare: the source has not changed any more, and once it does, none is taken.
        let noted = self.intent.as_ref().and_then(|i| i.overlaps.get(&at.0).copied());
        let is_base = self.base().is_some_and(|b| b.snap == at);
        let overlap = if is_base { size } else { noted.unwrap_or(record.overlap).min(size) };
        Ok(Some(SourceLink { snap: head, overlap }))
    }

    /// What of the source the target's HEAD was made from.
    #[must_use]
    pub fn source_head(&self) -> SnapId {
        match self.intent.as_ref().and_then(|i| i.origin.as_ref()) {
            Some(Origin::Snapshot(snap)) => *snap,
            Some(Origin::Foreign { .. }) | None => SnapId::HEAD,
        }
    }

    /// Notes how much of the source a snapshot about to be taken will show.
    pub(super) fn note_overlap(&mut self, snap: SnapId) {
        let overlap = self.migration.as_ref().filter(|_| self.redirects()).map(|m| m.overlap);
        if let (Some(intent), Some(overlap)) = (&mut self.intent, overlap) {
            intent.overlaps.insert(snap.0, overlap);
        }
    }

    /// Forgets a snapshot that is gone.
    pub(super) fn forget_overlap(&mut self, snap: SnapId) {
        if let Some(intent) = &mut self.intent {
            intent.overlaps.remove(&snap.0);
        }
        if let Some(record) = &mut self.migration {
            record.snap_seqs.retain(|_, target| *target != snap.0);
        }
    }

    /// Makes the image one end of a migration.
    ///
    /// # Errors
    /// `Exists` (17) where it is one already.
    pub fn begin_migration(&mut self, record: MigrationRecord) -> Result<()> {
        let begun = self.features.contains(Features::MIGRATING) && record.side != MigrationSide::Target;
        if self.migration.is_some() || begun {
            return Err(Error::exists("image is migrating already"));
        }
        self.features = self.features.with(Features::MIGRATING);
        self.migration = Some(record);
        Ok(())
    }

    /// Notes how far the migration is.
    ///
    /// # Errors
    /// `NotFound` (2) where there is none.
    pub fn set_migration_state(&mut self, state: MigrationState, description: &str) -> Result<()> {
        let Some(record) = &mut self.migration else {
            return Err(Error::not_found("image is not migrating"));
        };
        record.state = state;
        description.clone_into(&mut record.description);
        Ok(())
    }

    /// Makes the image a plain one again; nothing where it is.
    pub fn end_migration(&mut self) {
        self.features = self.features.without(Features::MIGRATING);
        self.migration = None;
        self.clear_copy_stamp();
    }

    /// Whether data that is not on the image must be read from the other end of its migration.
    #[must_use]
    pub fn redirects(&self) -> bool {
        self.migration.as_ref().is_some_and(|m| {
            m.side == MigrationSide::Target
                && matches!(m.state, MigrationState::Prepared | MigrationState::Executing)
        })
    }

    /// Whether the image may be opened so.
    ///
    /// # Errors
    /// `ReadOnly` (30): the source of a migration, or a target that is being taken away; `Busy` (16): a target still being
    /// prepared (stock `rbd` waits for ever); `Invalid` (22): a migration that went wrong; `Unsupported` (38): features that
    /// are not known.
    pub fn check_opening(&self, opening: Opening) -> Result<()> {
        self.features.check_readable()?;
        if opening == Opening::ReadWrite {
            self.features.check_writable()?;
        }
        if !self.features.contains(Features::MIGRATING) && self.migration.is_none() {
            return Ok(());
        }
        let preparing = || Error::busy("image is being prepared as the target of a migration");
        let Some(migration) = &self.migration else { return Err(preparing()) };
        let read_only = |text| Err(Error::new(ErrorKind::ReadOnly, text));
        match (migration.side, migration.state, opening) {
            (MigrationSide::Source, _, Opening::ReadWrite) => read_only("image being migrated"),
            (MigrationSide::Target, MigrationState::Aborting, Opening::ReadWrite) => {
                read_only("migration is being aborted")
            }
            (MigrationSide::Source, _, Opening::ReadOnly)
            | (MigrationSide::Target, MigrationState::Aborting, Opening::ReadOnly)
            | (
                MigrationSide::Target,
                MigrationState::Prepared | MigrationState::Executing | MigrationState::Executed,
                _,
            ) => Ok(()),
            (MigrationSide::Target, MigrationState::Preparing, _) => Err(preparing()),
            (MigrationSide::Target, MigrationState::Error | MigrationState::Unknown(_), _) => {
                Err(Error::invalid("migration is in an unexpected state").with("state", migration.state))
            }
        }
    }
}
