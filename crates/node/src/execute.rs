//! The one implementation of every command.

mod bench;
mod clone;
mod config;
mod describe;
mod device;
mod export;
mod feature;
mod files;
mod image;
mod job;
mod layout;
mod lock;
mod meta;
mod migration;
mod namespace;
mod opened;
mod pace;
mod peers;
mod pool;
mod readers;
mod secrets;
mod snap;
mod subject;
mod switch;
mod transfer;
mod trash;
mod usage;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ferry_core::{Env, Errno, Error, ErrorKind, Namespace, Result, Store};
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::metadata;
use ferry_image::pool::Pool;

use crate::api::{
    Cluster, ClusterPools, Command, DeviceCommand, Done, Event, Events, Failure, Hears, ImageBy, ImageRef,
    Request, Response, Streams,
};
use crate::backend::{
    Got, IfMissing, Names, OWNER_WAIT_MAX, OwnedStore, RealStores, Served, Stoppable, StoreKind,
};
use crate::cancel::Cancel;
use crate::config::{Config, Home, ImageExport};
use crate::control::{Forwarded, Server};
use crate::devices::Devices;
use crate::host::{Host, Stay};
use crate::options::Settings;
use crate::spec::{ImageSpec, PoolSpec};
pub(crate) use export::offer_sources;
use opened::{Leftovers, Opened};
pub(crate) use subject::Subject;
use tokio::runtime::Handle;

/// Executes commands on the stores that a home names.
#[derive(Debug)]
pub struct Node {
    home: Home,
    env: Env,
    kind: Arc<dyn StoreKind>,
}

impl Node {
    /// A node on directories and Ceph clusters.
    #[must_use]
    pub fn new(home: Home, env: Env) -> Self {
        Self::on(home, env, Arc::new(RealStores))
    }

    /// A node on stores of another kind.
    #[must_use]
    pub fn on(home: Home, env: Env, kind: Arc<dyn StoreKind>) -> Self {
        Self { home, env, kind }
    }

    /// Executes one command, here or in the process that serves the stores it needs. Stores are opened when they are needed and
    /// closed before this returns; where it takes longer, other processes send their commands here meanwhile. Blocks.
    ///
    /// # Errors
    /// Why the command was not done.
    ///
    /// # Crash safety
    /// Being killed, or asked to end by `cancel`, leaves what was done so far; running the command again goes on from there.
    pub fn execute(
        &self,
        request: &Request,
        streams: Streams,
        events: &dyn Events,
        cancel: &Cancel,
    ) -> Done<Response> {
        let streams = match self.send(request, streams, events, cancel)? {
            Sent::Answered(response) => return Ok(response),
            Sent::Nowhere(streams) => streams,
        };
        let host = Host::new(Arc::clone(&self.kind), self.env.clone(), Stay::Command);
        if matches!(request.command, Command::Device(DeviceCommand::Hold(_))) {
            host.keep_devices(Devices::new(self.home.devices()));
        }
        let result = host.execute(&self.home, request, streams, events, cancel);
        let others = host.lasting_calls();
        if others > 0 {
            // Their clients must not lose their disk because this command is over.
            events.note(&format!(
                "this command is over; the process stays for {others} that came to use the same store and go on until \
                 they are stopped"
            ));
        }
        let closed = host.end();
        let response = result?;
        closed
            .map_err(failed("the command was done, but the store could not be closed", "rbd: close error"))?;
        Ok(response)
    }

    /// Sends a command to whoever serves one of the stores it needs, if anybody does.
    fn send(&self, request: &Request, streams: Streams, events: &dyn Events, cancel: &Cancel) -> Done<Sent> {
        let dirs = self.dirs(request)?;
        let began = self.env.clock.elapsed();
        while let Some(server) = dirs.iter().find_map(|dir| Server::of_store(dir)) {
            match server.execute(&self.home, request, &streams, events, cancel) {
                Forwarded::Answered(result) => return result.map(Sent::Answered),
                // It goes, or does not take commands like this one.
                Forwarded::NotTaken if self.env.clock.elapsed().saturating_sub(began) < OWNER_WAIT_MAX => {
                    std::thread::sleep(AGAIN);
                }
                Forwarded::NotTaken => break,
            }
        }
        Ok(Sent::Nowhere(streams))
    }

