//! The engine beside plain files.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ferry_core::{Effect, Namespace, ObjectId, PoolId, ReadOp, SnapContext, SnapId, Store, WriteOp};
use ferry_engine::disk::FileDisk;
use ferry_engine::{Engine, Options};

use crate::measure::{Numbers, ROUNDS, Report, drop_caches, env, median, percentile, resident_bytes, timed};

type Done<T> = Result<T, String>;

const BLOCK: u64 = 4096;
const OBJECT: u64 = 4 << 20;
const GIB: u64 = 1 << 30;

#[expect(clippy::needless_pass_by_value, reason = "handed to map_err")]
fn text(e: ferry_core::Error) -> String {
    e.chain()
}

/// A store with one pool, written to as an image of 4 MiB objects would be.
struct Place {
    engine: Arc<Engine>,
    pool: PoolId,
}

impl Place {
    fn create(directory: &Path, options: Options) -> Done<Self> {
        if directory.exists() {
            std::fs::remove_dir_all(directory).map_err(|e| e.to_string())?;
        }
        let disk = FileDisk::create(directory).map_err(text)?;
        let engine = Engine::create(Arc::new(disk), env(), options).map_err(text)?;
        let pool = engine.create_pool("bench").wait().map_err(text)?;
        Ok(Self { engine, pool })
    }

    fn open(directory: &Path, options: Options) -> Done<Self> {
        let disk = FileDisk::open(directory).map_err(text)?;
        let engine = Engine::open(Arc::new(disk), env(), options).map_err(text)?;
        Ok(Self { engine, pool: PoolId(1) })
    }

    fn object(&self, n: u64) -> ObjectId {
        ObjectId::new(self.pool, &Namespace::default(), &format!("rbd_data.1.{n:016x}"))
    }

    fn write(&self, offset: u64, data: Bytes) -> Done<()> {
        let op = WriteOp::new().write(offset % OBJECT, data);
        self.engine.write(&self.object(offset / OBJECT), op).wait().map(drop).map_err(text)
    }

    fn read(&self, offset: u64, length: u64) -> Done<u64> {
        let op = ReadOp::data(offset % OBJECT, length);
        let reply = self.engine.read(&self.object(offset / OBJECT), SnapId::HEAD, op).wait().map_err(text)?;
        Ok(reply.data.extents.iter().map(|e| e.1.len() as u64).sum())
    }

    fn flush(&self) -> Done<()> {
        self.engine.sync().map_err(text)
    }

    fn fill(&self, bytes: u64, piece: u64) -> Done<()> {
        let data = noise(piece);
        for offset in (0..bytes).step_by(usize::try_from(piece).unwrap_or(usize::MAX)) {
            self.write(offset, data.clone())?;
        }
        self.flush()
    }

    /// Overwrites every 4 KiB block once, in random order.
    fn shuffle(&self, bytes: u64) -> Done<()> {
        let data = noise(BLOCK);
        for block in shuffled(bytes / BLOCK) {
            self.write(block * BLOCK, data.clone())?;
        }
        self.flush()
    }
}

fn noise(bytes: u64) -> Bytes {
    let rng = Numbers::new(3);
    let words = (0..bytes.div_ceil(8)).flat_map(|_| rng.below(u64::MAX).to_le_bytes());
    Bytes::from(words.take(usize::try_from(bytes).unwrap_or(0)).collect::<Vec<u8>>())
}

fn shuffled(n: u64) -> Vec<u64> {
    let rng = Numbers::new(11);
    let mut order: Vec<u64> = (0..n).collect();
    for i in (1..order.len()).rev() {
        let j = usize::try_from(rng.below(i as u64 + 1)).unwrap_or(0);
        order.swap(i, j);
    }
    order
}

