//! What is kept of a migration that was committed: `<home>/receipts/<uuid>.json`. Until then what is known is in a draft beside it.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::time::Duration;

use ferry_core::{Error, Result};
use ferry_migrate::{End, Ends, Receipt, Receipts};
use serde_json::{Value, json};

use crate::config::{Home, replace};
use crate::offered::Way;
use crate::sources::shown;

/// The receipt of one migration.
///
/// - The draft is written at prepare, where clients had to wait for it, and when all is verified; it becomes the receipt by its name alone,
///   for which there is room also on a full disk.
/// - An abort takes it away.
#[derive(Debug)]
pub(super) struct Kept {
    directory: PathBuf,
    name: String,
}

impl Kept {
    /// That of the migration `uuid` to `target`.
    fn new(home: &Home, uuid: [u8; 16], target: &End) -> Self {
        let name = if uuid == [0; 16] {
            // `rbd` prepared it, and gave it no number; no other image has the target's.
            target.id.chars().filter(char::is_ascii_alphanumeric).collect()
        } else {
            uuid.iter().map(|b| format!("{b:02x}")).collect()
        };
        Self { directory: home.dir().join("receipts"), name }
    }

    /// That of a migration of an image.
    pub(super) fn of(home: &Home, ends: &Ends) -> Self {
        let intent = ends.target.intent().or(ends.source.intent());
        Self::new(home, intent.map_or([0; 16], |i| i.uuid), &ends.target)
    }

    /// That of an import to `target`.
    pub(super) fn of_import(home: &Home, target: &End) -> Self {
        Self::new(home, target.intent().map_or([0; 16], |i| i.uuid), target)
    }

    /// Where it is.
    pub(super) fn path(&self) -> PathBuf {
        self.directory.join(format!("{}.json", self.name))
    }

    /// Notes how long clients waited at prepare.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(super) fn prepared(&self, waited: &[(Way, Duration)]) -> Result<()> {
        if waited.is_empty() {
            return Ok(());
        }
        let pauses = waited.iter().map(|(way, pause)| {
            let ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            json!({ "clients_of": way.to_string(), "milliseconds": ms })
        });
        self.write(&json!({ "pauses": pauses.collect::<Vec<_>>() }))
    }

    /// Takes the draft away.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(super) fn forget(&self) -> Result<()> {
        match fs::remove_file(self.draft()) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(self.cannot(e)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn draft(&self) -> PathBuf {
        self.directory.join(format!("{}.json.draft", self.name))
    }

    /// The draft; null where there is none, or something else in its place.
    fn drafted(&self) -> Result<Value> {
        match fs::read(self.draft()) {
            Ok(text) => Ok(serde_json::from_slice(&text).unwrap_or_default()),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Value::Null),
            Err(e) => Err(self.cannot(e)),
        }
    }

    fn write(&self, value: &Value) -> Result<()> {
        let text = format!("{value:#}\n");
        let made = fs::create_dir_all(&self.directory);
        made.and_then(|()| replace(&self.draft(), 0o644, text.as_bytes())).map_err(|e| self.cannot(e))
    }

    fn cannot(&self, e: io::Error) -> Error {
        Error::io("cannot keep the receipt of a migration", e).with("file", self.path().display())
    }
}

impl Receipts for Kept {
    fn draw_up(&self, receipt: &Receipt) -> Result<()> {
        let pauses = self.drafted()?["pauses"].take();
        self.write(&as_json(receipt, &if pauses.is_array() { pauses } else { json!([]) }))
    }

    fn give_out(&self, receipt: &Receipt) -> Result<()> {
        if self.path().exists() {
            return Ok(());
        }
        if self.drafted()?["committed_at"].is_null() {
            // The commit was begun under another home, or by another program.
            self.draw_up(receipt)?;
        }
        fs::rename(self.draft(), self.path())
            .and_then(|()| File::open(&self.directory)?.sync_all())
            .map_err(|e| self.cannot(e))
    }
}

fn as_json(receipt: &Receipt, pauses: &Value) -> Value {
    let uuid: String = receipt.uuid.iter().map(|b| format!("{b:02x}")).collect();
    let place = |[pool, namespace, image, id]: &[String; 4]| json!({ "pool": pool, "namespace": namespace, "image": image, "id": id });
    let verification = receipt.verification.as_ref().map(|v| {
        let points = v.points.iter().map(|p| {
            json!({
                "snapshot": p.snap,
                "size": p.size,
                "data_bytes": p.data_bytes,
                "compared_with_kept_digests": p.digest_bytes,
                "compared_by_reading_both_ends": p.data_bytes - p.digest_bytes,
                "digest_source": format!("{:032x}", p.source_digest.0),
                "digest_target": format!("{:032x}", p.target_digest.0),
                "equal": p.first_difference.is_none(),
                "bytes_not_compared": p.overwritten,
            })
        });
        points.collect::<Vec<_>>()
    });
    let source = if receipt.source_spec.is_empty() {
        place(&receipt.source)
    } else {
        json!({ "spec": shown(&receipt.source_spec) })
    };
    json!({
        "migration": uuid,
        "committed_at": receipt.at.seconds,
        "source": source,
        "target": place(&receipt.target),
        "size": receipt.size,
        "pauses": pauses,
        "verified": verification,
    })
}
