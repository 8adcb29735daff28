//! Random operations on a store and on the one in memory, compared after each.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::snapshots::set_agrees_with_reads;
use super::{BLOCK, Place, Sight, done};
use crate::error::{Errno, ErrorKind, Result};
use crate::ident::{Namespace, SnapId};
use crate::store::{Effect, Guard, SnapContext, Store, WriteOp};
use crate::testing::{MemStore, TestRng, test_env};

/// Objects with data and snapshots.
const DATA: [&str; 4] = ["data.0", "data.1", "data.2", "data.3"];
/// Objects with metadata, never under a context.
const HEADERS: [&str; 2] = ["header.0", "header.1"];
/// Snapshots that exist at once, at most.
const SNAPS_MAX: usize = 5;
/// Data lies below this.
const SIZE_MAX: u64 = 24 * BLOCK;

/// The two sides and what both know.
struct Pair {
    rng: TestRng,
    ours: Place,
    model: Place,
    /// Existing snapshots, oldest first: `(ours, the model's)`.
    snaps: Vec<(SnapId, SnapId)>,
    /// Highest ids given out.
    seq: (u64, u64),
}

/// Compares a store with [`MemStore`] over `steps` random operations determined by `seed`.
///
/// # Panics
/// At the first difference, naming the seed and the step.
pub fn differential(place: &Place, seed: u64, steps: usize) {
    let model = MemStore::with_capabilities(&test_env(seed), place.store.capabilities());
    let pool = done(model.create_pool("model").wait());
    let model: Arc<dyn Store> = model;
    let model = Place { store: model, pool, namespace: Namespace::default() };
    let (rng, ours) = (TestRng::new(seed), place.clone());
    let mut pair = Pair { rng, ours, model, snaps: Vec::new(), seq: (0, 0) };
    for step in 0..steps {
        let what = pair.step();
        pair.compare(&format!("seed {seed}, step {step}: {what}"), step % 16 == 15 || step + 1 == steps);
    }
}

/// What an outcome has in common on both sides.
fn outcome<T>(result: &Result<T>) -> Option<(ErrorKind, Errno)> {
    result.as_ref().err().map(|e| (e.kind(), e.errno()))
}

impl Pair {
    /// Does something at random on both sides; a text saying what.
    fn step(&mut self) -> String {
        match self.rng.below(20) {
            0 | 1 => self.take_snap(),
            2 => self.release_snap(),
            3 => self.roll_back(),
            4..=7 => self.write_header(),
            _ => self.write_data(),
        }
    }

    fn take_snap(&mut self) -> String {
        if self.snaps.len() == SNAPS_MAX {
            return self.release_snap();
        }
        let (a, b) = (self.ours.snap(), self.model.snap());
        assert!(a.0 > self.seq.0, "snapshot ids grow");
        self.seq = (a.0, b.0);
        self.snaps.push((a, b));
        format!("take snapshot {a}, the model's {b}")
    }

    fn release_snap(&mut self) -> String {
        if self.snaps.is_empty() {
            return "nothing to release".to_owned();
        }
        let i = self.index(self.snaps.len());
        let (a, b) = self.snaps.remove(i);
        done(self.ours.store.release_snap(self.ours.pool, a).wait());
        done(self.model.store.release_snap(self.model.pool, b).wait());
        format!("release snapshot {a}, the model's {b}")
    }

    fn roll_back(&mut self) -> String {
        if self.snaps.is_empty() {
            return "nothing to roll back to".to_owned();
        }
        let (name, snap) = (self.pick(&DATA), self.snaps[self.index(self.snaps.len())]);
        let (ours, model) = self.contexts(self.snaps.len());
        let op = |snap, context| WriteOp::new().effect(Effect::Rollback(snap)).under(context);
        self.both(name, op(snap.0, ours), op(snap.1, model))
    }

    /// Changes a data object, mostly under the full context; an object that exists also under none or an older one.
    fn write_data(&mut self) -> String {
        let name = self.pick(&DATA);
        let known = if self.model.stat(name).is_some() && self.rng.one_in(6) {
            self.index(self.snaps.len() + 1)
        } else {
            self.snaps.len()
        };
        let (ours, model) = self.contexts(known);
        let mut effects = vec![self.data_effect(), self.data_effect()];
        if self.rng.below(3) > 0 {
            effects.pop();
        }
        if effects.iter().all(|e| matches!(e, Effect::Zero { .. } | Effect::Create)) {
            // These may change nothing, and then stores differ in whether they count for the context.
            effects.push(Effect::Write { offset: self.rng.below(SIZE_MAX), data: self.random(1) });
        }
        if self.rng.one_in(12) {
            effects.push(Effect::Remove);
        }
        let mut op = (WriteOp { effects, ..WriteOp::new() }.under(ours), WriteOp::new().under(model));
        op.1.effects.clone_from(&op.0.effects);
        if self.ours.store.capabilities().share && self.rng.one_in(8) {
            self.add_share(&mut op);
        }
        if self.rng.one_in(8) {
            self.add_guard(name, &mut op);
        }
        self.both(name, op.0, op.1)
    }