fn plain_file(path: &Path, bytes: u64) -> Done<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(|e| e.to_string())?;
    let data = noise(4 << 20);
    for offset in (0..bytes).step_by(4 << 20) {
        file.write_all_at(&data, offset).map_err(|e| e.to_string())?;
    }
    file.sync_all().map_err(|e| e.to_string())?;
    Ok(file)
}

/// 4 KiB random writes with a flush after each, and after every 32; and what the disk alone would allow any log.
pub(crate) fn random_writes(directory: &Path, report: &mut Report) -> Done<()> {
    let place = Place::create(&directory.join("store"), Options::default())?;
    place.fill(GIB, OBJECT)?;
    let data = noise(BLOCK);
    for (every, count, bar) in [(32, 60_000_u32, 3.5), (1, 6_000, 1.2)] {
        let (mut ours, mut plain, mut alone, mut cpu) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            place.engine.checkpoint().map_err(text)?;
            place.engine.prepare(6).map_err(text)?;
            drop_caches();
            let rng = Numbers::new(round as u64);
            let ((), wall, used) = timed(|| {
                for n in 1..=count {
                    place.write(rng.below(GIB / BLOCK) * BLOCK, data.clone())?;
                    if n % every == 0 {
                        place.flush()?;
                    }
                }
                place.flush()
            })?;
            ours.push(f64::from(count) / wall);
            cpu.push(used / f64::from(count) * 1e6);
            let file = plain_file(&directory.join("plain"), GIB)?;
            drop_caches();
            let rng = Numbers::new(round as u64);
            let wall = file_writes(&file, (count, every), &data, || rng.below(GIB / BLOCK) * BLOCK)?;
            plain.push(f64::from(count) / wall);
            drop_caches();
            // The same blocks with one for a header, in order and at once.
            let batch = noise(BLOCK * u64::from(every + 1));
            let mut places = (0..GIB / batch.len() as u64).cycle().map(|n| n * batch.len() as u64);
            let wall = file_writes(&file, (count / every, 1), &batch, || places.next().unwrap_or(0))?;
            alone.push(f64::from(count) / wall);
        }
        let (ours, plain, alone, cpu) = (median(ours), median(plain), median(alone), median(cpu));
        report.line(format!(
            "4 KiB random writes, flush every {every}: {ours:.0}/s, plain file {plain:.0}/s: {:.2} x (at least {bar}); {cpu:.1} us CPU each; a log that did nothing but write could reach {:.2} x",
            ours / plain,
            alone / plain,
        ));
    }
    Ok(())
}

/// Writes `data` so many times where `place` says, and syncs every so many times; the seconds it took.
fn file_writes(
    file: &File,
    (count, every): (u32, u32),
    data: &[u8],
    mut place: impl FnMut() -> u64,
) -> Done<f64> {
    let ((), wall, _) = timed(|| {
        for n in 1..=count {
            file.write_all_at(data, place()).map_err(|e| e.to_string())?;
            if n % every == 0 {
                file.sync_data().map_err(|e| e.to_string())?;
            }
        }
        file.sync_data().map_err(|e| e.to_string())
    })?;
    Ok(wall)
}

/// 4 MiB sequential writes with one flush at the end.
pub(crate) fn sequential_writes(directory: &Path, report: &mut Report) -> Done<()> {
    let data = noise(OBJECT);
    let total = 2 * GIB;
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let place = Place::create(&directory.join("store"), Options::default())?;
        drop_caches();
        let ((), wall, _) = timed(|| place.fill(total, OBJECT))?;
        ours.push(total as f64 / wall);
        drop(place);
        std::fs::remove_dir_all(directory.join("store")).map_err(|e| e.to_string())?;
        let path = directory.join("plain");
        drop_caches();
        let ((), wall, _) = timed(|| {
            let file = File::create(&path).map_err(|e| e.to_string())?;
            for offset in (0..total).step_by(usize::try_from(OBJECT).unwrap_or(1)) {
                file.write_all_at(&data, offset).map_err(|e| e.to_string())?;
            }
            file.sync_data().map_err(|e| e.to_string())
        })?;
        plain.push(total as f64 / wall);
        std::fs::remove_file(&path).map_err(|e| e.to_string())?;
    }
    let (ours, plain) = (median(ours), median(plain));
    report.line(format!(
        "4 MiB sequential writes, one flush: {:.0} MB/s, plain file {:.0} MB/s: {:.2} x (at least 0.85)",
        ours / 1e6,
        plain / 1e6,
        ours / plain
    ));
    Ok(())
}

