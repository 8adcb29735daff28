//! Images as wholes: create, ls, info, status, rename, resize, rm, cp, deep cp, sparsify.

use std::time::Duration;

use bytes::Bytes;
use ferry_core::{BlockDevice, Errno, ErrorKind};
use ferry_image::clone;
use ferry_image::copy;
use ferry_image::create::{self, CreateOptions};
use ferry_image::device::ImageDevice;
use ferry_image::encoding::TrashSource;
use ferry_image::flatten::flatten;
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::pool::Pool;
use ferry_image::progress::silent;
use ferry_image::remove::{self, UsedParent};
use ferry_image::rename::rename;
use ferry_image::resize::{Shrinking, resize};
use ferry_image::sparsify::sparsify;
use ferry_image::trash;

use super::{Run, describe, failed};
use crate::api::{Detail, Done, Failure, ImageCommand, ImageRef, LayoutOptions, Progress, Response};
use crate::spec::{ImageSpec, SnapSpec};

/// Zeros of at least this many bytes are not written, unless told otherwise; `rbd`'s default.
pub(super) const SPARSE_SIZE: u64 = 4096;

/// Bytes of zeros written at once by thick provisioning.
const THICK_STEP: usize = 4 << 20;

/// What a copy takes along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    /// Only what is read at one point.
    Flat,
    /// Its snapshots; the copy of a clone is a clone of the same parent.
    Deep,
    /// Its snapshots, and what a clone shows of its parent.
    DeepFlattened,
}

