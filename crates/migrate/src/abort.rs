//! Abort: the source gets back what was written to the target since prepare, its clones and its name; the target goes. While clients
//! use the target, most of it is done before they have to wait: see [`ahead`].
//!
//! ```text
//!   checks                          nothing is changed by what is refused
//!   target, source: Aborting        the target cannot be written any more
//!   writes since prepare            back to the source, and made durable
//!   clones                          one after the other back to the source
//!   source: its name · plain again  its note still tells where the target is
//!   target: names · snapshots · data · header
//!   source: the note goes
//! ```

mod ahead;
mod carry;

use ferry_core::{Error, ErrorKind, Result, SnapId};
use ferry_image::encoding::{
    MigrationIntent, MigrationPhase, MigrationState, SnapshotNamespace, TrashSource, TrashState, format1_name,
};
use ferry_image::pool::Pool;
use ferry_image::progress::{Progress, silent};
use ferry_image::{remove, trash};

pub use self::ahead::{Carried, LiveAbort};
use self::carry::carry_back;
use crate::children;
use crate::ends::{End, Ends};
use crate::removal::remove_end;

/// What the record of a target says that had all data before it was given up.
const WAS_EXECUTED: &str = "was executed";

/// What an abort may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AbortOptions {
    /// Go on although something of the target is lost.
    pub accept_loss: bool,
}

/// What an abort cannot carry back to the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Sentences, one for each.
    pub what: Vec<String>,
}

/// What of the target an abort would lose: all but what was written inside the source's size.
///
/// # Errors
/// Those of the stores.
pub fn losses(ends: &Ends) -> Result<Losses> {
    let mut what = Vec::new();
    let (Some(target), Some(source)) = (&ends.target.header, &ends.source.header) else {
        return Ok(Losses::default());
    };
    let Some(record) = &target.migration else { return Ok(Losses::default()) };
    // The source's has not changed since.
    if target.size != source.size {
        what.push(format!("its size was changed from {} to {} bytes", source.size, target.size));
    }
    let from = |snap: SnapId| record.source_snap(snap).and_then(|s| source.snaps.get(&s));
    for snap in target.snaps.values().filter(|s| s.namespace == SnapshotNamespace::User) {
        match from(snap.id) {
            None => what.push(format!("snapshot {} was taken since", snap.name)),
            Some(old) if old.name != snap.name => {
                what.push(format!("snapshot {} was renamed to {}", old.name, snap.name));
            }
            Some(old) if old.protection != snap.protection => {
                what.push(format!("the protection of snapshot {} was changed", snap.name));
            }
            Some(_) => {}
        }
    }
    let kept: Vec<SnapId> = target.snaps.keys().filter_map(|s| record.source_snap(*s)).collect();
    for snap in source.snaps.values().filter(|s| !kept.contains(&s.id)) {
        what.push(format!("snapshot {} was removed", snap.name));
    }
    if target.metadata != source.metadata {
        what.push("its image-meta was changed".to_owned());
    }
    Ok(Losses { what })
}

/// Gives the source back what was written to the target, and its place; the target is removed.
///
/// # Errors
/// `Busy` (16) where others have the target open, where something cannot be carried back (fact `losses`) and that is not
/// accepted, or where a clone hangs on a snapshot that the source does not have; `Exists` (17) where the source's name is
/// taken. Nothing was changed then.
///
/// # Crash safety
/// See the module. Killed, the same call finishes.
pub async fn abort(ends: Ends, options: AbortOptions, progress: Progress<'_>) -> Result<()> {
    let restored = restore(ends, options, &mut |done, total| progress(done, total * 2)).await?;
    restored.remove_target(&mut |done, total| progress(total + done, total * 2)).await
}

