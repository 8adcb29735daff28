//! Random operations on a few objects with snapshots, played on a store and on the model at once.

use std::sync::Arc;

use bytes::Bytes;
use ferry_core::checksum::crc32c_of_two;
use ferry_core::testing::TestRng;
use ferry_core::{
    Effect, Error, Namespace, ObjectId, PoolId, ReadOp, Result, SnapContext, SnapId, Store, WriteOp,
};

/// Objects the operations play on.
const OBJECTS: [&str; 5] = ["rbd_data.1.0", "rbd_data.1.1", "rbd_data.1.2", "rbd_data.2.0", "rbd_header.1"];

/// Bytes an object grows to at the most.
const OBJECT_BYTES: u64 = 160 << 10;

/// One operation.
#[derive(Clone, Debug)]
pub enum Step {
    /// A compound write.
    Write(&'static str, WriteOp),
    /// A snapshot is taken; the number is the one it must get.
    TakeSnap(SnapId),
    /// A snapshot is released.
    DropSnap(SnapId),
    /// Everything so far becomes durable.
    Flush,
    /// A checkpoint is made.
    Checkpoint,
    /// A checkpoint is begun, for later steps to go on with.
    BeginCheckpoint,
    /// A little of what can wait is done: a piece of a checkpoint, a step of the cleaner.
    Tend,
    /// The cleaner and the trimmer work until they have nothing to do.
    Maintain,
}

/// What kind of moment a crash fell into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// A client's write.
    Write,
    /// A range shared between objects.
    Share,
    /// The deletion of a snapshot.
    SnapDelete,
    /// A flush.
    Flush,
    /// A checkpoint.
    Checkpoint,
    /// Cleaning.
    Clean,
    /// The opening of a new segment.
    SegmentRoll,
    /// The time from when a record freed segments until a checkpoint does.
    Freed,
    /// The opening of a store whose process was killed: what it had written is there, and not durable.
    Recovery,
}

impl Step {
    /// The moment a crash inside it counts for.
    #[must_use]
    pub fn moment(&self) -> Moment {
        match self {
            Self::Write(_, op) if op.effects.iter().any(|e| matches!(e, Effect::ShareRange { .. })) => {
                Moment::Share
            }
            Self::Write(..) | Self::TakeSnap(_) => Moment::Write,
            Self::DropSnap(_) => Moment::SnapDelete,
            Self::Flush => Moment::Flush,
            Self::Checkpoint | Self::BeginCheckpoint => Moment::Checkpoint,
            Self::Tend | Self::Maintain => Moment::Clean,
        }
    }
}

/// Makes operations from a seed.
#[derive(Debug)]
pub struct Workload {
    rng: TestRng,
    snaps: Vec<SnapId>,
    next_snap: u64,
    pool: PoolId,
    flush_each: u64,
    /// One in so many checkpoints asked for is made: where it is more than one, what is left to the log grows longer.
    checkpoint_each: u64,
}

impl Workload {
    /// The operations of `seed`, for the first pool of a store.
    #[must_use]
    pub fn new(seed: u64, pool: PoolId) -> Self {
        let rng = TestRng::new(seed);
        let flush_each = [3, 8, 30][usize::try_from(rng.below(3)).expect("small")];
        let checkpoint_each = [1, 20][usize::try_from(rng.below(2)).expect("small")];
        Self { rng, snaps: Vec::new(), next_snap: 1, pool, flush_each, checkpoint_each }
    }

    /// Snapshots that exist now, newest first.
    #[must_use]
    pub fn snaps(&self) -> &[SnapId] {
        &self.snaps
    }

    /// The next operation.
    pub fn next_step(&mut self) -> Step {
        let rng = &self.rng;
        if rng.one_in(self.flush_each) {
            return Step::Flush;
        }
        match rng.below(40) {
            0 | 1 if self.snaps.len() < 5 => {
                let snap = SnapId(self.next_snap);
                self.next_snap += 1;
                self.snaps.insert(0, snap);
                Step::TakeSnap(snap)
            }
            2 | 3 if !self.snaps.is_empty() => {
                let i = usize::try_from(rng.below(self.snaps.len() as u64)).expect("few");
                Step::DropSnap(self.snaps.remove(i))
            }
            4 | 7 if !rng.one_in(self.checkpoint_each) => Step::Tend,
            4 => Step::Checkpoint,
            7 => Step::BeginCheckpoint,
            8..=11 => Step::Tend,
            5 | 6 => Step::Maintain,
            _ => self.write(),
        }
    }

