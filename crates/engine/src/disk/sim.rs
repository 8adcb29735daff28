//! A disk in memory that can crash: un-synced writes are kept apart and any 512-byte sectors of them may survive.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use ferry_core::testing::TestRng;
use ferry_core::{Error, ErrorKind, Result, Rng};

use super::{Disk, FileId, SegmentNo};

const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// A page of a file, shared by all images of it until one writes.
type SimPage = Arc<[u8; PAGE]>;

#[derive(Clone, Debug, Default)]
struct SimFile {
    /// What survives any crash.
    durable: Vec<SimPage>,
    /// What reads see.
    current: Vec<SimPage>,
    /// Sectors written since the last sync, with every value they had since.
    pending: BTreeMap<usize, Vec<[u8; SECTOR]>>,
}

/// What an operation of the disk was for, as far as the disk can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A segment's file or its header block.
    OpenSegment,
    /// The superblock.
    Superblock,
    /// Anything else.
    Other,
}

/// Images of crashes to be taken while operations go on.
#[derive(Debug)]
struct Camera {
    every: u64,
    rng: TestRng,
    taken: Vec<(Operation, SimDisk)>,
}

#[derive(Debug)]
struct State {
    camera: Option<Camera>,
    files: BTreeMap<FileId, SimFile>,
    /// Writes and syncs so far.
    operations: u64,
    /// Fail every operation from this one on.
    stop_at: Option<u64>,
    /// Operations at which a sync began.
    syncs: Vec<u64>,
    /// Bytes all segments together may take.
    capacity: Option<u64>,
    /// Fail the n-th operation only, with this kind.
    fail_once: Option<(u64, ErrorKind)>,
    written_bytes: u64,
}

/// A [`Disk`] in memory.
#[derive(Debug)]
pub struct SimDisk {
    state: Mutex<State>,
    seed: u64,
}

