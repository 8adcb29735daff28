//! From JSON to a spec. The order of the checks, their texts and numbers are `rbd`'s (`docs/protocol/source-spec.md`).

use std::path::PathBuf;

use ferry_core::{Errno, Error, Result};
use serde_json::{Map, Value};

use super::{
    FileSpec, HttpSpec, ImageFormat, ImageSpec, NbdSpec, Origin, QemuFormat, S3Spec, S3Style, SnapshotSpec,
    StreamSpec, hide, native, url,
};
use crate::format::uuid_of;
use crate::limits::{CHAIN_MAX, SNAPSHOTS_MAX, SPEC_MAX};
use crate::secret::Secret;

type Object = Map<String, Value>;

/// JSON, and an object.
pub(super) fn json(text: &str) -> Result<Value> {
    let invalid = || Error::invalid("invalid source-spec JSON").errno_is(Errno::EBADMSG);
    if text.len() > SPEC_MAX {
        return Err(invalid().with("length_max", SPEC_MAX));
    }
    let value: Value = serde_json::from_str(text).map_err(|e| {
        // What serde says may quote what it read.
        invalid().with("line", e.line()).with("column", e.column())
    })?;
    if value.is_object() { Ok(value) } else { Err(invalid()) }
}

/// What a spec says.
pub(super) fn origin(json: &Value) -> Result<Origin> {
    let map = json.as_object().ok_or_else(|| Error::invalid("invalid source-spec JSON"))?;
    if format_name(map)? == "native" {
        return native::parse(map).map(Origin::Native);
    }
    image(map, 0).map(|spec| Origin::Image(Box::new(spec)))
}

fn format_name(map: &Object) -> Result<&str> {
    map.get("type")
        .and_then(Value::as_str)
        .ok_or_else(|| Error::invalid("failed to locate format type value"))
}

/// An error of a type that nobody knows.
fn unknown(what: &str, name: &str) -> Error {
    Error::unsupported(format!("unknown or unsupported {what} type '{name}'")).errno_is(Errno::ENOSYS)
}

fn format(name: &str) -> Result<ImageFormat> {
    let own = [ImageFormat::Raw, ImageFormat::Qcow, ImageFormat::Qcow2];
    let all = own.into_iter().chain(QemuFormat::ALL.into_iter().map(ImageFormat::Qemu));
    all.into_iter().find(|f| f.name() == name).ok_or_else(|| unknown("format", name))
}

/// A foreign image; `depth` others show it through.
fn image(map: &Object, depth: usize) -> Result<ImageSpec> {
    if depth >= CHAIN_MAX {
        return Err(Error::invalid("the chain of backing images is too long").with("length_max", CHAIN_MAX));
    }
    let format = format(format_name(map)?)?;
    let stream = located_stream(map)?;
    let snapshots = match (format, map.get("snapshots")) {
        (_, None) => Vec::new(),
        (ImageFormat::Raw, Some(list)) => snapshots(list)?,
        (ImageFormat::Qcow | ImageFormat::Qcow2 | ImageFormat::Qemu(_), Some(_)) => {
            return Err(
                Error::invalid("only a raw source has snapshots of its own").with("format", format.name())
            );
        }
    };
    let beside: &[&str] = match format {
        ImageFormat::Raw => &[],
        ImageFormat::Qcow | ImageFormat::Qcow2 => &["backing", "data_file"],
        ImageFormat::Qemu(_) => &["data_file"],
    };
    let mut known = ["backing", "data_file"].into_iter();
    if let Some(key) = known.find(|key| map.contains_key(*key) && !beside.contains(key)) {
        return Err(Error::invalid("this format has no such key")
            .with("format", format.name())
            .with("key", key));
    }
    let backing = match map.get("backing") {
        None => None,
        Some(Value::Object(backing)) => Some(Box::new(image(backing, depth + 1)?)),
        Some(_) => return Err(Error::invalid("invalid backing object")),
    };
    let data_file = match map.get("data_file") {
        None => None,
        Some(Value::Object(object)) => Some(stream_of(object)?),
        Some(_) => return Err(Error::invalid("invalid data_file object")),
    };
    let accept_corrupt = match map.get("accept_corrupt") {
        None => false,
        Some(Value::Bool(accept)) => *accept,
        Some(_) => return Err(Error::invalid("invalid accept_corrupt value")),
    };
    Ok(ImageSpec { format, stream, snapshots, backing, data_file, accept_corrupt })
}

