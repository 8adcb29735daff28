//! Commit: the target becomes a plain image. Abort: it goes.
//!
//! ```text
//!   commit   checks, verification
//!            the receipt is drawn up
//!            target: note committing    from here only forward
//!            target: plain              its note still tells from where it was imported
//!            source: pin gone
//!            the receipt is given out
//!            target: the note goes
//!   abort    checks
//!            target: Aborting           it reads nothing of the source any more
//!            source: pin gone
//!            target: names · snapshots · data · header
//! ```

use ferry_core::{Errno, Error, ErrorKind, ReadOp, Result, SnapId};
use ferry_image::diff::Diff;
use ferry_image::encoding::{MigrationPhase, MigrationState, SnapshotNamespace, TrashSource};
use ferry_image::layout::ObjectNo;
use ferry_image::pool::Pool;
use ferry_image::progress::Progress;
use ferry_image::{remove, snapshot};

use super::{Import, clear_remains, header_of, verify_import};
use crate::abort::{AbortOptions, Losses};
use crate::children;
use crate::commit::{CommitOptions, Receipt, full_name, make_plain, place_of};
use crate::ends::{Ends, Finding};
use crate::execute::allocated;
use crate::removal::remove_end;
use crate::verify::Verification;

/// Keeps the target; the source is left alone.
///
/// # Errors
/// As [`crate::commit()`].
///
/// # Crash safety
/// See the module. Killed, the same call finishes.
pub async fn commit_import(
    mut import: Import,
    options: CommitOptions<'_>,
    progress: Progress<'_>,
) -> Result<Receipt> {
    let is_over = import.is_committed();
    let verification = if is_over { None } else { check_commit(&import, options, progress).await? };
    let receipt = Receipt {
        uuid: import.target.intent().map_or([0; 16], |i| i.uuid),
        at: import.target.pool.env.clock.now(),
        source: <[String; 4]>::default(),
        source_spec: import.spec().to_owned(),
        target: place_of(&import.target),
        size: import.target.need_header()?.size,
        verification,
    };
    if !is_over {
        options.draw_up(&receipt)?;
    }
    if import.target.record().is_some() {
        set_committing(&mut import).await?;
        make_plain(&mut import.target).await?;
    }
    import.unpin().await?;
    options.give_out(&receipt)?;
    if import.target.intent().is_some() {
        import
            .target
            .update(|h| {
                h.intent = None;
                Ok(())
            })
            .await?;
        import.target.pool.store.flush().await?;
    }
    progress(1, 1);
    Ok(receipt)
}

/// From here on the target may lack its point of prepare, and is not compared any more.
async fn set_committing(import: &mut Import) -> Result<()> {
    import
        .target
        .update(|h| {
            if let Some(intent) = &mut h.intent {
                intent.phase = MigrationPhase::Committing;
            }
            Ok(())
        })
        .await?;
    import.target.pool.store.flush().await
}

/// Refuses what must not be committed.
async fn check_commit(
    import: &Import,
    options: CommitOptions<'_>,
    progress: Progress<'_>,
) -> Result<Option<Verification>> {
    match import.state() {
        MigrationState::Executed => {}
        MigrationState::Aborting => {
            return Err(Error::new(ErrorKind::ReadOnly, "migration is being aborted"));
        }
        state => return Err(Error::invalid("current migration state is another").with("state", state)),
    }
    if !options.force {
        let clones = import_clones(import).await?;
        if !clones.is_empty() {
            return Err(Error::busy("the image has descendants").with("clones", clones.join(",")));
        }
    }
    if options.unverified {
        return Ok(None);
    }
    let verification =
        verify_import(import, options.comparing, &mut |done, total| progress(done, total + 1)).await?;
    if let Some(point) = verification.points.iter().find(|p| p.first_difference.is_some()) {
        let snap = point.snap.as_deref().unwrap_or("HEAD");
        return Err(Error::corrupt("source and target differ: nothing was committed")
            .errno_is(Errno::EUCLEAN)
            .with("snapshot", snap)
            .with("first_difference", point.first_difference.unwrap_or_default()));
    }
    Ok(Some(verification))
}

/// The clones of the target, as `pool/namespace/image`.
///
/// # Errors
/// Those of the store.
pub async fn import_clones(import: &Import) -> Result<Vec<String>> {
    Ok(children::of(&import.target).await?.iter().map(full_name).collect())
}

