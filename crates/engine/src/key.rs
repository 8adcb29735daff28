//! Keys of the index. Layout: `docs/format/index.md`.
//!
//! A tag byte, then numbers big-endian and texts escaped, so that byte order is the order we want. Values that may be long
//! are cut into fragments numbered behind the key.

use ferry_core::{Error, Result};

use crate::disk::SegmentNo;

/// What a key is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    /// Object name to inode number.
    Name,
    /// Inode number to object record.
    Inode,
    /// Chunk of a version's table.
    Table,
    /// Omap entry.
    Omap,
    /// Xattr.
    Xattr,
    /// Blocks of a segment that another object shares.
    Sharer,
    /// Objects with a version preserved for a snapshot.
    SnapObject,
    /// Snapshots released but not yet trimmed.
    Released,
    /// Pool record.
    Pool,
}

/// Writes a key.
#[derive(Clone, Debug)]
pub(crate) struct Key(Vec<u8>);

impl Key {
    /// A key about `tag`.
    pub(crate) fn new(tag: Tag) -> Self {
        let tag = match tag {
            Tag::Name => b'O',
            Tag::Inode => b'I',
            Tag::Table => b'T',
            Tag::Omap => b'M',
            Tag::Xattr => b'X',
            Tag::Sharer => b'S',
            Tag::SnapObject => b'V',
            Tag::Released => b'Q',
            Tag::Pool => b'P',
        };
        let mut bytes = Vec::with_capacity(32);
        bytes.push(tag);
        Self(bytes)
    }

    /// Adds a number.
    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Adds a number.
    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Adds a number.
    pub(crate) fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Adds a signed number.
    pub(crate) fn i64(self, value: i64) -> Self {
        self.u64(value.cast_unsigned() ^ (1 << 63))
    }

    /// Adds bytes of any length: NUL becomes NUL FF, and NUL NUL ends them.
    pub(crate) fn text(mut self, bytes: &[u8]) -> Self {
        self.escape(bytes);
        self.0.extend_from_slice(&[0, 0]);
        self
    }

    /// Adds the beginning of bytes, to look for all that start so.
    pub(crate) fn text_prefix(mut self, bytes: &[u8]) -> Self {
        self.escape(bytes);
        self
    }

    fn escape(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0.push(*b);
            if *b == 0 {
                self.0.push(0xFF);
            }
        }
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Reads a key from behind its tag.
#[derive(Debug)]
pub(crate) struct KeyReader<'a>(&'a [u8]);

impl<'a> KeyReader<'a> {
    /// Reads `key`.
    pub(crate) fn new(key: &'a [u8]) -> Self {
        Self(key.get(1..).unwrap_or_default())
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, tail) =
            self.0.split_at_checked(n).ok_or_else(|| Error::corrupt("a key of the index is cut short"))?;
        self.0 = tail;
        Ok(head)
    }

    /// A number.
    pub(crate) fn u64(&mut self) -> Result<u64> {
        Ok(self.take(8)?.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    /// A number.
    pub(crate) fn u32(&mut self) -> Result<u32> {
        Ok(self.take(4)?.iter().fold(0, |n, b| n << 8 | u32::from(*b)))
    }

    /// A number.
    pub(crate) fn u16(&mut self) -> Result<u16> {
        Ok(self.take(2)?.iter().fold(0, |n, b| n << 8 | u16::from(*b)))
    }

    /// A signed number.
    pub(crate) fn i64(&mut self) -> Result<i64> {
        Ok((self.u64()? ^ (1 << 63)).cast_signed())
    }

    /// Escaped bytes.
    pub(crate) fn text(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        loop {
            match self.take(1)?[0] {
                0 => match self.take(1)?[0] {
                    0 => return Ok(bytes),
                    0xFF => bytes.push(0),
                    _ => return Err(Error::corrupt("a key of the index is badly escaped")),
                },
                b => bytes.push(b),
            }
        }
    }
}

/// Chunk `chunk` of the table of `version` of `inode`.
pub(crate) fn table(inode: u64, version: u64, chunk: u32) -> Key {
    Key::new(Tag::Table).u64(inode).u64(version).u32(chunk)
}

/// Blocks from `block` of `segment` on that `target_block` on of `inode` shares.
pub(crate) fn sharer(segment: SegmentNo, block: u16, inode: u64, target_block: u32) -> Key {
    Key::new(Tag::Sharer).u32(segment.0).u16(block).u64(inode).u32(target_block)
}

#[cfg(test)]
mod tests {
    use super::{Key, KeyReader, Tag};

    #[test]
    fn text_order_is_byte_order_and_reads_back() {
        let texts: [&[u8]; 8] = [b"", b"\0", b"\0\0", b"\0a", b"a", b"a\0", b"a\0\xff", b"a\x01"];
        for a in texts {
            for b in texts {
                let (ka, kb) = (Key::new(Tag::Omap).text(a).u16(9), Key::new(Tag::Omap).text(b).u16(0));
                if a != b {
                    assert_eq!(a.cmp(b), ka.bytes().cmp(kb.bytes()), "{a:?} {b:?}");
                }
            }
            let key = Key::new(Tag::Omap).i64(-5).text(a).u16(7);
            let mut r = KeyReader::new(key.bytes());
            assert_eq!((r.i64().unwrap(), r.text().unwrap(), r.u16().unwrap()), (-5, a.to_vec(), 7));
        }
    }

    #[test]
    fn negative_numbers_come_first() {
        assert!(Key::new(Tag::Pool).i64(-1).bytes() < Key::new(Tag::Pool).i64(0).bytes());
    }
}
