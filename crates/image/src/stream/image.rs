//! A whole image with its snapshots, as `rbd export --export-format 2` writes it.

use std::io::{Read, Write};

use ferry_core::denc::Encoder;
use ferry_core::{Error, Result};

use super::input::{Input, malformed};
use super::{DIFFS_MAX, DiffHeader, DiffReader, DiffVersion, DiffWriter, IMAGE_METADATA_MAX};

/// The line the properties begin with.
const BANNER: &str = "rbd image v2\n";

/// The line the diffs begin with.
const DIFFS_BANNER: &str = "rbd image diffs v2\n";

/// Tags of the properties.
mod tag {
    pub(super) const ORDER: u8 = b'O';
    pub(super) const FEATURES: u8 = b'T';
    pub(super) const STRIPE_UNIT: u8 = b'U';
    pub(super) const STRIPE_COUNT: u8 = b'C';
    pub(super) const METADATA: u8 = b'M';
    pub(super) const END: u8 = b'E';
}

/// Properties of the image in a stream. What the stream does not say is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageStreamHeader {
    /// Log2 of the object size, as it stands in the stream.
    pub order: Option<u64>,
    /// Feature bits.
    pub features: Option<u64>,
    /// Bytes.
    pub stripe_unit: Option<u64>,
    /// Objects.
    pub stripe_count: Option<u64>,
    /// Image metadata, key and value.
    pub metadata: Vec<(String, String)>,
}

/// Reads an image stream: the properties when made, then one diff after the other.
#[derive(Debug)]
pub struct ImageStreamReader<R> {
    input: Input<R>,
    header: ImageStreamHeader,
    diffs: u64,
    diffs_left: u64,
}

impl<R: Read> ImageStreamReader<R> {
    /// Reads up to the first diff.
    ///
    /// # Errors
    /// `Corrupt`: 74 where the stream is cut short, 22 where it is not such a stream.
    pub fn new(inner: R) -> Result<Self> {
        let mut input = Input::new(inner);
        input.banner(BANNER)?;
        let header = read_header(&mut input)?;
        input.banner(DIFFS_BANNER)?;
        let diffs = input.u64()?;
        if diffs > DIFFS_MAX {
            return Err(malformed("an image stream announces too many diffs").with("diffs", diffs));
        }
        Ok(Self { input, header, diffs, diffs_left: diffs })
    }

    /// The image's properties.
    #[must_use]
    pub fn header(&self) -> &ImageStreamHeader {
        &self.header
    }

    /// How many diffs the stream announces: snapshots, and HEAD.
    #[must_use]
    pub fn diffs(&self) -> u64 {
        self.diffs
    }

    /// The next diff; the one before must have been read to its end. `None` behind the last.
    ///
    /// # Errors
    /// `Corrupt`, as for [`Self::new`].
    pub fn next_diff(&mut self) -> Result<Option<DiffReader<'_, R>>> {
        if self.diffs_left == 0 {
            return Ok(None);
        }
        self.diffs_left -= 1;
        DiffReader::new(&mut self.input, DiffVersion::V2).map(Some)
    }
}

/// The properties up to and with their end record.
fn read_header<R: Read>(input: &mut Input<R>) -> Result<ImageStreamHeader> {
    let mut header = ImageStreamHeader::default();
    let mut metadata_bytes = 0_u64;
    loop {
        let tag = input.u8()?;
        if tag == tag::END {
            return Ok(header);
        }
        let length = input.u64()?;
        match tag {
            tag::ORDER => header.order = Some(number(input, length)?),
            tag::FEATURES => header.features = Some(number(input, length)?),
            tag::STRIPE_UNIT => header.stripe_unit = Some(number(input, length)?),
            tag::STRIPE_COUNT => header.stripe_count = Some(number(input, length)?),
            tag::METADATA => {
                // Counted with what a pair costs in memory, so that empty pairs are bounded too.
                metadata_bytes = metadata_bytes.saturating_add(length).saturating_add(64);
                if metadata_bytes > IMAGE_METADATA_MAX {
                    return Err(malformed("an image stream carries too much metadata"));
                }
                header.metadata.push(pair(input, length)?);
            }
            _ => input.skip(length)?,
        }
    }
}

/// A number of eight bytes.
fn number<R: Read>(input: &mut Input<R>, length: u64) -> Result<u64> {
    if length != 8 {
        return Err(malformed("a property in an image stream is not a number").with("length", length));
    }
    input.u64()
}

/// Key and value in a record of `length` bytes, which the caller has bounded.
fn pair<R: Read>(input: &mut Input<R>, length: u64) -> Result<(String, String)> {
    let max = u32::try_from(length).map_err(|_| malformed("image metadata in a stream is too long"))?;
    let key = input.string(max)?;
    let value = input.string(max)?;
    if key.len() as u64 + value.len() as u64 + 8 != length {
        return Err(malformed("image metadata in a stream has two different lengths"));
    }
    Ok((key, value))
}

/// Writes an image stream: the properties when made, then as many diffs as were announced.
#[derive(Debug)]
pub struct ImageStreamWriter<W> {
    output: W,
}

impl<W: Write> ImageStreamWriter<W> {
    /// Writes up to the first of `diffs` diffs.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn new(mut output: W, header: &ImageStreamHeader, diffs: u64) -> Result<Self> {
        let mut e = Encoder::new();
        e.raw(BANNER.as_bytes());
        let numbers = [
            (tag::ORDER, header.order),
            (tag::FEATURES, header.features),
            (tag::STRIPE_UNIT, header.stripe_unit),
            (tag::STRIPE_COUNT, header.stripe_count),
        ];
        for (tag, value) in numbers.into_iter().filter_map(|(t, v)| v.map(|v| (t, v))) {
            e.u8(tag);
            e.u64(8);
            e.u64(value);
        }
        for (key, value) in &header.metadata {
            e.u8(tag::METADATA);
            e.u64(key.len() as u64 + value.len() as u64 + 8);
            e.string(key);
            e.string(value);
        }
        e.u8(tag::END);
        e.raw(DIFFS_BANNER.as_bytes());
        e.u64(diffs);
        output.write_all(&e.finish()).map_err(|e| Error::io("cannot write the stream", e))?;
        Ok(Self { output })
    }

    /// Begins the next diff, to be finished before another begins.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn diff(&mut self, header: &DiffHeader) -> Result<DiffWriter<&mut W>> {
        DiffWriter::new(&mut self.output, DiffVersion::V2, header)
    }

    /// Gives the stream back.
    pub fn finish(self) -> W {
        self.output
    }
}
