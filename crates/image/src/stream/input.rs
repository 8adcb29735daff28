//! Reading numbers and texts off a stream that may end or lie at any point.

use std::io::{ErrorKind as IoKind, Read};

use ferry_core::{Errno, Error, Result};

/// A stream being read.
#[derive(Debug)]
pub(crate) struct Input<R> {
    inner: R,
}

impl<R: Read> Input<R> {
    /// Reads from here on.
    pub(crate) fn new(inner: R) -> Self {
        Self { inner }
    }

    /// Fills `buffer`.
    ///
    /// # Errors
    /// `Corrupt` (74) where the stream ends before; those of the stream. So for all below.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.inner.read_exact(buffer).map_err(|e| match e.kind() {
            IoKind::UnexpectedEof => cut_short(),
            _ => Error::io("cannot read the stream", e),
        })
    }

    /// One byte.
    pub(crate) fn u8(&mut self) -> Result<u8> {
        let mut bytes = [0; 1];
        self.fill(&mut bytes)?;
        Ok(bytes[0])
    }

    /// Four bytes.
    pub(crate) fn u32(&mut self) -> Result<u32> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Eight bytes.
    pub(crate) fn u64(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// `length` bytes, which need not be there: memory grows with what comes.
    pub(crate) fn bytes(&mut self, length: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = (&mut self.inner)
            .take(length)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io("cannot read the stream", e))?;
        if read as u64 != length {
            return Err(cut_short());
        }
        Ok(bytes)
    }

    /// A text of at most `max` bytes with its length before it.
    pub(crate) fn string(&mut self, max: u32) -> Result<String> {
        let length = self.u32()?;
        if length > max {
            return Err(malformed("a text in the stream is too long").with("bytes", length));
        }
        let bytes = self.bytes(u64::from(length))?;
        String::from_utf8(bytes).map_err(|_| malformed("a text in the stream is not UTF-8"))
    }

    /// Passes over `length` bytes.
    pub(crate) fn skip(&mut self, length: u64) -> Result<()> {
        let copied = std::io::copy(&mut (&mut self.inner).take(length), &mut std::io::sink())
            .map_err(|e| Error::io("cannot read the stream", e))?;
        if copied == length { Ok(()) } else { Err(cut_short()) }
    }

    /// Checks the line a section begins with.
    pub(crate) fn banner(&mut self, expected: &'static str) -> Result<()> {
        let found = self.bytes(expected.len() as u64)?;
        if found != expected.as_bytes() {
            return Err(
                malformed("the stream does not begin as expected").with("expected", expected.trim_end())
            );
        }
        Ok(())
    }
}

/// The stream ends before what it announced.
fn cut_short() -> Error {
    Error::corrupt("the stream is cut short").errno_is(Errno::EBADMSG)
}

/// The stream holds what no writer would have written.
pub(crate) fn malformed(clause: &'static str) -> Error {
    Error::corrupt(clause).errno_is(Errno::EINVAL)
}
