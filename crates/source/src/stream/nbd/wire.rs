//! The client's half of the protocol, in bytes: options and requests to send, heads of replies to take apart. Big-endian.
//!
//! # Source
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>

use bytes::{Buf, BufMut, BytesMut};

/// What the server says first: `NBDMAGIC`.
pub(super) const GREETING: u64 = u64::from_be_bytes(*b"NBDMAGIC");
/// What introduces options, and what a server of today says next: `IHAVEOPT`.
pub(super) const NEWSTYLE: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_ANSWER: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE: u32 = 0x6744_6698;
const CHUNK: u32 = 0x668e_33ef;

/// The server can be negotiated with; and the client is one that can.
pub(super) const FIXED: u16 = 1;
/// No zeros where there once were some.
pub(super) const NO_ZEROES: u16 = 2;
/// A flag of an export: what one connection was told holds for all.
pub(super) const MULTI_CONN: u16 = 1 << 8;

/// The one context asked for.
pub(super) const ALLOCATION: &[u8] = b"base:allocation";
/// In it: reads as zeros.
pub(super) const READS_AS_ZEROS: u32 = 2;

/// Size of the head of an answer to an option. Bytes.
pub(super) const ANSWER_HEAD: usize = 20;

/// What a client asks for before it has an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Ask {
    ExportName = 1,
    Encrypt = 5,
    Go = 7,
    Structured = 8,
    Context = 10,
}

impl Ask {
    fn number(self) -> u32 {
        match self {
            Self::ExportName => 1,
            Self::Encrypt => 5,
            Self::Go => 7,
            Self::Structured => 8,
            Self::Context => 10,
        }
    }

    /// The option with its data.
    pub(super) fn with(self, data: &[u8]) -> BytesMut {
        let mut out = BytesMut::with_capacity(data.len() + 16);
        out.put_u64(NEWSTYLE);
        out.put_u32(self.number());
        out.put_u32(u32::try_from(data.len()).expect("a name has been checked to be short"));
        out.put_slice(data);
        out
    }
}

/// The data of [`Ask::Go`]: an export, and that its block sizes are kept to.
pub(super) fn go(export: &str) -> Vec<u8> {
    const BLOCK_SIZE: u16 = 3;
    let mut out = name(export);
    out.put_u16(1);
    out.put_u16(BLOCK_SIZE);
    out
}

/// The data of [`Ask::Context`].
pub(super) fn context(export: &str) -> Vec<u8> {
    let mut out = name(export);
    out.put_u32(1);
    out.put_u32(u32::try_from(ALLOCATION.len()).expect("15"));
    out.put_slice(ALLOCATION);
    out
}

fn name(export: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(export.len() + 32);
    out.put_u32(u32::try_from(export.len()).expect("a name has been checked to be short"));
    out.put_slice(export.as_bytes());
    out
}

/// What a server answers to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Done.
    Granted,
    /// Something about the export.
    Info,
    /// A context and its number.
    Context,
    /// It does not know the option.
    Unknown,
    /// It will not, and why.
    Refused(Refusal),
    /// What has no meaning here.
    Other,
}

/// Why a server will not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    NotAllowed,
    NeedsTls,
    NoSuchExport,
    Stopping,
    Malformed,
}

/// The head of an answer: what it answers with how many bytes of data. None where it answers something else.
pub(super) fn verdict(head: &[u8; ANSWER_HEAD], asked: Ask) -> Option<(Verdict, u32)> {
    let mut head = &head[..];
    if head.get_u64() != OPTION_ANSWER || head.get_u32() != asked.number() {
        return None;
    }
    const ERROR: u32 = 1 << 31;
    let verdict = match head.get_u32() {
        1 => Verdict::Granted,
        3 => Verdict::Info,
        4 => Verdict::Context,
        kind if kind == ERROR + 1 => Verdict::Unknown,
        kind if kind == ERROR + 2 => Verdict::Refused(Refusal::NotAllowed),
        kind if kind == ERROR + 5 => Verdict::Refused(Refusal::NeedsTls),
        kind if kind == ERROR + 6 => Verdict::Refused(Refusal::NoSuchExport),
        kind if kind == ERROR + 7 => Verdict::Refused(Refusal::Stopping),
        kind if kind & ERROR != 0 => Verdict::Refused(Refusal::Malformed),
        _ => Verdict::Other,
    };
    Some((verdict, head.get_u32()))
}

