//! The trash: mv, ls, rm, restore, purge.

use std::time::Duration;

use ferry_core::{Errno, ErrorKind, Timestamp};
use ferry_image::encoding::TrashSource;
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::pool::Pool;
use ferry_image::trash::{self, Force};

use super::image::in_use;
use super::{Run, describe, failed};
use crate::api::{Detail, Done, Failure, Progress, Response, TrashCommand, TrashEntry, TrashScope};
use crate::spec::{ImageSpec, PoolSpec};

impl Run<'_> {
    /// Executes one of them.
    pub(super) async fn trash_command(&self, command: TrashCommand) -> Done<Response> {
        match command {
            TrashCommand::Move { image, expires_at } => self.trash_move(&image, expires_at).await?,
            TrashCommand::List { pool, scope, detail } => return self.trash_list(&pool, scope, detail).await,
            TrashCommand::Remove { pool, id, force } => self.trash_remove(&pool, &id, force).await?,
            TrashCommand::Restore { pool, id, name } => {
                self.trash_restore(&pool, &id, name.as_deref()).await?;
            }
            TrashCommand::Purge { pool, expired_before, threshold } => {
                self.trash_purge(&pool, expired_before, threshold).await?;
            }
        }
        Ok(Response::Done)
    }

    /// Seconds since 1970.
    fn now(&self) -> u64 {
        u64::from(self.env.clock.now().seconds)
    }

    async fn trash_move(&self, spec: &ImageSpec, expires_at: Option<u64>) -> Done<()> {
        let pool = self.pool(&spec.pool_spec()).await?;
        let now = self.now();
        let delay = expires_at.unwrap_or(now).checked_sub(now).ok_or_else(|| {
            Failure::plain(Errno::EINVAL, "cannot use a date in the past as an expiration date")
                .advise("the image is untouched")
        })?;
        trash::move_in(&pool, &spec.image, TrashSource::User, Duration::from_secs(delay)).await.map_err(
            |e| {
                let what = format!("cannot move image {spec} to the trash");
                Failure::of(&e, what, "rbd: deferred delete error")
            },
        )?;
        Ok(())
    }

    async fn trash_list(&self, spec: &PoolSpec, scope: TrashScope, detail: Detail) -> Done<Response> {
        let pool = self.pool(spec).await?;
        let listed = trash::list(&pool).await;
        let listed = listed.map_err(failed(format!("cannot list the trash of {spec}"), "rbd: trash list"))?;
        let mut entries = Vec::new();
        for (id, entry) in listed {
            if scope == TrashScope::User && entry.source != TrashSource::User {
                continue;
            }
            let parent = match detail {
                Detail::Names => None,
                Detail::Long => match self.parent_of(&pool, &id).await {
                    Some(parent) => parent,
                    None => continue,
                },
            };
            entries.push(TrashEntry {
                id,
                name: entry.name,
                source: source_word(entry.source).to_owned(),
                deleted_at: u64::from(entry.deleted.seconds),
                deferred_until: u64::from(entry.deferred_until.seconds),
                parent,
            });
        }
        Ok(Response::Trash { entries, detail, now: self.now() })
    }

    /// The parent of an image in the trash. `None` where the image cannot be opened, which is told unless it is gone.
    async fn parent_of(&self, pool: &Pool, id: &str) -> Option<Option<crate::api::ParentInfo>> {
        let opened = match Image::open_by_id(pool, id, Opening::ReadOnly).await {
            Ok(image) => describe::parent(&image).await,
            Err(e) => Err(e),
        };
        match opened {
            Ok(parent) => Some(parent),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => {
                self.events.note(&format!("rbd: error opening {id}: {}", e.errno()));
                None
            }
        }
    }

    async fn trash_remove(&self, spec: &PoolSpec, id: &str, force: bool) -> Done<()> {
        let pool = self.pool(spec).await?;
        let force = if force { Force::Yes } else { Force::No };
        let step = Progress::start(self.events, "Removing image");
        trash::remove(&pool, id, force, &mut |d, t| step.at(d, t)).await.map_err(|e| {
            let what = format!("cannot remove image {id} from the trash of {spec}");
            let failure = Failure::of(&e, what, "rbd: remove error");
            match e.errno() {
                Errno::EPERM => failure
                    .lines([
                        "",
                        "Deferment time has not expired, please use --force if you really want to remove the image",
                    ])
                    .advise("nothing was removed; --force removes it before its time"),
                Errno::EUCLEAN => failure.lines(["rbd: error: image not fully moved to trash."]),
                errno => in_use(failure, errno, &format!("{spec} --image-id {id}")),
            }
        })?;
        step.done();
        Ok(())
    }

    async fn trash_restore(&self, spec: &PoolSpec, id: &str, name: Option<&str>) -> Done<()> {
        let pool = self.pool(spec).await?;
        trash::restore(&pool, id, name, None).await.map_err(|e| {
            let what = format!("cannot restore image {id} from the trash of {spec}");
            let failure = Failure::of(&e, what, "rbd: restore error");
            match e.kind() {
                ErrorKind::NotFound => failure
                    .lines(["rbd: error: image does not exist in trash"])
                    .advise(format!("`ferry trash ls {spec}` lists what is there")),
                ErrorKind::Exists => failure
                    .lines([
                        "rbd: error: an image with the same name already exists, try again with with a different name",
                    ])
                    .advise("both images are untouched; --image NAME restores it under another name"),
                ErrorKind::Invalid
                | ErrorKind::Busy
                | ErrorKind::ReadOnly
                | ErrorKind::NoSpace
                | ErrorKind::Fenced
                | ErrorKind::Unavailable
                | ErrorKind::Corrupt
                | ErrorKind::Unsupported
                | ErrorKind::Poisoned
                | ErrorKind::Conflict
                | ErrorKind::TimedOut
                | ErrorKind::Denied
                | ErrorKind::Io
                | ErrorKind::Internal => failure,
            }
        })
    }

    async fn trash_purge(&self, spec: &PoolSpec, before: Option<u64>, threshold: Option<f64>) -> Done<()> {
        let pool = self.pool(spec).await?;
        if threshold.is_some() {
            return Err(Failure::plain(
                Errno::EOPNOTSUPP,
                "--threshold is not supported: pools of a store share its space",
            )
            .advise("nothing was removed; --expired-before DATE chooses by age"));
        }
        let before = before.map_or_else(
            || self.env.clock.now(),
            |seconds| Timestamp { seconds: u32::try_from(seconds).unwrap_or(u32::MAX), nanoseconds: 0 },
        );
        let step = Progress::start(self.events, "Removing images");
        let purged = trash::purge(&pool, before, &mut |d, t| step.at(d, t)).await;
        let purged =
            purged.map_err(failed(format!("cannot purge the trash of {spec}"), "rbd: trash purge error"))?;
        let Some((id, error)) = purged.failed.first() else {
            step.done();
            return Ok(());
        };
        Err(Failure::of(error, format!("cannot remove image {id} from the trash of {spec}"), "rbd")
            .lines([
                "rbd: some expired images could not be removed",
                "Ensure that they are closed/unmapped, do not have snapshots (including trashed snapshots with linked \
                 clones), are not in a group and were moved to the trash successfully.",
            ])
            .advise(format!(
                "{} expired images were removed, {} were not",
                purged.removed.len(),
                purged.failed.len()
            )))
    }
}

/// The word `trash ls -l` uses.
fn source_word(source: TrashSource) -> &'static str {
    match source {
        TrashSource::User => "USER",
        TrashSource::Mirroring => "MIRRORING",
        TrashSource::Migration => "MIGRATION",
        TrashSource::Removing => "REMOVING",
        TrashSource::UserParent => "USER_PARENT",
        TrashSource::Unknown(_) => "UNKNOWN",
    }
}
