//! What is kept of a migration that was committed: `<home>/receipts/<uuid>.json`.

use std::fs;
use std::path::PathBuf;

use ferry_core::{Error, Result};
use ferry_migrate::Receipt;
use serde_json::{Value, json};

use crate::config::Home;
use crate::sources::shown;

/// Writes the receipt and gives its path. One that is there already is kept: it has the comparison.
///
/// # Errors
/// Those of the operating system.
pub(super) fn keep(home: &Home, receipt: &Receipt) -> Result<PathBuf> {
    let uuid: String = receipt.uuid.iter().map(|b| format!("{b:02x}")).collect();
    let dir = home.dir().join("receipts");
    let path = dir.join(format!("{uuid}.json"));
    let cannot = |e| Error::io("cannot keep the receipt of a migration", e).with("file", path.display());
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(&dir).map_err(cannot)?;
    let text = format!("{:#}\n", as_json(&uuid, receipt));
    fs::write(&path, text).map_err(cannot)?;
    Ok(path)
}

fn as_json(uuid: &str, receipt: &Receipt) -> Value {
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
        "verified": verification,
    })
}
