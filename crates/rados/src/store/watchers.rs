//! Who watches an object, as the OSD tells that serves it.

#[cfg(test)]
mod tests;

use ferry_core::watch::{WatchHandle, WatcherInfo};
use ferry_core::{ClientId, Error, ObjectId, Result};
use serde_json::{Value, json};

use crate::handle::Cluster;

/// Asks the monitors which OSD serves an object, and that one who watches it.
///
/// # Errors
/// `Denied` where the user is no administrator of the OSDs; `Unsupported` where an answer is not understood, or nobody serves
/// the object.
pub(super) fn list(cluster: &Cluster, object: &ObjectId) -> Result<Vec<WatcherInfo>> {
    let pool = cluster.pool_name(object.pool)?;
    let (name, namespace) = (&*object.name, object.namespace.as_str());
    let place = json!({
        "prefix": "osd map", "pool": pool, "object": name, "nspace": namespace, "format": "json",
    });
    let osd = primary(&cluster.ask_monitors(&place.to_string())?).ok_or_else(not_understood)?;
    let told = cluster.ask_osd(osd, &json!({"prefix": "dump_watchers", "format": "json"}).to_string())?;
    watchers(&told, name, namespace).ok_or_else(not_understood)
}

fn not_understood() -> Error {
    Error::unsupported("listing watchers: an answer of the cluster's is not understood")
}

/// The OSD that serves an object, by `osd map`.
fn primary(map: &[u8]) -> Option<i32> {
    let map: Value = serde_json::from_slice(map).ok()?;
    let osd = i32::try_from(map.get("acting_primary")?.as_i64()?).ok()?;
    (osd >= 0).then_some(osd)
}

/// Those of `dump_watchers` who watch one object. The pool is not told: object names that have an image's id in them are in one
/// pool only.
fn watchers(told: &[u8], name: &str, namespace: &str) -> Option<Vec<WatcherInfo>> {
    let told: Value = serde_json::from_slice(told).ok()?;
    let of_object =
        |w: &&Value| w.get("object") == Some(&json!(name)) && w.get("namespace") == Some(&json!(namespace));
    told.as_array()?.iter().filter(of_object).map(watcher).collect()
}

fn watcher(told: &Value) -> Option<WatcherInfo> {
    let address = told.get("entity_addr_t")?;
    Some(WatcherInfo {
        client: ClientId(told.get("entity_name")?.get("num")?.as_u64()?),
        handle: WatchHandle(told.get("cookie")?.as_u64()?),
        // As `rbd` shows it.
        address: format!("{}/{}", address.get("addr")?.as_str()?, address.get("nonce")?.as_u64()?),
    })
}
