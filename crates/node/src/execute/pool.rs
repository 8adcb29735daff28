//! Pools: create, ls, rm, stats, init, set.

use std::path::PathBuf;

use ferry_core::{Errno, Error, ErrorKind, PoolFlags, PoolId};
use ferry_image::encoding::header_object;
use ferry_image::header::{self, Opening};
use ferry_image::image::Image;
use ferry_image::pool::{Pool, is_pool_gone};
use ferry_image::trash;

use super::{Run, failed};
use crate::api::{Command, Done, PoolAccess, PoolCommand, PoolListing, PoolState, PoolStatistics, Response};
use crate::backend::IfMissing;
use crate::config::{Config, PoolPlace, RadosPlace};
use crate::spec::PoolSpec;

impl Run<'_> {
    /// Executes one of them.
    pub(super) async fn pool_command(&self, command: PoolCommand) -> Done<Response> {
        match command {
            PoolCommand::Create { name, path } => self.pool_create(&name, path).await?,
            PoolCommand::Take { name, rados_pool } => self.pool_take(&name, rados_pool).await?,
            PoolCommand::List => return Ok(Response::Pools(self.pool_list())),
            PoolCommand::Describe { name } => {
                let pool = self.whole_pool(&name).await?;
                let (id, state) = (
                    pool.id().0,
                    if pool.is_read_only() { PoolState::ReadOnly } else { PoolState::ReadWrite },
                );
                return Ok(Response::Pools(vec![PoolListing {
                    store: self.store_name(&name),
                    name,
                    id,
                    state,
                }]));
            }
            PoolCommand::Remove { name } => self.pool_remove(&name).await?,
            PoolCommand::Stats { pool } => return self.pool_stats(&pool).await.map(Response::PoolStatistics),
            PoolCommand::Init { name } => {
                let pool = self.whole_pool(&name).await?;
                let what = format!("cannot prepare pool {name}");
                pool.init().await.map_err(failed(what, "rbd: pool init failed"))?;
            }
            PoolCommand::Set { name, access } => {
                let pool = self.whole_pool(&name).await?;
                let flags = PoolFlags { read_only: access == PoolAccess::ReadOnly };
                let cannot = || failed(format!("cannot change pool {name}"), "rbd: error changing pool");
                pool.store.set_pool_flags(pool.id(), flags).await.map_err(cannot())?;
                pool.store.flush().await.map_err(cannot())?;
            }
        }
        Ok(Response::Done)
    }

    /// Makes a pool and names it in the configuration; a pool that the store has already and nobody names is taken up.
    async fn pool_create(&self, name: &str, path: Option<PathBuf>) -> Done<()> {
        let rbd = format!("rbd: error creating pool '{name}'");
        let cannot = || failed(format!("cannot make pool {name}"), &rbd);
        let home = self.home;
        let dir = path.unwrap_or_else(|| home.default_store());
        self.check_free(name).map_err(|e| cannot()(e).advise("the pool is untouched; name another"))?;
        let store = self.store_at(&dir, IfMissing::Create).map_err(cannot())?.store();
        match store.create_pool(name).await {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::Exists => {
                self.events
                    .note(&format!("the store {} has a pool {name}: it is used as it is", dir.display()));
            }
            Err(e) => return Err(cannot()(e)),
        }
        let namespace = ferry_core::Namespace::default();
        let pool = Pool::open(store, self.env.clone(), name, &namespace).await.map_err(cannot())?;
        match pool.init().await {
            Err(e) if e.kind() != ErrorKind::ReadOnly => return Err(cannot()(e)),
            Ok(()) | Err(_) => {}
        }
        home.update(|config| {
            config.pools.insert(name.to_owned(), home.relative(&dir).into());
            Ok(())
        })
        .map_err(cannot())
    }

    /// Refuses a name that a pool has.
    fn check_free(&self, name: &str) -> ferry_core::Result<()> {
        if !self.config.pools.contains_key(name) {
            return Ok(());
        }
        Err(Error::exists("a pool has this name").with("store", self.store_name(name)))
    }

    /// Names a pool of a Ceph cluster in the configuration, and prepares it for images.
    async fn pool_take(&self, name: &str, rados_pool: String) -> Done<()> {
        let rbd = format!("rbd: error creating pool '{name}'");
        let cannot = || failed(format!("cannot use Ceph pool {rados_pool} as {name}"), &rbd);
        self.check_free(name).map_err(|e| cannot()(e).advise("the pool is untouched; name another"))?;
        let nowhere = || Error::invalid("no Ceph cluster is named, and there is no /etc/ceph/ceph.conf");
        let cluster = self.cluster.as_ref().ok_or_else(nowhere).map_err(cannot())?;
        let place = RadosPlace::new(rados_pool.clone(), cluster);
        let taken = self.config.names_in(cluster).remove(&rados_pool);
        if let Some(taken) = taken {
            let error = Error::exists("the pool has a name here").with("name", taken);
            return Err(cannot()(error).advise("nothing was changed; `ferry pool ls` lists the pools"));
        }
        let store = self.connect(cluster)?.store();
        match store.create_pool(&rados_pool).await {
            Ok(_) => self.events.note(&format!("the cluster had no pool {rados_pool}: it has one now")),
            Err(e) if e.kind() == ErrorKind::Exists => {}
            Err(e) => return Err(cannot()(e)),
        }
        let namespace = ferry_core::Namespace::default();
        let pool = Pool::open(store, self.env.clone(), &rados_pool, &namespace).await.map_err(cannot())?;
        match pool.init().await {
            // A user who may only read uses what is there.
            Err(e) if matches!(e.kind(), ErrorKind::ReadOnly | ErrorKind::Denied) => {}
            Err(e) => return Err(cannot()(e)),
            Ok(()) => {}
        }
        let keep = |config: &mut Config| Ok(config.pools.insert(name.to_owned(), PoolPlace::Rados(place)));
        self.home.update(keep).map_err(cannot()).map(drop)
    }

    /// All pools. Each store may be served by another process, so each pool is asked for by itself.
    fn pool_list(&self) -> Vec<PoolListing> {
        let describe = |name: &String| {
            let command = Command::Pool(PoolCommand::Describe { name: name.clone() });
            let listing = match self.ask(command) {
                Ok(Response::Pools(mut pools)) => pools.pop(),
                Ok(_) => None,
                Err(failure) => return self.unavailable(name, failure.cause),
            };
            listing.unwrap_or_else(|| self.unavailable(name, "the store has no such pool".to_owned()))
        };
        self.config.pools.keys().map(describe).collect()
    }

    fn unavailable(&self, name: &str, why: String) -> PoolListing {
        let (id, store) = (-1, self.store_name(name));
        PoolListing { name: name.to_owned(), id, store, state: PoolState::Unavailable(why) }
    }

    /// Where a pool is, for people.
    fn store_name(&self, pool: &str) -> String {
        self.home.place_name(&self.config, pool)
    }

    async fn pool_remove(&self, name: &str) -> Done<()> {
        let rbd = format!("rbd: error removing pool '{name}'");
        let cannot = || failed(format!("cannot remove pool {name}"), &rbd);
        if let Some(place) = self.config.rados_place(name) {
            // The pool is the cluster's, and others may use it.
            self.home.update(|config| Ok(config.pools.remove(name))).map_err(cannot())?;
            self.events.note(&format!(
                "{name} is forgotten here; the cluster keeps its pool {} with all that is in it",
                place.rados_pool
            ));
            return Ok(());
        }
        let pool = self.whole_pool(name).await?;
        if pool.is_read_only() {
            let error = Error::new(ErrorKind::ReadOnly, "the pool is read-only").with("pool", name);
            return Err(cannot()(error));
        }
        let mut namespaces = pool.namespaces().await.map_err(cannot())?;
        namespaces.push(ferry_core::Namespace::default());
        for namespace in namespaces {
            let inside = pool.in_namespace(&namespace);
            let images = inside.images().await.map_err(cannot())?.len();
            let trashed = trash::list(&inside).await.map_err(cannot())?.len();
            if images + trashed > 0 {
                let error = Error::busy("the pool holds images")
                    .errno_is(Errno::ENOTEMPTY)
                    .with("images", images)
                    .with("in trash", trashed);
                let spec = PoolSpec { pool: name.to_owned(), namespace: namespace.as_str().to_owned() };
                return Err(cannot()(error).advise(format!(
                    "nothing was removed; `ferry ls {spec}` and `ferry trash ls --all {spec}` list them"
                )));
            }
        }
        if let Some((user, images)) = data_users(&pool).await.map_err(cannot())? {
            let error = Error::busy("images of another pool have their data in this one")
                .errno_is(Errno::ENOTEMPTY)
                .with("images", images)
                .with("their pool", &user);
            return Err(cannot()(error).advise(format!(
                "nothing was removed; `ferry ls {user}` and `ferry trash ls --all {user}` list what may be theirs"
            )));
        }
        // Out of the configuration first: a crash in between leaves a pool that `pool create` takes up again.
        let home = self.home;
        home.update(|config| Ok(config.pools.remove(name))).map_err(cannot())?;
        pool.store.remove_pool(pool.id()).await.map_err(cannot())?;
        pool.store.flush().await.map_err(cannot())
    }

    async fn pool_stats(&self, spec: &PoolSpec) -> Done<PoolStatistics> {
        let pool = self.pool(spec).await?;
        let cannot =
            || failed(format!("cannot count the images of {spec}"), "rbd: failed to query pool stats");
        let mut stats = PoolStatistics::default();
        for (_, id) in pool.images().await.map_err(cannot())? {
            let (size, snaps) = size_and_snaps(&pool, &id).await.map_err(cannot())?;
            stats.images += 1;
            stats.provisioned += size;
            stats.snaps += snaps;
        }
        for (id, _) in trash::list(&pool).await.map_err(cannot())? {
            let (size, snaps) = size_and_snaps(&pool, &id).await.map_err(cannot())?;
            stats.trash_images += 1;
            stats.trash_provisioned += size;
            stats.trash_snaps += snaps;
        }
        Ok(stats)
    }
}

