//! Foreign sources: how their specs are kept in records and shown, and those that are open in this process.
//!
//! - A record holds a spec as `rbd` has it where `rbd` would read the same bytes from it: raw images in files, and snapshots
//!   of images of the same store. All else is wrapped, so that `rbd` refuses it instead of reading something else:
//!   `{"spec":{…},"type":"ferry"}`.
//! - Several openers of one source share it; it is closed with the last.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ferry_core::{BlockSource, Error, ErrorKind, Reply, Result, Store};
use ferry_source::spec::ClusterSpec;
use ferry_source::{Env, ImageFormat, ImageSpec, Origin, Secrets, SourceSpec, StreamSpec};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::api::{Cluster, ClusterPools};
use crate::backend::{OwnedStore, Reached};
use crate::config::Home;
use crate::host::Host;

/// The type of a spec that only ferry reads.
const OWN_TYPE: &str = "ferry";

/// Whether the image that a native spec names is in the store of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is, so that `rbd` finds it too.
    SameStore,
    /// It is in another.
    Elsewhere,
}

/// The text of a spec for a record.
pub(crate) fn stored(spec: &SourceSpec, place: Place) -> String {
    let is_file = |stream: &StreamSpec| matches!(stream, StreamSpec::File(_));
    let is_plain = match spec.origin() {
        Origin::Native(_) => place == Place::SameStore,
        Origin::Image(image) => {
            image.format == ImageFormat::Raw
                && is_file(&image.stream)
                && image.snapshots.iter().all(|s| is_file(&s.stream))
        }
    };
    if is_plain {
        return spec.to_json();
    }
    // Specs are JSON.
    let inner: Value = serde_json::from_str(&spec.to_json()).unwrap_or_default();
    json!({ "spec": inner, "type": OWN_TYPE }).to_string()
}

/// The spec of a record's text.
///
/// # Errors
/// Those of [`SourceSpec::parse`].
pub(crate) fn of_stored(text: &str) -> Result<SourceSpec> {
    let value: Option<Value> = serde_json::from_str(text).ok();
    match value.as_ref().and_then(|v| Some((v.get("type")?.as_str()?, v.get("spec")?))) {
        Some((OWN_TYPE, inner)) => SourceSpec::parse(&inner.to_string()),
        Some(_) | None => SourceSpec::parse(text),
    }
}

/// The text of a record's spec for people: without secrets, and as it was given.
pub(crate) fn shown(text: &str) -> String {
    // What cannot be read may hold anything.
    of_stored(text).map_or_else(|_| "unreadable source-spec".to_owned(), |spec| spec.redacted())
}

/// Where `config://` keys are looked up: in the home, then in the clusters that there is a connection to. The cluster of an image that
/// is imported, or read through to its source, is one of them.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    home: Home,
    clusters: Vec<Arc<dyn OwnedStore>>,
    runtime: Handle,
}

impl Keys {
    /// Those of a home, and of clusters.
    pub(crate) fn new(runtime: &Handle, home: &Home, clusters: Vec<Arc<dyn OwnedStore>>) -> Self {
        Self { home: home.clone(), clusters, runtime: runtime.clone() }
    }
}

/// The value under a key in the clusters that have one.
fn of_clusters(clusters: &[Arc<dyn OwnedStore>], key: &str) -> Result<String> {
    let (mut found, mut failure) = (None::<String>, None);
    for cluster in clusters {
        match cluster.kept_value(key) {
            Ok(Some(value)) if found.as_ref().is_some_and(|f| *f != value) => {
                let text = "clusters keep different secrets under a key that the source-spec refers to";
                return Err(Error::invalid(text).with("key", key));
            }
            Ok(Some(value)) => found = Some(value),
            Ok(None) => {}
            Err(e) => failure = failure.or(Some(e)),
        }
    }
    let lost = || Error::not_found("a secret that the source-spec refers to is not kept here");
    found.ok_or_else(|| failure.unwrap_or_else(lost).with("key", key))
}

impl Secrets for Keys {
    fn secret(&self, key: &str) -> Reply<String> {
        match self.home.secrets() {
            Ok(secrets) => {
                if let Some(value) = secrets.get(key) {
                    return Reply::ready(Ok(value.clone()));
                }
            }
            Err(e) => return Reply::ready(Err(e)),
        }
        let (clusters, key) = (self.clusters.clone(), key.to_owned());
        let asking = self.runtime.spawn_blocking(move || of_clusters(&clusters, &key));
        Reply::pending(async move {
            asking.await.unwrap_or_else(|lost| {
                Err(Error::new(ErrorKind::Internal, "asking for a secret was lost").because(lost))
            })
        })
    }
}

