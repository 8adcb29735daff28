//! Migrations: prepare, execute, verify, commit, abort.

mod abort;
mod import;
mod moved;
mod receipt;

use std::sync::Arc;
use std::time::Duration;

use ferry_core::{Errno, Error, ErrorKind};
use ferry_image::create::CreateOptions;
use ferry_image::encoding::MigrationState;
use ferry_image::features::Features;
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::pool::Pool;
use ferry_image::progress::silent;
use ferry_migrate::{
    AbortOptions, Against, CommitOptions, Comparing, End, Ends, PrepareOptions, Prepared, Striping,
    Verification,
};

use self::receipt::Kept;
use super::layout::default_features;
use super::pace::{Beside, Throttle};
use super::switch::PAUSE_MAX;
use super::{Run, Serving, failed};
use crate::api::{Done, Failure, LayoutOptions, Manner, MigrationCommand, Progress, Response, Streams};
use crate::backend::{Names, Stoppable};
use crate::cancel::Cancel;
use crate::spec::ImageSpec;

impl Run<'_> {
    /// Executes one of them.
    pub(super) async fn migration_command(
        &self,
        command: MigrationCommand,
        streams: Streams,
    ) -> Done<Response> {
        match command {
            MigrationCommand::Import { source, target, layout, manner } => {
                Box::pin(self.migration_import(source, &target, &layout, manner, streams)).await?;
            }
            MigrationCommand::Prepare { source, target, layout, flatten, manner, pause_limit_ms } => {
                let limit = pause_limit(pause_limit_ms);
                self.migration_prepare(&source, &target, &layout, flatten, manner, limit).await?;
            }
            MigrationCommand::Execute { image, rate } => {
                if let Some(rate) = rate {
                    self.cancel.limits().set_rate(rate);
                }
                self.migration_execute(&image).await?;
            }
            MigrationCommand::Verify { image, reread } => {
                let against = if reread { Against::Source } else { Against::Kept };
                return self.migration_verify(&image, against).await;
            }
            MigrationCommand::Commit { image, force, unverified } => {
                self.migration_commit(&image, force, unverified).await?;
            }
            MigrationCommand::Abort { image, accept_loss, pause_limit_ms } => {
                let limit = pause_limit(pause_limit_ms);
                Box::pin(self.migration_abort(&image, AbortOptions { accept_loss }, limit)).await?;
            }
        }
        Ok(Response::Done)
    }

    async fn migration_prepare(
        &self,
        source: &ImageSpec,
        target: &ImageSpec,
        layout: &LayoutOptions,
        flatten: bool,
        manner: Manner,
        limit: Duration,
    ) -> Done<()> {
        let rbd = "rbd: preparing migration failed";
        let what = format!("cannot prepare the migration of {source} to {target}");
        let from = self.pool(&source.pool_spec()).await?;
        let to = self.pool(&target.pool_spec()).await?;
        let data_pool = match &layout.data_pool {
            Some(name) => self.data_pool(&to, name, rbd).await?,
            None => None,
        };
        let options = PrepareOptions {
            layout: CreateOptions {
                order: layout.order,
                features: layout.features.map(Features),
                stripe_unit: layout.stripe_unit,
                stripe_count: layout.stripe_count,
                data_pool,
                ..CreateOptions::default()
            },
            striping: match manner {
                Manner::Ferry => Striping::Fitting,
                Manner::Rbd => Striping::Inherited,
            },
            shared: layout.shared,
            features_of_format1: match manner {
                // Without layering, which cannot be switched on later, it could never be cloned.
                Manner::Ferry => default_features(&self.settings_in(&to).await?, rbd)?,
                Manner::Rbd => Features::NONE,
            },
            flatten,
        };
        let prepare = async |is_over: &Cancel| {
            let (a, b) = (until(&from, is_over), until(&to, is_over));
            match ferry_migrate::prepare(&a, &source.image, &b, &target.image, &options).await {
                Err(e) if is_over.is_asked() || self.cancel.is_asked() => {
                    // Its clients go on with the source.
                    give_way(&self.lasting(&from), &source.image).await?;
                    if self.cancel.is_asked() {
                        return Err(e);
                    }
                    Err(Error::new(ErrorKind::TimedOut, "clients would wait longer than they may").because(e))
                }
                prepared => prepared,
            }
        };
        match self
            .switching(source, target, limit, async || Ok(()), async |(), over: &Cancel| prepare(over).await)
            .await
        {
            Ok(switched) => {
                let waited = switched.waited().to_vec();
                match switched.all()? {
                    Prepared::Done(ends) => {
                        let kept = Kept::of(self.home, &ends).prepared(&waited);
                        self.told(kept, "prepared, but its receipt will not say how long clients waited");
                        Ok(())
                    }
                    Prepared::Already(_) if manner == Manner::Ferry => {
                        self.events.advise(&format!(
                            "{source} is prepared already; `ferry status {target}` shows how far it is"
                        ));
                        Ok(())
                    }
                    Prepared::Already(_) => {
                        Err(failed(what, rbd)(Error::not_found("image is being migrated already")))
                    }
                }
            }
            Err(e) => Err(prepare_failed(&e, what, source, target)),
        }
    }

    /// Tells what went wrong with the draft of a receipt, on which nothing depends.
    fn told(&self, kept: ferry_core::Result<()>, what: &str) {
        if let Err(e) = kept {
            self.events.advise(&format!("{what}: {}", e.chain()));
        }
    }

    async fn migration_execute(&self, image: &ImageSpec) -> Done<()> {
        let what = format!("cannot execute the migration of {image}");
        self.execute_as(image, "Image migration", &what, "rbd: migration failed").await
    }

    /// Executes a migration, told of under `title`.
    async fn execute_as(&self, image: &ImageSpec, title: &'static str, what: &str, rbd: &str) -> Done<()> {
        let mut moved = self.moved(image, what, rbd).await?;
        let cannot = |e: Error| state_failed(&e, what, rbd, "prepared");
        if !matches!(moved.state(), MigrationState::Prepared | MigrationState::Executing) {
            return Err(wrong_state(moved.state(), what, rbd, "prepared"));
        }
        let threads = self.host.runtime().map_err(cannot)?;
        let pace = Throttle::new(self.env, threads, self.cancel, self.host);
        let image_of = self.open_target(moved.target()).await.map_err(cannot)?;
        // Whoever offers the target, or will while this runs, uses the same device.
        let open = self.host.shared().map_err(cannot)?.open(image_of).await.map_err(cannot)?;
        if let Some(faults) = self.host.stores.faults().map_err(cannot)? {
            faults.copying();
        }
        let step = Progress::start(self.events, title);
        let executed = moved.execute(open.device(), &pace, &mut |d, t| step.at(d, t)).await;
        let closed = open.close().await;
        let copied = executed.map_err(|e| {
            cannot(e)
                .advise("the target stays usable and reads through to the source; nothing is lost")
                .advise(format!(
                    "`ferry migration execute {image}` goes on, `ferry migration abort {image}` goes back"
                ))
        })?;
        closed.map_err(failed(format!("cannot close image {image}"), "rbd: close error"))?;
        step.done();
        tracing::info!(
            %image,
            objects = copied.objects,
            copied_bytes = copied.moved.copied,
            shared_bytes = copied.moved.shared,
            "migration executed"
        );
        Ok(())
    }

    /// The target, on a store that answers for longer than this command takes.
    async fn open_target(&self, target: &End) -> ferry_core::Result<Image> {
        Image::open_by_id(&self.lasting(&target.pool), &target.id, Opening::ReadWrite).await
    }

    /// A pool on a store that answers also when this command is asked to end.
    pub(super) fn lasting(&self, pool: &Pool) -> Pool {
        let lasting = self.store_with(pool.store.identity(), Serving::Always);
        Pool { store: lasting.unwrap_or_else(|| Arc::clone(&pool.store)), ..pool.clone() }
    }

    async fn migration_verify(&self, image: &ImageSpec, against: Against) -> Done<Response> {
        let rbd = "rbd: verifying migration failed";
        let what = format!("cannot verify the migration of {image}");
        let moved = self.moved(image, &what, rbd).await?;
        if moved.state() != MigrationState::Executed {
            return Err(wrong_state(moved.state(), &what, rbd, "executed"));
        }
        let step = Progress::start(self.events, "Verify image migration");
        let threads = Beside(self.host.runtime().map_err(failed(&what, rbd))?.clone());
        let how = Comparing { against, threads: Some(&threads) };
        let verification = moved.verify(how, &mut |d, t| step.at(d, t)).await;
        let verification = verification.map_err(failed(&what, rbd))?;
        step.done();
        if !verification.is_equal() {
            self.events.note(&table(&verification));
            return Err(Failure::plain(Errno::EUCLEAN, format!("source and target of {image} differ"))
                .advise("nothing was changed, and the source has all its data")
                .advise(format!("`ferry migration abort {image}` goes back to the source")));
        }
        Ok(Response::Value(table(&verification)))
    }

    async fn migration_commit(&self, image: &ImageSpec, force: bool, unverified: bool) -> Done<()> {
        let rbd = "rbd: committing migration failed";
        let what = format!("cannot commit the migration of {image}");
        let threads = Beside(self.host.runtime().map_err(failed(&what, rbd))?.clone());
        let comparing = Comparing { threads: Some(&threads), ..Comparing::default() };
        let moved = self.moved(image, &what, rbd).await?;
        let kept = moved.receipt(self.home);
        let options = CommitOptions { force, unverified, comparing, receipts: Some(&kept) };
        let clones =
            if options.force { moved.clones().await.map_err(failed(&what, rbd))? } else { Vec::new() };
        if !clones.is_empty() {
            for line in descendants(&clones)
                .into_iter()
                .chain(["Proceeding anyway due to force flag set.".to_owned()])
            {
                self.events.note(&line);
            }
        }
        let target = spec_of(moved.target());
        let step = Progress::start(self.events, "Commit image migration");
        let spec = moved.spec().to_owned();
        let committed = moved.commit(options, &mut |d, t| step.at(d, t)).await;
        committed.map_err(|e| commit_failed(&e, &what, rbd, image))?;
        step.done();
        self.reopen_readers(&target).await;
        self.events.advise(&format!("receipt: {}", kept.path().display()));
        self.forget_secrets_of(&spec)
    }
}

