//! What an answer says, and whether it is one to what was asked, about the object that was opened.

use std::fmt;
use std::time::Duration;

use ferry_core::{Errno, Error, ErrorKind, Result};
use hyper::StatusCode;
use hyper::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName,
    HeaderValue, IF_MATCH, IF_UNMODIFIED_SINCE, LAST_MODIFIED, LOCATION, RANGE, RETRY_AFTER,
};
use hyper::http::response::Parts;

use super::super::fetch::{Again, Failure};

/// Longest tag taken for one. Bytes.
const TAG_MAX: usize = 1024;

/// Bytes asked for, the last one included. There is one at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Range {
    /// The headers that ask for it, as it is stored.
    pub(super) fn headers(self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let range = format!("bytes={}-{}", self.first, self.last);
        headers.insert(RANGE, HeaderValue::try_from(range).expect("digits are visible ASCII"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers
    }

    fn length(self) -> u64 {
        self.last - self.first + 1
    }
}

/// What tells the object that was opened from another one at the same place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pin {
    /// Bytes.
    pub(super) size: u64,
    /// Its tag, as the server writes it.
    pub(super) tag: Option<String>,
    /// When it was changed last, as the server writes it.
    pub(super) modified: Option<String>,
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "size={}", self.size)?;
        match (&self.tag, &self.modified) {
            (Some(tag), _) => write!(f, " etag={tag}"),
            (None, Some(modified)) => write!(f, " modified={modified}"),
            (None, None) => Ok(()),
        }
    }
}

impl Pin {
    /// Asks the server to refuse where the object is another one.
    pub(super) fn demand(&self, headers: &mut HeaderMap) {
        let value = |text: &str| HeaderValue::from_str(text).expect("it came in a header");
        match (&self.tag, &self.modified) {
            // A weak tag matches nothing here (RFC 9110, 13.1.1); the answers are compared instead.
            (Some(tag), _) if !tag.starts_with("W/") => drop(headers.insert(IF_MATCH, value(tag))),
            (_, Some(modified)) => drop(headers.insert(IF_UNMODIFIED_SINCE, value(modified))),
            _ => {}
        }
    }

    /// What an answer says that the object opened does not have: it has been changed.
    pub(super) fn difference(&self, answer: &Parts) -> Option<String> {
        match answer.status {
            StatusCode::PRECONDITION_FAILED => Some("its tag or its time".to_owned()),
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                let total = total_of(answer).filter(|t| *t != self.size);
                if let Some(total) = total {
                    return Some(format!("its length, from {} to {total}", self.size));
                }
                let is_range = answer.status == StatusCode::PARTIAL_CONTENT;
                let other = |ours: &Option<String>, name: HeaderName| {
                    let theirs = text_of(answer, &name).filter(|_| is_range)?;
                    ours.as_ref().filter(|o| **o != theirs).map(|o| format!("from {o} to {theirs}"))
                };
                let tag = other(&self.tag, ETAG).map(|what| format!("its tag, {what}"));
                // Behind a strong tag the time says nothing more, and mirrors may differ in it.
                let has_strong_tag = self.tag.as_ref().is_some_and(|t| !t.starts_with("W/"));
                tag.or_else(|| {
                    let time = other(&self.modified, LAST_MODIFIED).filter(|_| !has_strong_tag);
                    time.map(|what| format!("its time, {what}"))
                })
            }
            _ => None,
        }
    }
}

/// The pin of an object of which this is an answer.
///
/// # Errors
/// `Unsupported` (5) where its bytes are encoded in some way.
pub(super) fn pin_of(answer: &Parts, size: u64) -> Result<Pin> {
    if is_encoded(answer) {
        let text = "the server sends the object encoded only, not as it is";
        return Err(Error::unsupported(text).errno_is(Errno::EIO));
    }
    let size =
        i64::try_from(size).map(|_| size).map_err(|_| Error::invalid("the object is far too large"))?;
    Ok(Pin { size, tag: text_of(answer, &ETAG), modified: text_of(answer, &LAST_MODIFIED) })
}

