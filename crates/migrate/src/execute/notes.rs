//! What an execute writes down on its way: the digests of what it read, and how far it is.
//!
//! Invariants
//! - Digests are written before the words that say that their objects are done.
//! - Objects go on being copied while a note is written, and what comes up meanwhile goes into the next one. A store that does not
//!   answer at once then has [`REST`] times as long without one, unless nothing is under way.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ferry_core::{Clock, Error, ErrorKind, Result, SnapId};
use ferry_image::digest::Digest;
use ferry_image::encoding::MigrationState;
use ferry_image::layout::ObjectNo;
use futures_util::future::{BoxFuture, FutureExt};

use crate::digests::Keeper;
use crate::ends::End;

/// A note is several ops, one after the other, and as dear as the copy of a small object: a tenth of the time is theirs.
const REST: u32 = 9;

/// Digests that are not written alone.
const BATCH: usize = 4096;

/// How far an execute is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reached {
    pub(super) percent: u64,
    /// The object below which all is done.
    pub(super) first: u64,
}

/// Where notes go.
struct Desk<'a, 'b> {
    ends: &'a mut [&'b mut End],
    keeper: Keeper,
}

impl Desk<'_, '_> {
    async fn write(&mut self, reached: Option<Reached>) -> Result<()> {
        self.keeper.write().await?;
        match reached {
            Some(reached) => describe(self.ends, reached).await,
            None => Ok(()),
        }
    }
}

/// A note that is being written: it gives the desk back.
type Writing<'a, 'b> = BoxFuture<'a, (Desk<'a, 'b>, Result<()>)>;

/// When a note is begun.
#[derive(Clone, Copy, Debug)]
pub(super) enum When {
    /// Where there is progress to tell, after the rest that the one before it earned.
    Rested,
    /// Where there is progress to tell: nothing else is under way.
    Idle,
    /// Where there is anything to write.
    Always,
}

/// Writes one note after the other while it is polled.
pub(super) struct Notes<'a, 'b> {
    /// Where no note is under way.
    desk: Option<Desk<'a, 'b>>,
    /// A note that is under way, and when it was begun.
    under_way: Option<(Writing<'a, 'b>, Duration)>,
    /// What the next note says.
    digests: Vec<(ObjectNo, Vec<(SnapId, Digest)>)>,
    reached: Option<Reached>,
    clock: Arc<dyn Clock>,
    /// No note is begun before.
    rest_until: Duration,
}

impl<'a, 'b: 'a> Notes<'a, 'b> {
    pub(super) fn new(ends: &'a mut [&'b mut End], keeper: Keeper, clock: Arc<dyn Clock>) -> Self {
        Self {
            desk: Some(Desk { ends, keeper }),
            under_way: None,
            digests: Vec::new(),
            reached: None,
            clock,
            rest_until: Duration::ZERO,
        }
    }

    /// Takes what was read of an object.
    pub(super) fn read(&mut self, object: ObjectNo, digests: Vec<(SnapId, Digest)>) {
        if !digests.is_empty() {
            self.digests.push((object, digests));
        }
    }

    /// Takes how far the execute is.
    pub(super) fn reached(&mut self, reached: Reached) {
        self.reached = Some(reached);
    }

    /// Whether so much is to be written that it is time to wait for it.
    pub(super) fn is_full(&self) -> bool {
        self.digests.iter().map(|(_, of_object)| of_object.len()).sum::<usize>() >= BATCH
    }

    /// Writes all that is to be written.
    ///
    /// # Errors
    /// Those of the stores; `ReadOnly` (30) while the migration is being aborted.
    pub(super) async fn settle(&mut self) -> Result<()> {
        poll_fn(|cx| self.poll(cx, When::Always)).await
    }

    /// Goes on writing, and begins the next note where one is due. Ready where there is nothing to do now.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, when: When) -> Poll<Result<()>> {
        loop {
            let is_new = self.under_way.is_none();
            if is_new && !self.begin(when) {
                return Poll::Ready(Ok(()));
            }
            let Some((writing, since)) = &mut self.under_way else { return Poll::Ready(Ok(())) };
            let (desk, written) = ready!(writing.poll_unpin(cx));
            if !is_new {
                let now = self.clock.elapsed();
                self.rest_until = now + now.saturating_sub(*since) * REST;
            }
            (self.desk, self.under_way) = (Some(desk), None);
            written?;
        }
    }

    /// Begins a note where one is due.
    fn begin(&mut self, when: When) -> bool {
        let now = self.clock.elapsed();
        let is_due = match when {
            When::Rested => self.reached.is_some() && now >= self.rest_until,
            When::Idle => self.reached.is_some(),
            When::Always => self.reached.is_some() || !self.digests.is_empty(),
        };
        if !is_due {
            return false;
        }
        let Some(mut desk) = self.desk.take() else { return false };
        for (object, digests) in self.digests.drain(..) {
            desk.keeper.note(object, &digests);
        }
        let reached = self.reached.take();
        let writing = async move {
            let written = desk.write(reached).await;
            (desk, written)
        };
        self.under_way = Some((writing.boxed(), now));
        true
    }
}

/// Notes for people how far it is, and for the next execute of an import below which object all is done; nobody is woken up
/// for that.
async fn describe(ends: &mut [&mut End], reached: Reached) -> Result<()> {
    let text = format!("{}% complete", reached.percent);
    for end in ends {
        end.update(|h| {
            if let Some(intent) = h.intent.as_mut().filter(|i| i.origin.is_some()) {
                intent.cursor = intent.cursor.max(reached.first);
            }
            if h.migration.as_ref().is_some_and(|m| m.state == MigrationState::Aborting) {
                return Err(Error::new(ErrorKind::ReadOnly, "migration is being aborted"));
            }
            h.set_migration_state(MigrationState::Executing, &text)
        })
        .await?;
    }
    Ok(())
}
