//! One random migration: what there is, and what should be in it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use ferry_core::testing::{MemSource, MemStore, TestRng, test_env};
use ferry_core::{
    BlockDevice, BlockSource, Capabilities, Env, Error, Layered, Namespace, ReadOp, Reply, Result, SnapId,
    Store,
};
use ferry_image::clone::{self, CloneFormat};
use ferry_image::create::{CreateOptions, create};
use ferry_image::device::ImageDevice;
use ferry_image::encoding::Protection;
use ferry_image::features::Features;
use ferry_image::header::{Header, Opening};
use ferry_image::image::Image;
use ferry_image::peers::{Peers, check_pin};
use ferry_image::pool::Pool;
use ferry_image::progress::silent;
use ferry_image::resize::{Shrinking, resize};
use ferry_image::testing::LateStore;
use ferry_image::{remove, snapshot, trash};
use ferry_migrate::{Against, Comparing, PointReport, PrepareOptions, Verification};

use crate::fault::{FaultStore, Faults};
use crate::power::{Machine, Stores};
use crate::receipts::Drawer;

/// Where an image moves, and whether the one who moves it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    OneStore,
    OneStoreCopying,
    OneStoreLeast,
    TwoStores,
    DyingOneStore,
    DyingTwoStores,
    CutOneStore,
    CutTwoStores,
}

/// All stores, as one process sees them.
#[derive(Debug)]
pub(crate) struct Both(pub(crate) Vec<Arc<dyn Store>>, pub(crate) Option<Arc<MemSource>>);

impl Peers for Both {
    fn store(&self, identity: [u8; 16], place: &str) -> Reply<Arc<dyn Store>> {
        let found = self.0.iter().find(|s| s.identity() == identity).cloned();
        Reply::ready(found.ok_or_else(|| Error::not_found("no such store").with("store", place)))
    }

    fn source(&self, spec: &str, pin: Option<&str>) -> Reply<Arc<dyn BlockSource>> {
        assert_eq!(spec, SPEC);
        let source = self.1.clone().map(|s| s as Arc<dyn BlockSource>);
        let found = source.ok_or_else(|| Error::not_found("no such source"));
        Reply::ready(found.and_then(|source| check_pin(&*source, pin).map(|()| source)))
    }
}

/// Reads both ends.
pub(crate) const REREAD: Comparing<'static> = Comparing { against: Against::Source, threads: None };

/// What names the foreign source.
pub(crate) const SPEC: &str = "{\"type\":\"memory\"}";

/// What an image should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shadow {
    pub(crate) head: Vec<u8>,
    pub(crate) snaps: BTreeMap<String, (Vec<u8>, bool)>,
}

/// An image somewhere.
#[derive(Clone, Debug)]
pub(crate) struct Spot {
    pub(crate) store: usize,
    pub(crate) pool: &'static str,
    pub(crate) name: &'static str,
}

pub(crate) struct Case {
    pub(crate) seed: u64,
    pub(crate) rng: TestRng,
    pub(crate) dies: bool,
    env: Env,
    pub(crate) stores: Stores,
    pub(crate) source: Spot,
    pub(crate) target: Spot,
    pub(crate) options: PrepareOptions,
    /// The image that moves.
    pub(crate) shadow: Shadow,
    /// A clone of one of its snapshots.
    pub(crate) child: Option<Vec<u8>>,
    pub(crate) has_parent: bool,
    /// A foreign source to import from.
    pub(crate) foreign: Option<Arc<MemSource>>,
    /// What was found when all of an image was compared last.
    pub(crate) promised: Mutex<Option<Shadow>>,
    pub(crate) tally: Tally,
    /// Of its commit.
    pub(crate) receipts: Drawer,
}

/// Deaths, and a number that says which they were: two runs of one seed on the same code have the same.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) deaths: AtomicU64,
    pub(crate) digest: AtomicU64,
    /// Aborts beside clients that came to their end.
    pub(crate) live_aborts: AtomicU64,
    /// Bytes that were verified, and of them those of which the source was not read again.
    pub(crate) verified: AtomicU64,
    pub(crate) by_digests: AtomicU64,
}

