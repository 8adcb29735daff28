//! Images that keep their bytes in clusters which a table leads to: qcow of all versions.
//!
//! Invariants
//! - What a table says is not trusted: a cluster that does not lie in the file as far as it is wanted is `Corrupt`, never zeros.
//! - Clusters that lie close together are fetched together, whether compressed or not.

mod fetch;
mod run;
mod unpacked;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use ferry_core::source::{BlockSource, SourcePoint, SourceSnapshot};
use ferry_core::{DeviceExtent, Error, ExtentState, Reply, Result, SparseData};
use futures_util::future::{try_join, try_join_all};
use futures_util::stream::{self, StreamExt, TryStreamExt};

pub(crate) use run::{Cell, Run, push_run};
pub(crate) use unpacked::Unpacked;

use crate::env::Env;
use crate::format::unpack::Packing;
use crate::format::{inside, push_extent, push_sparse};
use crate::limits::{ASK_BELOW_MIN, PIECES_IN_FLIGHT};
use crate::stream::Stream;

/// What leads from a range of the device to clusters.
pub(crate) trait Table: Send + Sync + fmt::Debug + 'static {
    /// What a range holds at a point, in order and without gaps. The range lies inside the size at that point.
    fn runs(
        &self,
        at: SourcePoint,
        offset: u64,
        length: u64,
    ) -> impl Future<Output = Result<Vec<Run>>> + Send;
}

/// What an image consists of beside its table.
#[derive(Debug)]
pub(crate) struct Parts {
    /// The file of the image: tables and compressed clusters.
    pub(crate) file: Arc<dyn Stream>,
    /// Where other clusters are: the same, or a file of their own.
    pub(crate) data: Arc<dyn Stream>,
    /// What shows through holes.
    pub(crate) backing: Option<Arc<dyn BlockSource>>,
    /// How clusters are compressed.
    pub(crate) packing: Packing,
    /// Size of a cluster. Bytes.
    pub(crate) cluster_size: u64,
    /// Size of the device. Bytes.
    pub(crate) size: u64,
    /// Its snapshots, oldest first.
    pub(crate) snapshots: Vec<SourceSnapshot>,
    /// Where the work is done.
    pub(crate) env: Env,
}

/// An image of clusters, open.
#[derive(Debug)]
pub(crate) struct Clustered<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    table: T,
    parts: Parts,
    unpacked: Unpacked,
}

impl<T: Table> Clustered<T> {
    /// The image that `table` leads through.
    pub(crate) fn new(table: T, parts: Parts) -> Self {
        Self(Arc::new(Shared { table, parts, unpacked: Unpacked::default() }))
    }

    fn size_at(&self, at: SourcePoint) -> Result<u64> {
        match at {
            SourcePoint::Head => Ok(self.0.parts.size),
            SourcePoint::Snapshot(n) => {
                let none = || Error::not_found("the source has no such snapshot").with("snapshot", n);
                self.0.parts.snapshots.get(n).map(|s| s.size).ok_or_else(none)
            }
        }
    }
}

impl<T: Table> Shared<T> {
    async fn read(&self, at: SourcePoint, offset: u64, length: u64) -> Result<SparseData> {
        let runs = self.table.runs(at, offset, length).await?;
        let plan = fetch::Plan::of(&runs, &self.parts, &self.unpacked)?;
        let below = try_join_all(self.below(&runs));
        let fetching = plan.fetches.into_iter().map(|fetch| fetch.run(&self.parts, &self.unpacked));
        let fetched = stream::iter(fetching).buffer_unordered(PIECES_IN_FLIGHT).try_collect::<Vec<_>>();
        let (below, fetched) = try_join(below, fetched).await?;
        let mut all: Vec<(u64, Bytes)> = plan.kept;
        all.extend(below.into_iter().flat_map(|sparse| sparse.extents));
        all.extend(fetched.into_iter().flatten());
        all.sort_unstable_by_key(|(guest, _)| *guest);
        let mut extents = Vec::with_capacity(all.len());
        for (guest, bytes) in &all {
            push_sparse(&mut extents, *guest, bytes);
        }
        Ok(SparseData { extents })
    }

    /// Reads of what shows through holes.
    fn below(&self, runs: &[Run]) -> Vec<Reply<SparseData>> {
        let Some(backing) = &self.parts.backing else { return Vec::new() };
        let holes = runs.iter().filter(|run| run.cell == Cell::Hole && run.guest < backing.size());
        let read = |run: &Run| {
            backing.read(SourcePoint::Head, run.guest, run.length.min(backing.size() - run.guest))
        };
        holes.map(read).collect()
    }

