//! A process that owns stores: executes commands on them, its own and those of others, and tends them meanwhile.
//!
//! ```text
//!   own command ─┐                       ┌─ stores
//!                ├─► execute ─► Run ─────┤
//!   door ────────┘   (Cancel, Events)    └─ or another owner, to whom the command is sent on
//! ```
//!
//! Invariants
//! - A store stays open while any command may use it: the door is closed and empty before stores are.
//! - A command is sent to another owner only if nothing was opened for it here.

mod steward;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::Instant;

use ferry_core::{Env, Errno, Error, Result};
use tokio::runtime::{Handle, Runtime};

use crate::api::{Done, Event, Events, Failure, Hears, Request, Response, Streams};
use crate::backend::{OWNER_WAIT_MAX, StoreKind, Stores};
use crate::cancel::Cancel;
use crate::config::Home;
use crate::control::{Channel, Door, Forwarded, Tell, VERSION};
use crate::devices::Devices;
use crate::execute::{self, AGAIN, Ended};
use crate::exporter::Exporter;
use crate::jobs::Jobs;
use crate::offered::Offering;
use crate::shared::SharedDevices;
use crate::sources::{Keys, Sources};
use crate::spec::ImageSpec;
use steward::Steward;

/// Threads for what is not a client's request, which the server of exports has threads of its own for.
const WORKERS: usize = 4;

/// How long a process stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stay {
    /// As long as its one command takes.
    Command,
    /// Until it is stopped.
    Serving,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) stores: Stores,
    pub(crate) sources: Sources,
    pub(crate) env: Env,
    pub(crate) stay: Stay,
    door: OnceLock<Door>,
    steward: Mutex<Option<Steward>>,
    jobs: OnceLock<Arc<Jobs>>,
    exporter: OnceLock<Arc<Exporter>>,
    exporters: Mutex<Vec<Weak<Exporter>>>,
    devices: OnceLock<Arc<Devices>>,
    runtime: OnceLock<Runtime>,
    shared: OnceLock<Arc<SharedDevices>>,
    calls: Mutex<Calls>,
}

/// Commands of others under way, by number.
#[derive(Debug, Default)]
struct Calls {
    last: u64,
    under_way: BTreeMap<u64, Cancel>,
    /// Those among them that go on until they are stopped.
    lasting: usize,
    is_stopping: bool,
}

impl Host {
    /// A process that owns nothing yet.
    pub(crate) fn new(kind: Arc<dyn StoreKind>, env: Env, stay: Stay) -> Arc<Self> {
        let stores = Stores::new(kind, env.clone());
        Arc::new(Self {
            stores,
            sources: Sources::default(),
            env,
            stay,
            door: OnceLock::new(),
            steward: Mutex::default(),
            jobs: OnceLock::new(),
            exporter: OnceLock::new(),
            exporters: Mutex::default(),
            devices: OnceLock::new(),
            runtime: OnceLock::new(),
            shared: OnceLock::new(),
            calls: Mutex::default(),
        })
    }

    /// Executes a command here, or where its store is served.
    pub(crate) fn execute(
        self: &Arc<Self>,
        home: &Home,
        request: &Request,
        streams: Streams,
        events: &dyn Events,
        cancel: &Cancel,
    ) -> Done<Response> {
        let began = Instant::now();
        let mut streams = streams;
        loop {
            let again = streams.try_clone().map_err(|e| Failure {
                cause: e.to_string(),
                ..Failure::plain(Errno::EBADF, "cannot use the command's files")
            })?;
            let served = match execute::run(self, home, request.clone(), streams, events, cancel) {
                Ended::Here(result) => return result,
                Ended::Elsewhere(served) => served,
            };
            let served_busy = served.busy();
            match served.server.execute(home, request, &again, events, cancel) {
                Forwarded::Answered(result) => return result,
                Forwarded::NotTaken if began.elapsed() < OWNER_WAIT_MAX && !cancel.is_asked() => {
                    thread::sleep(AGAIN);
                }
                Forwarded::NotTaken => {
                    return Err(Failure::of(
                        &served_busy,
                        "the store cannot be used",
                        "rbd: error opening pool",
                    ));
                }
            }
            streams = again;
        }
    }

    /// Long operations are kept in `jobs` from now on.
    pub(crate) fn keep_jobs(&self, jobs: Arc<Jobs>) {
        // A node has one set of them.
        self.jobs.set(jobs).ok();
    }

