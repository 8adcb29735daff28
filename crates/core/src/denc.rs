//! Ceph's wire encoding: little-endian numbers, length-prefixed strings, versioned frames.
//!
//! A decoder never panics and never allocates more than the bytes it was given.

use bytes::Bytes;

use crate::env::Timestamp;
use crate::error::{Error, Result};

/// Writes Ceph encodings.
#[derive(Debug, Default)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What was written.
    #[must_use]
    pub fn finish(self) -> Bytes {
        Bytes::from(self.bytes)
    }

    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// A bool as one byte.
    pub fn bool(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) {
        self.raw(&value.to_le_bytes());
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.raw(&value.to_le_bytes());
    }

    /// Eight bytes, signed.
    pub fn i64(&mut self, value: i64) {
        self.raw(&value.to_le_bytes());
    }

    /// Four bytes, signed.
    pub fn i32(&mut self, value: i32) {
        self.raw(&value.to_le_bytes());
    }

    /// Length and bytes.
    ///
    /// # Panics
    /// If they are 4 GiB or more.
    pub fn blob(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).expect("a blob is shorter than 4 GiB"));
        self.raw(bytes);
    }

    /// Length and text.
    pub fn string(&mut self, text: &str) {
        self.blob(text.as_bytes());
    }

    /// Seconds and nanoseconds.
    pub fn timestamp(&mut self, time: Timestamp) {
        self.u32(time.seconds);
        self.u32(time.nanoseconds);
    }

    /// `optional<u64>`.
    pub fn optional_u64(&mut self, value: Option<u64>) {
        match value {
            None => self.u8(0),
            Some(v) => {
                self.u8(1);
                self.u64(v);
            }
        }
    }

    /// A versioned frame: version, oldest reader that understands it, length, body.
    ///
    /// # Panics
    /// If the body is 4 GiB or more.
    pub fn frame(&mut self, version: u8, compat: u8, body: impl FnOnce(&mut Self)) {
        self.u8(version);
        self.u8(compat);
        let at = self.bytes.len();
        self.u32(0);
        body(self);
        let length = u32::try_from(self.bytes.len() - at - 4).expect("a frame is shorter than 4 GiB");
        self.bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }
}

/// Reads Ceph encodings out of a slice.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    bytes: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Reads from the start of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Bytes not yet read.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    /// Fails unless everything was read.
    ///
    /// # Errors
    /// `Corrupt` where bytes are left over.
    pub fn expect_end(&self) -> Result<()> {
        if self.bytes.is_empty() {
            Ok(())
        } else {
            Err(Error::corrupt("bytes left over after an encoded value").with("bytes", self.bytes.len()))
        }
    }

    /// The next `n` bytes.
    ///
    /// # Errors
    /// `Corrupt` where there are fewer; so for all the readers below.
    pub fn raw(&mut self, n: usize) -> Result<&'a [u8]> {
        let Some((head, tail)) = self.bytes.split_at_checked(n) else {
            return Err(Error::corrupt("an encoded value is cut short")
                .with("wanted", n)
                .with("present", self.bytes.len()));
        };
        self.bytes = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.raw(N)?);
        Ok(out)
    }

    /// One byte.
    ///
    /// # Errors
    /// `Corrupt` at the end.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// A bool.
    ///
    /// # Errors
    /// `Corrupt` at the end.
    pub fn bool(&mut self) -> Result<bool> {
        Ok(self.u8()? != 0)
    }

    /// Two bytes.
    ///
    /// # Errors
    /// `Corrupt` at the end.
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes.
    ///
    /// # Errors
    /// `Corrupt` at the end.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// `Corrupt` at the end.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Eight bytes, signed.
    ///
    /// # Errors
    /// `Corrupt` at the end.
    pub fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// Four bytes, signed.
    ///
    /// # Errors
    /// `Corrupt` at the end.
    pub fn i32(&mut self) -> Result<i32> {
        Ok(i32::from_le_bytes(self.array()?))
    }

    /// Length and bytes.
    ///
    /// # Errors
    /// `Corrupt` where they are not there.
    pub fn blob(&mut self) -> Result<&'a [u8]> {
        let n = self.u32()?;
        self.raw(n as usize)
    }

    /// Length and text.
    ///
    /// # Errors
    /// `Corrupt` where it is not there or not UTF-8.
    pub fn string(&mut self) -> Result<String> {
        let bytes = self.blob()?;
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|e| Error::corrupt("an encoded text is not UTF-8").because(e))
    }

    /// Seconds and nanoseconds.
    ///
    /// # Errors
    /// `Corrupt` at the end.
    pub fn timestamp(&mut self) -> Result<Timestamp> {
        Ok(Timestamp { seconds: self.u32()?, nanoseconds: self.u32()? })
    }

    /// `optional<u64>`.
    ///
    /// # Errors
    /// `Corrupt` at the end.
    pub fn optional_u64(&mut self) -> Result<Option<u64>> {
        if self.bool()? { Ok(Some(self.u64()?)) } else { Ok(None) }
    }

    /// A versioned frame. `body` gets the frame's bytes and its version; what it leaves unread is skipped.
    ///
    /// # Errors
    /// `Unsupported` where only readers newer than `known` understand it; `Corrupt` where it is cut short.
    pub fn frame<T>(&mut self, known: u8, body: impl FnOnce(&mut Self, u8) -> Result<T>) -> Result<T> {
        let version = self.u8()?;
        let compat = self.u8()?;
        if compat > known {
            return Err(Error::unsupported("an encoded value is of a newer version")
                .with("needs", compat)
                .with("known", known));
        }
        let bytes = self.blob()?;
        body(&mut Self::new(bytes), version)
    }
}

#[cfg(test)]
mod tests {
    use super::{Decoder, Encoder};

    #[test]
    fn a_frame_skips_what_a_newer_writer_added() {
        let mut e = Encoder::new();
        e.frame(9, 1, |e| {
            e.u32(7);
            e.string("newer");
        });
        e.u8(42);
        let bytes = e.finish();
        let mut d = Decoder::new(&bytes);
        assert_eq!(d.frame(1, |d, v| Ok((d.u32()?, v))).unwrap(), (7, 9));
        assert_eq!(d.u8().unwrap(), 42);
        d.expect_end().unwrap();
    }

    #[test]
    fn short_bytes_are_corrupt_at_every_length() {
        let mut e = Encoder::new();
        e.frame(1, 1, |e| e.string("hello"));
        let bytes = e.finish();
        for n in 0..bytes.len() {
            assert!(Decoder::new(&bytes[..n]).frame(1, |d, _| d.string()).is_err(), "{n}");
        }
    }
}
