//! What is said before the first request: encryption, structured replies, the context of holes, the export.
//!
//! Invariants
//! - What the server sends is bounded: 64 KiB in an answer, 64 answers to an option.

use std::io;

use ferry_core::{Errno, Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::wire::{self, Ask, Info, Refusal, Verdict};

/// Longest data of an answer to an option. Bytes.
const ANSWER_MAX: u32 = 64 << 10;
/// Most answers to one option.
const ANSWERS_MAX: usize = 64;
/// Longest request where the server does not say. Bytes.
const REQUEST_MAX: u32 = 32 << 20;
/// Largest unit of requests; NBD allows none above.
const UNIT_MAX: u32 = 64 << 10;

/// What was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreement {
    /// Size of the export. Bytes.
    pub(super) size: u64,
    /// Whether several connections see the same.
    pub(super) is_shared: bool,
    /// Requests start and end at multiples of this. Bytes.
    pub(super) unit: u32,
    /// Longest request for bytes, a multiple of the unit. Bytes.
    pub(super) request_max: u32,
    /// Whether replies come in chunks.
    pub(super) is_structured: bool,
    /// The number of the context that tells of holes.
    pub(super) context: Option<u32>,
}

/// Greets the server.
///
/// # Errors
/// `Unsupported` where it is none of NBD's fixed newstyle.
pub(super) async fn greet<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<u16> {
    let first = stream.read_u64().await.map_err(broken)?;
    if first != wire::GREETING {
        return Err(Error::unsupported("who answers there speaks no NBD"));
    }
    if stream.read_u64().await.map_err(broken)? != wire::NEWSTYLE {
        return Err(Error::unsupported("the NBD server is of the old style"));
    }
    let flags = stream.read_u16().await.map_err(broken)?;
    if flags & wire::FIXED == 0 {
        return Err(Error::unsupported("the NBD server is of the old style"));
    }
    let ours = flags & (wire::FIXED | wire::NO_ZEROES);
    stream.write_u32(u32::from(ours)).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;
    Ok(ours)
}

/// Asks to go on encrypted.
///
/// # Errors
/// `Denied` where the server will not.
pub(super) async fn ask_for_tls<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<()> {
    send(stream, Ask::Encrypt, &[]).await?;
    match answer(stream, Ask::Encrypt).await?.0 {
        Verdict::Granted => Ok(()),
        _ => Err(Error::new(ErrorKind::Denied, "the NBD server does not speak TLS")),
    }
}

/// Agrees on an export.
///
/// # Errors
/// `NotFound` (2) for an export that is not there; `Denied` (13) where the server will not; `Corrupt` (5) for answers that
/// make no sense.
pub(super) async fn agree<S>(stream: &mut S, flags: u16, export: &str) -> Result<Agreement>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    send(stream, Ask::Structured, &[]).await?;
    let is_structured = match answer(stream, Ask::Structured).await?.0 {
        Verdict::Granted => true,
        Verdict::Refused(Refusal::NeedsTls) => return Err(refused(Refusal::NeedsTls)),
        _ => false,
    };
    let context = if is_structured { ask_for_context(stream, export).await? } else { None };
    let mut agreement =
        Agreement { size: 0, is_shared: false, unit: 1, request_max: REQUEST_MAX, is_structured, context };
    send(stream, Ask::Go, &wire::go(export)).await?;
    let mut has_export = false;
    for _ in 0..ANSWERS_MAX {
        let (verdict, data) = answer(stream, Ask::Go).await?;
        match verdict {
            Verdict::Granted if has_export => return checked(agreement),
            Verdict::Granted => return Err(senseless("the server gives an export without telling its size")),
            Verdict::Info => match wire::info(&data).ok_or_else(|| senseless("what it tells is cut"))? {
                Info::Export { size, flags } => {
                    has_export = true;
                    agreement.size = size;
                    agreement.is_shared = flags & wire::MULTI_CONN != 0;
                }
                Info::BlockSize { least, most } => (agreement.unit, agreement.request_max) = (least, most),
                Info::Other => {}
            },
            Verdict::Unknown => return by_name(stream, flags, export, agreement).await,
            Verdict::Refused(refusal) => return Err(refused(refusal).with("export", format!("{export:?}"))),
            Verdict::Context | Verdict::Other => return Err(senseless("an answer to another question")),
        }
    }
    Err(senseless("it never ends"))
}