    /// Changes a header: omap, xattrs and data in one op, without context.
    fn write_header(&mut self) -> String {
        let name = self.pick(&HEADERS);
        let effects = (0..=self.rng.below(3)).map(|_| self.header_effect()).collect();
        let op = WriteOp { effects, ..WriteOp::new() };
        let mut op = (op.clone(), op);
        if self.rng.one_in(2) {
            self.add_guard(name, &mut op);
        }
        self.both(name, op.0, op.1)
    }

    fn data_effect(&self) -> Effect {
        let aligned = self.rng.one_in(2);
        let grid = if aligned { BLOCK } else { 1 };
        let offset = self.rng.below(SIZE_MAX / grid) * grid;
        let length = (1 + self.rng.below(4 * BLOCK / grid)) * grid;
        match self.rng.below(12) {
            0 => Effect::Create,
            1 => Effect::WriteFull(self.random(length)),
            2..=4 => Effect::Zero { offset, length },
            5 => Effect::Truncate(offset),
            _ => Effect::Write { offset, data: self.random(length) },
        }
    }

    fn header_effect(&self) -> Effect {
        let (key, value) = (self.key(), self.random(self.rng.below(40)));
        let attribute = format!("a{}", self.rng.below(3));
        match self.rng.below(16) {
            0 => Effect::Create,
            1 => Effect::OmapClear,
            2 | 3 => Effect::OmapRemove(vec![key, self.key()]),
            4 | 5 => Effect::XattrSet(attribute, value),
            6 => Effect::XattrRemove(attribute),
            7 => Effect::WriteFull(value),
            8 => Effect::Write { offset: self.rng.below(100), data: self.random(1 + self.rng.below(40)) },
            _ => Effect::OmapSet(vec![(key, value), (self.key(), Bytes::new())]),
        }
    }

    /// A condition that holds about half of the time, the same on both sides.
    fn add_guard(&self, name: &str, op: &mut (WriteOp, WriteOp)) {
        let (ours, model) = (self.ours.stat(name), self.model.stat(name));
        let (a, b) = match self.rng.below(6) {
            0 => (Guard::CreateExclusive, Guard::CreateExclusive),
            1 => (Guard::AssertExists, Guard::AssertExists),
            2 => (version(ours, 0), version(model, 0)),
            3 => (version(ours, 1000), version(model, 1000)),
            4 => {
                let known = model.map_or_else(Vec::new, |_| self.model.omap(name));
                let (key, value) = known.first().cloned().unwrap_or((Bytes::from_static(b"k"), Bytes::new()));
                let guard = Guard::OmapCompare { key, value };
                (guard.clone(), guard)
            }
            _ => {
                let value = self.random(self.rng.below(2));
                let guard = Guard::XattrCompare { name: "a0".to_owned(), value };
                (guard.clone(), guard)
            }
        };
        op.0.guards.push(a);
        op.1.guards.push(b);
    }

    /// Puts a shared range first, from another object at a snapshot or HEAD.
    fn add_share(&self, op: &mut (WriteOp, WriteOp)) {
        let source = self.pick(&DATA);
        let (a, b) = match self.snaps.len() {
            0 => (SnapId::HEAD, SnapId::HEAD),
            n => self.snaps.get(self.index(n + 1)).copied().unwrap_or((SnapId::HEAD, SnapId::HEAD)),
        };
        let (offset, target_offset) = (self.rng.below(8) * BLOCK, self.rng.below(8) * BLOCK);
        let mut length = (1 + self.rng.below(8)) * BLOCK;
        if self.rng.one_in(3) {
            // Refused, unless it reaches the source's end.
            length -= self.rng.below(BLOCK);
        }
        let effect = |source, at| Effect::ShareRange { source, at, offset, length, target_offset };
        op.0.effects.insert(0, effect(self.ours.id(source), a));
        op.1.effects.insert(0, effect(self.model.id(source), b));
    }

    /// Performs an op on both sides and compares how it went.
    fn both(&self, name: &str, ours: WriteOp, model: WriteOp) -> String {
        let what = format!("{name}: {}", brief(&ours));
        let expected = self.model.store.write(&self.model.id(name), model).wait();
        let got = self.ours.store.write(&self.ours.id(name), ours).wait();
        assert_eq!(outcome(&got), outcome(&expected), "{what}: ours {got:?}, the model's {expected:?}");
        what
    }

