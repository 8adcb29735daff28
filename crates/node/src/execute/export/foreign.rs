//! Foreign sources that a node offers over NBD, to be read only, without importing them.
//!
//! ```text
//!   export add ─► open ─► secrets to the home ─► offered ─► exports.toml
//!   next node  ─► open, the same as before? ─► offered        (tried again while it cannot be opened)
//!   export rm  ─► out of exports.toml ─► out of the home's secrets ─► offered no more
//! ```

use std::sync::{Arc, Weak};
use std::time::Duration;

use ferry_core::{BlockSource, Error, ErrorKind, Result};
use ferry_source::{Origin, SourceSpec};

use super::{Run, failed};
use crate::api::{Done, ExportLine, Failure, ImportSource, Streams};
use crate::config::{ExportRecord, Home, SourceExport};
use crate::execute::secrets::KeptFor;
use crate::exporter::Exporter;
use crate::host::Host;
use crate::offered::Offered;
use crate::shared::SharedDevices;
use crate::sources::{self, Keys};

/// How long a node that starts waits for its sources before it lets clients in: what answers at all answers by then.
const START_WAIT: Duration = Duration::from_secs(2);

/// Between the first two times that a source is tried which cannot be opened; doubled each time.
const PAUSE_FIRST: Duration = Duration::from_secs(1);

/// Longest time between two.
const PAUSE_MAX: Duration = Duration::from_secs(60);

impl Run<'_> {
    /// Offers a foreign source by the node, also the next one.
    pub(super) async fn export_source(
        &self,
        source: ImportSource,
        name: Option<String>,
        streams: Streams,
    ) -> Done<ExportLine> {
        let exporter = self.exporter()?;
        let name = name.filter(|name| !name.is_empty()).ok_or_else(|| {
            let error = Error::invalid("an export of a source needs a name");
            failed("cannot offer the source", "rbd: export error")(error).advise("--name NAME gives it one")
        })?;
        let cannot = || failed(format!("cannot offer the source as {name}"), "rbd: export error");
        if exporter.clients_of(&name).is_some() {
            return Err(cannot()(Error::exists("an export has this name").with("export", &name)));
        }
        let (spec, source) = self.foreign(source, streams).await?;
        let devices = self.host.shared().map_err(cannot())?;
        let kept = self.without_secrets(&spec, KeptFor::Export, &name).map_err(cannot())?;
        let record = SourceExport { source: kept.to_json(), pin: source.pin() };
        match self.offer_source(exporter, &name, &record, Offered::of_source(devices, source, &name)).await {
            Ok(line) => Ok(line),
            Err(failure) => {
                // Those of another export of the name stay: its spec refers to them.
                if self.home.exports().is_ok_and(|exports| !exports.contains_key(&name)) {
                    self.forget_secrets(&kept, KeptFor::Export).map_err(cannot())?;
                }
                Err(failure)
            }
        }
    }

    async fn offer_source(
        &self,
        exporter: &Arc<Exporter>,
        name: &str,
        record: &SourceExport,
        offered: Offered,
    ) -> Done<ExportLine> {
        let cannot = || failed(format!("cannot offer the source as {name}"), "rbd: export error");
        let line = exporter.add(offered).await.map_err(cannot())?;
        self.keep_export(exporter, name, ExportRecord::Source(record.clone())).await?;
        Ok(line)
    }

    /// A foreign source to be read without importing it.
    pub(super) async fn foreign(
        &self,
        source: ImportSource,
        streams: Streams,
    ) -> Done<(SourceSpec, Arc<dyn BlockSource>)> {
        let cannot = |e: Error| {
            Failure::of(&e, "cannot open the source", "rbd: nbd error")
                .after(format!("librbd: {}", e.clause()))
        };
        // What is offered is in no pool, so that its keys are those of the home.
        let spec = self.source_spec(source, streams).map_err(cannot)?;
        let Origin::Image(image) = spec.origin() else {
            let error = Error::invalid("an image of a pool is offered by its name");
            return Err(cannot(error).advise("`ferry nbd POOL/IMAGE@SNAP` offers it"));
        };
        let threads = self.host.runtime().map_err(cannot)?;
        let keys = Keys::new(threads, self.home, Vec::new());
        let opened = sources::open(keys, image).await.map_err(cannot)?;
        Ok((spec, opened))
    }

    /// Forgets the secrets of an export that is over.
    pub(super) fn forget_secrets_of_export(&self, record: &SourceExport) -> Done<()> {
        let spec = SourceSpec::parse(&record.source);
        let forgotten = spec.and_then(|spec| self.forget_secrets(&spec, KeptFor::Export));
        let what = "the export is removed, but the secrets of its source cannot be removed from the home";
        forgotten.map_err(failed(what, "rbd: config-key error"))
    }
}