impl SimDisk {
    /// An empty disk; `seed` decides what survives crashes.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State {
            camera: None,
            files: BTreeMap::new(),
            operations: 0,
            stop_at: None,
            syncs: Vec::new(),
            capacity: None,
            fail_once: None,
            written_bytes: 0,
        };
        Self { state: Mutex::new(state), seed }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes, syncs, creations and removals so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// The operations that were syncs.
    #[must_use]
    pub fn syncs(&self) -> Vec<u64> {
        self.state().syncs.clone()
    }

    /// Bytes written so far.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.state().written_bytes
    }

    /// Makes operation `at` and all after it fail, as if the machine stopped there.
    pub fn stop_at(&self, at: u64) {
        self.state().stop_at = Some(at);
    }

    /// Makes operation `at` alone fail.
    pub fn fail_once(&self, at: u64, kind: ErrorKind) {
        self.state().fail_once = Some((at, kind));
    }

    /// Limits what the segments may take together. Bytes.
    pub fn set_capacity(&self, bytes: u64) {
        self.state().capacity = Some(bytes);
    }

    /// Flips one bit of what is stored.
    pub fn flip(&self, file: FileId, offset: u64, bit: u32) {
        let mut state = self.state();
        let Some(f) = state.files.get_mut(&file) else { return };
        let Ok(at) = usize::try_from(offset) else { return };
        for pages in [&mut f.current, &mut f.durable] {
            if let Some(page) = pages.get_mut(at / PAGE) {
                Arc::make_mut(page)[at % PAGE] ^= 1 << (bit % 8);
            }
        }
    }

    /// All files with their lengths in bytes.
    #[must_use]
    pub fn files(&self) -> Vec<(FileId, u64)> {
        self.state().files.iter().map(|(id, f)| (*id, f.length())).collect()
    }

    /// The disk after a crash now: each un-synced sector is what it was before, or any value written to it since, or torn
    /// off; the choice follows from the seed and `subset`.
    #[must_use]
    pub fn crash(&self, subset: u64) -> Self {
        let state = self.state();
        let rng = TestRng::new(self.seed ^ subset.wrapping_mul(0x9E37_79B9));
        // Some crashes keep nothing, some everything, most a mixture.
        let style = rng.below(5);
        let mut files = BTreeMap::new();
        for (id, file) in &state.files {
            let mut after = file.durable.clone();
            for (sector, values) in &file.pending {
                let keep = match style {
                    0 => false,
                    1 => true,
                    2 => rng.one_in(8),
                    3 => !rng.one_in(8),
                    _ => rng.one_in(2),
                };
                if keep {
                    let pick =
                        if style == 1 { values.len() - 1 } else { index(rng.below(values.len() as u64)) };
                    put_sector(&mut after, *sector, &values[pick]);
                }
            }
            files.insert(*id, SimFile { durable: after.clone(), current: after, pending: BTreeMap::new() });
        }
        let next = Self::new(self.seed.wrapping_add(1));
        next.state().files = files;
        next.state().capacity = state.capacity;
        next
    }

    /// From now on, before about one in `every` operations (and twice as often before syncs), takes an image of what a
    /// crash there would leave.
    pub fn take_images(&self, every: u64, seed: u64) {
        self.state().camera = Some(Camera { every, rng: TestRng::new(seed), taken: Vec::new() });
    }

    /// The images taken since [`SimDisk::take_images`].
    #[must_use]
    pub fn taken_images(&self) -> Vec<(Operation, Self)> {
        self.state().camera.take().map_or_else(Vec::new, |c| c.taken)
    }

    /// Called before each operation: perhaps takes an image.
    fn photograph(&self, operation: Operation, sync: bool) {
        let subset = {
            let state = self.state();
            let Some(camera) = &state.camera else { return };
            let common = !sync && operation == Operation::Other;
            let wanted = camera.rng.one_in(if common { camera.every } else { camera.every.div_ceil(2) });
            if !wanted {
                return;
            }
            camera.rng.next_u64()
        };
        let image = self.crash(subset);
        if let Some(camera) = &mut self.state().camera {
            camera.taken.push((operation, image));
        }
    }

    /// A copy of the disk as it reads now.
    #[must_use]
    pub fn copy(&self) -> Self {
        let next = Self::new(self.seed);
        {
            let state = self.state();
            let mut other = next.state();
            other.files.clone_from(&state.files);
            other.capacity = state.capacity;
        }
        next
    }
}

impl SimFile {
    /// Bytes of the file.
    fn length(&self) -> u64 {
        (self.current.len() * PAGE) as u64
    }
}

/// Replaces one sector of a file.
fn put_sector(pages: &mut [SimPage], sector: usize, value: &[u8; SECTOR]) {
    let at = sector * SECTOR;
    Arc::make_mut(&mut pages[at / PAGE])[at % PAGE..at % PAGE + SECTOR].copy_from_slice(value);
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("small")
}

impl State {
    fn step(&mut self) -> Result<()> {
        let at = self.operations;
        self.operations += 1;
        if self.stop_at.is_some_and(|s| at >= s) {
            return Err(Error::new(ErrorKind::Io, "the simulated machine has stopped"));
        }
        if let Some((when, kind)) = self.fail_once
            && when == at
        {
            return Err(Error::new(kind, "the simulated disk fails once"));
        }
        Ok(())
    }

    fn file(&mut self, file: FileId) -> Result<&mut SimFile> {
        self.files.get_mut(&file).ok_or_else(|| Error::not_found("no such file on the simulated disk"))
    }
}

impl Disk for SimDisk {
    fn segments(&self) -> Result<Vec<SegmentNo>> {
        let state = self.state();
        Ok(state
            .files
            .keys()
            .filter_map(|f| match f {
                FileId::Segment(no) => Some(*no),
                FileId::Superblock => None,
            })
            .collect())
    }

    fn has_superblock(&self) -> Result<bool> {
        Ok(self.state().files.contains_key(&FileId::Superblock))
    }

