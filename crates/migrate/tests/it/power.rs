//! Stores of the engine on simulated disks in one machine, whose power is cut: of what was not synced, any sectors survive, on each disk
//! others. Disks and engines are those of the engine's own crash tests; here two of them lose their power in the same moment.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use ferry_core::testing::{MemStore, TestRng};
use ferry_core::{BlockDevice, Env, Error, ErrorKind, Result, Store};
use ferry_engine::disk::sim::SimDisk;
use ferry_engine::disk::{Disk, FileId, SegmentNo};
use ferry_engine::{Engine, Options};
use ferry_image::header::Opening;
use ferry_image::image::Image;

use crate::case::{Case, Shadow};
use crate::steps::Verb;

/// Power cuts one after the other before a verb is let through.
const CUTS_MAX: usize = 4;

/// Operations of the disks within which a cut comes: the last is more than most verbs need here, so that some are not cut off.
const OPERATIONS: [u64; 3] = [4, 16, 60];

/// Small segments, so that a migration fills some.
fn options(seed: u64) -> Options {
    let segment_blocks = if seed.is_multiple_of(2) { 64 } else { 256 };
    Options { segment_blocks, capacity_bytes: 64 << 20, cache_bytes: 64 << 10 }
}

/// What all disks of a machine hang on.
#[derive(Debug)]
struct Mains {
    /// Operations until the power is cut.
    left: AtomicI64,
    /// Operations so far.
    done: AtomicU64,
}

impl Mains {
    fn is_cut(&self) -> bool {
        self.left.load(Ordering::Relaxed) < 0
    }