impl Tally {
    /// Takes a verification into account.
    pub(crate) fn add_verified(&self, verification: &Verification) {
        let sum = |of: fn(&PointReport) -> u64| verification.points.iter().map(of).sum::<u64>();
        self.verified.fetch_add(sum(|p| p.data_bytes), Ordering::Relaxed);
        self.by_digests.fetch_add(sum(|p| p.digest_bytes), Ordering::Relaxed);
    }

    /// Takes something into account.
    pub(crate) fn add(&self, deaths: u64, what: u64) {
        self.deaths.fetch_add(deaths, Ordering::Relaxed);
        let mixed = (self.digest.load(Ordering::Relaxed) ^ what).wrapping_mul(0x0100_0000_01B3);
        self.digest.store(mixed, Ordering::Relaxed);
    }
}

impl Tally {
    /// Takes another into account.
    pub(crate) fn add_all(&self, other: Self) {
        self.add(other.deaths.into_inner(), other.digest.into_inner());
        self.live_aborts.fetch_add(other.live_aborts.into_inner(), Ordering::Relaxed);
        self.verified.fetch_add(other.verified.into_inner(), Ordering::Relaxed);
        self.by_digests.fetch_add(other.by_digests.into_inner(), Ordering::Relaxed);
    }

    /// How much of what was verified the source was not read again for.
    pub(crate) fn share_by_digests(&self) -> f64 {
        let number = |of: &AtomicU64| f64::from(u32::try_from(of.load(Ordering::Relaxed) >> 12).unwrap());
        number(&self.by_digests) / number(&self.verified).max(1.0)
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = |of: &AtomicU64| of.load(Ordering::Relaxed);
        write!(
            f,
            "{} deaths, digest {:016x}, {} aborts beside clients, {:.2} of {} bytes verified by digests",
            number(&self.deaths),
            number(&self.digest),
            number(&self.live_aborts),
            self.share_by_digests(),
            number(&self.verified)
        )
    }
}

/// Largest image. Bytes.
pub(crate) const SIZE_MAX: u64 = 64 << 10;

impl Case {
    pub(crate) fn new(seed: u64, kind: Kind) -> Self {
        let rng = TestRng::new(seed.wrapping_mul(0x9E37_79B9).wrapping_add(7));
        let env = test_env(seed);
        let all = Capabilities { share: true, copy: None, list_snaps: true, list_watchers: true };
        let copying = Capabilities { share: false, ..all };
        // As a cluster, whose library may or may not have it copy objects by itself.
        let copy = seed.is_multiple_of(2).then_some(0);
        let least = Capabilities { share: false, copy, list_snaps: false, list_watchers: true };
        let capabilities = match kind {
            Kind::DyingOneStore if seed % 6 == 2 => vec![least],
            Kind::OneStore | Kind::DyingOneStore | Kind::CutOneStore | Kind::CutTwoStores => vec![all],
            Kind::OneStoreCopying => vec![copying],
            Kind::OneStoreLeast => vec![least],
            Kind::TwoStores | Kind::DyingTwoStores => vec![all, if rng.one_in(3) { least } else { all }],
        };
        let stores = match kind {
            Kind::CutOneStore => Stores::Machine(Machine::new(&env, seed, 1)),
            Kind::CutTwoStores => Stores::Machine(Machine::new(&env, seed, 2)),
            Kind::OneStore
            | Kind::OneStoreCopying
            | Kind::OneStoreLeast
            | Kind::TwoStores
            | Kind::DyingOneStore
            | Kind::DyingTwoStores => {
                let made = capabilities.into_iter().map(|c| MemStore::with_capabilities(&env, c));
                Stores::Memory(made.collect())
            }
        };
        for store in &stores.clients() {
            for name in ["p", "q"] {
                store.create_pool(name).wait().unwrap();
            }
        }
        let source = Spot { store: 0, pool: "p", name: "a" };
        let target = if stores.count() > 1 {
            Spot { store: 1, pool: "q", name: if rng.one_in(2) { "a" } else { "b" } }
        } else {
            match rng.below(3) {
                0 => source.clone(),
                1 => Spot { store: 0, pool: "p", name: "b" },
                _ => Spot { store: 0, pool: "q", name: "b" },
            }
        };
        let dies = matches!(kind, Kind::DyingOneStore | Kind::DyingTwoStores);
        let has_parent = rng.one_in(3);
        let flatten = has_parent && (stores.count() > 1 || rng.one_in(2));
        let (shadow, child, mut options) =
            (Shadow::default(), None, PrepareOptions { flatten, ..PrepareOptions::default() });
        if rng.one_in(2) {
            options.layout = layout(&rng);
        }
        let (foreign, tally) = (None, Tally::default());
        Self {
            seed,
            rng,
            dies,
            env,
            stores,
            source,
            target,
            options,
            shadow,
            child,
            has_parent,
            foreign,
            promised: Mutex::default(),
            tally,
            receipts: Drawer::default(),
        }
    }