    /// Directories where the process that serves a command may be found: the home, the stores the command names, and the devices.
    fn dirs(&self, request: &Request) -> Done<Vec<PathBuf>> {
        let config = load(&self.home)?;
        let places = request.command.places();
        let in_cluster = |pool: &String| match &request.cluster {
            Some(cluster) => cluster.pools == ClusterPools::All || !config.pools.contains_key(pool),
            None => false,
        };
        let is_of_cluster = |pool: &String| in_cluster(pool) || config.rados_place(pool).is_some();
        let is_map =
            matches!(request.command, Command::Device(DeviceCommand::Map(_) | DeviceCommand::Hold(_)));
        // Where the one who maps images of clusters is found, if there is one.
        let keeper = (is_map && places.pools.iter().all(is_of_cluster)).then(|| self.home.devices());
        if !places.pools.is_empty() && places.pools.iter().all(in_cluster) {
            // The cluster mediates between its clients itself. A node knows images by the names the home has for them.
            return Ok(keeper.into_iter().collect());
        }
        let mut dirs = vec![self.home.dir().to_path_buf()];
        dirs.extend(keeper);
        dirs.extend(places.default_store.then(|| self.home.default_store()));
        dirs.extend(places.dirs);
        dirs.extend(places.pools.iter().filter_map(|pool| self.home.store_of(&config, pool)));
        Ok(dirs)
    }
}

/// How long to wait before looking again for a process that did not take a command.
pub(crate) const AGAIN: Duration = Duration::from_millis(20);

/// What came of sending a command elsewhere.
#[derive(Debug)]
enum Sent {
    /// It was executed there.
    Answered(Response),
    /// Nobody serves the stores it needs; its files come back.
    Nowhere(Streams),
}

/// The configuration of a home.
fn load(home: &Home) -> Done<Config> {
    home.load().map_err(failed("cannot read the configuration", "rbd: configuration error"))
}

/// How a run of a command ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It was executed.
    Here(Done<Response>),
    /// Nothing was done: another process serves the store.
    Elsewhere(Served),
}

/// Executes one command on the stores of `host`.
pub(crate) fn run(
    host: &Arc<Host>,
    home: &Home,
    request: Request,
    streams: Streams,
    events: &dyn Events,
    cancel: &Cancel,
) -> Ended {
    let Request { command, overrides, cluster } = request;
    let run = match Run::new(host, home, &overrides, cluster, events, cancel) {
        Ok(run) => run,
        Err(failure) => return Ended::Here(Err(failure)),
    };
    // What waits with a limit needs the clock of the threads that serve, where there are any.
    let _context = host.running_threads().map(Handle::enter);
    let (result, ended) = futures_executor::block_on(async {
        let result = Box::pin(run.command(command, streams)).await;
        (result, run.leftovers.end().await)
    });
    let is_untouched = run.stores.into_inner().unwrap_or_else(PoisonError::into_inner).is_empty();
    match run.theirs.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(served) if is_untouched => Ended::Elsewhere(served),
        _ => Ended::Here(result.and_then(|response| {
            let close = failed("the command was done, but an image could not be closed", "rbd: close error");
            ended.map(|()| response).map_err(close)
        })),
    }
}

/// Offers an image again that a node before this one offered.
pub(crate) fn offer(host: &Arc<Host>, home: &Home, name: &str, record: &ImageExport) -> Done<()> {
    let (cancel, exporter) = (Cancel::new(), host.exporter().cloned());
    let run = Run::new(host, home, &BTreeMap::new(), None, &Silent, &cancel)?;
    match exporter {
        Some(exporter) => futures_executor::block_on(run.offer_again(&exporter, name, record)),
        None => Ok(()),
    }
}

/// What a job is about, where doing it again would fail.
///
/// # Errors
/// Why that cannot be told: the job will fail too, or is executed elsewhere.
pub(crate) fn subject(
    host: &Arc<Host>,
    home: &Home,
    request: &Request,
    cancel: &Cancel,
) -> Done<Option<Subject>> {
    let run = Run::new(host, home, &request.overrides, request.cluster.clone(), &Silent, cancel)?;
    futures_executor::block_on(Box::pin(run.subject(&request.command)))
}

/// Whether a job that was about `subject` was done by a node before this one.
///
/// # Errors
/// Why that cannot be told.
pub(crate) fn was_done(
    host: &Arc<Host>,
    home: &Home,
    request: &Request,
    subject: &Subject,
    cancel: &Cancel,
) -> Done<bool> {
    let run = Run::new(host, home, &request.overrides, request.cluster.clone(), &Silent, cancel)?;
    futures_executor::block_on(Box::pin(run.was_done(&request.command, subject)))
}

