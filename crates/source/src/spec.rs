//! What is to be opened: a source spec, JSON as `rbd migration prepare --import-only` takes it (`docs/protocol/source-spec.md`).
//!
//! Invariants
//! - A `SourceSpec` has been validated: what it says can be tried. Nothing was opened for it.
//! - Keys that mean nothing here are kept, as `rbd` keeps them.
//! - Neither `Debug` nor `redacted` shows a secret that stands in the spec itself; `to_json` does.

mod hide;
mod native;
mod parse;
#[cfg(test)]
mod tests;
pub(crate) mod url;

use std::fmt;
use std::path::{Path, PathBuf};

use ferry_core::Result;
use serde_json::{Map, Value};

pub use native::{ClusterSpec, NativeSpec, PoolRef, SnapRef};

use crate::secret::Secret;

/// A validated source spec.
#[derive(Clone, PartialEq, Eq)]
pub struct SourceSpec {
    /// As it was given, keys sorted.
    json: Value,
    origin: Origin,
}

/// Where the bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A snapshot of another image. Opening it is the caller's business.
    Native(NativeSpec),
    /// A foreign image: a format over a stream. [`crate::open()`] opens it.
    Image(Box<ImageSpec>),
}

/// A foreign image, and what it needs beside its own bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSpec {
    /// How its bytes are to be read.
    pub format: ImageFormat,
    /// Where they are.
    pub stream: StreamSpec,
    /// Older states of a raw image, oldest first; none of another format.
    pub snapshots: Vec<SnapshotSpec>,
    /// What shows through where the image itself has nothing. An image that wants one is refused unless the spec names it: a file
    /// that comes from outside does not decide what else is opened.
    pub backing: Option<Box<ImageSpec>>,
    /// Where the data is that a qcow2 or vmdk file has not in itself.
    pub data_file: Option<StreamSpec>,
    /// Whether an image is read that says of itself that it is damaged.
    pub accept_corrupt: bool,
}

/// A format of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// The bytes of the device, one after the other.
    Raw,
    /// QEMU's copy-on-write format, of the version that the file says: 1, 2 or 3.
    Qcow,
    /// The same, of version 2 or 3.
    Qcow2,
    /// One that the machine's `qemu-nbd` reads for us.
    Qemu(QemuFormat),
}

impl ImageFormat {
    /// Its name in a spec.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow => "qcow",
            Self::Qcow2 => "qcow2",
            Self::Qemu(format) => format.name(),
        }
    }
}

/// A format that is read through `qemu-nbd`, under QEMU's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QemuFormat {
    /// Bochs.
    Bochs,
    /// Compressed loop.
    Cloop,
    /// Apple's disk image.
    Dmg,
    /// Parallels.
    Parallels,
    /// QEMU enhanced disk.
    Qed,
    /// VirtualBox.
    Vdi,
    /// Hyper-V.
    Vhdx,
    /// VMware.
    Vmdk,
    /// Virtual PC (VHD).
    Vpc,
}

impl QemuFormat {
    const ALL: [Self; 9] = [
        Self::Bochs,
        Self::Cloop,
        Self::Dmg,
        Self::Parallels,
        Self::Qed,
        Self::Vdi,
        Self::Vhdx,
        Self::Vmdk,
        Self::Vpc,
    ];

    /// What QEMU and a spec call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bochs => "bochs",
            Self::Cloop => "cloop",
            Self::Dmg => "dmg",
            Self::Parallels => "parallels",
            Self::Qed => "qed",
            Self::Vdi => "vdi",
            Self::Vhdx => "vhdx",
            Self::Vmdk => "vmdk",
            Self::Vpc => "vpc",
        }
    }
}

/// An older state of a raw image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotSpec {
    /// What it is called: not empty, and no other is called so. Where the spec gives none, a UUID made of the spec and the place in
    /// it, so that each opening finds the same.
    pub name: String,
    /// Where its bytes are.
    pub stream: StreamSpec,
}

/// A place of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamSpec {
    /// A file or block device of this machine.
    File(FileSpec),
    /// An object of a web server.
    Http(HttpSpec),
    /// An object of an S3 service.
    S3(S3Spec),
    /// An export of an NBD server.
    Nbd(NbdSpec),
}

impl StreamSpec {
    /// Where the bytes are, for people. No secrets.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::File(file) => file.path.display().to_string(),
            Self::Http(http) => http.url.clone(),
            Self::S3(s3) => s3.url.clone(),
            Self::Nbd(nbd) => nbd.uri.clone(),
        }
    }
}

/// `{"type":"file","file_path":S}`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSpec {
    /// Where the file is.
    pub path: PathBuf,
}

