//! The two ends of a migration, found from either.

use std::borrow::Cow;
use std::sync::Arc;

use ferry_core::{Error, ErrorKind, Namespace, PoolId, Result};
use ferry_image::encoding::{
    MigrationIntent, MigrationPhase, MigrationRecord, MigrationSide, MigrationState, TrashSource,
};
use ferry_image::header::{self, Header, Opening};
use ferry_image::image::Image;
use ferry_image::pool::{Pool, is_pool_gone};
use ferry_image::trash;

use crate::import::Import;

/// One end of a migration.
#[derive(Clone, Debug)]
pub struct End {
    /// Where it is.
    pub pool: Pool,
    /// Its name; for a source the one it had and will have again.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Its header as last read; `None` where it is gone.
    pub header: Option<Arc<Header>>,
}

impl End {
    /// Its record, where it has one.
    #[must_use]
    pub fn record(&self) -> Option<&MigrationRecord> {
        self.header.as_ref().and_then(|h| h.migration.as_ref())
    }

    /// Ferry's note, where it has one.
    #[must_use]
    pub fn intent(&self) -> Option<&MigrationIntent> {
        self.header.as_ref().and_then(|h| h.intent.as_ref())
    }

    /// Its state, where it has a record.
    #[must_use]
    pub fn state(&self) -> Option<MigrationState> {
        self.record().map(|r| r.state)
    }

    /// Reads the header again.
    ///
    /// # Errors
    /// Those of [`header::load`], but for a header that is gone.
    pub async fn reload(&mut self) -> Result<()> {
        let object = header::object(self.pool.id(), &self.pool.namespace, &self.id);
        self.header = match header::load(&*self.pool.store, &object).await {
            Ok(header) => Some(Arc::new(header)),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        Ok(())
    }

    /// Opens it to be changed, whatever its state.
    ///
    /// # Errors
    /// `NotFound` (2) where it is gone; those of the store.
    pub async fn open(&self) -> Result<Image> {
        Image::open_end(&self.pool, &self.name, &self.id).await
    }

    /// The header.
    ///
    /// # Errors
    /// `NotFound` (2) where it is gone.
    pub fn need_header(&self) -> Result<&Arc<Header>> {
        self.header.as_ref().ok_or_else(|| {
            Error::not_found("an end of the migration is gone").with("image", &self.name).with("id", &self.id)
        })
    }

    /// Changes the header without telling anybody.
    pub(crate) async fn update(
        &mut self,
        change: impl FnMut(&mut Header) -> Result<()> + Send,
    ) -> Result<()> {
        let object = header::object(self.pool.id(), &self.pool.namespace, &self.id);
        let (header, ()) = header::update(&*self.pool.store, &object, change).await?;
        self.header = Some(Arc::new(header));
        Ok(())
    }

    /// Writes the state, durably. An abort that has begun is not gone back on.
    ///
    /// # Errors
    /// `ReadOnly` (30) for another state than `Aborting` in an end that is being aborted; those of the store.
    pub(crate) async fn set_state(&mut self, state: MigrationState, description: &str) -> Result<()> {
        self.update(|h| {
            let now = h.migration.as_ref().map(|m| m.state);
            if now == Some(MigrationState::Aborting) && state != MigrationState::Aborting {
                return Err(Error::new(ErrorKind::ReadOnly, "migration is being aborted"));
            }
            h.set_migration_state(state, description)
        })
        .await?;
        self.pool.store.flush().await
    }

    /// Takes back that the migration is being aborted: nothing was done yet but this end closed.
    pub(crate) async fn reopen_as(&mut self, state: MigrationState, description: &str) -> Result<()> {
        self.update(|h| h.set_migration_state(state, description)).await?;
        self.pool.store.flush().await
    }
}

/// Both ends of a migration.
#[derive(Clone, Debug)]
pub struct Ends {
    /// What is moved.
    pub source: End,
    /// Where it goes.
    pub target: End,
}

/// What a name stands for.
#[derive(Debug)]
pub enum Finding {
    /// An end of a migration.
    Migrating(Box<Ends>),
    /// The target of an import.
    Importing(Box<Import>),
    /// An image that is not migrating.
    Plain,
}

impl Ends {
    /// The migration one end of which is, or was, called `name`, also where only the source says so.
    ///
    /// # Errors
    /// `NotFound` (2) where there is no such image; `Invalid` (22) where it is not migrating, or the target of an import; those
    /// of the stores, where the other end is in another.
    pub async fn find(pool: &Pool, name: &str) -> Result<Self> {
        let not_migrating = || Error::invalid("image is not migrating").with("image", name);
        match Self::look_up(pool, name).await? {
            Finding::Migrating(ends) => Ok(*ends),
            Finding::Importing(_) => Err(not_migrating()),
            Finding::Plain => {
                let id = pool.find_id(name).await?.ok_or_else(not_migrating)?;
                Self::claiming(pool, &id).await?.ok_or_else(not_migrating)
            }
        }
    }

