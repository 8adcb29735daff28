//! Crashes at chosen moments of random workloads.
//!
//! A run plays a workload on the engine over a simulated disk. At chosen disk operations it takes images of what a crash
//! there would leave: un-synced sectors kept in arbitrary subsets. Each image is opened and must show the state after some
//! prefix of the operations that holds everything flushed; it must check clean, take writes, and open again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ferry_core::checksum::crc32c_of_two;
use ferry_core::testing::{MemStore, TestRng, test_env};
use ferry_core::{Namespace, ObjectId, PoolId, SnapId, Store, WriteOp};
use ferry_engine::disk::Disk;
use ferry_engine::disk::sim::{Operation, SimDisk};
use ferry_engine::{Engine, Options};

use crate::workload::{Moment, Step, Workload, digest, perform};

/// Result of the runs so far.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Workloads played.
    pub workloads: u64,
    /// Distinct (seed, operation, subset) opened.
    pub images: u64,
    /// How many fell into each moment: into the step that was running, or had un-synced work of it to lose.
    pub moments: BTreeMap<Moment, u64>,
    /// Segments the cleaner emptied.
    pub cleaned_segments: u64,
    /// Segments that were free again before a checkpoint.
    pub freed_segments: u64,
    /// Images whose recovery found segments that were freed by records and used again.
    pub reused: u64,
    /// Images whose recovery replayed a tail, and those that gave up something un-flushed.
    pub replayed: u64,
    /// See `replayed`.
    pub dropped: u64,
    /// Digest over every image's outcome: the same seeds give the same number.
    pub digest: u32,
}

/// How a run is made.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Operations of a workload.
    pub steps: u64,
    /// Images of a workload, about.
    pub images: u64,
}

/// A state the store may have after a crash.
#[derive(Clone, Debug)]
struct Expected {
    digest: u32,
    snaps: Vec<SnapId>,
}

/// The store's shape for a seed: small segments, a capacity that makes the cleaner work.
fn options(seed: u64) -> Options {
    let shape = usize::try_from(seed % 3).expect("small");
    let segment_blocks = [64, 128, 256][shape];
    let segments = if (seed / 3).is_multiple_of(2) { [28, 20, 14] } else { [20, 14, 11] };
    let capacity_bytes = u64::from(segment_blocks) * 4096 * segments[shape];
    // A small cache, so that what leaves it is written back and read again.
    Options { segment_blocks, capacity_bytes, cache_bytes: 64 << 10 }
}

/// A store and the model, each with a pool.
struct Begun {
    disk: Arc<SimDisk>,
    store: Arc<Engine>,
    model: Arc<MemStore>,
    pool: PoolId,
}

fn begin(seed: u64) -> Result<Begun, String> {
    let disk = Arc::new(SimDisk::new(seed));
    let env = test_env(seed);
    let fail = |what: &str, e: ferry_core::Error| format!("seed {seed}: {what}: {}", e.chain());
    let store = Engine::create(Arc::clone(&disk) as Arc<dyn Disk>, env, options(seed))
        .map_err(|e| fail("create", e))?;
    let model = MemStore::new(&test_env(seed));
    let pool = store.create_pool("p").wait().map_err(|e| fail("create a pool", e))?;
    let model_pool = model.create_pool("p").wait().map_err(|e| fail("create a pool", e))?;
    if pool != model_pool {
        return Err(format!("seed {seed}: pool {pool}, the model's {model_pool}"));
    }
    store.flush().wait().map_err(|e| fail("flush", e))?;
    Ok(Begun { disk, store, model, pool })
}

