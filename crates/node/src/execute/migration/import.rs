//! Imports: what is imported, and where its secrets are kept.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use ferry_core::{Errno, Error, ErrorKind, Result, SnapId};
use ferry_image::encoding::TrashSource;
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::pool::Pool;
use ferry_image::progress::silent;
use ferry_image::trash;
use ferry_migrate::{AbortOptions, CommitOptions, ImportFrom, ImportOptions, Imported, prepare_import};
use ferry_source::spec::{ClusterSpec, NativeSpec, PoolRef, SnapRef};
use ferry_source::{Origin, SourceSpec};
use serde_json::json;

use crate::api::{Done, Failure, ImageRef, ImportSource, LayoutOptions, Manner, Progress, Streams};
use crate::backend::{Names, Stoppable};
use crate::execute::secrets::KeptFor;
use crate::execute::{Run, failed};
use crate::sources::{self, Place};
use crate::spec::{ImageSpec, SnapSpec};

/// What `rbd` says before the number of an error.
const RBD: &str = "rbd: preparing import migration failed";

/// Longest source spec in a file. Bytes.
const SPEC_MAX: u64 = 64 << 10;

impl Run<'_> {
    /// Makes an image that shows something else at once.
    pub(super) async fn migration_import(
        &self,
        source: ImportSource,
        target: &ImageSpec,
        layout: &LayoutOptions,
        manner: Manner,
        streams: Streams,
    ) -> Done<()> {
        let what = format!("cannot prepare the import of {target}");
        let cannot = |e: Error| import_failed(&e, &what, target);
        let spec = match source {
            ImportSource::Snapshot(snap) => return self.import_snapshot(&snap, target, layout, manner).await,
            other => spec_of(other, streams),
        };
        let spec = spec.map_err(cannot)?;
        let pool = self.pool(&target.pool_spec()).await?;
        match spec.origin() {
            Origin::Native(_) => {
                let kept = self.without_secrets(&spec, KeptFor::Import, target).map_err(cannot)?;
                let made = self.import_native(&kept, &pool, target, layout, manner).await;
                if made.is_err() && !self.is_in_use(&pool, target, &kept).await {
                    self.forget_secrets(&kept, KeptFor::Import).map_err(cannot)?;
                }
                made
            }
            Origin::Image(image) => {
                let keys = self.host.keys(self.home).map_err(cannot)?;
                let source = sources::open(keys, image).await.map_err(cannot)?;
                let kept = self.without_secrets(&spec, KeptFor::Import, target).map_err(cannot)?;
                let from = ImportFrom::Foreign { source, spec: sources::stored(&kept, Place::Elsewhere) };
                let made = self.make_import(&from, &pool, target, layout, manner).await;
                if made.is_err() && !self.is_in_use(&pool, target, &kept).await {
                    self.forget_secrets(&kept, KeptFor::Import).map_err(cannot)?;
                }
                made
            }
        }
    }

    /// Imports all of a source at once; an image that cannot be completed is removed again.
    pub(in crate::execute) async fn import_from(
        &self,
        source: ImportSource,
        target: &ImageSpec,
        layout: &LayoutOptions,
        streams: Streams,
    ) -> Done<()> {
        self.migration_import(source, target, layout, Manner::Rbd, streams).await?;
        let rbd = "rbd: import failed";
        let what = format!("cannot import image {target}");
        let executed = self.execute_as(target, "Importing image", &what, rbd).await;
        if let Err(failure) = executed {
            let moved = self.moved(target, &what, rbd).await?;
            let spec = moved.spec().to_owned();
            let pool = self.pool(&target.pool_spec()).await?;
            let options = AbortOptions { accept_loss: true };
            let gone = ferry_migrate::abort_import(&pool, &target.image, options, &mut silent).await;
            if gone.is_err() {
                return Err(failure);
            }
            self.forget_secrets_of(&spec)?;
            return Err(Failure { next: vec!["no image was made".to_owned()], ..failure });
        }
        let moved = self.moved(target, &what, rbd).await?;
        let spec = moved.spec().to_owned();
        let options = CommitOptions { force: true, unverified: true, ..CommitOptions::default() };
        moved.commit(options, &mut silent).await.map_err(failed(&what, rbd))?;
        self.forget_secrets_of(&spec)
    }

    /// The spec of a source that is no snapshot.
    pub(in crate::execute) fn source_spec(
        &self,
        source: ImportSource,
        streams: Streams,
    ) -> Result<SourceSpec> {
        spec_of(source, streams)
    }

    /// Imports from a snapshot that is named as such.
    async fn import_snapshot(
        &self,
        snap: &SnapSpec,
        target: &ImageSpec,
        layout: &LayoutOptions,
        manner: Manner,
    ) -> Done<()> {
        let image = self.open_at(&ImageRef::from(snap.image.clone()), snap.snap.as_deref()).await?;
        let pool = self.pool(&target.pool_spec()).await?;
        let named = json!({
            "image_name": snap.image.image,
            "pool_id": image.pool.id().0,
            "pool_namespace": snap.image.namespace,
            "snap_name": snap.snap,
            "type": "native",
        });
        let cannot = |e: Error| import_failed(&e, &format!("cannot prepare the import of {target}"), target);
        let spec = SourceSpec::parse(&named.to_string()).map_err(cannot)?;
        let place = place_of(&image, &pool);
        let from = ImportFrom::Snapshot { image: Box::new(image), spec: sources::stored(&spec, place) };
        self.make_import(&from, &pool, target, layout, manner).await
    }

    /// Imports from the snapshot that a native spec names; no secret stands in it.
    async fn import_native(
        &self,
        spec: &SourceSpec,
        pool: &Pool,
        target: &ImageSpec,
        layout: &LayoutOptions,
        manner: Manner,
    ) -> Done<()> {
        let cannot = |e: Error| import_failed(&e, &format!("cannot prepare the import of {target}"), target);
        let Origin::Native(native) = spec.origin() else {
            return Err(cannot(Error::invalid("not a native spec")));
        };
        let image = self.native(native, pool).await.map_err(cannot)?;
        let place = place_of(&image, pool);
        let from = ImportFrom::Snapshot { image: Box::new(image), spec: sources::stored(spec, place) };
        self.make_import(&from, pool, target, layout, manner).await
    }

    async fn make_import(
        &self,
        from: &ImportFrom,
        pool: &Pool,
        target: &ImageSpec,
        layout: &LayoutOptions,
        manner: Manner,
    ) -> Done<()> {
        let what = format!("cannot prepare the import of {target}");
        let layout = self.create_options(pool, layout, 0, None, RBD).await?;
        let options = ImportOptions { layout, shared: false };
        match prepare_import(from, pool, &target.image, &options).await {
            Ok(Imported::Done(_)) => Ok(()),
            Ok(Imported::Already(_)) if manner == Manner::Ferry => {
                self.events.advise(&format!(
                    "{target} is prepared already; `ferry status {target}` shows how far it is"
                ));
                Ok(())
            }
            Ok(Imported::Already(_)) => {
                let error = Error::exists("an image of this name exists").with("image", &target.image);
                Err(import_failed(&error, &what, target))
            }
            Err(e) => Err(import_failed(&e, &what, target)),
        }
    }

    /// The image of a native spec, at its snapshot. `target` is in the store whose pools are meant by number.
    async fn native(&self, spec: &NativeSpec, target: &Pool) -> Result<Image> {
        let lost = |text: String| Error::not_found(text);
        let namespace = ferry_core::Namespace::new(&spec.namespace);
        let pool = match (&spec.cluster, &spec.pool) {
            (Some(cluster), pool) => self.pool_of_cluster(cluster, pool).await?.in_namespace(&namespace),
            (None, PoolRef::Name(name)) => {
                let whole = self.whole_pool(name).await;
                whole
                    .map_err(|_| lost("invalid pool name".to_owned()).with("pool", name))?
                    .in_namespace(&namespace)
            }
            (None, PoolRef::Id(id)) => {
                let pools = target.store.pools().await?;
                if !pools.iter().any(|p| p.id.0 == *id) {
                    return Err(lost("invalid pool id".to_owned()).with("pool_id", id));
                }
                target.sibling(ferry_core::PoolId(*id), &namespace).await?
            }
        };
        pool.check_namespace().await?;
        let image = match &spec.image_id {
            Some(id) => Image::open_by_id(&pool, id, Opening::ReadOnly).await?,
            None => Image::open(&pool, &spec.image_name, Opening::ReadOnly).await?,
        };
        match &spec.snap {
            SnapRef::Name(name) => {
                image.at_snapshot(name).map_err(|_| lost(format!("failed to locate snapshot {name}")))
            }
            SnapRef::Id(id) => {
                let user = image.header.snap(SnapId(*id)).is_ok_and(|s| s.namespace.is_user());
                let found = image.at_snapshot_id(SnapId(*id)).ok().filter(|_| user);
                found.ok_or_else(|| lost(format!("failed to set snapshot {id}")))
            }
        }
    }

    /// A pool of a cluster that only the spec names.
    async fn pool_of_cluster(&self, cluster: &ClusterSpec, pool: &PoolRef) -> Result<Pool> {
        let store = sources::connect(self.host, self.home, cluster).await?;
        let store = Stoppable::over(store, self.cancel.clone(), Names::new());
        let pools = store.pools().await?;
        let found = pools.into_iter().find(|info| match pool {
            PoolRef::Name(name) => info.name == *name,
            PoolRef::Id(id) => info.id.0 == *id,
        });
        let name = found.ok_or_else(|| Error::not_found("the other cluster has no such pool"))?.name;
        let pool = Pool::open(store, self.env.clone(), &name, &ferry_core::Namespace::default()).await?;
        Ok(pool.with_peers(self.peers()))
    }

    /// Whether an import that is there refers to the secrets of this spec.
    async fn is_in_use(&self, pool: &Pool, target: &ImageSpec, spec: &SourceSpec) -> bool {
        let text = sources::stored(spec, Place::Elsewhere);
        let found = ferry_migrate::Import::find(pool, &target.image).await;
        found.is_ok_and(|import| import.spec() == text)
    }

    /// As [`Self::forget_secrets`], of an import that is over.
    pub(super) fn forget_secrets_of(&self, stored: &str) -> Done<()> {
        if stored.is_empty() {
            return Ok(());
        }
        let forgotten =
            sources::of_stored(stored).and_then(|spec| self.forget_secrets(&spec, KeptFor::Import));
        let what = "the import is over, but the secrets of its source cannot be removed from the home";
        forgotten.map_err(failed(what, "rbd: config-key error"))
    }

    /// Takes the target of an import away.
    pub(super) async fn abort_import(
        &self,
        image: &ImageSpec,
        options: AbortOptions,
        spec: &str,
    ) -> Done<()> {
        let pool = self.pool(&image.pool_spec()).await?;
        let step = Progress::start(self.events, "Abort image migration");
        let aborted =
            ferry_migrate::abort_import(&pool, &image.image, options, &mut |d, t| step.at(d, t)).await;
        aborted.map_err(|e| abort_failed(&e, image))?;
        step.done();
        self.forget_secrets_of(spec)
    }

    /// Whether something is left under this name of an import, or a removal, that was cut off.
    pub(super) async fn has_remains(&self, image: &ImageSpec) -> Done<bool> {
        let pool = self.pool(&image.pool_spec()).await?;
        let found = trash::find_by_name(&pool, &image.image, TrashSource::Removing).await;
        Ok(found.map_err(failed("cannot read the trash", "rbd: trash error"))?.is_some())
    }
}

