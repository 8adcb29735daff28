//! From a header to something that can be read and written.

use std::borrow::Cow;
use std::sync::Arc;

use ferry_core::source::SourcePoint;
use ferry_core::{Effect, Error, Namespace, ObjectId, PoolId, Result, SnapId, Store, WriteOp};

use super::{Io, SnapLink};
use crate::encoding::{MigrationIntent, MigrationRecord, Origin};
use crate::features::{Features, Flags};
use crate::header::{self, Header, ParentLink, SourceLink};
use crate::history::History;
use crate::image::Image;
use crate::layout::Layout;
use crate::limits::ANCESTORS_MAX;
use crate::live_map::LiveMap;
use crate::object_map::Loaded;
use crate::peers::{check_pin, find_store};
use crate::pool::Pool;
use crate::revision::{Ancestor, ForeignPoint, Owners, Parent, Revision};

/// How the header cuts the image into objects.
///
/// # Errors
/// `Corrupt` where the numbers are out of range.
pub fn layout_of(header: &Header) -> Result<Layout> {
    Layout::new(header.order, header.stripe_unit, header.stripe_count)
        .map_err(|e| Error::corrupt("the header's layout is impossible").because(e))
}

/// The revision `at` of an image and all its ancestors. Where the image, or an ancestor, is the target of a migration under
/// way, the source of that stands in the place of its parent.
///
/// # Errors
/// `NotFound` (2) where the snapshot, an ancestor or the store of a migration's source is gone; `Corrupt`; those of the store.
pub async fn open_revision(pool: &Pool, header: &Header, at: SnapId) -> Result<Revision> {
    let place = Place { store: Arc::clone(&pool.store), pool: pool.id(), namespace: pool.namespace.clone() };
    open_chain(pool, place, Cow::Borrowed(header), at).await
}

/// What an end of an import is filled from, at `snap` of the source: a snapshot's id, of a foreign source see
/// [`crate::revision::source_point`]. It need not show through any more.
///
/// # Errors
/// As [`open_revision`]; `Invalid` (22) where the image is not the target of an import.
pub async fn open_origin(pool: &Pool, header: &Header, snap: SnapId) -> Result<Ancestor> {
    let (record, intent) = (header.migration.as_ref(), header.intent.as_ref());
    match (record, intent.and_then(|i| i.origin.as_ref().map(|o| (i, o)))) {
        (Some(record), Some((_, Origin::Foreign { pin }))) => {
            open_foreign(pool, record, Some(pin), snap).await
        }
        (Some(_), Some((intent, Origin::Snapshot(_)))) => {
            let (place, object) = other_end(&pool.store, pool, intent).await?;
            let above = load_ancestor(&place, &object).await?;
            let revision = open_chain(pool, place, Cow::Owned(above), snap).await?;
            Ok(Ancestor::Image(Arc::new(revision)))
        }
        // Prepared by another program, which notes nothing of the source.
        (Some(record), None) if record.is_import() => open_foreign(pool, record, None, snap).await,
        _ => Err(Error::invalid("the image is not the target of an import")),
    }
}

/// A foreign source at a point.
async fn open_foreign(
    pool: &Pool,
    record: &MigrationRecord,
    pin: Option<&str>,
    snap: SnapId,
) -> Result<Ancestor> {
    let source = pool.peers.source(&record.source_spec, pin).await?;
    check_pin(&*source, pin)?;
    ForeignPoint::new(source, SourcePoint::Head).at(snap).map(Ancestor::Foreign)
}

/// Where the image at the other end of a migration is, and its header object.
async fn other_end(own: &Arc<dyn Store>, pool: &Pool, intent: &MigrationIntent) -> Result<(Place, ObjectId)> {
    let peer = &intent.peer;
    let store = find_store(own, &*pool.peers, peer.store, &peer.place).await?;
    let object = header::object(peer.pool, &peer.namespace, &peer.id);
    Ok((Place { store, pool: peer.pool, namespace: peer.namespace.clone() }, object))
}

async fn load_ancestor(place: &Place, object: &ObjectId) -> Result<Header> {
    header::load(&*place.store, object).await.map_err(|e| {
        Error::new(e.kind(), "cannot read the header of an ancestor").errno_is(e.errno()).because(e)
    })
}