    /// Counts an operation; the last one is under way when the power is cut.
    fn spend(&self) -> Spent {
        self.done.fetch_add(1, Ordering::Relaxed);
        match self.left.fetch_sub(1, Ordering::Relaxed) {
            1.. => Spent::Done,
            0 => Spent::UnderWay,
            _ => Spent::Dark,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spent {
    Done,
    UnderWay,
    Dark,
}

fn no_power() -> Error {
    Error::new(ErrorKind::Io, "the power is cut")
}

/// A disk that does nothing more once the power is cut.
#[derive(Debug)]
struct PoweredDisk {
    disk: Arc<SimDisk>,
    mains: Arc<Mains>,
}

impl PoweredDisk {
    fn change(&self, change: impl FnOnce() -> Result<()>) -> Result<()> {
        match self.mains.spend() {
            Spent::Done => change(),
            Spent::UnderWay | Spent::Dark => Err(no_power()),
        }
    }
}

impl Disk for PoweredDisk {
    fn segments(&self) -> Result<Vec<SegmentNo>> {
        self.disk.segments()
    }

    fn has_superblock(&self) -> Result<bool> {
        self.disk.has_superblock()
    }

    fn create(&self, file: FileId, length: u64) -> Result<()> {
        self.change(|| self.disk.create(file, length))
    }

    fn remove(&self, file: FileId) -> Result<()> {
        self.change(|| self.disk.remove(file))
    }

    fn length(&self, file: FileId) -> Result<u64> {
        self.disk.length(file)
    }

    fn read(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.disk.read(file, offset, buffer)
    }

    fn will_read(&self, ranges: &[(FileId, u64, u64)]) {
        self.disk.will_read(ranges);
    }

    fn write(&self, file: FileId, offset: u64, parts: &[Bytes]) -> Result<()> {
        match self.mains.spend() {
            Spent::Done => self.disk.write(file, offset, parts),
            // Some of its sectors may come to the medium.
            Spent::UnderWay => self.disk.write(file, offset, parts).and(Err(no_power())),
            Spent::Dark => Err(no_power()),
        }
    }

    fn sync(&self, file: FileId) -> Result<()> {
        self.change(|| self.disk.sync(file))
    }

    fn forget(&self, file: FileId) {
        self.disk.forget(file);
    }

    fn free_bytes(&self) -> Result<u64> {
        self.disk.free_bytes()
    }

    fn describe(&self) -> String {
        self.disk.describe()
    }
}

/// The disks of a machine, and the stores that run on them since it was started last.
#[derive(Debug)]
struct Running {
    mains: Arc<Mains>,
    disks: Vec<Arc<SimDisk>>,
    engines: Vec<Arc<Engine>>,
}

impl Running {
    /// Starts a machine; `open` opens the store on a disk.
    fn start(disks: Vec<Arc<SimDisk>>, open: impl Fn(Arc<dyn Disk>) -> Result<Arc<Engine>>) -> Result<Self> {
        let mains = Arc::new(Mains { left: AtomicI64::new(i64::MAX), done: AtomicU64::new(0) });
        let engines = disks
            .iter()
            .map(|disk| open(Arc::new(PoweredDisk { disk: Arc::clone(disk), mains: Arc::clone(&mains) })));
        let engines = engines.collect::<Result<Vec<_>>>()?;
        Ok(Self { mains, disks, engines })
    }
}

/// A machine.
#[derive(Debug)]
pub(crate) struct Machine {
    env: Env,
    seed: u64,
    running: Mutex<Running>,
}

impl Machine {
    /// A machine with so many empty stores.
    pub(crate) fn new(env: &Env, seed: u64, stores: u64) -> Self {
        let disks = (0..stores).map(|n| Arc::new(SimDisk::new(seed.wrapping_mul(31) ^ n))).collect();
        let running = Running::start(disks, |disk| Engine::create(disk, env.clone(), options(seed))).unwrap();
        Self { env: env.clone(), seed, running: Mutex::new(running) }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap()
    }

    fn engines(&self) -> Vec<Arc<Engine>> {
        self.running().engines.clone()
    }

    /// Makes everything durable, as a command does before it reports.
    fn flush(&self) -> Result<()> {
        self.engines().iter().try_for_each(|engine| engine.sync())
    }

    /// Cuts the power after so many operations of the disks.
    fn arm(&self, operations: u64) {
        self.running().mains.left.store(i64::try_from(operations).unwrap(), Ordering::Relaxed);
    }

    /// Lets no cut come any more, unless it came.
    pub(crate) fn disarm(&self) {
        assert!(!self.is_cut(), "a machine without power reports success");
        self.arm(i64::MAX.unsigned_abs());
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.running().mains.is_cut()
    }

    /// Starts it again after a cut: each disk keeps what the seed and `subset` say of what was not synced.
    fn restart(&self, subset: u64) -> Result<()> {
        let disks: Vec<_> =
            self.running().disks.iter().zip(0..).map(|(d, n)| Arc::new(d.crash(subset ^ n << 40))).collect();
        let open = |disk| Engine::open(disk, self.env.clone(), options(self.seed));
        *self.running() = Running::start(disks, open)?;
        self.check()
    }

    /// Whether the stores are whole.
    fn check(&self) -> Result<()> {
        for (n, engine) in self.engines().iter().enumerate() {
            let report = engine.check()?;
            assert!(report.is_clean(), "seed {}, store {n}: {:?}", self.seed, report.findings);
        }
        Ok(())
    }

    /// What a node does in pauses.
    fn maintain(&self, rng: &TestRng) -> Result<()> {
        for engine in self.engines() {
            match rng.below(6) {
                0 => engine.checkpoint()?,
                1 => drop(engine.begin_checkpoint()?),
                2 => while engine.maintain()? {},
                _ => {}
            }
        }
        Ok(())
    }
}

/// The stores of a case.
#[derive(Debug)]
pub(crate) enum Stores {
    Memory(Vec<Arc<MemStore>>),
    Machine(Machine),
}

impl Stores {
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::Memory(stores) => stores.len(),
            Self::Machine(machine) => machine.engines().len(),
        }
    }

    /// The stores as a new process sees them.
    pub(crate) fn clients(&self) -> Vec<Arc<dyn Store>> {
        match self {
            Self::Memory(stores) => stores.iter().map(|s| s.another_client() as Arc<dyn Store>).collect(),
            Self::Machine(machine) => machine.engines().into_iter().map(|e| e as Arc<dyn Store>).collect(),
        }
    }
}

impl Case {
    /// The machine whose power is cut.
    pub(crate) fn machine(&self) -> Option<&Machine> {
        match &self.stores {
            Stores::Memory(_) => None,
            Stores::Machine(machine) => Some(machine),
        }
    }

    /// Lets the power be cut soon, or not.
    pub(crate) fn cut_soon(&self, machine: &Machine) {
        machine.arm(self.below(OPERATIONS[usize::try_from(self.below(3)).unwrap()]));
    }

    /// Starts the machine again after its power was cut in `what`.
    pub(crate) fn start_again(&self, machine: &Machine, what: u64) -> Result<()> {
        self.tally.add(1, machine.running().mains.done.load(Ordering::Relaxed) << 8 | what);
        machine.restart(self.below(u64::MAX))
    }

