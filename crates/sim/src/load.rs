//! A writer that says what it flushed, and the check that all of it is there: for killed processes and cut power.
//!
//! Write `n` goes to slot `n mod 4096` (64 objects of 64 blocks) and fills it with `n`; after each flush the number is printed. So
//! whatever was printed must be found, or something newer in the same slot.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ferry_core::testing::TestRng;
use ferry_core::{
    Clock, Env, Error, Namespace, ObjectId, PoolId, ReadOp, Reply, Result, Rng, SnapId, Store, Timestamp,
    WriteOp,
};
use ferry_engine::disk::FileDisk;
use ferry_engine::{Engine, Options};

const SLOTS: u64 = 4096;
const BLOCK: u64 = 4096;

#[derive(Debug)]
struct SystemClock(Instant);

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp {
            seconds: u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
            nanoseconds: now.subsec_nanos(),
        }
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, time: Duration) -> Reply<()> {
        std::thread::sleep(time);
        Reply::ready(Ok(()))
    }
}

/// The machine's time and a seed from it.
fn env() -> Env {
    let clock = SystemClock(Instant::now());
    let now = clock.now();
    let seed = u64::from(now.seconds) << 32 | u64::from(now.nanoseconds);
    let rng = TestRng::new(seed ^ u64::from(std::process::id()) << 20);
    rng.next_u64();
    Env { clock: Arc::new(clock), rng: Arc::new(rng) }
}

fn options() -> Options {
    // Small enough that the load runs through rolls, checkpoints and cleaning within seconds.
    Options { segment_blocks: 512, capacity_bytes: 96 << 20, ..Options::default() }
}

fn open(directory: &Path) -> Result<Arc<Engine>> {
    if directory.join("superblock").exists() {
        return Engine::open(Arc::new(FileDisk::open(directory)?), env(), options());
    }
    let engine = Engine::create(Arc::new(FileDisk::create(directory)?), env(), options())?;
    engine.create_pool("p").wait()?;
    Ok(engine)
}

fn place(n: u64) -> (ObjectId, u64) {
    let slot = n % SLOTS;
    (ObjectId::new(PoolId(1), &Namespace::default(), &format!("o{}", slot % 64)), slot / 64 * BLOCK)
}

fn content(n: u64) -> Bytes {
    Bytes::from(n.to_le_bytes().repeat(512))
}

/// Writes and flushes from number `from` on, for ever, printing each number that is durable.
///
/// # Errors
/// Those of the store and of printing.
pub fn write(directory: &Path, from: u64, out: &mut dyn Write) -> Result<()> {
    let engine = open(directory)?;
    let rng = TestRng::new(from);
    let mut n = from;
    loop {
        for _ in 0..=rng.below(12) {
            let (object, offset) = place(n);
            engine.write(&object, WriteOp::new().write(offset, content(n))).wait()?;
            n += 1;
        }
        engine.sync()?;
        writeln!(out, "{}", n - 1).and_then(|()| out.flush()).map_err(|e| Error::io("cannot print", e))?;
        engine.maintain()?;
    }
}

/// Checks that every slot holds what was last written to it up to `durable`, or something newer, and that the store checks clean.
///
/// # Errors
/// `Corrupt` where something is missing.
pub fn verify(directory: &Path, durable: u64) -> Result<String> {
    let engine = open(directory)?;
    for slot in 0..SLOTS.min(durable + 1) {
        let wanted = durable - (durable - slot) % SLOTS;
        let (object, offset) = place(wanted);
        let reply = engine.read(&object, SnapId::HEAD, ReadOp::data(offset, BLOCK)).wait()?;
        let bytes = reply.data.to_vec(offset, BLOCK);
        let found = bytes.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b));
        let whole = content(found) == bytes;
        if !whole || found < wanted || found % SLOTS != slot {
            return Err(Error::corrupt("a flushed write is missing")
                .with("slot", slot)
                .with("wanted", wanted)
                .with("found", found));
        }
    }
    let report = engine.check()?;
    if !report.is_clean() {
        return Err(
            Error::corrupt("the store does not check clean").with("finding", report.findings.join("; "))
        );
    }
    engine.close()?;
    let recovery = engine.recovery();
    Ok(format!("{} batches replayed, {} bytes given up", recovery.batches, recovery.dropped_bytes))
}