/// As [`open_revision`], of an image anywhere.
async fn open_chain(pool: &Pool, place: Place, header: Cow<'_, Header>, at: SnapId) -> Result<Revision> {
    // From the image up to the oldest ancestor, then put together the other way round.
    let mut chain = Vec::new();
    let mut up = Up::of(&header, at)?;
    let own = own_revision(&place, &header, at)?;
    chain.push((own, up.as_ref().map_or(0, Up::overlap)));
    let mut place = place;
    let mut top = None;
    while let Some(link) = up {
        if chain.len() > ANCESTORS_MAX {
            return Err(Error::corrupt("the image has too many ancestors"));
        }
        let (there, object, snap) = match link.resolve(place, pool).await? {
            Above::Image(there, object, snap) => (there, object, snap),
            Above::Foreign(ancestor) => {
                top = Some(ancestor);
                break;
            }
        };
        let above = load_ancestor(&there, &object).await?;
        up = Up::of(&above, snap)?;
        let revision = own_revision(&there, &above, snap)?;
        chain.push((revision, up.as_ref().map_or(0, Up::overlap)));
        place = there;
    }
    let (mut revision, overlap) = chain.pop().expect("the image itself is there");
    revision.parent = top.map(|ancestor| Parent { ancestor, overlap });
    while let Some((child, overlap)) = chain.pop() {
        let parent = Parent { ancestor: Ancestor::Image(Arc::new(revision)), overlap };
        revision = Revision { parent: Some(parent), ..child };
    }
    Ok(revision)
}

/// Where an image is.
#[derive(Debug)]
struct Place {
    store: Arc<dyn Store>,
    pool: PoolId,
    namespace: Namespace,
}

/// What shows through a missing object.
#[derive(Debug)]
enum Up {
    /// The parent.
    Parent(ParentLink),
    /// The source of a migration under way.
    Source { record: Box<MigrationRecord>, intent: Option<Box<MigrationIntent>>, link: SourceLink },
}

/// The next ancestor.
#[derive(Debug)]
enum Above {
    /// Where it is, its header, and the snapshot meant.
    Image(Place, ObjectId, SnapId),
    /// It has no ancestors of its own.
    Foreign(Ancestor),
}

impl Up {
    fn of(header: &Header, at: SnapId) -> Result<Option<Self>> {
        match (header.source_at(at)?, &header.migration) {
            (Some(link), Some(record)) => {
                let intent = header.intent.clone().map(Box::new);
                Ok(Some(Self::Source { record: Box::new(record.clone()), intent, link }))
            }
            (Some(_), None) | (None, _) => Ok(header.parent_at(at)?.map(Self::Parent)),
        }
    }

    fn overlap(&self) -> u64 {
        match self {
            Self::Parent(link) => link.overlap,
            Self::Source { link, .. } => link.overlap,
        }
    }

    async fn resolve(self, from: Place, pool: &Pool) -> Result<Above> {
        match self {
            Self::Parent(link) => {
                let parent = link.parent;
                let object = header::object(parent.pool, &parent.namespace, &parent.image_id);
                let place = Place { pool: parent.pool, namespace: parent.namespace, ..from };
                Ok(Above::Image(place, object, parent.snap))
            }
            Self::Source { record, intent, link } => resolve_source(from, pool, &record, intent, link).await,
        }
    }
}

/// The other end of a migration, or what is imported.
async fn resolve_source(
    from: Place,
    pool: &Pool,
    record: &MigrationRecord,
    intent: Option<Box<MigrationIntent>>,
    link: SourceLink,
) -> Result<Above> {
    match intent.as_deref().and_then(|i| i.origin.as_ref().map(|o| (i, o))) {
        Some((intent, Origin::Snapshot(_))) => {
            let (place, object) = other_end(&from.store, pool, intent).await?;
            return Ok(Above::Image(place, object, link.snap));
        }
        Some((_, Origin::Foreign { pin })) => {
            return open_foreign(pool, record, Some(pin), link.snap).await.map(Above::Foreign);
        }
        // Prepared by another program, which notes nothing of the source.
        None if record.is_import() => {
            return open_foreign(pool, record, None, link.snap).await.map(Above::Foreign);
        }
        None => {}
    }
    if record.is_far() {
        let note = intent.ok_or_else(|| {
            Error::corrupt("the migration's source is in another store, and no note tells where")
        })?;
        let (place, object) = other_end(&from.store, pool, &note).await?;
        return Ok(Above::Image(place, object, link.snap));
    }
    let store = match intent {
        Some(intent) => find_store(&from.store, &*pool.peers, intent.peer.store, &intent.peer.place).await?,
        None => from.store,
    };
    let object = header::object(record.pool, &record.namespace, &record.peer_id());
    let place = Place { store, pool: record.pool, namespace: record.namespace.clone() };
    Ok(Above::Image(place, object, link.snap))
}

