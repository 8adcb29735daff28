//! Finds what is secret in a spec, and relative paths.
//!
//! Invariants
//! - What is not known to be harmless in the place of a secret is one: all headers, whole query strings.

use std::path::Path;

use ferry_core::{Error, Result};
use serde_json::{Map, Value};

use super::url;
use crate::secret::{HIDDEN, REFERENCE, base64};

/// Keys whose values are secret, wherever they stand.
const SECRET_KEYS: [&str; 9] = [
    "access_key",
    "secret_key",
    "session_token",
    "authorization",
    "query",
    "key",
    "password",
    "passphrase",
    "token",
];

/// Keys whose values are paths of files.
const PATH_KEYS: [&str; 4] = ["file_path", "ca_file", "config_path", "keyring_path"];

/// Answers what stands in the place of a secret; is told what it is and its value.
type Keep<'a> = &'a mut dyn FnMut(&str, &str) -> Result<String>;

/// Calls `put` with the place and value of each secret that is not a reference, and puts what it answers there.
fn walk(value: &mut Value, place: &str, inside_headers: bool, put: Keep<'_>) -> Result<()> {
    match value {
        Value::Object(map) => {
            part_url(map)?;
            for (key, value) in map.iter_mut() {
                let place = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
                let secret = inside_headers || SECRET_KEYS.contains(&key.as_str());
                match value {
                    Value::String(text) if secret && !text.starts_with(REFERENCE) => {
                        *text = put(&place, text)?;
                    }
                    other => walk(other, &place, key == "headers", put)?,
                }
            }
            Ok(())
        }
        Value::Array(items) => {
            items.iter_mut().enumerate().try_for_each(|(i, v)| walk(v, &format!("{place}.{i}"), false, put))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

/// Puts the user and the query string of a URL of a web server into keys of their own.
fn part_url(map: &mut Map<String, Value>) -> Result<()> {
    let Some(Value::String(text)) = map.get("url") else { return Ok(()) };
    let Ok(parts) = url::split(text) else {
        // Refused by whoever validates it; until then nobody knows what is in it.
        return Ok(());
    };
    if parts.user.is_none() && parts.query.is_none() {
        return Ok(());
    }
    let made = [("authorization", parts.user.map(|u| basic(&u))), ("query", parts.query)];
    for (key, value) in made {
        let Some(value) = value else { continue };
        if map.contains_key(key) {
            return Err(Error::invalid("the url says again what another key says").with("key", key));
        }
        map.insert(key.to_owned(), Value::String(value));
    }
    map.insert("url".to_owned(), Value::String(parts.bare));
    Ok(())
}

/// The value of `Authorization` for a user of a URL.
pub(super) fn basic(user: &str) -> String {
    format!("Basic {}", base64(&url::decoded(user)))
}

/// The spec without its secrets.
pub(super) fn redacted(mut json: Value) -> Value {
    let hidden = walk(&mut json, "", false, &mut |_, _| Ok(HIDDEN.to_owned()));
    hide_urls(&mut json);
    // A spec that says a secret twice is not valid; nothing of it is shown.
    if hidden.is_err() { Value::String(HIDDEN.to_owned()) } else { json }
}

/// Hides URLs that cannot be taken apart: nobody knows what is in them.
fn hide_urls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match value {
                    Value::String(text) if key == "url" && url::split(text).is_err() => {
                        HIDDEN.clone_into(text);
                    }
                    other => hide_urls(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide_urls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The spec with references in the place of its secrets.
pub(super) fn replace(mut json: Value, keep: Keep<'_>) -> Result<Value> {
    walk(&mut json, "", false, &mut |place, secret| {
        keep(place, secret).map(|key| format!("{REFERENCE}{key}"))
    })?;
    Ok(json)
}

/// The keys of all references.
pub(super) fn references(json: &Value) -> Vec<String> {
    match json {
        Value::String(text) => text.strip_prefix(REFERENCE).map(str::to_owned).into_iter().collect(),
        Value::Array(items) => items.iter().flat_map(references).collect(),
        Value::Object(map) => map.values().flat_map(references).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    }
}

/// Makes paths absolute.
pub(super) fn absolute(value: &mut Value, base: &Path) -> Result<()> {
    match value {
        Value::Object(map) => map.iter_mut().try_for_each(|(key, value)| match value {
            Value::String(path) if PATH_KEYS.contains(&key.as_str()) && Path::new(path).is_relative() => {
                let whole = base.join(&*path);
                let whole =
                    whole.to_str().ok_or_else(|| Error::invalid("the directory's name is not UTF-8"))?;
                whole.clone_into(path);
                Ok(())
            }
            other => absolute(other, base),
        }),
        Value::Array(items) => items.iter_mut().try_for_each(|item| absolute(item, base)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}
