//! Prepare: the target comes into being and reads through to the source.
//!
//! ```text
//!   checks                              nothing is changed by what is refused
//!   trash entry                         from here on what is there is found by the target's name
//!   header (Preparing) · maps · names   the header comes as one op, record and snapshots in it
//!   source: pin                         where it is an image; a pin without a target counts for nothing
//!   trash entry gone
//!   Prepared
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ferry_core::{BlockSource, Error, ErrorKind, Namespace, PoolId, Result, SnapId, Stamp, Timestamp};
use ferry_image::create::{CreateOptions, check_free, create_whole, new_header};
use ferry_image::encoding::{
    BasePoint, ImportPin, MigrationIntent, MigrationPeer, MigrationPhase, MigrationRecord, MigrationSide,
    MigrationState, Origin, Protection, SnapshotRecord,
};
use ferry_image::features::Features;
use ferry_image::header::{self, Header};
use ferry_image::id::new_image_id;
use ferry_image::image::Image;
use ferry_image::layout::Layout;
use ferry_image::pool::Pool;
use ferry_image::trash;

use super::{Import, clear_remains};
use crate::ends::{End, Ends, Finding};
use crate::verify;

/// What is imported.
#[derive(Clone, Debug)]
pub enum ImportFrom {
    /// A foreign source.
    Foreign {
        /// The source, open.
        source: Arc<dyn BlockSource>,
        /// What names it, for good: [`ferry_image::peers::Peers::source`] must open it again. No secrets.
        spec: String,
    },
    /// A snapshot of an image, with those before it.
    Snapshot {
        /// The image at that snapshot.
        image: Box<Image>,
        /// What names it, for people and for `rbd`.
        spec: String,
    },
}

/// What the target is to be.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Layout and features; what is `None` is the pool's default. Its size is not looked at.
    pub layout: CreateOptions,
    /// Leave out what would need an exclusive lock.
    pub shared: bool,
}

/// What a prepare did.
#[derive(Debug)]
pub enum Imported {
    /// The target is there.
    Done(Import),
    /// The same had been asked for before and was prepared already.
    Already(Import),
}

/// A snapshot to be had on the target.
#[derive(Clone, Debug)]
struct Snap {
    /// Its id in the source; of a foreign one see [`ferry_image::revision::source_point`].
    id: SnapId,
    name: String,
    size: u64,
    taken: Timestamp,
    protection: Protection,
}

/// Makes `name` in `target`, which shows `from` at once.
///
/// # Errors
/// `Exists` (17) where the name is taken; `Busy` (16) where the image imported from is migrating; `Invalid` (22, 33) for a
/// layout that cannot be, and for a source whose snapshots have no names of their own; `ReadOnly` (30). After an error there
/// is no target.
///
/// # Crash safety
/// See the module. Killed, the same call finishes, and so does [`super::abort_import`].
pub async fn prepare_import(
    from: &ImportFrom,
    target: &Pool,
    name: &str,
    options: &ImportOptions,
) -> Result<Imported> {
    match Ends::look_up(target, name).await {
        Ok(Finding::Importing(import)) => match import.state() {
            MigrationState::Preparing | MigrationState::Aborting => import.undo().await?,
            MigrationState::Prepared if import.target.name == name && import.spec() == from.spec() => {
                return Ok(Imported::Already(*import));
            }
            MigrationState::Error
            | MigrationState::Prepared
            | MigrationState::Executing
            | MigrationState::Executed
            | MigrationState::Unknown(_) => {}
        },
        Ok(Finding::Migrating(_) | Finding::Plain) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => {
            clear_remains(target, name).await?;
        }
        Err(e) => return Err(e),
    }
    let plan = Plan::make(from, target, name, options).await?;
    if let Err(e) = plan.carry_out().await {
        // What went wrong first is what is told; what is left is found by an abort.
        let mut end = End { pool: target.clone(), name: name.to_owned(), id: plan.id.clone(), header: None };
        if end.reload().await.is_ok() {
            drop(Import { target: end }.undo().await);
        }
        return Err(e);
    }
    Import::find(target, name).await.map(Imported::Done)
}

