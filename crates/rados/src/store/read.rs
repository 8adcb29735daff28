//! Compound reads, and extents out of plain bytes.

use std::ffi::{CStr, CString};
use std::sync::Arc;

use bytes::Bytes;
use ferry_core::limits::{BLOCK_SIZE, OBJECT_SIZE_MAX};
use ferry_core::{ErrorKind, ObjectId, OmapPage, ReadOp, ReadReply, Result, SnapId, SparseData, Stamp};

use super::pages::Page;
use super::{RadosStore, object_name};
use crate::handle::extents::Extents;
use crate::handle::op::{Found, Read};
use crate::handle::{IoCtx, View};
use crate::limits::{HOLE_READ_MAX, WHOLE_READ_MAX};

#[cfg(test)]
mod tests;

/// The parts of `data`, read at `offset`, that are not blocks of zeros.
fn extents(offset: u64, data: Vec<u8>) -> Vec<(u64, Bytes)> {
    const ZEROS: [u8; 4096] = [0; 4096];
    const _: () = assert!(ZEROS.len() as u64 == BLOCK_SIZE);
    let (data, end) = (Bytes::from(data), |at: usize| at as u64 + offset);
    let mut found: Vec<(usize, usize)> = Vec::new();
    let mut at = 0;
    while at < data.len() {
        let rest = usize::try_from(BLOCK_SIZE - end(at) % BLOCK_SIZE).expect("within a block");
        let next = data.len().min(at + rest);
        if data[at..next] != ZEROS[..next - at] {
            match found.last_mut() {
                Some((_, to)) if *to == at => *to = next,
                _ => found.push((at, next)),
            }
        }
        at = next;
    }
    found.into_iter().map(|(from, to)| (end(from), data.slice(from..to))).collect()
}

