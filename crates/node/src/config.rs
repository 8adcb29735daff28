//! The home: one directory with the configuration, the default store and the secrets.
//!
//! ```toml
//! # <home>/ferry.toml
//! [pools]
//! rbd = "store"                # relative to the home
//! fast = "/srv/nvme/ferry"     # a store elsewhere
//!
//! [pools.far]                  # a pool of a Ceph cluster
//! rados_pool = "vms"
//! conf = "/etc/ceph/ceph.conf"
//!
//! [config.global]
//! rbd_default_order = "22"
//! ```
//!
//! # Invariants
//! - A pool is in the file after it is in its store, and out of the file before it is out of the store: a crash between leaves
//!   a pool that `ferry pool create` takes up again.
//! - The file is replaced, never written in place, by one process at a time (`ferry.toml.lock`).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ferry_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::api::{Cluster, ClusterPools};
use crate::spec::SnapSpec;

/// Name of the configuration file in the home.
const CONFIG_FILE: &str = "ferry.toml";

/// Name of the file that holds secrets; readable by its owner only.
const SECRETS_FILE: &str = "secrets.toml";

/// Name of the file that holds what the node offers.
const EXPORTS_FILE: &str = "exports.toml";

/// Name of the default store's directory in the home.
const DEFAULT_STORE: &str = "store";

/// Name of the directory of mapped devices in a home.
const DEVICES: &str = "devices";

/// What the configuration file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Pools and where they are.
    #[serde(default)]
    pub pools: BTreeMap<String, PoolPlace>,
    /// Settings by section: `global`, `client`, `client.<id>`.
    #[serde(default)]
    pub config: BTreeMap<String, BTreeMap<String, String>>,
}

impl Config {
    /// Where a pool of a Ceph cluster is, if `pool` is one.
    #[must_use]
    pub fn rados_place(&self, pool: &str) -> Option<&RadosPlace> {
        match self.pools.get(pool)? {
            PoolPlace::Rados(place) => Some(place),
            PoolPlace::Directory(_) => None,
        }
    }

    /// Pools of Ceph clusters.
    pub(crate) fn rados_places(&self) -> impl Iterator<Item = (&String, &RadosPlace)> {
        self.pools.iter().filter_map(|(name, place)| match place {
            PoolPlace::Rados(place) => Some((name, place)),
            PoolPlace::Directory(_) => None,
        })
    }

    /// What the home calls the pools of `cluster`, by the names they have there.
    pub(crate) fn names_in(&self, cluster: &Cluster) -> BTreeMap<String, String> {
        let there = self.rados_places().filter(|(_, place)| place.cluster().is_same_client(cluster));
        there.map(|(name, place)| (place.rados_pool.clone(), name.clone())).collect()
    }
}

/// Where a pool is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PoolPlace {
    /// The directory of its store, relative to the home.
    Directory(PathBuf),
    /// A pool of a Ceph cluster.
    Rados(RadosPlace),
}

impl From<PathBuf> for PoolPlace {
    fn from(dir: PathBuf) -> Self {
        Self::Directory(dir)
    }
}

/// A pool of a Ceph cluster, and how to get there. No secret is in it: keys are in files that it may name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RadosPlace {
    /// What the cluster calls the pool.
    pub rados_pool: String,
    /// The cluster's configuration file; where Ceph looks for one if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conf: Option<PathBuf>,
    /// The user without `client.`; `admin` if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Settings that go before the file's: `keyring`, `keyfile`, `mon_host`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
}

impl RadosPlace {
    /// The pool `rados_pool` of `cluster`.
    #[must_use]
    pub fn new(rados_pool: String, cluster: &Cluster) -> Self {
        let Cluster { conf, user, settings, pools: _ } = cluster.clone();
        Self { rados_pool, conf, user, settings }
    }

    /// The cluster, whose other pools keep their names.
    #[must_use]
    pub fn cluster(&self) -> Cluster {
        let Self { rados_pool: _, conf, user, settings } = self.clone();
        Cluster { conf, user, settings, pools: ClusterPools::Unknown }
    }
}

/// What the node offers over NBD under one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum ExportRecord {
    /// An image.
    Image(ImageExport),
    /// A foreign source, which is only read.
    Source(SourceExport),
}

impl ExportRecord {
    /// The image, where it is one.
    pub(crate) fn image(&self) -> Option<&ImageExport> {
        match self {
            Self::Image(record) => Some(record),
            Self::Source(_) => None,
        }
    }

    /// As [`Self::image`], to be changed.
    pub(crate) fn image_mut(&mut self) -> Option<&mut ImageExport> {
        match self {
            Self::Image(record) => Some(record),
            Self::Source(_) => None,
        }
    }
}

/// A foreign source that the node offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourceExport {
    /// Its spec as JSON; secrets are references.
    pub(crate) source: String,
    /// What it is pinned by: it is not offered where it has become another.
    pub(crate) pin: String,
}

/// An image that the node offers over NBD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageExport {
    /// Whether writes are refused.
    pub(crate) read_only: bool,
    /// The image, or a snapshot of it.
    pub(crate) image: SnapSpec,
    /// What it is to be instead, where a migration is changing it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) moving_to: Option<SnapSpec>,
}

/// The directory all of ferry's own files are in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    dir: PathBuf,
}

