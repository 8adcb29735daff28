//! Images to and from files: import, export, export-diff, import-diff, merge-diff, diff.

use std::fs::File;
use std::io::{BufReader, BufWriter, IntoInnerError};

use ferry_core::{Error, ErrorKind, ExtentState, Result};
use ferry_image::create;
use ferry_image::diff::{Diff, DiffRequest, Granularity, ParentData};
use ferry_image::features::Features;
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::pool::Pool;
use ferry_image::stream::ImageStreamReader;
use ferry_image::times::{self, Used};
use ferry_image::transfer::export::{export_raw, export_stream};
use ferry_image::transfer::export_diff::export_diff;
use ferry_image::transfer::import::{import_raw, import_stream};
use ferry_image::transfer::import_diff::import_diff;
use ferry_image::transfer::merge_diff::merge_diff;
use futures_util::TryStreamExt;

use super::files::{FileTarget, raw_source, settle};
use super::image::SPARSE_SIZE;
use super::opened::Opened;
use super::readers::ReadThreads;
use super::{Run, failed};
use crate::api::{
    DiffExtent, Done, ExportFormat, Failure, ImageRef, LayoutOptions, Progress, Response, Streams,
    TransferCommand,
};
use crate::spec::{ImageSpec, SnapSpec};

/// Bytes of a stream held in memory between system calls.
const BUFFER: usize = 1 << 20;