/// The foreign sources of one process.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    open: Mutex<HashMap<(PathBuf, String), Weak<dyn BlockSource>>>,
}

impl Sources {
    fn open_ones(&self) -> MutexGuard<'_, HashMap<(PathBuf, String), Weak<dyn BlockSource>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The source that a record's text names, open; `pin` is what it must be, where that is known.
    ///
    /// # Errors
    /// Those of the spec, of the secrets it refers to and of opening it.
    pub(crate) async fn get(
        &self,
        keys: Keys,
        text: &str,
        pin: Option<&str>,
    ) -> Result<Arc<dyn BlockSource>> {
        let key = (keys.home.dir().to_path_buf(), text.to_owned());
        let found = self.open_ones().get(&key).and_then(Weak::upgrade);
        if let Some(source) = found.filter(|s| pin.is_some_and(|pin| s.pin() == pin)) {
            return Ok(source);
        }
        let spec = of_stored(text)?;
        let Origin::Image(image) = spec.origin() else {
            return Err(Error::unsupported("an import from an image that another program prepared"));
        };
        let source = open(keys, image).await?;
        let mut open = self.open_ones();
        open.retain(|_, source| source.strong_count() > 0);
        open.insert(key, Arc::downgrade(&source));
        Ok(source)
    }
}

/// Connects to the cluster that a native spec names. What a record keeps of its place leads there again.
///
/// # Errors
/// `Invalid` where the user's key stands in the spec itself; those of the secrets, and of connecting.
pub(crate) async fn connect(host: &Host, home: &Home, spec: &ClusterSpec) -> Result<Arc<dyn Store>> {
    let how = spec.to_json();
    let how =
        how.ok_or_else(|| Error::invalid("the key of another cluster's user is not kept in the home"))?;
    let mut settings = BTreeMap::new();
    if let Some(mon_host) = &spec.mon_host {
        settings.insert("mon_host".to_owned(), mon_host.clone());
    }
    if let Some(keyring) = spec.keyring.as_ref().and_then(|path| path.to_str()) {
        settings.insert("keyring".to_owned(), keyring.to_owned());
    }
    if let Some(key) = &spec.key {
        settings.insert("key".to_owned(), key.value(&env_of(host.keys(home)?)).await?);
    }
    // Nothing of the cluster that this machine's own configuration names.
    let conf = spec.config.clone().unwrap_or_else(|| PathBuf::from("/dev/null"));
    let cluster = Cluster { conf: Some(conf), user: spec.user.clone(), settings, pools: ClusterPools::All };
    Ok(Reached::over(host.stores.connect(&cluster)?.store(), how))
}

/// What sources are opened with.
fn env_of(keys: Keys) -> Env {
    Env { runtime: keys.runtime.clone(), secrets: Arc::new(keys) }
}

/// Opens a foreign image with the secrets there are.
///
/// # Errors
/// Those of [`ferry_source::open()`].
pub(crate) async fn open(keys: Keys, spec: &ImageSpec) -> Result<Arc<dyn BlockSource>> {
    ferry_source::open(spec, &env_of(keys)).await
}

#[cfg(test)]
mod tests {
    use super::{Place, of_stored, shown, stored};
    use ferry_source::SourceSpec;

    fn stored_of(text: &str, place: Place) -> String {
        stored(&SourceSpec::parse(text).unwrap(), place)
    }

    #[test]
    fn what_rbd_reads_alike_is_kept_as_rbd_has_it_and_all_else_is_not_for_rbd() {
        let raw = r#"{"stream":{"file_path":"/a","type":"file"},"type":"raw"}"#;
        assert_eq!(stored_of(raw, Place::Elsewhere), raw);
        let native = r#"{"image_name":"i","pool_name":"p","snap_name":"s","type":"native"}"#;
        assert_eq!(stored_of(native, Place::SameStore), native);
        let qcow = r#"{"stream":{"file_path":"/a","type":"file"},"type":"qcow"}"#;
        for (text, place) in [(native, Place::Elsewhere), (qcow, Place::SameStore)] {
            let kept = stored_of(text, place);
            assert!(SourceSpec::parse(&kept).is_err(), "{kept} is for ferry only");
            assert_eq!(of_stored(&kept).unwrap().to_json(), text);
            assert_eq!(shown(&kept), text);
        }
    }

    #[test]
    fn no_secret_is_shown() {
        let spec = r#"{"type":"raw","stream":{"type":"s3","url":"http://h/b/o","access_key":"AK","secret_key":"hunter2"}}"#;
        let text = shown(&stored_of(spec, Place::SameStore));
        assert!(!text.contains("hunter2") && text.contains("***"), "{text}");
        assert!(!shown(r#"{"type":"x","key":"hunter2"}"#).contains("hunter2"));
    }
}
