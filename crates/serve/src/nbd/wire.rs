//! What goes over the wire: numbers, requests and replies. Big-endian throughout.
//!
//! # Source
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>; what of it is served: `docs/protocol/nbd.md`.

#[cfg(test)]
mod tests;

use bytes::{Buf, BufMut};

/// First bytes of a connection: `NBDMAGIC`.
pub(super) const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Introduces options, both ways: `IHAVEOPT`.
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Introduces the reply to an option.
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Introduces a request.
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Introduces a simple reply.
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Introduces a chunk of a structured reply.
pub(super) const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Size of a request without its payload. Bytes.
pub(super) const REQUEST_SIZE: usize = 28;
/// Size of an option without its data. Bytes.
pub(super) const OPTION_SIZE: usize = 16;

/// What the server says of itself first.
pub(super) mod handshake_flag {
    /// The server speaks fixed newstyle.
    pub(in crate::nbd) const FIXED_NEWSTYLE: u16 = 1;
    /// The server can leave out 124 zeros.
    pub(in crate::nbd) const NO_ZEROES: u16 = 2;
}

/// What the client answers.
pub(super) mod client_flag {
    /// The client speaks fixed newstyle.
    pub(in crate::nbd) const FIXED_NEWSTYLE: u32 = 1;
    /// The client does without 124 zeros.
    pub(in crate::nbd) const NO_ZEROES: u32 = 2;
}

/// Options of the negotiation.
pub(super) mod option {
    /// Attach; no error can be told.
    pub(in crate::nbd) const EXPORT_NAME: u32 = 1;
    /// Go away.
    pub(in crate::nbd) const ABORT: u32 = 2;
    /// Name all exports.
    pub(in crate::nbd) const LIST: u32 = 3;
    /// Go on encrypted.
    pub(in crate::nbd) const STARTTLS: u32 = 5;
    /// Tell about an export.
    pub(in crate::nbd) const INFO: u32 = 6;
    /// Attach.
    pub(in crate::nbd) const GO: u32 = 7;
    /// Answer in chunks.
    pub(in crate::nbd) const STRUCTURED_REPLY: u32 = 8;
    /// Name the meta contexts of an export.
    pub(in crate::nbd) const LIST_META_CONTEXT: u32 = 9;
    /// Select meta contexts of an export.
    pub(in crate::nbd) const SET_META_CONTEXT: u32 = 10;
}

/// Kinds of replies to options.
pub(super) mod option_reply {
    /// Done.
    pub(in crate::nbd) const ACK: u32 = 1;
    /// An export.
    pub(in crate::nbd) const SERVER: u32 = 2;
    /// Something about an export.
    pub(in crate::nbd) const INFO: u32 = 3;
    /// A meta context and its number.
    pub(in crate::nbd) const META_CONTEXT: u32 = 4;
    /// Not known.
    pub(in crate::nbd) const ERR_UNSUP: u32 = 0x8000_0001;
    /// Known, and not allowed.
    pub(in crate::nbd) const ERR_POLICY: u32 = 0x8000_0002;
    /// The data makes no sense, or comes at the wrong time.
    pub(in crate::nbd) const ERR_INVALID: u32 = 0x8000_0003;
    /// Not before TLS.
    pub(in crate::nbd) const ERR_TLS_REQD: u32 = 0x8000_0005;
    /// No such export.
    pub(in crate::nbd) const ERR_UNKNOWN: u32 = 0x8000_0006;
    /// Too much data.
    pub(in crate::nbd) const ERR_TOO_BIG: u32 = 0x8000_0009;
}

