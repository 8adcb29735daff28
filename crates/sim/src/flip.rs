//! Single flipped bits in stores, closed ones and ones that stopped in the middle.
//!
//! A bit the superblock reaches must be detected: opening fails, or a check says so; and until then what is read is either
//! right or an error. A bit in a log's tail may cost only what no later batch says was durable.

use std::collections::BTreeMap;
use std::sync::Arc;

use ferry_core::testing::{MemStore, TestRng, test_env};
use ferry_core::{PoolId, SnapId, Store};
use ferry_engine::disk::sim::SimDisk;
use ferry_engine::disk::{Disk, FileId};
use ferry_engine::{Engine, Options, Reached};

use crate::workload::{Step, Workload, digest, perform};

/// Result of the runs so far.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Bits flipped in closed stores, by what they belong to.
    pub reached: BTreeMap<Reached, u64>,
    /// Bits flipped in the tails of stopped stores.
    pub tail: u64,
    /// Of those, how many opening refused.
    pub tail_refused: u64,
}

fn options() -> Options {
    Options { segment_blocks: 64, capacity_bytes: 0, cache_bytes: 64 << 10 }
}

/// So little room that segments are used again all the time.
fn tight() -> Options {
    Options { segment_blocks: 64, capacity_bytes: 64 * 4096 * 20, cache_bytes: 64 << 10 }
}

struct Played {
    disk: Arc<SimDisk>,
    store: Arc<Engine>,
    pool: PoolId,
    /// Digest and snapshots after each step.
    states: Vec<(u32, Vec<SnapId>)>,
    /// States at the last flush and the one before it.
    flushed: (usize, usize),
}

/// Plays a workload: `steps` operations, or fewer where `is_enough` of what a flush left.
fn play(
    seed: u64,
    steps: u64,
    options: Options,
    is_enough: impl Fn(&SimDisk) -> bool,
) -> Result<Played, String> {
    let fail = |e: ferry_core::Error| format!("seed {seed}: {}", e.chain());
    let disk = Arc::new(SimDisk::new(seed));
    let store = Engine::create(Arc::clone(&disk) as Arc<dyn Disk>, test_env(seed), options).map_err(fail)?;
    let model = MemStore::new(&test_env(seed));
    let pool = store.create_pool("p").wait().map_err(fail)?;
    model.create_pool("p").wait().map_err(fail)?;
    store.flush().wait().map_err(fail)?;
    let mut workload = Workload::new(seed, pool);
    let mut states = vec![(digest(&*model, pool, &[]).map_err(fail)?, Vec::new())];
    let mut flushed = (0, 0);
    let mut log_bytes = 0;
    for _ in 0..steps {
        let step = workload.next_step();
        perform(&*model, &workload, &step).map_err(fail)?;
        perform(&*store, &workload, &step).map_err(fail)?;
        states.push((digest(&*model, pool, workload.snaps()).map_err(fail)?, workload.snaps().to_vec()));
        if matches!(step, Step::Flush) {
            // A flush with nothing new to write has no batch of its own to be lost, nor to say anything.
            let written = store.statistics().log_bytes;
            flushed = (states.len() - 1, if written > log_bytes { flushed.0 } else { flushed.1 });
            log_bytes = written;
            if is_enough(&disk) {
                break;
            }
        }
        match step {
            Step::Maintain => store.clean_one().map(drop).map_err(fail)?,
            Step::BeginCheckpoint => store.begin_checkpoint().map(drop).map_err(fail)?,
            Step::Tend => {
                if !store.maintain().map_err(fail)? {
                    store.tidy().map_err(fail)?;
                }
            }
            Step::Write(..) | Step::TakeSnap(_) | Step::DropSnap(_) | Step::Flush | Step::Checkpoint => {}
        }
    }
    Ok(Played { disk, store, pool, states, flushed })
}