impl ImportFrom {
    /// The source spec.
    fn spec(&self) -> &str {
        match self {
            Self::Foreign { spec, .. } | Self::Snapshot { spec, .. } => spec,
        }
    }

    /// Size of HEAD of the target. Bytes.
    fn size(&self) -> Result<u64> {
        match self {
            Self::Foreign { source, .. } => Ok(source.size()),
            Self::Snapshot { image, .. } => image.size(),
        }
    }

    /// The snapshots, oldest first.
    fn snaps(&self, now: Timestamp) -> Vec<Snap> {
        match self {
            Self::Foreign { source, .. } => source
                .snapshots()
                .iter()
                .zip(1..)
                .map(|(s, n)| Snap {
                    id: SnapId(n),
                    name: s.name.clone(),
                    size: s.size,
                    taken: s.taken.unwrap_or(now),
                    protection: Protection::Unprotected,
                })
                .collect(),
            Self::Snapshot { image, .. } => image
                .header
                .snaps
                .range(..=image.at)
                .filter(|(_, s)| s.namespace.is_user())
                .map(|(id, s)| Snap {
                    id: *id,
                    name: s.name.clone(),
                    size: s.size,
                    taken: s.timestamp,
                    protection: s.protection,
                })
                .collect(),
        }
    }
}

/// What is going to be done, all of it checked.
#[derive(Debug)]
struct Plan<'a> {
    from: &'a ImportFrom,
    target: &'a Pool,
    name: &'a str,
    id: String,
    uuid: [u8; 16],
    options: CreateOptions,
    layout: Layout,
    features: Features,
    snaps: Vec<Snap>,
}