/// Whether something cannot be done because the image is an end of a migration.
pub(super) fn is_migrating(error: &Error) -> bool {
    error.clause() == "image is migrating"
}

/// Says how the migration that is in the way comes to its end.
pub(super) fn until_over(failure: Failure, image: &ImageSpec) -> Failure {
    failure.advise(format!("`ferry status {image}` shows how far its migration is")).advise(format!(
        "`ferry migration execute {image}` and `ferry migration commit {image}` end it, `ferry migration abort {image}` goes back"
    ))
}

/// How long clients may wait.
fn pause_limit(ms: Option<u64>) -> Duration {
    ms.map_or(PAUSE_MAX, Duration::from_millis)
}

/// A pool that answers until `is_over` is asked for.
fn until(pool: &Pool, is_over: &Cancel) -> Pool {
    let store = Stoppable::over(Arc::clone(&pool.store), is_over.clone(), Names::new());
    Pool { store, ..pool.clone() }
}

/// Undoes what was done of a prepare that took too long.
async fn give_way(pool: &Pool, name: &str) -> ferry_core::Result<()> {
    match Ends::find(pool, name).await {
        Ok(ends) => ferry_migrate::abort(ends, AbortOptions::default(), &mut silent).await,
        // It had not begun.
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Invalid) => Ok(()),
        Err(e) => Err(e),
    }
}

