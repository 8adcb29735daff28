//! Prepare: the source goes to the trash, the target comes into being and reads through to it.
//!
//! ```text
//!   checks                        nothing is changed by what is refused
//!   source: record Preparing      from here on the source cannot be written, and an abort finds everything
//!   source: to the trash
//!   target: header · maps · names the header comes as one op, record and snapshots in it
//!   source, target: Prepared
//!   clones of the source          one after the other to the target
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use ferry_core::{Errno, Error, ErrorKind, Result, SnapId, Stamp};
use ferry_image::clone;
use ferry_image::create::{CreateOptions, check_free, create_whole, new_header};
use ferry_image::encoding::{
    BasePoint, MigrationIntent, MigrationPeer, MigrationPhase, MigrationRecord, MigrationSide,
    MigrationState, ParentRecord, SnapshotRecord, TrashSource, told_id,
};
use ferry_image::features::{Features, OpFeatures};
use ferry_image::header::{Header, Opening};
use ferry_image::id::new_image_id;
use ferry_image::image::Image;
use ferry_image::layout::Layout;
use ferry_image::pool::Pool;
use ferry_image::{remove, snapshot, status, trash};

use crate::abort;
use crate::children;
use crate::ends::{Ends, Finding};
use crate::verify;

/// How the stripes of a target are chosen where they are not given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Striping {
    /// So that the image can be made: the source's stripes where they fit the object size, else none.
    #[default]
    Fitting,
    /// The source's unit and count, each by itself, as `rbd` does: fails where they do not fit.
    Inherited,
}

/// What the target is to be; what is `None` is the source's.
#[derive(Clone, Debug, Default)]
pub struct PrepareOptions {
    /// Layout and features. Its size and image-meta are not looked at.
    pub layout: CreateOptions,
    /// How stripes are chosen.
    pub striping: Striping,
    /// Leave out what would need an exclusive lock.
    pub shared: bool,
    /// What the target can do where the source is of format 1, and can do nothing.
    pub features_of_format1: Features,
    /// Whether the target of a clone takes the parent's data too.
    pub flatten: bool,
}

/// What a prepare did.
#[derive(Debug)]
pub enum Prepared {
    /// The target is there.
    Done(Ends),
    /// The same had been asked for before and was prepared already.
    Already(Ends),
}

impl Prepared {
    /// Both ends.
    #[must_use]
    pub fn into_ends(self) -> Ends {
        match self {
            Self::Done(ends) | Self::Already(ends) => ends,
        }
    }
}

/// Prepares the image `name` of `pool` to move to `target_name` in `target`, which may be the same pool and name.
///
/// # Errors
/// `NotFound` (2); `Busy` (16) where others have it open, a person holds its lock, it is migrating, or has snapshots that
/// cannot be moved; `Exists` (17) where the target's name is taken; `Invalid` (22, 33) for a layout that cannot be, (18) for
/// what cannot cross stores; `ReadOnly` (30). After an error the source is as it was.
///
/// # Crash safety
/// See the module. Killed, the same call finishes, and so does [`abort::abort`].
pub async fn prepare(
    pool: &Pool,
    name: &str,
    target: &Pool,
    target_name: &str,
    options: &PrepareOptions,
) -> Result<Prepared> {
    if let Some(ends) = unfinished(pool, name).await? {
        match ends.state() {
            // Cut off before: what was begun is ended first.
            MigrationState::Preparing | MigrationState::Aborting => abort::undo(ends).await?,
            MigrationState::Prepared if is_target(&ends, target, target_name) => {
                return finish(ends).await.map(Prepared::Already);
            }
            MigrationState::Error
            | MigrationState::Prepared
            | MigrationState::Executing
            | MigrationState::Executed
            | MigrationState::Unknown(_) => {
                return Err(Error::not_found("image is being migrated already")
                    .with("image", name)
                    .with("target", &ends.target.name));
            }
        }
    }
    let mut source = Image::open(pool, name, Opening::ReadWrite).await?;
    if let Err(e) = drop_left_overs(&mut source).await {
        return close_with(source, e).await;
    }
    let plan = match Plan::make(&source, target, target_name, options).await {
        Ok(plan) => plan,
        Err(e) => return close_with(source, e).await,
    };
    if let Err(e) = source.acquire().await {
        return close_with(source, e).await;
    }
    match plan.carry_out(&mut source).await {
        Ok(()) => {}
        Err(e) => {
            // What went wrong first is what is told; what is left is found by an abort.
            drop(source.close().await);
            if let Ok(Finding::Migrating(ends)) = Ends::look_up(pool, name).await {
                drop(abort::undo(*ends).await);
            }
            return Err(e);
        }
    }
    source.close().await?;
    let ends = Ends::find(target, target_name).await?;
    finish(ends).await.map(Prepared::Done)
}

