//! Raw images: the bytes of the device one after the other, in a stream for each point in time.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use ferry_core::source::{BlockSource, SourcePoint, SourceSnapshot};
use ferry_core::{DeviceExtent, Error, ExtentState, Reply, Result, SparseData};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::format::{inside, length_of, push_extent, push_sparse};
use crate::limits::{
    ASK_EXTENTS_MIN, COMPARED_AT_ONCE, PIECE_MAX, PIECES_IN_FLIGHT, WASTE_DIVISOR, ZERO_UNIT,
};
use crate::stream::Stream;

/// A raw image with its older states.
#[derive(Debug)]
pub(crate) struct Raw {
    head: Arc<dyn Stream>,
    /// Streams of `snapshots`, in the same order.
    older: Vec<Arc<dyn Stream>>,
    snapshots: Vec<SourceSnapshot>,
}

impl Raw {
    /// The image whose newest state is `head` and whose older ones are `older`, oldest first, with their names.
    pub(crate) fn new(head: Arc<dyn Stream>, older: Vec<(String, Arc<dyn Stream>)>) -> Self {
        let snapshots = older
            .iter()
            .map(|(name, stream)| SourceSnapshot { name: name.clone(), size: stream.size(), taken: None })
            .collect();
        Self { head, older: older.into_iter().map(|(_, stream)| stream).collect(), snapshots }
    }

    fn stream(&self, at: SourcePoint) -> Result<&Arc<dyn Stream>> {
        match at {
            SourcePoint::Head => Ok(&self.head),
            SourcePoint::Snapshot(n) => self
                .older
                .get(n)
                .ok_or_else(|| Error::not_found("the source has no such snapshot").with("snapshot", n)),
        }
    }
}

/// Ranges of data to ask for: those closer than `gap` as one, as long as little is fetched in vain; none longer than a piece.
pub(crate) fn pieces(extents: &[DeviceExtent], gap: u64) -> Vec<(u64, u64)> {
    let mut joined: Vec<(u64, u64)> = Vec::new();
    let mut waste = 0;
    for extent in extents.iter().filter(|e| e.state == ExtentState::Data) {
        if let Some((from, length)) = joined.last_mut() {
            let skipped = extent.offset - (*from + *length);
            let whole = extent.offset + extent.length - *from;
            if skipped <= gap && waste + skipped <= (whole - waste - skipped) / WASTE_DIVISOR {
                (*length, waste) = (whole, waste + skipped);
                continue;
            }
        }
        joined.push((extent.offset, extent.length));
        waste = 0;
    }
    let split = |(from, length): (u64, u64)| {
        (0..length.div_ceil(PIECE_MAX)).map(move |i| {
            let skip = i * PIECE_MAX;
            (from + skip, (length - skip).min(PIECE_MAX))
        })
    };
    joined.into_iter().flat_map(split).collect()
}

async fn read(stream: Arc<dyn Stream>, offset: u64, length: u64) -> Result<SparseData> {
    let extents = if length >= ASK_EXTENTS_MIN {
        stream.extents(offset, length).await?
    } else {
        vec![DeviceExtent { offset, length, state: ExtentState::Data }]
    };
    let asked = pieces(&extents, stream.gap()).into_iter().map(|(from, length)| {
        let reply = stream.read(from, length);
        async move { Ok::<(u64, Bytes), Error>((from, reply.await?)) }
    });
    let got: Vec<(u64, Bytes)> = stream::iter(asked).buffered(PIECES_IN_FLIGHT).try_collect().await?;
    let mut sparse = Vec::new();
    for (from, bytes) in &got {
        push_sparse(&mut sparse, *from, bytes);
    }
    Ok(SparseData { extents: sparse })
}

/// Where both may differ, with what the newer one holds: everywhere but where both are known to be zeros.
fn differing(older: &[DeviceExtent], newer: &[DeviceExtent]) -> Vec<DeviceExtent> {
    let mut changes = Vec::new();
    let (mut i, mut j) = (0, 0);
    while let (Some(old), Some(new)) = (older.get(i), newer.get(j)) {
        let from = old.offset.max(new.offset);
        let (old_end, new_end) = (old.offset + old.length, new.offset + new.length);
        let end = old_end.min(new_end);
        if old.state == ExtentState::Data || new.state == ExtentState::Data {
            push_extent(&mut changes, from, end - from, new.state);
        }
        i += usize::from(old_end == end);
        j += usize::from(new_end == end);
    }
    changes
}

