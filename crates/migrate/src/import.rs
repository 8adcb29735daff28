//! An import: a migration whose source is no image that moves, but a foreign source or a snapshot that stays.
//!
//! ```text
//!            prepare            execute            done             commit
//!   (none) ──────────► Prepared ───────► Executing ────► Executed ────────► (gone: the target is a plain image)
//!                         └──────────────────┴───────────────┴── abort ──► Aborting ──► (gone: nothing is left)
//! ```
//!
//! Invariants
//! - Only the target has a record and a note. The note tells which bytes a foreign source had ([`Origin::Foreign`]); from
//!   others nothing is taken.
//! - The snapshots that an import from an image reads carry its pin ([`ImportPin`]) until it is committed or aborted, so that
//!   they cannot be removed.
//! - The source is never written.
//! - Every step is idempotent: killed anywhere, the same call again reaches the same end.
//!
//! [`ImportPin`]: ferry_image::encoding::ImportPin

mod execute;
mod finish;
mod prepare;
mod verify;

use std::sync::Arc;

use ferry_core::{Error, ErrorKind, Result};
use ferry_image::encoding::{MigrationPhase, MigrationState, Origin, TrashSource, TrashState};
use ferry_image::header;
use ferry_image::peers::find_store;
use ferry_image::pool::Pool;
use ferry_image::progress::silent;
use ferry_image::trash;

use crate::ends::{End, Ends, Finding};
use crate::removal::remove_end;

pub use execute::execute_import;
pub use finish::{abort_import, commit_import, import_clones, import_losses};
pub use prepare::{ImportFrom, ImportOptions, Imported, prepare_import};
pub use verify::verify_import;

/// An import under way.
#[derive(Clone, Debug)]
pub struct Import {
    /// The image that is made.
    pub target: End,
}

impl Import {
    /// The import whose target is called `name`.
    ///
    /// # Errors
    /// `NotFound` (2) where there is no such image; `Invalid` (22) where it is not being imported.
    pub async fn find(pool: &Pool, name: &str) -> Result<Self> {
        match Ends::look_up(pool, name).await? {
            Finding::Importing(import) => Ok(*import),
            Finding::Migrating(_) | Finding::Plain => {
                Err(Error::invalid("image is not being imported").with("image", name))
            }
        }
    }

    /// How far it is. Of a target that has no record any more its note says whether it is being taken away or committed.
    #[must_use]
    pub fn state(&self) -> MigrationState {
        let without_record = match self.target.intent().map(|i| i.phase) {
            Some(MigrationPhase::Aborted) => MigrationState::Aborting,
            Some(MigrationPhase::Committing | MigrationPhase::Committed) => MigrationState::Executed,
            Some(MigrationPhase::Underway) | None => MigrationState::Error,
        };
        self.target.state().unwrap_or(without_record)
    }

    /// The source spec.
    #[must_use]
    pub fn spec(&self) -> &str {
        self.target.record().map_or("", |r| &r.source_spec)
    }

    /// Where the data comes from; `None` where another program prepared it.
    #[must_use]
    pub fn origin(&self) -> Option<&Origin> {
        self.target.intent().and_then(|i| i.origin.as_ref())
    }

    /// Whether a commit has begun to change something: there is no way back.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        let phase = self.target.intent().map(|i| i.phase);
        matches!(phase, Some(MigrationPhase::Committing | MigrationPhase::Committed))
    }

    /// The image that is imported, where it is one; its header is `None` where it is gone.
    async fn source_image(&self) -> Result<Option<End>> {
        let Some((intent, Origin::Snapshot(_))) =
            self.target.intent().and_then(|i| i.origin.as_ref().map(|o| (i, o)))
        else {
            return Ok(None);
        };
        let (own, peer) = (&self.target.pool, &intent.peer);
        let store = find_store(&own.store, &*own.peers, peer.store, &peer.place).await?;
        let pool = Pool { store, ..own.clone() }.sibling(peer.pool, &peer.namespace).await?;
        let mut end = End { pool, name: peer.name.clone(), id: peer.id.clone(), header: None };
        end.reload().await?;
        Ok(Some(end))
    }

    /// Lets the source's snapshots go. Where the source, or its store, is not there, there is nothing to be done: who wants
    /// to remove a snapshot looks whether its import is over.
    async fn unpin(&self) -> Result<()> {
        let Some(uuid) = self.target.intent().map(|i| i.uuid) else { return Ok(()) };
        let source = match self.source_image().await {
            Ok(Some(source)) => source,
            Ok(None) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        if source.header.is_none() {
            return Ok(());
        }
        let object = header::object(source.pool.id(), &source.pool.namespace, &source.id);
        let unpinned = header::update(&*source.pool.store, &object, |h| {
            h.remove_pin(&uuid);
            Ok(())
        });
        match unpinned.await {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            Ok(_) | Err(_) => {}
        }
        source.pool.store.flush().await
    }

    /// Closes the target to all, for good. The note says so too: it outlives the record.
    async fn set_aborting(&mut self) -> Result<()> {
        let is_noted = self.target.intent().is_none_or(|i| i.phase == MigrationPhase::Aborted);
        if self.state() == MigrationState::Aborting && is_noted {
            return Ok(());
        }
        self.target
            .update(|h| {
                if let Some(intent) = &mut h.intent {
                    intent.phase = MigrationPhase::Aborted;
                }
                h.set_migration_state(MigrationState::Aborting, "")
            })
            .await?;
        self.target.pool.store.flush().await
    }

    /// Takes the target away, whatever there is of it.
    async fn undo(mut self) -> Result<()> {
        if self.target.header.is_some() {
            self.set_aborting().await?;
        }
        self.unpin().await?;
        remove_end(&mut self.target, TrashSource::Removing, &mut silent).await
    }
}

/// Clears away what is left of images called `name` that were being made, or being removed, when that was cut off: entries in the
/// trash without an image. Whether there were any.
///
/// # Errors
/// Those of the store.
pub(crate) async fn clear_remains(pool: &Pool, name: &str) -> Result<bool> {
    let mut has_cleared = false;
    for (id, entry) in trash::all_by_name(pool, name, TrashSource::Removing).await? {
        let mut end = End { pool: pool.clone(), name: name.to_owned(), id, header: None };
        end.reload().await?;
        // One being cleared away itself when that was cut off is in the normal state.
        let is_left = match entry.state {
            TrashState::Normal | TrashState::Moving | TrashState::Removing => end.header.is_none(),
            TrashState::Restoring | TrashState::Unknown(_) => false,
        };
        if is_left {
            remove_end(&mut end, TrashSource::Removing, &mut silent).await?;
            has_cleared = true;
        }
    }
    Ok(has_cleared)
}

/// The target's header, shared.
fn header_of(end: &End) -> Result<Arc<header::Header>> {
    end.need_header().cloned()
}
