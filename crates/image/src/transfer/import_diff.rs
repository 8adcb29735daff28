//! `rbd import-diff`: brings an image from one snapshot to another.

use std::io::Read;

use ferry_core::{Errno, Error, Result};

use super::apply::{Applier, Zeroes};
use crate::image::Image;
use crate::io::Io;
use crate::progress::{Progress, silent};
use crate::resize::{Shrinking, resize};
use crate::snapshot;
use crate::stream::{DiffFile, DiffReader, DiffRecord, DiffVersion};

/// Applies the diff of `export-diff` in `stream` to the image: gives it the size, the data, and the snapshot it leads to.
/// Progress counts bytes of the image.
///
/// # Errors
/// `Invalid` (22) where the snapshot it starts from is not there, `Exists` (17) where the one it leads to is; `Corrupt` (22,
/// 74) for a broken stream; `Invalid` (22) for data outside the image; those of the store.
///
/// # Crash safety
/// A crash or a broken stream midway leaves HEAD with a part of the changes; roll it back to the first snapshot and repeat.
pub async fn import_diff<R: Read + Send>(
    stream: R,
    image: &mut Image,
    sparse_block: u64,
    progress: Progress<'_>,
) -> Result<()> {
    let mut file = DiffFile::new(stream);
    let mut diff = file.open(DiffVersion::V1)?;
    apply_diff(&mut diff, image, sparse_block, progress).await?;
    image.pool.store.flush().await
}

/// Applies one diff.
pub(super) async fn apply_diff<R: Read + Send>(
    diff: &mut DiffReader<'_, R>,
    image: &mut Image,
    sparse_block: u64,
    progress: Progress<'_>,
) -> Result<()> {
    let header = diff.header().clone();
    image.acquire().await?;
    if let Some(from) = &header.from_snap {
        image.header.user_snap(from).map_err(|e| {
            Error::invalid("start snapshot does not exist in the image").with("snapshot", from).because(e)
        })?;
    }
    if let Some(to) = &header.to_snap
        && image.header.user_snap(to).is_ok()
    {
        return Err(Error::exists("end snapshot already exists")
            .errno_is(Errno::EEXIST)
            .with("snapshot", to));
    }
    if let Some(size) = header.size {
        resize(image, size, Shrinking::Allowed, &mut silent).await?;
    }
    let io = Io::open(image).await?;
    let mut applier = Applier::new(&io, sparse_block, Zeroes::Discard);
    while let Some(record) = diff.next_record()? {
        match record {
            DiffRecord::Write { offset, data } => {
                applier.data(offset, data).await?;
                progress(offset, io.size());
            }
            DiffRecord::Zero { offset, length } => {
                applier.zero(offset, length).await?;
                progress(offset, io.size());
            }
        }
    }
    applier.finish().await?;
    drop(io);
    if let Some(to) = &header.to_snap {
        snapshot::create(image, to).await?;
        if header.is_protected {
            snapshot::protect(image, to).await?;
        }
    }
    Ok(())
}