    /// The stores as a new process sees them, whose changes count.
    pub(crate) fn process(&self) -> (Arc<Faults>, Vec<Arc<dyn Store>>) {
        let faults = Arc::new(Faults::default());
        let stores = self
            .stores
            .clients()
            .into_iter()
            .map(|inner| {
                let store = FaultStore { inner, faults: Arc::clone(&faults) };
                Arc::new(Layered(store)) as Arc<dyn Store>
            })
            .collect();
        (faults, stores)
    }

    /// The stores as a new process sees them, answering late: what is asked at once happens in any order.
    pub(crate) fn late_process(&self) -> Vec<Arc<dyn Store>> {
        let (_, stores) = self.process();
        let late = |store| -> Arc<dyn Store> { LateStore::new(store, self.below(1 << 60)) };
        stores.into_iter().map(late).collect()
    }

    pub(crate) async fn pool_in(&self, stores: &[Arc<dyn Store>], spot: &Spot) -> Pool {
        let store = Arc::clone(&stores[spot.store]);
        let pool = Pool::open(store, self.env.clone(), spot.pool, &Namespace::default()).await;
        // The pools are there as long as the process lives.
        pool.unwrap().with_peers(Arc::new(Both(stores.to_vec(), self.foreign.clone())))
    }

    /// A pool as a healthy process sees it.
    pub(crate) async fn pool(&self, spot: &Spot) -> Pool {
        let (_, stores) = self.process();
        self.pool_in(&stores, spot).await
    }

    /// Tells what is done, where asked to.
    pub(crate) fn trace(&self, what: &str) {
        if std::env::var("FERRY_MIGRATION_TRACE").is_ok() {
            println!("seed {}: {what}", self.seed);
        }
    }

    pub(crate) fn below(&self, n: u64) -> u64 {
        self.rng.below(n)
    }

    /// Makes the source, with history, and what hangs on it.
    pub(crate) async fn set_up(&mut self) -> Result<()> {
        let pool = self.pool(&self.source).await;
        let mut size = (1 + self.below(16)) * (SIZE_MAX / 16);
        if self.below(4) == 0 {
            size -= self.below(4000);
        }
        if self.has_parent {
            let options = CreateOptions { size, ..layout(&self.rng) };
            create(&pool, "parent", &options).await?;
            let mut parent = Shadow { head: zeros(size), ..Shadow::default() };
            let device = self.open(&pool, "parent").await?;
            for _ in 0..self.below(6) {
                self.write_random(&device, &mut parent).await?;
            }
            device.exclusively(async |i: &mut Image| snapshot::create(i, "s").await).await?;
            device.exclusively(async |i: &mut Image| snapshot::protect(i, "s").await).await?;
            device.close().await?;
            let at = Image::open(&pool, "parent", Opening::ReadOnly).await?.at_snapshot("s")?;
            let format = if self.below(2) == 0 { CloneFormat::V1 } else { CloneFormat::V2 };
            let mut options = layout(&self.rng);
            options.features = Some(options.features.unwrap_or(Features::DEFAULT).with(Features::LAYERING));
            clone::create(&at, &pool, self.source.name, format, &options).await?;
            self.shadow.head = parent.head;
        } else {
            create(&pool, self.source.name, &CreateOptions { size, ..layout(&self.rng) }).await?;
            self.shadow.head = zeros(size);
        }
        let device = self.open(&pool, self.source.name).await?;
        let mut shadow = std::mem::take(&mut self.shadow);
        for n in 0..self.below(4) {
            for _ in 0..self.below(6) {
                self.write_random(&device, &mut shadow).await?;
            }
            if self.below(4) == 0 {
                self.resize_random(&device, &mut shadow).await?;
            }
            self.snap_random(&device, &mut shadow, format!("s{n}")).await?;
        }
        for _ in 0..self.below(6) {
            self.write_random(&device, &mut shadow).await?;
        }
        device.close().await?;
        self.shadow = shadow;
        self.set_up_child(&pool).await
    }

