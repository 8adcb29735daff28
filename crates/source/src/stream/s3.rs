//! An object in an object store that speaks S3: HTTP with each request signed (signature version 4).
//!
//! Invariants
//! - The secret key signs and is never sent; what is sent is good for one object, one method and an hour.
//! - A signed request goes to the endpoint that was named and nowhere else: redirects are refused.

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ferry_core::{Error, Reply, Result};
use hyper::Method;
use jiff::Timestamp;
use tokio::runtime::Handle;
use url::Url;

use super::Stream;
use super::http::{self, Authority, HttpOptions, HttpStream, Target};
use crate::env::Env;
use crate::spec::S3Spec;
use crate::spec::url::decoded;

/// How long a signature is good for. Seconds.
const EXPIRES: u64 = 3600;
/// When a signature is made anew: long before it ends, for clocks that differ.
const RENEW: Duration = Duration::from_secs(600);
/// The region where none is named; stores that know no regions take it.
const REGION: &str = "us-east-1";

/// An object in an object store. Secrets are resolved.
#[derive(Clone)]
pub struct S3Options {
    /// Where it is and how to get there, with an address as the store knows it: with the bucket in the path or in the host.
    pub http: HttpOptions,
    /// Who one is; none asks without a signature, for what everybody may read.
    pub keys: Option<S3Keys>,
    /// The region of the bucket; where none is given the one that stores without regions take.
    pub region: Option<String>,
}

/// The keys of a user of an object store.
#[derive(Clone)]
pub struct S3Keys {
    /// The name of the key.
    pub access: String,
    /// The key.
    pub secret: String,
    /// What goes with keys that are lent for a time.
    pub session_token: Option<String>,
}

impl fmt::Debug for S3Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Keys").finish_non_exhaustive()
    }
}

impl fmt::Debug for S3Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Options")
            .field("http", &self.http)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// Opens what a spec names.
///
/// # Errors
/// Those of [`open_with`], and those of its secrets.
pub(super) fn open(spec: &S3Spec, env: &Env) -> Reply<Arc<dyn Stream>> {
    let (spec, env) = (spec.clone(), env.clone());
    Reply::pending(async move {
        let session_token = match &spec.session_token {
            Some(token) => Some(token.value(&env).await?),
            None => None,
        };
        let access = spec.access_key.value(&env).await?;
        let keys = S3Keys { access, secret: spec.secret_key.value(&env).await?, session_token };
        let mut http = HttpOptions::new(spec.url);
        http.authorities = spec.ca_file;
        let options = S3Options { http, keys: Some(keys), region: Some(spec.region) };
        let stream: Arc<dyn Stream> = open_with(&options, &env.runtime).await?;
        Ok(stream)
    })
}

/// Opens an object in an object store.
///
/// # Errors
/// Those of [`http::open_with`]; a refusal names the store's code for it, and the region of the bucket where the store tells it.
pub fn open_with(options: &S3Options, runtime: &Handle) -> Reply<Arc<HttpStream>> {
    let prepared = address(options).and_then(|url| {
        let mut http = options.http.clone();
        http.url = url.to_string();
        let authority = match &options.keys {
            Some(keys) => {
                Authority::Signature(Signature::new(keys, options.region.as_deref().unwrap_or(REGION))?)
            }
            None => Authority::headers(&http)?,
        };
        Ok((http, authority))
    });
    match prepared {
        Ok((http, authority)) => http::open_as(&http, authority, "s3", runtime),
        Err(e) => Reply::ready(Err(e)),
    }
}

/// The address to ask, encoded as the signature needs it.
fn address(options: &S3Options) -> Result<Url> {
    let mut url = Target::parse(&options.http.url)?.url().clone();
    if url.query().is_some() {
        return Err(Error::invalid("the url of an object in an object store takes no query"));
    }
    let path = encoded(&decoded(url.path()));
    if path.trim_matches('/').is_empty() {
        return Err(Error::invalid("the url names no object"));
    }
    url.set_path(&path);
    Ok(url)
}

/// Encodes all but what a signature leaves as it is.
fn encoded(path: &[u8]) -> String {
    let mut text = String::new();
    for &byte in path {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// Signs requests, and keeps signatures while they are good.
pub(in crate::stream) struct Signature {
    keys: S3Keys,
    region: String,
    made: Mutex<Vec<Made>>,
}

struct Made {
    url: Url,
    method: Method,
    signed: Url,
    at: Instant,
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signature").field("region", &self.region).finish_non_exhaustive()
    }
}

impl Signature {
    fn new(keys: &S3Keys, region: &str) -> Result<Self> {
        let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        if !is_plain(&keys.access) || keys.access.contains('/') || keys.secret.is_empty() {
            return Err(Error::invalid("invalid access_key or secret_key"));
        }
        if !is_plain(region) || region.contains('/') {
            return Err(Error::invalid("invalid region").with("region", region));
        }
        Ok(Self { keys: keys.clone(), region: region.to_owned(), made: Mutex::default() })
    }

    /// The address with its signature.
    pub(in crate::stream) fn sign(&self, url: &Url, method: &Method) -> Url {
        let mut made = self.made.lock().expect("no thread panics with it");
        made.retain(|m| m.at.elapsed() < RENEW);
        if let Some(known) = made.iter().find(|m| m.url == *url && m.method == *method) {
            return known.signed.clone();
        }
        let signed = self.sign_at(Timestamp::now(), url, method);
        made.push(Made {
            url: url.clone(),
            method: method.clone(),
            signed: signed.clone(),
            at: Instant::now(),
        });
        signed
    }

    fn sign_at(&self, now: Timestamp, url: &Url, method: &Method) -> Url {
        let method = if *method == Method::HEAD { rusty_s3::Method::Head } else { rusty_s3::Method::Get };
        let keys = &self.keys;
        let none = || std::iter::empty::<(&str, &str)>();
        rusty_s3::signing::sign(
            &now,
            method,
            url.clone(),
            &keys.access,
            &keys.secret,
            keys.session_token.as_deref(),
            &self.region,
            EXPIRES,
            none(),
            none(),
        )
    }
}