/// What one end of a migration is called.
pub(super) fn spec_of(end: &End) -> ImageSpec {
    ImageSpec {
        pool: end.pool.info.name.clone(),
        namespace: end.pool.namespace.as_str().to_owned(),
        image: end.name.clone(),
    }
}

/// Not in the state that the command needs.
fn wrong_state(state: MigrationState, what: &str, rbd: &str, needed: &str) -> Failure {
    if state == MigrationState::Aborting {
        let error = Error::new(ErrorKind::ReadOnly, "migration is being aborted");
        return Failure::of(&error, what, rbd).after("librbd: migration is being aborted");
    }
    let error = Error::invalid(format!("current migration state is '{state}' (should be '{needed}')"));
    Failure::of(&error, what, rbd).after(format!("librbd: {}", error.clause()))
}

fn state_failed(error: &Error, what: &str, rbd: &str, needed: &str) -> Failure {
    match error.fact("state") {
        Some(state) => {
            let line = format!("librbd: current migration state is '{state}' (should be '{needed}')");
            Failure::of(error, what, rbd).after(line)
        }
        None => Failure::of(error, what, rbd),
    }
}

fn prepare_failed(error: &Error, what: String, source: &ImageSpec, target: &ImageSpec) -> Failure {
    let failure = Failure::of(error, what, "rbd: preparing migration failed")
        .after(format!("librbd: {}", error.clause()));
    let untouched = failure.advise(format!("{source} is as it was"));
    if is_migrating(error) {
        return until_over(untouched, source);
    }
    match error.kind() {
        ErrorKind::Busy if error.fact("cookie").is_some() => untouched
            .advise(format!("`ferry lock ls {source}` shows the lock, `ferry lock rm` takes it away")),
        ErrorKind::Busy => untouched.advise(format!("`ferry status {source}` tells who uses it")),
        ErrorKind::TimedOut => untouched.advise("`--pause-limit` sets how long clients may wait"),
        ErrorKind::Exists => untouched.advise(format!("{target} is another image: name another target")),
        _ => untouched,
    }
}

