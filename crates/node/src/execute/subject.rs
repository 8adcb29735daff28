//! What a job is about, by ids: after a crash it tells whether the job was done, which neither names nor the number of an error can.
//!
//! A job may end just before its node dies, with its file still there. Done again it would fail: there is no such image any more, or
//! none that is migrating. But so it does where a store is not mounted, or where there was never anything to do. So what is there
//! is looked at instead: the same image, the same migration.

use std::sync::Arc;

use ferry_core::{ErrorKind, Namespace, PoolId, Result};
use ferry_image::encoding::{MigrationState, TrashSource};
use ferry_image::header;
use ferry_image::peers::find_store;
use ferry_image::pool::Pool;
use ferry_image::trash;
use ferry_migrate::{End, Ends, Finding, Outcome, outcome};
use serde::{Deserialize, Serialize};

use super::Run;
use crate::api::{CloneCommand, Command, Done, Failure, ImageCommand, MigrationCommand, TrashCommand};
use crate::spec::PoolSpec;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Subject {
    /// An image.
    Image(Place),
    /// A migration.
    Migration {
        /// As both notes have it; none where another program prepared it.
        uuid: Option<[u8; 16]>,
        /// What is moved, where that is an image.
        source: Option<Place>,
        /// Where it goes.
        target: Place,
    },
}

/// Where an image is, in which store whatsoever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Identity of its store.
    store: [u8; 16],
    /// Where that store is: a directory, a cluster. A hint.
    at: String,
    /// Number of its pool.
    pool: i64,
    /// Its namespace.
    namespace: String,
    /// Its name when the job began.
    name: String,
    /// Its id.
    id: String,
}

impl Place {
    fn of(end: &End) -> Self {
        Self::new(&end.pool, &end.name, &end.id)
    }

    fn new(pool: &Pool, name: &str, id: &str) -> Self {
        Self {
            store: pool.store.identity(),
            at: pool.store.describe(),
            pool: pool.id().0,
            namespace: pool.namespace.as_str().to_owned(),
            name: name.to_owned(),
            id: id.to_owned(),
        }
    }

    /// The image, its header not read yet, found from a pool that the command names.
    async fn find(&self, from: &Pool) -> Result<End> {
        let store = find_store(&from.store, &*from.peers, self.store, &self.at).await?;
        let pool = Pool { store, ..from.clone() };
        let pool = pool.sibling(PoolId(self.pool), &Namespace::new(&self.namespace)).await?;
        Ok(End { pool, name: self.name.clone(), id: self.id.clone(), header: None })
    }
}

impl Run<'_> {
    /// What a command is about that would fail if it were done again; `None` where it would not, and where there is nothing that it could
    /// be about.
    pub(super) async fn subject(&self, command: &Command) -> Done<Option<Subject>> {
        let Some(spec) = named_pool(command) else { return Ok(None) };
        let pool = self.pool(&spec).await?;
        find(&pool, command).await.map_err(|e| unknown(&e))
    }

    /// Whether `command`, which was about `subject`, was done.
    pub(super) async fn was_done(&self, command: &Command, subject: &Subject) -> Done<bool> {
        let Some(spec) = named_pool(command) else { return Ok(false) };
        let pool = self.pool(&spec).await?;
        was_done(&pool, command, subject).await.map_err(|e| unknown(&e))
    }
}

fn unknown(error: &ferry_core::Error) -> Failure {
    Failure::of(error, "cannot tell what the job is about", "rbd: job error")
}

/// The pool in which a command finds what it is about.
fn named_pool(command: &Command) -> Option<PoolSpec> {
    match command {
        Command::Image(ImageCommand::Remove { image })
        | Command::Clone(CloneCommand::Flatten { image })
        | Command::Migration(
            MigrationCommand::Execute { image, .. }
            | MigrationCommand::Commit { image, .. }
            | MigrationCommand::Abort { image, .. },
        ) => Some(image.pool_spec()),
        Command::Trash(TrashCommand::Remove { pool, .. }) => Some(pool.clone()),
        _ => None,
    }
}

async fn find(pool: &Pool, command: &Command) -> Result<Option<Subject>> {
    match command {
        Command::Trash(TrashCommand::Remove { id, .. }) => {
            let entry = trash::get(pool, id).await?;
            Ok(entry.map(|entry| Subject::Image(Place::new(pool, &entry.name, id))))
        }
        Command::Image(ImageCommand::Remove { image }) | Command::Clone(CloneCommand::Flatten { image }) => {
            let name = &image.image;
            let id = match pool.read_id(name).await?.or(pool.listed_id(name).await?) {
                Some(id) => Some(id),
                None => trash::find_by_name(pool, name, TrashSource::Removing).await?.map(|(id, _)| id),
            };
            Ok(id.map(|id| Subject::Image(Place::new(pool, name, &id))))
        }
        Command::Migration(
            MigrationCommand::Execute { image, .. }
            | MigrationCommand::Commit { image, .. }
            | MigrationCommand::Abort { image, .. },
        ) => {
            let (source, target) = match Ends::look_up(pool, &image.image).await {
                Ok(Finding::Migrating(ends)) => (Some(ends.source), ends.target),
                Ok(Finding::Importing(import)) => (None, import.target),
                Ok(Finding::Plain) => return Ok(None),
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e),
            };
            let note = target.intent().or_else(|| source.as_ref().and_then(End::intent));
            Ok(Some(Subject::Migration {
                uuid: note.map(|note| note.uuid),
                source: source.as_ref().map(Place::of),
                target: Place::of(&target),
            }))
        }
        _ => Ok(None),
    }
}

async fn was_done(pool: &Pool, command: &Command, subject: &Subject) -> Result<bool> {
    match (command, subject) {
        (
            Command::Image(ImageCommand::Remove { .. }) | Command::Trash(TrashCommand::Remove { .. }),
            Subject::Image(place),
        ) => is_gone(&place.find(pool).await?).await,
        (Command::Clone(CloneCommand::Flatten { .. }), Subject::Image(place)) => {
            let mut image = place.find(pool).await?;
            image.reload().await?;
            let shows_parent =
                |h: &Arc<header::Header>| h.parent.as_ref().is_some_and(|p| p.head_overlap.is_some());
            Ok(image.header.as_ref().is_some_and(|h| !shows_parent(h)))
        }
        (Command::Migration(command), Subject::Migration { uuid, source, target }) => {
            let source = match source {
                Some(place) => Some(place.find(pool).await?),
                None => None,
            };
            let outcome = outcome(*uuid, source.as_ref(), &target.find(pool).await?).await?;
            Ok(match command {
                MigrationCommand::Execute { .. } => {
                    matches!(outcome, Outcome::Underway(MigrationState::Executed) | Outcome::Committed)
                }
                MigrationCommand::Commit { .. } => outcome == Outcome::Committed,
                MigrationCommand::Abort { .. } => outcome == Outcome::Aborted,
                MigrationCommand::Import { .. }
                | MigrationCommand::Prepare { .. }
                | MigrationCommand::Verify { .. } => false,
            })
        }
        _ => Ok(false),
    }
}

/// Whether nothing is left of an image.
async fn is_gone(image: &End) -> Result<bool> {
    let mut image = image.clone();
    image.reload().await?;
    Ok(image.header.is_none()
        && trash::get(&image.pool, &image.id).await?.is_none()
        && image.pool.image_name(&image.id).await?.is_none()
        && image.pool.read_id(&image.name).await?.as_ref() != Some(&image.id))
}