/// Ends what a crash left of steps before this one, and would keep the source from moving.
async fn drop_left_overs(source: &mut Image) -> Result<()> {
    snapshot::drop_stale_pins(source).await?;
    snapshot::drop_unused_trash(source).await
}

/// A migration of this image that is there already.
async fn unfinished(pool: &Pool, name: &str) -> Result<Option<Ends>> {
    match Ends::look_up(pool, name).await {
        Ok(Finding::Migrating(ends)) => {
            if ends.source.pool.id() != pool.id() || ends.source.name != name {
                return Err(Error::busy("image is migrating").with("image", name));
            }
            Ok(Some(*ends))
        }
        Ok(Finding::Importing(_)) => Err(Error::busy("image is migrating").with("image", name)),
        Ok(Finding::Plain) => revive(pool, name).await.map(|_| None),
        Err(e) if e.kind() == ErrorKind::NotFound => revive(pool, name).await.map(|_| None),
        Err(e) => Err(e),
    }
}

/// Gives an image that no header calls migrating ([`Ends::look_up`]) its name back, or what it lacks of it, where another program
/// moved it to the trash to migrate it, or began to, and died; whether it was so.
///
/// # Errors
/// `Busy` (16) where somebody has it open: that program may be at it. Those of the store.
///
/// # Crash safety
/// Durable when it returns. After a crash midway the same call finishes.
pub async fn revive(pool: &Pool, name: &str) -> Result<bool> {
    let named = pool.find_id(name).await?;
    let there = trash::all_by_name(pool, name, TrashSource::Migration).await?;
    // Another image may have the name by now.
    let Some((id, _)) = there.into_iter().find(|(id, _)| named.as_ref().is_none_or(|named| named == id))
    else {
        return Ok(false);
    };
    let image = match Image::open_by_id(pool, &id, Opening::ReadWrite).await {
        Ok(image) => image,
        // What is left of one.
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    let watched = remove::check_watchers(&image).await;
    image.close().await?;
    watched.map_err(|e| Error::busy("image has watchers - not migrating").because(e))?;
    abort::restore_name(pool, name, &id).await?;
    Ok(true)
}

/// Whether this is where it goes.
fn is_target(ends: &Ends, pool: &Pool, name: &str) -> bool {
    let there = &ends.target;
    there.pool.store.identity() == pool.store.identity()
        && there.pool.id() == pool.id()
        && there.pool.namespace == pool.namespace
        && there.name == name
}

/// Links the source's clones to the target.
async fn finish(mut ends: Ends) -> Result<Ends> {
    let Some(record) = ends.target.record().cloned() else { return Ok(ends) };
    let map = |s: SnapId| record.snap_seqs.get(&s.0).map(|t| SnapId(*t));
    if children::relink(&ends.source, &mut ends.target, map).await? > 0 {
        ends.flush().await?;
        ends.reload().await?;
    }
    Ok(ends)
}

async fn close_with<T>(image: Image, error: Error) -> Result<T> {
    image.close().await?;
    Err(error)
}

/// What is going to be done, all of it checked.
#[derive(Debug)]
struct Plan<'a> {
    target: &'a Pool,
    name: &'a str,
    id: String,
    uuid: [u8; 16],
    layout: Layout,
    features: Features,
    options: CreateOptions,
    flatten: bool,
}

