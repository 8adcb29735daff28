//! Reads of the same range that are under way at once are one: several who need an object at the same time fetch it once.
//!
//! Invariants
//! - Only what is under way is shared, nothing is kept: who asks after the answer came asks the source.
//! - A read that failed fails for one of those who wait; the others ask by themselves.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ferry_core::source::{BlockSource, SourcePoint, SourceSnapshot};
use ferry_core::{DeviceExtent, Error, Reply, Result, SparseData};
use futures_util::future::{BoxFuture, FutureExt, Shared, WeakShared};

/// What is read.
type Range = (SourcePoint, u64, u64);
/// What comes of it, for all who wait.
type Outcome = Result<SparseData, Arc<Error>>;
type Reading = Shared<BoxFuture<'static, Outcome>>;

/// Reads under way that are looked at before those nobody waits for any more are forgotten.
const FORGET_FROM: usize = 64;

/// A source whose equal reads are merged.
#[derive(Debug)]
pub(crate) struct Merged {
    source: Arc<dyn BlockSource>,
    under_way: Mutex<HashMap<Range, WeakShared<BoxFuture<'static, Outcome>>>>,
}

impl Merged {
    /// All of `source`.
    pub(crate) fn new(source: Arc<dyn BlockSource>) -> Self {
        Self { source, under_way: Mutex::default() }
    }

    /// The read of a range that is under way, or a new one.
    fn reading(&self, range: Range) -> Reading {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let found = under_way.get(&range).and_then(WeakShared::upgrade);
        // One whose answer is there already is over.
        if let Some(reading) = found.filter(|reading| reading.peek().is_none()) {
            return reading;
        }
        let (at, offset, length) = range;
        let reply = self.source.read(at, offset, length);
        let reading = async move { reply.await.map_err(Arc::new) }.boxed().shared();
        if under_way.len() >= FORGET_FROM {
            under_way.retain(|_, reading| reading.upgrade().is_some_and(|r| r.peek().is_none()));
        }
        under_way.extend(reading.downgrade().map(|weak| (range, weak)));
        reading
    }
}

impl BlockSource for Merged {
    fn snapshots(&self) -> &[SourceSnapshot] {
        self.source.snapshots()
    }

    fn size(&self) -> u64 {
        self.source.size()
    }

    fn read(&self, at: SourcePoint, offset: u64, length: u64) -> Reply<SparseData> {
        let reading = self.reading((at, offset, length));
        let source = Arc::clone(&self.source);
        Reply::pending(async move {
            match reading.await {
                Ok(data) => Ok(data),
                Err(shared) => match Arc::try_unwrap(shared) {
                    Ok(error) => Err(error),
                    Err(_) => source.read(at, offset, length).await,
                },
            }
        })
    }

    fn extents(&self, at: SourcePoint, offset: u64, length: u64) -> Reply<Vec<DeviceExtent>> {
        self.source.extents(at, offset, length)
    }

    fn changes(
        &self,
        older: SourcePoint,
        newer: SourcePoint,
        offset: u64,
        length: u64,
    ) -> Reply<Vec<DeviceExtent>> {
        self.source.changes(older, newer, offset, length)
    }

    fn pin(&self) -> String {
        self.source.pin()
    }

    fn describe(&self) -> String {
        self.source.describe()
    }
}