impl Run<'_> {
    /// Executes one of them.
    pub(super) async fn image_command(&self, command: ImageCommand) -> Done<Response> {
        match command {
            ImageCommand::Create { image, size, layout, thick } => {
                self.create(&image, size, &layout).await?;
                if thick {
                    self.provision(&image).await?;
                }
            }
            ImageCommand::List { pool, detail } => {
                let opened = self.pool(&pool).await.map_err(|failure| {
                    let code = Errno(failure.errno);
                    failure.then(format!("rbd: listing images failed: {code}"))
                })?;
                return self.list(&opened, detail).await;
            }
            ImageCommand::Info { image, snap } => return self.info(&image, snap.as_deref()).await,
            ImageCommand::Status { image } => {
                let opened = self.open(&image, Opening::ReadOnly).await?;
                let status = describe::status(&opened).await;
                let status = status
                    .map_err(failed(format!("cannot read who uses {image}"), "rbd: show status failed"));
                return status.map(|s| Response::Status(Box::new(s)));
            }
            ImageCommand::Rename { source, target } => self.rename(&source, &target).await?,
            ImageCommand::Resize { image, size, allow_shrink } => {
                self.resize(&image, size, allow_shrink).await?;
            }
            ImageCommand::Remove { image } => self.remove(&image).await?,
            ImageCommand::Copy { source, target, layout, sparse_size: _ } => {
                // Holes are kept and zeros are never copied, whatever size of zeros is asked for.
                self.copy(&source, &target, &layout, Depth::Flat).await?;
            }
            ImageCommand::DeepCopy { source, target, layout, flatten } => {
                let depth = if flatten { Depth::DeepFlattened } else { Depth::Deep };
                self.copy(&source, &target, &layout, depth).await?;
            }
            ImageCommand::Sparsify { image, sparse_size } => {
                let mut opened = self.open(&image, Opening::ReadWrite).await?;
                let step = Progress::start(self.events, "Image sparsify");
                sparsify(&mut opened, sparse_size.unwrap_or(SPARSE_SIZE), &mut |d, t| step.at(d, t))
                    .await
                    .map_err(failed(format!("cannot sparsify {image}"), "rbd: sparsify error"))?;
                step.done();
                self.close(opened).await?;
            }
        }
        Ok(Response::Done)
    }

    async fn create(&self, spec: &ImageSpec, size: u64, layout: &LayoutOptions) -> Done<()> {
        let pool = self.pool(&spec.pool_spec()).await?;
        let options = self.create_options(&pool, layout, size, None, "rbd: create error").await?;
        create::create(&pool, &spec.image, &options).await.map_err(|e| {
            let failure = Failure::of(&e, format!("cannot create image {spec}"), "rbd: create error");
            if e.kind() == ErrorKind::Exists {
                failure
                    .after(format!("librbd: rbd image {} already exists", spec.image))
                    .advise(format!("the image is untouched; `ferry info {spec}` describes it"))
            } else {
                failure
            }
        })?;
        Ok(())
    }

    /// Writes zeros everywhere, so that the space is taken.
    async fn provision(&self, spec: &ImageSpec) -> Done<()> {
        let opened = self.open(spec, Opening::ReadWrite).await?;
        let cannot = || failed(format!("cannot provision image {spec}"), "rbd: writing to image failed");
        let step = Progress::start(self.events, "Thick provisioning");
        let device = ImageDevice::open(opened.clone()).await.map_err(cannot())?;
        let (size, zeros) = (device.size(), Bytes::from_static(&[0; THICK_STEP]));
        let mut at = 0;
        while at < size {
            let length = usize::try_from(size - at).map_or(THICK_STEP, |left| left.min(THICK_STEP));
            device.write(at, zeros.slice(..length)).await.map_err(cannot())?;
            at += length as u64;
            step.at(at, size);
        }
        device.flush().await.map_err(cannot())?;
        step.done();
        // The zeros are there, whether it can be noted or not.
        device.note_times().await.ok();
        drop(device);
        self.close(opened).await
    }

    async fn list(&self, pool: &Pool, detail: Detail) -> Done<Response> {
        let cannot = |e| failed("cannot list images", "rbd: listing images failed")(e);
        let images = pool.images().await.map_err(cannot)?;
        if detail == Detail::Names {
            return Ok(Response::ImageNames(images.into_iter().map(|(name, _)| name).collect()));
        }
        let mut lines = Vec::new();
        for (name, id) in images {
            match describe::listed(pool, &name, &id).await {
                Ok(listed) => lines.extend(listed),
                // Gone meanwhile, or damaged: the others are listed all the same.
                Err(e) => self.events.note(&format!("rbd: error opening {name}: {}", e.errno())),
            }
        }
        Ok(Response::Images(lines))
    }

    async fn info(&self, image: &ImageRef, snap: Option<&str>) -> Done<Response> {
        let opened = self.open_at(image, snap).await?;
        let by_name = matches!(image.by, crate::api::ImageBy::Name(_));
        let info = describe::info(&opened, by_name).await;
        let what = format!("cannot describe image {}/{}", image.pool, image.name_or_id());
        info.map(|i| Response::Info(Box::new(i))).map_err(failed(what, "rbd: info"))
    }

    async fn rename(&self, source: &ImageSpec, target: &ImageSpec) -> Done<()> {
        let pool = self.pool(&source.pool_spec()).await?;
        let what = format!("cannot rename image {source} to {}", target.image);
        rename(&pool, &source.image, &target.image).await.map_err(failed(what, "rbd: rename error"))
    }

    async fn resize(&self, spec: &ImageSpec, size: u64, allow_shrink: bool) -> Done<()> {
        let mut image = self.open(spec, Opening::ReadWrite).await?;
        let step = Progress::start(self.events, "Resizing image");
        let now = image.header.size;
        if now > size && !allow_shrink {
            return Err(Failure::plain(
                Errno::EINVAL,
                "shrinking an image is only allowed with the --allow-shrink flag",
            )
            .advise(format!("the image is untouched; what lies behind byte {size} would be lost")));
        }
        if now == size {
            return Err(Failure::plain(Errno::EINVAL, "new size is equal to original size "));
        }
        resize(&mut image, size, Shrinking::Allowed, &mut |d, t| step.at(d, t))
            .await
            .map_err(failed(format!("cannot resize image {spec}"), "rbd: resize error"))?;
        step.done();
        self.close(image).await
    }

    async fn remove(&self, spec: &ImageSpec) -> Done<()> {
        let pool = self.pool(&spec.pool_spec()).await?;
        let settings = self.settings_in(&pool).await?;
        let step = Progress::start(self.events, "Removing image");
        if settings.get("rbd_move_to_trash_on_remove") == "true" {
            let delay = settings.number("rbd_move_to_trash_on_remove_expire_seconds").unwrap_or_default();
            trash::move_in(&pool, &spec.image, TrashSource::User, Duration::from_secs(delay))
                .await
                .map_err(failed(format!("cannot move image {spec} to the trash"), "rbd: delete error"))?;
            step.done();
            return Ok(());
        }
        let used = if settings.get("rbd_move_parent_to_trash_on_remove") == "true" {
            UsedParent::MoveToTrash
        } else {
            UsedParent::Refuse
        };
        let removed = remove::remove(&pool, &spec.image, used, &mut |d, t| step.at(d, t)).await;
        if let Err(e) = removed {
            let failure = Failure::of(&e, format!("cannot remove image {spec}"), "rbd: delete error");
            let failure = if super::migration::is_migrating(&e) {
                let as_rbd = in_use(failure.clone(), e.errno(), "").rbd;
                let failure = Failure { rbd: as_rbd, ..failure }.advise("nothing was removed");
                super::migration::until_over(failure, spec)
            } else {
                in_use(failure, e.errno(), &spec.to_string())
            };
            if e.errno() == Errno::ENOTEMPTY && only_removed_snapshots(&pool, &spec.image).await {
                return Err(failure.lines([
                    "rbd: image has snapshots with linked clones - these must be deleted or flattened before the \
                     image can be removed.",
                ]));
            }
            return Err(failure);
        }
        step.done();
        Ok(())
    }

    async fn copy(
        &self,
        source: &SnapSpec,
        target: &ImageSpec,
        layout: &LayoutOptions,
        depth: Depth,
    ) -> Done<()> {
        let (title, rbd) = match depth {
            Depth::Flat => ("Image copy", "rbd: copy failed"),
            Depth::Deep | Depth::DeepFlattened => ("Image deep copy", "rbd: deep copy failed"),
        };
        let from = self.open_at(&ImageRef::from(source.image.clone()), source.snap.as_deref()).await?;
        let pool = self.pool(&target.pool_spec()).await?;
        let step = Progress::start(self.events, title);
        let what = || format!("cannot copy {source} to {target}");
        let size = from.size().map_err(failed(what(), rbd))?;
        let mut options = self.create_options(&pool, layout, size, Some(&from.header), rbd).await?;
        options.metadata = from.header.metadata.clone();
        let parent = if depth == Depth::Deep { self.parent_of_copy(&from, &pool).await } else { Ok(None) };
        match parent.map_err(failed(what(), rbd))? {
            Some(parent) => self.create_clone_beside(&parent, &pool, target, &options, &what()).await?,
            None => {
                create::create(&pool, &target.image, &options).await.map_err(failed(what(), rbd))?;
            }
        }
        let mut to = self.open(target, Opening::ReadWrite).await?;
        let copied = match depth {
            Depth::Flat => copy::copy(&from, &mut to, &mut |d, t| step.at(d, t)).await,
            Depth::Deep | Depth::DeepFlattened => {
                copy::deep_copy(&from, &mut to, &mut |d, t| step.at(d, t)).await
            }
        };
        let closed = self.close(to).await;
        if let Err(e) = copied {
            let failure = Failure::of(&e, what(), rbd);
            return Err(self.discard_unfinished(&pool, &target.image, failure).await);
        }
        closed?;
        step.done();
        Ok(())
    }

    /// What a deep copy to `pool` is to be a clone of, as `source` is; `None` where it is to own all its data. A clone lies in
    /// the store of its parent.
    async fn parent_of_copy(&self, source: &Image, pool: &Pool) -> ferry_core::Result<Option<Image>> {
        if source.pool.store.identity() != pool.store.identity() {
            return Ok(None);
        }
        match copy::parent_to_share(source)? {
            Some(record) => clone::open_parent(source, &record).await.map(Some),
            None => Ok(None),
        }
    }

    /// Makes the empty target of a deep copy a clone of `parent`.
    async fn create_clone_beside(
        &self,
        parent: &Image,
        pool: &Pool,
        target: &ImageSpec,
        options: &CreateOptions,
        what: &str,
    ) -> Done<()> {
        let format = self.clone_format(pool, target, parent).await?;
        let made = clone::create_exactly(parent, pool, &target.image, format, options).await;
        made.map(drop).map_err(|e| {
            let failure = Failure::of(&e, what, "rbd: deep copy failed");
            if e.kind() == ErrorKind::Exists {
                return failure;
            }
            failure
                .advise("nothing was copied; with --flatten the copy owns all its data and needs no parent")
        })
    }

    /// Removes an image that could not be completed: half a copy must not look like a whole one.
    pub(super) async fn discard_unfinished(&self, pool: &Pool, name: &str, failure: Failure) -> Failure {
        let emptied = empty_of_snapshots(pool, name).await;
        let removed = match emptied {
            Ok(()) => remove::remove(pool, name, UsedParent::Refuse, &mut silent).await,
            Err(e) => Err(e),
        };
        match removed {
            Ok(()) => failure.advise("the source is untouched and the unfinished target was removed"),
            Err(e) => failure.advise(format!(
                "the source is untouched; the target {}/{name} is unfinished and could not be removed: {}",
                pool.info.name,
                e.chain()
            )),
        }
    }

    /// Makes a clone independent.
    pub(super) async fn flatten(&self, image: &mut Image, what: &str) -> Done<()> {
        let step = Progress::start(self.events, "Image flatten");
        flatten(image, &mut |d, t| step.at(d, t)).await.map_err(|e| {
            let failure = Failure::of(&e, what, "rbd: flatten error");
            if e.kind() == ErrorKind::Invalid {
                failure.after(format!("librbd: {}", e.clause()))
            } else {
                failure
            }
        })?;
        step.done();
        Ok(())
    }
}

