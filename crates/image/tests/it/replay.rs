//! What stock `rbd` was told when the golden bytes were made, told to ferry: both leave the same images.
//!
//! Ids, times and the names of trash snapshots differ by nature, so they are replaced by names before comparing. Images
//! that only a migration or a group concerns are left out.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ferry_core::testing::{MemStore, test_env};
use ferry_core::{BlockDevice, Namespace, PoolId, ReadOp, Result, SnapId, Store};
use ferry_image::clone::{self, CloneFormat};
use ferry_image::create::{CreateOptions, create};
use ferry_image::device::ImageDevice;
use ferry_image::encoding::{SnapshotNamespace, TrashSource};
use ferry_image::features::Features;
use ferry_image::flatten::flatten;
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::object_map::{ObjectMap, ObjectState};
use ferry_image::pool::Pool;
use ferry_image::progress::silent;
use ferry_image::resize::{Shrinking, resize};
use ferry_image::{metadata, snapshot, status, trash};
use futures_executor::block_on;

use super::golden;

const MIB: u64 = 1 << 20;

/// The pools of one store.
#[derive(Debug)]
struct Pools {
    rbd: Pool,
    tenant: Pool,
    other: Pool,
}

async fn pools(store: Arc<dyn Store>, env: &ferry_core::Env) -> Result<Pools> {
    let default = Namespace::default();
    let rbd = Pool::open(Arc::clone(&store), env.clone(), "rbd", &default).await?;
    let other = Pool::open(store, env.clone(), "other", &default).await?;
    Ok(Pools { tenant: rbd.in_namespace(&Namespace::new("tenant")), rbd, other })
}

/// Opens to write, does something, closes.
async fn with(pool: &Pool, name: &str, act: impl AsyncFnOnce(&mut Image) -> Result<()>) -> Result<()> {
    let mut image = Image::open(pool, name, Opening::ReadWrite).await?;
    act(&mut image).await?;
    image.close().await
}

/// Writes from the start on, 4 KiB at a time, as `rbd bench --io-pattern seq` does.
async fn bench(pool: &Pool, name: &str, total: u64) -> Result<()> {
    let device = ImageDevice::open(Image::open(pool, name, Opening::ReadWrite).await?).await?;
    for offset in (0..total).step_by(4096) {
        device.write(offset, Bytes::from_static(&[7; 4096])).await?;
    }
    device.flush().await?;
    device.image().close().await
}

async fn snap(pool: &Pool, name: &str, snap: &str) -> Result<()> {
    with(pool, name, async |image| snapshot::create(image, snap).await.map(drop)).await
}

async fn grow(pool: &Pool, name: &str, size: u64) -> Result<()> {
    with(pool, name, async |image| resize(image, size, Shrinking::Allowed, &mut silent).await).await
}

async fn clone_to(from: &Pool, snap: &str, to: &Pool, name: &str, format: CloneFormat) -> Result<()> {
    clone_as(from, snap, to, name, format, &CreateOptions::default()).await
}

async fn clone_as(
    from: &Pool,
    snap: &str,
    to: &Pool,
    name: &str,
    format: CloneFormat,
    options: &CreateOptions,
) -> Result<()> {
    let parent = Image::open(from, "snapped", Opening::ReadOnly).await?.at_snapshot(snap)?;
    clone::create(&parent, to, name, format, options).await.map(drop)
}

async fn plain_images(p: &Pools, ecdata: &Pool) -> Result<()> {
    create(&p.rbd, "plain", &CreateOptions::sized(10 * MIB)).await?;
    let layering = CreateOptions {
        order: Some(16),
        features: Some(Features::LAYERING),
        ..CreateOptions::sized(1 << 30)
    };
    create(&p.rbd, "layering", &layering).await?;
    let striped = CreateOptions {
        stripe_unit: Some(65536),
        stripe_count: Some(4),
        data_pool: Some(ecdata.info.clone()),
        ..CreateOptions::sized(64 * MIB)
    };
    create(&p.rbd, "striped", &striped).await?;
    create(&p.rbd, "odd", &CreateOptions { order: Some(20), ..CreateOptions::sized(5_000_001) }).await?;
    bench(&p.rbd, "plain", 16 << 10).await?;
    with(&p.rbd, "plain", async |image| {
        metadata::set(image, "description", b"a plain image").await?;
        metadata::config::set_in_image(image, "rbd_cache", "false").await
    })
    .await?;
    let layering = Image::open(&p.rbd, "layering", Opening::ReadOnly).await?;
    status::lock_add(&layering, "manual-cookie", None).await
}