/// What really differs of `changes`: where both are at hand, their bytes tell.
async fn compared(
    older: Arc<dyn Stream>,
    newer: Arc<dyn Stream>,
    changes: Vec<DeviceExtent>,
) -> Result<Vec<DeviceExtent>> {
    let pieces = changes.into_iter().flat_map(|change| {
        let starts = (change.offset..change.offset + change.length).step_by(COMPARED_AT_ONCE);
        starts.map(move |offset| {
            let left = change.offset + change.length - offset;
            DeviceExtent { offset, length: left.min(COMPARED_AT_ONCE as u64), ..change }
        })
    });
    let looked_at = pieces.map(|piece| {
        let both = (older.read(piece.offset, piece.length), newer.read(piece.offset, piece.length));
        async move { Ok::<_, Error>((piece, both.0.await?, both.1.await?)) }
    });
    let mut looked_at = stream::iter(looked_at).buffered(PIECES_IN_FLIGHT);
    let mut found = Vec::new();
    while let Some((piece, old, new)) = looked_at.try_next().await? {
        push_differing(&mut found, piece, &old, &new);
    }
    Ok(found)
}

/// Adds the units of a piece in which two buffers differ.
fn push_differing(found: &mut Vec<DeviceExtent>, piece: DeviceExtent, old: &Bytes, new: &Bytes) {
    let mut at = piece.offset;
    let (mut old, mut new) = (&old[..], &new[..]);
    while !new.is_empty() {
        // Units lie where those of zeros do.
        let length = (ZERO_UNIT - at % ZERO_UNIT).min(length_of(new));
        let unit = usize::try_from(length).expect("a unit fits memory");
        if old[..unit] != new[..unit] {
            push_extent(found, at, length, piece.state);
        }
        (old, new, at) = (&old[unit..], &new[unit..], at + length);
    }
}

impl BlockSource for Raw {
    fn snapshots(&self) -> &[SourceSnapshot] {
        &self.snapshots
    }

    fn size(&self) -> u64 {
        self.head.size()
    }

    fn read(&self, at: SourcePoint, offset: u64, length: u64) -> Reply<SparseData> {
        match self.stream(at).and_then(|s| inside(offset, length, s.size()).map(|()| s)) {
            Ok(stream) => Reply::pending(read(Arc::clone(stream), offset, length)),
            Err(e) => Reply::ready(Err(e)),
        }
    }

    fn extents(&self, at: SourcePoint, offset: u64, length: u64) -> Reply<Vec<DeviceExtent>> {
        match self.stream(at).and_then(|s| inside(offset, length, s.size()).map(|()| s)) {
            Ok(stream) => stream.extents(offset, length),
            Err(e) => Reply::ready(Err(e)),
        }
    }

    fn changes(
        &self,
        older: SourcePoint,
        newer: SourcePoint,
        offset: u64,
        length: u64,
    ) -> Reply<Vec<DeviceExtent>> {
        let both = self.stream(older).and_then(|older| Ok((older, self.stream(newer)?))).and_then(
            |(older, newer)| inside(offset, length, older.size().min(newer.size())).map(|()| (older, newer)),
        );
        let (older, newer) = match both {
            Ok((older, newer)) => (Arc::clone(older), Arc::clone(newer)),
            Err(e) => return Reply::ready(Err(e)),
        };
        let (of_older, of_newer) = (older.extents(offset, length), newer.extents(offset, length));
        Reply::pending(async move {
            let changes = differing(&of_older.await?, &of_newer.await?);
            if older.is_near() && newer.is_near() {
                return compared(older, newer, changes).await;
            }
            Ok(changes)
        })
    }

    fn pin(&self) -> String {
        let all = self.older.iter().chain([&self.head]);
        all.map(|stream| stream.pin()).collect::<Vec<_>>().join("; ")
    }

    fn describe(&self) -> String {
        self.head.describe()
    }
}