/// What `rbd` says of clones.
fn descendants(clones: &[String]) -> Vec<String> {
    let first = if clones.len() == 1 {
        "rbd: the image has a descendant: "
    } else {
        "rbd: the image has descendants: "
    };
    let mut lines = vec![first.to_owned()];
    lines.extend(clones.iter().map(|c| format!("  {c}")));
    lines.push("Warning: in-use, read-only descendant images will not detect the parent update.".to_owned());
    lines
}

fn commit_failed(error: &Error, what: &str, rbd: &str, image: &ImageSpec) -> Failure {
    if let Some(clones) = error.fact("clones") {
        let clones: Vec<String> = clones.split(',').map(str::to_owned).collect();
        let mut lines = descendants(&clones);
        lines.push(
            "Ensure no descendant images are opened read-only and run again with force flag.".to_owned(),
        );
        return Failure::of(error, what, rbd).lines(lines).advise("nothing was changed").advise(format!(
            "`ferry migration commit --force {image}` goes on; clones open only to be read do not notice"
        ));
    }
    let failure = state_failed(error, what, rbd, "executed");
    if error.fact("first_difference").is_some() {
        return failure.advise("nothing was removed: the source has all its data").advise(format!(
            "`ferry migration verify {image}` shows where, `ferry migration abort {image}` goes back"
        ));
    }
    failure
}

/// A comparison, a line for each point.
fn table(verification: &Verification) -> String {
    let lines: Vec<String> = verification
        .points
        .iter()
        .map(|point| {
            let name = point.snap.as_deref().unwrap_or("(prepare)");
            let verdict = match point.first_difference {
                None => "equal".to_owned(),
                Some(at) => format!("differs from byte {at}"),
            };
            let how = match point.digest_bytes {
                0 => "both ends read".to_owned(),
                all if all == point.data_bytes => "by digests kept while copying".to_owned(),
                some => format!("{some} by digests kept while copying, the rest of both ends read"),
            };
            let left_out = match point.overwritten {
                0 => String::new(),
                bytes => format!(", {bytes} bytes not compared: another program wrote there since"),
            };
            format!(
                "{name}  {} bytes, {} of data  {:032x}  {verdict}  ({how}){left_out}",
                point.size, point.data_bytes, point.source_digest.0
            )
        })
        .collect();
    lines.join("\n")
}