/// What an abort would lose: all that was done to the target since prepare. Where the source cannot be read it is whatever was
/// written.
///
/// # Errors
/// Those of the store.
pub async fn import_losses(import: &Import) -> Result<Losses> {
    let header = header_of(&import.target)?;
    let mut what = Vec::new();
    let Some(base) = header.base() else {
        what.push("whatever was written to it: the import was prepared by another program".to_owned());
        return Ok(Losses { what });
    };
    if header.size != base.size {
        what.push(format!("its size was changed from {} to {} bytes", base.size, header.size));
    }
    let record = header.migration.as_ref();
    if let Some(cut) = record.map(|r| r.overlap).filter(|o| *o < base.size && header.size >= base.size) {
        what.push(format!("it was cut off at {cut} bytes and grown again"));
    }
    for snap in header.snaps.values().filter(|s| s.namespace == SnapshotNamespace::User) {
        if record.is_none_or(|r| r.source_snap(snap.id).is_none()) {
            what.push(format!("snapshot {} was taken since", snap.name));
        }
    }
    if !header.metadata.is_empty() {
        what.push("it has image-meta".to_owned());
    }
    match is_written(import).await {
        Ok(false) => {}
        Ok(true) => what.push("it was written to since prepare".to_owned()),
        // A source that changed or is gone is a reason to abort, not one against it; but nobody knows what is lost.
        Err(e) => what.push(format!(
            "whatever was written to it: it cannot be compared with its source ({})",
            e.chain()
        )),
    }
    Ok(Losses { what })
}

/// Whether anything was written to the target since prepare.
async fn is_written(import: &Import) -> Result<bool> {
    let image = children::as_image(&import.target)?;
    let diff = Diff::since_prepare(&image).await?;
    // While the source shows through, what is not there was not written: what is discarded leaves an object. Later a discard
    // removes objects, and whatever there could be is looked at.
    let redirects = image.header.redirects();
    let known = if redirects { allocated(&import.target, &image.header).await? } else { None };
    let objects = known.unwrap_or_else(|| (0..diff.to().object_count()).map(ObjectNo).collect());
    for object in objects {
        let may_differ = !redirects
            || diff.to().look(object, ReadOp::stat()).await?.is_some()
            || diff.to().has_early(object).await?;
        if may_differ && !diff.object_changes(object).await?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes the target called `name` away. The source was never changed.
///
/// # Errors
/// `NotFound` (2); `Invalid` (22) where it is not being imported, or was committed; `Busy` (16) where others have it open,
/// where clones or imports of it are there, and where something would be lost (fact `losses`) that is not accepted. Nothing
/// was changed then.
///
/// # Crash safety
/// See the module. Killed, the same call finishes.
pub async fn abort_import(
    pool: &Pool,
    name: &str,
    options: AbortOptions,
    progress: Progress<'_>,
) -> Result<()> {
    let mut import = match Ends::look_up(pool, name).await {
        Ok(Finding::Importing(import)) => *import,
        Ok(Finding::Migrating(_) | Finding::Plain) => {
            return Err(Error::invalid("image is not being imported").with("image", name));
        }
        Err(e) if e.kind() == ErrorKind::NotFound && clear_remains(pool, name).await? => return Ok(()),
        Err(e) => return Err(e),
    };
    if import.is_committed() {
        return Err(Error::invalid("the import is committed, which cannot be undone"));
    }
    if !matches!(import.state(), MigrationState::Preparing | MigrationState::Aborting) {
        check_abort(&mut import, options).await?;
    }
    import.set_aborting().await?;
    import.unpin().await?;
    remove_end(&mut import.target, TrashSource::Removing, progress).await
}

/// Refuses what would lose something.
async fn check_abort(import: &mut Import, options: AbortOptions) -> Result<()> {
    let mut target = import.target.open().await?;
    let watched = remove::check_watchers(&target).await;
    let unpinned = snapshot::drop_stale_pins(&mut target).await;
    target.close().await?;
    if let Err(e) = watched {
        return Err(Error::busy("image has watchers - cannot abort migration").because(e));
    }
    unpinned?;
    import.target.reload().await?;
    let header = header_of(&import.target)?;
    if let Some((_, pin)) = header.pins()?.first() {
        return Err(Error::busy("image is being imported itself").with("pinned_by", &pin.target.name));
    }
    if let Some(child) =
        ferry_image::clone::children(&children::as_image(&import.target)?, SnapId::HEAD).await?.first()
    {
        return Err(Error::busy("a clone hangs on a snapshot of the image: flatten or remove it first")
            .with("clone", &child.name));
    }
    if options.accept_loss {
        return Ok(());
    }
    let lost = import_losses(import).await?;
    if lost.what.is_empty() {
        return Ok(());
    }
    Err(Error::busy("the target has what would be lost").with("losses", lost.what.join("; ")))
}