/// Flips `count` bits, one at a time, in what the superblock of a closed store reaches.
///
/// # Errors
/// A description of what went wrong, with the seed.
pub fn closed(seed: u64, count: u64, outcome: &mut Outcome) -> Result<(), String> {
    let fail = |e: ferry_core::Error| format!("seed {seed}: {}", e.chain());
    let played = play(seed, 150, options(), |_| false)?;
    played.store.close().map_err(fail)?;
    let mut ranges = played.store.reached().map_err(fail)?;
    ranges.sort_unstable();
    let kinds: Vec<Reached> =
        ranges.iter().map(|r| r.3).collect::<std::collections::BTreeSet<_>>().into_iter().collect();
    let rng = TestRng::new(seed);
    let (right, snaps) = played.states.last().cloned().unwrap_or_default();
    for n in 0..count {
        // Every kind in turn: most bytes are data.
        let kind = kinds[usize::try_from(n).expect("small") % kinds.len()];
        let of_kind: Vec<_> = ranges.iter().filter(|r| r.3 == kind).collect();
        let (file, offset, length, _) =
            of_kind[usize::try_from(rng.below(of_kind.len() as u64)).expect("small")];
        let at = offset + rng.below(*length);
        let bit = u32::try_from(rng.below(8)).expect("small");
        let disk = Arc::new(played.disk.copy());
        disk.flip(*file, at, bit);
        let label = format!("seed {seed}: bit {bit} of byte {at} of {file:?} ({kind:?})");
        *outcome.reached.entry(kind).or_default() += 1;
        let Ok(store) = Engine::open_read_only(disk, test_env(seed), options()) else { continue };
        if let Ok(seen) = digest(&*store, played.pool, &snaps)
            && seen != right
        {
            return Err(format!("{label}: wrong data"));
        }
        if store.check().is_ok_and(|r| r.is_clean()) {
            return Err(format!("{label}: not detected"));
        }
    }
    Ok(())
}

/// Flips `count` bits in the log's tail of a store that was not closed.
///
/// # Errors
/// A description of what went wrong, with the seed.
pub fn stopped(seed: u64, count: u64, outcome: &mut Outcome) -> Result<(), String> {
    let played = play(seed, 60, options(), |_| false)?;
    let rng = TestRng::new(seed);
    let files: Vec<(FileId, u64)> =
        played.disk.files().into_iter().filter(|(f, _)| matches!(f, FileId::Segment(_))).collect();
    for _ in 0..count {
        let (file, length) = files[usize::try_from(rng.below(files.len() as u64)).expect("small")];
        flip_in_tail(&played, seed, options(), (file, rng.below(length), &rng), outcome)?;
    }
    Ok(())
}

/// Flips a bit in the header of every batch and segment, one at a time, of a store that was stopped when it had used segments again that
/// a record had freed: such a header may be all that leads to what was written later. `false` where the workload of `seed` comes to no such moment.
///
/// # Errors
/// A description of what went wrong, with the seed.
pub fn reused(seed: u64, outcome: &mut Outcome) -> Result<bool, String> {
    let reused = |disk: &SimDisk| {
        let opened = Engine::open_read_only(Arc::new(disk.copy()), test_env(seed), tight());
        opened.is_ok_and(|store| store.recovery().reused_segments > 0)
    };
    let played = play(seed, 1000, tight(), reused)?;
    if !reused(&played.disk) {
        return Ok(false);
    }
    let rng = TestRng::new(seed);
    let reached = played.store.reached().map_err(|e| format!("seed {seed}: {}", e.chain()))?;
    let is_header = |kind: Reached| matches!(kind, Reached::SegmentHeader | Reached::BatchHeader);
    for (file, offset, length, _) in reached.into_iter().filter(|r| is_header(r.3)) {
        let at = offset + rng.below(length.min(64));
        flip_in_tail(&played, seed, tight(), (file, at, &rng), outcome)?;
    }
    Ok(true)
}

/// Flips a bit of the byte `at` of a file and looks at what opening the store shows then.
fn flip_in_tail(
    played: &Played,
    seed: u64,
    options: Options,
    (file, at, rng): (FileId, u64, &TestRng),
    outcome: &mut Outcome,
) -> Result<(), String> {
    let bit = u32::try_from(rng.below(8)).expect("small");
    let disk = Arc::new(played.disk.copy());
    disk.flip(file, at, bit);
    outcome.tail += 1;
    let Ok(store) = Engine::open(disk, test_env(seed), options) else {
        outcome.tail_refused += 1;
        return Ok(());
    };
    let label = format!("seed {seed}: bit {bit} of byte {at} of {file:?} in the tail");
    let mut shown = None;
    for (i, (right, snaps)) in played.states.iter().enumerate().rev() {
        match digest(&*store, played.pool, snaps) {
            Ok(seen) if seen == *right => {
                shown = Some(i);
                break;
            }
            Ok(_) => {}
            // Damaged data is an error to whoever reads it.
            Err(_) => shown = Some(usize::MAX),
        }
    }
    // Every batch written after a flush says what that flush made durable; only the last flush has none behind it.
    let wanted = played.flushed.1;
    match shown {
        None => Err(format!("{label}: a state that never was")),
        Some(i) if i < wanted => Err(format!("{label}: state {i}, but {wanted} was durable")),
        Some(_) => Ok(()),
    }
}
