//! Random operations on trees of images, snapshots and clones, compared with plain byte vectors.
//!
//! The model knows nothing of objects, parents or maps: an image is a vector of bytes, a snapshot a copy of it. After each
//! operation what it touched is compared; now and then everything is, together with the object maps. In the end everything is
//! removed, and no object may be left.

mod check;
mod images;
mod io;
mod shadow;
mod snaps;
mod transfers;

use std::sync::Arc;

use ferry_core::testing::{TestRng, test_env};
use ferry_core::{Error, ErrorKind, Namespace, Result, Rng, Store};

use crate::device::ImageDevice;
use crate::header::Opening;
use crate::image::Image;
use crate::pool::Pool;

use self::shadow::Shadow;

/// Most images there are at once.
const IMAGES_MAX: usize = 10;

/// Most snapshots of one image.
const SNAPS_MAX: usize = 4;

/// Largest image. Bytes; small, so that objects are many and comparing is cheap.
const SIZE_MAX: u64 = 96 << 10;

/// Steps between two comparisons of everything.
const CHECK_EVERY: u64 = 64;

/// Runs `steps` random operations determined by `seed` on a store without pools of the names `model-a` and `model-b`, which
/// are made and left empty.
///
/// # Panics
/// At the first difference or unexpected error, naming seed, step and operation.
pub async fn run(store: Arc<dyn Store>, seed: u64, steps: u64) {
    let mut world = match World::new(store, seed).await {
        Ok(world) => world,
        Err(e) => panic!("seed {seed}: cannot make the pools: {}", e.chain()),
    };
    for step in 0..steps {
        if let Err(e) = world.step().await {
            panic!("seed {seed}, step {step}, {}: {}", world.doing, e.chain());
        }
        if step % CHECK_EVERY == CHECK_EVERY - 1
            && let Err(e) = world.check_all().await
        {
            panic!("seed {seed}, step {step}, comparing everything after {}: {}", world.doing, e.chain());
        }
    }
    if let Err(e) = world.tear_down().await {
        panic!("seed {seed}, in the end: {}", e.chain());
    }
}

/// The store and what should be in it.
struct World {
    pools: [Pool; 2],
    rng: TestRng,
    images: Vec<Shadow>,
    names: u64,
    /// What is being done, for messages.
    doing: String,
}

impl World {
    async fn new(store: Arc<dyn Store>, seed: u64) -> Result<Self> {
        let env = test_env(seed);
        let mut pools = Vec::new();
        for name in ["model-a", "model-b"] {
            store.create_pool(name).await?;
            pools.push(Pool::open(Arc::clone(&store), env.clone(), name, &Namespace::default()).await?);
        }
        let pools = <[Pool; 2]>::try_from(pools).map_err(|_| mismatch("two pools"))?;
        Ok(Self { pools, rng: TestRng::new(seed), images: Vec::new(), names: 0, doing: String::new() })
    }

    /// One random operation.
    async fn step(&mut self) -> Result<()> {
        let live: Vec<usize> =
            (0..self.images.len()).filter(|n| self.images[*n].trash_id.is_none()).collect();
        if live.is_empty() || (self.images.len() < 3 && self.rng.one_in(2)) {
            return Box::pin(self.create()).await;
        }
        let n = live[self.pick(live.len())];
        // Boxed one by one: each is a large state machine.
        match self.rng.below(100) {
            0..=41 => Box::pin(self.change(n)).await,
            42..=49 => Box::pin(self.take_snapshot(n)).await,
            50..=53 => Box::pin(self.remove_snapshot(n)).await,
            54..=56 => Box::pin(self.roll_back(n)).await,
            57..=59 => Box::pin(self.toggle_protection(n)).await,
            60..=65 => Box::pin(self.clone_image(n)).await,
            66..=69 => Box::pin(self.flatten(n)).await,
            70..=73 => Box::pin(self.resize(n)).await,
            74..=76 => Box::pin(self.create()).await,
            77..=80 => Box::pin(self.remove(n)).await,
            81..=82 => Box::pin(self.copy(n)).await,
            83..=84 => Box::pin(self.deep_copy(n)).await,
            85..=86 => Box::pin(self.export_import(n)).await,
            87..=88 => Box::pin(self.diff_chain(n)).await,
            89 => Box::pin(self.raw_round_trip(n)).await,
            90..=91 => Box::pin(self.rename(n)).await,
            92..=93 => Box::pin(self.trash_round(n)).await,
            94..=95 => Box::pin(self.sparsify(n)).await,
            96 => Box::pin(self.rebuild_map(n)).await,
            _ => Box::pin(self.check_diff(n)).await,
        }
    }

    /// A number below `n` for an index.
    fn pick(&self, n: usize) -> usize {
        usize::try_from(self.rng.below(n as u64)).unwrap_or(0)
    }

    /// A new name.
    fn new_name(&mut self, kind: &str) -> String {
        self.names += 1;
        format!("{kind}{}", self.names)
    }

    /// A size, on a block boundary most of the time. Bytes.
    fn random_size(&self) -> u64 {
        match self.rng.below(8) {
            0 => self.rng.below(SIZE_MAX),
            1 => 0,
            _ => self.rng.below(SIZE_MAX / 4096 + 1) * 4096,
        }
    }

    /// A range inside `size` bytes, never empty; `None` where there are none.
    fn random_range(&self, size: u64) -> Option<(u64, u64)> {
        if size == 0 {
            return None;
        }
        let grain = [1, 512, 4096, 4096, 16384][self.pick(5)];
        let offset = self.rng.below(size) / grain * grain;
        let length = (1 + self.rng.below(24 << 10)).div_ceil(grain) * grain;
        Some((offset, length.min(size - offset)))
    }

    /// Bytes to write: a repeated random word, now and then zeros.
    fn random_bytes(&self, length: u64) -> Vec<u8> {
        let word = if self.rng.one_in(10) { [0; 8] } else { self.rng.next_u64().to_le_bytes() };
        (0..length).map(|n| word[usize::try_from(n % 8).unwrap_or(0)]).collect()
    }

    /// Opens an image to be written.
    async fn open(&self, n: usize) -> Result<Image> {
        let shadow = &self.images[n];
        Image::open(&self.pools[shadow.pool], &shadow.name, Opening::ReadWrite).await
    }

    /// Opens an image to be read.
    async fn open_read(&self, n: usize) -> Result<Image> {
        let shadow = &self.images[n];
        let pool = &self.pools[shadow.pool];
        match &shadow.trash_id {
            Some(id) => Image::open_by_id(pool, id, Opening::ReadOnly).await,
            None => Image::open(pool, &shadow.name, Opening::ReadOnly).await,
        }
    }

    /// Opens an image as a device.
    async fn open_device(&self, n: usize) -> Result<ImageDevice> {
        ImageDevice::open(self.open(n).await?).await
    }
}

/// The model and the image disagree.
fn mismatch(clause: &'static str) -> Error {
    Error::new(ErrorKind::Internal, clause)
}

/// What came of something that may be refused: `None` where it was refused with one of `kinds`.
fn or_refused<T>(result: Result<T>, kinds: &[ErrorKind]) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if kinds.contains(&e.kind()) => Ok(None),
        Err(e) => Err(e),
    }
}
