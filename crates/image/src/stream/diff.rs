//! One diff: what changed in an image between two points, as `rbd export-diff` writes it.

use std::io::{Read, Write};

use bytes::Bytes;
use ferry_core::denc::Encoder;
use ferry_core::{Error, Result};

use super::input::{Input, malformed};
use super::{PIECE_MAX, SNAP_NAME_MAX};

/// Tags of the records.
mod tag {
    pub(super) const FROM_SNAP: u8 = b'f';
    pub(super) const TO_SNAP: u8 = b't';
    pub(super) const PROTECTION: u8 = b'p';
    pub(super) const SIZE: u8 = b's';
    pub(super) const WRITE: u8 = b'w';
    pub(super) const ZERO: u8 = b'z';
    pub(super) const END: u8 = b'e';
}

/// How records are framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiffVersion {
    /// `export-diff`: no lengths, no protection status.
    V1,
    /// Inside `export --export-format 2`.
    V2,
}

impl DiffVersion {
    /// The line it begins with.
    #[must_use]
    pub fn banner(self) -> &'static str {
        match self {
            Self::V1 => "rbd diff v1\n",
            Self::V2 => "rbd diff v2\n",
        }
    }
}

/// What a diff is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiffHeader {
    /// The snapshot it starts from; none for the beginning of time.
    pub from_snap: Option<String>,
    /// The snapshot it leads to; none for HEAD.
    pub to_snap: Option<String>,
    /// Whether that snapshot is protected. Only v2 carries it.
    pub is_protected: bool,
    /// Size of the image at the end. Bytes. Some writers of old left it out.
    pub size: Option<u64>,
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiffRecord {
    /// Bytes to write at an offset of the image; never more than [`PIECE_MAX`] at once.
    Write {
        /// Bytes from the start of the image.
        offset: u64,
        /// What to write.
        data: Bytes,
    },
    /// A range that reads as zeros.
    Zero {
        /// Bytes from the start of the image.
        offset: u64,
        /// Bytes.
        length: u64,
    },
}

/// A stream that holds one diff, as a file of `export-diff` does.
#[derive(Debug)]
pub struct DiffFile<R> {
    input: Input<R>,
}

impl<R: Read> DiffFile<R> {
    /// Reads from here on.
    pub fn new(inner: R) -> Self {
        Self { input: Input::new(inner) }
    }

    /// Reads up to the first change.
    ///
    /// # Errors
    /// `Corrupt`: 74 where the stream is cut short, 22 where it is not such a stream.
    pub fn open(&mut self, version: DiffVersion) -> Result<DiffReader<'_, R>> {
        DiffReader::new(&mut self.input, version)
    }
}

/// Reads a diff.
#[derive(Debug)]
pub struct DiffReader<'a, R> {
    input: &'a mut Input<R>,
    version: DiffVersion,
    header: DiffHeader,
    /// The tag of the first data record, read while looking for the end of the header.
    peeked: Option<u8>,
    /// Offset and bytes left of a write record handed out in pieces.
    open: Option<(u64, u64)>,
}

impl<'a, R: Read> DiffReader<'a, R> {
    /// Reads the banner and all records before the first change.
    ///
    /// # Errors
    /// `Corrupt`: 74 where the stream is cut short, 22 where it is not such a stream; the fact `part` tells that it was read in the
    /// header.
    pub(crate) fn new(input: &'a mut Input<R>, version: DiffVersion) -> Result<Self> {
        Self::begin(input, version).map_err(|e| e.with("part", "header"))
    }

    fn begin(input: &'a mut Input<R>, version: DiffVersion) -> Result<Self> {
        input.banner(version.banner())?;
        let mut reader = Self { input, version, header: DiffHeader::default(), peeked: None, open: None };
        loop {
            let tag = reader.input.u8()?;
            match tag {
                tag::FROM_SNAP => reader.header.from_snap = Some(reader.name()?),
                tag::TO_SNAP => reader.header.to_snap = Some(reader.name()?),
                tag::SIZE => {
                    reader.expect_length(8)?;
                    reader.header.size = Some(reader.input.u64()?);
                }
                tag::PROTECTION if version == DiffVersion::V2 => {
                    reader.expect_length(1)?;
                    reader.header.is_protected = reader.input.u8()? != 0;
                }
                tag::WRITE | tag::ZERO | tag::END => {
                    reader.peeked = Some(tag);
                    return Ok(reader);
                }
                other => reader.skip_unknown(other)?,
            }
        }
    }

    /// What the diff is about.
    #[must_use]
    pub fn header(&self) -> &DiffHeader {
        &self.header
    }

