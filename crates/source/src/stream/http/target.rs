//! Where an object is, and what authorises one to get it.

use std::fmt;

use ferry_core::{Errno, Error, ErrorKind, Result};
use hyper::Method;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::super::s3::Signature;
use super::HttpOptions;

/// Longest address. Bytes.
const URL_MAX: usize = 16 << 10;
/// Most headers of one's own.
const HEADERS_MAX: usize = 32;

/// An address: scheme, host, port, path and query; no user, no fragment.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::stream) struct Target(Url);

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(&self.shown()).finish()
    }
}

impl Target {
    /// Takes an address; `http` is meant where it names no scheme.
    ///
    /// # Errors
    /// `Invalid` (22), without what may be secret in it.
    pub(in crate::stream) fn parse(text: &str) -> Result<Self> {
        Self::from_url(parse_url(text)?)
    }

    fn from_url(mut url: Url) -> Result<Self> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Error::invalid("invalid url scheme").with("scheme", url.scheme()));
        }
        if url.port() == Some(0) {
            return Err(Error::invalid("invalid url port"));
        }
        let cleared = url.set_username("").and_then(|()| url.set_password(None));
        if cleared.is_err() || url.host_str().is_none_or(str::is_empty) {
            return Err(Error::invalid("invalid url: it names no host"));
        }
        url.set_fragment(None);
        Ok(Self(url))
    }

    /// Where a redirect leads from here.
    ///
    /// # Errors
    /// `Unavailable` (5) for what is no address of the web, for one that gives up encryption, and where the request is signed
    /// for this host.
    pub(super) fn join(&self, location: &str, authority: &Authority) -> Result<Self> {
        let refused = |text: &'static str| {
            Error::new(ErrorKind::Unavailable, text).errno_is(Errno::EIO).with("from", self.shown())
        };
        let next = (location.len() <= URL_MAX).then(|| self.0.join(location).ok()).flatten();
        let next = next.and_then(|url| Self::from_url(url).ok());
        let next = next.ok_or_else(|| refused("the server redirects to what is no address"))?;
        if self.is_encrypted() && !next.is_encrypted() {
            return Err(refused("the server redirects from https to http; that is not followed"));
        }
        if matches!(authority, Authority::Signature(_)) {
            let text = "the object store redirects: name the endpoint and the region that the bucket is in";
            return Err(refused(text).with("to", next.shown()));
        }
        Ok(next)
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.0.scheme() == "https"
    }

    pub(super) fn has_same_origin(&self, other: &Self) -> bool {
        self.0.origin() == other.0.origin()
    }

    /// Host without port; an address of version 6 in brackets.
    pub(super) fn host(&self) -> &str {
        self.0.host_str().expect("checked when it was made")
    }

    pub(super) fn port(&self) -> u16 {
        self.0.port_or_known_default().expect("http and https have one")
    }

    /// What tells connections apart.
    pub(super) fn origin(&self) -> (bool, String, u16) {
        (self.is_encrypted(), self.host().to_owned(), self.port())
    }

    pub(in crate::stream) fn url(&self) -> &Url {
        &self.0
    }

    /// The address for people. A query is left out: it may be what authorises.
    pub(in crate::stream) fn shown(&self) -> String {
        let mut url = self.0.clone();
        let has_query = url.query().is_some();
        url.set_query(None);
        if has_query { format!("{url}?...") } else { url.to_string() }
    }

    /// What follows the method in a request, and the header `Host`.
    pub(super) fn request(&self, authority: Option<&Authority>, method: &Method) -> (String, HeaderMap) {
        let mut headers = HeaderMap::new();
        let url = match authority {
            Some(Authority::Headers(own)) => {
                headers.extend(own.0.clone());
                self.0.clone()
            }
            Some(Authority::Signature(signature)) => signature.sign(&self.0, method),
            None => self.0.clone(),
        };
        let host = match self.0.port() {
            Some(port) => format!("{}:{port}", self.host()),
            None => self.host().to_owned(),
        };
        headers.insert(HOST, HeaderValue::from_str(&host).expect("a host of a parsed url is visible ASCII"));
        let path = url.query().map_or_else(|| url.path().to_owned(), |q| format!("{}?{q}", url.path()));
        (path, headers)
    }
}

fn parse_url(text: &str) -> Result<Url> {
    if text.len() > URL_MAX {
        return Err(Error::invalid("invalid url: it is far too long"));
    }
    let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    Url::parse(&whole).map_err(|e| Error::invalid("invalid url").because(e))
}