    fn write(&self) -> Step {
        let rng = &self.rng;
        let name = OBJECTS[usize::try_from(rng.below(5)).expect("small")];
        let seq = self.next_snap - 1;
        let context = SnapContext { seq, snaps: Arc::from(self.snaps.as_slice()) };
        let mut op = WriteOp::new().under(context);
        let aligned = |n: u64| if rng.one_in(3) { n } else { n / 4096 * 4096 };
        let offset = aligned(rng.below(OBJECT_BYTES / 2));
        let length = aligned(1 + rng.below(OBJECT_BYTES / 4)).max(1);
        op = match rng.below(16) {
            0 => op.effect(Effect::Zero { offset, length }),
            1 => op.effect(Effect::Truncate(aligned(rng.below(OBJECT_BYTES)))),
            2 => op.effect(Effect::Create).effect(Effect::Remove),
            3 | 4 => op.omap_set(key(rng), value(rng)),
            5 => op.effect(Effect::Create).omap_remove(key(rng)),
            6 => op.effect(Effect::WriteFull(self.bytes(length))),
            7 | 8 => self.share(op, name),
            _ => op.write(offset, self.bytes(length)).omap_set(key(rng), value(rng)),
        };
        Step::Write(name, op)
    }

    fn share(&self, op: WriteOp, name: &str) -> WriteOp {
        let rng = &self.rng;
        let others: Vec<&str> = OBJECTS.iter().copied().filter(|o| *o != name).collect();
        let source = others[usize::try_from(rng.below(others.len() as u64)).expect("few")];
        let at = match self.snaps.first() {
            Some(snap) if rng.one_in(2) => *snap,
            _ => SnapId::HEAD,
        };
        op.effect(Effect::Create).effect(Effect::ShareRange {
            source: self.id(source),
            at,
            offset: rng.below(10) * 4096,
            length: (1 + rng.below(20)) * 4096,
            target_offset: rng.below(10) * 4096,
        })
    }

    fn bytes(&self, length: u64) -> Bytes {
        let mut bytes = vec![0; usize::try_from(length).expect("small")];
        for word in bytes.chunks_mut(512) {
            let n = self.rng.below(256);
            word.fill(u8::try_from(n).expect("a byte"));
        }
        Bytes::from(bytes)
    }

    /// The object called `name`.
    #[must_use]
    pub fn id(&self, name: &str) -> ObjectId {
        ObjectId::new(self.pool, &Namespace::default(), name)
    }
}

fn key(rng: &TestRng) -> Bytes {
    let mut key = vec![u8::try_from(rng.below(4)).expect("small")];
    key.extend_from_slice(format!("key {}", rng.below(12)).as_bytes());
    Bytes::from(key)
}

fn value(rng: &TestRng) -> Bytes {
    let length = if rng.one_in(6) { rng.below(3000) } else { rng.below(60) };
    Bytes::from(vec![u8::try_from(rng.below(256)).expect("a byte"); usize::try_from(length).expect("small")])
}

/// Performs a step on a store. What a store refuses for good reasons (nothing to share from) is no failure.
///
/// # Errors
/// Those of the store.
pub fn perform(store: &dyn Store, workload: &Workload, step: &Step) -> Result<()> {
    match step {
        Step::Write(name, op) => match store.write(&workload.id(name), op.clone()).wait() {
            Err(e) if e.kind() == ferry_core::ErrorKind::NotFound => Ok(()),
            done => done.map(drop),
        },
        Step::TakeSnap(snap) => {
            let given = store.allocate_snap(workload.pool).wait()?;
            if given == *snap {
                Ok(())
            } else {
                Err(Error::corrupt("a snapshot id was given out of order").with("given", given))
            }
        }
        Step::DropSnap(snap) => store.release_snap(workload.pool, *snap).wait(),
        Step::Flush => store.flush().wait(),
        Step::Checkpoint | Step::BeginCheckpoint | Step::Tend | Step::Maintain => Ok(()),
    }
}

/// Everything a client can see of the objects: at HEAD, and at the snapshots that exist.
///
/// # Errors
/// Those of the store; an object that does not exist is a fact, not an error.
pub fn digest(store: &dyn Store, pool: PoolId, snaps: &[SnapId]) -> Result<u32> {
    let mut sum = 0;
    let mut add = |bytes: &[u8]| sum = crc32c_of_two(&u32::to_le_bytes(sum), bytes);
    for name in OBJECTS {
        let id = ObjectId::new(pool, &Namespace::default(), name);
        for at in std::iter::once(&SnapId::HEAD).chain(snaps) {
            let op = if *at == SnapId::HEAD {
                ReadOp { data: Some((0, u64::MAX / 2)), ..ReadOp::omap_page("", "") }
            } else {
                ReadOp::data(0, u64::MAX / 2)
            };
            match store.read(&id, *at, op).wait() {
                Err(e) if e.kind() == ferry_core::ErrorKind::NotFound => add(b"none"),
                Err(e) => return Err(e.with("object", name).with("snapshot", at)),
                Ok(reply) => {
                    add(&reply.size.to_le_bytes());
                    add(&reply.data.to_vec(0, reply.size));
                    for (key, value) in &reply.omap.entries {
                        add(key);
                        add(value);
                    }
                }
            }
        }
    }
    Ok(sum)
}
