//! Commit: the target becomes a plain image and the source goes.
//!
//! ```text
//!   checks, verification          nothing is changed by what is refused
//!   the receipt is drawn up       with what was verified
//!   clones still at the source    to the target
//!   source: note committing       durable before the next: from here only forward
//!   target: plain                 its note still tells where the source is
//!   source: snapshots · data · header · trash entry
//!   the receipt is given out
//!   target: the note goes
//! ```

use ferry_core::{Error, ErrorKind, Result, SnapId, Timestamp};
use ferry_image::clone::Child;
use ferry_image::encoding::{MigrationPhase, MigrationState, TrashSource};
use ferry_image::image::Image;
use ferry_image::progress::Progress;

use crate::children;
use crate::digests;
use crate::ends::{End, Ends};
use crate::removal::{Swept, remove_end, sweep};
use crate::verify::{Comparing, Verification, verify};

/// How to commit.
#[derive(Clone, Copy, Debug, Default)]
pub struct CommitOptions<'a> {
    /// Go on although clones hang on the image; those that only read it do not notice that their parent moved.
    pub force: bool,
    /// Go on without comparing source and target.
    pub unverified: bool,
    /// How to compare them.
    pub comparing: Comparing<'a>,
    /// Who keeps the receipt, if anybody does.
    pub receipts: Option<&'a dyn Receipts>,
}

/// Keeps receipts through the death of whoever commits.
///
/// A commit that goes on after a death verifies nothing any more, so what was found out is kept before the point of no return; and a
/// commit that came to its end is not found again, so the receipt is given out before that.
pub trait Receipts: Send + Sync + std::fmt::Debug {
    /// All is verified, and nothing is changed yet. Another may have been drawn up before, by a commit that came no further.
    ///
    /// # Errors
    /// Any: the commit is refused then.
    fn draw_up(&self, receipt: &Receipt) -> Result<()>;

    /// All is committed but for the note that says so. What was drawn up counts; `receipt` does where nothing was. May be called
    /// again.
    ///
    /// # Errors
    /// Any: the note stays then, and the same commit goes on.
    fn give_out(&self, receipt: &Receipt) -> Result<()>;
}

impl CommitOptions<'_> {
    /// See [`Receipts::draw_up`].
    pub(crate) fn draw_up(&self, receipt: &Receipt) -> Result<()> {
        self.receipts.map_or(Ok(()), |receipts| receipts.draw_up(receipt))
    }

    /// See [`Receipts::give_out`].
    pub(crate) fn give_out(&self, receipt: &Receipt) -> Result<()> {
        self.receipts.map_or(Ok(()), |receipts| receipts.give_out(receipt))
    }
}

/// What was committed.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// The migration; zeros where no other than `rbd` prepared it.
    pub uuid: [u8; 16],
    /// When.
    pub at: Timestamp,
    /// What was moved: pool, namespace, name, id; all empty where it was no image.
    pub source: [String; 4],
    /// The source spec of an import; else empty.
    pub source_spec: String,
    /// Where it is now.
    pub target: [String; 4],
    /// Size of the image. Bytes.
    pub size: u64,
    /// What comparing the two ends gave; `None` where that was not asked for, or done before a crash.
    pub verification: Option<Verification>,
}

/// Keeps the target and removes the source.
///
/// # Errors
/// `Invalid` (22) before everything is executed; `Busy` (16) where clones hang on the image and `force` is not given (facts
/// `clones`); `Corrupt` (117) where source and target differ (fact `first_difference`); those of the stores and of [`Receipts`].
///
/// # Crash safety
/// See the module. Killed, the same call finishes.
pub async fn commit(mut ends: Ends, options: CommitOptions<'_>, progress: Progress<'_>) -> Result<Receipt> {
    let committed = |end: &End, phase| end.intent().is_some_and(|i| i.phase == phase);
    let is_over = committed(&ends.source, MigrationPhase::Committing)
        || committed(&ends.target, MigrationPhase::Committed);
    let verification = if is_over { None } else { check(&ends, options).await? };
    let receipt = receipt(&ends, verification);
    if !is_over {
        options.draw_up(&receipt)?;
    }
    if !committed(&ends.target, MigrationPhase::Committed) {
        relink(&mut ends).await?;
        pass_over(&mut ends).await?;
    }
    remove_end(&mut ends.source, TrashSource::Migration, progress).await?;
    options.give_out(&receipt)?;
    ends.target.reload().await?;
    if ends.target.header.is_some() {
        ends.target
            .update(|h| {
                h.intent = None;
                Ok(())
            })
            .await?;
        ends.target.pool.store.flush().await?;
    }
    Ok(receipt)
}