/// What can be told about an export.
pub(super) mod info {
    /// Size and flags.
    pub(in crate::nbd) const EXPORT: u16 = 0;
    /// Its proper name.
    pub(in crate::nbd) const NAME: u16 = 1;
    /// A text for people.
    pub(in crate::nbd) const DESCRIPTION: u16 = 2;
    /// Sizes of requests.
    pub(in crate::nbd) const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub(super) mod export_flag {
    /// The others mean something.
    pub(in crate::nbd) const HAS_FLAGS: u16 = 1;
    /// Writes are refused.
    pub(in crate::nbd) const READ_ONLY: u16 = 1 << 1;
    /// Knows FLUSH.
    pub(in crate::nbd) const SEND_FLUSH: u16 = 1 << 2;
    /// Knows FUA.
    pub(in crate::nbd) const SEND_FUA: u16 = 1 << 3;
    /// Knows TRIM.
    pub(in crate::nbd) const SEND_TRIM: u16 = 1 << 5;
    /// Knows WRITE_ZEROES.
    pub(in crate::nbd) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// Knows DF.
    pub(in crate::nbd) const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection holds for all.
    pub(in crate::nbd) const CAN_MULTI_CONN: u16 = 1 << 8;
    /// Knows CACHE.
    pub(in crate::nbd) const SEND_CACHE: u16 = 1 << 10;
    /// Knows FAST_ZERO.
    pub(in crate::nbd) const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Modifiers of a request.
pub(super) mod command_flag {
    /// Durable before it is answered.
    pub(in crate::nbd) const FUA: u16 = 1;
    /// Keep the space.
    pub(in crate::nbd) const NO_HOLE: u16 = 1 << 1;
    /// One chunk only.
    pub(in crate::nbd) const DF: u16 = 1 << 2;
    /// One extent only.
    pub(in crate::nbd) const REQ_ONE: u16 = 1 << 3;
    /// Fail rather than be as slow as writing zeros.
    pub(in crate::nbd) const FAST_ZERO: u16 = 1 << 4;
}

/// Kinds of chunks.
pub(super) mod chunk {
    /// Nothing; ends a reply.
    pub(in crate::nbd) const NONE: u16 = 0;
    /// Data at an offset.
    pub(in crate::nbd) const OFFSET_DATA: u16 = 1;
    /// Zeros at an offset.
    pub(in crate::nbd) const OFFSET_HOLE: u16 = 2;
    /// Extents and their status.
    pub(in crate::nbd) const BLOCK_STATUS: u16 = 5;
    /// An error.
    pub(in crate::nbd) const ERROR: u16 = (1 << 15) + 1;
    /// An error, and where.
    pub(in crate::nbd) const ERROR_OFFSET: u16 = (1 << 15) + 2;
    /// Flag: the last chunk of a reply.
    pub(in crate::nbd) const DONE: u16 = 1;
}

/// Status flags of the context `base:allocation`.
pub(super) mod allocation {
    /// Nothing is stored, and it reads as zeros.
    pub(in crate::nbd) const HOLE_ZERO: u32 = 3;
    /// Stored.
    pub(in crate::nbd) const DATA: u32 = 0;
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Bytes.
    Read,
    /// Store bytes.
    Write,
    /// Go away.
    Disconnect,
    /// Make everything acknowledged durable.
    Flush,
    /// Give space back.
    Trim,
    /// Read ahead.
    Cache,
    /// Make a range read as zeros.
    WriteZeroes,
    /// What a range holds.
    BlockStatus,
    /// Nothing we know.
    Unknown,
}

impl Command {
    fn of(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            _ => Self::Unknown,
        }
    }

    /// The flags it may carry.
    pub(super) fn flags_allowed(self, is_structured: bool) -> u16 {
        let fua = command_flag::FUA;
        match self {
            // FUA means nothing on a read, but may be there.
            Self::Read => fua | if is_structured { command_flag::DF } else { 0 },
            Self::Write | Self::Trim | Self::Flush | Self::Cache => fua,
            Self::WriteZeroes => fua | command_flag::NO_HOLE | command_flag::FAST_ZERO,
            Self::BlockStatus => fua | command_flag::REQ_ONE,
            Self::Disconnect | Self::Unknown => u16::MAX,
        }
    }
}

/// A request as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Modifiers.
    pub(super) flags: u16,
    /// What is asked for.
    pub(super) command: Command,
    /// Comes back with the reply.
    pub(super) cookie: u64,
    /// From the start of the export. Bytes.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) length: u32,
}

impl Request {
    /// Takes a request apart; `None` where it does not start with its magic.
    pub(super) fn parse(bytes: &[u8; REQUEST_SIZE]) -> Option<Self> {
        let bytes = &mut bytes.as_slice();
        (bytes.get_u32() == REQUEST_MAGIC).then(|| Self {
            flags: bytes.get_u16(),
            command: Command::of(bytes.get_u16()),
            cookie: bytes.get_u64(),
            offset: bytes.get_u64(),
            length: bytes.get_u32(),
        })
    }

    /// Whether it carries this modifier.
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// One behind its last byte, unless there is no such number.
    pub(super) fn end(&self) -> Option<u64> {
        self.offset.checked_add(u64::from(self.length))
    }
}

/// Error numbers of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WireError {
    /// Not allowed; read-only.
    Permission,
    /// Input or output failed.
    Io,
    /// No memory.
    Memory,
    /// The request is wrong.
    Invalid,
    /// No room; a write past the end.
    NoSpace,
    /// Not supported.
    Unsupported,
    /// The server stops, or lost the right to go on.
    Shutdown,
}

impl WireError {
    /// The number.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Permission => 1,
            Self::Io => 5,
            Self::Memory => 12,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Unsupported => 95,
            Self::Shutdown => 108,
        }
    }
}

/// Appends a simple reply without its data.
pub(super) fn put_simple(out: &mut impl BufMut, cookie: u64, error: Option<WireError>) {
    out.put_u32(SIMPLE_REPLY_MAGIC);
    out.put_u32(error.map_or(0, WireError::number));
    out.put_u64(cookie);
}

/// Appends the head of a chunk that `length` bytes follow.
pub(super) fn put_chunk(out: &mut impl BufMut, kind: u16, flags: u16, cookie: u64, length: u32) {
    out.put_u32(CHUNK_MAGIC);
    out.put_u16(flags);
    out.put_u16(kind);
    out.put_u64(cookie);
    out.put_u32(length);
}

/// Appends a reply to an option.
pub(super) fn put_option_reply(out: &mut impl BufMut, option: u32, kind: u32, data: &[u8]) {
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(u32::try_from(data.len()).expect("our replies are short"));
    out.put_slice(data);
}
