//! `{"type":"native", …}`: a snapshot of another image.

use ferry_core::{Error, Result};
use serde_json::{Map, Value};

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

/// `{"type":"native","pool_name":S|"pool_id":N,["pool_namespace":S],"image_name":S,["image_id":S],"snap_name":S|"snap_id":N}`
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
}

/// Keys of newer versions of `rbd` that lead to another cluster. Ignoring them would import an image of the wrong one.
const ELSEWHERE: [&str; 6] =
    ["cluster_name", "client_name", "mon_host", "config_path", "keyring_path", "key_ref"];

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
/// `Invalid` with `rbd`'s texts; `Unsupported` for another cluster.
pub(super) fn parse(map: &Map<String, Value>) -> Result<NativeSpec> {
    if let Some(key) = ELSEWHERE.into_iter().find(|key| map.contains_key(*key)) {
        return Err(Error::unsupported("an image of another cluster cannot be imported").with("key", key));
    }
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
    Ok(NativeSpec { pool, namespace, image_name, image_id, snap })
}