/// 1 MiB sequential reads of an image overwritten at random: cold; piece by piece; after cleaning; written in order.
pub(crate) fn fragmented_reads(directory: &Path, report: &mut Report) -> Done<()> {
    let total = GIB;
    let scan = |place: &Place, bytes: u64, piece: u64| -> Done<f64> {
        drop_caches();
        let ((), wall, _) = timed(|| {
            for offset in (0..bytes).step_by(usize::try_from(piece).unwrap_or(1)) {
                place.read(offset, piece)?;
            }
            Ok(())
        })?;
        Ok(bytes as f64 / wall)
    };
    let place = Place::create(&directory.join("store"), Options::default())?;
    place.fill(total, OBJECT)?;
    let mut ordered = Vec::new();
    for _ in 0..ROUNDS {
        ordered.push(scan(&place, total, 1 << 20)?);
    }
    place.shuffle(total)?;
    let (mut scattered, mut pieces) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        scattered.push(scan(&place, total / 2, 1 << 20)?);
        pieces.push(scan(&place, total / 32, BLOCK)?);
    }
    let (ordered, scattered, pieces) = (median(ordered), median(scattered), median(pieces));
    report.line(format!(
        "1 MiB reads, overwritten at random, cold: {:.0} MB/s, its 4 KiB pieces one at a time {:.0} MB/s: {:.1} x (at least 6)",
        scattered / 1e6,
        pieces / 1e6,
        scattered / pieces
    ));
    let ((), wall, _) = timed(|| {
        while place.engine.maintain().map_err(text)? || place.engine.tidy().map_err(text)? {}
        place.engine.defragment().map(drop).map_err(text)
    })?;
    let mut cleaned = Vec::new();
    for _ in 0..ROUNDS {
        cleaned.push(scan(&place, total, 1 << 20)?);
    }
    let cleaned = median(cleaned);
    report.line(format!(
        "1 MiB reads after {wall:.1} s of cleaning: {:.0} MB/s, written in order {:.0} MB/s: {:.2} x (at least 0.7)",
        cleaned / 1e6,
        ordered / 1e6,
        cleaned / ordered
    ));
    Ok(())
}

/// 4 KiB random reads from a warm cache, beside pread.
pub(crate) fn cached_reads(directory: &Path, report: &mut Report) -> Done<()> {
    let total = GIB / 2;
    let place = Place::create(&directory.join("store"), Options::default())?;
    place.fill(total, OBJECT)?;
    place.shuffle(total)?;
    let file = plain_file(&directory.join("plain"), total)?;
    let count = 400_000;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; 4096];
    for round in 0..=ROUNDS {
        let rng = Numbers::new(round as u64);
        let ((), _, cpu) = timed(|| {
            (0..count).try_for_each(|_| place.read(rng.below(total / BLOCK) * BLOCK, BLOCK).map(drop))
        })?;
        let ours_now = cpu / f64::from(count) * 1e6;
        let rng = Numbers::new(round as u64);
        let ((), _, cpu) = timed(|| {
            (0..count).try_for_each(|_| {
                file.read_exact_at(&mut buffer, rng.below(total / BLOCK) * BLOCK).map_err(|e| e.to_string())
            })
        })?;
        if round > 0 {
            ours.push(ours_now);
            bare.push(cpu / f64::from(count) * 1e6);
        }
    }
    let (ours, bare) = (median(ours), median(bare));
    report.line(format!(
        "4 KiB random reads, cached: {ours:.2} us CPU, pread {bare:.2} us: {:.2} us above (2 at most)",
        ours - bare
    ));
    Ok(())
}

