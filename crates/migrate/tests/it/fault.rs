//! A store that dies after a number of changes, fails to read, or flips a byte of what is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use bytes::Bytes;
use ferry_core::{
    Effect, Error, ErrorKind, Layer, ObjectId, ReadOp, ReadReply, Reply, Result, SnapId, Store, WriteOp,
    WriteReply,
};

/// What goes wrong, shared by all stores of a process.
#[derive(Debug)]
pub(crate) struct Faults {
    /// Changes until death.
    pub(crate) changes_left: AtomicI64,
    /// What that was at the beginning.
    pub(crate) armed: AtomicU64,
    /// Data objects whose names begin with this cannot be read.
    pub(crate) unreadable: std::sync::Mutex<Option<String>>,
    /// The n-th write of data from now on gets a byte flipped; below 0 none.
    pub(crate) flip: AtomicI64,
    pub(crate) flipped: AtomicBool,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            changes_left: AtomicI64::new(i64::MAX),
            armed: AtomicU64::new(0),
            unreadable: std::sync::Mutex::default(),
            flip: AtomicI64::new(-1),
            flipped: AtomicBool::new(false),
        }
    }
}

impl Faults {
    pub(crate) fn is_dead(&self) -> bool {
        self.changes_left.load(Ordering::Relaxed) < 0
    }

    /// Lets no death come any more, unless it came.
    pub(crate) fn disarm(&self) {
        assert!(!self.is_dead(), "a dead store reports success");
        self.changes_left.store(i64::MAX, Ordering::Relaxed);
    }

    fn flip_in(&self, op: &mut WriteOp) {
        for effect in &mut op.effects {
            if let Effect::Write { data, .. } = effect
                && !data.is_empty()
                && self.flip.load(Ordering::Relaxed) >= 0
                && self.flip.fetch_sub(1, Ordering::Relaxed) == 0
            {
                let mut bytes = data.to_vec();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x40;
                *data = Bytes::from(bytes);
                self.flipped.store(true, Ordering::Relaxed);
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct FaultStore {
    pub(crate) inner: Arc<dyn Store>,
    pub(crate) faults: Arc<Faults>,
}

impl FaultStore {
    fn check_readable(&self, object: &ObjectId) -> Result<()> {
        let unreadable = self.faults.unreadable.lock().unwrap();
        if unreadable.as_ref().is_some_and(|p| object.name.starts_with(p.as_str())) {
            return Err(Error::new(ErrorKind::Io, "a bad sector"));
        }
        Ok(())
    }
}

impl Layer for FaultStore {
    fn below(&self) -> &dyn Store {
        &*self.inner
    }

    fn ask<T: Send + Unpin + 'static>(&self, request: impl FnOnce(&dyn Store) -> Reply<T>) -> Reply<T> {
        if self.faults.is_dead() {
            return Reply::ready(Err(Error::new(ErrorKind::Unavailable, "the store is gone")));
        }
        request(&*self.inner)
    }

    fn change<T: Send + Unpin + 'static>(&self, request: impl FnOnce(&dyn Store) -> Reply<T>) -> Reply<T> {
        self.faults.changes_left.fetch_sub(1, Ordering::Relaxed);
        self.ask(request)
    }

    fn write(&self, object: &ObjectId, mut op: WriteOp) -> Reply<WriteReply> {
        if object.name.starts_with("rbd_data.") {
            self.faults.flip_in(&mut op);
            if std::env::var("FERRY_MIGRATION_TRACE").is_ok() {
                let names: Vec<String> = op.effects.iter().map(|e| format!("{e:.60?}")).collect();
                println!("{} {:?} {:?} {names:?}", object.name, op.guards, op.snap_context);
            }
        }
        self.change(|s| s.write(object, op))
    }

    fn read(&self, object: &ObjectId, at: SnapId, op: ReadOp) -> Reply<ReadReply> {
        match self.check_readable(object) {
            Ok(()) => self.ask(|s| s.read(object, at, op)),
            Err(e) => Reply::ready(Err(e)),
        }
    }
}
