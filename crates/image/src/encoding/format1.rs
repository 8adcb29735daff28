//! Images of format 1: the header, one struct with the snapshots behind it, and the directory of a pool.
//!
//! Layouts: `struct rbd_obj_header_ondisk` and the OSD's "tmap", as Ceph 16.2.15 writes them.

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_core::denc::{Decoder, Encoder};
use ferry_core::{Error, ErrorKind, Result, SnapId};

/// What a header begins with.
const TEXT: &[u8; TEXT_LENGTH] = b"<<< Rados Block Device Image >>>\n\0\0\0\0\0\0\0";
/// What it begins with while the image is the source of a migration: older clients take it for no image.
const MIGRATING_TEXT: &[u8; TEXT_LENGTH] = b"<<< Migrating RBD Image      >>>\n\0\0\0\0\0\0\0";
const TEXT_LENGTH: usize = 40;
const PREFIX_LENGTH: usize = 24;
/// Signature and version, which are left as they are.
const SIGNATURE_LENGTH: usize = 12;
/// Smallest and largest exponent of an object size.
const ORDERS: std::ops::RangeInclusive<u8> = 12..=25;
/// Longest header read. Bytes: far above what the snapshots of an image take.
pub const FORMAT1_HEADER_MAX: u64 = 8 << 20;

/// The header of an image of format 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format1Header {
    /// Whether it is the source of a migration.
    pub is_migrating: bool,
    /// What the names of its objects begin with, without the dot before the number.
    pub object_prefix: String,
    /// Objects have `1 << order` bytes.
    pub order: u8,
    /// Size of the image. Bytes.
    pub size: u64,
    /// Highest snapshot id ever added.
    pub snap_seq: u64,
    /// Size (bytes) and name of each snapshot.
    pub snaps: BTreeMap<SnapId, (u64, String)>,
    /// What means nothing here and is written back.
    pub kept: Format1Kept,
}

/// The fields of a format-1 header that mean nothing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format1Kept {
    signature: [u8; SIGNATURE_LENGTH],
    /// Kinds of encryption and compression, which no release ever had.
    options: [u8; 3],
    reserved: u32,
}

impl Format1Header {
    /// Reads a header object's data.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut d = Decoder::new(bytes);
        let text = d.raw(TEXT_LENGTH)?;
        let is_migrating = text == MIGRATING_TEXT;
        if !is_migrating && text != TEXT {
            return Err(Error::corrupt("not the header of an image of format 1"));
        }
        let object_prefix = text_of(until_nul(d.raw(PREFIX_LENGTH)?))?;
        let signature = array(d.raw(SIGNATURE_LENGTH)?);
        let order = d.u8()?;
        if !ORDERS.contains(&order) || object_prefix.is_empty() {
            return Err(Error::corrupt("an object size out of range, or no prefix").with("order", order));
        }
        let options = array(d.raw(3)?);
        let (size, snap_seq, count) = (d.u64()?, d.u64()?, d.u32()?);
        let (reserved, names_length) = (d.u32()?, d.u64()?);
        let mut heads = Vec::new();
        for _ in 0..count {
            heads.push((SnapId(d.u64()?), d.u64()?));
        }
        let names_length = usize::try_from(names_length)
            .map_err(|e| Error::corrupt("the names of snapshots are too long").because(e))?;
        let names = d.raw(names_length)?;
        let mut names = names.split(|b| *b == 0);
        let mut snaps = BTreeMap::new();
        for (id, size) in heads {
            let name = names.next().ok_or_else(|| Error::corrupt("a snapshot without a name"))?;
            if snaps.insert(id, (size, text_of(name)?)).is_some() {
                return Err(Error::corrupt("two snapshots of one id").with("id", id));
            }
        }
        let kept = Format1Kept { signature, options, reserved };
        Ok(Self { is_migrating, object_prefix, order, size, snap_seq, snaps, kept })
    }

    /// The data to write.
    ///
    /// # Errors
    /// `Invalid` (22) for the name of a snapshot that cannot be told from two, or a prefix that is too long.
    pub fn encode(&self) -> Result<Bytes> {
        let prefix = self.object_prefix.as_bytes();
        let names: usize = self.snaps.values().map(|(_, name)| name.len() + 1).sum();
        if prefix.len() >= PREFIX_LENGTH || self.snaps.values().any(|(_, name)| name.contains('\0')) {
            return Err(Error::invalid("an image of format 1 cannot have such a name"));
        }
        let mut e = Encoder::new();
        e.raw(if self.is_migrating { MIGRATING_TEXT } else { TEXT });
        e.raw(prefix);
        e.raw(&[0; PREFIX_LENGTH][prefix.len()..]);
        e.raw(&self.kept.signature);
        e.u8(self.order);
        e.raw(&self.kept.options);
        e.u64(self.size);
        e.u64(self.snap_seq);
        e.u32(u32::try_from(self.snaps.len()).map_err(|e| too_many().because(e))?);
        e.u32(self.kept.reserved);
        e.u64(names as u64);
        for (id, (size, _)) in self.snaps.iter().rev() {
            e.u64(id.0);
            e.u64(*size);
        }
        for (_, name) in self.snaps.values().rev() {
            e.raw(name.as_bytes());
            e.raw(&[0]);
        }
        Ok(e.finish())
    }
}

