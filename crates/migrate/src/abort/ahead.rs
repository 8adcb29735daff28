//! An abort while clients use the target: most of what they wrote goes back to the source before they have to wait.
//!
//! ```text
//!   checks                              nothing is changed by what is refused
//!   target: carrying back               it goes on being written; no snapshot can be taken
//!   source: Aborting, carrying back     only an abort can come next
//!   written since prepare               back to the source
//!   written meanwhile                   likewise, again and again, until it is little
//!   (clients wait)
//!   target: Aborting                    it cannot be written any more
//!   the rest                            back to the source, and on as in any abort
//! ```
//!
//! Invariants
//! - What goes back lies in objects that the target has with their whole history, or of which the source had nothing: neither HEAD nor
//!   a snapshot of the target shows the source there. Only one taken since prepare might, of an object that the source had nothing
//!   of: where there is one nothing is carried back ahead, and none is taken meanwhile.
//! - Where not every change is known in the end, or such an abort was cut off, both ends are compared instead: the source may have
//!   what was undone on the target since.

use std::ops::Range;

use ferry_core::{Error, ErrorKind, Result, SnapId};
use ferry_image::device::{ImageDevice, Recording};
use ferry_image::diff::Diff;
use ferry_image::encoding::MigrationState;
use ferry_image::features::Features;
use ferry_image::header::CARRYING_BACK;
use ferry_image::image::Image;
use ferry_image::io::Io;
use ferry_image::progress::{Progress, silent};
use ferry_image::remove;
use ferry_image::revision::Revision;
use futures_util::TryStreamExt;

use super::carry::{carry_back_differences, tells_changes};
use super::{AbortOptions, Restored, begin, check_losses, check_place, give_place_back, relink_back};
use crate::children;
use crate::ends::Ends;

/// How often what was written meanwhile is carried back.
const ROUNDS_MAX: usize = 8;

/// How much an abort beside clients carried back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Before clients had to wait. Bytes; what was written again counts again.
    pub ahead: u64,
    /// While they waited. Bytes; `None` where both ends were compared.
    pub waiting: Option<u64>,
}

/// An abort of a migration whose target a device of this process has open. Dropped, the target can still be used, and an abort goes on.
#[derive(Debug)]
pub struct LiveAbort {
    ends: Ends,
    options: AbortOptions,
    source: Image,
    io: Io,
    recording: Recording,
    /// Whether all is known that was written since the recording began.
    knows_all: bool,
    carried: Carried,
    /// The state of the target before it was closed, and how it was described.
    before: Option<(MigrationState, String)>,
}

impl LiveAbort {
    /// Begins one; `None` where everything has to be done while clients wait: on a cluster, without exclusive lock, where another
    /// program prepared the migration or an abort was cut off.
    ///
    /// # Errors
    /// As [`super::abort`]. What is refused changes nothing; after an error of a store an abort may have begun, as after a kill.
    ///
    /// # Crash safety
    /// Killed, [`super::abort`] finishes.
    pub async fn begin(ends: &Ends, options: AbortOptions, device: &ImageDevice) -> Result<Option<Self>> {
        let mut ends = ends.clone();
        ends.reload().await?;
        if !ends.is_target_usable() {
            return Ok(None);
        }
        let target = children::as_image(&ends.target)?;
        let has_lock = target.header.features.contains(Features::EXCLUSIVE_LOCK);
        if !tells_changes(&target) || !has_lock || may_show_source(&ends) {
            return Ok(None);
        }
        if let Err(e) = remove::check_watchers(&device.image()).await {
            return Err(Error::busy("image has watchers - cannot abort migration").because(e));
        }
        check_place(&ends).await?;
        check_losses(&ends, options).await?;
        let recording = device.record().await?;
        let (state, before) = ends.target.record().map(|r| (r.state, r.description.clone())).unzip();
        let (state, before) = (state.unwrap_or(MigrationState::Error), before.unwrap_or_default());
        ends.target.set_state(state, CARRYING_BACK).await?;
        if may_show_source(&ends) {
            // It was taken just now.
            ends.target.set_state(state, &before).await?;
            return Ok(None);
        }
        ends.source.set_state(MigrationState::Aborting, CARRYING_BACK).await?;
        let mut source = ends.source.open().await?;
        let io = match Io::open(&mut source).await {
            Ok(io) => io,
            Err(e) => {
                source.close().await?;
                return Err(e);
            }
        };
        Ok(Some(Self {
            ends,
            options,
            source,
            io,
            recording,
            knows_all: false,
            carried: Carried::default(),
            before: None,
        }))
    }