    async fn extents(&self, at: SourcePoint, offset: u64, length: u64) -> Result<Vec<DeviceExtent>> {
        let runs = self.table.runs(at, offset, length).await?;
        let mut extents = Vec::new();
        for run in &runs {
            match run.cell {
                Cell::Hole => self.extents_below(run, &mut extents).await?,
                Cell::Zero => push_extent(&mut extents, run.guest, run.length, ExtentState::Zero),
                Cell::Packed { .. } => push_extent(&mut extents, run.guest, run.length, ExtentState::Data),
                Cell::Data { host } => self.extents_of_data(run, host, &mut extents).await?,
            }
        }
        Ok(extents)
    }

    /// What shows through a hole.
    async fn extents_below(&self, run: &Run, extents: &mut Vec<DeviceExtent>) -> Result<()> {
        let below = self.parts.backing.as_ref().filter(|backing| run.guest < backing.size());
        let Some(backing) = below else {
            push_extent(extents, run.guest, run.length, ExtentState::Zero);
            return Ok(());
        };
        let shown = run.length.min(backing.size() - run.guest);
        for extent in backing.extents(SourcePoint::Head, run.guest, shown).await? {
            push_extent(extents, extent.offset, extent.length, extent.state);
        }
        push_extent(extents, run.guest + shown, run.length - shown, ExtentState::Zero);
        Ok(())
    }

    /// Clusters that were given room but never written are holes in the file.
    async fn extents_of_data(&self, run: &Run, host: u64, extents: &mut Vec<DeviceExtent>) -> Result<()> {
        let data = &self.parts.data;
        if run.length < ASK_BELOW_MIN || inside(host, run.length, data.size()).is_err() {
            push_extent(extents, run.guest, run.length, ExtentState::Data);
            return Ok(());
        }
        for extent in data.extents(host, run.length).await? {
            push_extent(extents, run.guest + (extent.offset - host), extent.length, extent.state);
        }
        Ok(())
    }

    async fn changes(
        &self,
        older: SourcePoint,
        newer: SourcePoint,
        offset: u64,
        length: u64,
    ) -> Result<Vec<DeviceExtent>> {
        let older = self.table.runs(older, offset, length).await?;
        let newer = self.table.runs(newer, offset, length).await?;
        let has_backing = self.parts.backing.is_some();
        let mut changes = Vec::new();
        let (mut i, mut j) = (0, 0);
        while let (Some(old), Some(new)) = (older.get(i), newer.get(j)) {
            let from = old.guest.max(new.guest);
            let end = old.end().min(new.end());
            if !run::is_same(old, new, from, has_backing) {
                let state = match new.cell {
                    Cell::Zero => ExtentState::Zero,
                    Cell::Hole if !has_backing => ExtentState::Zero,
                    Cell::Hole | Cell::Data { .. } | Cell::Packed { .. } => ExtentState::Data,
                };
                push_extent(&mut changes, from, end - from, state);
            }
            i += usize::from(old.end() == end);
            j += usize::from(new.end() == end);
        }
        Ok(changes)
    }
}

impl<T: Table> BlockSource for Clustered<T> {
    fn snapshots(&self) -> &[SourceSnapshot] {
        &self.0.parts.snapshots
    }

    fn size(&self) -> u64 {
        self.0.parts.size
    }

    fn read(&self, at: SourcePoint, offset: u64, length: u64) -> Reply<SparseData> {
        if let Err(e) = self.size_at(at).and_then(|size| inside(offset, length, size)) {
            return Reply::ready(Err(e));
        }
        let shared = Arc::clone(&self.0);
        Reply::pending(async move { shared.read(at, offset, length).await })
    }

    fn extents(&self, at: SourcePoint, offset: u64, length: u64) -> Reply<Vec<DeviceExtent>> {
        if let Err(e) = self.size_at(at).and_then(|size| inside(offset, length, size)) {
            return Reply::ready(Err(e));
        }
        let shared = Arc::clone(&self.0);
        Reply::pending(async move { shared.extents(at, offset, length).await })
    }

    fn changes(
        &self,
        older: SourcePoint,
        newer: SourcePoint,
        offset: u64,
        length: u64,
    ) -> Reply<Vec<DeviceExtent>> {
        let smaller = self.size_at(older).and_then(|size| Ok(size.min(self.size_at(newer)?)));
        if let Err(e) = smaller.and_then(|size| inside(offset, length, size)) {
            return Reply::ready(Err(e));
        }
        let shared = Arc::clone(&self.0);
        Reply::pending(async move { shared.changes(older, newer, offset, length).await })
    }

    fn pin(&self) -> String {
        let Parts { file, data, backing, .. } = &self.0.parts;
        let mut pin = file.pin();
        if !Arc::ptr_eq(file, data) {
            pin = format!("{pin}; {}", data.pin());
        }
        backing.as_ref().map_or(pin.clone(), |backing| format!("{pin}; {}", backing.pin()))
    }

    fn describe(&self) -> String {
        self.0.parts.file.describe()
    }
}