/// Plays the workload of `seed` and adds what it showed to `outcome`.
///
/// # Errors
/// A description of what went wrong, with the seed.
pub fn run(seed: u64, plan: Plan, outcome: &mut Outcome) -> Result<(), String> {
    let fail = |what: &str, e: ferry_core::Error| format!("seed {seed}: {what}: {}", e.chain());
    let Begun { disk, store, model, pool } = begin(seed)?;
    let mut workload = Workload::new(seed, pool);
    let rng = TestRng::new(seed ^ 0x5EED);
    // About one image in so many disk operations, twice as many around syncs; a step makes about one and a half.
    let every = (plan.steps / plan.images.max(1)).max(1);
    let mut states = vec![expect(&*model, pool, &workload, seed)?];
    let mut flushed = 0;
    let mut unsynced: BTreeSet<Moment> = BTreeSet::new();
    // Segments that records had freed when the last checkpoint was done.
    let mut freed_before = 0;
    for _ in 0..plan.steps {
        let step = workload.next_step();
        perform(&*model, &workload, &step).map_err(|e| fail("the model", e))?;
        states.push(expect(&*model, pool, &workload, seed)?);
        let before = store.statistics();
        disk.take_images(every, rng.below(u64::MAX));
        let performed = perform(&*store, &workload, &step).and_then(|()| maintain(&store, &step, &rng));
        performed.map_err(|e| fail(&format!("{step:?}"), e))?;
        let after = store.statistics();
        if step.moment() != Moment::Clean || after.cleaner_bytes > before.cleaner_bytes {
            unsynced.insert(step.moment());
        }
        outcome.freed_segments += after.freed_segments - before.freed_segments;
        if after.checkpoints > before.checkpoints {
            freed_before = after.freed_segments;
        }
        outcome.cleaned_segments += after.cleaned_segments - before.cleaned_segments;
        for (operation, image) in disk.taken_images() {
            let mut moments = unsynced.clone();
            if before.checkpoint_running || after.checkpoint_running {
                moments.insert(Moment::Checkpoint);
            }
            if after.freed_segments > freed_before {
                moments.insert(Moment::Freed);
            }
            match operation {
                Operation::OpenSegment => drop(moments.insert(Moment::SegmentRoll)),
                Operation::Superblock => drop(moments.insert(Moment::Checkpoint)),
                Operation::Other => {}
            }
            let label = format!("seed {seed}: crash in step {} ({moments:?})", states.len() - 1);
            verify(&label, image, seed, pool, &states[flushed..], outcome)?;
            for moment in moments {
                *outcome.moments.entry(moment).or_default() += 1;
            }
        }
        if rng.one_in(16) {
            let killed = Killed { disk: disk.copy(), after: states.len() - 1, subset: rng.below(u64::MAX) };
            cut_recovery(killed, seed, pool, &states[flushed..], outcome)?;
        }
        if matches!(step, Step::Flush | Step::Checkpoint) {
            flushed = states.len() - 1;
            unsynced.clear();
        }
        let seen = digest(&*store, pool, workload.snaps()).map_err(|e| fail(&format!("{step:?}"), e))?;
        if seen != states[states.len() - 1].digest {
            return Err(format!("seed {seed}: step {}: {step:?}: differs from the model", states.len() - 1));
        }
    }
    let report = store.check().map_err(|e| fail("check", e))?;
    if !report.is_clean() {
        return Err(format!("seed {seed}: the live store does not check clean: {:?}", report.findings));
    }
    outcome.workloads += 1;
    Ok(())
}

/// A store whose process was killed.
struct Killed {
    disk: SimDisk,
    /// The step it was killed after.
    after: usize,
    /// Decides where its recovery is cut off, and what is lost.
    subset: u64,
}

/// Opens what a killed process left, which is all there and not all durable, and cuts the power while it is opened.
fn cut_recovery(
    killed: Killed,
    seed: u64,
    pool: PoolId,
    states: &[Expected],
    outcome: &mut Outcome,
) -> Result<(), String> {
    let disk = Arc::new(killed.disk);
    disk.take_images(8, killed.subset);
    let label = format!("seed {seed}: killed after step {}", killed.after);
    let opened = Engine::open(Arc::clone(&disk) as Arc<dyn Disk>, test_env(seed), options(seed));
    drop(opened.map_err(|e| format!("{label}: open: {}", e.chain()))?);
    for (_, image) in disk.taken_images() {
        verify(&format!("{label}, power cut in its recovery"), image, seed, pool, states, outcome)?;
        *outcome.moments.entry(Moment::Recovery).or_default() += 1;
    }
    Ok(())
}