    async fn set_up_child(&mut self, pool: &Pool) -> Result<()> {
        let image = Image::open(pool, self.source.name, Opening::ReadOnly).await?;
        let snap = image.header.snaps.values().next_back().cloned();
        let (Some(snap), true, 0) = (snap, self.stores.count() == 1, self.below(2)) else { return Ok(()) };
        let is_protected = snap.protection == Protection::Protected;
        let format = if is_protected && self.below(2) == 0 { CloneFormat::V1 } else { CloneFormat::V2 };
        clone::create(&image.at_snapshot(&snap.name)?, pool, "child", format, &CreateOptions::default())
            .await?;
        let mut child = Shadow { head: self.shadow.snaps[&snap.name].0.clone(), ..Shadow::default() };
        let device = self.open(pool, "child").await?;
        for _ in 0..self.below(3) {
            self.write_random(&device, &mut child).await?;
        }
        device.close().await?;
        self.child = Some(child.head);
        Ok(())
    }

    pub(crate) async fn open(&self, pool: &Pool, name: &str) -> Result<ImageDevice> {
        ImageDevice::open(Image::open(pool, name, Opening::ReadWrite).await?).await
    }

    /// A write, discard or write of zeros somewhere.
    pub(crate) async fn write_random(&self, device: &ImageDevice, shadow: &mut Shadow) -> Result<()> {
        let size = shadow.head.len() as u64;
        if size == 0 {
            return Ok(());
        }
        let (offset, mut length) =
            (self.below(size), 1 + self.below(if self.below(3) == 0 { 20_000 } else { 700 }));
        let (mut offset, io) = (offset, device.io());
        if self.below(3) == 0 {
            // Whole objects and blocks.
            let unit = if self.below(2) == 0 { 4096 } else { io.revision().layout.object_size() };
            offset = offset / unit * unit;
            length = length.next_multiple_of(unit);
        }
        let length = length.min(size - offset);
        let range = usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap();
        self.trace(&format!("change {offset}+{length}"));
        if self.below(3) == 0 {
            self.trace("discard");
            shadow.head[range].fill(0);
            device.discard(offset, length).await?;
        } else {
            let fill = u8::try_from(1 + self.below(255)).unwrap();
            let data: Vec<u8> = (0..range.len()).map(|n| fill ^ u8::try_from(n % 251).unwrap()).collect();
            shadow.head[range].copy_from_slice(&data);
            device.write(offset, Bytes::from(data)).await?;
        }
        Ok(())
    }

    pub(crate) async fn resize_random(&self, device: &ImageDevice, shadow: &mut Shadow) -> Result<()> {
        let size = self.below(SIZE_MAX) + 1;
        self.trace(&format!("resize {} to {size}", shadow.head.len()));
        device
            .exclusively(async |i: &mut Image| resize(i, size, Shrinking::Allowed, &mut silent).await)
            .await?;
        shadow.head.resize(usize::try_from(size).unwrap(), 0);
        Ok(())
    }