    /// Compares all objects at HEAD, and all versions when asked.
    fn compare(&self, what: &str, versions: bool) {
        for name in DATA.iter().chain(&HEADERS) {
            let (ours, model) = (self.ours.sight(name), self.model.sight(name));
            assert!(
                ours == model,
                "{what}: {name} differs: {}",
                first_difference(ours.as_ref(), model.as_ref())
            );
        }
        if !versions {
            return;
        }
        let ids: Vec<SnapId> = self.snaps.iter().map(|s| s.0).collect();
        for name in DATA {
            for (a, b) in &self.snaps {
                let (ours, model) = (self.ours.bytes_at(name, *a), self.model.bytes_at(name, *b));
                let parts = || first_difference(seen(ours.as_ref()).as_ref(), seen(model.as_ref()).as_ref());
                assert!(
                    ours == model,
                    "{what}: {name} at snapshot {a} (the model's {b}) differs: {}",
                    parts()
                );
            }
            if self.ours.store.capabilities().list_snaps
                && let Ok(set) = self.ours.store.list_snaps(&self.ours.id(name)).wait()
            {
                set_agrees_with_reads(&self.ours, name, &set, &ids);
            }
        }
    }

    /// The contexts after the first `known` of the existing snapshots.
    fn contexts(&self, known: usize) -> (SnapContext, SnapContext) {
        let newest = known == self.snaps.len();
        let one = |seq: u64, pick: fn(&(SnapId, SnapId)) -> SnapId| {
            let snaps: Vec<SnapId> = self.snaps[..known].iter().rev().map(pick).collect();
            let seq = if newest { seq } else { snaps.first().map_or(0, |s| s.0) };
            SnapContext { seq, snaps: snaps.into() }
        };
        (one(self.seq.0, |s| s.0), one(self.seq.1, |s| s.1))
    }

    fn key(&self) -> Bytes {
        const KEYS: [&[u8]; 6] = [b"a", b"a\0b", b"b", b"size", b"\xff\0", b"snapshot_0000000000000001"];
        Bytes::from_static(KEYS[self.index(KEYS.len())])
    }

    fn random(&self, length: u64) -> Bytes {
        let value = u8::try_from(1 + self.rng.below(255)).expect("a byte");
        super::filled(value, length)
    }

    fn pick(&self, names: &[&'static str]) -> &'static str {
        names[self.index(names.len())]
    }

    fn index(&self, n: usize) -> usize {
        usize::try_from(self.rng.below(n as u64)).expect("below a length")
    }
}

/// A guard on the version an object has, or `ahead` of it.
fn version(stat: Option<(u64, u64)>, ahead: u64) -> Guard {
    Guard::AssertVersion(stat.map_or(1, |s| s.0) + ahead)
}

/// An op without its bytes.
fn brief(op: &WriteOp) -> String {
    let effects: Vec<String> = op.effects.iter().map(brief_effect).collect();
    let context =
        op.snap_context.as_ref().map_or("no context".to_owned(), |c| format!("{} {:?}", c.seq, c.snaps));
    format!("{:?} {} under {context}", op.guards, effects.join(", "))
}

fn brief_effect(effect: &Effect) -> String {
    match effect {
        Effect::Write { offset, data } => format!("Write {offset}+{}", data.len()),
        Effect::WriteFull(data) => format!("WriteFull {}", data.len()),
        Effect::Create
        | Effect::Zero { .. }
        | Effect::Truncate(_)
        | Effect::Remove
        | Effect::Rollback(_)
        | Effect::CopyObject { .. }
        | Effect::ShareRange { .. }
        | Effect::OmapSet(_)
        | Effect::OmapRemove(_)
        | Effect::OmapClear
        | Effect::XattrSet(..)
        | Effect::XattrRemove(_) => format!("{effect:?}"),
    }
}

/// Data alone, as a sight.
fn seen(data: Option<&Vec<u8>>) -> Option<Sight> {
    data.map(|data| Sight { data: data.clone(), xattrs: BTreeMap::new(), omap: Vec::new() })
}

/// Where two objects part.
fn first_difference(ours: Option<&Sight>, model: Option<&Sight>) -> String {
    let (Some(a), Some(b)) = (ours, model) else {
        return format!("it exists here: {}, in the model: {}", ours.is_some(), model.is_some());
    };
    if a.data.len() != b.data.len() {
        return format!("{} bytes here, {} in the model", a.data.len(), b.data.len());
    }
    match a.data.iter().zip(&b.data).position(|(x, y)| x != y) {
        Some(at) => format!("byte {at} is {} here, {} in the model", a.data[at], b.data[at]),
        None => {
            format!("metadata: {:?} {:?} here, {:?} {:?} in the model", a.omap, a.xattrs, b.omap, b.xattrs)
        }
    }
}