    /// The jobs of a node; none in other processes.
    pub(crate) fn jobs(&self) -> Option<&Arc<Jobs>> {
        self.jobs.get()
    }

    /// This process maps images, in `devices`.
    pub(crate) fn keep_devices(&self, devices: Arc<Devices>) {
        // A process has one set of them.
        self.devices.set(devices).ok();
    }

    /// What maps images in a process that stays; none in others.
    pub(crate) fn devices(&self) -> Option<&Arc<Devices>> {
        self.devices.get()
    }

    /// Images are offered by `exporter` from now on.
    pub(crate) fn keep_exporter(&self, exporter: Arc<Exporter>) {
        self.add_exporter(&exporter);
        // A node has one.
        self.exporter.set(exporter).ok();
    }

    /// Counts `exporter` among those whose images may be switched.
    pub(crate) fn add_exporter(&self, exporter: &Arc<Exporter>) {
        let mut exporters = self.exporters.lock().unwrap_or_else(PoisonError::into_inner);
        exporters.retain(|e| e.strong_count() > 0);
        exporters.push(Arc::downgrade(exporter));
    }

    /// All that offers images over NBD in this process.
    fn exporters(&self) -> Vec<Arc<Exporter>> {
        let exporters = self.exporters.lock().unwrap_or_else(PoisonError::into_inner);
        exporters.iter().filter_map(Weak::upgrade).collect()
    }

    /// All that this process offers of an image, over NBD and as devices.
    pub(crate) fn offerings(&self, image: &ImageSpec) -> Vec<Offering> {
        let mut all: Vec<_> = self.exporters().iter().flat_map(|e| e.offerings(image)).collect();
        all.extend(self.devices().map(|devices| devices.offerings(image)).unwrap_or_default());
        all
    }

    /// How much clients of this process have asked for so far, over NBD and on devices.
    pub(crate) fn requests(&self) -> u64 {
        let exported: u64 = self.exporters().iter().map(|e| e.requests()).sum();
        exported + self.devices().map_or(0, |devices| devices.requests())
    }

    /// The images that are open to be written for long.
    ///
    /// # Errors
    /// Those of [`Self::runtime`].
    pub(crate) fn shared(&self) -> Result<&Arc<SharedDevices>> {
        let runtime = self.runtime()?;
        Ok(self.shared.get_or_init(|| Arc::new(SharedDevices::new(runtime))))
    }

    /// What offers images in a node; none in other processes.
    pub(crate) fn exporter(&self) -> Option<&Arc<Exporter>> {
        self.exporter.get()
    }

    /// The threads for what is served, if they were started.
    pub(crate) fn running_threads(&self) -> Option<&Handle> {
        self.runtime.get().map(Runtime::handle)
    }

    /// Threads for what is served, started at first use.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(crate) fn runtime(&self) -> Result<&Handle> {
        if let Some(runtime) = self.runtime.get() {
            return Ok(runtime.handle());
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name("serve")
            .enable_all()
            .build()
            .map_err(|e| Error::io("cannot start the threads of a server", e))?;
        Ok(self.runtime.get_or_init(|| runtime).handle())
    }