/// A snapshot of an image with many extents beside one of an empty image: what the engine does, and with the sync of the disk.
pub(crate) fn snapshot(directory: &Path, report: &mut Report) -> Done<()> {
    let place = Place::create(&directory.join("store"), Options::default())?;
    // Nothing of anybody else's is left for the sync; the engine's part is taking the id and writing out the batch with it.
    let take = |engine_only: &mut Vec<f64>, durable: &mut Vec<f64>| -> Done<()> {
        for _ in 0..ROUNDS * 20 {
            let started = Instant::now();
            place.engine.allocate_snap(place.pool).wait().map_err(text)?;
            engine_only.push(started.elapsed().as_secs_f64() * 1e6);
            place.flush()?;
            durable.push(started.elapsed().as_secs_f64() * 1e6);
        }
        Ok(())
    };
    let (mut empty, mut empty_durable, mut full, mut full_durable) = (vec![], vec![], vec![], vec![]);
    take(&mut empty, &mut empty_durable)?;
    place.fill(GIB, OBJECT)?;
    place.shuffle(GIB)?;
    take(&mut full, &mut full_durable)?;
    let (empty, empty_durable) = (median(empty), median(empty_durable));
    let (full, full_durable) = (median(full), median(full_durable));
    report.line(format!(
        "snapshot id, engine time: {full:.1} us with {} extents, {empty:.1} us when empty: {:.2} x (2 at most, under 10 ms); durable: {full_durable:.0} us, {empty_durable:.0} us: {:.2} x",
        GIB / BLOCK,
        full / empty,
        full_durable / empty_durable,
    ));
    Ok(())
}

/// The first 4 KiB write into an object of a clone beside an overwrite.
pub(crate) fn first_write(directory: &Path, report: &mut Report) -> Done<()> {
    let place = Place::create(&directory.join("store"), Options::default())?;
    place.fill(GIB, OBJECT)?;
    let data = noise(BLOCK);
    let objects = GIB / OBJECT;
    let (mut first, mut again, mut copied) = (Vec::new(), Vec::new(), 0);
    for round in 0..ROUNDS as u64 {
        let child = |n: u64| place.object((round + 1) * 100_000 + n);
        let before = place.engine.statistics().log_bytes;
        let ((), wall, _) = timed(|| {
            for n in 0..objects {
                let share = Effect::ShareRange {
                    source: place.object(n),
                    at: SnapId::HEAD,
                    offset: 0,
                    length: OBJECT,
                    target_offset: 0,
                };
                let op = WriteOp::new()
                    .guard(ferry_core::Guard::CreateExclusive)
                    .effect(share)
                    .write(8 * BLOCK, data.clone());
                place.engine.write(&child(n), op).wait().map_err(text)?;
            }
            Ok(())
        })?;
        first.push(wall / objects as f64 * 1e6);
        place.flush()?;
        copied = place.engine.statistics().log_bytes - before;
        let ((), wall, _) = timed(|| {
            for n in 0..objects {
                place
                    .engine
                    .write(&child(n), WriteOp::new().write(8 * BLOCK, data.clone()))
                    .wait()
                    .map_err(text)?;
            }
            Ok(())
        })?;
        again.push(wall / objects as f64 * 1e6);
        place.flush()?;
    }
    let (first, again) = (median(first), median(again));
    report.line(format!(
        "first 4 KiB write into an object of a clone: {first:.1} us, overwrite {again:.1} us: {:.1} x (3 at most); {} bytes of log for {objects} of them",
        first / again, copied
    ));
    Ok(())
}

