//! Long operations of a node: they outlive the command that started them, and some of them the node.
//!
//! ```text
//!            start                 end
//!   (none) ────────► running ──────────────► done | failed | cancelled
//!              ▲        │ node stops or dies
//!              └────────┘ node starts again
//! ```
//!
//! Invariants
//! - A job is in its file before it runs, and the file is gone before its end is told: one that is in a file has not ended.
//! - Before a job changes anything its file says what it is about, where doing it again would fail: so the next node sees whether it
//!   was done.
//! - Of commands that are the same there is one job: asking again attaches to it.

mod pace;
mod record;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Instant;

use ferry_core::{Errno, Error, Result};

use crate::api::{
    Command, CopyProgress, Done, Event, Events, Failure, Hears, JobLine, JobState, MigrationCommand, Outcome,
    Request, Response, Streams,
};
use crate::cancel::{Cancel, interrupted};
use crate::config::Home;
use crate::execute;
use crate::host::Host;
use pace::Pace;
use record::Record;

/// Ended jobs that are still listed.
const ENDED_MAX: usize = 256;

/// The jobs of a node.
#[derive(Debug)]
pub(crate) struct Jobs {
    host: Weak<Host>,
    dir: PathBuf,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    jobs: BTreeMap<u64, Arc<Job>>,
    is_stopping: bool,
}

/// One of them.
#[derive(Debug)]
struct Job {
    record: Record,
    cancel: Cancel,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    step: Option<(String, u64, u64)>,
    pace: Pace,
    end: Option<Done<Response>>,
    listeners: Vec<Sender<Heard>>,
}

/// A listener: what it hears, and a way to tell it something itself.
#[derive(Debug)]
struct Attached {
    heard: Receiver<Heard>,
    own: Sender<Heard>,
}

/// What whoever is attached to a job hears.
#[derive(Debug)]
enum Heard {
    Event(Event),
    End(Done<Response>),
    /// The listener itself has gone.
    Gone,
}

impl Command {
    /// Whether it is a job of the node that executes it: it goes on when its asker goes, and when the node is started again.
    pub(crate) fn is_job(&self) -> bool {
        self.job_words().is_some()
    }
}

impl Jobs {
    /// The jobs that a node keeps in `dir`.
    pub(crate) fn new(host: &Arc<Host>, dir: PathBuf) -> Arc<Self> {
        Arc::new(Self { host: Arc::downgrade(host), dir, table: Mutex::default() })
    }

    /// Goes on with what the node before this one did not end.
    ///
    /// # Errors
    /// Those of the operating system; `Corrupt` for a file that is not a job's.
    pub(crate) fn resume(self: &Arc<Self>) -> Result<usize> {
        let records = record::load(&self.dir)?;
        let count = records.len();
        for record in records {
            let mut table = self.table();
            table.last = table.last.max(record.id);
            tracing::info!(job = record.id, command = record.words(), "job resumed");
            self.start(&mut table, record);
        }
        Ok(count)
    }

    /// Executes a command as a job, or joins the one that executes it already, and tells what happens until it ends or `cancel` is
    /// asked for: then the job goes on without a listener.
    pub(crate) fn execute(
        self: &Arc<Self>,
        home: &Home,
        request: &Request,
        events: &dyn Events,
        cancel: &Cancel,
    ) -> Done<Response> {
        let (job, attached) = self.start_or_join(home, request)?;
        job.listen(attached, events, cancel)
    }

    fn start_or_join(self: &Arc<Self>, home: &Home, request: &Request) -> Done<(Arc<Job>, Attached)> {
        let mut table = self.table();
        let same = |job: &&Arc<Job>| job.is_running() && job.record.is_same(home, request);
        if let Some(job) = table.jobs.values().find(same) {
            return Ok((Arc::clone(job), job.attach()));
        }
        if table.is_stopping {
            return Err(Failure::of(&interrupted(), "the node stops", "rbd: interrupted"));
        }
        let record = Record::new(table.last + 1, home, request, self.now());
        record.write(&self.dir).map_err(|e| {
            Failure::of(&e, "cannot begin the job", "rbd: job error").advise("nothing was done")
        })?;
        table.last = record.id;
        tracing::info!(job = record.id, command = record.words(), "job started");
        let job = self.start(&mut table, record);
        let attached = job.attach();
        Ok((job, attached))
    }