    /// The next change; `None` behind the last. Nothing behind the end record is read.
    ///
    /// # Errors
    /// As for opening it. After an error the reader is of no more use.
    pub fn next_record(&mut self) -> Result<Option<DiffRecord>> {
        if let Some((offset, left)) = self.open.take() {
            return self.piece(offset, left).map(Some);
        }
        loop {
            let tag = match self.peeked.take() {
                Some(tag) => tag,
                None => self.input.u8()?,
            };
            match tag {
                tag::END => {
                    self.peeked = Some(tag::END);
                    return Ok(None);
                }
                tag::WRITE => {
                    let framed = self.length()?;
                    let (offset, length) = self.range()?;
                    if framed.is_some_and(|n| n.checked_sub(16) != Some(length)) {
                        return Err(malformed("a write record has two different lengths"));
                    }
                    if length > 0 {
                        return self.piece(offset, length).map(Some);
                    }
                }
                tag::ZERO => {
                    self.expect_length(16)?;
                    let (offset, length) = self.range()?;
                    if length > 0 {
                        return Ok(Some(DiffRecord::Zero { offset, length }));
                    }
                }
                tag::FROM_SNAP | tag::TO_SNAP | tag::SIZE => {
                    return Err(malformed("the header of a diff goes on behind its first change"));
                }
                tag::PROTECTION if self.version == DiffVersion::V2 => {
                    return Err(malformed("the header of a diff goes on behind its first change"));
                }
                other => self.skip_unknown(other)?,
            }
        }
    }

    /// The next bytes of a write record.
    fn piece(&mut self, offset: u64, left: u64) -> Result<DiffRecord> {
        let length = left.min(PIECE_MAX as u64);
        let data = Bytes::from(self.input.bytes(length)?);
        if left > length {
            self.open = Some((offset + length, left - length));
        }
        Ok(DiffRecord::Write { offset, data })
    }

    /// The length v2 puts before a payload.
    fn length(&mut self) -> Result<Option<u64>> {
        match self.version {
            DiffVersion::V1 => Ok(None),
            DiffVersion::V2 => self.input.u64().map(Some),
        }
    }

    /// Checks the length v2 puts before a payload.
    fn expect_length(&mut self, expected: u64) -> Result<()> {
        match self.length()? {
            Some(length) if length != expected => {
                Err(malformed("a record of a diff has another length than its kind").with("length", length))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// A snapshot name.
    fn name(&mut self) -> Result<String> {
        let framed = self.length()?;
        let name = self.input.string(SNAP_NAME_MAX)?;
        if framed.is_some_and(|n| n != name.len() as u64 + 4) {
            return Err(malformed("a snapshot name in a diff has two different lengths"));
        }
        Ok(name)
    }

    /// Offset and length of a change.
    fn range(&mut self) -> Result<(u64, u64)> {
        let (offset, length) = (self.input.u64()?, self.input.u64()?);
        if offset.checked_add(length).is_none() {
            return Err(malformed("a change in a diff ends past the largest image"));
        }
        Ok((offset, length))
    }

    /// Passes over a record of an unknown kind, which only v2 makes possible.
    fn skip_unknown(&mut self, tag: u8) -> Result<()> {
        match self.length()? {
            Some(length) => self.input.skip(length),
            None => Err(malformed("a diff holds a record of an unknown kind").with("tag", tag)),
        }
    }
}

/// Writes a diff.
#[derive(Debug)]
pub struct DiffWriter<W> {
    output: W,
    version: DiffVersion,
}

impl<W: Write> DiffWriter<W> {
    /// Writes the banner and the header.
    ///
    /// # Errors
    /// Those of the stream; so for all below.
    pub fn new(output: W, version: DiffVersion, header: &DiffHeader) -> Result<Self> {
        let mut writer = Self { output, version };
        let mut e = Encoder::new();
        e.raw(version.banner().as_bytes());
        if let Some(name) = &header.from_snap {
            writer.begin(&mut e, tag::FROM_SNAP, name.len() as u64 + 4);
            e.string(name);
        }
        if let Some(name) = &header.to_snap {
            writer.begin(&mut e, tag::TO_SNAP, name.len() as u64 + 4);
            e.string(name);
            if version == DiffVersion::V2 {
                writer.begin(&mut e, tag::PROTECTION, 1);
                e.bool(header.is_protected);
            }
        }
        if let Some(size) = header.size {
            writer.begin(&mut e, tag::SIZE, 8);
            e.u64(size);
        }
        writer.put(&e.finish())?;
        Ok(writer)
    }

    /// Tag and, in v2, length.
    fn begin(&self, e: &mut Encoder, tag: u8, length: u64) {
        e.u8(tag);
        match self.version {
            DiffVersion::V1 => {}
            DiffVersion::V2 => e.u64(length),
        }
    }

    /// Begins a write record: `length` bytes at `offset`, to come through [`Self::payload`].
    ///
    /// # Errors
    /// Those of the stream.
    pub fn begin_write(&mut self, offset: u64, length: u64) -> Result<()> {
        let mut e = Encoder::new();
        self.begin(&mut e, tag::WRITE, 16 + length);
        e.u64(offset);
        e.u64(length);
        self.put(&e.finish())
    }

    /// Bytes of the write record begun last.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn payload(&mut self, data: &[u8]) -> Result<()> {
        self.put(data)
    }

    /// A whole write record.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.begin_write(offset, data.len() as u64)?;
        self.payload(data)
    }

    /// A range that reads as zeros.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        let mut e = Encoder::new();
        self.begin(&mut e, tag::ZERO, 16);
        e.u64(offset);
        e.u64(length);
        self.put(&e.finish())
    }

    /// Ends the diff and gives the stream back.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn finish(mut self) -> Result<W> {
        self.put(&[tag::END])?;
        Ok(self.output)
    }

    /// Bytes as they are.
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.output.write_all(bytes).map_err(|e| Error::io("cannot write the stream", e))
    }
}