    fn create(&self, file: FileId, length: u64) -> Result<()> {
        self.photograph(Operation::OpenSegment, false);
        let mut state = self.state();
        state.step()?;
        if let (Some(capacity), FileId::Segment(_)) = (state.capacity, file) {
            let used: u64 = state
                .files
                .iter()
                .filter(|(id, _)| matches!(id, FileId::Segment(_)))
                .map(|(_, f)| f.length())
                .sum();
            if used + length > capacity {
                return Err(Error::new(ErrorKind::NoSpace, "the simulated disk is full"));
            }
        }
        assert_eq!(length % PAGE as u64, 0, "files are whole pages");
        let zero = Arc::new([0; PAGE]);
        let of_pages = |pages: usize| {
            let zeros: Vec<SimPage> = std::iter::repeat_n(Arc::clone(&zero), pages).collect();
            SimFile { durable: zeros.clone(), current: zeros, pending: BTreeMap::new() }
        };
        // A file is there before it has its length.
        let pages = index(length) / PAGE;
        for pages in [0, pages / 2] {
            state.files.insert(file, of_pages(pages));
            drop(state);
            self.photograph(Operation::OpenSegment, false);
            state = self.state();
        }
        state.files.insert(file, of_pages(pages));
        Ok(())
    }

    fn remove(&self, file: FileId) -> Result<()> {
        self.photograph(Operation::Other, false);
        let mut state = self.state();
        state.step()?;
        state.files.remove(&file);
        Ok(())
    }

    fn length(&self, file: FileId) -> Result<u64> {
        Ok(self.state().file(file)?.length())
    }

    fn read(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut state = self.state();
        let f = state.file(file)?;
        let mut at = index(offset);
        let mut left = buffer;
        while !left.is_empty() {
            let page =
                f.current.get(at / PAGE).ok_or_else(|| Error::corrupt("a file of the store is too short"))?;
            let n = (PAGE - at % PAGE).min(left.len());
            let (now, later) = left.split_at_mut(n);
            now.copy_from_slice(&page[at % PAGE..at % PAGE + n]);
            (left, at) = (later, at + n);
        }
        Ok(())
    }

    fn will_read(&self, _ranges: &[(FileId, u64, u64)]) {}

    fn write(&self, file: FileId, offset: u64, parts: &[Bytes]) -> Result<()> {
        let operation = match (file, offset) {
            (FileId::Superblock, _) => Operation::Superblock,
            (FileId::Segment(_), 0) => Operation::OpenSegment,
            (FileId::Segment(_), _) => Operation::Other,
        };
        self.photograph(operation, false);
        let mut state = self.state();
        state.step()?;
        let mut at = index(offset);
        assert_eq!(at % SECTOR, 0, "writes are whole sectors");
        for part in parts {
            assert_eq!(part.len() % SECTOR, 0, "writes are whole sectors");
            state.written_bytes += part.len() as u64;
            let f = state.file(file)?;
            assert!((at + part.len()) as u64 <= f.length(), "a write stays inside its file");
            for (n, sector) in part.chunks_exact(SECTOR).enumerate() {
                let value: [u8; SECTOR] = sector.try_into().expect("a sector");
                put_sector(&mut f.current, at / SECTOR + n, &value);
                f.pending.entry(at / SECTOR + n).or_default().push(value);
            }
            at += part.len();
        }
        Ok(())
    }

    fn sync(&self, file: FileId) -> Result<()> {
        let superblock = matches!(file, FileId::Superblock);
        self.photograph(if superblock { Operation::Superblock } else { Operation::Other }, true);
        let mut state = self.state();
        let now = state.operations;
        state.syncs.push(now);
        state.step()?;
        let f = state.file(file)?;
        for sector in std::mem::take(&mut f.pending).into_keys() {
            let page = sector * SECTOR / PAGE;
            f.durable[page] = Arc::clone(&f.current[page]);
        }
        Ok(())
    }

    fn forget(&self, _file: FileId) {}

    fn free_bytes(&self) -> Result<u64> {
        let state = self.state();
        let used: u64 = state.files.values().map(SimFile::length).sum();
        Ok(state.capacity.map_or(u64::MAX / 2, |c| c.saturating_sub(used)))
    }

    fn describe(&self) -> String {
        "simulated disk".to_owned()
    }
}