/// The number of the context of holes, where the server has it.
async fn ask_for_context<S>(stream: &mut S, export: &str) -> Result<Option<u32>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    send(stream, Ask::Context, &wire::context(export)).await?;
    let mut context = None;
    for _ in 0..ANSWERS_MAX {
        let (verdict, data) = answer(stream, Ask::Context).await?;
        match verdict {
            Verdict::Granted => return Ok(context),
            Verdict::Context => {
                let (number, name) =
                    data.split_first_chunk::<4>().ok_or_else(|| senseless("a context is cut"))?;
                if name == wire::ALLOCATION {
                    context = Some(u32::from_be_bytes(*number));
                }
            }
            Verdict::Unknown | Verdict::Refused(_) => return Ok(None),
            Verdict::Info | Verdict::Other => return Err(senseless("an answer to another question")),
        }
    }
    Err(senseless("it never ends"))
}

/// The way of servers that know no better: the answer is the export, or the end of the connection.
async fn by_name<S>(stream: &mut S, flags: u16, export: &str, mut agreement: Agreement) -> Result<Agreement>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    send(stream, Ask::ExportName, export.as_bytes()).await?;
    let size = stream.read_u64().await.map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => refused(Refusal::NoSuchExport).with("export", format!("{export:?}")),
        _ => broken(e),
    })?;
    agreement.size = size;
    agreement.is_shared = stream.read_u16().await.map_err(broken)? & wire::MULTI_CONN != 0;
    if flags & wire::NO_ZEROES == 0 {
        stream.read_exact(&mut [0; 124]).await.map_err(broken)?;
    }
    checked(agreement)
}

fn checked(mut agreement: Agreement) -> Result<Agreement> {
    let (unit, most) = (agreement.unit, agreement.request_max);
    if !unit.is_power_of_two() || unit > UNIT_MAX || most < unit {
        return Err(senseless("the sizes of its blocks").with("least", unit).with("most", most));
    }
    if i64::try_from(agreement.size).is_err() {
        return Err(senseless("the size of the export").with("size", agreement.size));
    }
    agreement.request_max = most.min(REQUEST_MAX) / unit * unit;
    Ok(agreement)
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, ask: Ask, data: &[u8]) -> Result<()> {
    stream.write_all(&ask.with(data)).await.map_err(broken)?;
    stream.flush().await.map_err(broken)
}

async fn answer<S: AsyncRead + Unpin>(stream: &mut S, ask: Ask) -> Result<(Verdict, Vec<u8>)> {
    let mut head = [0; wire::ANSWER_HEAD];
    stream.read_exact(&mut head).await.map_err(broken)?;
    let (verdict, length) =
        wire::verdict(&head, ask).ok_or_else(|| senseless("an answer to another question"))?;
    if length > ANSWER_MAX {
        return Err(senseless("an answer is far too long").with("length", length));
    }
    let mut data = vec![0; usize::try_from(length).expect("64 KiB fit in memory")];
    stream.read_exact(&mut data).await.map_err(broken)?;
    Ok((verdict, data))
}

fn refused(refusal: Refusal) -> Error {
    match refusal {
        Refusal::NoSuchExport => Error::not_found("the NBD server has no such export"),
        Refusal::NeedsTls => Error::new(ErrorKind::Denied, "the NBD server wants TLS: use nbds://"),
        Refusal::NotAllowed => Error::new(ErrorKind::Denied, "the NBD server refuses"),
        Refusal::Stopping => Error::new(ErrorKind::Unavailable, "the NBD server is stopping"),
        Refusal::Malformed => {
            Error::new(ErrorKind::Unavailable, "the NBD server refuses").errno_is(Errno::EIO)
        }
    }
}

/// The error of a server that breaks the protocol.
pub(super) fn senseless(what: &'static str) -> Error {
    Error::corrupt("the NBD server's answer makes no sense").with("what", what)
}

/// The error of a connection that broke.
pub(super) fn broken(error: io::Error) -> Error {
    let text = "the connection to the NBD server broke";
    Error::new(ErrorKind::Unavailable, text).errno_is(Errno::EIO).because(error)
}
