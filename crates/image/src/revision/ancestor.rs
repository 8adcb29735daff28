//! What a revision reads through to: an image at a point in time, or a point of a foreign source.

use std::sync::Arc;

use bytes::Bytes;
use ferry_core::source::{BlockSource, SourcePoint};
use ferry_core::{DeviceExtent, Error, ExtentState, Result, SnapId, SparseData};

use super::{Held, Piece, Revision};
use crate::limits::SPARSE_BLOCK;
use crate::zeroes::{is_zero, runs};

/// What shows where an object is missing.
#[derive(Clone, Debug)]
pub enum Ancestor {
    /// An image at a snapshot, or at HEAD.
    Image(Arc<Revision>),
    /// A foreign source, see [`ferry_core::source`].
    Foreign(ForeignPoint),
}

/// A foreign source at one of its points.
#[derive(Clone, Debug)]
pub struct ForeignPoint {
    source: Arc<dyn BlockSource>,
    at: SourcePoint,
}

/// The point of a foreign source that an id in `snap_seqs` stands for: its snapshots are counted from 1.
#[must_use]
pub fn source_point(snap: SnapId) -> Option<SourcePoint> {
    if snap == SnapId::HEAD {
        return Some(SourcePoint::Head);
    }
    usize::try_from(snap.0).ok()?.checked_sub(1).map(SourcePoint::Snapshot)
}

impl ForeignPoint {
    /// A source at a point that it has.
    #[must_use]
    pub fn new(source: Arc<dyn BlockSource>, at: SourcePoint) -> Self {
        Self { source, at }
    }

    /// The same source, as it is open, at the point that an id in `snap_seqs` stands for.
    ///
    /// # Errors
    /// `NotFound` (2) where it has no such snapshot; `Corrupt` for an id that is none.
    pub fn at(&self, snap: SnapId) -> Result<Self> {
        let at = source_point(snap).ok_or_else(|| Error::corrupt("a snapshot of a source has no number"))?;
        if let SourcePoint::Snapshot(n) = at
            && n >= self.source.snapshots().len()
        {
            let gone = Error::not_found("a snapshot of the source of an import is gone");
            return Err(gone.with("number", n + 1));
        }
        Ok(Self { source: Arc::clone(&self.source), at })
    }

    /// Its size there. Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.source.size_at(self.at)
    }

    /// What holds data in a range, in order. Where the source does not know, that is all of it.
    ///
    /// # Errors
    /// Those of the source.
    pub async fn data_in(&self, offset: u64, length: u64) -> Result<Vec<DeviceExtent>> {
        let mut extents = self.source.extents(self.at, offset, length).await?;
        extents.retain(|e| e.state == ExtentState::Data && e.length > 0);
        Ok(extents)
    }

    /// The bytes of a range that are not zero, looked at in blocks: a source may hand out zeros it did not know of.
    async fn read(&self, offset: u64, length: u64) -> Result<SparseData> {
        let data = self.source.read(self.at, offset, length).await?;
        let mut extents = Vec::with_capacity(data.extents.len());
        for (at, bytes) in data.extents {
            if !is_zero(&bytes) {
                extents.extend(without_zeros(at, &bytes));
            }
        }
        Ok(SparseData { extents })
    }
}

/// The blocks of a buffer that are not zeros.
fn without_zeros(at: u64, bytes: &Bytes) -> Vec<(u64, Bytes)> {
    runs(at, bytes, SPARSE_BLOCK)
        .filter(|run| !run.is_zero)
        .map(|run| (at + run.start as u64, bytes.slice(run.start..run.start + run.length)))
        .collect()
}

impl Ancestor {
    /// Its size. Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Image(revision) => revision.size,
            Self::Foreign(point) => point.size(),
        }
    }

    /// The image, where it is one.
    #[must_use]
    pub fn image(&self) -> Option<&Arc<Revision>> {
        match self {
            Self::Image(revision) => Some(revision),
            Self::Foreign(_) => None,
        }
    }

    /// The extents of a range inside its size that hold bytes; gaps read as zeros.
    ///
    /// # Errors
    /// Those of the store or the source.
    pub async fn read(&self, offset: u64, length: u64) -> Result<SparseData> {
        match self {
            Self::Image(revision) => revision.read(offset, length).await,
            Self::Foreign(point) => point.read(offset, length).await,
        }
    }

    /// What holds data in a range; see [`Revision::locate`].
    ///
    /// # Errors
    /// Those of the store or the source.
    pub async fn locate(&self, offset: u64, length: u64) -> Result<Vec<Piece>> {
        match self {
            Self::Image(revision) => revision.locate(offset, length).await,
            Self::Foreign(point) => {
                let found = point.data_in(offset, length).await?;
                let piece =
                    |e: DeviceExtent| Piece { held: Held::Foreign, image_offset: e.offset, length: e.length };
                Ok(found.into_iter().map(piece).collect())
            }
        }
    }

    /// Whether this is the same point as another of the same image or source.
    #[must_use]
    pub fn is_same_point(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Image(a), Self::Image(b)) => a.snap == b.snap,
            (Self::Foreign(a), Self::Foreign(b)) => a.at == b.at,
            (Self::Image(_), Self::Foreign(_)) | (Self::Foreign(_), Self::Image(_)) => false,
        }
    }
}

impl ForeignPoint {
    /// Where this point, the newer one, may differ from `older` in a range inside its size.
    ///
    /// # Errors
    /// Those of the source.
    pub async fn changes_since(&self, older: &Self, offset: u64, length: u64) -> Result<Vec<DeviceExtent>> {
        let both = older.size().saturating_sub(offset).min(length);
        let mut changes = match both {
            0 => Vec::new(),
            both => self.source.changes(older.at, self.at, offset, both).await?,
        };
        if both < length {
            // Behind the older one's end.
            changes.extend(self.data_in(offset + both, length - both).await?);
        }
        Ok(changes)
    }
}