impl Run<'_> {
    /// Executes one of them.
    pub(super) async fn transfer_command(
        &self,
        command: TransferCommand,
        streams: Streams,
    ) -> Done<Response> {
        match command {
            TransferCommand::Import { target, layout, format, sparse_size } => {
                let input = given(streams.input, "rbd: import failed")?;
                let sparse_size = sparse_size.unwrap_or(SPARSE_SIZE);
                self.import(input, &target, &layout, format, sparse_size).await?;
            }
            TransferCommand::ImportFrom { source, target, layout } => {
                Box::pin(self.import_from(source, &target, &layout, streams)).await?;
            }
            TransferCommand::Export { source, format } => {
                let output = given(streams.output, "rbd: export error")?;
                self.export(&source, format, output).await?;
            }
            TransferCommand::ExportDiff { source, from_snap, whole_object } => {
                let output = given(streams.output, "rbd: export-diff error")?;
                self.export_diff(&source, from_snap.as_deref(), granularity(whole_object), output).await?;
            }
            TransferCommand::ImportDiff { image, sparse_size } => {
                let input = given(streams.input, "rbd: import-diff failed")?;
                self.import_diff(input, &image, sparse_size.unwrap_or(SPARSE_SIZE)).await?;
            }
            TransferCommand::MergeDiff => self.merge_diff(streams)?,
            TransferCommand::Diff { source, from_snap, whole_object } => {
                return self.diff(&source, from_snap.as_deref(), granularity(whole_object)).await;
            }
        }
        Ok(Response::Done)
    }

    async fn import(
        &self,
        input: File,
        target: &ImageSpec,
        layout: &LayoutOptions,
        format: ExportFormat,
        sparse_size: u64,
    ) -> Done<()> {
        let pool = self.pool(&target.pool_spec()).await?;
        let step = Progress::start(self.events, "Importing image");
        match format {
            ExportFormat::Raw => self.import_raw(input, &pool, target, layout, sparse_size, &step).await?,
            ExportFormat::Stream => {
                self.import_stream(input, &pool, target, layout, sparse_size, &step).await?;
            }
        }
        step.done();
        Ok(())
    }

    async fn import_raw(
        &self,
        input: File,
        pool: &Pool,
        target: &ImageSpec,
        layout: &LayoutOptions,
        sparse_size: u64,
        step: &Progress<'_>,
    ) -> Done<()> {
        let rbd = "rbd: import failed";
        let what = format!("cannot import image {target}");
        let mut source = raw_source(input).map_err(failed(what.clone(), rbd))?;
        let size = source.size().unwrap_or_default();
        let options = self.create_options(pool, layout, size, None, rbd).await?;
        create::create(pool, &target.image, &options).await.map_err(|e| exists(&e, &what, target))?;
        let mut image = self.open(target, Opening::ReadWrite).await?;
        let imported = import_raw(&mut *source, &mut image, sparse_size, &mut |d, t| step.at(d, t)).await;
        self.finish_import(pool, image, imported, what).await
    }

    async fn import_stream(
        &self,
        input: File,
        pool: &Pool,
        target: &ImageSpec,
        layout: &LayoutOptions,
        sparse_size: u64,
        step: &Progress<'_>,
    ) -> Done<()> {
        let rbd = "rbd: import failed";
        let what = format!("cannot import image {target}");
        let reader = BufReader::with_capacity(BUFFER, input);
        let mut stream = ImageStreamReader::new(reader).map_err(failed(what.clone(), rbd))?;
        let header = stream.header().clone();
        // One that is none is refused as out of range.
        let order = header.order.map(|o| u8::try_from(o).unwrap_or(u8::MAX));
        let unit = header
            .stripe_unit
            .filter(|u| *u != 0 && order.is_none_or(|o| Some(*u) != 1_u64.checked_shl(u32::from(o))));
        let count = header.stripe_count.filter(|c| unit.is_some() || *c > 1);
        let internal = Features::INTERNAL.with(Features::JOURNALING).with(Features::DATA_POOL);
        let layout = LayoutOptions {
            order: layout.order.or(order),
            features: layout.features.or(header.features.map(|f| Features(f).without(internal).0)),
            stripe_unit: layout
                .stripe_unit
                .or(unit.or(count.and(order).and_then(|o| 1_u64.checked_shl(u32::from(o))))),
            stripe_count: layout.stripe_count.or(count.or(unit.map(|_| 1))),
            ..layout.clone()
        };
        let options = self.create_options(pool, &layout, 0, None, rbd).await?;
        create::create(pool, &target.image, &options).await.map_err(|e| exists(&e, &what, target))?;
        let mut image = self.open(target, Opening::ReadWrite).await?;
        let imported = import_stream(&mut stream, &mut image, sparse_size, &mut |d, t| step.at(d, t)).await;
        self.finish_import(pool, image, imported, what).await
    }

    /// Keeps a whole image, and removes half a one.
    async fn finish_import(
        &self,
        pool: &Pool,
        image: Opened<'_>,
        imported: Result<()>,
        what: String,
    ) -> Done<()> {
        let name = image.name.clone();
        let closed = self.close(image).await;
        match imported {
            Ok(()) => closed,
            Err(e) => {
                let failure = Failure::of(&e, what, "rbd: import failed");
                Err(self.discard_unfinished(pool, &name, failure).await)
            }
        }
    }

    async fn export(&self, source: &SnapSpec, format: ExportFormat, output: File) -> Done<()> {
        let image = self.open_at(&ImageRef::from(source.image.clone()), source.snap.as_deref()).await?;
        let step = Progress::start(self.events, "Exporting image");
        let exported = match format {
            ExportFormat::Raw => match FileTarget::new(output) {
                Ok(mut target) => {
                    let readers = ReadThreads::start();
                    let result = export_raw(&image, &readers, &mut target, &mut |d, t| step.at(d, t)).await;
                    result.and_then(|()| target.finish())
                }
                Err(e) => Err(e),
            },
            ExportFormat::Stream => {
                let writer = BufWriter::with_capacity(BUFFER, output);
                let result = export_stream(&image, writer, &mut |d, t| step.at(d, t)).await;
                result.and_then(flush)
            }
        };
        exported.map_err(failed(format!("cannot export {source}"), "rbd: export error"))?;
        note(&image, Used::Read).await;
        step.done();
        Ok(())
    }

    async fn export_diff(
        &self,
        source: &SnapSpec,
        from: Option<&str>,
        granularity: Granularity,
        output: File,
    ) -> Done<()> {
        let image = self.open_at(&ImageRef::from(source.image.clone()), source.snap.as_deref()).await?;
        let step = Progress::start(self.events, "Exporting image");
        let writer = BufWriter::with_capacity(BUFFER, output);
        let written = export_diff(&image, from, granularity, writer, &mut |d, t| step.at(d, t)).await;
        written
            .and_then(flush)
            .map_err(failed(format!("cannot export the changes of {source}"), "rbd: export-diff error"))?;
        note(&image, Used::Read).await;
        step.done();
        Ok(())
    }

    async fn import_diff(&self, input: File, spec: &ImageSpec, sparse_size: u64) -> Done<()> {
        let mut image = self.open(spec, Opening::ReadWrite).await?;
        let step = Progress::start(self.events, "Importing image diff");
        let reader = BufReader::with_capacity(BUFFER, input);
        let applied = import_diff(reader, &mut image, sparse_size, &mut |d, t| step.at(d, t)).await;
        applied.map_err(|e| {
            let what = format!("cannot apply the changes to {spec}");
            let failure = Failure::of(&e, what, "rbd: import-diff failed");
            match (e.fact("snapshot"), e.kind()) {
                (Some(snap), ErrorKind::Exists) => {
                    let line = format!("end snapshot '{snap}' already exists, aborting");
                    failure.after(line).advise("nothing was changed: these changes were applied before")
                }
                (Some(snap), ErrorKind::Invalid) => failure
                    .after(format!("start snapshot '{snap}' does not exist in the image, aborting"))
                    .advise("nothing was changed: apply the changes that lead to that snapshot first"),
                (_, _) if e.fact("part") == Some("header") => {
                    failure.advise("nothing was changed: what `export-diff` wrote is expected")
                }
                (_, _) => failure.advise(format!(
                    "a part of the changes may be there: roll {spec} back to the snapshot they start from, and repeat"
                )),
            }
        })?;
        note(&image, Used::Written).await;
        step.done();
        self.close(image).await
    }

    fn merge_diff(&self, streams: Streams) -> Done<()> {
        let rbd = "rbd: merge-diff error";
        let first = BufReader::with_capacity(BUFFER, given(streams.input, rbd)?);
        let second = BufReader::with_capacity(BUFFER, given(streams.second, rbd)?);
        let output = BufWriter::with_capacity(BUFFER, given(streams.output, rbd)?);
        let step = Progress::start(self.events, "Merging image diff");
        merge_diff(first, second, output, &mut |d, t| step.at(d, t))
            .and_then(flush)
            .map_err(|e| failed("cannot merge the two diffs", rbd)(e).lines([rbd]))?;
        step.done();
        Ok(())
    }

    async fn diff(&self, source: &SnapSpec, from: Option<&str>, granularity: Granularity) -> Done<Response> {
        let image = self.open_at(&ImageRef::from(source.image.clone()), source.snap.as_deref()).await?;
        let cannot = || failed(format!("cannot compare {source}"), "rbd: diff error");
        let from =
            from.map(|name| image.header.user_snap(name).map(|s| s.id)).transpose().map_err(cannot())?;
        let granularity = match granularity {
            Granularity::Exact => Granularity::Extents,
            Granularity::Extents | Granularity::WholeObject => granularity,
        };
        let request = DiffRequest { from, to: image.at, granularity, parent: ParentData::Included };
        let diff = Diff::open(&image, request).await.map_err(cannot())?;
        // Object by object, as `rbd` lists them: what touches across objects stays apart.
        let mut changes = std::pin::pin!(diff.changes());
        let mut extents = Vec::new();
        while let Some(batch) = changes.try_next().await.map_err(cannot())? {
            extents.extend(batch.into_iter().map(|c| DiffExtent {
                offset: c.offset,
                length: c.length,
                exists: c.state == ExtentState::Data,
            }));
        }
        Ok(Response::Diff(extents))
    }
}

/// Notes in the header that the image was used. One that cannot be noted was used all the same: no command fails because of it.
async fn note(image: &Image, used: Used) {
    times::note(image, used).await.ok();
}

/// How closely to compare.
fn granularity(whole_object: bool) -> Granularity {
    if whole_object { Granularity::WholeObject } else { Granularity::Exact }
}

/// A file that the command cannot do without.
fn given(file: Option<File>, rbd: &str) -> Done<File> {
    file.ok_or_else(|| Failure::of(&Error::invalid("no file was handed over"), "cannot start", rbd))
}

/// Writes out what is buffered, durably where that means something.
fn flush(writer: BufWriter<File>) -> Result<()> {
    let file = writer
        .into_inner()
        .map_err(IntoInnerError::into_error)
        .map_err(|e| Error::io("cannot write the file", e))?;
    settle(&file)
}

/// An image that cannot be made.
fn exists(error: &Error, what: &str, target: &ImageSpec) -> Failure {
    let failure = Failure::of(error, what, "rbd: import failed");
    if error.kind() == ErrorKind::Exists {
        failure
            .after(format!("librbd: rbd image {} already exists", target.image))
            .advise("the image is untouched; name another target")
    } else {
        failure
    }
}