impl Home {
    /// The home at `dir`. Nothing is touched yet.
    #[must_use]
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// `$FERRY_HOME`, else `$XDG_DATA_HOME/ferry`, else `~/.local/share/ferry`.
    ///
    /// # Errors
    /// `NotFound` where none of the three variables is set.
    pub fn from_env(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let set = |name: &str| variable(name).filter(|v| !v.is_empty());
        if let Some(dir) = set("FERRY_HOME") {
            return Ok(Self::at(dir));
        }
        if let Some(dir) = set("XDG_DATA_HOME") {
            return Ok(Self::at(Path::new(&dir).join("ferry")));
        }
        set("HOME").map(|dir| Self::at(Path::new(&dir).join(".local/share/ferry"))).ok_or_else(|| {
            Error::not_found("there is no home directory for pools: set FERRY_HOME to a directory")
        })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The configuration file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.dir.join(CONFIG_FILE)
    }

    /// The directory of the store of pools that name none.
    #[must_use]
    pub fn default_store(&self) -> PathBuf {
        self.dir.join(DEFAULT_STORE)
    }

    /// The directory in which images that are mapped as block devices have their files.
    #[must_use]
    pub fn devices(&self) -> PathBuf {
        self.dir.join(DEVICES)
    }

    /// The directory of the store of `pool`, if the configuration names one.
    #[must_use]
    pub fn store_of(&self, config: &Config, pool: &str) -> Option<PathBuf> {
        match config.pools.get(pool)? {
            PoolPlace::Directory(path) => Some(self.dir.join(path)),
            PoolPlace::Rados(_) => None,
        }
    }

    /// Where `pool` is, for people; nothing for one the configuration does not name.
    #[must_use]
    pub fn place_name(&self, config: &Config, pool: &str) -> String {
        match config.pools.get(pool) {
            None => String::new(),
            Some(PoolPlace::Directory(path)) => self.dir.join(path).display().to_string(),
            Some(PoolPlace::Rados(place)) => {
                let conf = place.conf.as_deref().map_or("its cluster".into(), Path::to_string_lossy);
                format!("Ceph pool {} of {conf}", place.rados_pool)
            }
        }
    }

    /// How the configuration file names a store: inside the home relative to it, so that the home can be moved.
    #[must_use]
    pub fn relative(&self, store: &Path) -> PathBuf {
        store.strip_prefix(&self.dir).unwrap_or(store).to_path_buf()
    }

    /// Reads the configuration; a file that does not exist says nothing.
    ///
    /// # Errors
    /// `Invalid` where the file is not a configuration; `Denied`, `Io`.
    pub fn load(&self) -> Result<Config> {
        read_toml(&self.config_file())
    }

    /// Changes the configuration under the file's lock.
    ///
    /// # Errors
    /// Those of `change`, of reading and of writing.
    ///
    /// # Crash safety
    /// The file is the old or the new one.
    pub fn update<T>(&self, change: impl FnOnce(&mut Config) -> Result<T>) -> Result<T> {
        self.update_file(&self.config_file(), 0o644, change)
    }

    /// Reads the secrets.
    ///
    /// # Errors
    /// As [`Home::load`].
    pub fn secrets(&self) -> Result<BTreeMap<String, String>> {
        read_toml(&self.dir.join(SECRETS_FILE))
    }

    /// Changes the secrets.
    ///
    /// # Errors
    /// As [`Home::update`].
    pub fn update_secrets<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, String>) -> Result<T>,
    ) -> Result<T> {
        self.update_file(&self.dir.join(SECRETS_FILE), 0o600, change)
    }

    /// Reads what the node offers over NBD, by name.
    ///
    /// # Errors
    /// As [`Home::load`].
    pub(crate) fn exports(&self) -> Result<BTreeMap<String, ExportRecord>> {
        read_toml(&self.dir.join(EXPORTS_FILE))
    }

    /// Changes what the node offers.
    ///
    /// # Errors
    /// As [`Home::update`].
    pub(crate) fn update_exports<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, ExportRecord>) -> Result<T>,
    ) -> Result<T> {
        self.update_file(&self.dir.join(EXPORTS_FILE), 0o644, change)
    }

    /// Reads, changes and replaces one file under its lock.
    fn update_file<D, T>(&self, path: &Path, mode: u32, change: impl FnOnce(&mut D) -> Result<T>) -> Result<T>
    where
        D: Default + Serialize + for<'de> Deserialize<'de>,
    {
        fs::create_dir_all(&self.dir).map_err(|e| {
            Error::io("cannot make the home directory", e).with("directory", self.dir.display())
        })?;
        let cannot = |what: &'static str| move |e: io::Error| Error::io(what, e).with("file", path.display());
        let lock_path = sibling(path, "lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(cannot("cannot lock the file"))?;
        lock.lock().map_err(cannot("cannot lock the file"))?;
        let mut content: D = read_toml(path)?;
        let answer = change(&mut content)?;
        let text = toml::to_string(&content)
            .map_err(|e| Error::invalid("cannot write the file").with("file", path.display()).because(e))?;
        replace(path, mode, text.as_bytes()).map_err(cannot("cannot write the file"))?;
        Ok(answer)
    }
}

/// `path` with another ending beside it.
fn sibling(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

/// Writes a new file and puts it in the place of `path`, durably.
pub(crate) fn replace(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let new_path = sibling(path, "new");
    match fs::remove_file(&new_path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&new_path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new_path, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// Reads a TOML file; a missing one is the default.
fn read_toml<D: Default + for<'de> Deserialize<'de>>(path: &Path) -> Result<D> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(D::default()),
        Err(e) => return Err(Error::io("cannot read the file", e).with("file", path.display())),
    };
    toml::from_str(&text).map_err(|e| {
        Error::invalid("the file is not a configuration").with("file", path.display()).because(e)
    })
}

#[cfg(test)]
mod tests;
