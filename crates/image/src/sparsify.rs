//! Giving back the space of what is zeros anyway.

use ferry_core::{Effect, Error, ErrorKind, Guard, ReadOp, Result, WriteOp};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::image::Image;
use crate::io::Io;
use crate::layout::ObjectNo;
use crate::limits::{OBJECTS_IN_FLIGHT, WRITE_RETRIES_MAX};
use crate::progress::Progress;
use crate::zeroes::runs;

/// Turns blocks of zeros of HEAD into holes; objects of nothing but zeros go, or stay empty below the overlap. `block` is the
/// size of the blocks looked at, in bytes.
///
/// # Errors
/// `Invalid` (22) for a block that is not a power of two of at least 4096; `ReadOnly` (30); those of the store.
///
/// # Crash safety
/// What is read never changes; a crash leaves some objects done and others not.
pub async fn sparsify(image: &mut Image, block: u64, progress: Progress<'_>) -> Result<()> {
    if !block.is_power_of_two() || block < 4096 {
        return Err(
            Error::invalid("the sparse size must be a power of two of at least 4096").with("bytes", block)
        );
    }
    let io = Io::open(image).await?;
    let total = io.revision().object_count();
    let work = stream::iter((0..total).map(ObjectNo)).map(|object| io.sparsify_object(object, block));
    let mut work = std::pin::pin!(work.buffer_unordered(OBJECTS_IN_FLIGHT));
    let mut done = 0;
    while work.try_next().await?.is_some() {
        done += 1;
        progress(done, total);
    }
    io.flush().await
}

impl Io {
    /// Punches holes into one object, guarded by the version that was looked at.
    async fn sparsify_object(&self, object: ObjectNo, block: u64) -> Result<()> {
        let length = self.revision().length_of(object);
        if self.map().is_some_and(|map| !map.get(object).may_exist()) || length == 0 {
            return Ok(());
        }
        for _ in 0..WRITE_RETRIES_MAX {
            let op = ReadOp::data(0, self.revision().layout.object_size());
            let Some(reply) = self.revision().look(object, op).await? else { return Ok(()) };
            let is_hidden = self.revision().overlap_in(object) > 0;
            let (effects, last_data) = holes(&reply.data.extents, block);
            if last_data == 0 && !is_hidden {
                // Nothing but zeros; nobody else writes while this client holds the lock, and the guard covers the rest.
                if self.remove_at_version(object, reply.version).await? {
                    return Ok(());
                }
                continue;
            }
            let mut effects = effects;
            if last_data < reply.size {
                effects.push(Effect::Truncate(last_data));
            }
            if effects.is_empty() {
                return Ok(());
            }
            let op = WriteOp { effects, ..WriteOp::new() }.guard(Guard::AssertVersion(reply.version));
            let punching = async {
                match self.apply(object, op).await {
                    Err(e) if e.kind() == ErrorKind::Conflict => Ok(false),
                    done => done.map(|()| true),
                }
            };
            if self.announced(vec![object], punching).await? {
                return Ok(());
            }
        }
        Err(Error::busy("an object is written all the time").with("image_object", object.0))
    }

    /// Removes an object nobody changed since `version`; whether it is gone.
    async fn remove_at_version(&self, object: ObjectNo, version: u64) -> Result<bool> {
        if let Some(map) = self.map() {
            map.begin_remove(object).await?;
        }
        let op = WriteOp::new().guard(Guard::AssertVersion(version)).effect(Effect::Remove);
        let removed = match self.apply(object, op).await {
            Ok(()) => true,
            Err(e) if e.kind() == ErrorKind::NotFound => true,
            Err(e) if e.kind() == ErrorKind::Conflict => false,
            Err(e) => return Err(e),
        };
        if let Some(map) = self.map() {
            if !removed {
                map.begin_write(vec![object]).await?.finish();
            }
            map.end_remove(object).await?;
        }
        Ok(removed)
    }
}

/// The zero blocks inside the extents of an object as holes to punch, and the end of the last byte that is not in one.
fn holes(extents: &[(u64, bytes::Bytes)], block: u64) -> (Vec<Effect>, u64) {
    let (mut effects, mut last_data) = (Vec::new(), 0);
    for (offset, bytes) in extents {
        for run in runs(*offset, bytes, block) {
            let (start, length) = (offset + run.start as u64, run.length as u64);
            if run.is_zero {
                effects.push(Effect::Zero { offset: start, length });
            } else {
                last_data = start + length;
            }
        }
    }
    effects.retain(|e| !matches!(e, Effect::Zero { offset, .. } if *offset >= last_data));
    (effects, last_data)
}