fn too_many() -> Error {
    Error::new(ErrorKind::NoSpace, "too many snapshots")
}

/// The names of a pool's images of format 1, which are the data of its directory. Values of other releases are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Format1Directory {
    header: Bytes,
    /// By name; the values are empty.
    pub names: BTreeMap<String, Bytes>,
}

impl Format1Directory {
    /// Reads the data of a directory object; there is none where no image of format 1 ever was.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let mut d = Decoder::new(bytes);
        let header = Bytes::copy_from_slice(d.blob()?);
        let mut names = BTreeMap::new();
        for _ in 0..d.u32()? {
            let name = d.string()?;
            names.insert(name, Bytes::copy_from_slice(d.blob()?));
        }
        Ok(Self { header, names })
    }

    /// The data to write.
    ///
    /// # Errors
    /// `NoSpace` for more names than can be counted.
    pub fn encode(&self) -> Result<Bytes> {
        let mut e = Encoder::new();
        e.blob(&self.header);
        e.u32(u32::try_from(self.names.len()).map_err(|e| too_many().because(e))?);
        for (name, value) in &self.names {
            e.string(name);
            e.blob(value);
        }
        Ok(e.finish())
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

fn text_of(bytes: &[u8]) -> Result<String> {
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|e| Error::corrupt("a name in a header is not UTF-8").because(e))
}

/// The bytes as an array; they were asked for in its length.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stock `rbd` wrote: 24 MiB, three snapshots.
    fn stock() -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(b"<<< Rados Block Device Image >>>\n\0\0\0\0\0\0\0");
        bytes.extend(b"rb.0.1023.6b8b4567\0\0\0\0\0\0");
        bytes.extend(b"RBD\x00001.005\0\x16\0\0\0");
        bytes.extend([0, 0, 0x80, 1, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([0x0e, 0, 0, 0, 0, 0, 0, 0]);
        for (id, size) in [(8, 0x80), (7, 0), (6, 0)] {
            bytes.extend([id, 0, 0, 0, 0, 0, 0, 0, 0, 0, size, 1, 0, 0, 0, 0]);
        }
        bytes.extend(b"two\0one\0empty\0");
        bytes
    }

    #[test]
    fn a_header_that_rbd_wrote_reads_and_writes_back() {
        let header = Format1Header::decode(&stock()).unwrap();
        assert_eq!((header.size, header.order, header.snap_seq), (24 << 20, 22, 8));
        assert_eq!(header.object_prefix, "rb.0.1023.6b8b4567");
        let snaps: Vec<_> =
            header.snaps.iter().map(|(id, (size, name))| (id.0, *size, name.as_str())).collect();
        assert_eq!(snaps, [(6, 16 << 20, "empty"), (7, 16 << 20, "one"), (8, 24 << 20, "two")]);
        assert_eq!(header.encode().unwrap(), stock());
        let migrating = Format1Header { is_migrating: true, ..header };
        let written = migrating.encode().unwrap();
        assert!(written.starts_with(b"<<< Migrating RBD Image      >>>\n\0"));
        assert_eq!(written[TEXT_LENGTH..], stock()[TEXT_LENGTH..]);
        assert_eq!(Format1Header::decode(&written).unwrap(), migrating);
    }

    #[test]
    fn a_damaged_header_is_an_error_and_never_a_panic() {
        let good = stock();
        for length in 0..good.len() {
            assert!(Format1Header::decode(&good[..length]).is_err(), "{length}");
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                if let Ok(header) = Format1Header::decode(&bad) {
                    assert!(header.encode().is_ok() || header.object_prefix.len() == PREFIX_LENGTH);
                }
            }
        }
    }

    #[test]
    fn a_directory_that_rbd_wrote_reads_and_writes_back() {
        let bytes = [0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, b'v', b'1', 0, 0, 0, 0];
        let directory = Format1Directory::decode(&bytes).unwrap();
        assert_eq!(directory.names.keys().collect::<Vec<_>>(), ["v1"]);
        assert_eq!(directory.encode().unwrap()[..], bytes);
        assert_eq!(Format1Directory::decode(&[0; 8]).unwrap(), Format1Directory::default());
        assert_eq!(Format1Directory::default().encode().unwrap()[..], [0; 8]);
        assert!(Format1Directory::decode(&bytes[..17]).is_err());
    }
}
