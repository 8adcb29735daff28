//! URLs of specs, taken apart.

use ferry_core::{Error, Result};

/// What a URL says, as far as a spec keeps it apart.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Parts {
    /// Scheme, host, port and path.
    pub(super) bare: String,
    /// `user[:password]`, still percent-encoded.
    pub(super) user: Option<String>,
    /// What follows the `?`.
    pub(super) query: Option<String>,
}

/// Takes an `http` URL apart. No scheme is `http`; a fragment is dropped, as it never goes to a server.
///
/// # Errors
/// `Invalid` with `rbd`'s texts. The URL is not in them: it may hold a secret.
pub(super) fn split(url: &str) -> Result<Parts> {
    let url = url.split_once('#').map_or(url, |(before, _)| before);
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let scheme = scheme.to_ascii_lowercase();
    if scheme != "http" && scheme != "https" {
        return Err(Error::invalid("invalid url scheme"));
    }
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query.to_owned()).filter(|q| !q.is_empty())),
        None => (rest, None),
    };
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user.to_owned()).filter(|u| !u.is_empty()), host),
        None => (None, authority),
    };
    // The colons of an IPv6 address are inside brackets.
    let after_address = host.rfind(']').map_or(0, |at| at + 1);
    let (name, port) = match host[after_address..].rsplit_once(':') {
        Some((_, port)) => (&host[..host.len() - port.len() - 1], Some(port)),
        None => (host, None),
    };
    if port.is_some_and(|p| p.parse::<u16>().ok().is_none_or(|p| p == 0)) {
        return Err(Error::invalid("invalid url port"));
    }
    let odd = |c: char| c.is_control() || c.is_whitespace();
    if name.is_empty() || url.contains(odd) {
        return Err(Error::invalid("invalid url"));
    }
    Ok(Parts { bare: format!("{scheme}://{host}{path}"), user, query })
}

/// The bytes that `%41` and the like stand for.
///
/// # Source
/// RFC 3986, section 2.1.
pub(crate) fn decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
        let byte = hex.filter(|_| bytes[i] == b'%').and_then(|h| u8::from_str_radix(h, 16).ok());
        plain.push(byte.unwrap_or(bytes[i]));
        i += if byte.is_some() { 3 } else { 1 };
    }
    plain
}