    /// Does a verb whose power is cut, again and again. What was done before is durable.
    pub(crate) async fn through_cuts(&self, verb: Verb, machine: &Machine) -> Result<bool> {
        let promised = self.promised.lock().unwrap().clone();
        for n in 0..=CUTS_MAX {
            machine.flush()?;
            if n < CUTS_MAX {
                self.cut_soon(machine);
            }
            let done = match machine.maintain(&self.rng) {
                Ok(()) => {
                    let (_, stores) = self.process();
                    // An abort beside clients may have come to its end before it was cut off.
                    self.attempt(verb, &stores, n > 0 || verb == Verb::Abort).await
                }
                Err(e) => Err(e),
            };
            match done {
                Ok(()) => {
                    machine.disarm();
                    machine.check()?;
                    return Ok(true);
                }
                Err(e) if machine.is_cut() => {
                    self.trace(&format!("{verb:?} is cut off: {}", e.chain()));
                    self.start_again(machine, verb as u64)?;
                    self.look_at_remains(verb).await?;
                    if let Some(shadow) = &promised {
                        self.check_promised(verb, shadow).await?;
                    }
                }
                Err(e) => return Err(e.with("verb", format!("{verb:?} {n}"))),
            }
        }
        Err(Error::invalid("a verb that never ends"))
    }

    /// What was durable before a verb was cut off is shown by whichever end can be opened.
    async fn check_promised(&self, verb: Verb, shadow: &Shadow) -> Result<()> {
        let spots = match verb {
            // The target shows the source all the time, the source is closed to writers.
            Verb::Prepare => [Some(&self.source), Some(&self.target)],
            Verb::Execute | Verb::Commit => [Some(&self.target), None],
            // Which end has what is decided by the abort that goes on.
            Verb::Abort => [None, None],
        };
        let mut found = verb == Verb::Abort;
        for spot in spots.into_iter().flatten() {
            let pool = self.pool(spot).await;
            match Image::open(&pool, spot.name, Opening::ReadOnly).await {
                Ok(image) => {
                    self.check_image(&format!("cut off in {verb:?}"), &image, shadow).await?;
                    found = true;
                }
                // In the trash, not made yet, or being prepared.
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Busy) => {}
                Err(e) => return Err(e),
            }
        }
        // Between the two names of a prepare nobody sees the image; the same command, or an abort, goes on.
        assert!(found || verb == Verb::Prepare, "seed {}: no end is there", self.seed);
        Ok(())
    }

    /// Uses the target until the power is cut: what was flushed is there, and of what was not, for each byte, something it was
    /// since. `now` is what the target holds then.
    pub(crate) async fn write_until_cut(&self, machine: &Machine, now: &mut Shadow) -> Result<()> {
        machine.flush()?;
        let mut versions = vec![now.head.clone()];
        self.cut_soon(machine);
        let written = self.write_and_flush(now, &mut versions).await;
        match written {
            Err(e) if machine.is_cut() => self.trace(&format!("a client is cut off: {}", e.chain())),
            // It came when nobody asked for anything any more.
            done => done?,
        }
        self.start_again(machine, 0xc1)?;
        let pool = self.pool(&self.target).await;
        let image = Image::open(&pool, self.target.name, Opening::ReadOnly).await?;
        let revision = image.revision().await?;
        let found = revision.read_bytes(0, revision.size).await?.to_vec();
        assert_eq!(found.len(), now.head.len(), "seed {}: size after a cut", self.seed);
        for (at, byte) in found.iter().enumerate() {
            let may_be = versions.iter().any(|version| version[at] == *byte);
            assert!(
                may_be,
                "seed {}: byte {at} is {byte} after a cut of {} versions",
                self.seed,
                versions.len()
            );
        }
        now.head = found;
        self.check_image("a client was cut off", &image, now).await?;
        self.check_child("a client was cut off").await
    }

    /// Writes and flushes; `versions` is what HEAD was at the last flush, and after each request since.
    async fn write_and_flush(&self, now: &mut Shadow, versions: &mut Vec<Vec<u8>>) -> Result<()> {
        let pool = self.pool(&self.target).await;
        let device = self.open(&pool, self.target.name).await?;
        for _ in 0..4 + self.below(20) {
            let mut next = now.clone();
            let flushes = self.below(4) == 0;
            let done =
                if flushes { device.flush().await } else { self.write_random(&device, &mut next).await };
            // Of a request that failed, a part may be there.
            versions.push(next.head.clone());
            done?;
            *now = next;
            if flushes {
                *versions = vec![now.head.clone()];
            }
        }
        Ok(())
    }
}