/// What was told about an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Info {
    Export { size: u64, flags: u16 },
    BlockSize { least: u32, most: u32 },
    Other,
}

/// Takes one apart; none where its length is not right.
pub(super) fn info(mut data: &[u8]) -> Option<Info> {
    match (data.try_get_u16().ok()?, data.len()) {
        (0, 10) => Some(Info::Export { size: data.get_u64(), flags: data.get_u16() }),
        (3, 12) => {
            let (least, _preferred) = (data.get_u32(), data.get_u32());
            Some(Info::BlockSize { least, most: data.get_u32() })
        }
        (0 | 3, _) => None,
        _ => Some(Info::Other),
    }
}

/// What is asked of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read,
    Disconnect,
    BlockStatus,
}

/// A request.
pub(super) fn request(command: Command, cookie: u64, offset: u64, length: u32) -> BytesMut {
    let mut out = BytesMut::with_capacity(28);
    out.put_u32(REQUEST);
    out.put_u16(0);
    out.put_u16(match command {
        Command::Read => 0,
        Command::Disconnect => 2,
        Command::BlockStatus => 7,
    });
    out.put_u64(cookie);
    out.put_u64(offset);
    out.put_u32(length);
    out
}

/// Size of the head of a simple reply, and of what of a chunk's head is common with it. Bytes.
pub(super) const REPLY_HEAD: usize = 16;
/// Size of what follows in the head of a chunk. Bytes.
pub(super) const CHUNK_LENGTH: usize = 4;

/// The head of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// The whole reply, with data where it is one to a read that succeeded.
    Simple { cookie: u64, error: u32 },
    /// A chunk; its length follows.
    Chunk { cookie: u64, kind: ChunkKind, is_last: bool },
}

/// What a chunk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChunkKind {
    Nothing,
    Data,
    Hole,
    Status,
    Error,
    Unknown,
}

/// Takes the head of a reply apart; none where it is none.
pub(super) fn head(bytes: &[u8; REPLY_HEAD]) -> Option<Head> {
    let mut bytes = &bytes[..];
    match bytes.get_u32() {
        SIMPLE => {
            let error = bytes.get_u32();
            Some(Head::Simple { cookie: bytes.get_u64(), error })
        }
        CHUNK => {
            let (flags, kind) = (bytes.get_u16(), bytes.get_u16());
            let kind = match kind {
                0 => ChunkKind::Nothing,
                1 => ChunkKind::Data,
                2 => ChunkKind::Hole,
                5 => ChunkKind::Status,
                // All kinds with the highest bit mean that the request failed, known or not.
                kind if kind & 1 << 15 != 0 => ChunkKind::Error,
                _ => ChunkKind::Unknown,
            };
            Some(Head::Chunk { cookie: bytes.get_u64(), kind, is_last: flags & 1 != 0 })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{ANSWER_HEAD, Ask, Info, REPLY_HEAD, head, info, verdict};

    #[test]
    fn what_is_no_answer_is_taken_for_none() {
        assert_eq!(verdict(&[0; ANSWER_HEAD], Ask::Go), None);
        assert_eq!(head(&[0; REPLY_HEAD]), None);
        assert_eq!((info(&[]), info(&[0, 0, 1]), info(&[0, 3, 1])), (None, None, None));
        assert_eq!(info(&[0, 1, 9, 9]), Some(Info::Other));
    }
}