/// The clones that hang on either end, as `pool/namespace/image`.
///
/// # Errors
/// Those of the stores.
pub async fn clones(ends: &Ends) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for end in [&ends.target, &ends.source] {
        if end.header.is_some() {
            all.extend(children::of(end).await?.iter().map(full_name));
        }
    }
    Ok(all)
}

/// Refuses what must not be committed.
async fn check(ends: &Ends, options: CommitOptions<'_>) -> Result<Option<Verification>> {
    let state = ends.state();
    if state == MigrationState::Aborting {
        return Err(Error::new(ErrorKind::ReadOnly, "migration is being aborted"));
    }
    if state != MigrationState::Executed {
        return Err(Error::invalid("current migration state is another").with("state", state));
    }
    if !options.force {
        let clones = clones(ends).await?;
        if !clones.is_empty() {
            return Err(Error::busy("the image has descendants").with("clones", clones.join(",")));
        }
    }
    if options.unverified {
        return Ok(None);
    }
    let verification = verify(ends, options.comparing, &mut ferry_image::progress::silent).await?;
    if let Some(point) = verification.points.iter().find(|p| p.first_difference.is_some()) {
        let snap = point.snap.as_deref().unwrap_or("HEAD");
        return Err(Error::corrupt("source and target differ: nothing was committed")
            .errno_is(ferry_core::Errno::EUCLEAN)
            .with("snapshot", snap)
            .with("first_difference", point.first_difference.unwrap_or_default()));
    }
    Ok(Some(verification))
}

/// `pool/namespace/image`, the namespace only where there is one.
pub(crate) fn full_name(child: &Child) -> String {
    let namespace = child.namespace.as_str();
    let middle = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
    format!("{}/{middle}{}", child.pool_name, child.name)
}

/// Pool, namespace, name and id of an end.
pub(crate) fn place_of(end: &End) -> [String; 4] {
    let (pool, namespace) = (end.pool.info.name.clone(), end.pool.namespace.as_str().to_owned());
    [pool, namespace, end.name.clone(), end.id.clone()]
}

fn receipt(ends: &Ends, verification: Option<Verification>) -> Receipt {
    let intent = ends.target.intent().or(ends.source.intent());
    Receipt {
        uuid: intent.map_or([0; 16], |i| i.uuid),
        at: ends.target.pool.env.clock.now(),
        source: place_of(&ends.source),
        source_spec: String::new(),
        target: place_of(&ends.target),
        size: ends.target.header.as_ref().map_or(0, |h| h.size),
        verification,
    }
}

/// Links to the target what still hangs on the source.
async fn relink(ends: &mut Ends) -> Result<()> {
    let (Some(record), true) = (ends.target.record().cloned(), ends.source.header.is_some()) else {
        return Ok(());
    };
    let Ends { source, target } = ends;
    children::relink(source, target, |s| record.snap_seqs.get(&s.0).map(|t| SnapId(*t))).await?;
    ends.flush().await?;
    ends.reload().await
}

/// Makes the target a plain image: the point of no return.
async fn pass_over(ends: &mut Ends) -> Result<()> {
    if ends.source.header.is_some() {
        ends.source
            .update(|h| {
                if let Some(intent) = &mut h.intent {
                    intent.phase = MigrationPhase::Committing;
                }
                Ok(())
            })
            .await?;
        ends.source.pool.store.flush().await?;
    }
    make_plain(&mut ends.target).await
}

/// Makes a target a plain image, in one op; its note is kept until all else is cleared up.
pub(crate) async fn make_plain(end: &mut End) -> Result<()> {
    let mut target = end.open().await?;
    // Clients may wait for the lock: it is given back whatever comes of this.
    let changed = become_plain(&mut target).await;
    target.close().await?;
    changed?;
    end.pool.store.flush().await?;
    end.reload().await
}

/// As [`make_plain`], of an image that is open.
async fn become_plain(target: &mut Image) -> Result<()> {
    target.acquire().await?;
    sweep(target, Swept::All).await?;
    // From here on nothing is compared any more.
    digests::remove(target).await?;
    if let Some(base) = target.header.base() {
        // First, or a crash would leave what it preserves for ever.
        target.pool.store.release_snap(target.data_pool(), base.snap).await?;
    }
    target
        .update_header(|h| {
            h.end_migration();
            if let Some(intent) = &mut h.intent {
                intent.phase = MigrationPhase::Committed;
                intent.base = None;
                intent.overlaps.clear();
            }
            Ok(())
        })
        .await
}