/// Offers the foreign sources that a node before this one offered. Those that cannot be opened soon are tried again for as long as
/// they are in the list, because what keeps them from being offered may pass: a server that starts later than the node.
///
/// # Errors
/// Those of [`Host::runtime`].
pub(crate) fn offer_sources(
    host: &Arc<Host>,
    home: &Home,
    records: Vec<(String, SourceExport)>,
) -> Result<()> {
    let Some(exporter) = host.exporter() else { return Ok(()) };
    let runtime = host.runtime()?;
    let devices = host.shared()?;
    let tasks: Vec<_> = records
        .into_iter()
        .map(|(name, record)| {
            let exporter = Arc::downgrade(exporter);
            let again = Again { exporter, devices: Arc::clone(devices), home: home.clone(), name, record };
            runtime.spawn(again.offer())
        })
        .collect();
    runtime.block_on(async {
        let all = async {
            for task in tasks {
                // One that broke off has said so.
                task.await.ok();
            }
        };
        // Those that take longer go on by themselves.
        tokio::time::timeout(START_WAIT, all).await.ok();
    });
    Ok(())
}

/// A source that is to be offered again.
#[derive(Debug)]
struct Again {
    exporter: Weak<Exporter>,
    devices: Arc<SharedDevices>,
    home: Home,
    name: String,
    record: SourceExport,
}

impl Again {
    /// Offers it as soon as it can be opened.
    async fn offer(self) {
        let mut pause = PAUSE_FIRST;
        let mut said = String::new();
        while self.is_wanted() {
            let cause = match self.open().await {
                Ok(source) => return self.offer_opened(source).await,
                Err(e) => e.chain(),
            };
            if cause != said {
                // It stays in the list: what keeps it from being offered may be repaired.
                tracing::error!(export = self.name, cause, "export cannot be offered");
                said = cause;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Whether it is still to be offered.
    fn is_wanted(&self) -> bool {
        if self.exporter.strong_count() == 0 {
            return false;
        }
        match self.home.exports() {
            Ok(listed) => listed.get(&self.name) == Some(&ExportRecord::Source(self.record.clone())),
            // It says nothing now.
            Err(_) => true,
        }
    }

    async fn open(&self) -> Result<Arc<dyn BlockSource>> {
        let spec = SourceSpec::parse(&self.record.source)?;
        let Origin::Image(image) = spec.origin() else {
            return Err(Error::invalid("an image of a pool is offered by its name"));
        };
        let keys = Keys::new(self.devices.runtime(), &self.home, Vec::new());
        let source = sources::open(keys, image).await?;
        if source.pin() != self.record.pin {
            let text = "the source has changed since it was offered; `export rm` and `export add` offer it as it is now";
            return Err(Error::new(ErrorKind::Conflict, text).with("source", source.describe()));
        }
        Ok(source)
    }

    async fn offer_opened(&self, source: Arc<dyn BlockSource>) {
        let Some(exporter) = self.exporter.upgrade() else { return };
        let offered = Offered::of_source(&self.devices, source, &self.name);
        if let Err(e) = exporter.add(offered).await {
            return tracing::error!(export = self.name, cause = e.chain(), "export cannot be offered");
        }
        // It may have been removed from the list, and not been there to be removed, meanwhile.
        if !self.is_wanted()
            && let Err(e) = exporter.remove(&self.name).await
        {
            tracing::error!(export = self.name, cause = e.chain(), "export cannot be removed");
        }
    }
}