    pub(crate) async fn snap_random(
        &self,
        device: &ImageDevice,
        shadow: &mut Shadow,
        name: String,
    ) -> Result<()> {
        let protect = self.below(3) == 0;
        self.trace(&format!("snapshot {name}"));
        device
            .exclusively(async |i: &mut Image| {
                snapshot::create(i, &name).await?;
                if protect && i.header.features.contains(Features::LAYERING) {
                    snapshot::protect(i, &name).await?;
                }
                Ok(())
            })
            .await?;
        let is_protected = device.image().header.user_snap(&name)?.protection == Protection::Protected;
        shadow.snaps.insert(name, (shadow.head.clone(), is_protected));
        Ok(())
    }

    /// Compares an image with what it should hold.
    pub(crate) async fn check(&self, what: &str, spot: &Spot, shadow: &Shadow) -> Result<()> {
        let pool = self.pool(spot).await;
        let image = Image::open(&pool, spot.name, Opening::ReadOnly).await?;
        self.check_image(what, &image, shadow).await
    }

    pub(crate) async fn check_image(&self, what: &str, image: &Image, shadow: &Shadow) -> Result<()> {
        let seed = self.seed;
        let head = image.revision().await?;
        let bytes = head.read_bytes(0, head.size).await?;
        same(&format!("seed {seed}, {what}: HEAD"), &bytes, &shadow.head);
        let users: Vec<_> = image.header.snaps.values().filter(|s| s.namespace.is_user()).collect();
        let names: Vec<_> = users.iter().map(|s| s.name.clone()).collect();
        let mut expected: Vec<_> = shadow.snaps.keys().cloned().collect();
        let mut sorted = names.clone();
        sorted.sort();
        expected.sort();
        assert_eq!(sorted, expected, "seed {seed}, {what}: snapshots");
        for snap in users {
            let revision = image.revision_at(snap.id).await?;
            let bytes = revision.read_bytes(0, revision.size).await?;
            let (wanted, protected) = &shadow.snaps[&snap.name];
            same(&format!("seed {seed}, {what}: {}", snap.name), &bytes, wanted);
            assert_eq!(
                snap.protection == Protection::Protected,
                *protected,
                "seed {seed}, {what}: {}",
                snap.name
            );
        }
        *self.promised.lock().unwrap() = Some(shadow.clone());
        Ok(())
    }

    /// Compares what a verification says that relied on digests with one that read both ends.
    pub(crate) fn check_verified(&self, kept: &Verification, read: &Verification) {
        let seed = self.seed;
        assert!(kept.is_equal() && read.is_equal(), "seed {seed}: {kept:?} {read:?}");
        assert!(read.points.iter().all(|p| p.digest_bytes == 0), "seed {seed}: {read:?}");
        let as_read = |p: &PointReport| PointReport { digest_bytes: 0, ..p.clone() };
        let as_read: Vec<_> = kept.points.iter().map(as_read).collect();
        assert_eq!(as_read, read.points, "seed {seed}");
        self.tally.add_verified(kept);
    }

    /// Of the digests nothing is left in an image that is committed.
    pub(crate) async fn check_plain(&self, image: &Image) -> Result<()> {
        assert!(image.header.migration.is_none() && image.header.intent.is_none(), "seed {}", self.seed);
        let header = image.pool.store.read(&image.header_object(), SnapId::HEAD, ReadOp::stat()).await?;
        assert_eq!(header.size, 0, "seed {}: bytes in the header", self.seed);
        Ok(())
    }

    pub(crate) async fn check_child(&self, what: &str) -> Result<()> {
        let Some(wanted) = &self.child else { return Ok(()) };
        let pool = self.pool(&self.source).await;
        let image = Image::open(&pool, "child", Opening::ReadOnly).await?;
        let head = image.revision().await?;
        same(&format!("seed {}, {what}: child", self.seed), &head.read_bytes(0, head.size).await?, wanted);
        Ok(())
    }

    /// Removes everything there should be; no object of an image may be left.
    pub(crate) async fn tear_down(&self, spot: &Spot) -> Result<()> {
        let pool = self.pool(&self.source).await;
        if self.child.is_some() {
            remove::remove(&pool, "child", remove::UsedParent::Refuse, &mut silent).await?;
        }
        let there = self.pool(spot).await;
        self.remove_image(&there, spot.name).await?;
        if self.has_parent {
            self.remove_image(&pool, "parent").await?;
        }
        self.check_nothing_left().await
    }