/// The older states of a raw image.
fn snapshots(list: &Value) -> Result<Vec<SnapshotSpec>> {
    let list = list.as_array().ok_or_else(|| Error::invalid("invalid snapshots array"))?;
    if list.len() > SNAPSHOTS_MAX {
        return Err(Error::invalid("there are too many snapshots").with("most", SNAPSHOTS_MAX));
    }
    let mut found: Vec<SnapshotSpec> = Vec::with_capacity(list.len());
    for (i, item) in list.iter().enumerate() {
        let map = item
            .as_object()
            .ok_or_else(|| Error::invalid(format!("invalid snapshot {} JSON: (0) Success", i + 1)))?;
        let kind = map
            .get("type")
            .and_then(Value::as_str)
            .ok_or_else(|| Error::invalid("failed to locate snapshot type value"))?;
        if kind != "raw" {
            return Err(unknown("format", kind));
        }
        let given = match map.get("name") {
            None => None,
            Some(Value::String(name)) => Some(name.clone()).filter(|name| !name.is_empty()),
            Some(_) => return Err(Error::invalid("invalid snapshot name")),
        };
        let stream = located_stream(map)?;
        let made = || uuid_of(&[stream.place().as_bytes(), i.to_string().as_bytes()]);
        let name = given.unwrap_or_else(made);
        if found.iter().any(|s| s.name == name) {
            return Err(Error::invalid("two snapshots have the same name").with("name", name));
        }
        found.push(SnapshotSpec { name, stream });
    }
    Ok(found)
}

fn located_stream(map: &Object) -> Result<StreamSpec> {
    let stream = map.get("stream").and_then(Value::as_object);
    stream_of(stream.ok_or_else(|| Error::invalid("failed to locate stream object"))?)
}

fn stream_of(map: &Object) -> Result<StreamSpec> {
    let kind = map
        .get("type")
        .and_then(Value::as_str)
        .ok_or_else(|| Error::invalid("failed to locate stream type value"))?;
    match kind {
        "file" => file(map).map(StreamSpec::File),
        "http" => http(map).map(StreamSpec::Http),
        "s3" => s3(map).map(StreamSpec::S3),
        "nbd" => nbd(map).map(StreamSpec::Nbd),
        other => Err(unknown("stream", other)),
    }
}

/// A string that has to be there.
fn needed<'a>(map: &'a Object, key: &str) -> Result<&'a str> {
    let missing = || Error::invalid(format!("failed to locate '{key}' key"));
    map.get(key).and_then(Value::as_str).ok_or_else(missing)
}

/// A string that may be there.
fn wanted<'a>(map: &'a Object, key: &'static str) -> Result<Option<&'a str>> {
    match map.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Error::invalid("a value of the spec is not a string").with("key", key)),
    }
}

fn ca_file(map: &Object) -> Result<Option<PathBuf>> {
    Ok(wanted(map, "ca_file")?.map(PathBuf::from))
}

fn file(map: &Object) -> Result<FileSpec> {
    Ok(FileSpec { path: PathBuf::from(needed(map, "file_path")?) })
}

/// One of two places where a secret may stand.
fn either(key: &'static str, in_url: Option<String>, in_key: Option<&str>) -> Result<Option<Secret>> {
    match (in_url, in_key) {
        (Some(_), Some(_)) => {
            Err(Error::invalid("the url says again what another key says").with("key", key))
        }
        (Some(text), None) => Ok(Some(Secret::new(text))),
        (None, in_key) => Ok(in_key.map(Secret::new)),
    }
}

fn http(map: &Object) -> Result<HttpSpec> {
    let parts = url::split(needed(map, "url")?)?;
    let query = either("query", parts.query, wanted(map, "query")?)?;
    let user = parts.user.map(|user| hide::basic(&user));
    let authorization = either("authorization", user, wanted(map, "authorization")?)?;
    let mut headers = Vec::new();
    match map.get("headers") {
        None => {}
        Some(Value::Object(given)) => {
            for (name, value) in given {
                let value = value.as_str().ok_or_else(|| Error::invalid("invalid headers object"))?;
                headers.push((name.clone(), Secret::new(value)));
            }
        }
        Some(_) => return Err(Error::invalid("invalid headers object")),
    }
    Ok(HttpSpec { url: parts.bare, query, authorization, headers, ca_file: ca_file(map)? })
}

fn s3(map: &Object) -> Result<S3Spec> {
    let parts = url::split(needed(map, "url")?)?;
    let access_key = Secret::new(needed(map, "access_key")?);
    let secret_key = Secret::new(needed(map, "secret_key")?);
    if parts.user.is_some() || parts.query.is_some() {
        return Err(Error::invalid("the url of an s3 stream has neither a user nor a query string"));
    }
    let style = match wanted(map, "style")? {
        None | Some("path") => S3Style::Path,
        Some("virtual") => S3Style::VirtualHost,
        Some(other) => {
            return Err(Error::invalid("invalid style").with("style", other).with("known", "path virtual"));
        }
    };
    Ok(S3Spec {
        url: parts.bare,
        access_key,
        secret_key,
        session_token: wanted(map, "session_token")?.map(Secret::new),
        region: wanted(map, "region")?.unwrap_or("us-east-1").to_owned(),
        style,
        ca_file: ca_file(map)?,
    })
}

fn nbd(map: &Object) -> Result<NbdSpec> {
    let uri = map.get("uri").and_then(Value::as_str).ok_or_else(|| Error::invalid("missing URI"))?;
    let known = ["nbd://", "nbds://", "nbd+unix://", "nbds+unix://"];
    if !known.iter().any(|scheme| uri.starts_with(scheme)) {
        return Err(Error::invalid("invalid URI"));
    }
    Ok(NbdSpec { uri: uri.to_owned(), ca_file: ca_file(map)? })
}