    /// The migration whose source names the image `id` as its target, which says nothing of it: another program died while it
    /// prepared it. Nobody but the source, in the trash of any pool of the store, can tell.
    async fn claiming(pool: &Pool, id: &str) -> Result<Option<Self>> {
        for info in pool.store.pools().await? {
            let other = Pool { info, namespace: Namespace::default(), ..pool.clone() };
            match Self::claiming_from(&other, pool, id).await {
                Ok(None) => {}
                // Who may not look into a pool moves nothing out of it either.
                Err(e) if e.kind() == ErrorKind::Denied || is_pool_gone(&e) => {}
                found => return found,
            }
        }
        Ok(None)
    }

    /// As [`Ends::claiming`], of the sources in one pool.
    async fn claiming_from(from: &Pool, pool: &Pool, id: &str) -> Result<Option<Self>> {
        let mut namespaces = from.namespaces().await?;
        namespaces.push(Namespace::default());
        for namespace in namespaces {
            let from = from.in_namespace(&namespace);
            for (source, entry) in trash::list(&from).await? {
                if entry.source != TrashSource::Migration {
                    continue;
                }
                let mut end = End { pool: from.clone(), name: entry.name, id: source, header: None };
                end.reload().await?;
                let is_of_target = end.record().is_some_and(|r| {
                    // Any other state was reached by way of a target that knew of it.
                    r.side == MigrationSide::Source
                        && r.state == MigrationState::Preparing
                        && !r.is_far()
                        && (r.pool, &r.namespace, &*r.peer_id()) == (pool.id(), &pool.namespace, id)
                });
                if is_of_target
                    && let Some(Finding::Migrating(ends)) = Self::of(&from, &end.name, &end.id).await?
                {
                    return Ok(Some(*ends));
                }
            }
        }
        Ok(None)
    }

    /// As [`Ends::find`], where not migrating is no error.
    ///
    /// # Errors
    /// As [`Ends::find`].
    pub async fn look_up(pool: &Pool, name: &str) -> Result<Finding> {
        let named = pool.find_id(name).await?;
        if let Some(id) = &named
            && let Some(found) = Self::of(pool, name, id).await?
        {
            return Ok(found);
        }
        for source in [TrashSource::Migration, TrashSource::Removing] {
            // What is left of one that was cut off may have the same name.
            for (id, _) in trash::all_by_name(pool, name, source).await? {
                if let Some(found) = Self::of(pool, name, &id).await? {
                    return Ok(found);
                }
            }
        }
        if named.is_some() {
            return Ok(Finding::Plain);
        }
        Err(Error::not_found("no such image").with("image", name))
    }

    /// The migration that the image with this id is an end of, if it is one.
    async fn of(pool: &Pool, name: &str, id: &str) -> Result<Option<Finding>> {
        let mut this = End { pool: pool.clone(), name: name.to_owned(), id: id.to_owned(), header: None };
        this.reload().await?;
        let Some(header) = this.header.clone() else { return Ok(None) };
        if is_import(&header) {
            return Ok(Some(Finding::Importing(Box::new(Import { target: this }))));
        }
        let side = match (&header.migration, &header.intent) {
            (Some(record), _) => record.side,
            (None, Some(intent)) => match intent.phase {
                MigrationPhase::Committed => MigrationSide::Target,
                MigrationPhase::Aborted | MigrationPhase::Committing => MigrationSide::Source,
                MigrationPhase::Underway => return Ok(None),
            },
            (None, None) => return Ok(None),
        };
        let mut other = peer(pool, &header).await?;
        other.reload().await?;
        let is_source = side == MigrationSide::Source;
        let mut ends = if is_source {
            Self { source: this, target: other }
        } else {
            Self { source: other, target: this }
        };
        ends.settle().await?;
        Ok(Some(Finding::Migrating(Box::new(ends))))
    }

