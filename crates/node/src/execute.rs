//! The one implementation of every command.

mod bench;
mod clone;
mod config;
mod describe;
mod feature;
mod files;
mod image;
mod layout;
mod lock;
mod meta;
mod namespace;
mod opened;
mod pool;
mod snap;
mod transfer;
mod trash;
mod usage;

use std::sync::Arc;

use ferry_core::{Env, Errno, Error, ErrorKind, Namespace};
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::metadata;
use ferry_image::pool::Pool;

use crate::api::{
    Cluster, ClusterPools, Command, Done, Events, Failure, ImageBy, ImageRef, Request, Response, Streams,
};
use crate::backend::{IfMissing, OwnedStore, RealStores, StoreKind, Stores};
use crate::config::{Config, Home};
use crate::options::Settings;
use crate::spec::{ImageSpec, PoolSpec};
use opened::{Leftovers, Opened};

/// Executes commands on the stores that a home names.
#[derive(Debug)]
pub struct Node {
    home: Home,
    config: Config,
    env: Env,
    kind: Arc<dyn StoreKind>,
}

impl Node {
    /// A node on directories and Ceph clusters.
    #[must_use]
    pub fn new(home: Home, config: Config, env: Env) -> Self {
        Self::on(home, config, env, Arc::new(RealStores))
    }

    /// A node on stores of another kind.
    #[must_use]
    pub fn on(home: Home, config: Config, env: Env, kind: Arc<dyn StoreKind>) -> Self {
        Self { home, config, env, kind }
    }

    /// Executes one command. Stores are opened when they are needed and closed before this returns.
    ///
    /// # Errors
    /// Why the command was not done.
    ///
    /// # Cancel safety
    /// Dropping the future leaves what was done so far, as a crash would.
    pub async fn execute(&self, request: Request, streams: Streams, events: &dyn Events) -> Done<Response> {
        let settings = Settings::new(&self.config, &request.overrides);
        let stores = Stores::new(Arc::clone(&self.kind), self.env.clone());
        let run = Run {
            node: self,
            settings,
            stores,
            cluster: request.cluster,
            leftovers: Leftovers::default(),
            events,
        };
        let result = Box::pin(run.command(request.command, streams)).await;
        let ended = run.leftovers.end().await;
        let closed = ended.and(run.stores.close());
        let response = result?;
        closed
            .map_err(failed("the command was done, but the store could not be closed", "rbd: close error"))?;
        Ok(response)
    }
}

/// One command under way.
#[derive(Debug)]
struct Run<'a> {
    node: &'a Node,
    settings: Settings,
    stores: Stores,
    cluster: Option<Cluster>,
    leftovers: Leftovers,
    events: &'a dyn Events,
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
        }
    }

    /// The store of a pool: the cluster where it is meant, else what the home says, else the cluster.
    fn store_of(&self, pool: &str) -> Done<Arc<dyn OwnedStore>> {
        let rbd = format!("rbd: error opening pool '{pool}'");
        let cannot = || failed(format!("cannot open pool {pool}"), &rbd);
        let local = self.node.home.store_of(&self.node.config, pool);
        match (&self.cluster, local) {
            (Some(cluster), _) if cluster.pools == ClusterPools::All => self.connect(cluster),
            (_, Some(dir)) => self.stores.get(&dir, IfMissing::Fail, self.events).map_err(cannot()),
            (Some(cluster), None) => self.connect(cluster),
            (None, None) => {
                let error = Error::not_found("no pool has this name").with("pool", pool);
                Err(cannot()(error).advise(format!(
                    "`ferry pool create {pool}` makes it; `ferry pool ls` lists those there are"
                )))
            }
        }
    }

    /// Whether a pool is one of the cluster's.
    fn is_in_cluster(&self, pool: &str) -> bool {
        let is_local = self.node.config.pools.contains_key(pool);
        self.cluster.as_ref().is_some_and(|c| c.pools == ClusterPools::All || !is_local)
    }

    /// The cluster.
    fn connect(&self, cluster: &Cluster) -> Done<Arc<dyn OwnedStore>> {
        self.stores.connect(cluster).map_err(|e| {
            Failure::of(&e, "cannot connect to the Ceph cluster", "rbd: couldn't connect to the cluster!")
                .lines(["rbd: couldn't connect to the cluster!"])
        })
    }

    /// A pool in its default namespace.
    async fn whole_pool(&self, name: &str) -> Done<Pool> {
        let store = self.store_of(name)?.store();
        let pool = Pool::open(store, self.node.env.clone(), name, &Namespace::default()).await;
        pool.map_err(failed(format!("cannot open pool {name}"), format!("rbd: error opening pool '{name}'")))
    }

    /// A pool and a namespace in it, which exists.
    async fn pool(&self, spec: &PoolSpec) -> Done<Pool> {
        let pool = self.whole_pool(&spec.pool).await?;
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
                let dir = self.node.home.default_store();
                self.stores
                    .get(&dir, IfMissing::Fail, self.events)
                    .map_err(failed("cannot open the default store", "rbd: check error"))?
            }
        };
        store.check().map(Response::Check).map_err(failed("cannot check the store", "rbd: check error"))
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
