//! Clones: clone, children, flatten.

use ferry_core::{Errno, ErrorKind, SnapId};
use ferry_image::clone::{self, CloneFormat, children, descendants};
use ferry_image::create::CreateOptions;
use ferry_image::encoding::Protection;
use ferry_image::features::Features;
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::pool::Pool;

use super::{Run, failed};
use crate::api::{ChildImage, CloneCommand, Done, Failure, LayoutOptions, Response, SnapBy, TrashScope};
use crate::spec::ImageSpec;

impl Run<'_> {
    /// Executes one of them.
    pub(super) async fn clone_command(&self, command: CloneCommand) -> Done<Response> {
        match command {
            CloneCommand::Create { parent, snap, target, layout } => {
                self.clone_create(&parent, &snap, &target, &layout).await?;
                Ok(Response::Done)
            }
            CloneCommand::Children { image, snap, scope, descendants } => {
                self.children(&image, snap, scope, descendants).await
            }
            CloneCommand::Flatten { image } => {
                let mut opened = self.open(&image, Opening::ReadWrite).await?;
                self.flatten(&mut opened, &format!("cannot flatten image {image}")).await?;
                self.close(opened).await?;
                Ok(Response::Done)
            }
        }
    }

    async fn clone_create(
        &self,
        parent: &ImageSpec,
        snap: &str,
        target: &ImageSpec,
        layout: &LayoutOptions,
    ) -> Done<()> {
        let rbd = "rbd: clone error";
        let source = format!("{parent}@{snap}");
        let what = format!("cannot clone {source} to {target}");
        let pool = self.pool(&target.pool_spec()).await?;
        let from = self.pool(&parent.pool_spec()).await?;
        let opened = Image::open(&from, &parent.image, Opening::ReadOnly).await;
        let opened = opened.and_then(|image| image.at_snapshot(snap)).map_err(failed(what.clone(), rbd))?;
        if opened.pool.store.identity() != pool.store.identity() {
            return Err(Failure::plain(Errno::EXDEV, what)
                .lines([format!("{rbd}: {}", Errno::EXDEV)])
                .advise(format!(
                    "a clone lies in the store of its parent, and pools {} and {} are in two",
                    parent.pool, target.pool
                ))
                .advise(format!("`ferry deep cp {source} {target}` makes a full copy there")));
        }
        let format = self.clone_format(&pool, target, &opened).await?;
        // What is not given is the parent's, which `clone::create` sees to.
        let given = self.create_options(&pool, layout, 0, Some(&opened.header), rbd).await?;
        let mut features = layout.features.map(Features);
        if layout.shared {
            let all = features.or(given.features).unwrap_or(Features::DEFAULT);
            features = Some(all.without(Features::SINGLE_CLIENT));
        }
        let options = CreateOptions {
            order: layout.order,
            features,
            stripe_unit: layout.stripe_unit,
            stripe_count: layout.stripe_count,
            data_pool: given.data_pool,
            ..CreateOptions::default()
        };
        clone::create(&opened, &pool, &target.image, format, &options).await.map_err(|e| {
            let failure = Failure::of(&e, what, rbd);
            match e.kind() {
                ErrorKind::Invalid => failure
                    .after(format!("librbd: {}", e.clause()))
                    .advise(format!("`ferry snap protect {source}` protects the snapshot")),
                ErrorKind::Exists => {
                    failure.advise("the image of that name is untouched; name another target")
                }
                ErrorKind::NotFound
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
        })?;
        Ok(())
    }

    /// Which kind of clone of `parent`, opened at the snapshot, is made in `pool`.
    pub(super) async fn clone_format(
        &self,
        pool: &Pool,
        target: &ImageSpec,
        parent: &Image,
    ) -> Done<CloneFormat> {
        Ok(match self.settings_in(pool).await?.get("rbd_default_clone_format") {
            "1" => CloneFormat::V1,
            "2" => CloneFormat::V2,
            // A cluster may have clients too old for the newer kind; `rbd` makes the older one there too.
            _ if self.is_in_cluster(&target.pool) && is_protected(parent) => CloneFormat::V1,
            _ => CloneFormat::Auto,
        })
    }

    async fn children(
        &self,
        spec: &ImageSpec,
        snap: Option<SnapBy>,
        scope: TrashScope,
        all_levels: bool,
    ) -> Done<Response> {
        let cannot = || failed(format!("cannot list the clones of {spec}"), "rbd: listing children failed");
        let name = match &snap {
            Some(SnapBy::Name(name)) => Some(name.as_str()),
            Some(SnapBy::Id(_)) | None => None,
        };
        let image = self.open(spec, Opening::ReadOnly).await?;
        let image = match name {
            None => image.clone(),
            Some(name) => {
                image.at_snapshot(name).map_err(|e| cannot()(e).lines(["rbd: snapshot does not exist."]))?
            }
        };
        let at = match snap {
            Some(SnapBy::Id(id)) => image.header.snap(SnapId(id)).map(|s| s.id).map_err(cannot())?,
            Some(SnapBy::Name(_)) | None => image.at,
        };
        let found = if all_levels { descendants(&image, at).await } else { children(&image, at).await };
        let mut found: Vec<ChildImage> = found
            .map_err(cannot())?
            .into_iter()
            .filter(|child| scope == TrashScope::All || !child.in_trash)
            .map(|child| ChildImage {
                pool: child.pool_name,
                namespace: child.namespace.as_str().to_owned(),
                image: child.name,
                id: child.id,
                in_trash: child.in_trash,
            })
            .collect();
        found.sort();
        Ok(Response::Children { children: found, all: scope == TrashScope::All })
    }
}

/// Whether an image is opened at a protected snapshot.
fn is_protected(image: &Image) -> bool {
    image.header.snaps.get(&image.at).is_some_and(|s| s.protection == Protection::Protected)
}
