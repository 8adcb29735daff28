//! Bytes and zeros on their way into an image, several requests at once.

use bytes::Bytes;
use ferry_core::Result;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::io::Io;
use crate::limits::OBJECTS_IN_FLIGHT;
use crate::zeroes::runs;

/// What zeros on their way in mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeroes {
    /// The image is empty there: nothing to do.
    Skip,
    /// They take the place of what was there.
    Discard,
}

/// Applies changes that do not overlap, up to [`OBJECTS_IN_FLIGHT`] at once.
pub(super) struct Applier<'a> {
    io: &'a Io,
    /// Blocks of zeros of this size are not written. Bytes.
    block: u64,
    zeroes: Zeroes,
    in_flight: FuturesUnordered<BoxFuture<'a, Result<()>>>,
}

impl<'a> Applier<'a> {
    /// Applies to `io`.
    pub(super) fn new(io: &'a Io, block: u64, zeroes: Zeroes) -> Self {
        Self { io, block, zeroes, in_flight: FuturesUnordered::new() }
    }

    /// Takes bytes, leaving out blocks of zeros.
    ///
    /// # Errors
    /// Those of an earlier request, or `Invalid` (22) outside the image.
    pub(super) async fn data(&mut self, offset: u64, data: Bytes) -> Result<()> {
        self.io.revision().check_range(offset, data.len() as u64)?;
        let cuts: Vec<_> = runs(offset, &data, self.block).collect();
        for run in cuts {
            let at = offset + run.start as u64;
            if run.is_zero {
                self.zero(at, run.length as u64).await?;
            } else {
                let part = data.slice(run.start..run.start + run.length);
                let io = self.io;
                self.push(Box::pin(async move { io.write(at, part).await })).await?;
            }
        }
        Ok(())
    }

    /// Takes a range of zeros.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub(super) async fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        self.io.revision().check_range(offset, length)?;
        match self.zeroes {
            Zeroes::Skip => Ok(()),
            Zeroes::Discard => {
                let io = self.io;
                self.push(Box::pin(async move { io.discard(offset, length).await })).await
            }
        }
    }

    /// Waits for everything taken.
    ///
    /// # Errors
    /// The first of the requests.
    pub(super) async fn finish(mut self) -> Result<()> {
        while let Some(done) = self.in_flight.next().await {
            done?;
        }
        Ok(())
    }

    /// Adds a request, waiting for room.
    async fn push(&mut self, request: BoxFuture<'a, Result<()>>) -> Result<()> {
        self.in_flight.push(request);
        while self.in_flight.len() >= OBJECTS_IN_FLIGHT {
            if let Some(done) = self.in_flight.next().await {
                done?;
            }
        }
        Ok(())
    }
}