/// Hears nothing.
#[derive(Debug)]
struct Silent;

impl Hears for Silent {
    fn hear(&self, _: Event) {}
}

/// One command under way.
#[derive(Debug)]
struct Run<'a> {
    home: &'a Home,
    config: Config,
    env: &'a Env,
    host: &'a Arc<Host>,
    settings: Settings,
    cluster: Option<Cluster>,
    /// Stores it uses.
    stores: Mutex<BTreeMap<StoreKey, InUse>>,
    /// Who has the store it needs.
    theirs: Mutex<Option<Served>>,
    leftovers: Leftovers,
    events: &'a dyn Events,
    cancel: &'a Cancel,
}

impl<'a> Run<'a> {
    fn new(
        host: &'a Arc<Host>,
        home: &'a Home,
        overrides: &BTreeMap<String, String>,
        cluster: Option<Cluster>,
        events: &'a dyn Events,
        cancel: &'a Cancel,
    ) -> Done<Self> {
        let config = load(home)?;
        let settings = Settings::new(&config, overrides);
        Ok(Self {
            home,
            config,
            env: &host.env,
            host,
            settings,
            cluster,
            stores: Mutex::default(),
            theirs: Mutex::default(),
            leftovers: Leftovers::default(),
            events,
            cancel,
        })
    }
}

/// Which store a command uses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum StoreKey {
    /// That at a directory.
    Directory(PathBuf),
    /// A cluster.
    Cluster(Cluster),
}

/// A store as one command uses it.
#[derive(Clone, Debug)]
struct InUse {
    owned: Arc<dyn OwnedStore>,
    store: Arc<dyn Store>,
    names: Names,
}

/// For how long a store answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Serving {
    /// Until the command is asked to end.
    Command,
    /// As long as it is open: for what stays when the command is over.
    Always,
}

impl InUse {
    /// The store, until the command is asked to end.
    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store)
    }

    /// The store, for as long as `serving` says.
    fn store_for(&self, serving: Serving) -> Arc<dyn Store> {
        match serving {
            Serving::Command => self.store(),
            Serving::Always if self.names.is_empty() => self.owned.store(),
            Serving::Always => Stoppable::over(self.owned.store(), Cancel::new(), self.names.clone()),
        }
    }
}

/// Turns an error into a failure: `what` for people, `rbd` for what `rbd` writes before the error's number.
fn failed(what: impl Into<String>, rbd: impl Into<String>) -> impl FnOnce(Error) -> Failure {
    let (what, rbd) = (what.into(), rbd.into());
    move |error| Failure::of(&error, what, &rbd)
}