    /// Carries back what was written to the target, beside its clients, until at most `little` bytes are left or they write faster
    /// than that can be done.
    ///
    /// # Errors
    /// Those of the stores.
    ///
    /// # Cancel safety
    /// As a crash.
    pub async fn carry(&mut self, device: &ImageDevice, little: u64, progress: Progress<'_>) -> Result<()> {
        let diff = Diff::since_prepare(&device.image()).await?;
        let (mut done, total) = (0, diff.steps());
        let mut batches = std::pin::pin!(diff.changes());
        while let Some(batch) = batches.try_next().await? {
            for change in batch {
                let range = change.offset..change.offset + change.length;
                self.carry_range(device, diff.to(), range).await?;
            }
            done += 1;
            progress(done, total);
        }
        for _ in 0..ROUNDS_MAX {
            if self.recording.bytes() <= little {
                break;
            }
            let ranges = device.take_changes(&self.recording).await;
            let shown = device.image().revision_at(SnapId::HEAD).await?;
            for range in ranges {
                self.carry_range(device, &shown, range).await?;
            }
        }
        self.ends.source.pool.store.flush().await
    }

    async fn carry_range(&mut self, device: &ImageDevice, shown: &Revision, range: Range<u64>) -> Result<()> {
        let length = range.end.min(self.io.size()).min(shown.size).saturating_sub(range.start);
        if length == 0 {
            return Ok(());
        }
        let mut last = None;
        for extent in shown.layout.extents(range.start, length) {
            if last.replace(extent.object) != Some(extent.object) {
                device.migrate_object(extent.object).await?;
            }
        }
        match self.io.copy_range(shown, range.start, length).await {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Invalid) => {
                // A client changed what had been looked up before it was taken. If it is not that, the next time tells.
                self.recording.note(range);
                Ok(())
            }
            Ok(()) => {
                self.carried.ahead += length;
                Ok(())
            }
            failed => failed,
        }
    }

    /// Closes the target to writers. No request may be under way on the device, nor come, from now on; it is still open.
    ///
    /// # Errors
    /// `Busy` (16) where the target has got what cannot be carried back, and that is not accepted: it can be used as before, and an
    /// abort goes on; those of the store.
    ///
    /// # Crash safety
    /// Killed, [`super::abort`] finishes.
    pub async fn close_target(&mut self, device: &ImageDevice) -> Result<()> {
        self.ends.reload().await?;
        check_losses(&self.ends, self.options).await?;
        self.before = self.ends.target.record().map(|r| (r.state, r.description.clone()));
        begin(&mut self.ends).await?;
        self.knows_all = device.has_recorded_all(&self.recording);
        Ok(())
    }

    /// Carries the rest back, and gives the source its clones and its name; how much was carried in all. The device must be closed.
    ///
    /// # Errors
    /// As [`super::abort`]; after `Busy` (16) for somebody who has the target open it can be used as before.
    ///
    /// # Crash safety
    /// Killed, [`super::abort`] finishes.
    pub async fn finish(mut self) -> Result<(Restored, Carried)> {
        let target = self.ends.target.open().await?;
        let watched = remove::check_watchers(&target).await;
        target.close().await?;
        if let Err(e) = watched {
            if let Some((state, description)) = self.before.take() {
                self.ends.target.reopen_as(state, &description).await?;
            }
            return Err(Error::busy("image has watchers - cannot abort migration").because(e));
        }
        let target = children::as_image(&self.ends.target)?;
        if self.knows_all {
            // For its newer end: what was written aside still counts.
            let diff = Diff::since_prepare(&target).await?;
            let mut carried = 0;
            for range in self.recording.take() {
                let end = range.end.min(self.io.size()).min(diff.to().size);
                let length = end.saturating_sub(range.start);
                if length > 0 {
                    self.io.copy_range(diff.to(), range.start, length).await?;
                }
                carried += length;
            }
            self.carried.waiting = Some(carried);
            self.source.close().await?;
        } else {
            self.source.close().await?;
            carry_back_differences(&self.ends, target, &mut silent).await?;
        }
        let mut ends = self.ends;
        ends.reload().await?;
        relink_back(&mut ends).await?;
        Ok((give_place_back(ends).await?, self.carried))
    }
}

/// Whether a snapshot of the target, taken since prepare, may show the source where the target has no object.
fn may_show_source(ends: &Ends) -> bool {
    let Some(header) = ends.target.header.as_ref().filter(|h| h.redirects()) else { return false };
    let Some(record) = &header.migration else { return false };
    header.snaps.keys().any(|snap| record.source_snap(*snap).is_none())
}