impl<'a> Plan<'a> {
    /// Checks everything that can be checked before anything is changed.
    async fn make(
        source: &Image,
        target: &'a Pool,
        name: &'a str,
        options: &PrepareOptions,
    ) -> Result<Plan<'a>> {
        check_source(source).await?;
        if target.is_read_only() {
            return Err(
                Error::new(ErrorKind::ReadOnly, "the pool is read-only").with("pool", &target.info.name)
            );
        }
        let layout_options = resolve_options(&source.header, options)?;
        let (layout, features) = layout_options.resolve(target)?;
        check_clones(source, target, features, options.flatten).await?;
        let same_name = source.pool.store.identity() == target.store.identity()
            && source.pool.id() == target.id()
            && source.pool.namespace == target.namespace
            && source.name == name;
        if !same_name {
            check_free(target, name).await?;
        }
        let rng = &*target.env.rng;
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&rng.next_u64().to_le_bytes());
        uuid[8..].copy_from_slice(&rng.next_u64().to_le_bytes());
        let id = new_image_id(target.store.client(), rng);
        let (options, flatten) = (layout_options, options.flatten);
        Ok(Self { target, name, id, uuid, layout, features, options, flatten })
    }

    /// Does it, up to both ends being prepared. Clients wait for it: within a store what comes later is not there after a crash
    /// without what came before, so only between two stores is anything made durable on the way.
    async fn carry_out(&self, source: &mut Image) -> Result<()> {
        let is_near = source.pool.store.identity() == self.target.store.identity();
        self.mark_source(source).await?;
        trash::unlink(&source.pool, &source.name, &source.id, TrashSource::Migration, Duration::ZERO).await?;
        if !is_near {
            source.pool.store.flush().await?;
        }
        let header = self.target_header(source).await?;
        create_whole(self.target, self.name, &self.id, &header).await?;
        if let Some(parent) = header.parent_spec() {
            let child = Image::open_end(self.target, self.name, &self.id).await?;
            let linked = clone::attach_to_parent(&child, parent).await;
            child.close().await?;
            linked?;
        }
        if !is_near {
            self.target.store.flush().await?;
        }
        let point = header.base().map(|base| (header.data_pool_or(self.target.id()), base.snap));
        source
            .update_header(|h| {
                if let Some((pool, snap)) = point.filter(|_| is_near) {
                    h.set_target_point(pool, snap);
                }
                h.set_migration_state(MigrationState::Prepared, "")
            })
            .await?;
        if !is_near {
            source.pool.store.flush().await?;
        }
        let mut ends = Ends::find(&source.pool, &source.name).await?;
        if ends.target.state() != Some(MigrationState::Prepared) {
            ends.target.set_state(MigrationState::Prepared, "").await?;
        }
        Ok(())
    }

    /// Tells the source that it is moved, and where.
    async fn mark_source(&self, source: &mut Image) -> Result<()> {
        source.is_end = true;
        let record = self.record(MigrationSide::Source, &source.pool, self.target, self.name, &self.id);
        let intent = self.intent(self.target, self.name, &self.id);
        source
            .update_header(|h| {
                h.begin_migration(record.clone())?;
                h.intent = Some(intent.clone());
                Ok(())
            })
            .await
    }

    /// The record of the end in `own` of a migration whose other end is `name` in `peer`.
    fn record(&self, side: MigrationSide, own: &Pool, peer: &Pool, name: &str, id: &str) -> MigrationRecord {
        let record = MigrationRecord {
            side,
            pool: peer.id(),
            namespace: peer.namespace.clone(),
            image_name: name.to_owned(),
            image_id: told_id(id).to_owned(),
            snap_seqs: BTreeMap::new(),
            overlap: 0,
            flatten: self.flatten,
            mirroring: false,
            state: MigrationState::Preparing,
            description: String::new(),
            mirror_mode: 0,
            source_spec: String::new(),
            newer: false,
        };
        if own.store.identity() == peer.store.identity() { record } else { record.far() }
    }

    fn intent(&self, peer: &Pool, name: &str, id: &str) -> MigrationIntent {
        MigrationIntent {
            uuid: self.uuid,
            phase: MigrationPhase::Underway,
            peer: MigrationPeer {
                store: peer.store.identity(),
                place: peer.store.describe(),
                pool: peer.id(),
                namespace: peer.namespace.clone(),
                name: name.to_owned(),
                id: id.to_owned(),
            },
            base: None,
            overlaps: BTreeMap::new(),
            origin: None,
            cursor: 0,
            newer: false,
        }
    }

    /// The target's header, complete: the source's size, snapshots with their times and protection, image-meta, parent.
    async fn target_header(&self, source: &Image) -> Result<Header> {
        let from = &source.header;
        let keeps_parent = from.parent_spec().is_some() && !self.flatten;
        let mut options = self.options.clone();
        options.size = from.size;
        options.metadata.clone_from(&from.metadata);
        let mut header = new_header(self.target, &self.id, &options, self.layout, self.features);
        let data_pool = header.data_pool_or(self.target.id());
        let mut record =
            self.record(MigrationSide::Target, self.target, &source.pool, &source.name, &source.id);
        record.overlap = from.size;
        for snap in from.snaps.values() {
            let id = self.target.store.allocate_snap(data_pool).await?;
            record.snap_seqs.insert(snap.id.0, id.0);
            let overlap = snap.overlap().filter(|_| keeps_parent);
            header.snaps.insert(
                id,
                SnapshotRecord {
                    protection: snap.protection,
                    timestamp: if from.format1.is_some() { header.created } else { snap.timestamp },
                    parent_overlap: overlap,
                    ..SnapshotRecord::new(id, &snap.name, snap.size)
                },
            );
        }
        let base = self.target.store.allocate_snap(data_pool).await?;
        header.snap_seq = base.0;
        header.snap_limit = from.snap_limit;
        if from.format1.is_none() {
            (header.created, header.accessed, header.modified) = (from.created, from.accessed, from.modified);
        }
        if keeps_parent && let Some(parent) = from.parent_spec() {
            let head_overlap = from.parent.as_ref().and_then(|p| p.head_overlap);
            header.parent = Some(ParentRecord { head_overlap, ..parent.clone() });
            // The older kind of link cannot leave its parent's namespace.
            if !from.is_v1_clone() || parent.namespace != self.target.namespace {
                header.set_op_features(OpFeatures::CLONE_CHILD, OpFeatures::NONE);
            }
        }
        let parent_overlap = header.parent.as_ref().and_then(|p| p.head_overlap);
        let mut intent = self.intent(&source.pool, &source.name, &source.id);
        let largest = from.snaps.values().map(|s| s.size).fold(from.size, u64::max);
        intent.base = Some(BasePoint { snap: base, size: from.size, parent_overlap, largest });
        header.begin_migration(record)?;
        header.intent = Some(intent);
        if verify::others_may_write(&*self.target.store) {
            header.set_copy_stamp(Stamp::of(self.target.env.rng.next_u64()));
        }
        Ok(header)
    }
}