impl Run<'_> {
    /// Sends a command to its room.
    async fn command(&self, command: Command, streams: Streams) -> Done<Response> {
        match command {
            Command::Pool(command) => Box::pin(self.pool_command(command)).await,
            Command::Image(command) => Box::pin(self.image_command(command)).await,
            Command::Usage(command) => Box::pin(self.usage(command)).await,
            Command::Snap(command) => Box::pin(self.snap_command(command)).await,
            Command::Clone(command) => Box::pin(self.clone_command(command)).await,
            Command::Trash(command) => Box::pin(self.trash_command(command)).await,
            Command::Transfer(command) => Box::pin(self.transfer_command(command, streams)).await,
            Command::Meta(command) => Box::pin(self.meta_command(command)).await,
            Command::Config { level, action } => Box::pin(self.config_command(level, action)).await,
            Command::ConfigKey(action) => self.config_key_command(action, streams),
            Command::Namespace(command) => Box::pin(self.namespace_command(command)).await,
            Command::Feature { image, change, features } => {
                Box::pin(self.feature_command(&image, change, features)).await
            }
            Command::ObjectMap { image, action } => Box::pin(self.object_map_command(image, action)).await,
            Command::Lock { image, action } => Box::pin(self.lock_command(&image, action)).await,
            Command::Bench { .. } => Box::pin(self.bench(command)).await,
            Command::Check { pool } => self.check(pool),
            Command::Job(command) => self.job_command(command),
            Command::Device(command) => Box::pin(self.device_command(command)).await,
            Command::Export(command) => Box::pin(self.export_command(command, streams)).await,
            Command::Watch { image } => Box::pin(self.watch(&image)).await,
            Command::Nbd(options) => Box::pin(self.nbd(options, streams)).await,
            Command::Migration(command) => Box::pin(self.migration_command(command, streams)).await,
        }
    }

    /// The store of a pool: the cluster where it is meant, else what the home says, else the cluster.
    fn store_of(&self, pool: &str) -> Done<InUse> {
        let rbd = format!("rbd: error opening pool '{pool}'");
        let cannot = || failed(format!("cannot open pool {pool}"), &rbd);
        let local = self.home.store_of(&self.config, pool);
        match (&self.cluster, local) {
            (Some(cluster), _) if cluster.pools == ClusterPools::All => self.connect(cluster),
            (_, Some(dir)) => self.store_at(&dir, IfMissing::Fail).map_err(|e| {
                let failure = cannot()(e);
                if dir.is_dir() {
                    return failure;
                }
                failure.advise(format!(
                    "put back, or mount, what it lay on; the place of the store is in {}",
                    self.home.config_file().display()
                ))
            }),
            (cluster, None) => {
                if let Some(place) = self.config.rados_place(pool) {
                    return self.connect(&place.cluster());
                }
                if let Some(cluster) = cluster {
                    return self.connect(cluster);
                }
                let error = Error::not_found("no pool has this name").with("pool", pool);
                Err(cannot()(error).advise(format!(
                    "`ferry pool create {pool}` makes it; `ferry pool ls` lists those there are"
                )))
            }
        }
    }

    /// The store at `dir`, to be used by this command.
    fn store_at(&self, dir: &Path, missing: IfMissing) -> Result<InUse> {
        let owned = match self.host.stores.get(dir, missing, self.events)? {
            Got::Open(store) => store,
            Got::Opened(store) => {
                self.host.opened()?;
                store
            }
            Got::Theirs(served) => {
                let error = served.busy();
                self.send_to(served);
                return Err(error);
            }
        };
        Ok(self.use_store(StoreKey::Directory(dir.to_path_buf()), owned, Names::new()))
    }

    /// The command is sent there when it is over, if it has used no store.
    fn send_to(&self, served: Served) {
        *self.theirs.lock().unwrap_or_else(PoisonError::into_inner) = Some(served);
    }

    /// Counts a store among those this command uses.
    fn use_store(&self, key: StoreKey, owned: Arc<dyn OwnedStore>, names: Names) -> InUse {
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let in_use = stores.entry(key).or_insert_with(|| {
            let store = Stoppable::over(owned.store(), self.cancel.clone(), names.clone());
            InUse { owned, store, names }
        });
        in_use.clone()
    }

    /// A store this command uses, by its identity, for as long as `serving` says.
    fn store_with(&self, identity: [u8; 16], serving: Serving) -> Option<Arc<dyn Store>> {
        let stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let found = stores.values().find(|in_use| in_use.owned.store().identity() == identity);
        found.map(|in_use| in_use.store_for(serving))
    }

    /// Whether a pool is one of a cluster.
    fn is_in_cluster(&self, pool: &str) -> bool {
        let is_local = self.config.pools.contains_key(pool);
        self.config.rados_place(pool).is_some()
            || self.cluster.as_ref().is_some_and(|c| c.pools == ClusterPools::All || !is_local)
    }

    /// A cluster.
    fn connect(&self, cluster: &Cluster) -> Done<InUse> {
        let store = self.host.stores.connect(cluster).map_err(|e| {
            Failure::of(&e, "cannot connect to the Ceph cluster", "rbd: couldn't connect to the cluster!")
                .lines(["rbd: couldn't connect to the cluster!"])
        })?;
        let names = match cluster.pools {
            // Its own names.
            ClusterPools::All => Names::new(),
            ClusterPools::Unknown => self.config.names_in(cluster),
        };
        Ok(self.use_store(StoreKey::Cluster(cluster.clone()), store, names))
    }

    /// Has another command executed as part of this one, in a run of its own.
    fn ask(&self, command: Command) -> Done<Response> {
        let (cluster, overrides) = (self.cluster.clone(), BTreeMap::new());
        let request = Request { command, overrides, cluster };
        let execute = || self.host.execute(self.home, &request, Streams::default(), self.events, self.cancel);
        // On a thread of its own: one thread runs one command.
        std::thread::scope(|scope| scope.spawn(execute).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A pool in its default namespace.
    async fn whole_pool(&self, name: &str) -> Done<Pool> {
        self.whole_pool_for(name, Serving::Command).await
    }

    /// A pool in its default namespace, for as long as `serving` says.
    async fn whole_pool_for(&self, name: &str, serving: Serving) -> Done<Pool> {
        let store = self.store_of(name)?.store_for(serving);
        let pool = Pool::open(store, self.env.clone(), name, &Namespace::default()).await;
        let pool = pool.map(|pool| pool.with_peers(self.peers()));
        pool.map_err(failed(format!("cannot open pool {name}"), format!("rbd: error opening pool '{name}'")))
    }

    /// A pool and a namespace in it, which exists.
    async fn pool(&self, spec: &PoolSpec) -> Done<Pool> {
        self.pool_for(spec, Serving::Command).await
    }

    /// A pool and a namespace in it, which exists, for as long as `serving` says.
    async fn pool_for(&self, spec: &PoolSpec, serving: Serving) -> Done<Pool> {
        let pool = self.whole_pool_for(&spec.pool, serving).await?;
        if spec.namespace.is_empty() {
            return Ok(pool);
        }
        let pool = pool.in_namespace(&Namespace::new(&spec.namespace));
        pool.check_namespace().await.map_err(|e| {
            let failure = Failure::of(&e, format!("cannot open namespace {spec}"), "rbd: namespace error");
            if e.kind() == ErrorKind::NotFound {
                failure
                    .lines([format!("rbd: namespace '{}' does not exist.", spec.namespace)])
                    .advise(format!("`ferry namespace create {spec}` makes it"))
            } else {
                failure
            }
        })?;
        Ok(pool)
    }

    /// An image by name.
    async fn open(&self, spec: &ImageSpec, opening: Opening) -> Done<Opened<'_>> {
        self.open_ref(&ImageRef::from(spec.clone()), opening).await
    }

    /// An image by name or id.
    async fn open_ref(&self, image: &ImageRef, opening: Opening) -> Done<Opened<'_>> {
        let pool = self.pool(&image.pool).await?;
        let opened = match &image.by {
            ImageBy::Name(name) => Image::open(&pool, name, opening).await,
            ImageBy::Id(id) => Image::open_by_id(&pool, id, opening).await,
        };
        let opened = opened.map_err(|e| open_failed(&e, image))?;
        Ok(Opened::new(opened, &self.leftovers))
    }

    /// An image, or a snapshot of it, to be read.
    async fn open_at(&self, image: &ImageRef, snap: Option<&str>) -> Done<Image> {
        let opened = self.open_ref(image, Opening::ReadOnly).await?;
        let Some(snap) = snap else { return Ok(opened.clone()) };
        opened.at_snapshot(snap).map_err(|e| {
            let what = format!("cannot open snapshot {snap} of {}/{}", image.pool, image.name_or_id());
            Failure::of(&e, what, "error setting snapshot context").advise(format!(
                "`ferry snap ls {}/{}` lists those there are",
                image.pool,
                image.name_or_id()
            ))
        })
    }

    /// The settings in force in a pool.
    async fn settings_in(&self, pool: &Pool) -> Done<Settings> {
        let pairs = metadata::pool_list(pool)
            .await
            .map_err(failed("cannot read the pool's settings", "rbd: failed to list config"))?;
        let settings = pairs.into_iter().filter_map(|(key, value)| {
            let name = key.strip_prefix(config::PREFIX)?.to_owned();
            Some((name, String::from_utf8_lossy(&value).into_owned()))
        });
        Ok(self.settings.with_pool(settings.collect()))
    }

    /// Gives an opened image back.
    async fn close(&self, image: Opened<'_>) -> Done<()> {
        let what = format!("cannot close image {}", image.name);
        image.close().await.map_err(failed(what, "rbd: close error"))
    }

    /// Reads all of a store.
    fn check(&self, pool: Option<String>) -> Done<Response> {
        let store = match pool {
            Some(pool) => self.store_of(&pool)?,
            None => {
                let dir = self.home.default_store();
                self.store_at(&dir, IfMissing::Fail)
                    .map_err(failed("cannot open the default store", "rbd: check error"))?
            }
        };
        store.owned.check().map(Response::Check).map_err(failed("cannot check the store", "rbd: check error"))
    }
}

/// An image that cannot be opened.
fn open_failed(error: &Error, image: &ImageRef) -> Failure {
    let name = image.name_or_id();
    let by_id = matches!(image.by, ImageBy::Id(_));
    let failure = Failure::of(
        error,
        format!("cannot open image {}/{name}", image.pool),
        &format!("rbd: error opening image {}{name}", if by_id { "with id " } else { "" }),
    );
    if error.errno() == Errno::ENOENT {
        failure.advise(format!(
            "`ferry ls {0}` lists the images of the pool, `ferry trash ls {0}` those removed for a while",
            image.pool
        ))
    } else {
        failure
    }
}