async fn snapshots(p: &Pools) -> Result<()> {
    create(&p.rbd, "snapped", &CreateOptions::sized(20 * MIB)).await?;
    bench(&p.rbd, "snapped", 8 << 10).await?;
    snap(&p.rbd, "snapped", "first").await?;
    grow(&p.rbd, "snapped", 30 * MIB).await?;
    snap(&p.rbd, "snapped", "protected").await?;
    with(&p.rbd, "snapped", async |image| snapshot::protect(image, "protected").await).await?;
    snap(&p.rbd, "snapped", "doomed").await?;
    bench(&p.rbd, "snapped", 8 * MIB).await?;
    snap(&p.rbd, "snapped", "renamed-from").await?;
    with(&p.rbd, "snapped", async |image| {
        snapshot::rename(image, "renamed-from", "renamed-to").await?;
        snapshot::set_limit(image, Some(10)).await
    })
    .await
}

async fn clones(p: &Pools, ecdata: &Pool) -> Result<()> {
    let (v1, v2) = (CloneFormat::V1, CloneFormat::V2);
    clone_to(&p.rbd, "protected", &p.rbd, "clone-v1", v1).await?;
    clone_to(&p.rbd, "protected", &p.other, "clone-v1-elsewhere", v1).await?;
    clone_to(&p.rbd, "first", &p.rbd, "clone-v2", v2).await?;
    clone_to(&p.rbd, "doomed", &p.other, "clone-v2-elsewhere", v2).await?;
    let striped = CreateOptions {
        stripe_unit: Some(8192),
        stripe_count: Some(3),
        data_pool: Some(ecdata.info.clone()),
        ..CreateOptions::default()
    };
    clone_as(&p.rbd, "doomed", &p.rbd, "clone-striped", v2, &striped).await?;
    clone_to(&p.rbd, "first", &p.rbd, "flattened", v2).await?;
    snap(&p.rbd, "flattened", "before").await?;
    with(&p.rbd, "flattened", async |image| flatten(image, &mut silent).await.map(drop)).await?;
    grow(&p.rbd, "clone-v2", 4 * MIB).await?;
    with(&p.rbd, "snapped", async |image| snapshot::remove(image, "doomed").await).await
}

async fn the_rest(p: &Pools) -> Result<()> {
    p.rbd.create_namespace("tenant").await?;
    p.rbd.create_namespace("empty").await?;
    create(&p.tenant, "inside", &CreateOptions::sized(8 * MIB)).await?;
    clone_to(&p.rbd, "first", &p.tenant, "clone", CloneFormat::V2).await?;
    create(&p.rbd, "trashed", &CreateOptions::sized(8 * MIB)).await?;
    trash::move_in(&p.rbd, "trashed", TrashSource::User, Duration::ZERO).await?;
    create(&p.rbd, "deferred", &CreateOptions::sized(8 * MIB)).await?;
    snap(&p.rbd, "deferred", "kept").await?;
    trash::move_in(&p.rbd, "deferred", TrashSource::User, Duration::from_secs(3600)).await.map(drop)
}

/// Everything the script says, told to ferry.
async fn replay() -> Result<Pools> {
    let env = test_env(11);
    let store = MemStore::new(&env);
    for name in ["rbd", "device_health_metrics", "ecdata", "other"] {
        store.create_pool(name).await?;
    }
    let ecdata = Pool::open(store.clone(), env.clone(), "ecdata", &Namespace::default()).await?;
    let p = pools(store, &env).await?;
    plain_images(&p, &ecdata).await?;
    snapshots(&p).await?;
    clones(&p, &ecdata).await?;
    the_rest(&p).await?;
    Ok(p)
}

/// Names of all images of a store by id, those in the trash too.
async fn names(p: &Pools) -> Result<BTreeMap<String, String>> {
    let mut names = BTreeMap::new();
    for pool in [&p.rbd, &p.tenant, &p.other] {
        names.extend(pool.images().await?.into_iter().map(|(name, id)| (id, name)));
        names.extend(trash::list(pool).await?.into_iter().map(|(id, entry)| (id, entry.name)));
    }
    Ok(names)
}