/// The version of what was read; `None` where it did not exist.
fn version_or_none(read: Result<ReadReply>) -> Result<Option<u64>> {
    match read {
        Ok(reply) => Ok(Some(reply.version)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

impl RadosStore {
    /// Sends a read off: at a snapshot its data, and beside it HEAD's metadata.
    pub(super) fn submit_read(
        &self,
        object: &ObjectId,
        at: SnapId,
        op: ReadOp,
    ) -> Result<impl Future<Output = Result<ReadReply>> + Send + use<>> {
        let head = at == SnapId::HEAD;
        let data_only = ReadOp { data: op.data, is_data_alone: op.is_data_alone, ..ReadOp::default() };
        let metadata = op.xattrs || op.omap.is_some();
        let beside = if head || !metadata {
            None
        } else {
            Some(self.submit_one(object, View::Head, ReadOp { data: None, ..op.clone() })?)
        };
        let (view, op) = if head { (View::Head, op) } else { (View::At(at), data_only) };
        let main = self.submit_one(object, view, op)?;
        let object = object.clone();
        Ok(async move {
            let mut reply = main.await.map_err(|e| e.with("object", &object))?;
            if let Some(beside) = beside {
                match beside.await {
                    Ok(metadata) => (reply.xattrs, reply.omap) = (metadata.xattrs, metadata.omap),
                    // Only preserved versions are left.
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    Err(e) => return Err(e.with("object", &object)),
                }
            }
            Ok(reply)
        })
    }

    /// The parts of a range of an object that hold bytes; all up to its end where that cannot be told.
    pub(super) fn submit_extents(
        &self,
        object: &ObjectId,
        at: SnapId,
        (offset, length): (u64, u64),
    ) -> Result<impl Future<Output = Result<Vec<(u64, u64)>>> + Send + use<>> {
        let view = if at == SnapId::HEAD { View::Head } else { View::At(at) };
        let length = length.min(OBJECT_SIZE_MAX.saturating_sub(offset));
        let range = (offset, usize::try_from(length).expect("an object fits memory"));
        let (io, name) = (self.io_of(object, view)?, object_name(object)?);
        let told = told_extents(&io, object, range)?;
        let object = object.clone();
        Ok(async move {
            let told = if let Some(told) = told.await? {
                told
            } else {
                let stat = submit_parts(&io, &name, &ReadOp::stat(), &[], None)?;
                vec![(0, stat.await.map_err(|e| e.with("object", &object))?.size)]
            };
            let parts = parts(&told, range, 0).into_iter();
            Ok(parts.map(|(at, length)| (at, length as u64)).collect())
        })
    }

    /// Whether the OSD tells that an object has no holes.
    pub(super) fn submit_is_full(
        &self,
        object: &ObjectId,
        at: SnapId,
        length: u64,
    ) -> Result<impl Future<Output = Result<bool>> + Send + use<>> {
        let view = if at == SnapId::HEAD { View::Head } else { View::At(at) };
        let length = length.min(OBJECT_SIZE_MAX);
        let range = (0, usize::try_from(length).expect("an object fits memory"));
        let told = told_extents(&self.io_of(object, view)?, object, range)?;
        // What is told is inside the range; one part may go on where another ends.
        Ok(async move { Ok(told.await?.is_some_and(|told| parts(&told, range, 0) == [range])) })
    }

    /// Whether the object has the same version at two points. A preserved version keeps the number that the object had when it
    /// was preserved, and every change gives a new one.
    pub(super) fn compare_versions(
        &self,
        object: &ObjectId,
        one: SnapId,
        other: SnapId,
    ) -> Result<impl Future<Output = Result<bool>> + Send + use<>> {
        let (one, other) = (
            self.submit_read(object, one, ReadOp::stat())?,
            self.submit_read(object, other, ReadOp::stat())?,
        );
        Ok(async move {
            let (one, other) = (version_or_none(one.await)?, version_or_none(other.await)?);
            Ok(one == other)
        })
    }

    /// Sends a read of one view off.
    fn submit_one(
        &self,
        object: &ObjectId,
        view: View,
        op: ReadOp,
    ) -> Result<impl Future<Output = Result<ReadReply>> + Send + use<>> {
        let range = op.data.filter(|(offset, _)| *offset < OBJECT_SIZE_MAX).map(|(offset, length)| {
            let length = length.min(OBJECT_SIZE_MAX - offset);
            (offset, usize::try_from(length).expect("an object fits memory"))
        });
        let is_head = view == View::Head;
        let (io, name) = (self.io_of(object, view)?, object_name(object)?);
        let long = range.filter(|(_, length)| *length as u64 > WHOLE_READ_MAX);
        let read = match long {
            Some(range) => OneRead::Long(LongRead { io, name, op, range, is_head }.finish()),
            None => OneRead::Short(submit_parts(&io, &name, &op, range.as_slice(), None)?),
        };
        Ok(async move {
            match read {
                OneRead::Long(reply) => reply.await,
                OneRead::Short(reply) => reply.await,
            }
        })
    }
}

/// A read by its length.
enum OneRead<Long, Short> {
    Long(Long),
    Short(Short),
}

/// Sends one request off, for `parts` of the data and whatever else is asked for; where a version is given, the reply is of it, or
/// `Conflict`.
fn submit_parts(
    io: &Arc<IoCtx>,
    name: &CStr,
    op: &ReadOp,
    parts: &[(u64, usize)],
    version: Option<u64>,
) -> Result<impl Future<Output = Result<ReadReply>> + Send + use<>> {
    let read = Read::new(parts, op.is_data_alone)?;
    if let Some(version) = version {
        read.assert_version(version);
    }
    if op.xattrs {
        read.xattrs();
    }
    let page = op.omap.clone().map(Page::new);
    if let Some(page) = &page {
        read.omap(&page.step());
    }
    let pending = read.submit(io, name)?;
    Ok(async move {
        let Found { version, size, changed, data, xattrs, omap, more } = pending.await?;
        let extents = data.into_iter().flat_map(|(offset, data)| extents(offset, data)).collect();
        let omap = match page {
            Some(page) => page.pick(omap, more)?,
            None => OmapPage::default(),
        };
        let stamp = Stamp::from_seconds(changed);
        let xattrs = xattrs.into_iter().collect();
        Ok(ReadReply { version, size, stamp, data: SparseData { extents }, xattrs, omap })
    })
}

/// A read of a long range that leaves holes out, where it can be told what they are.
struct LongRead {
    io: Arc<IoCtx>,
    name: CString,
    op: ReadOp,
    range: (u64, usize),
    is_head: bool,
}

impl LongRead {
    /// Asks where the data is, and reads it there. What was a hole may be none when the rest is read: at HEAD the version before both tells,
    /// and then all is read at once. A snapshot does not change.
    async fn finish(self) -> Result<ReadReply> {
        let whole = || submit_parts(&self.io, &self.name, &self.op, &[self.range], None);
        if !self.io.full_objects.wants_look() {
            return whole()?.await;
        }
        let version = if self.is_head {
            Some(submit_parts(&self.io, &self.name, &ReadOp::stat(), &[], None)?.await?.version)
        } else {
            None
        };
        let Some(asked) = self.io.find_extents(&self.name, self.range) else { return whole()?.await };
        let Some(told) = asked.await? else { return whole()?.await };
        let parts = parts(&told, self.range, HOLE_READ_MAX);
        self.io.full_objects.note(parts.iter().map(|(_, length)| length).sum(), self.range.1);
        match submit_parts(&self.io, &self.name, &self.op, &parts, version)?.await {
            Err(e) if version.is_some() && e.kind() == ErrorKind::Conflict => whole()?.await,
            read => read,
        }
    }
}

/// Asks where an object has data; `None` where it cannot be told.
fn told_extents(
    io: &Arc<IoCtx>,
    object: &ObjectId,
    range: (u64, usize),
) -> Result<impl Future<Output = Result<Option<Extents>>> + Send + use<>> {
    let asked = if range.1 > 0 { io.find_extents(&object_name(object)?, range) } else { None };
    let object = object.clone();
    Ok(async move {
        match asked {
            Some(asked) => asked.await.map_err(|e| e.with("object", object)),
            None => Ok(None),
        }
    })
}

/// The parts of a range that have data, as far as it is told, with holes up to `hole` bytes between.
fn parts(told: &[(u64, u64)], (offset, length): (u64, usize), hole: u64) -> Vec<(u64, usize)> {
    let end = offset + length as u64;
    let mut found: Vec<(u64, u64)> = Vec::new();
    for (at, length) in told {
        let (from, to) = ((*at).max(offset), at.saturating_add(*length).min(end));
        if from >= to {
            continue;
        }
        match found.last_mut() {
            Some((_, before)) if from <= before.saturating_add(hole) => *before = to.max(*before),
            _ => found.push((from, to)),
        }
    }
    let length = |from, to: u64| usize::try_from(to - from).expect("within the range");
    found.into_iter().map(|(from, to)| (from, length(from, to))).collect()
}