/// Refuses a source that cannot be moved now, or at all.
async fn check_source(source: &Image) -> Result<()> {
    let header = &source.header;
    if header.migration.is_some() {
        return Err(Error::busy("image is migrating").with("image", &source.name));
    }
    if let Err(e) = remove::check_watchers(source).await {
        return Err(Error::busy("image has watchers - not migrating").errno_is(e.errno()).because(e));
    }
    let info = status::lockers(source).await?;
    if let Some(locker) = info.lockers.iter().find(|l| !l.cookie.starts_with("auto ")) {
        return Err(Error::busy("image is locked by hand - not migrating")
            .with("locker", locker.client)
            .with("cookie", &locker.cookie));
    }
    if header.snaps.values().any(|s| s.namespace.is_trash()) {
        let text = "image has snapshots with linked clones that must be deleted or flattened before the image can be migrated";
        return Err(Error::busy(text));
    }
    if header.snaps.values().any(|s| !s.namespace.is_user()) {
        return Err(Error::busy("image has non-user type snapshots that are not supported by migration"));
    }
    if let Some((_, pin)) = header.pins()?.first() {
        return Err(
            Error::busy("image is being imported - not migrating").with("pinned_by", &pin.target.name)
        );
    }
    if header.group.is_some() {
        return Err(Error::busy("image is in a consistency group - not migrating"));
    }
    Ok(())
}