/// Whether an image is in the store of the target.
fn place_of(image: &Image, target: &Pool) -> Place {
    let is_same = image.pool.store.identity() == target.store.identity();
    if is_same { Place::SameStore } else { Place::Elsewhere }
}

/// The spec of a source that is no snapshot.
fn spec_of(source: ImportSource, streams: Streams) -> Result<SourceSpec> {
    match source {
        ImportSource::Spec { text, base } => parse(&text.0, &base),
        ImportSource::File { base } => read(streams.input).and_then(|text| parse(&text, &base)),
        ImportSource::Image { format, path } => SourceSpec::of_file(&format, &path),
        ImportSource::Snapshot(_) => Err(Error::invalid("a snapshot is no foreign source")),
    }
}

/// A spec with its files named from the root.
fn parse(text: &str, base: &Path) -> Result<SourceSpec> {
    SourceSpec::parse(text)?.with_absolute_paths(base)
}

/// A spec out of a file.
fn read(input: Option<File>) -> Result<String> {
    let input = input.ok_or_else(|| Error::invalid("no file was handed over"))?;
    let mut text = String::new();
    let read = input.take(SPEC_MAX + 1).read_to_string(&mut text);
    read.map_err(|e| Error::io("cannot read the source-spec", e))?;
    Ok(text)
}

fn import_failed(error: &Error, what: &str, target: &ImageSpec) -> Failure {
    let failure = Failure::of(error, what, RBD).after(format!("librbd: {}", error.clause()));
    match error.kind() {
        ErrorKind::Exists => failure.advise(format!("{target} is as it was: name another target")),
        _ => failure.advise("no image was made, and the source was only read"),
    }
}

fn abort_failed(error: &Error, image: &ImageSpec) -> Failure {
    let what = format!("cannot abort the import of {image}");
    let failure = Failure::of(error, what, "rbd: aborting migration failed");
    let failure = match error.errno() {
        Errno::ENOENT => failure.after("librbd: failed to determine image id: (2) No such file or directory"),
        _ => failure.after(format!("librbd: {}", error.clause())),
    };
    match error.fact("losses") {
        Some(losses) => {
            let failure = failure.advise("nothing was changed");
            let failure =
                losses.split("; ").fold(failure, |f, loss| f.advise(format!("would be lost: {loss}")));
            failure.advise(format!("`ferry migration abort --accept-loss {image}` removes it all the same"))
        }
        None if error.kind() == ErrorKind::Busy => {
            failure.advise("nothing was changed").advise(format!("`ferry status {image}` tells who uses it"))
        }
        None => failure,
    }
}
