//! Changing the image below exports while their clients wait.

use std::time::Duration;

use ferry_core::Result;

use super::{Run, failed};
use crate::api::{Done, Failure};
use crate::exporter::Taken;
use crate::spec::{ImageSpec, SnapSpec};

/// How long clients may wait for requests that are under way when the switch begins.
const DRAIN_MAX: Duration = Duration::from_secs(5);

impl Run<'_> {
    /// Does `change`, which moves the image `from` to `to`, while the clients of all exports of `from` in this process wait. They
    /// go on with `to` afterwards, or with `from` where the change failed. Without such exports it is just done.
    ///
    /// # Errors
    /// Those of `change`; `TimedOut` (110) where requests under way do not end, before anything is changed.
    pub(super) async fn switching<T>(
        &self,
        from: &ImageSpec,
        to: &ImageSpec,
        change: impl AsyncFnOnce() -> Result<T>,
    ) -> Result<Switched<T>> {
        let mut taken = Vec::new();
        for exporter in self.host.exporters() {
            taken.extend(exporter.take(from, DRAIN_MAX).await?);
        }
        let changed = change().await;
        let now = if changed.is_ok() { to } else { from };
        let mut lost = None;
        for export in taken {
            let name = export.name().to_owned();
            if let Err(failure) = self.go_on(export, now).await {
                tracing::error!(
                    export = name,
                    what = failure.what,
                    cause = failure.cause,
                    "export is cut off"
                );
                lost = Some(failure.advise(format!(
                    "clients of export {name} get errors until it is removed and added again: `ferry export rm --force {name}`"
                )));
            }
        }
        changed.map(|value| Switched { value, lost })
    }

    /// Lets the clients of an export go on with `image`, and keeps it so for the next node.
    async fn go_on(&self, export: Taken, image: &ImageSpec) -> Done<()> {
        let spec = SnapSpec { image: image.clone(), snap: export.image().snap.clone() };
        let name = export.name().to_owned();
        let cannot = || failed(format!("export {name} cannot go on with {spec}"), "rbd: export error");
        let opened = self.open_to_serve(&spec, export.is_read_only()).await?;
        let waited = export.go_on(&spec, opened).await.map_err(cannot())?;
        let ms = waited.as_millis();
        tracing::info!(export = name, image = %spec, waited_ms = u64::try_from(ms).unwrap_or(u64::MAX), "export switched");
        self.events.advise(&format!("export {name} goes on with {spec}; its clients waited {ms} ms"));
        self.home
            .update_exports(|exports| {
                if let Some(record) = exports.get_mut(&name) {
                    record.image = spec.clone();
                }
                Ok(())
            })
            .map_err(failed(format!("export {name} is switched, but not kept so"), "rbd: export error"))
    }
}

/// What came of a change under exports.
#[derive(Debug)]
pub(super) struct Switched<T> {
    value: T,
    /// An export that could not go on.
    lost: Option<Failure>,
}

impl<T> Switched<T> {
    /// What the change gave, unless an export could not go on.
    pub(super) fn all(self) -> Done<T> {
        match self.lost {
            None => Ok(self.value),
            Some(failure) => Err(failure),
        }
    }
}
