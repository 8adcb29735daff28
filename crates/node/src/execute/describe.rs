//! What is told about images: parents by name, locks, snapshots, watchers.

use ferry_core::lock::LockKind;
use ferry_core::watch::WatcherInfo;
use ferry_core::{ErrorKind, Namespace, PoolId, Result};
use ferry_image::encoding::{
    LOCK_NAME, MigrationRecord, MigrationSide, ParentRecord, Protection, SnapshotNamespace, told_id,
};
use ferry_image::header::{self, Header, Opening};
use ferry_image::image::Image;
use ferry_image::layout::Layout;
use ferry_image::pool::Pool;
use ferry_image::status::watchers_with_addresses;
use ferry_image::trash;

use crate::api::{
    ImageInfo, ImageStatus, ListedImage, ListedSnap, Migration, MigrationEnd, MigrationSource, ParentInfo,
    SnapNamespace, Striping, WatcherLine,
};

/// The address of a watcher whose address is not known.
const NOWHERE: &str = "-";

/// The parent of an image where it was opened.
pub(super) async fn parent(image: &Image) -> Result<Option<ParentInfo>> {
    let Some(link) = image.parent()? else { return Ok(None) };
    let (pool, name, in_trash) = locate(&image.pool, &link.parent).await?;
    let snap = snap_name(&pool, &link.parent).await?;
    Ok(Some(ParentInfo {
        pool: pool.info.name,
        namespace: link.parent.namespace.as_str().to_owned(),
        image: name,
        id: link.parent.image_id,
        snap,
        in_trash,
        overlap: link.overlap,
    }))
}

/// The pool and name of a parent, and whether it is in the trash.
async fn locate(from: &Pool, parent: &ParentRecord) -> Result<(Pool, String, bool)> {
    let pool = from.sibling(parent.pool, &parent.namespace).await?;
    if let Some(name) = pool.image_name(&parent.image_id).await? {
        return Ok((pool, name, false));
    }
    let entry = trash::get(&pool, &parent.image_id).await?;
    let name = entry.map(|e| e.name).unwrap_or_default();
    Ok((pool, name, true))
}

/// The name of a parent's snapshot; its number where the name is gone.
async fn snap_name(pool: &Pool, parent: &ParentRecord) -> Result<String> {
    let object = header::object(pool.id(), &pool.namespace, &parent.image_id);
    let header = header::load(&*pool.store, &object).await?;
    Ok(header.snaps.get(&parent.snap).map_or_else(|| parent.snap.to_string(), |s| s.name.clone()))
}

/// An image and its users' snapshots, as `ls -l` lists them.
pub(super) async fn listed(pool: &Pool, name: &str, id: &str) -> Result<Vec<ListedImage>> {
    let image = Image::open(pool, name, Opening::ReadOnly).await?;
    let lock = pool.store.lock_info(&image.header_object(), LOCK_NAME).await?;
    let lock = (!lock.lockers.is_empty())
        .then(|| if lock.kind == LockKind::Shared { "shared" } else { "exclusive" }.to_owned());
    let (id, format) = (told_id(id), format_of(&image.header));
    let mut lines = vec![ListedImage {
        image: name.to_owned(),
        id: id.to_owned(),
        format,
        snap: None,
        size: image.header.size,
        parent: parent(&image).await?,
        protected: false,
        lock,
    }];
    for snap in image.header.snaps.values().filter(|s| s.namespace.is_user()) {
        let at = image.at_snapshot_id(snap.id)?;
        lines.push(ListedImage {
            image: name.to_owned(),
            id: id.to_owned(),
            format,
            snap: Some((snap.name.clone(), snap.id.0)),
            size: at.size()?,
            parent: parent(&at).await?,
            protected: snap.protection == Protection::Protected,
            lock: None,
        });
    }
    Ok(lines)
}

/// The image format's number.
fn format_of(header: &Header) -> u8 {
    if header.format1.is_some() { 1 } else { 2 }
}

