//! `{"type":"native", …}`: a snapshot of another image.

use std::path::PathBuf;

use ferry_core::{Error, Result};
use serde_json::{Map, Value, json};

use crate::secret::{REFERENCE, Secret};

/// A pool, by name or id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolRef {
    /// `pool_name`
    Name(String),
    /// `pool_id`
    Id(i64),
}

/// A snapshot, by name or id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapRef {
    /// `snap_name`
    Name(String),
    /// `snap_id`
    Id(u64),
}

/// Another Ceph cluster than the target's: `["cluster_name":S],["client_name":S],["mon_host":S],["config_path":S],
/// ["keyring_path":S],["key_ref":"config://KEY"|"key":S]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSpec {
    /// Its configuration file; where the spec names none but the monitors, it needs none.
    pub config: Option<PathBuf>,
    /// The user without `client.`.
    pub user: Option<String>,
    /// Addresses of its monitors.
    pub mon_host: Option<String>,
    /// The file of the user's key.
    pub keyring: Option<PathBuf>,
    /// The user's key.
    pub key: Option<Secret>,
}

impl ClusterSpec {
    /// The keys of a spec that say it. A key of the user stands in it only where it stood in the spec.
    ///
    /// # Errors
    /// Those of [`SourceSpec::parse`](super::SourceSpec::parse).
    pub fn parse(map: &Map<String, Value>) -> Result<Option<Self>> {
        if !ELSEWHERE.into_iter().any(|key| map.contains_key(key)) {
            return Ok(None);
        }
        let name = text(map, "cluster_name", "invalid cluster name")?;
        if name.as_ref().is_some_and(|name| name.is_empty() || name.contains('/')) {
            return Err(Error::invalid("invalid cluster name"));
        }
        let mon_host = text(map, "mon_host", "invalid mon host")?;
        let config = text(map, "config_path", "invalid config path")?.map(PathBuf::from);
        let config = config.or(name.map(|name| PathBuf::from(format!("/etc/ceph/{name}.conf"))));
        if config.is_none() && mon_host.is_none() {
            return Err(Error::invalid(
                "another cluster needs one of 'cluster_name', 'config_path' and 'mon_host'",
            ));
        }
        let client = text(map, "client_name", "invalid client name")?;
        let user = client.map(|client| match client.strip_prefix("client.") {
            Some(user) if !user.is_empty() => Ok(user.to_owned()),
            Some(_) | None => Err(Error::invalid("invalid client name").with("client_name", client)),
        });
        let keyring = text(map, "keyring_path", "invalid keyring path")?.map(PathBuf::from);
        let referred = text(map, "key_ref", "invalid key reference")?;
        if referred.as_ref().is_some_and(|text| !text.starts_with(REFERENCE)) {
            return Err(Error::invalid("'key_ref' is no reference (config://KEY)"));
        }
        let key = match (referred, text(map, "key", "invalid key")?) {
            (Some(_), Some(_)) => return Err(Error::invalid("cannot specify both key and key reference")),
            (referred, key) => referred.or(key).map(Secret::new),
        };
        Ok(Some(Self { config, user: user.transpose()?, mon_host, keyring, key }))
    }

    /// What [`ClusterSpec::parse`] reads. `None` where a key stands in it that is no reference: it is for records.
    #[must_use]
    pub fn to_json(&self) -> Option<Value> {
        let mut map = Map::new();
        let path = |path: &PathBuf| path.to_str().map(|p| json!(p));
        if let Some(config) = &self.config {
            map.insert("config_path".to_owned(), path(config)?);
        }
        if let Some(keyring) = &self.keyring {
            map.insert("keyring_path".to_owned(), path(keyring)?);
        }
        if let Some(user) = &self.user {
            map.insert("client_name".to_owned(), json!(format!("client.{user}")));
        }
        if let Some(mon_host) = &self.mon_host {
            map.insert("mon_host".to_owned(), json!(mon_host));
        }
        if let Some(key) = &self.key {
            map.insert("key_ref".to_owned(), json!(format!("{REFERENCE}{}", key.reference()?)));
        }
        Some(Value::Object(map))
    }
}

/// `{"type":"native","pool_name":S|"pool_id":N,["pool_namespace":S],"image_name":S,["image_id":S],"snap_name":S|"snap_id":N}`, and
/// for an image of another cluster what [`ClusterSpec`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NativeSpec {
    /// The image's pool.
    pub pool: PoolRef,
    /// Its namespace; empty is the default one.
    pub namespace: String,
    /// Its name.
    pub image_name: String,
    /// Its id, by which an image in the trash is found.
    pub image_id: Option<String>,
    /// The snapshot that becomes HEAD.
    pub snap: SnapRef,
    /// Its cluster, where that is not the home's, or the target's.
    pub cluster: Option<Box<ClusterSpec>>,
}

/// Keys that lead to another cluster. Ignoring them would import an image of the wrong one.
const ELSEWHERE: [&str; 7] =
    ["cluster_name", "client_name", "mon_host", "config_path", "keyring_path", "key_ref", "key"];

/// A string that may be missing.
fn text(map: &Map<String, Value>, key: &str, wrong: &'static str) -> Result<Option<String>> {
    match map.get(key) {
        None => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.clone())),
        Some(_) => Err(Error::invalid(wrong)),
    }
}

/// A number that may be missing and may be written as a string.
fn number<N: std::str::FromStr>(
    map: &Map<String, Value>,
    key: &str,
    wrong: &'static str,
) -> Result<Option<N>> {
    let written = match map.get(key) {
        None => return Ok(None),
        Some(Value::String(s)) => s.clone(),
        Some(Value::Number(n)) => n.to_string(),
        Some(_) => return Err(Error::invalid(wrong)),
    };
    written.parse().map(Some).map_err(|_| Error::invalid(wrong))
}

/// Reads the keys of a native spec, in `rbd`'s order.
///
/// # Errors
/// `Invalid` with `rbd`'s texts.
pub(super) fn parse(map: &Map<String, Value>) -> Result<NativeSpec> {
    let cluster = ClusterSpec::parse(map)?.map(Box::new);
    let pool_name = text(map, "pool_name", "invalid pool name")?;
    let pool = match (pool_name, map.contains_key("pool_id")) {
        (Some(_), true) => return Err(Error::invalid("cannot specify both pool name and pool id")),
        (Some(name), false) => PoolRef::Name(name),
        (None, _) => {
            let missing = || Error::invalid("missing or invalid pool id");
            PoolRef::Id(number(map, "pool_id", "missing or invalid pool id")?.ok_or_else(missing)?)
        }
    };
    let namespace = text(map, "pool_namespace", "invalid pool namespace")?.unwrap_or_default();
    let image_name = text(map, "image_name", "missing or invalid image name")?
        .filter(|name| !name.is_empty())
        .ok_or_else(|| Error::invalid("missing or invalid image name"))?;
    let image_id = text(map, "image_id", "invalid image id")?.filter(|id| !id.is_empty());
    let snap_name = text(map, "snap_name", "invalid snap name")?;
    let snap = match (snap_name, number(map, "snap_id", "invalid snap id")?) {
        (Some(_), Some(_)) => return Err(Error::invalid("cannot specify both snap name and snap id")),
        (Some(name), None) if !name.is_empty() => SnapRef::Name(name),
        (None, Some(id)) => SnapRef::Id(id),
        (Some(_) | None, None) => return Err(Error::invalid("snapshot required for import")),
    };
    Ok(NativeSpec { pool, namespace, image_name, image_id, snap, cluster })
}