/// Refuses what clones, or the parent, of a source make impossible.
async fn check_clones(source: &Image, target: &Pool, features: Features, flatten: bool) -> Result<()> {
    let crosses = source.pool.store.identity() != target.store.identity();
    let far = |text| Err(Error::invalid(text).errno_is(Errno::EXDEV));
    let kept = source.header.parent_spec().filter(|_| !flatten);
    if kept.is_some() && crosses {
        return far("a clone cannot leave the store of its parent: flatten it, or migrate with --flatten");
    }
    if kept.is_some() && !features.contains(Features::LAYERING) {
        return Err(Error::invalid("a clone needs the feature layering, or to be migrated with --flatten"));
    }
    let clones = clone::children(source, SnapId::HEAD).await?;
    if clones.is_empty() {
        return Ok(());
    }
    if !features.contains(Features::LAYERING) {
        return Err(Error::invalid(
            "can't migrate to destination without layering feature: image has children",
        ));
    }
    if crosses {
        return far("the image has clones, and they cannot leave its store: flatten them first");
    }
    if source.pool.namespace != target.namespace {
        for snap in source.header.snaps.keys() {
            if !clone::v1_children(&source.pool, &source.id, *snap).await?.is_empty() {
                return far(
                    "the image has clones of format 1, which cannot leave its namespace: flatten them first",
                );
            }
        }
    }
    Ok(())
}

/// The target's layout and features: what was asked for, else the source's.
fn resolve_options(from: &Header, options: &PrepareOptions) -> Result<CreateOptions> {
    let asked = &options.layout;
    let order = asked.order.unwrap_or(from.order);
    let object_size = 1_u64.checked_shl(u32::from(order)).unwrap_or(0);
    let (unit, count) = match (options.striping, asked.stripe_unit, asked.stripe_count) {
        (Striping::Inherited, unit, count) => {
            // `rbd` looks at them together only where one of them is given.
            let given = unit.is_some() || count.is_some();
            let inherit = |n: u64| (!given).then_some(n);
            (unit.or_else(|| inherit(from.stripe_unit)), count.or_else(|| inherit(from.stripe_count)))
        }
        (Striping::Fitting, None, None) => {
            let fits = from.stripe_count > 1 && object_size.is_multiple_of(from.stripe_unit);
            if fits {
                (Some(from.stripe_unit), Some(from.stripe_count))
            } else {
                (Some(object_size), Some(1))
            }
        }
        (Striping::Fitting, unit, count) => (unit, count),
    };
    if unit.is_some_and(|u| u > 0 && !object_size.is_multiple_of(u)) {
        Layout::plain(order)?;
        return Err(Error::invalid("stripe unit is not a factor of the object size"));
    }
    // What follows from the layout or the state of one image is not inherited.
    let own = Features(0xF92).with(Features::JOURNALING);
    let inherited = match from.format1 {
        Some(_) => options.features_of_format1,
        None => from.features.without(own),
    };
    let mut features = asked.features.unwrap_or(inherited);
    if options.shared {
        features = features.without(Features::SINGLE_CLIENT);
    }
    Ok(CreateOptions {
        size: from.size,
        order: Some(order),
        features: Some(features),
        stripe_unit: unit,
        stripe_count: count,
        data_pool: asked.data_pool.clone(),
        metadata: BTreeMap::new(),
    })
}