    /// The names of all objects.
    pub(crate) async fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for store in self.stores.clients() {
            for info in store.pools().await.unwrap() {
                let page = store.list_objects(info.id, None, None, 4096).await.unwrap();
                names.extend(page.objects.iter().map(|(_, name)| name.to_string()));
            }
        }
        names
    }

    /// No object of an image is left anywhere, and no entry in a trash.
    pub(crate) async fn check_nothing_left(&self) -> Result<()> {
        for (n, store) in self.stores.clients().into_iter().enumerate() {
            for info in store.pools().await? {
                let page = store.list_objects(info.id, None, None, 4096).await?;
                let left: Vec<_> = page
                    .objects
                    .iter()
                    .map(|(_, name)| name.to_string())
                    .filter(|n| {
                        !["rbd_directory", "rbd_info", "rbd_trash", "rbd_children"].contains(&n.as_str())
                    })
                    .collect();
                assert!(left.is_empty(), "seed {}, store {n} pool {}: {left:?}", self.seed, info.name);
                let pool =
                    Pool::open(Arc::clone(&store), self.env.clone(), &info.name, &Namespace::default())
                        .await?;
                let entries = trash::list(&pool).await?;
                assert!(entries.is_empty(), "seed {}, store {n} pool {}: {entries:?}", self.seed, info.name);
            }
        }
        Ok(())
    }

    pub(crate) async fn remove_image(&self, pool: &Pool, name: &str) -> Result<()> {
        let mut image = Image::open(pool, name, Opening::ReadWrite).await?;
        let names: Vec<_> = image.header.snaps.values().map(|s| (s.name.clone(), s.protection)).collect();
        for (snap, protection) in names {
            if protection != Protection::Unprotected {
                snapshot::unprotect(&mut image, &snap).await?;
            }
            snapshot::remove(&mut image, &snap).await?;
        }
        image.close().await?;
        remove::remove(pool, name, remove::UsedParent::Refuse, &mut silent).await
    }
}

/// A header but for what may differ between two reads of one image.
pub(crate) fn lasting(header: &Header) -> Header {
    Header {
        version: 0,
        modified: header.created,
        accessed: header.created,
        flags: header.flags,
        ..header.clone()
    }
}

/// Ids of the snapshots.
pub(crate) fn snap_ids(header: &Header) -> Vec<SnapId> {
    header.snaps.keys().copied().collect()
}

pub(crate) fn zeros(size: u64) -> Vec<u8> {
    vec![0; usize::try_from(size).unwrap()]
}

/// A layout and features.
pub(crate) fn layout(rng: &TestRng) -> CreateOptions {
    let order = u8::try_from(12 + rng.below(3)).unwrap();
    let striped = rng.one_in(3);
    let features = if rng.one_in(3) { Features::LAYERING } else { Features::DEFAULT };
    CreateOptions {
        order: Some(order),
        stripe_unit: Some(if striped { 1024 << rng.below(3) } else { 1 << order }),
        stripe_count: Some(if striped { 2 + rng.below(2) } else { 1 }),
        features: Some(features),
        ..CreateOptions::default()
    }
}

pub(crate) fn same(what: &str, is: &[u8], wanted: &[u8]) {
    assert_eq!(is.len(), wanted.len(), "{what}: size");
    if let Some(at) = is.iter().zip(wanted).position(|(a, b)| a != b) {
        panic!("{what}: byte {at} is {} instead of {}", is[at], wanted[at]);
    }
}

impl Case {
    /// How many changes until death, if death comes.
    pub(crate) fn arm(&self, faults: &Faults, within: u64) {
        let changes = self.below(within);
        faults.armed.store(changes, Ordering::Relaxed);
        faults.changes_left.store(i64::try_from(changes).unwrap(), Ordering::Relaxed);
    }
}