/// All that `info` tells.
pub(super) async fn info(image: &Image, by_name: bool) -> Result<ImageInfo> {
    let header = &image.header;
    let object_size = header.object_size();
    let data_pool = match header.data_pool.filter(|p| *p != image.pool.id()) {
        None => None,
        Some(id) => match image.pool.sibling(id, &image.pool.namespace).await {
            Ok(pool) => Some(pool.info.name),
            Err(e) if e.kind() == ErrorKind::NotFound => Some(format!("<missing data pool {id}>")),
            Err(e) => return Err(e),
        },
    };
    let is_striped = header.stripe_unit != object_size || header.stripe_count != 1;
    let snap = header.snaps.get(&image.at);
    let names = |names: Vec<&'static str>| names.into_iter().map(str::to_owned).collect();
    let size = image.size()?;
    Ok(ImageInfo {
        name: by_name.then(|| image.name.clone()),
        id: told_id(&image.id).to_owned(),
        format: format_of(header),
        size,
        objects: Layout::new(header.order, header.stripe_unit, header.stripe_count)?.object_count(size),
        order: header.order,
        object_size,
        data_pool,
        snapshot_count: header.snaps.len() as u64,
        block_name_prefix: header.object_prefix.clone(),
        features: names(header.features.names()),
        op_features: names(header.op_features.names()),
        flags: names(header.flags_at(image.at)?.names()),
        created: u64::from(header.created.seconds),
        accessed: u64::from(header.accessed.seconds),
        modified: u64::from(header.modified.seconds),
        protected: snap.map(|s| s.protection == Protection::Protected),
        snapshot_limit: header.snap_limit.filter(|l| *l != u64::MAX),
        parent: parent(image).await?,
        striping: is_striped.then_some(Striping { unit: header.stripe_unit, count: header.stripe_count }),
    })
}

/// Who uses an image.
pub(super) async fn status(image: &Image) -> Result<ImageStatus> {
    let line = |watcher: WatcherInfo| WatcherLine {
        address: if watcher.address.is_empty() { NOWHERE.to_owned() } else { watcher.address },
        client: watcher.client.0,
        cookie: watcher.handle.0,
    };
    let watchers = watchers_with_addresses(image).await?.into_iter().map(line).collect();
    let migration = match &image.header.migration {
        Some(record) => Some(migration(image, record).await?),
        None => None,
    };
    Ok(ImageStatus { watchers, migration })
}

/// A migration under way, seen from one of its ends.
async fn migration(image: &Image, record: &MigrationRecord) -> Result<Migration> {
    let here = MigrationEnd {
        pool: image.pool.info.name.clone(),
        namespace: image.pool.namespace.as_str().to_owned(),
        image: image.name.clone(),
        id: told_id(&image.id).to_owned(),
    };
    let (source, target) = if record.is_import() {
        (MigrationSource::Spec(crate::sources::shown(&record.source_spec)), here)
    } else {
        let noted = image.header.intent.as_ref().filter(|_| record.is_far()).map(|i| &i.peer);
        let (pool, namespace) =
            noted.map_or((record.pool, &record.namespace), |peer| (peer.pool, &peer.namespace));
        let there = MigrationEnd {
            pool: match other_end(image, pool, namespace).await {
                Ok(pool) => pool.info.name,
                Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
                Err(e) => return Err(e),
            },
            namespace: namespace.as_str().to_owned(),
            image: record.image_name.clone(),
            id: record.image_id.clone(),
        };
        match record.side {
            MigrationSide::Source => (MigrationSource::Image(here), there),
            MigrationSide::Target => (MigrationSource::Image(there), here),
        }
    };
    Ok(Migration { source, target, state: record.state.to_string(), description: record.description.clone() })
}

/// The pool of the other end of a migration, in whichever store it is.
async fn other_end(image: &Image, pool: PoolId, namespace: &Namespace) -> Result<Pool> {
    let own = &image.pool;
    let store = match &image.header.intent {
        Some(i) if i.peer.store != own.store.identity() => {
            own.peers.store(i.peer.store, &i.peer.place).await?
        }
        Some(_) | None => std::sync::Arc::clone(&own.store),
    };
    Pool { store, ..own.clone() }.sibling(pool, namespace).await
}

/// Snapshots of an image, oldest first.
pub(super) fn snaps(image: &Image, all: bool) -> Vec<ListedSnap> {
    let wanted = image.header.snaps.values().filter(|s| all || s.namespace.is_user());
    wanted
        .map(|s| ListedSnap {
            id: s.id.0,
            name: s.name.clone(),
            size: image.header.size_at(s.id).unwrap_or_default(),
            protected: s.protection == Protection::Protected,
            created: u64::from(s.timestamp.seconds),
            namespace: match &s.namespace {
                SnapshotNamespace::User | SnapshotNamespace::Unknown { .. } => SnapNamespace::User,
                SnapshotNamespace::Group { .. } => SnapNamespace::Group,
                SnapshotNamespace::Trash { original_name, .. } => {
                    SnapNamespace::Trash { original_name: original_name.clone() }
                }
                SnapshotNamespace::Mirror(_) => SnapNamespace::Mirror,
            },
        })
        .collect()
}