/// Opening a store whose log has a tail of 1 GiB.
pub(crate) fn recovery(directory: &Path, report: &mut Report) -> Done<()> {
    let path = directory.join("store");
    let mut costs = Vec::new();
    let mut found = ferry_engine::Recovery::default();
    for _ in 0..3 {
        let place = Place::create(&path, Options::default())?;
        place.fill(GIB, OBJECT)?;
        place.engine.checkpoint().map_err(text)?;
        let (rng, data) = (Numbers::new(1), noise(BLOCK));
        for n in 0..240_000 {
            place.write(rng.below(GIB / BLOCK) * BLOCK, data.clone())?;
            if n % 32 == 0 {
                // Batches as small as a busy guest makes them.
                place.flush()?;
            }
        }
        place.flush()?;
        drop(place);
        drop_caches();
        let (place, _, cpu) = timed(|| Place::open(&path, Options::default()))?;
        found = place.engine.recovery();
        costs.push(cpu);
    }
    report.line(format!(
        "recovery of a tail of {} MiB in {} batches: {:.2} s of CPU (3 at most)",
        found.bytes >> 20,
        found.batches,
        median(costs)
    ));
    Ok(())
}

/// Overwrites blocks at random, flushing every 32. Adds to `flushes` how long a write with a flush took, to `writes` one without;
/// microseconds.
fn overwrite(
    place: &Place,
    pick: &dyn Fn() -> u64,
    count: u64,
    every: u64,
    (writes, flushes): (&mut Vec<f64>, &mut Vec<f64>),
) -> Done<()> {
    let data = noise(BLOCK);
    for n in 1..=count {
        let started = Instant::now();
        place.write(pick() * BLOCK, data.clone())?;
        if n % every == 0 {
            place.flush()?;
            flushes.push(started.elapsed().as_secs_f64() * 1e6);
        } else {
            writes.push(started.elapsed().as_secs_f64() * 1e6);
        }
    }
    Ok(())
}

/// Runs `work` while another thread maintains the store, as the owner of one does.
fn maintained<T>(engine: &Engine, work: impl FnOnce() -> Done<T>) -> Done<T> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let keeper = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if !engine.maintain().map_err(text)? {
                    engine.wait_for_work(Duration::from_millis(100));
                }
            }
            Done::Ok(())
        });
        let done = work();
        stop.store(true, Ordering::Relaxed);
        let kept = keeper.join().map_err(|_| "the maintaining thread panicked".to_owned())?;
        kept.and(done)
    })
}

