//! What changed in an image since each of its snapshots, for clients of its export that ask: contexts of NBD called
//! `ferry:changed-since:SNAPSHOT`, whose bit 0 is set where bytes may have changed.

use std::sync::Arc;

use ferry_core::{Error, Reply, Result, SnapId};
use ferry_image::diff::{Diff, DiffRequest, Granularity, ParentData};
use ferry_image::encoding::SnapshotNamespace;
use ferry_image::image::Image;
use ferry_serve::context::{MetaContext, MetaContexts, Status};

use super::Below;

/// What the names begin with.
const PREFIX: &str = "ferry:changed-since:";
/// The flag of bytes that may have changed; QEMU reads it as dirty.
const CHANGED: u32 = 1;

/// The contexts of an image: one for each snapshot it has.
#[derive(Debug)]
pub(super) struct Changes(pub(super) Arc<Below>);

/// Changes since one snapshot.
#[derive(Debug)]
struct ChangedSince {
    below: Arc<Below>,
    name: String,
}

impl MetaContexts for Changes {
    fn list(&self) -> Vec<Arc<dyn MetaContext>> {
        let Some(image) = self.0.image() else { return Vec::new() };
        let context = |snapshot: &str| -> Arc<dyn MetaContext> {
            Arc::new(ChangedSince { below: Arc::clone(&self.0), name: format!("{PREFIX}{snapshot}") })
        };
        let snapshots = image.header.snaps.values().filter(|s| s.namespace == SnapshotNamespace::User);
        snapshots.map(|s| context(&s.name)).collect()
    }
}

impl MetaContext for ChangedSince {
    fn name(&self) -> &str {
        &self.name
    }

    fn status(&self, offset: u64, length: u64) -> Reply<Vec<Status>> {
        let image = self.below.image();
        let snapshot = self.name.strip_prefix(PREFIX).unwrap_or_default().to_owned();
        Reply::pending(async move {
            // A migration may have put another image below: the snapshot is looked up by its name.
            let image = image.ok_or_else(|| Error::not_found("no image is below the export"))?;
            changed(&image, &snapshot, offset, length).await
        })
    }
}

/// What changed in a range, and what did not.
async fn changed(image: &Image, snapshot: &str, offset: u64, length: u64) -> Result<Vec<Status>> {
    let from = image.header.user_snap(snapshot)?.id;
    let (to, granularity, parent) = (image.at, Granularity::Exact, ParentData::Included);
    if to != SnapId::HEAD && from > to {
        return Err(Error::invalid("the snapshot is newer than the export").with("snapshot", snapshot));
    }
    let diff = Diff::open(image, DiffRequest { from: Some(from), to, granularity, parent }).await?;
    let mut all = Vec::new();
    let mut at = offset;
    for change in diff.range(offset, length).await? {
        push(&mut all, change.offset - at, 0);
        push(&mut all, change.length, CHANGED);
        at = change.offset + change.length;
    }
    push(&mut all, offset + length - at, 0);
    Ok(all)
}

/// Appends a part, joined with the last one where it is alike.
fn push(all: &mut Vec<Status>, length: u64, flags: u32) {
    match all.last_mut() {
        _ if length == 0 => {}
        Some(last) if last.flags == flags => last.length += length,
        Some(_) | None => all.push(Status { length, flags }),
    }
}
