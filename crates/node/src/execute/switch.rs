//! Changing the image below exports and mapped devices while their clients wait.

use std::time::{Duration, Instant};

use ferry_core::{ErrorKind, Result};
use ferry_image::encoding::MigrationState;
use ferry_image::progress::silent;
use ferry_migrate::{AbortOptions, Ends, Finding};

use super::migration::spec_of;
use super::{Run, Serving, failed};
use crate::api::{Done, Failure};
use crate::cancel::Cancel;
use crate::config::{ExportRecord, ImageExport};
use crate::exporter::Exporter;
use crate::offered::{Offering, Taken, Way, take};
use crate::spec::{ImageSpec, SnapSpec};

/// How long clients may wait where nobody says: well below the 30 seconds after which the kernel's NBD client gives up.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(10);

impl Run<'_> {
    /// Does `change`, which moves the image `from` to `to`, while the clients of all exports and mapped devices of `from` in this
    /// process wait. They go on with `to` afterwards, or with `from` where the change failed. Without any it is just done. `quiet` is
    /// done when no request is under way any more and `from` is still open; what it gives is given to `change`. What `change` is
    /// given beside is asked for when clients have waited for `limit`: the change may give way then.
    ///
    /// # Errors
    /// Those of `quiet` and `change`; `TimedOut` (110) where requests under way do not end within `limit`, before either.
    pub(super) async fn switching<Q, T>(
        &self,
        from: &ImageSpec,
        to: &ImageSpec,
        limit: Duration,
        quiet: impl AsyncFnOnce() -> Result<Q>,
        change: impl AsyncFnOnce(Q, &Cancel) -> Result<T>,
    ) -> Result<Switched<T>> {
        let offerings = self.host.offerings(from);
        // Before anything is changed, for a node that starts after a death in the middle; also for exports that are not offered
        // at the moment, as no node runs or they could not be.
        let shows = |record: &ImageExport| record.image.image == *from;
        if self.home.exports()?.values().filter_map(ExportRecord::image).any(shows) {
            self.home.update_exports(|exports| {
                let images = exports.values_mut().filter_map(ExportRecord::image_mut);
                for record in images.filter(|record| shows(record)) {
                    record.moving_to = Some(SnapSpec { image: to.clone(), snap: record.image.snap.clone() });
                }
                Ok(())
            })?;
        }
        for offering in &offerings {
            // So that little is left to be made durable while clients wait; what goes wrong shows then.
            if let Err(e) = offering.flush().await {
                tracing::warn!(image = %from, error = %e.chain(), "cannot flush ahead of a switch");
            }
        }
        let began = Instant::now();
        let (taken, prepared) = take(offerings, limit, quiet).await?;
        let is_over = Cancel::new();
        let timer = match taken.is_empty() {
            true => None,
            false => {
                let (is_over, left) = (is_over.clone(), limit.saturating_sub(began.elapsed()));
                if left.is_zero() {
                    // The clock of the runtime is coarser than a quick change.
                    is_over.ask();
                }
                let ring = async move {
                    tokio::time::sleep(left).await;
                    is_over.ask();
                };
                Some(self.host.runtime()?.spawn(ring))
            }
        };
        let changed = change(prepared, &is_over).await;
        if let Some(timer) = timer {
            timer.abort();
        }
        let now = if changed.is_ok() { to } else { from };
        let (mut lost, mut waited) = (None, Vec::new());
        for offering in taken {
            let way = offering.way().clone();
            match self.go_on(offering, now).await {
                Ok(pause) => waited.push((way, pause)),
                Err(failure) => {
                    tracing::error!(%way, what = failure.what, cause = failure.cause, "clients are cut off");
                    let remedy = match &way {
                        Way::Export(name) => {
                            format!("it is removed and added again: `ferry export rm --force {name}`")
                        }
                        Way::Device(path) => {
                            format!("it is mapped again: `ferry device unmap -o force {}`", path.display())
                        }
                    };
                    lost = Some(failure.advise(format!("clients of {way} get errors until {remedy}")));
                }
            }
        }
        let value = changed?;
        self.catch_up(from, to).await;
        Ok(Switched { value, waited, lost })
    }

    /// Opens an image again for those that offer it to be read only: they watch nothing, and do not hear that it reads through to
    /// a source no more. Those that cannot be go on with what they have.
    pub(super) async fn reopen_readers(&self, image: &ImageSpec) {
        let readers = self.host.offerings(image).into_iter().filter(Offering::is_read_only).collect();
        let taken = match take(readers, PAUSE_MAX, async || Ok(())).await {
            Ok((taken, ())) => taken,
            Err(e) => return tracing::error!(%image, error = %e.chain(), "readers keep the image as it was"),
        };
        for reader in taken {
            let way = reader.way().clone();
            if let Err(failure) = self.go_on(reader, image).await {
                tracing::error!(%way, what = failure.what, cause = failure.cause, "clients are cut off");
            }
        }
    }

    /// Lets the clients of an offered image go on with `image`, and keeps it so for the next node. How long they waited.
    async fn go_on(&self, taken: Taken, image: &ImageSpec) -> Done<Duration> {
        let spec = SnapSpec { image: image.clone(), snap: taken.image().snap.clone() };
        let way = taken.way().clone();
        let cannot = || failed(format!("{way} cannot go on with {spec}"), "rbd: export error");
        let opened = self.open_to_serve(&spec, taken.is_read_only()).await?;
        let waited = taken.go_on(&spec, opened).await.map_err(cannot())?;
        let ms = waited.as_millis();
        tracing::info!(%way, image = %spec, waited_ms = u64::try_from(ms).unwrap_or(u64::MAX), "clients switched");
        self.events.advise(&format!("{way} goes on with {spec}; its clients waited {ms} ms"));
        let Way::Export(name) = &way else { return Ok(waited) };
        self.home
            .update_exports(|exports| {
                if let Some(record) = exports.get_mut(name).and_then(ExportRecord::image_mut) {
                    *record = ImageExport { image: spec.clone(), moving_to: None, ..record.clone() };
                }
                Ok(())
            })
            .map(|()| waited)
            .map_err(failed(format!("{way} is switched, but not kept so"), "rbd: export error"))
    }

    /// Offers what a node before this one offered under `from`, and this one could not: it died in the middle of the change. Also
    /// where both have one name: the image is another.
    async fn catch_up(&self, from: &ImageSpec, to: &ImageSpec) {
        let (Some(exporter), Ok(records)) = (self.host.exporter().cloned(), self.home.exports()) else {
            return;
        };
        for (name, record) in records {
            let ExportRecord::Image(record) = record else { continue };
            if record.image.image == *from && exporter.clients_of(&name).is_none() {
                self.offer_as(&exporter, &name, &record, to).await.unwrap_or_else(|failure| {
                    tracing::error!(
                        export = name,
                        what = failure.what,
                        cause = failure.cause,
                        "export cannot be offered"
                    );
                });
            }
        }
    }

    /// Offers `image` under a name, and keeps it so.
    async fn offer_as(
        &self,
        exporter: &Exporter,
        name: &str,
        record: &ImageExport,
        image: &ImageSpec,
    ) -> Done<()> {
        let spec = SnapSpec { image: image.clone(), snap: record.image.snap.clone() };
        let record = ImageExport { image: spec, moving_to: None, ..record.clone() };
        self.offer(exporter, name, &record).await?;
        let record = ExportRecord::Image(record);
        let kept = self.home.update_exports(|exports| Ok(exports.insert(name.to_owned(), record)));
        kept.map(drop)
            .map_err(failed(format!("export {name} is offered, but not kept so"), "rbd: export error"))
    }

    /// Offers what the node before this one offered. It may have died while a migration changed what is offered: an export of a
    /// source is one of the target once that is prepared, and a prepare that was cut off is undone.
    ///
    /// # Errors
    /// Those of opening the image; an export whose image cannot be opened stays in the list.
    pub(crate) async fn offer_again(
        &self,
        exporter: &Exporter,
        name: &str,
        record: &ImageExport,
    ) -> Done<()> {
        let image = &record.image.image;
        let pool = self.pool_for(&image.pool_spec(), Serving::Always).await?;
        let cannot = || failed(format!("cannot offer {image} as {name}"), "rbd: export error");
        let ends = match (Ends::look_up(&pool, &image.image).await, &record.moving_to) {
            (Ok(Finding::Migrating(ends)), _) => *ends,
            (Err(e), Some(other)) if e.kind() == ErrorKind::NotFound => {
                return self.offer_as(exporter, name, record, &other.image).await;
            }
            // Opening it says what is wrong, if anything is.
            (Ok(Finding::Plain | Finding::Importing(_)) | Err(_), _) => {
                return self.offer(exporter, name, record).await.map(drop);
            }
        };
        if ends.state() == MigrationState::Preparing {
            tracing::warn!(export = name, %image, "a prepare that was cut off is undone");
            let source = spec_of(&ends.source);
            ferry_migrate::abort(ends, AbortOptions::default(), &mut silent).await.map_err(cannot())?;
            return self.offer_as(exporter, name, record, &source).await;
        }
        if ends.state() == MigrationState::Aborting || ends.target.header.is_none() {
            // The abort goes on as a job, and offers the source then.
            return self.offer(exporter, name, record).await.map(drop);
        }
        self.offer_as(exporter, name, record, &spec_of(&ends.target)).await
    }
}

/// What came of a change under exports.
#[derive(Debug)]
pub(super) struct Switched<T> {
    value: T,
    /// How long clients waited.
    waited: Vec<(Way, Duration)>,
    /// An export that could not go on.
    lost: Option<Failure>,
}

impl<T> Switched<T> {
    /// Whose clients waited, and how long.
    pub(super) fn waited(&self) -> &[(Way, Duration)] {
        &self.waited
    }

    /// What the change gave, and why an export could not go on, if one could not.
    pub(super) fn into_parts(self) -> (T, Option<Failure>) {
        (self.value, self.lost)
    }

    /// What the change gave, unless an export could not go on.
    pub(super) fn all(self) -> Done<T> {
        match self.lost {
            None => Ok(self.value),
            Some(failure) => Err(failure),
        }
    }
}