/// Write amplification and latency while the cleaner works in a store 70 % live, beside a store where there is nothing to clean.
pub(crate) fn cleaner(directory: &Path, report: &mut Report) -> Done<()> {
    let options = |capacity_bytes| Options { capacity_bytes, segment_blocks: 1024, ..Options::default() };
    // With the segments of 64 MiB it gets by itself, a store of 32 GiB has 512, one of 128 GiB has 2048. Some are kept free or open,
    // however many there are.
    for (name, skewed, batch, bar, segments) in [
        ("uniform", false, 32, 2.1, 512),
        ("uniform", false, 128, 2.1, 512),
        ("90/10", true, 32, 1.7, 512),
        ("uniform", false, 32, 2.1, 2048),
    ] {
        let capacity = segments * 1024 * BLOCK;
        let live = capacity / 10 * 7 / OBJECT * OBJECT;
        let blocks = live / BLOCK;
        let name = format!("{name}, batches of {batch}, {segments} segments");
        let rng = Numbers::new(5);
        let pick = || if skewed && rng.below(10) > 0 { rng.below(blocks / 10) } else { rng.below(blocks) };
        let (mut idle_writes, mut idle) = (Vec::new(), Vec::new());
        {
            let place = Place::create(&directory.join("idle"), options(0))?;
            place.fill(live, 1 << 20)?;
            place.engine.prepare(100).map_err(text)?;
            overwrite(&place, &pick, blocks / 4, batch, (&mut idle_writes, &mut idle))?;
        }
        std::fs::remove_dir_all(directory.join("idle")).map_err(|e| e.to_string())?;
        let place = Place::create(&directory.join("store"), options(capacity))?;
        place.fill(live, 1 << 20)?;
        let (mut writes, mut flushes) = (Vec::new(), Vec::new());
        let (before, after) = maintained(&place.engine, || {
            // Into the steady state first: three times the live data.
            overwrite(&place, &pick, blocks * 3, batch, (&mut writes, &mut flushes))?;
            writes.clear();
            flushes.clear();
            let before = place.engine.statistics();
            overwrite(&place, &pick, blocks, batch, (&mut writes, &mut flushes))?;
            Ok((before, place.engine.statistics()))
        })?;
        let client = (after.client_bytes - before.client_bytes) as f64;
        let log = (after.log_bytes - before.log_bytes) as f64;
        let checkpoints = (after.checkpoint_bytes - before.checkpoint_bytes) as f64;
        let cleaner = (after.cleaner_bytes - before.cleaner_bytes) as f64;
        report.line(format!(
            "cleaner, {name}: {:.2} x the client's bytes without checkpoints ({bar} at most; {:.2} x the cleaner's copies), checkpoints {:.2} x, {} of them",
            (log - checkpoints) / client,
            cleaner / client,
            checkpoints / client,
            after.checkpoints - before.checkpoints,
        ));
        let p = |v: &Vec<f64>, share| percentile(v.clone(), share);
        report.line(format!(
            "cleaner, {name}: flush p50 {:.0} us, p99 {:.0} us, idle {:.0} us, {:.0} us: p99 {:.1} x (5 at most); write p99 {:.1} us, p99.9 {:.0} us, idle {:.1} us, {:.0} us",
            p(&flushes, 0.5),
            p(&flushes, 0.99),
            p(&idle, 0.5),
            p(&idle, 0.99),
            p(&flushes, 0.99) / p(&idle, 0.99),
            p(&writes, 0.99),
            p(&writes, 0.999),
            p(&idle_writes, 0.99),
            p(&idle_writes, 0.999),
        ));
    }
    Ok(())
}

/// An image of 1 TiB with ten million extents: opening it and reading at random.
pub(crate) fn large_index(directory: &Path, report: &mut Report) -> Done<()> {
    let path = directory.join("store");
    let extents: u64 = 10_000_000;
    {
        let place = Place::create(&path, Options::default())?;
        place.fill(GIB, OBJECT)?;
        let objects = (1_u64 << 40) / OBJECT;
        let each = extents / objects;
        let rng = Numbers::new(2);
        let ((), wall, _) = timed(|| {
            for n in 0..objects {
                let mut op = WriteOp::new().under(SnapContext::default());
                for piece in 0..each {
                    op = op.effect(Effect::ShareRange {
                        source: place.object(rng.below(GIB / OBJECT)),
                        at: SnapId::HEAD,
                        offset: rng.below(OBJECT / BLOCK - 4) * BLOCK,
                        length: 4 * BLOCK,
                        target_offset: piece * (OBJECT / each / BLOCK * BLOCK),
                    });
                }
                place.engine.write(&place.object(1_000_000 + n), op).wait().map_err(text)?;
            }
            place.engine.close().map_err(text)
        })?;
        report.line(format!("making {} extents by range copies: {wall:.1} s", objects * each));
    }
    drop_caches();
    let before = resident_bytes();
    let (place, wall, _) = timed(|| Place::open(&path, Options::default()))?;
    let rng = Numbers::new(9);
    for _ in 0..200_000 {
        let offset = rng.below((1 << 40) / BLOCK) * BLOCK;
        place.read(1_000_000 * OBJECT + offset, BLOCK)?;
    }
    report.line(format!(
        "1 TiB, ten million extents: opens in {wall:.3} s (under 1), {} MiB resident after 200,000 random reads (under 256; {} before)",
        resident_bytes() >> 20,
        before >> 20
    ));
    Ok(())
}
