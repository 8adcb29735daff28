//! Compound reads, and extents out of plain bytes.

use bytes::Bytes;
use ferry_core::limits::{BLOCK_SIZE, OBJECT_SIZE_MAX};
use ferry_core::{ErrorKind, ObjectId, OmapPage, ReadOp, ReadReply, Result, SnapId, SparseData, Stamp};

use super::pages::Page;
use super::{RadosStore, object_name};
use crate::handle::View;
use crate::handle::op::{Found, Read};

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

    /// Sends one request off.
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
        let read = Read::new(range, op.is_data_alone)?;
        if op.xattrs {
            read.xattrs();
        }
        let page = op.omap.map(Page::new);
        if let Some(page) = &page {
            read.omap(&page.step());
        }
        let io = self.io_of(object, view)?;
        let pending = read.submit(&io, &object_name(object)?)?;
        let offset = range.map_or(0, |(offset, _)| offset);
        Ok(async move {
            let Found { version, size, changed, data, xattrs, omap, more } = pending.await?;
            let data = SparseData { extents: extents(offset, data) };
            let omap = match page {
                Some(page) => page.pick(omap, more)?,
                None => OmapPage::default(),
            };
            let stamp = Stamp::from_seconds(changed);
            Ok(ReadReply { version, size, stamp, data, xattrs: xattrs.into_iter().collect(), omap })
        })
    }
}
