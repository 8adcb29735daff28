//! What an image that is one end of a migration may be opened for.

use ferry_core::{Error, ErrorKind, Result};

use super::Header;
use crate::encoding::{MigrationRecord, MigrationSide, MigrationState};
use crate::features::Features;

/// How an image is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// To be read.
    ReadOnly,
    /// To be changed.
    ReadWrite,
}

impl Header {
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