    /// Carries what only one end knows over to the other: a prepare that was cut off between its last two steps.
    async fn settle(&mut self) -> Result<()> {
        if self.source.state() == Some(MigrationState::Prepared)
            && self.target.state() == Some(MigrationState::Preparing)
        {
            self.target.set_state(MigrationState::Prepared, "").await?;
        }
        Ok(())
    }

    /// How far the migration is: what the target says once it is prepared, before that what the source says. It is being aborted
    /// as soon as either says so, and until the last of the target is gone: the target may be in use in the beginning, the source in the
    /// end.
    #[must_use]
    pub fn state(&self) -> MigrationState {
        let is_aborted = self.source.intent().is_some_and(|i| i.phase == MigrationPhase::Aborted);
        if is_aborted || self.source.state() == Some(MigrationState::Aborting) {
            return MigrationState::Aborting;
        }
        self.target.state().or(self.source.state()).unwrap_or(MigrationState::Error)
    }

    /// Whether clients can use the target: it is prepared, and neither a commit nor an abort has begun.
    #[must_use]
    pub fn is_target_usable(&self) -> bool {
        let is_under_way = self.source.intent().is_some_and(|i| i.phase == MigrationPhase::Underway);
        let states = [MigrationState::Prepared, MigrationState::Executing, MigrationState::Executed];
        is_under_way && self.target.header.is_some() && states.contains(&self.state())
    }

    /// Whether both ends lie in one store.
    #[must_use]
    pub fn is_one_store(&self) -> bool {
        self.source.pool.store.identity() == self.target.pool.store.identity()
    }

    /// Opens the target as any client does.
    ///
    /// # Errors
    /// Those of [`Image::open`].
    pub async fn open_target(&self) -> Result<Image> {
        Image::open_by_id(&self.target.pool, &self.target.id, Opening::ReadWrite).await
    }

    /// Reads both headers again.
    ///
    /// # Errors
    /// As [`End::reload`].
    pub async fn reload(&mut self) -> Result<()> {
        self.source.reload().await?;
        self.target.reload().await
    }

    /// Makes what was done durable at both ends, the source first.
    pub(crate) async fn flush(&self) -> Result<()> {
        self.source.pool.store.flush().await?;
        self.target.pool.store.flush().await
    }
}

/// Whether an image is the target of an import.
fn is_import(header: &Header) -> bool {
    match (&header.migration, &header.intent) {
        (Some(record), intent) => record.is_import() || intent.as_ref().is_some_and(|i| i.origin.is_some()),
        // A note that only says that an import was under way was left by another program's commit.
        (None, Some(intent)) => intent.origin.is_some() && intent.phase != MigrationPhase::Underway,
        (None, None) => false,
    }
}

/// The other end of a migration, its header not read yet.
async fn peer(pool: &Pool, header: &Header) -> Result<End> {
    let intent = header.intent.as_ref();
    let (id, namespace, name, image_id): (PoolId, &Namespace, &str, Cow<'_, str>) =
        match (&header.migration, intent) {
            (Some(r), None) if r.is_far() => {
                return Err(Error::corrupt(
                    "the migration's other end is in another store, and no note tells where",
                ));
            }
            (Some(r), _) if !r.is_far() => (r.pool, &r.namespace, &r.image_name, r.peer_id()),
            (_, Some(i)) => (i.peer.pool, &i.peer.namespace, &i.peer.name, i.peer.id.as_str().into()),
            (_, None) => return Err(Error::invalid("image is not migrating")),
        };
    let store = match intent {
        Some(i) if i.peer.store != pool.store.identity() => {
            pool.peers.store(i.peer.store, &i.peer.place).await?
        }
        Some(_) | None => Arc::clone(&pool.store),
    };
    let pool = Pool { store, ..pool.clone() }.sibling(id, namespace).await?;
    Ok(End { pool, name: name.to_owned(), id: image_id.into_owned(), header: None })
}
