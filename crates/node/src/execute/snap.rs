//! Snapshots: create, ls, rm, rename, protect, unprotect, purge, rollback, limit.

use ferry_core::{Errno, ErrorKind, SnapId};
use ferry_image::clone::children;
use ferry_image::encoding::Protection;
use ferry_image::flatten::flatten;
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::progress::silent;
use ferry_image::rollback::rollback;
use ferry_image::snapshot;

use super::opened::Opened;
use super::{Run, describe, failed};
use crate::api::{Done, Failure, ImageRef, Progress, Response, SnapBy, SnapCommand, SnapScope};
use crate::spec::ImageSpec;

impl Run<'_> {
    /// Executes one of them.
    pub(super) async fn snap_command(&self, command: SnapCommand) -> Done<Response> {
        match command {
            SnapCommand::Create { image, snap } => self.snap_create(&image, &snap).await?,
            SnapCommand::List { image, scope } => {
                let opened = self.open_ref(&image, Opening::ReadOnly).await?;
                let all = scope == SnapScope::All;
                return Ok(Response::Snaps { snaps: describe::snaps(&opened, all), all });
            }
            SnapCommand::Remove { image, snap, force } => self.snap_remove(&image, &snap, force).await?,
            SnapCommand::Rename { image, source, target } => {
                let mut opened = self.open(&image, Opening::ReadWrite).await?;
                let what = format!("cannot rename snapshot {source} of {image}");
                snapshot::rename(&mut opened, &source, &target)
                    .await
                    .map_err(failed(what, "rbd: renaming snap failed"))?;
                self.close(opened).await?;
            }
            SnapCommand::Protect { image, snap } => self.protect(&image, &snap).await?,
            SnapCommand::Unprotect { image, snap } => self.unprotect(&image, &snap).await?,
            SnapCommand::Purge { image } => self.purge(&image).await?,
            SnapCommand::Rollback { image, snap } => self.rollback(&image, &snap).await?,
            SnapCommand::Limit { image, limit } => {
                let mut opened = self.open(&image, Opening::ReadWrite).await?;
                let rbd = if limit.is_some() {
                    "rbd: setting snapshot limit failed"
                } else {
                    "rbd: removing snapshot limit failed"
                };
                let what = format!("cannot change the snapshot limit of {image}");
                snapshot::set_limit(&mut opened, limit).await.map_err(failed(what, rbd))?;
                self.close(opened).await?;
            }
        }
        Ok(Response::Done)
    }

    async fn snap_create(&self, spec: &ImageSpec, name: &str) -> Done<()> {
        let mut image = self.open(spec, Opening::ReadWrite).await?;
        let step = Progress::start(self.events, "Creating snap");
        let what = format!("cannot make snapshot {name} of {spec}");
        let limit = image.header.snap_limit;
        snapshot::create(&mut image, name).await.map_err(|e| {
            let failure = Failure::of(&e, what, "rbd: failed to create snapshot");
            match (e.errno(), limit) {
                (Errno::EDQUOT, Some(limit)) => failure.advise(format!(
                    "the image may have {limit} snapshots; `ferry snap limit set {spec} --limit N` allows more"
                )),
                (_, _) => failure,
            }
        })?;
        step.done();
        self.close(image).await
    }

    async fn snap_remove(&self, at: &ImageRef, snap: &SnapBy, force: bool) -> Done<()> {
        let step = Progress::start(self.events, "Removing snap");
        let shown = match snap {
            SnapBy::Name(name) => name.clone(),
            SnapBy::Id(id) => id.to_string(),
        };
        let what = format!("cannot remove snapshot {shown} of {}/{}", at.pool, at.name_or_id());
        let rbd = "rbd: failed to remove snapshot";
        if force {
            self.free_snapshot(at, snap, &what).await?;
        }
        let mut image = self.open_ref(at, Opening::ReadWrite).await?;
        let kept = match snap {
            SnapBy::Name(name) => is_protected(&image, name),
            SnapBy::Id(_) => false,
        };
        let removed = match snap {
            SnapBy::Name(name) => snapshot::remove(&mut image, name).await,
            SnapBy::Id(id) => snapshot::remove_by_id(&mut image, SnapId(*id)).await,
        };
        removed.map_err(|e| {
            let failure = Failure::of(&e, what, rbd);
            if e.kind() == ErrorKind::Busy && kept {
                failure.lines([format!("rbd: snapshot '{shown}' is protected from removal.")]).advise(format!(
                    "nothing was removed; `ferry snap unprotect {}/{}@{shown}` allows it once no clone needs it",
                    at.pool,
                    at.name_or_id()
                ))
            } else {
                failure
            }
        })?;
        step.done();
        self.close(image).await
    }

    /// Makes all clones of a snapshot independent of it, and ends its protection.
    async fn free_snapshot(&self, at: &ImageRef, snap: &SnapBy, what: &str) -> Done<()> {
        let cannot = || failed(what, "rbd: failed to remove snapshot");
        // Opened to be read: parting from a clone tells everybody who has the parent open to write, and waits for them.
        let image = self.open_ref(at, Opening::ReadOnly).await?;
        let found = match snap {
            SnapBy::Name(name) => image.header.user_snap(name),
            SnapBy::Id(id) => image.header.snap(SnapId(*id)),
        };
        let found = found.map_err(cannot())?;
        for child in children(&image, found.id).await.map_err(cannot())? {
            let pool = image.pool.sibling(child.pool, &child.namespace).await.map_err(cannot())?;
            let opened = Image::open_by_id(&pool, &child.id, Opening::ReadWrite).await;
            let mut opened = Opened::new(opened.map_err(cannot())?, &self.leftovers);
            flatten(&mut opened, &mut silent).await.map_err(cannot())?;
            self.close(opened).await?;
        }
        if found.protection != Protection::Unprotected {
            let mut image = self.open_ref(at, Opening::ReadWrite).await?;
            snapshot::unprotect(&mut image, &found.name).await.map_err(cannot())?;
            self.close(image).await?;
        }
        Ok(())
    }

    async fn protect(&self, spec: &ImageSpec, name: &str) -> Done<()> {
        let mut image = self.open(spec, Opening::ReadWrite).await?;
        let kept = is_protected(&image, name);
        snapshot::protect(&mut image, name).await.map_err(|e| {
            let what = format!("cannot protect snapshot {name} of {spec}");
            let failure = Failure::of(&e, what, "rbd: protecting snap failed");
            if e.kind() == ErrorKind::Busy && kept {
                failure.lines(["rbd: snap is already protected"])
            } else {
                failure
            }
        })?;
        self.close(image).await
    }

    async fn unprotect(&self, at: &ImageRef, name: &str) -> Done<()> {
        let mut image = self.open_ref(at, Opening::ReadWrite).await?;
        snapshot::unprotect(&mut image, name).await.map_err(|e| {
            let target = format!("{}/{}", at.pool, at.name_or_id());
            let what = format!("cannot unprotect snapshot {name} of {target}");
            let failure = Failure::of(&e, what, "rbd: unprotecting snap failed");
            match (e.kind(), e.fact("children"), e.fact("pool")) {
                (ErrorKind::Invalid, _, _) => failure.lines(["rbd: snap is already unprotected"]),
                (ErrorKind::Busy, Some(ids), Some(pool)) => failure
                    .after(format!(
                        "librbd: cannot unprotect: at least {} child(ren) [{ids}] in pool '{pool}'",
                        ids.split(',').count()
                    ))
                    .advise(format!(
                        "the clones are safe; `ferry children {target}@{name}` lists them, `ferry flatten` frees them"
                    )),
                (_, _, _) => failure,
            }
        })?;
        self.close(image).await
    }

    async fn purge(&self, at: &ImageRef) -> Done<()> {
        let mut image = self.open_ref(at, Opening::ReadWrite).await?;
        let step = Progress::start(self.events, "Removing all snapshots");
        if !image.header.snaps.values().any(|s| s.namespace.is_user()) {
            step.silent();
            return self.close(image).await;
        }
        let what = format!("cannot remove the snapshots of {}/{}", at.pool, at.name_or_id());
        let purged = snapshot::purge(&mut image, &mut |d, t| step.at(d, t)).await;
        let purged = purged.map_err(failed(what, "rbd: removing snaps failed"))?;
        if purged.protected.is_empty() {
            step.done();
        } else {
            // Told on stdout and no failure, as `rbd` has it.
            self.events.say(&format!(
                "rbd: error removing snapshot(s) '{}', which {} protected - these must be unprotected with `rbd snap unprotect`.",
                purged.protected.join(", "),
                if purged.protected.len() == 1 { "is" } else { "are" }
            ));
            drop(step);
        }
        self.close(image).await
    }

    async fn rollback(&self, spec: &ImageSpec, name: &str) -> Done<()> {
        let mut image = self.open(spec, Opening::ReadWrite).await?;
        let step = Progress::start(self.events, "Rolling back to snapshot");
        let cannot = || failed(format!("cannot roll {spec} back to snapshot {name}"), "rbd: rollback failed");
        let id = image.header.user_snap(name).map(|s| s.id).map_err(cannot())?;
        rollback(&mut image, id, &mut |d, t| step.at(d, t)).await.map_err(cannot())?;
        step.done();
        self.close(image).await
    }
}

/// Whether a user's snapshot is there and protected.
fn is_protected(image: &Image, name: &str) -> bool {
    image.header.user_snap(name).is_ok_and(|s| s.protection == Protection::Protected)
}
