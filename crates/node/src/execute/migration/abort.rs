//! Abort: most of what clients wrote goes back before they have to wait, and the target is removed when they go on.

use ferry_core::{Errno, Error, ErrorKind, Result};
use ferry_image::device::ImageDevice;
use ferry_migrate::{AbortOptions, Ends, LiveAbort, restore};
use std::time::Duration;

use super::moved::Moved;
use super::receipt::Kept;
use super::spec_of;
use crate::api::{Done, Failure, Progress};
use crate::cancel::Cancel;
use crate::execute::Run;
use crate::offered::Offering;
use crate::spec::ImageSpec;

/// What a draft that cannot be removed means.
const DRAFT_STAYS: &str = "the source is back, but a draft of a receipt stays";

/// What may be left to be carried back while clients wait. Bytes; some milliseconds of a disk's time.
const LITTLE: u64 = 2 << 20;

impl Run<'_> {
    pub(super) async fn migration_abort(
        &self,
        image: &ImageSpec,
        options: AbortOptions,
        limit: Duration,
    ) -> Done<()> {
        let rbd = "rbd: aborting migration failed";
        let what = format!("cannot abort the migration of {image}");
        let moved = match self.moved(image, &what, rbd).await {
            Err(e) if e.errno == Errno::ENOENT.0 && self.has_remains(image).await? => {
                return self.abort_import(image, options, "").await;
            }
            Err(e)
                if [Errno::ENOENT.0, Errno::EINVAL.0].contains(&e.errno)
                    && self.revived(image, &what, rbd).await? =>
            {
                tracing::info!(%image, "another program died when it began to move it: it has its name back");
                Progress::start(self.events, "Abort image migration").done();
                return Ok(());
            }
            moved => moved?,
        };
        let ends = match moved {
            Moved::Image(ends) => *ends,
            Moved::Import(import) => {
                let kept = Kept::of_import(self.home, &import.target);
                self.abort_import(&spec_of(&import.target), options, import.spec()).await?;
                self.told(kept.forget(), DRAFT_STAYS);
                return Ok(());
            }
        };
        let (source, kept) = (ends.source.name.clone(), Kept::of(self.home, &ends));
        let step = Progress::start(self.events, "Abort image migration");
        let (from, to) = (spec_of(&ends.target), spec_of(&ends.source));
        let failed = |e: &Error, begun| abort_failed(e, &what, rbd, image, &source, begun);
        let live = self.begin_live(&ends, options, &from).await.map_err(|e| failed(&e, Begun::No))?;
        let (begun, switched) = match live {
            Some((mut live, device)) => {
                let carried = live.carry(&device, LITTLE, &mut |done, total| step.at(done, total * 2)).await;
                carried.map_err(|e| failed(&e, Begun::Yes))?;
                let quiet = async || {
                    let mut live = live;
                    live.close_target(&device).await?;
                    // It holds the watch.
                    drop(device);
                    Ok(live)
                };
                let finish = async |live: LiveAbort, _: &Cancel| {
                    let (restored, carried) = live.finish().await?;
                    let (ahead, waiting) = (carried.ahead, carried.waiting);
                    tracing::info!(%image, ahead_bytes = ahead, waiting_bytes = waiting, "carried back");
                    Ok(restored)
                };
                (Begun::Yes, self.switching(&from, &to, limit, quiet, finish).await)
            }
            None => {
                // It does not give way once it has begun: the target cannot be written any more from then on.
                let all = async |(), _: &Cancel| {
                    restore(ends, options, &mut |done, total| step.at(done, total * 2)).await
                };
                (Begun::No, self.switching(&from, &to, limit, async || Ok(()), all).await)
            }
        };
        let (restored, lost) = switched.map_err(|e| failed(&e, begun))?.into_parts();
        // While there is a target the same abort comes here again.
        self.told(kept.forget(), DRAFT_STAYS);
        let removed = restored.remove_target(&mut |done, total| step.at(total + done, total * 2)).await;
        removed.map_err(|e| failed(&e, Begun::Yes))?;
        if let Some(lost) = lost {
            return Err(lost);
        }
        step.done();
        Ok(())
    }

    /// Whether another program died before it wrote down that it moves an image, which has its name back now.
    async fn revived(&self, image: &ImageSpec, what: &str, rbd: &str) -> Done<bool> {
        let pool = self.pool(&image.pool_spec()).await?;
        ferry_migrate::revive(&pool, &image.image).await.map_err(|e| Failure::of(&e, what, rbd))
    }

    /// Begins to abort beside the clients of the target `image`; `None` where it has none here, or all has to be done while they
    /// wait.
    async fn begin_live(
        &self,
        ends: &Ends,
        options: AbortOptions,
        image: &ImageSpec,
    ) -> Result<Option<(LiveAbort, ImageDevice)>> {
        let offerings = self.host.offerings(image);
        let writers = offerings.iter().filter(|o| !Offering::is_read_only(o)).count();
        // An image that changes its layout has one name: after an abort that was cut off, those clients may be the source's.
        if writers == 0 || !ends.is_target_usable() {
            return Ok(None);
        }
        let target = match self.open_target(&ends.target).await {
            Ok(target) => target,
            // It was closed by an abort that was cut off.
            Err(e) if e.kind() == ErrorKind::ReadOnly => return Ok(None),
            Err(e) => return Err(e),
        };
        let open = self.host.shared()?.open(target).await?;
        // Others (an execute) would still have it open when its clients wait: that is refused there.
        let is_theirs = open.holders() == writers + 1;
        let device = open.device().clone();
        open.close().await?;
        if !is_theirs {
            return Ok(None);
        }
        Ok(LiveAbort::begin(ends, options, &device).await?.map(|live| (live, device)))
    }
}

/// Whether something was changed already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    No,
    Yes,
}

fn abort_failed(
    error: &Error,
    what: &str,
    rbd: &str,
    image: &ImageSpec,
    source: &str,
    begun: Begun,
) -> Failure {
    let failure = Failure::of(error, what, rbd).after(format!("librbd: {}", error.clause()));
    let failure = match begun {
        Begun::No => failure,
        Begun::Yes => {
            failure.advise("the abort has begun: nothing is lost, and the same command goes on with it")
        }
    };
    let untouched = |failure: Failure| match begun {
        Begun::No => failure.advise("nothing was changed"),
        Begun::Yes => failure,
    };
    match (error.fact("losses"), error.kind()) {
        (Some(losses), _) => {
            let failure = untouched(failure);
            let failure =
                losses.split("; ").fold(failure, |f, loss| f.advise(format!("would be lost: {loss}")));
            failure.advise(format!("`ferry migration abort --accept-loss {image}` goes on without"))
        }
        (None, ErrorKind::Exists) => failure
            .advise(match begun {
                Begun::No => "nothing was changed: both ends are there",
                Begun::Yes => "both ends are there",
            })
            .advise(format!("rename or remove the image that is called {source} now, and repeat")),
        (None, ErrorKind::TimedOut) => {
            untouched(failure).advise("`--pause-limit` sets how long clients may wait")
        }
        (None, ErrorKind::Busy) => {
            untouched(failure).advise(format!("`ferry status {image}` tells who uses it"))
        }
        (None, _) => failure,
    }
}