    /// Lets a job run on a thread of its own.
    fn start(self: &Arc<Self>, table: &mut Table, record: Record) -> Arc<Job> {
        let job = Arc::new(Job { record, cancel: Cancel::new(), state: Mutex::default() });
        table.jobs.insert(job.record.id, Arc::clone(&job));
        let running = table.jobs.values().filter(|j| j.is_running()).count();
        let ended: Vec<u64> = table.jobs.values().filter(|j| !j.is_running()).map(|j| j.record.id).collect();
        for id in ended.iter().take((table.jobs.len() - running).saturating_sub(ENDED_MAX)) {
            table.jobs.remove(id);
        }
        let (jobs, mine) = (Arc::clone(self), Arc::clone(&job));
        let spawned =
            thread::Builder::new().name(format!("job-{}", job.record.id)).spawn(move || jobs.run(&mine));
        if let Err(e) = spawned {
            let error = Error::io("cannot start a thread for the job", e);
            job.end(Err(Failure::of(&error, "the job did not begin", "rbd: job error")));
        }
        job
    }

    fn run(&self, job: &Arc<Job>) {
        let Some(host) = self.host.upgrade() else { return };
        let result = self.result_of(&host, job);
        let stopped = self.table().is_stopping && job.cancel.is_asked();
        // One that the end of the node stopped goes on with the next node.
        if !stopped && let Err(e) = job.record.remove(&self.dir) {
            tracing::warn!(job = job.record.id, error = %e.chain(), "the file of an ended job cannot be removed");
        }
        match &result {
            Ok(_) => tracing::info!(job = job.record.id, "job done"),
            Err(_) if stopped => tracing::info!(job = job.record.id, "job interrupted"),
            Err(f) => tracing::error!(job = job.record.id, what = f.what, cause = f.cause, "job failed"),
        }
        job.end(result);
    }

    /// Does what a job is there for, unless a node before this one did.
    fn result_of(&self, host: &Arc<Host>, job: &Arc<Job>) -> Done<Response> {
        let (home, request, cancel) = (Home::at(&job.record.home), &job.record.request, &job.cancel);
        match &job.record.subject {
            Some(subject) => match execute::was_done(host, &home, request, subject, cancel) {
                Ok(true) => {
                    tracing::info!(job = job.record.id, "job was done before");
                    return Ok(Response::Done);
                }
                Ok(false) => {}
                // Executing it fails for the same reason and says so, or that has gone meanwhile.
                Err(f) => {
                    tracing::warn!(
                        job = job.record.id,
                        what = f.what,
                        cause = f.cause,
                        "cannot tell whether it was done"
                    );
                }
            },
            None => self.keep_subject(host, &home, job)?,
        }
        host.execute(&home, request, Streams::default(), &Listener(Arc::clone(job)), cancel)
    }

    /// Adds to the file of a job what it is about.
    fn keep_subject(&self, host: &Arc<Host>, home: &Home, job: &Job) -> Done<()> {
        // Where that cannot be told, executing it tells why.
        let Ok(Some(subject)) = execute::subject(host, home, &job.record.request, &job.cancel) else {
            return Ok(());
        };
        let record = Record { subject: Some(subject), ..job.record.clone() };
        record
            .write(&self.dir)
            .map_err(|e| Failure::of(&e, "cannot begin the job", "rbd: job error").advise("nothing was done"))
    }

    /// All jobs, oldest first.
    pub(crate) fn list(&self) -> Vec<JobLine> {
        self.table().jobs.values().map(|job| job.line()).collect()
    }

    /// How many have not ended.
    pub(crate) fn running(&self) -> usize {
        self.table().jobs.values().filter(|job| job.is_running()).count()
    }

    /// Tells how far a job is that copies and how fast, then what it does until it ends, and how it ended.
    pub(crate) fn attach(&self, id: u64, events: &dyn Events, cancel: &Cancel) -> Done<Response> {
        let job = self.job(id)?;
        let JobLine { copy, is_paused, .. } = job.line();
        if let Some(copy) = copy {
            events.advise(&format!("job {id} is {}: {copy}", if is_paused { "paused" } else { "running" }));
        }
        let attached = job.attach();
        job.listen(attached, events, cancel)
    }

    /// What can be asked of a job that runs.
    pub(crate) fn control(&self, id: u64) -> Done<Cancel> {
        let job = self.job(id)?;
        if !job.is_running() {
            let words = job.record.words();
            return Err(Failure::plain(Errno::EINVAL, format!("job {id} ({words}) has ended already")));
        }
        Ok(job.cancel.clone())
    }

    /// Asks all jobs to end, to be taken up by the next node, and lets none begin.
    pub(crate) fn stop(&self) {
        let mut table = self.table();
        table.is_stopping = true;
        for job in table.jobs.values().filter(|job| job.is_running()) {
            job.cancel.ask();
        }
    }