/// A pool of the store with images whose data lies in `data`, and how many it has.
async fn data_users(data: &Pool) -> ferry_core::Result<Option<(String, usize)>> {
    for info in data.store.pools().await? {
        let name = info.name.clone();
        let pool = Pool { info, ..data.clone() };
        match data_users_in(&pool, data.id()).await {
            Ok(0) => {}
            Ok(count) => return Ok(Some((name, count))),
            Err(e) if is_pool_gone(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// How many images of a pool have their data in `data`.
async fn data_users_in(pool: &Pool, data: PoolId) -> ferry_core::Result<usize> {
    let mut count = 0;
    let mut namespaces = pool.namespaces().await?;
    namespaces.push(ferry_core::Namespace::default());
    for namespace in namespaces {
        let pool = pool.in_namespace(&namespace);
        let ids = pool.images().await?.into_iter().map(|(_, id)| id);
        for id in ids.chain(trash::list(&pool).await?.into_iter().map(|(id, _)| id)) {
            let object = pool.object(&header_object(&id));
            match header::load(&*pool.store, &object).await {
                Ok(header) => count += usize::from(header.data_pool == Some(data)),
                // Gone, or never whole.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(count)
}

/// The largest size an image has now or at a snapshot, and how many snapshots it has; nothing for one that is gone.
async fn size_and_snaps(pool: &Pool, id: &str) -> ferry_core::Result<(u64, u64)> {
    match Image::open_by_id(pool, id, Opening::ReadOnly).await {
        Ok(image) => {
            let sizes = image.header.snaps.values().map(|s| s.size);
            Ok((sizes.fold(image.header.size, u64::max), image.header.snaps.len() as u64))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok((0, 0)),
        Err(e) => Err(e),
    }
}