/// The first half of [`abort`]: the source has everything, its name too, and can be used. The target is still there.
///
/// # Errors
/// As [`abort`].
///
/// # Crash safety
/// Killed, or left so, [`abort`] finishes.
pub async fn restore(mut ends: Ends, options: AbortOptions, progress: Progress<'_>) -> Result<Restored> {
    if ends.source.intent().is_some_and(|i| i.phase == MigrationPhase::Committing) {
        return Err(Error::invalid("the migration is being committed, which cannot be undone"));
    }
    if !is_over(&ends) && ends.state() != MigrationState::Preparing {
        check(&ends, options).await?;
        if ends.target.header.is_some() {
            begin(&mut ends).await?;
            carry_back(&ends, progress).await?;
            relink_back(&mut ends).await?;
        }
    }
    give_place_back(ends).await
}

/// Whether the source is a plain image again.
fn is_over(ends: &Ends) -> bool {
    ends.source.intent().is_some_and(|i| i.phase == MigrationPhase::Aborted)
}

/// Whether the source was given some of what was written to the target by an abort that was cut off: nothing tells what.
fn is_carried_ahead(ends: &Ends) -> bool {
    ends.source.header.as_ref().is_some_and(|h| h.is_carried_back())
}

/// Undoes a prepare that did not come to its end, or ends an abort that was cut off.
pub(crate) async fn undo(ends: Ends) -> Result<()> {
    abort(ends, AbortOptions::default(), &mut silent).await
}

/// Refuses what would lose something.
async fn check(ends: &Ends, options: AbortOptions) -> Result<()> {
    if ends.target.header.is_some() {
        let target = ends.target.open().await?;
        let watched = remove::check_watchers(&target).await;
        target.close().await?;
        if let Err(e) = watched {
            return Err(Error::busy("image has watchers - cannot abort migration").because(e));
        }
    }
    check_place(ends).await?;
    if ends.target.header.is_none() || ends.target.state() == Some(MigrationState::Aborting) {
        return Ok(());
    }
    check_losses(ends, options).await
}

/// Refuses where another image has the source's name.
async fn check_place(ends: &Ends) -> Result<()> {
    let (pool, name) = (&ends.source.pool, &ends.source.name);
    let is_own = |id: &str| id == ends.source.id || (id == ends.target.id && is_same_place(ends));
    if let Some(id) = pool.read_id(name).await?.filter(|id| !is_own(id)) {
        return Err(Error::exists("the source's name is taken by another image")
            .with("image", name)
            .with("id", id));
    }
    Ok(())
}

/// Refuses what cannot be carried back.
async fn check_losses(ends: &Ends, options: AbortOptions) -> Result<()> {
    check_clones(ends).await?;
    let lost = losses(ends)?;
    if !lost.what.is_empty() && !options.accept_loss {
        return Err(Error::busy("the target has what cannot be carried back to the source")
            .with("losses", lost.what.join("; ")));
    }
    Ok(())
}

/// Refuses clones of snapshots that the source does not have.
async fn check_clones(ends: &Ends) -> Result<()> {
    let Some(record) = ends.target.record() else { return Ok(()) };
    let header = ends.target.need_header()?;
    for (id, snap) in &header.snaps {
        if record.source_snap(*id).is_none() {
            let mut at = children::as_image(&ends.target)?;
            at.at = *id;
            if let Some(child) = ferry_image::clone::children(&at, *id).await?.first() {
                return Err(Error::busy("a clone hangs on a snapshot that the source does not have")
                    .with("clone", &child.name)
                    .with("snapshot", &snap.name));
            }
        }
    }
    Ok(())
}

/// Whether both ends have one name.
fn is_same_place(ends: &Ends) -> bool {
    let (source, target) = (&ends.source, &ends.target);
    ends.is_one_store()
        && source.pool.id() == target.pool.id()
        && source.pool.namespace == target.pool.namespace
        && source.name == target.name
}