/// What is sent to show who one is, to the origin that was named.
#[derive(Debug)]
pub(in crate::stream) enum Authority {
    /// Headers of each request.
    Headers(Headers),
    /// A signature of each request.
    Signature(Signature),
}

impl Authority {
    /// What the headers and the credential of `options` say.
    ///
    /// # Errors
    /// `Invalid` (22), never with a value in it.
    pub(in crate::stream) fn headers(options: &HttpOptions) -> Result<Self> {
        Headers::new(options).map(Self::Headers)
    }
}

/// Headers of one's own.
#[derive(Clone, Debug)]
pub(in crate::stream) struct Headers(HeaderMap);

impl Headers {
    /// # Errors
    /// `Invalid` (22), never with a value in it.
    pub(super) fn new(options: &HttpOptions) -> Result<Self> {
        let mut all = HeaderMap::new();
        if options.headers.len() > HEADERS_MAX {
            return Err(Error::invalid("too many headers").with("most", HEADERS_MAX));
        }
        for (name, value) in &options.headers {
            let key = HeaderName::try_from(name.as_str())
                .map_err(|_| Error::invalid("a header has no valid name").with("header", name))?;
            if is_ours(&key) {
                let text = "this header is for ferry to set";
                return Err(Error::invalid(text).with("header", name));
            }
            all.append(key, secret(value).ok_or_else(|| bad_value(name))?);
        }
        if let Some(value) = &options.authorization {
            all.insert(AUTHORIZATION, secret(value).ok_or_else(|| bad_value("Authorization"))?);
        }
        Ok(Self(all))
    }
}

/// Headers that say what is asked for; another value would be another question.
fn is_ours(name: &HeaderName) -> bool {
    const OURS: [&str; 12] = [
        "host",
        "range",
        "if-match",
        "if-range",
        "if-none-match",
        "if-modified-since",
        "if-unmodified-since",
        "accept-encoding",
        "connection",
        "content-length",
        "transfer-encoding",
        "te",
    ];
    OURS.contains(&name.as_str())
}

fn bad_value(name: &str) -> Error {
    Error::invalid("a header has no valid value").with("header", name)
}

fn secret(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::{Authority, Headers, HttpOptions, Target};

    #[test]
    fn an_address_without_a_scheme_is_http_and_others_are_refused() {
        let shown = |text: &str| Target::parse(text).map(|t| t.shown()).map_err(|e| e.clause().to_owned());
        assert_eq!(shown("a.example/x/y.raw"), Ok("http://a.example/x/y.raw".into()));
        assert_eq!(shown("https://u:p@a.example:8443/x?sig=1#f"), Ok("https://a.example:8443/x?...".into()));
        assert_eq!(shown("ftp://a.example/x"), Err("invalid url scheme".into()));
        assert_eq!(shown("http://a.example:0/x"), Err("invalid url port".into()));
        assert_eq!(shown("http://a.example:99999/x"), Err("invalid url".into()));
        assert_eq!(shown("http:///"), Err("invalid url".into()));
    }

    #[test]
    fn a_redirect_may_be_relative_and_may_not_give_up_encryption() {
        let none = Authority::Headers(Headers::new(&HttpOptions::new("http://a/")).unwrap());
        let at = Target::parse("https://a.example/x/y?z").unwrap();
        assert_eq!(at.join("../w?q=1", &none).unwrap().url().as_str(), "https://a.example/w?q=1");
        assert_eq!(at.join("https://u:p@b.example/", &none).unwrap().url().as_str(), "https://b.example/");
        assert!(at.join("http://a.example/x", &none).is_err());
        assert!(at.join("file:///etc/passwd", &none).is_err());
    }

    #[test]
    fn what_is_secret_is_in_no_text() {
        let mut options = HttpOptions::new("http://a/x?token=hush");
        options.authorization = Some("Bearer hush".into());
        options.headers.push(("X-Key".into(), "hush\n".into()));
        assert!(!Headers::new(&options).unwrap_err().chain().contains("hush"));
        options.headers[0].1 = "hush".into();
        let headers = Headers::new(&options).unwrap();
        let target = Target::parse(&options.url).unwrap();
        assert!(!format!("{options:?} {headers:?} {target:?} {}", target.shown()).contains("hush"));
    }

    #[test]
    fn headers_that_ask_are_not_for_others_to_set() {
        let mut options = HttpOptions::new("http://a/x");
        options.headers.push(("Range".into(), "bytes=0-1".into()));
        assert_eq!(Headers::new(&options).unwrap_err().fact("header"), Some("Range"));
    }
}