/// What a step asks of the engine beyond the contract.
fn maintain(store: &Engine, step: &Step, rng: &TestRng) -> ferry_core::Result<()> {
    match step {
        Step::Checkpoint => store.checkpoint(),
        Step::BeginCheckpoint => store.begin_checkpoint().map(drop),
        Step::Tend => {
            if !store.maintain()? {
                // Emptying one now and then, needed or not, lets records free segments between checkpoints.
                if rng.one_in(2) {
                    store.tidy()?
                } else {
                    store.clean_one()?
                };
            }
            Ok(())
        }
        Step::Maintain => {
            while store.maintain()? {}
            for _ in 0..2 {
                store.clean_one()?;
            }
            if rng.one_in(3) {
                store.defragment()?;
            }
            Ok(())
        }
        Step::Write(..) | Step::TakeSnap(_) | Step::DropSnap(_) | Step::Flush => Ok(()),
    }
}

fn expect(model: &dyn Store, pool: PoolId, workload: &Workload, seed: u64) -> Result<Expected, String> {
    let digest = digest(model, pool, workload.snaps())
        .map_err(|e| format!("seed {seed}: the model: {}", e.chain()))?;
    Ok(Expected { digest, snaps: workload.snaps().to_vec() })
}

/// Opens what a crash left and looks for the state it shows.
fn verify(
    label: &str,
    image: SimDisk,
    seed: u64,
    pool: PoolId,
    states: &[Expected],
    outcome: &mut Outcome,
) -> Result<(), String> {
    let image = Arc::new(image);
    let fail = |what: &str, e: ferry_core::Error| format!("{label}: {what}: {}", e.chain());
    let open = || Engine::open(Arc::clone(&image) as Arc<dyn Disk>, test_env(seed), options(seed));
    let store = open().map_err(|e| fail("open", e))?;
    let recovery = store.recovery();
    let shown = find_state(&*store, pool, states, label)?;
    let report = store.check().map_err(|e| fail("check", e))?;
    if !report.is_clean() {
        return Err(format!("{label}: does not check clean: {:?}", report.findings));
    }
    let probe = ObjectId::new(pool, &Namespace::default(), "probe");
    store.write(&probe, WriteOp::new().write(0, vec![1; 5000])).wait().map_err(|e| fail("write", e))?;
    store.flush().wait().map_err(|e| fail("flush", e))?;
    drop(store);
    let again = open().map_err(|e| fail("open again", e))?;
    if find_state(&*again, pool, &states[shown..=shown], label)? != 0 {
        return Err(format!("{label}: another state after opening again"));
    }
    outcome.images += 1;
    outcome.reused += u64::from(recovery.reused_segments > 0);
    outcome.replayed += u64::from(recovery.batches > 0);
    outcome.dropped += u64::from(recovery.dropped_bytes > 0);
    let line = [seed.to_le_bytes(), (shown as u64).to_le_bytes(), recovery.bytes.to_le_bytes()].concat();
    outcome.digest = crc32c_of_two(&outcome.digest.to_le_bytes(), &line);
    Ok(())
}

/// Which of `states` a store shows; the latest where several are alike.
fn find_state(store: &dyn Store, pool: PoolId, states: &[Expected], label: &str) -> Result<usize, String> {
    for (i, state) in states.iter().enumerate().rev() {
        match digest(store, pool, &state.snaps) {
            Ok(sum) if sum == state.digest => return Ok(i),
            Ok(_) => {}
            Err(e) => return Err(format!("{label}: read: {}", e.chain())),
        }
    }
    Err(format!("{label}: none of the {} states it may show", states.len()))
}
