//! `rbd import`: a raw image, or an image stream with its snapshots.

use std::io::Read;

use bytes::Bytes;
use ferry_core::{Error, Result};

use super::apply::{Applier, Zeroes};
use super::import_diff::apply_diff;
use crate::image::Image;
use crate::io::Io;
use crate::progress::Progress;
use crate::resize::{Shrinking, resize};
use crate::stream::{ImageStreamReader, PIECE_MAX};

/// A part of a raw image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawExtent {
    /// Bytes.
    Data {
        /// Bytes from the start of the image.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// Zeros.
    Hole {
        /// Bytes from the start of the image.
        offset: u64,
        /// Bytes.
        length: u64,
    },
}

/// A raw image to be read from its start to its end: a file with holes, a device, a pipe.
pub trait RawSource {
    /// Size, where it is known before the end. Bytes.
    fn size(&self) -> Option<u64>;

    /// The next part, right behind the one before; `None` at the end.
    ///
    /// # Errors
    /// Those of reading.
    fn next_extent(&mut self) -> Result<Option<RawExtent>>;
}

/// A raw image out of anything that can be read, without knowing its holes.
#[derive(Debug)]
pub struct ReadSource<R> {
    inner: R,
    size: Option<u64>,
    at: u64,
}

impl<R: Read> ReadSource<R> {
    /// Reads from here to the end; `size` where it is known, in bytes.
    pub fn new(inner: R, size: Option<u64>) -> Self {
        Self { inner, size, at: 0 }
    }
}

impl<R: Read> RawSource for ReadSource<R> {
    fn size(&self) -> Option<u64> {
        self.size
    }

    fn next_extent(&mut self) -> Result<Option<RawExtent>> {
        let mut data = Vec::new();
        (&mut self.inner)
            .take(PIECE_MAX as u64)
            .read_to_end(&mut data)
            .map_err(|e| Error::io("cannot read the image to import", e))?;
        if data.is_empty() {
            return Ok(None);
        }
        let offset = self.at;
        self.at += data.len() as u64;
        Ok(Some(RawExtent::Data { offset, data: Bytes::from(data) }))
    }
}

/// Reads a raw image into an empty `target`. A target too small grows with what comes (doubling), and has exactly the size of
/// what came in the end where the source did not know its size. Blocks of zeros of `sparse_block` bytes are not stored.
///
/// # Errors
/// Those of the source; `Invalid` (22) where the source gives more than it said; those of the store.
///
/// # Crash safety
/// Durable when it returns; before, the image holds a part.
pub async fn import_raw(
    source: &mut dyn RawSource,
    target: &mut Image,
    sparse_block: u64,
    progress: Progress<'_>,
) -> Result<()> {
    let mut end = 0;
    let mut io = Io::open(target).await?;
    let mut held: Option<RawExtent> = None;
    loop {
        let mut applier = Applier::new(&io, sparse_block, Zeroes::Skip);
        let mut wanted = None;
        while let Some(extent) = next_or_held(source, &mut held)? {
            let extent_end = end_of(&extent);
            if extent_end > io.size() {
                (wanted, held) = (Some(extent_end), Some(extent));
                break;
            }
            if let RawExtent::Data { offset, data } = extent {
                applier.data(offset, data).await?;
            }
            end = end.max(extent_end);
            progress(end, source.size().unwrap_or(end).max(end));
        }
        applier.finish().await?;
        let Some(wanted) = wanted else { break };
        if source.size().is_some() {
            return Err(Error::invalid("the image to import is larger than it said").with("bytes", wanted));
        }
        let size = io.size().saturating_mul(2).max(wanted);
        resize(target, size, Shrinking::Allowed, &mut crate::progress::silent).await?;
        io = Io::open(target).await?;
    }
    if source.size().is_none() && end != io.size() {
        resize(target, end, Shrinking::Allowed, &mut crate::progress::silent).await?;
    }
    target.pool.store.flush().await
}

/// The extent kept back, or the next one.
fn next_or_held(source: &mut dyn RawSource, held: &mut Option<RawExtent>) -> Result<Option<RawExtent>> {
    match held.take() {
        Some(extent) => Ok(Some(extent)),
        None => source.next_extent(),
    }
}

/// The first byte behind an extent.
fn end_of(extent: &RawExtent) -> u64 {
    match extent {
        RawExtent::Data { offset, data } => offset.saturating_add(data.len() as u64),
        RawExtent::Hole { offset, length } => offset.saturating_add(*length),
    }
}

/// Applies the diffs of an image stream, snapshots and their protection included, to an empty `target`, and takes over the
/// metadata. The caller has made the target from the stream's header.
///
/// # Errors
/// `Corrupt` (22, 74) for a broken stream; those of the store.
///
/// # Crash safety
/// Durable when it returns; before, the snapshots made so far are complete.
pub async fn import_stream<R: Read + Send>(
    stream: &mut ImageStreamReader<R>,
    target: &mut Image,
    sparse_block: u64,
    progress: Progress<'_>,
) -> Result<()> {
    let metadata = stream.header().metadata.clone();
    if !metadata.is_empty() {
        target
            .update_header(|h| {
                h.metadata.extend(metadata.iter().map(|(k, v)| (k.clone(), Bytes::from(v.clone()))));
                Ok(())
            })
            .await?;
    }
    let total = stream.diffs();
    let mut done = 0;
    while let Some(mut diff) = stream.next_diff()? {
        apply_diff(&mut diff, target, sparse_block, &mut crate::progress::silent).await?;
        done += 1;
        progress(done, total);
    }
    target.pool.store.flush().await
}