/// Checks that an answer is 206 with the range that was asked for, of the object that was opened.
///
/// # Errors
/// What the server did instead.
pub(super) fn check(answer: &Parts, asked: Range, pin: &Pin) -> Result<(), Failure> {
    if answer.status != StatusCode::PARTIAL_CONTENT {
        return Err(refusal(answer));
    }
    let wrong =
        |text: &'static str| Failure::later(Error::new(ErrorKind::Unavailable, text).errno_is(Errno::EIO));
    if content_range(answer) != Some((asked, pin.size)) {
        return Err(Failure::later(wrong_range(answer, asked)));
    }
    if is_encoded(answer) {
        return Err(wrong("the server sends the object encoded, not as it is"));
    }
    if length_of(answer).is_some_and(|l| l != asked.length()) {
        return Err(wrong("the length of the server's answer is not that of the range"));
    }
    if (pin.tag.is_some() && text_of(answer, &ETAG) != pin.tag)
        || (pin.tag.is_none() && text_of(answer, &LAST_MODIFIED) != pin.modified)
    {
        return Err(wrong("the server does not say which object its answer is of"));
    }
    Ok(())
}

/// The error of a 206 that is not the range asked for.
pub(super) fn wrong_range(answer: &Parts, asked: Range) -> Error {
    let said = text_of(answer, &CONTENT_RANGE).unwrap_or_else(|| "none".to_owned());
    Error::new(ErrorKind::Unavailable, "the server answers with another range than it was asked for")
        .errno_is(Errno::EIO)
        .with("asked", format!("{}-{}", asked.first, asked.last))
        .with("answered", said)
}

/// The error of an answer that is not 206.
pub(super) fn refusal(answer: &Parts) -> Failure {
    let status = answer.status;
    let error = |kind, text: &'static str, errno| {
        Error::new(kind, text).errno_is(errno).with("status", status.as_u16())
    };
    let error = match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            error(ErrorKind::NotFound, "requested resource does not exist", Errno::ENOENT)
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            error(ErrorKind::Denied, "permission denied attempting to access resource", Errno::EACCES)
        }
        StatusCode::OK => error(
            ErrorKind::Unsupported,
            "the server does not serve ranges: it answered with 200 where 206 was due",
            Errno::EIO,
        ),
        _ => error(ErrorKind::Unavailable, "the server refuses", Errno::EIO),
    };
    let again = if is_passing(status) { Again::Soon(retry_after(answer)) } else { Again::Later };
    Failure { error, again }
}

/// Whether a status says that it will pass.
pub(super) fn is_passing(status: StatusCode) -> bool {
    let is_lasting = matches!(status, StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED);
    let is_busy =
        matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS);
    (status.is_server_error() && !is_lasting) || is_busy
}

/// Where an answer redirects to.
pub(super) fn redirect_of(answer: &Parts) -> Option<String> {
    let is_redirect = matches!(
        answer.status,
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    );
    is_redirect.then(|| answer.headers.get(LOCATION)?.to_str().ok().map(str::to_owned)).flatten()
}

/// The length of the body, where it is told once.
pub(super) fn length_of(answer: &Parts) -> Option<u64> {
    number(answer.headers.get(CONTENT_LENGTH)?.to_str().ok()?)
}

/// The length of the object, of which the answer is a part or none.
pub(super) fn total_of(answer: &Parts) -> Option<u64> {
    let text = answer.headers.get(CONTENT_RANGE)?.to_str().ok()?;
    number(text.strip_prefix("bytes ")?.split_once('/')?.1)
}

fn content_range(answer: &Parts) -> Option<(Range, u64)> {
    let text = answer.headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let range = Range { first: number(first)?, last: number(last)? };
    Some((range, number(total)?))
}

/// Digits and nothing else.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn retry_after(answer: &Parts) -> Option<Duration> {
    number(answer.headers.get(RETRY_AFTER)?.to_str().ok()?).map(Duration::from_secs)
}

fn is_encoded(answer: &Parts) -> bool {
    answer.headers.get_all(CONTENT_ENCODING).iter().any(|v| v.as_bytes() != b"identity")
}

/// A header that is there once, in visible ASCII and not too long.
fn text_of(answer: &Parts, name: &HeaderName) -> Option<String> {
    let mut values = answer.headers.get_all(name).iter();
    let value = values.next().filter(|_| values.next().is_none())?.to_str().ok()?;
    let is_fit =
        !value.is_empty() && value.len() <= TAG_MAX && value.bytes().all(|b| (0x20..0x7f).contains(&b));
    is_fit.then(|| value.to_owned())
}
