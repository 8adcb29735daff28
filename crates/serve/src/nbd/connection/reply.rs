//! Replies put together, simple or in chunks.

use bytes::{BufMut, Bytes};

use super::output::Output;
use crate::nbd::budget::Lease;
use crate::nbd::wire::{Request, WireError, chunk, command_flag, put_chunk, put_simple};

/// A read that comes back as zeros is told as a hole from this size on. Bytes.
const HOLE_MIN: usize = 512;
/// Zeros to pad a promised chunk with.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What is said of a device that does not keep to its contract.
pub(super) const OTHER_LENGTH: &str = "the device gave another length than was asked for";

/// A failure, as the client will hear of it.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// The number.
    pub(super) error: WireError,
    /// For people; only structured replies carry it.
    pub(super) text: String,
}

impl Failure {
    /// A failure that we found ourselves.
    pub(super) fn new(error: WireError, text: &str) -> Self {
        Self { error, text: text.to_owned() }
    }

    /// A failure of the device.
    pub(super) fn of(error: &ferry_core::Error) -> Self {
        Self { error: crate::nbd::errno::wire_error(error), text: error.clause().to_owned() }
    }
}

/// How a client wants to be answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// In chunks.
    pub(super) is_structured: bool,
}

impl Style {
    /// Success without data.
    pub(super) fn done(self, out: &mut Output, cookie: u64) {
        out.head(|out| {
            if self.is_structured {
                put_chunk(out, chunk::NONE, chunk::DONE, cookie, 0);
            } else {
                put_simple(out, cookie, None);
            }
        });
    }

    /// Failure.
    pub(super) fn failed(self, out: &mut Output, cookie: u64, failure: &Failure) {
        out.head(|out| {
            if self.is_structured {
                let (text, length) = text_of(failure);
                put_chunk(out, chunk::ERROR, chunk::DONE, cookie, 6 + u32::from(length));
                out.put_u32(failure.error.number());
                out.put_u16(length);
                out.put_slice(text);
            } else {
                put_simple(out, cookie, Some(failure.error));
            }
        });
    }

    /// All of what a read asked for.
    pub(super) fn data(self, out: &mut Output, request: &Request, data: Bytes, lease: Option<Lease>) {
        if self.is_structured {
            let part = Part { offset: request.offset, is_last: true };
            self.chunk(out, request, part, data, lease);
        } else {
            out.head(|out| put_simple(out, request.cookie, None));
            out.data(data, lease);
        }
    }

    /// A part of it; the style is structured.
    pub(super) fn chunk(
        self,
        out: &mut Output,
        request: &Request,
        part: Part,
        data: Bytes,
        lease: Option<Lease>,
    ) {
        let flags = if part.is_last { chunk::DONE } else { 0 };
        if data.len() >= HOLE_MIN && !request.has(command_flag::DF) && is_zero(&data) {
            out.head(|out| {
                put_chunk(out, chunk::OFFSET_HOLE, flags, request.cookie, 12);
                out.put_u64(part.offset);
                out.put_u32(length_of(&data));
            });
            return;
        }
        out.head(|out| {
            put_chunk(out, chunk::OFFSET_DATA, flags, request.cookie, 8 + length_of(&data));
            out.put_u64(part.offset);
        });
        out.data(data, lease);
    }

    /// Promises all of what a read asked for, to follow as [`Output::data`] in pieces, without a chunk of its own for each.
    pub(super) fn promise(self, out: &mut Output, request: &Request) {
        out.head(|out| {
            if self.is_structured {
                put_chunk(out, chunk::OFFSET_DATA, 0, request.cookie, 8 + request.length);
                out.put_u64(request.offset);
            } else {
                put_simple(out, request.cookie, None);
            }
        });
    }

    /// Takes back a promised chunk of which `left` bytes are missing, having sent them as zeros; the style is structured.
    pub(super) fn broken(self, out: &mut Output, request: &Request, left: u64, failure: &Failure) {
        let mut missing = usize::try_from(left).expect("a read fits memory");
        while missing > 0 {
            let part = missing.min(ZEROS.len());
            out.data(Bytes::from_static(&ZEROS[..part]), None);
            missing -= part;
        }
        out.head(|out| {
            let (text, length) = text_of(failure);
            put_chunk(out, chunk::ERROR_OFFSET, chunk::DONE, request.cookie, 14 + u32::from(length));
            out.put_u32(failure.error.number());
            out.put_u16(length);
            out.put_slice(text);
            out.put_u64(request.offset + u64::from(request.length) - left);
        });
    }

    /// What a range holds: one chunk for each context.
    pub(super) fn status(self, out: &mut Output, cookie: u64, contexts: &[Extents]) {
        for (i, extents) in contexts.iter().enumerate() {
            let flags = if i + 1 == contexts.len() { chunk::DONE } else { 0 };
            let size = 4 + 8 * u32::try_from(extents.parts.len()).expect("extents of a reply are few");
            out.head(|out| {
                put_chunk(out, chunk::BLOCK_STATUS, flags, cookie, size);
                out.put_u32(extents.id);
                for (length, status) in &extents.parts {
                    put_extent(out, *length, *status);
                }
            });
        }
    }
}

/// A part of a read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// Where it starts.
    pub(super) offset: u64,
    /// Whether it ends the reply.
    pub(super) is_last: bool,
}

/// What a context says of a range, from its start.
#[derive(Debug)]
pub(super) struct Extents {
    /// The context's number.
    pub(super) id: u32,
    /// Lengths and flags.
    pub(super) parts: Vec<(u32, u32)>,
}

fn put_extent(out: &mut Vec<u8>, length: u32, status: u32) {
    out.put_u32(length);
    out.put_u32(status);
}

fn length_of(data: &[u8]) -> u32 {
    u32::try_from(data.len()).expect("a piece is smaller than a request")
}

/// A text that fits into a chunk.
fn text_of(failure: &Failure) -> (&[u8], u16) {
    let text = &failure.text.as_bytes()[..failure.text.len().min(1024)];
    (text, u16::try_from(text.len()).expect("at most 1024"))
}

/// Whether all bytes are zero. For bytes that are not, this looks at a few only.
fn is_zero(data: &[u8]) -> bool {
    let n = data.len().min(16);
    let is_maybe = data[..n].iter().all(|b| *b == 0) && data[data.len() / 2] == 0;
    // Equal to itself shifted by 16: every byte equals the zero 16 before it.
    is_maybe && data[n..] == data[..data.len() - n]
}

#[cfg(test)]
mod tests {
    use super::is_zero;

    #[test]
    fn one_byte_makes_a_block_not_zero() {
        let mut block = vec![0; 4096];
        assert!(is_zero(&block));
        for at in [0, 15, 16, 17, 2047, 2048, 4095] {
            block[at] = 1;
            assert!(!is_zero(&block), "{at}");
            block[at] = 0;
        }
    }
}
