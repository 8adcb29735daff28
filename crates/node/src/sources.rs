//! Foreign sources: how their specs are kept in records and shown, and those that are open in this process.
//!
//! - A record holds a spec as `rbd` has it where `rbd` would read the same bytes from it: raw images in files, and snapshots
//!   of images of the same store. All else is wrapped, so that `rbd` refuses it instead of reading something else:
//!   `{"spec":{…},"type":"ferry"}`.
//! - Several openers of one source share it; it is closed with the last.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ferry_core::{BlockSource, Error, Reply, Result};
use ferry_source::{Env, ImageFormat, ImageSpec, Origin, Secrets, SourceSpec, StreamSpec};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::config::Home;

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

/// The secrets of a home.
#[derive(Debug)]
struct HomeSecrets(Home);

impl Secrets for HomeSecrets {
    fn secret(&self, key: &str) -> Reply<String> {
        let found = self.0.secrets().and_then(|secrets| {
            secrets.get(key).cloned().ok_or_else(|| {
                Error::not_found("a secret that the source-spec refers to is not kept here").with("key", key)
            })
        });
        Reply::ready(found)
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
        runtime: &Handle,
        home: &Home,
        text: &str,
        pin: Option<&str>,
    ) -> Result<Arc<dyn BlockSource>> {
        let key = (home.dir().to_path_buf(), text.to_owned());
        let found = self.open_ones().get(&key).and_then(Weak::upgrade);
        if let Some(source) = found.filter(|s| pin.is_some_and(|pin| s.pin() == pin)) {
            return Ok(source);
        }
        let spec = of_stored(text)?;
        let Origin::Image(image) = spec.origin() else {
            return Err(Error::unsupported("an import from an image that another program prepared"));
        };
        let source = open(runtime, home, image).await?;
        let mut open = self.open_ones();
        open.retain(|_, source| source.strong_count() > 0);
        open.insert(key, Arc::downgrade(&source));
        Ok(source)
    }
}

/// Opens a foreign image with the secrets of a home.
///
/// # Errors
/// Those of [`ferry_source::open()`].
pub(crate) async fn open(runtime: &Handle, home: &Home, spec: &ImageSpec) -> Result<Arc<dyn BlockSource>> {
    let env = Env { runtime: runtime.clone(), secrets: Arc::new(HomeSecrets(home.clone())) };
    ferry_source::open(spec, &env).await
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