/// The states of an object map, one letter for each object; `-` where there is no map.
async fn map_text(image: &Image, at: SnapId) -> String {
    let read = image.pool.store.read(&image.object_map_object(at), SnapId::HEAD, ReadOp::data(0, MIB)).await;
    let Ok(reply) = read else { return "-".to_owned() };
    let map = ObjectMap::decode(&reply.data.to_vec(0, reply.size)).unwrap();
    map.states()
        .map(|(_, state)| match state {
            ObjectState::Absent => '0',
            ObjectState::Exists => '1',
            ObjectState::Pending => '2',
            ObjectState::Clean => '3',
        })
        .collect()
}

/// What an image is, line by line, with names in place of ids.
async fn describe(image: &Image, names: &BTreeMap<String, String>) -> Vec<String> {
    let h = &image.header;
    let named = |id: &str| names.get(id).cloned().unwrap_or_else(|| format!("unknown {id}"));
    let mut lines = vec![
        format!("size {} order {} flags {:?}", h.size, h.order, h.flags),
        format!("features {} operations {}", h.features, h.op_features),
        format!("data {:?} stripes {} x {}", h.data_pool, h.stripe_unit, h.stripe_count),
        format!("prefix {}", h.object_prefix.replace(&image.id, "ID")),
        format!("limit {:?} metadata {:?}", h.snap_limit, h.metadata),
        format!("map {}", map_text(image, SnapId::HEAD).await),
    ];
    if let Some(parent) = &h.parent {
        let (pool, namespace) = (parent.pool, &parent.namespace);
        let shown = parent.head_overlap;
        lines.push(format!("parent {pool}/{namespace}/{} shows {shown:?}", named(&parent.image_id)));
    }
    for snap in h.snaps.values() {
        let (name, kind) = match &snap.namespace {
            SnapshotNamespace::Trash { original_name, original_type } => (original_name, 100 + original_type),
            other => (&snap.name, other.code()),
        };
        let children = h.children.get(&snap.id).into_iter().flat_map(|c| &c.set);
        let mut children: Vec<_> =
            children.map(|c| format!("{}/{}/{}", c.pool, c.namespace, named(&c.image_id))).collect();
        let migrated = children.iter().filter(|c| c.contains("/mov")).count();
        let count = snap.child_count - u32::try_from(migrated).unwrap();
        children.retain(|c| !c.contains("/mov"));
        children.sort();
        lines.push(format!(
            "snapshot {name} kind {kind} size {} {:?} flags {} overlap {:?} children {count} {children:?} map {}",
            snap.size,
            snap.protection,
            snap.flags,
            snap.parent_overlap,
            map_text(image, snap.id).await,
        ));
    }
    lines
}

async fn open(p: &Pools, pool: &str, name: &str) -> Result<Image> {
    let pool = match pool {
        "rbd" => &p.rbd,
        "tenant" => &p.tenant,
        _ => &p.other,
    };
    if let Some((id, _)) = trash::find_by_name(pool, name, TrashSource::User).await? {
        return Image::open_by_id(pool, &id, Opening::ReadOnly).await;
    }
    Image::open(pool, name, Opening::ReadOnly).await
}

#[test]
fn ferry_leaves_the_images_that_rbd_leaves() {
    block_on(async {
        let (store, env) = golden::world();
        let theirs = pools(store, &env).await.unwrap();
        let ours = replay().await.unwrap();
        let (their_names, our_names) = (names(&theirs).await.unwrap(), names(&ours).await.unwrap());
        assert_eq!(theirs.other.id(), PoolId(4));
        for (pool, name) in [
            ("rbd", "plain"),
            ("rbd", "layering"),
            ("rbd", "striped"),
            ("rbd", "odd"),
            ("rbd", "snapped"),
            ("rbd", "clone-v1"),
            ("rbd", "clone-v2"),
            ("rbd", "clone-striped"),
            ("rbd", "flattened"),
            ("rbd", "trashed"),
            ("rbd", "deferred"),
            ("other", "clone-v1-elsewhere"),
            ("other", "clone-v2-elsewhere"),
            ("tenant", "inside"),
            ("tenant", "clone"),
        ] {
            let they = describe(&open(&theirs, pool, name).await.unwrap(), &their_names).await;
            let we = describe(&open(&ours, pool, name).await.unwrap(), &our_names).await;
            assert_eq!(we, they, "{pool}/{name}");
        }
    });
}