impl<'a> Plan<'a> {
    async fn make(
        from: &'a ImportFrom,
        target: &'a Pool,
        name: &'a str,
        options: &ImportOptions,
    ) -> Result<Plan<'a>> {
        if target.is_read_only() {
            return Err(
                Error::new(ErrorKind::ReadOnly, "the pool is read-only").with("pool", &target.info.name)
            );
        }
        if let ImportFrom::Snapshot { image, .. } = from {
            check_source(image)?;
        }
        let snaps = from.snaps(target.env.clock.now());
        let mut names = BTreeSet::new();
        if let Some(odd) = snaps.iter().find(|s| s.name.is_empty() || !names.insert(s.name.clone())) {
            return Err(Error::invalid("two snapshots of the source have one name, or one has none")
                .with("snapshot", &odd.name));
        }
        let mut options_all =
            CreateOptions { size: from.size()?, ..options.layout.clone() }.or_pool_defaults(target).await?;
        if options.shared {
            let features = options_all.features.unwrap_or(Features::DEFAULT).without(Features::SINGLE_CLIENT);
            options_all.features = Some(features);
        }
        let (layout, features) = options_all.resolve(target)?;
        check_free(target, name).await?;
        let rng = &*target.env.rng;
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&rng.next_u64().to_le_bytes());
        uuid[8..].copy_from_slice(&rng.next_u64().to_le_bytes());
        let id = new_image_id(target.store.client(), rng);
        Ok(Self { from, target, name, id, uuid, options: options_all, layout, features, snaps })
    }

    async fn carry_out(&self) -> Result<()> {
        let target = self.target;
        target.init().await?;
        trash::announce(target, self.name, &self.id).await?;
        target.store.flush().await?;
        create_whole(target, self.name, &self.id, &self.header().await?).await?;
        target.store.flush().await?;
        self.pin().await?;
        trash::forget(target, &self.id).await?;
        let object = header::object(target.id(), &target.namespace, &self.id);
        header::update(&*target.store, &object, |h| h.set_migration_state(MigrationState::Prepared, ""))
            .await?;
        target.store.flush().await
    }

    /// The target's header, complete.
    async fn header(&self) -> Result<Header> {
        let mut header = new_header(self.target, &self.id, &self.options, self.layout, self.features);
        let data_pool = header.data_pool_or(self.target.id());
        let mut snap_seqs = BTreeMap::new();
        let has_layering = self.features.contains(Features::LAYERING);
        for snap in &self.snaps {
            let id = self.target.store.allocate_snap(data_pool).await?;
            snap_seqs.insert(snap.id.0, id.0);
            let protection = if has_layering { snap.protection } else { Protection::Unprotected };
            header.snaps.insert(
                id,
                SnapshotRecord {
                    protection,
                    timestamp: snap.taken,
                    ..SnapshotRecord::new(id, &snap.name, snap.size)
                },
            );
        }
        let base = self.target.store.allocate_snap(data_pool).await?;
        header.snap_seq = base.0;
        let size = self.options.size;
        let largest = self.snaps.iter().map(|s| s.size).fold(size, u64::max);
        if verify::others_may_write(&*self.target.store) {
            header.set_copy_stamp(Stamp::of(self.target.env.rng.next_u64()));
        }
        header.begin_migration(self.record(snap_seqs))?;
        header.intent = Some(MigrationIntent {
            uuid: self.uuid,
            phase: MigrationPhase::Underway,
            peer: self.source(),
            base: Some(BasePoint { snap: base, size, parent_overlap: None, largest }),
            overlaps: BTreeMap::new(),
            origin: Some(self.origin()),
            cursor: 0,
            newer: false,
        });
        Ok(header)
    }

    fn record(&self, snap_seqs: BTreeMap<u64, u64>) -> MigrationRecord {
        MigrationRecord {
            side: MigrationSide::Target,
            pool: PoolId(-1),
            namespace: Namespace::default(),
            image_name: String::new(),
            image_id: String::new(),
            snap_seqs,
            overlap: self.options.size,
            flatten: true,
            mirroring: false,
            state: MigrationState::Preparing,
            description: String::new(),
            mirror_mode: 0,
            source_spec: self.from.spec().to_owned(),
            newer: false,
        }
    }

    fn origin(&self) -> Origin {
        match self.from {
            ImportFrom::Foreign { source, .. } => Origin::Foreign { pin: source.pin() },
            ImportFrom::Snapshot { image, .. } => Origin::Snapshot(image.at),
        }
    }

    /// The image imported from; of a foreign source nothing but what it is called.
    fn source(&self) -> MigrationPeer {
        match self.from {
            ImportFrom::Foreign { source, .. } => MigrationPeer {
                store: [0; 16],
                place: source.describe(),
                pool: PoolId(-1),
                namespace: Namespace::default(),
                name: String::new(),
                id: String::new(),
            },
            ImportFrom::Snapshot { image, .. } => peer(&image.pool, &image.name, &image.id),
        }
    }

    /// Keeps the source's snapshots from going away.
    async fn pin(&self) -> Result<()> {
        let ImportFrom::Snapshot { image, .. } = self.from else { return Ok(()) };
        let snaps = self.snaps.iter().map(|s| s.id).chain([image.at]).collect::<BTreeSet<_>>();
        let pin = ImportPin {
            snaps: snaps.into_iter().collect(),
            target: peer(self.target, self.name, &self.id),
            newer: false,
        };
        let store = &*image.pool.store;
        header::update(store, &image.header_object(), |h| {
            if h.migration.is_some() {
                return Err(Error::busy("image is migrating").with("image", &image.name));
            }
            h.add_pin(&self.uuid, &pin)
        })
        .await?;
        store.flush().await
    }
}

fn peer(pool: &Pool, name: &str, id: &str) -> MigrationPeer {
    MigrationPeer {
        store: pool.store.identity(),
        place: pool.store.describe(),
        pool: pool.id(),
        namespace: pool.namespace.clone(),
        name: name.to_owned(),
        id: id.to_owned(),
    }
}

/// Refuses an image that cannot be imported from now.
fn check_source(image: &Image) -> Result<()> {
    if image.header.migration.is_some() {
        return Err(Error::busy("image is migrating").with("image", &image.name));
    }
    if image.pool.is_read_only() {
        return Err(Error::new(
            ErrorKind::ReadOnly,
            "the pool imported from is read-only: its snapshots cannot be kept from being removed",
        )
        .with("pool", &image.pool.info.name));
    }
    if image.at == SnapId::HEAD {
        return Err(Error::invalid("snapshot required for import"));
    }
    Ok(())
}