    /// Where `config://` keys of images in pools are looked up.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(crate) fn keys(&self, home: &Home) -> Result<Keys> {
        Ok(Keys::new(self.runtime()?, home, self.stores.connected()))
    }

    /// Asks the commands of others to end, those that come later too.
    pub(crate) fn stop_calls(&self) {
        let mut calls = self.calls();
        calls.is_stopping = true;
        // Asked without the lock: what they do then may need it.
        let under_way: Vec<Cancel> = calls.under_way.values().cloned().collect();
        drop(calls);
        under_way.iter().for_each(Cancel::ask);
    }

    /// Executes the command of another process.
    fn call(
        self: &Arc<Self>,
        home: &Home,
        request: &Request,
        streams: Streams,
        teller: &Teller,
    ) -> Done<Response> {
        let number = {
            let mut calls = self.calls();
            calls.last += 1;
            let number = calls.last;
            calls.under_way.insert(number, teller.cancel.clone());
            calls.lasting += usize::from(request.command.lasts());
            if calls.is_stopping {
                teller.cancel.ask();
            }
            number
        };
        let result = match self.jobs() {
            Some(jobs) if request.command.is_job() => jobs.execute(home, request, teller, &teller.cancel),
            Some(_) | None => self.execute(home, request, streams, teller, &teller.cancel),
        };
        let mut calls = self.calls();
        calls.under_way.remove(&number);
        calls.lasting -= usize::from(request.command.lasts());
        result
    }

    /// How many commands of others go on until they are stopped: this process stays for them.
    pub(crate) fn lasting_calls(&self) -> usize {
        self.calls().lasting
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A store was opened: it is tended from now on, and others can come in to it, soon or at once.
    pub(crate) fn opened(self: &Arc<Self>) -> Result<()> {
        if self.stay == Stay::Serving || self.door.get().is_some() {
            self.open_doors()?;
        }
        let mut steward = self.steward.lock().unwrap_or_else(PoisonError::into_inner);
        if steward.is_none() {
            *steward = Some(Steward::start(Arc::downgrade(self)));
        }
        Ok(())
    }

    /// The way in for others.
    pub(crate) fn door(self: &Arc<Self>) -> &Door {
        let host = Arc::downgrade(self);
        self.door.get_or_init(|| Door::new(move |channel| receive(&host, channel)))
    }

    /// Lets others in to every store that is open.
    fn open_doors(self: &Arc<Self>) -> Result<()> {
        for store in self.stores.all() {
            if let Some(dir) = store.door() {
                self.door().open_at(dir)?;
            }
        }
        Ok(())
    }

    /// Lets nobody in any more, waits for those inside, and closes the stores.
    ///
    /// # Errors
    /// Those of the stores.
    pub(crate) fn end(&self) -> Result<()> {
        let steward = self.steward.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(steward);
        self.close_door();
        self.stores.close()
    }

    /// Lets nobody in any more, and waits for those inside.
    pub(crate) fn close_door(&self) {
        if let Some(door) = self.door.get() {
            door.close();
        }
    }
}

/// Deals with one who came in.
fn receive(host: &Weak<Host>, mut channel: Channel) {
    let Some(host) = host.upgrade() else { return };
    let us = rustix::process::geteuid().as_raw();
    if !channel.peer_user().is_ok_and(|user| user == us || user == 0) {
        return;
    }
    // Whoever sends no whole call in time, or nonsense, is not answered: nothing was done.
    if channel.wait_at_most_patience(true).is_err() {
        return;
    }
    let Ok((call, streams)) = channel.receive_call() else { return };
    if call.version != VERSION {
        let text = "the store is served by a ferry of another version";
        let failure = Failure::plain(Errno::EOPNOTSUPP, text).advise(
            "nothing was done; use the same version as the process that serves it, or stop that process",
        );
        // One who has gone needs no answer.
        channel.send(&Tell::Failed(Box::new(failure))).ok();
        return;
    }
    if channel.send(&Tell::Accepted).is_err() || channel.wait_at_most_patience(false).is_err() {
        return;
    }
    let cancel = Cancel::new();
    let (Ok(mut listening), Ok(telling)) = (channel.try_clone(), channel.try_clone()) else { return };
    let gone = cancel.clone();
    let listener = thread::spawn(move || {
        if listening.is_gone() {
            gone.ask();
        }
    });
    let teller = Teller { channel: Mutex::new(telling), cancel: cancel.clone() };
    let result = host.call(&Home::at(call.home), &call.request, streams, &teller);
    let end = match result {
        Ok(response) => Tell::Done(Box::new(response)),
        Err(failure) => Tell::Failed(Box::new(failure)),
    };
    if let Err(e) = channel.send(&end)
        && e.kind() == std::io::ErrorKind::Other
    {
        let failure =
            Failure { cause: e.to_string(), ..Failure::plain(Errno::EFBIG, "the result cannot be sent") };
        channel.send(&Tell::Failed(Box::new(failure))).ok();
    }
    channel.hang_up();
    // It only waits for the other end.
    listener.join().ok();
}

/// Tells the asker what happens. One who does not listen any more is not told, and the command is asked to end.
#[derive(Debug)]
struct Teller {
    channel: Mutex<Channel>,
    cancel: Cancel,
}

impl Hears for Teller {
    fn hear(&self, event: Event) {
        if self.cancel.is_asked() {
            return;
        }
        let sent = self.channel.lock().unwrap_or_else(PoisonError::into_inner).send(&Tell::Event(event));
        if sent.is_err() {
            self.cancel.ask();
        }
    }
}
