//! What an image can do: feature, object-map.

use ferry_core::Errno;
use ferry_image::feature;
use ferry_image::features::Features;
use ferry_image::header::Opening;
use ferry_image::map_check::{self, MapCheck};

use super::{Run, failed};
use crate::api::{Done, Failure, FeatureChange, ObjectMapCommand, Progress, Response};
use crate::spec::{ImageSpec, SnapSpec};

impl Run<'_> {
    /// Executes `feature enable` and `feature disable`.
    pub(super) async fn feature_command(
        &self,
        spec: &ImageSpec,
        change: FeatureChange,
        features: u64,
    ) -> Done<Response> {
        let mut image = self.open(spec, Opening::ReadWrite).await?;
        let features = Features(features);
        let (what, changed) = match change {
            FeatureChange::Enable => ("enable", feature::enable(&mut image, features).await),
            FeatureChange::Disable => ("disable", feature::disable(&mut image, features).await),
        };
        changed.map_err(|e| {
            Failure::of(
                &e,
                format!("cannot {what} {features} of {spec}"),
                "rbd: failed to update image features",
            )
            .after(format!("librbd: {}", e.clause()))
        })?;
        let gained_map = change == FeatureChange::Enable && features.contains(Features::OBJECT_MAP);
        self.close(image).await?;
        if gained_map {
            self.events.advise(&format!(
                "the object map is not valid yet: `ferry object-map rebuild {spec}` makes it so"
            ));
        }
        Ok(Response::Done)
    }

    /// Executes `object-map check` and `object-map rebuild`.
    pub(super) async fn object_map_command(
        &self,
        spec: SnapSpec,
        action: ObjectMapCommand,
    ) -> Done<Response> {
        match action {
            ObjectMapCommand::Check => {
                let mut image = self.open(&spec.image, Opening::ReadWrite).await?;
                let cannot = || {
                    failed(
                        format!("cannot check the object map of {spec}"),
                        "rbd: checking object map failed",
                    )
                };
                if let Some(snap) = &spec.snap {
                    image.at = image.header.user_snap(snap).map(|s| s.id).map_err(cannot())?;
                }
                let step = Progress::start(self.events, "Object Map Check");
                let found = map_check::check(&mut image, &mut |d, t| step.at(d, t)).await.map_err(cannot())?;
                step.done();
                if found == MapCheck::Invalid {
                    self.events.advise(&format!(
                        "the object map is wrong and marked so: `ferry object-map rebuild {}` makes it anew",
                        spec.image
                    ));
                }
                image.at = ferry_core::SnapId::HEAD;
                self.close(image).await?;
            }
            ObjectMapCommand::Rebuild => {
                if spec.snap.is_some() {
                    return Err(Failure::plain(
                        Errno::EOPNOTSUPP,
                        "the object maps of an image and its snapshots are rebuilt together",
                    )
                    .advise(format!("`ferry object-map rebuild {}` does that", spec.image)));
                }
                let mut image = self.open(&spec.image, Opening::ReadWrite).await?;
                let step = Progress::start(self.events, "Object Map Rebuild");
                map_check::rebuild(&mut image, &mut |d, t| step.at(d, t)).await.map_err(failed(
                    format!("cannot rebuild the object map of {spec}"),
                    "rbd: rebuilding object map failed",
                ))?;
                step.done();
                self.close(image).await?;
            }
        }
        Ok(Response::Done)
    }
}
