//! The header of an image, from bytes to what they say.

use ferry_core::{Errno, Error, Result};

use super::extension;
use super::table::L1;
use crate::format::pages::Pages;
use crate::format::qcow::{number, wide};
use crate::format::unpack::Packing;
use crate::limits::{FILE_NAME_MAX, QCOW2_SNAPSHOTS_MAX};

/// Length of the header of version 2, and of the fields that both versions have. Bytes.
const LENGTH_2: u64 = 72;

/// Shortest header of version 3. Bytes.
const LENGTH_3: u64 = 104;

/// Features without which an image cannot be read, by their bits.
pub(super) mod incompatible {
    /// Reference counts are not up to date; nothing that is read.
    pub(crate) const DIRTY: u64 = 1 << 0;
    /// Tables or counts are damaged.
    pub(crate) const CORRUPT: u64 = 1 << 1;
    /// Data is in a file of its own.
    pub(crate) const DATA_FILE: u64 = 1 << 2;
    /// Clusters are not compressed as in version 2.
    pub(crate) const COMPRESSION: u64 = 1 << 3;
    /// Entries of the second level have bitmaps of subclusters.
    pub(crate) const EXTENDED_L2: u64 = 1 << 4;
    /// All of these.
    pub(crate) const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
}

/// A validated header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    /// Size of the device. Bytes.
    pub(super) size: u64,
    pub(super) l1: L1,
    /// How many snapshots there are, and where their table is.
    pub(super) snapshots: u32,
    pub(super) snapshots_at: u64,
    pub(super) packing: Packing,
    pub(super) has_subclusters: bool,
    pub(super) is_corrupt: bool,
    pub(super) has_data_file: bool,
    /// What the image calls its backing file.
    pub(super) backing_name: Option<String>,
    /// What it calls the file with its data, if it says so.
    pub(super) data_name: Option<String>,
}

/// Reads and validates the header.
///
/// # Errors
/// `Invalid` with `rbd`'s texts, `Unsupported`, `Corrupt`.
pub(super) async fn read(pages: &Pages, version: u32) -> Result<Header> {
    let fields = fields(pages, version).await?;
    let cluster_bits = number(&fields, 20);
    if !(9..=21).contains(&cluster_bits) {
        return Err(
            Error::corrupt("the size of clusters is not one that there is").with("bits", cluster_bits)
        );
    }
    if number(&fields, 32) != 0 {
        let method = match number(&fields, 32) {
            1 => "AES".to_owned(),
            2 => "LUKS".to_owned(),
            other => other.to_string(),
        };
        return Err(Error::unsupported("invalid or unsupported encryption method")
            .errno_is(Errno::EINVAL)
            .with("method", method));
    }
    let features = if version >= 3 { wide(&fields, 72) } else { 0 };
    let backing_at = wide(&fields, 8);
    let area_end = if backing_at == 0 { 1 << cluster_bits } else { backing_at.min(1 << cluster_bits) };
    let extensions = extension::read(pages, header_length(&fields, version), area_end).await?;
    refuse_unknown(features, &extensions)?;
    let has_subclusters = features & incompatible::EXTENDED_L2 != 0;
    if has_subclusters && cluster_bits < 14 {
        return Err(Error::corrupt("clusters are too small for subclusters").with("bits", cluster_bits));
    }
    let size = wide(&fields, 24);
    let l1 = L1::new(wide(&fields, 40), number(&fields, 36), size, cluster_bits, has_subclusters)?;
    let snapshots = number(&fields, 60);
    if snapshots > QCOW2_SNAPSHOTS_MAX {
        return Err(Error::corrupt("there are more snapshots than there can be").with("snapshots", snapshots));
    }
    Ok(Header {
        version,
        cluster_bits,
        size,
        l1,
        snapshots,
        snapshots_at: wide(&fields, 64),
        packing: packing(&fields, version, features)?,
        has_subclusters,
        is_corrupt: features & incompatible::CORRUPT != 0,
        has_data_file: features & incompatible::DATA_FILE != 0,
        backing_name: backing_name(pages, &fields, cluster_bits).await?,
        data_name: extensions.data_name,
    })
}

/// How long the header says it is. Bytes.
fn header_length(fields: &[u8], version: u32) -> u64 {
    if version >= 3 { u64::from(number(fields, 100)) } else { LENGTH_2 }
}

/// The bytes of the fields that the header has, at most 112.
async fn fields(pages: &Pages, version: u32) -> Result<Vec<u8>> {
    let shortest = if version >= 3 { LENGTH_3 } else { LENGTH_2 };
    let size = pages.stream().size();
    if size < shortest {
        let short = Error::invalid("the file is too short for a QCOW header").errno_is(Errno::ERANGE);
        return Err(short.with("size", size));
    }
    let fields = pages.bytes(0, shortest).await?;
    let length = header_length(&fields, version);
    if length < shortest || length > size || !length.is_multiple_of(8) {
        return Err(
            Error::corrupt("the length of the header is not one that there is").with("length", length)
        );
    }
    pages.bytes(0, length.min(112)).await
}

/// Refuses an image with a feature that is not known, by its name.
fn refuse_unknown(features: u64, extensions: &extension::Extensions) -> Result<()> {
    let unknown = features & !incompatible::KNOWN;
    if unknown == 0 {
        return Ok(());
    }
    let names = (0..64).filter(|bit| unknown & 1 << bit != 0).map(|bit| {
        let name = extensions.incompatible_names.get(&bit);
        name.map_or_else(|| format!("bit {bit}"), |name| format!("bit {bit} {name:?}"))
    });
    Err(Error::unsupported("unknown incompatible feature enabled")
        .errno_is(Errno::EINVAL)
        .with("features", names.collect::<Vec<_>>().join(" ")))
}

/// How clusters are compressed: the bit has to be set where it is not as in version 2, and only there.
fn packing(fields: &[u8], version: u32, features: u64) -> Result<Packing> {
    let is_set = features & incompatible::COMPRESSION != 0;
    let kind = if version >= 3 { fields.get(104).copied().unwrap_or(0) } else { 0 };
    match (kind, is_set) {
        (0, false) => Ok(Packing::Deflate),
        (1, true) => Ok(Packing::Zstd),
        (0, true) | (1, false) => Err(Error::corrupt("the header contradicts itself about compression")),
        (other, _) => Err(Error::unsupported("invalid or unsupported compression type")
            .errno_is(Errno::EINVAL)
            .with("compression", other)),
    }
}

/// The name of the backing file, if there is one.
async fn backing_name(pages: &Pages, fields: &[u8], cluster_bits: u32) -> Result<Option<String>> {
    let (offset, length) = (wide(fields, 8), number(fields, 16));
    if offset == 0 {
        return Ok(None);
    }
    let room = (1_u64 << cluster_bits).saturating_sub(offset);
    if length > FILE_NAME_MAX || u64::from(length) > room {
        return Err(Error::corrupt("the name of the backing file is too long").with("length", length));
    }
    let name = pages.bytes(offset, u64::from(length)).await?;
    Ok(Some(String::from_utf8_lossy(&name).into_owned()))
}