/// Removes the snapshots of an image that was made a moment ago and nobody knows yet.
async fn empty_of_snapshots(pool: &Pool, name: &str) -> ferry_core::Result<()> {
    let mut image = Image::open(pool, name, Opening::ReadWrite).await?;
    let snaps: Vec<String> = image.header.snaps.values().map(|s| s.name.clone()).collect();
    for snap in snaps {
        if image.header.user_snap(&snap)?.protection != ferry_image::encoding::Protection::Unprotected {
            ferry_image::snapshot::unprotect(&mut image, &snap).await?;
        }
        ferry_image::snapshot::remove(&mut image, &snap).await?;
    }
    image.close().await
}

/// Whether all snapshots of an image are in the trash, kept by clones.
async fn only_removed_snapshots(pool: &Pool, name: &str) -> bool {
    let opened = Image::open(pool, name, Opening::ReadOnly).await;
    opened.is_ok_and(|image| image.header.snaps.values().all(|s| s.namespace.is_trash()))
}

/// Says in `rbd`'s words why an image cannot go, and what to do.
pub(super) fn in_use(failure: Failure, errno: Errno, image: &str) -> Failure {
    match errno {
        Errno::ENOTEMPTY => failure
            .lines([
                "rbd: image has snapshots - these must be deleted with 'rbd snap purge' before the image can be removed.",
            ])
            .advise(format!("nothing was removed; `ferry snap ls --all {image}` lists the snapshots")),
        Errno::EBUSY => failure
            .lines([
                "rbd: error: image still has watchers",
                "This means the image is still open or the client using it crashed. Try again after \
                 closing/unmapping it or waiting 30s for the crashed client to timeout.",
            ])
            .advise(format!("nothing was removed; `ferry status {image}` tells who uses the image")),
        Errno::EMLINK => failure.lines([
            "rbd: error: image belongs to a group",
            "Remove the image from the group and try again.",
        ]),
        _ => failure,
    }
}
