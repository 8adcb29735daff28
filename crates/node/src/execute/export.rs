//! Images and foreign sources offered over NBD: export add, ls, rm, and nbd.

mod foreign;

use std::sync::Arc;

use ferry_core::{Errno, Error, ErrorKind};
use ferry_image::header::Opening;
use ferry_image::image::Image;

use super::{Run, Serving, failed, open_failed};
use crate::api::{
    Done, ExportCommand, ExportLine, Failure, ImageRef, NbdOffer, NbdOptions, Response, Streams,
};
use crate::config::{ExportRecord, ImageExport};
use crate::exporter::Exporter;
use crate::offered::Offered;
use crate::spec::SnapSpec;

pub(crate) use foreign::offer_sources;

impl Run<'_> {
    /// Executes one of them.
    pub(super) async fn export_command(&self, command: ExportCommand, streams: Streams) -> Done<Response> {
        match command {
            ExportCommand::Add { offered, name, read_only } => {
                let line = match offered {
                    NbdOffer::Image(image) => self.export_add(&image, name, read_only).await?,
                    NbdOffer::Source(source) => self.export_source(source, name, streams).await?,
                };
                Ok(Response::Exports { exports: vec![line], added: true })
            }
            ExportCommand::List => {
                let exports = self.host.exporter().map_or_else(Vec::new, |exporter| exporter.list());
                Ok(Response::Exports { exports, added: false })
            }
            ExportCommand::Remove { name, force } => {
                self.export_remove(&name, force).await.map(|()| Response::Done)
            }
        }
    }

    /// Offers an image by the node, also the next one.
    async fn export_add(&self, image: &SnapSpec, name: Option<String>, read_only: bool) -> Done<ExportLine> {
        let exporter = self.exporter()?;
        let name = name.unwrap_or_else(|| image.to_string());
        let record = ImageExport { image: image.clone(), read_only, moving_to: None };
        let line = self.offer(exporter, &name, &record).await?;
        self.keep_export(exporter, &name, ExportRecord::Image(record)).await?;
        Ok(line)
    }

    /// Has the next node offer what is offered; where that cannot be kept, it is offered no more.
    async fn keep_export(&self, exporter: &Arc<Exporter>, name: &str, record: ExportRecord) -> Done<()> {
        let kept = self.home.update_exports(|exports| Ok(exports.insert(name.to_owned(), record)));
        let Err(e) = kept else { return Ok(()) };
        let cannot = failed(format!("cannot keep export {name}"), "rbd: export error");
        let back = failed(format!("cannot take export {name} back"), "rbd: export error");
        exporter.remove(name).await.map_err(back)?;
        Err(cannot(e).advise("nothing is offered"))
    }

    /// Offers an image.
    pub(crate) async fn offer(
        &self,
        exporter: &Exporter,
        name: &str,
        record: &ImageExport,
    ) -> Done<ExportLine> {
        let spec = &record.image;
        let cannot = || failed(format!("cannot offer {spec} as {name}"), "rbd: export error");
        let image = self.open_to_serve(spec, record.read_only).await?;
        let devices = self.host.shared().map_err(cannot())?;
        let offered = Offered::open(devices, spec, image, name, record.read_only).await;
        exporter.add(offered.map_err(cannot())?).await.map_err(cannot())
    }

    /// An image, or a snapshot of it, that stays open when the command is over.
    pub(super) async fn open_to_serve(&self, spec: &SnapSpec, read_only: bool) -> Done<Image> {
        let pool = self.pool_for(&spec.image.pool_spec(), Serving::Always).await?;
        let by = ImageRef::from(spec.image.clone());
        let opening = if read_only || spec.snap.is_some() || pool.is_read_only() {
            Opening::ReadOnly
        } else {
            Opening::ReadWrite
        };
        let image = Image::open(&pool, &spec.image.image, opening).await.map_err(|e| open_failed(&e, &by))?;
        let Some(snap) = &spec.snap else { return Ok(image) };
        let cannot = failed(format!("cannot open {spec}"), "rbd: error setting snapshot context");
        image.at_snapshot(snap).map_err(cannot)
    }

    async fn export_remove(&self, name: &str, force: bool) -> Done<()> {
        let exporter = self.exporter()?;
        let cannot = || failed(format!("cannot remove export {name}"), "rbd: export error");
        let clients = exporter.clients_of(name).unwrap_or(0);
        if clients > 0 && !force {
            let error = Error::busy("clients are attached to the export").with("clients", clients);
            return Err(cannot()(error).advise("nothing was changed; detach them, or end them with --force"));
        }
        // Out of the file first: what is not in it does not come back.
        let listed = self.home.update_exports(|exports| Ok(exports.remove(name))).map_err(cannot())?;
        if let Some(ExportRecord::Source(record)) = &listed {
            self.forget_secrets_of_export(record)?;
        }
        match exporter.remove(name).await {
            // It was in the list, and could not be offered.
            Err(e) if e.kind() == ErrorKind::NotFound && listed.is_some() => Ok(()),
            removed => removed.map_err(cannot()),
        }
    }

    fn exporter(&self) -> Done<&Arc<Exporter>> {
        self.host.exporter().ok_or_else(|| {
            Failure::plain(Errno::ENOENT, "no node serves this home, so nothing is offered")
                .advise("`ferry serve` starts one; `ferry nbd IMAGE` offers one image without it")
        })
    }

    /// Offers one image until the command is asked to end.
    pub(super) async fn nbd(&self, options: NbdOptions, streams: Streams) -> Done<Response> {
        let NbdOptions { offered, name, read_only, listen } = options;
        let shown = match &offered {
            NbdOffer::Image(image) => image.to_string(),
            NbdOffer::Source(_) => "the source".to_owned(),
        };
        let cannot = || failed(format!("cannot offer {shown}"), "rbd: nbd error");
        let threads = self.host.runtime().map_err(cannot())?;
        let exporter = Arc::new(Exporter::new(threads, &listen));
        self.host.add_exporter(&exporter);
        exporter.listen(&listen, Vec::new()).map_err(cannot())?;
        let devices = self.host.shared().map_err(cannot())?;
        let offered = match offered {
            NbdOffer::Image(image) => {
                let name = name.unwrap_or_else(|| image.to_string());
                self.offer(&exporter, &name, &ImageExport { image, read_only, moving_to: None }).await
            }
            NbdOffer::Source(source) => match self.foreign(source, streams).await {
                Ok((_, source)) => {
                    let offered = Offered::of_source(devices, source, &name.unwrap_or_default());
                    exporter.add(offered).await.map_err(cannot())
                }
                Err(failure) => Err(failure),
            },
        };
        if let Ok(line) = &offered {
            for text in line.invitation() {
                self.events.say(&text);
            }
            self.cancel.asked().await;
        }
        let stopped =
            exporter.stop().await.map_err(failed(format!("cannot close {shown}"), "rbd: close error"));
        offered?;
        stopped.map(|()| Response::Done)
    }
}