/// `{"type":"http","url":S,["query":S],["authorization":S],["headers":{S:S}],["ca_file":S]}`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSpec {
    /// `http://…` or `https://…`, without user, query string and fragment; no scheme was `http`, as `rbd` has it.
    pub url: String,
    /// What follows the `?`: it is what presigned URLs keep their signature in.
    pub query: Option<Secret>,
    /// The value of the header `Authorization`; of a user in the URL it is `Basic …`.
    pub authorization: Option<Secret>,
    /// Further headers, sent with every request.
    pub headers: Vec<(String, Secret)>,
    /// A file of PEM certificates to be trusted beside the system's.
    pub ca_file: Option<PathBuf>,
}

/// How a bucket is named in the URLs of an S3 service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum S3Style {
    /// The first part of the path is the bucket.
    Path,
    /// The first part of the host's name is the bucket.
    VirtualHost,
}

/// `{"type":"s3","url":S,"access_key":S,"secret_key":S,["session_token":S],["region":S],["style":"path"|"virtual"],["ca_file":S]}`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Spec {
    /// `http://…` or `https://…`, without user, query string and fragment.
    pub url: String,
    /// The key's name.
    pub access_key: Secret,
    /// The key.
    pub secret_key: Secret,
    /// Of a temporary key.
    pub session_token: Option<Secret>,
    /// Where the service signs for; `us-east-1` where the spec does not say.
    pub region: String,
    /// Where the bucket's name is; `path` where the spec does not say.
    pub style: S3Style,
    /// A file of PEM certificates to be trusted beside the system's.
    pub ca_file: Option<PathBuf>,
}

/// `{"type":"nbd","uri":S,["ca_file":S]}`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdSpec {
    /// `nbd://host[:port]/[export]` or `nbd+unix:///[export]?socket=PATH`, as in the spec.
    pub uri: String,
    /// A file of PEM certificates to be trusted beside the system's, for `nbds://`.
    pub ca_file: Option<PathBuf>,
}

impl SourceSpec {
    /// Reads and validates a spec. Nothing is opened.
    ///
    /// # Errors
    /// Those of `rbd`, in its order, texts and numbers (`docs/protocol/source-spec.md`): `Invalid` with `EBADMSG` for what is no
    /// JSON, `Invalid` for missing keys, `Unsupported` with `ENOSYS` for unknown formats and streams.
    pub fn parse(text: &str) -> Result<Self> {
        let json = parse::json(text)?;
        let origin = parse::origin(&json)?;
        Ok(Self { json: sorted(json), origin })
    }

    /// The spec of an image of `format` in a file.
    ///
    /// # Errors
    /// `Unsupported` with `ENOSYS` for an unknown format, `Invalid` for a path that is not UTF-8.
    pub fn of_file(format: &str, path: &Path) -> Result<Self> {
        let path = path.to_str().ok_or_else(|| {
            ferry_core::Error::invalid("the name of the file is not UTF-8").with("file", path.display())
        })?;
        let stream = serde_json::json!({"file_path": path, "type": "file"});
        Self::parse(&serde_json::json!({"stream": stream, "type": format}).to_string())
    }

    /// Where the bytes come from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Compact JSON with sorted keys, as `rbd` keeps it. Secrets that stand in the spec itself are in it.
    #[must_use]
    pub fn to_json(&self) -> String {
        self.json.to_string()
    }

    /// The same for people: no secret is in it.
    #[must_use]
    pub fn redacted(&self) -> String {
        sorted(hide::redacted(self.json.clone())).to_string()
    }

    /// Whether a secret stands in the spec itself.
    #[must_use]
    pub fn has_inline_secrets(&self) -> bool {
        let mut found = false;
        // Whoever refuses each secret learns that there is one.
        let refused = hide::replace(self.json.clone(), &mut |_, _| {
            found = true;
            Err(ferry_core::Error::invalid("looked for only"))
        });
        found || refused.is_err()
    }

    /// The same spec with a reference in the place of every secret that stood in it. `keep` is told what a secret is
    /// (`stream.secret_key`) and the secret itself, keeps it, and answers under which key. A user in a URL becomes
    /// `authorization`, and a query string `query`.
    ///
    /// # Errors
    /// Those of `keep`.
    pub fn with_references(&self, keep: &mut dyn FnMut(&str, &str) -> Result<String>) -> Result<Self> {
        let json = hide::replace(self.json.clone(), keep)?;
        let origin = parse::origin(&json)?;
        Ok(Self { json: sorted(json), origin })
    }

    /// The keys that `config://` references of the spec name.
    #[must_use]
    pub fn references(&self) -> Vec<String> {
        hide::references(&self.json)
    }

    /// The same spec with relative paths of files taken from `base`.
    ///
    /// # Errors
    /// `Invalid` where `base` is not UTF-8.
    pub fn with_absolute_paths(&self, base: &Path) -> Result<Self> {
        let mut json = self.json.clone();
        hide::absolute(&mut json, base)?;
        let origin = parse::origin(&json)?;
        Ok(Self { json, origin })
    }
}

impl fmt::Debug for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SourceSpec").field(&self.redacted()).finish()
    }
}

/// The same value with the keys of all its objects in order.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(Map::from_iter(entries))
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => other,
    }
}