/// Closes the target to writers. Its record still tells whether all data had been copied: only then is what is missing on it
/// missing.
async fn begin(ends: &mut Ends) -> Result<()> {
    if ends.target.state() != Some(MigrationState::Aborting) {
        let was_executed = ends.target.state() == Some(MigrationState::Executed);
        let description = if was_executed { WAS_EXECUTED } else { "" };
        ends.target.set_state(MigrationState::Aborting, description).await?;
    }
    if ends.source.state() != Some(MigrationState::Aborting) {
        ends.source.set_state(MigrationState::Aborting, "").await?;
    }
    Ok(())
}

/// Gives the source its clones back.
async fn relink_back(ends: &mut Ends) -> Result<()> {
    let Some(record) = ends.target.record().cloned() else { return Ok(()) };
    let Ends { source, target } = ends;
    if children::relink(target, source, |t| record.source_snap(t)).await? > 0 {
        ends.flush().await?;
    }
    ends.reload().await
}

/// Gives the source its name and makes it a plain image.
async fn give_place_back(mut ends: Ends) -> Result<Restored> {
    if ends.source.header.is_some() && !is_over(&ends) {
        if is_same_place(&ends) && ends.target.header.is_some() {
            crate::removal::unlink(&ends.target, TrashSource::Removing).await?;
        } else if is_same_place(&ends) {
            ends.target.pool.remove_id(&ends.target.name, &ends.target.id).await?;
        }
        restore_name(&ends.source.pool, &ends.source.name, &ends.source.id).await?;
        end_source(&mut ends.source, &ends.target).await?;
    }
    Ok(Restored { ends })
}

/// A migration whose source is a plain image again and still knows of its target.
#[derive(Debug)]
pub struct Restored {
    ends: Ends,
}

impl Restored {
    /// Removes the target. The source may be in use.
    ///
    /// # Errors
    /// Those of the stores.
    ///
    /// # Crash safety
    /// Killed, [`abort`] finishes.
    pub async fn remove_target(self, progress: Progress<'_>) -> Result<()> {
        let mut ends = self.ends;
        let mut target = ends.target.clone();
        remove_end(&mut target, TrashSource::Removing, progress).await?;
        if let Some(header) = &ends.source.header {
            if let Some((pool, snap)) = header.target_point()? {
                // For a target that another program has removed.
                target.pool.store.release_snap(pool, snap).await?;
            }
            ends.source
                .update(|h| {
                    h.clear_target_point();
                    h.intent = None;
                    Ok(())
                })
                .await?;
            ends.source.pool.store.flush().await?;
        }
        Ok(())
    }
}

/// Makes the source a plain image that still knows of its target.
async fn end_source(source: &mut End, target: &End) -> Result<()> {
    let uuid = source.intent().or(target.intent()).map_or([0; 16], |i| i.uuid);
    let peer = ferry_image::encoding::MigrationPeer {
        store: target.pool.store.identity(),
        place: target.pool.store.describe(),
        pool: target.pool.id(),
        namespace: target.pool.namespace.clone(),
        name: target.name.clone(),
        id: target.id.clone(),
    };
    let (phase, overlaps) = (MigrationPhase::Aborted, std::collections::BTreeMap::new());
    let intent =
        MigrationIntent { uuid, phase, peer, base: None, overlaps, origin: None, cursor: 0, newer: false };
    source
        .update(|h| {
            h.end_migration();
            h.intent = Some(intent.clone());
            Ok(())
        })
        .await?;
    source.pool.store.flush().await
}

/// Gives a source in the trash its name back; nothing where it has it.
///
/// # Errors
/// `Exists` (17) where the name is taken; those of the store.
pub(crate) async fn restore_name(pool: &Pool, name: &str, id: &str) -> Result<()> {
    if let Some(name) = format1_name(id) {
        return pool.list_format1(name).await;
    }
    let Some(entry) = trash::get(pool, id).await? else { return Ok(()) };
    if entry.state == TrashState::Moving {
        trash::set_state(pool, id, TrashState::Normal, &[TrashState::Moving]).await?;
    }
    match trash::restore(pool, id, Some(name), Some(entry.source)).await {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
