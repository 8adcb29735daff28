//! Requests on one device at the same time, on a store that answers late and in any order.

use std::sync::Arc;

use bytes::Bytes;
use ferry_core::testing::{MemStore, TestRng, test_env};
use ferry_core::{BlockDevice, Capabilities, Error, Namespace, Reply, Result, Rng, SnapId, Store};
use ferry_image::clone::{self, CloneFormat};
use ferry_image::create::{CreateOptions, create};
use ferry_image::device::ImageDevice;
use ferry_image::features::Features;
use ferry_image::flatten::flatten;
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::map_check::{MapCheck, check};
use ferry_image::pool::Pool;
use ferry_image::progress::silent;
use ferry_image::snapshot;
use ferry_image::testing::LateStore;
use futures_executor::block_on;
use futures_util::future::{join_all, join3};

const SIZE: usize = 48 << 10;
const SECTOR: usize = 512;

/// A clone of a snapshot, and what it holds.
struct Clone {
    pool: Pool,
    data: Vec<u8>,
    rng: TestRng,
}

async fn make_clone(seed: u64, share: bool) -> Result<Clone> {
    let env = test_env(seed);
    let capabilities = Capabilities { share, copy: None, list_snaps: true, list_watchers: true };
    let store: Arc<dyn Store> = LateStore::new(MemStore::with_capabilities(&env, capabilities), seed);
    store.create_pool("p").await?;
    let pool = Pool::open(store, env, "p", &Namespace::default()).await?;
    let rng = TestRng::new(seed);
    let features = if rng.one_in(4) { Features::LAYERING } else { Features::DEFAULT };
    let options = CreateOptions {
        order: Some(13),
        features: Some(features),
        stripe_unit: rng.one_in(2).then_some(4096),
        stripe_count: Some(2),
        ..CreateOptions::sized(SIZE as u64)
    };
    let options =
        if options.stripe_unit.is_some() { options } else { CreateOptions { stripe_count: None, ..options } };
    create(&pool, "parent", &options).await?;
    let mut parent = Image::open(&pool, "parent", Opening::ReadWrite).await?;
    let device = ImageDevice::open(parent.clone()).await?;
    let mut data = vec![0; SIZE];
    for n in 0..SIZE / 4096 {
        if rng.one_in(3) {
            continue;
        }
        let byte = u8::try_from(n + 1).unwrap();
        data[n * 4096..(n + 1) * 4096].fill(byte);
        device.write(n as u64 * 4096, Bytes::from(vec![byte; 4096])).await?;
    }
    snapshot::create(&mut parent, "s").await?;
    drop(device);
    parent.close().await?;
    let parent = Image::open(&pool, "parent", Opening::ReadOnly).await?.at_snapshot("s")?;
    clone::create(&parent, &pool, "child", CloneFormat::V2, &CreateOptions::default()).await?;
    Ok(Clone { pool, data, rng })
}

impl Clone {
    async fn open(&self) -> Result<Image> {
        Image::open(&self.pool, "child", Opening::ReadWrite).await
    }

    /// Changes of disjoint ranges in a random order, with what they leave.
    fn changes(&mut self) -> Vec<(u64, usize, Option<u8>)> {
        let mut cuts: Vec<usize> = (0..=SIZE / SECTOR).filter(|_| self.rng.one_in(3)).collect();
        cuts.push(0);
        cuts.sort_unstable();
        cuts.dedup();
        let mut changes = Vec::new();
        for pair in cuts.windows(2) {
            if self.rng.one_in(4) {
                continue;
            }
            let (start, end) = (pair[0] * SECTOR, pair[1] * SECTOR);
            let byte = (!self.rng.one_in(3)).then(|| u8::try_from(100 + self.rng.below(100)).unwrap());
            self.data[start..end].fill(byte.unwrap_or(0));
            changes.push((start as u64, end - start, byte));
        }
        let mut order: Vec<_> = changes.into_iter().map(|c| (self.rng.next_u64(), c)).collect();
        order.sort_unstable_by_key(|(key, _)| *key);
        order.into_iter().map(|(_, c)| c).collect()
    }

    async fn assert_holds(&self, at: SnapId, expected: &[u8], seed: u64) -> Result<()> {
        let image = Image::open(&self.pool, "child", Opening::ReadOnly).await?;
        let found = image.revision_at(at).await?.read_bytes(0, SIZE as u64).await?;
        let wrong = found.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "seed {seed} at {at}");
        Ok(())
    }

    async fn assert_map_is_right(&self, seed: u64) -> Result<()> {
        let mut image = self.open().await?;
        if image.header.features.contains(Features::OBJECT_MAP) {
            assert_eq!(check(&mut image, &mut silent).await?, MapCheck::Valid, "seed {seed}");
        }
        image.close().await
    }
}

fn start(device: &ImageDevice, (offset, length, byte): (u64, usize, Option<u8>)) -> Reply<()> {
    match byte {
        Some(byte) => device.write(offset, Bytes::from(vec![byte; length])),
        None => device.discard(offset, length as u64),
    }
}

async fn all(replies: impl IntoIterator<Item = Reply<()>>) -> Result<()> {
    join_all(replies).await.into_iter().collect::<Result<Vec<()>, Error>>().map(drop)
}

async fn disjoint(seed: u64, share: bool) -> Result<()> {
    let mut clone = make_clone(seed, share).await?;
    let mut then = None;
    for round in 0..3 {
        let device = ImageDevice::open(clone.open().await?).await?;
        let changes = clone.changes();
        all(changes.into_iter().map(|c| start(&device, c))).await?;
        device.close().await?;
        clone.assert_holds(SnapId::HEAD, &clone.data, seed).await?;
        if round == 0 && clone.rng.one_in(2) {
            let mut image = clone.open().await?;
            then = Some((snapshot::create(&mut image, "t").await?, clone.data.clone()));
            image.close().await?;
        }
    }
    let mut image = clone.open().await?;
    flatten(&mut image, &mut silent).await?;
    image.close().await?;
    clone.assert_holds(SnapId::HEAD, &clone.data, seed).await?;
    if let Some((id, data)) = then {
        clone.assert_holds(id, &data, seed).await?;
    }
    clone.assert_map_is_right(seed).await
}

#[test]
fn changes_of_disjoint_ranges_at_once_all_arrive() {
    for seed in 0..60 {
        block_on(Box::pin(disjoint(seed, seed.is_multiple_of(2)))).unwrap();
    }
}

async fn contended(seed: u64) -> Result<()> {
    let clone = make_clone(seed, seed.is_multiple_of(2)).await?;
    // Independent of the parent, so that discarding whole objects removes them.
    let mut image = clone.open().await?;
    flatten(&mut image, &mut silent).await?;
    image.close().await?;
    let device = ImageDevice::open(clone.open().await?).await?;
    // The first write takes the lock; the others then run beside each other.
    start(&device, (0, 512, Some(1))).await?;
    let several = async |most: u64, change| {
        for _ in 0..1 + clone.rng.below(most) {
            start(&device, change).await?;
        }
        Ok::<(), Error>(())
    };
    let write = || several(2, (512, 512, Some(9)));
    let remove = || several(1, (0, 8192, None));
    let (a, b, c) = join3(write(), remove(), write()).await;
    a.and(b).and(c)?;
    device.close().await?;
    clone.assert_map_is_right(seed).await
}

#[test]
fn writes_against_removals_of_the_same_object_never_make_the_map_deny_it() {
    for seed in 0..400 {
        block_on(Box::pin(contended(seed))).unwrap();
    }
}