    /// Waits until all have ended.
    pub(crate) fn wait(&self) {
        let jobs: Vec<_> = self.table().jobs.values().map(|job| job.attach()).collect();
        for attached in jobs {
            attached.heard.iter().find(|h| matches!(h, Heard::End(_)));
        }
    }

    fn job(&self, id: u64) -> Done<Arc<Job>> {
        self.table().jobs.get(&id).cloned().ok_or_else(|| {
            Failure::plain(Errno::ENOENT, format!("there is no job {id}"))
                .advise("`ferry job ls` lists those there are; an ended job is forgotten when the node ends")
        })
    }

    fn now(&self) -> u64 {
        self.host.upgrade().map_or(0, |host| u64::from(host.env.clock.now().seconds))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_running(&self) -> bool {
        self.state().end.is_none()
    }

    /// What comes from now on; of a job that has ended, its end.
    fn attach(&self) -> Attached {
        let (sender, receiver) = channel();
        let mut state = self.state();
        let step = state.step.clone().map(|(title, done, total)| Event::Progress(title, done, total));
        let end = state.end.clone().map(Heard::End);
        for heard in step.map(Heard::Event).into_iter().chain(end) {
            // The receiver is here.
            sender.send(heard).ok();
        }
        state.listeners.push(sender.clone());
        Attached { heard: receiver, own: sender }
    }

    fn listen(&self, attached: Attached, events: &dyn Events, cancel: &Cancel) -> Done<Response> {
        // One that has gone already needs no word of it.
        cancel.when_asked(move || drop(attached.own.send(Heard::Gone)));
        for heard in attached.heard {
            match heard {
                Heard::Event(event) => event.tell(events),
                Heard::End(result) => return result,
                Heard::Gone => break,
            }
        }
        Err(Failure::of(&interrupted(), format!("job {} goes on", self.record.id), "rbd: interrupted"))
    }

    fn end(&self, result: Done<Response>) {
        let mut state = self.state();
        for listener in state.listeners.drain(..) {
            // One that has gone has gone.
            listener.send(Heard::End(result.clone())).ok();
        }
        state.step = None;
        state.end = Some(result);
    }

    fn line(&self) -> JobLine {
        let state = self.state();
        let standing = match &state.end {
            None => JobState::Running,
            Some(Ok(_)) => JobState::Done,
            Some(Err(f)) if f.errno == Errno::EINTR.0 => JobState::Cancelled,
            Some(Err(f)) => {
                let cause = if f.cause.is_empty() { String::new() } else { format!(": {}", f.cause) };
                JobState::Failed(format!("{}{cause}", f.what))
            }
        };
        let percent = state.step.as_ref().map(|(_, done, total)| {
            u8::try_from(u128::from(*done) * 100 / u128::from((*total).max(1))).unwrap_or(100).min(100)
        });
        // The one command whose progress counts bytes.
        let copies =
            matches!(self.record.request.command, Command::Migration(MigrationCommand::Execute { .. }));
        let step = state.step.as_ref().filter(|_| copies);
        let limits = self.cancel.limits();
        let copy = step.map(|(_, done, total)| CopyProgress {
            rate_limit: limits.rate(),
            in_flight: limits.in_flight(),
            ..state.pace.progress(Instant::now(), *done, *total)
        });
        JobLine {
            is_paused: state.end.is_none() && limits.is_paused(),
            copy,
            id: self.record.id,
            command: self.record.words(),
            state: standing,
            percent,
            started: self.record.started,
        }
    }
}

/// Passes on what a job tells.
#[derive(Debug)]
struct Listener(Arc<Job>);

impl Hears for Listener {
    fn hear(&self, event: Event) {
        let mut state = self.0.state();
        match &event {
            Event::Progress(title, done, total) => {
                let percent = |done: u64, total: u64| u128::from(done) * 100 / u128::from(total.max(1));
                let moved = match &state.step {
                    Some((last, d, t)) if last == title => percent(*d, *t) != percent(*done, *total),
                    Some(_) | None => true,
                };
                state.step = Some((title.clone(), *done, *total));
                state.pace.at(Instant::now(), *done);
                if !moved {
                    return;
                }
            }
            Event::Finished(_, Outcome::Done | Outcome::Failed) => state.step = None,
            Event::Note(_) | Event::Advise(_) | Event::Say(_) | Event::Measured(_) => {}
        }
        state.listeners.retain(|listener| listener.send(Heard::Event(event.clone())).is_ok());
    }
}