/// A revision without its ancestors.
fn own_revision(place: &Place, header: &Header, at: SnapId) -> Result<Revision> {
    Ok(Revision {
        store: Arc::clone(&place.store),
        pool: header.data_pool_or(place.pool),
        namespace: place.namespace.clone(),
        prefix: Arc::from(header.object_prefix.as_str()),
        digits: header.name_digits(),
        layout: layout_of(header)?,
        snap: at,
        size: header.size_at(at)?,
        parent: None,
        owners: Owners::default(),
        is_target: header.redirects(),
    })
}

impl Image {
    /// What is read through this handle: the image where it was opened, and its ancestors.
    ///
    /// # Errors
    /// As [`open_revision`].
    pub async fn revision(&self) -> Result<Revision> {
        self.revision_at(self.at).await
    }

    /// The image at `at`, and its ancestors there.
    ///
    /// # Errors
    /// As [`open_revision`].
    pub async fn revision_at(&self, at: SnapId) -> Result<Revision> {
        open_revision(&self.pool, &self.header, at).await
    }
}

impl Io {
    /// Opens an image for input and output, as its header was last read; to be written, the exclusive lock is taken first.
    /// An object map that cannot be trusted is flagged so in the header and not used.
    ///
    /// # Errors
    /// `NotFound` (2) where the snapshot or an ancestor is gone; `Corrupt`; those of taking the lock and of the store.
    pub async fn open(image: &mut Image) -> Result<Self> {
        if !image.read_only && image.at == SnapId::HEAD {
            image.acquire().await?;
        }
        Self::open_as_is(image).await
    }

    /// As [`Io::open`], without taking the exclusive lock: without it, what comes back can only be read.
    ///
    /// # Errors
    /// As [`Io::open`].
    pub async fn open_as_is(image: &mut Image) -> Result<Self> {
        let read_only = image.read_only || image.at != SnapId::HEAD;
        let has_lock = image.header.features.contains(Features::EXCLUSIVE_LOCK);
        let is_owner = image.session.as_ref().is_some_and(|s| s.is_owner());
        let lacks_lock = has_lock && !is_owner && !read_only;
        let revision = image.revision().await?;
        let has_map = image.header.features.contains(Features::OBJECT_MAP);
        let map = if has_map && !read_only && !lacks_lock && is_valid(image.header.flags) {
            open_map(image, revision.object_count()).await?
        } else {
            None
        };
        let history = if read_only { None } else { History::open(image).await?.map(Arc::new) };
        let header = &image.header;
        // The point of prepare of a migration shows the parent as snapshots do.
        let base = header.base().and_then(|base| {
            base.parent_overlap.map(|overlap| SnapLink { snap: base.snap, overlap, map_object: None })
        });
        let of_snaps = header.snaps.values().filter_map(|snap| {
            let valid = has_map && is_valid(Flags(snap.flags));
            let map_object = valid.then(|| image.object_map_object(snap.id));
            snap.overlap().map(|overlap| SnapLink { snap: snap.id, overlap, map_object })
        });
        let links = base.into_iter().chain(of_snaps).collect();
        Ok(Self {
            revision: Arc::new(revision),
            context: header.snap_context(),
            links,
            is_deep: header.features.contains(Features::DEEP_FLATTEN),
            has_fast_diff: header.features.contains(Features::FAST_DIFF),
            map: map.map(Arc::new),
            history,
            copy_stamp: header.copy_stamp()?,
            read_only,
            inside: Arc::default(),
            lacks_lock,
        })
    }
}

/// Whether a map with these flags may be used.
fn is_valid(flags: Flags) -> bool {
    !flags.contains(Flags::OBJECT_MAP_INVALID)
}

/// The map of HEAD; `None` after flagging it where it cannot be trusted.
async fn open_map(image: &mut Image, count: u64) -> Result<Option<LiveMap>> {
    let object = image.object_map_object(SnapId::HEAD);
    match LiveMap::open(&image.pool.store, object.clone(), count).await? {
        Ok(map) => Ok(Some(map)),
        Err(Loaded::Valid(_)) => Ok(None),
        Err(Loaded::Invalid { replacement, .. }) => {
            image
                .update_header(|h| {
                    h.set_flags(
                        SnapId::HEAD,
                        Flags::OBJECT_MAP_INVALID.with(Flags::FAST_DIFF_INVALID),
                        Flags::NONE,
                    )
                })
                .await?;
            let op = WriteOp::new().effect(Effect::WriteFull(replacement.encode()));
            image.pool.store.write(&object, op).await?;
            Ok(None)
        }
    }
}
