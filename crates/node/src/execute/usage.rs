//! Space that images take: du.

use ferry_core::{Error, SnapId};
use ferry_image::diff::Granularity;
use ferry_image::encoding::told_id;
use ferry_image::features::{Features, Flags};
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::progress::silent;
use ferry_image::usage::usage;

use super::{Run, failed};
use crate::api::{Done, Failure, Response, Usage, UsageCommand, UsageRow};

impl Run<'_> {
    /// Counts what images of a pool take.
    pub(super) async fn usage(&self, command: UsageCommand) -> Done<Response> {
        let cannot = |e: Error| failed("cannot count used space", "rbd: du failed")(e);
        let pool = self.pool(&command.pool).await?;
        let images = pool.images().await.map_err(cannot)?;
        let mut report =
            Usage { whole_pool: command.image.is_none(), any_image: !images.is_empty(), ..Usage::default() };
        let mut found = false;
        for (name, _) in images.iter().filter(|(name, _)| command.image.as_ref().is_none_or(|i| i == name)) {
            found = true;
            match Image::open(&pool, name, Opening::ReadOnly).await {
                Ok(image) => self.count(&image, &command, &mut report).await?,
                Err(e) if command.image.is_some() => return Err(cannot(e)),
                Err(e) => self.events.note(&format!("rbd: error opening {name}: {}", e.errno())),
            }
        }
        match &command.image {
            Some(image) if !found => {
                let error = Error::not_found("no image has this name").with("image", image);
                Err(cannot(error).after(format!("specified image {image} is not found.")))
            }
            Some(_) | None => Ok(Response::Usage(report)),
        }
    }

    /// Adds one image.
    async fn count(&self, image: &Image, command: &UsageCommand, report: &mut Usage) -> Done<()> {
        let cannot =
            |e: Error| failed(format!("cannot count used space of {}", image.name), "rbd: du failed")(e);
        self.warn_if_slow(image);
        let named = |name: &Option<String>| -> Done<Option<SnapId>> {
            let Some(name) = name else { return Ok(None) };
            let snap = image.header.user_snap(name);
            snap.map(|s| Some(s.id)).map_err(|e| cannot(e).after("specified snapshot is not found."))
        };
        let (snap, from) = (named(&command.snap)?, named(&command.from_snap)?);
        if let (Some(snap), Some(from)) = (snap, from) {
            if snap == from {
                return Ok(());
            }
            if from > snap {
                return Err(Failure::of(
                    &Error::invalid("the first snapshot is newer than the second"),
                    "cannot count used space",
                    "rbd: du failed",
                ));
            }
        }
        let granularity = if command.exact { Granularity::Extents } else { Granularity::WholeObject };
        let at = match snap {
            Some(id) => image.at_snapshot_id(id).map_err(cannot)?,
            None => image.clone(),
        };
        let lines = usage(&at, from, granularity, &mut silent).await.map_err(cannot)?;
        let used_total = lines.iter().map(|l| l.used_bytes).sum();
        for line in lines {
            let is_head = line.at == SnapId::HEAD;
            report.counted += 1;
            report.total_used += line.used_bytes;
            if is_head || snap.is_some() {
                report.total_provisioned += line.provisioned_bytes;
            }
            let merged = command.merge_snapshots;
            if !merged || is_head {
                report.rows.push(UsageRow {
                    image: image.name.clone(),
                    id: told_id(&image.id).to_owned(),
                    snap: line.snap_name.map(|name| (name, line.at.0)),
                    provisioned: line.provisioned_bytes,
                    used: if merged { used_total } else { line.used_bytes },
                });
            }
        }
        Ok(())
    }

    /// Warns that every object must be looked at.
    fn warn_if_slow(&self, image: &Image) {
        if !image.header.features.contains(Features::FAST_DIFF) {
            self.events.note(&format!(
                "warning: fast-diff map is not enabled for {}. operation may be slow.",
                image.name
            ));
        } else if image.header.flags.contains(Flags::FAST_DIFF_INVALID) {
            self.events.note(&format!(
                "warning: fast-diff map is invalid for {}. operation may be slow.",
                image.name
            ));
        }
    }
}
