//! Tables of both levels: from a range of the device to clusters.

use ferry_core::{Error, Result, SourcePoint};

use super::header::Header;
use crate::format::clustered::{Cell, Run, Table, push_run};
use crate::format::pages::{Entries, Pages};
use crate::limits::L1_ENTRIES_MAX;

/// Bits of an entry that are an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster is used here only; of one at offset 0 of a data file it says that there is one.
const COPIED: u64 = 1 << 63;
/// The cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros, whether it has room in the file or not.
const ZERO: u64 = 1 << 0;

/// Subclusters of a cluster, where there are any.
const SUBCLUSTERS: u64 = 32;

/// A first-level table.
#[derive(Clone, Copy, Debug)]
pub(super) struct L1 {
    offset: u64,
    entries: u64,
}

impl L1 {
    /// A table of `entries` at `offset` for a device of `size`.
    ///
    /// # Errors
    /// `Corrupt` where it is too small or too large, or cannot be there.
    pub(super) fn new(
        offset: u64,
        entries: u32,
        size: u64,
        cluster_bits: u32,
        has_subclusters: bool,
    ) -> Result<Self> {
        let entries = u64::from(entries);
        let span_bits = span_bits(cluster_bits, has_subclusters);
        if entries > L1_ENTRIES_MAX || size.div_ceil(1 << span_bits) > entries {
            return Err(Error::corrupt("the first-level table does not fit the size of the device")
                .with("entries", entries)
                .with("size", size));
        }
        if entries > 0 && (!offset.is_multiple_of(1 << cluster_bits) || offset & !OFFSET != 0) {
            return Err(Error::corrupt("the first-level table lies where none can be").with("offset", offset));
        }
        Ok(Self { offset, entries })
    }

    /// Fetches the page that the table begins in.
    ///
    /// # Errors
    /// `Corrupt` where the file ends before; those of the stream.
    pub(super) async fn touch(&self, pages: &Pages) -> Result<()> {
        if self.entries > 0 {
            pages.entries().u64(self.offset).await?;
        }
        Ok(())
    }
}

/// Bytes of the device that a second-level table leads to, as a power of two.
fn span_bits(cluster_bits: u32, has_subclusters: bool) -> u32 {
    2 * cluster_bits - if has_subclusters { 4 } else { 3 }
}

/// The tables of an image and of its snapshots.
#[derive(Debug)]
pub(super) struct Qcow2 {
    pages: Pages,
    header: Header,
    snapshots: Vec<L1>,
}

/// An entry of the second level: what it says of the cluster, and, with subclusters, of its parts.
#[derive(Clone, Copy, Debug)]
struct Entry {
    cluster: u64,
    bitmap: u64,
}

impl Qcow2 {
    /// The tables that lead through `pages`.
    pub(super) fn new(pages: Pages, header: Header, snapshots: Vec<L1>) -> Self {
        Self { pages, header, snapshots }
    }

    fn l1(&self, at: SourcePoint) -> Result<L1> {
        match at {
            SourcePoint::Head => Ok(self.header.l1),
            SourcePoint::Snapshot(n) => {
                let none = || Error::not_found("the source has no such snapshot").with("snapshot", n);
                self.snapshots.get(n).copied().ok_or_else(none)
            }
        }
    }

    /// An offset out of an entry, which has to be that of a cluster.
    fn aligned(&self, entry: u64, guest: u64) -> Result<u64> {
        let offset = entry & OFFSET;
        if offset.is_multiple_of(1 << self.header.cluster_bits) {
            return Ok(offset);
        }
        Err(Error::corrupt("a table leads to where no cluster can be")
            .with("offset", offset)
            .with("device_offset", guest))
    }

    /// Adds what one entry says of the range from `guest` to `end`, which lies in its cluster.
    fn push_cluster(&self, runs: &mut Vec<Run>, entry: Entry, guest: u64, end: u64) -> Result<()> {
        let cluster = guest >> self.header.cluster_bits << self.header.cluster_bits;
        let length = end - guest;
        if entry.cluster & COMPRESSED != 0 {
            let cell = self.packed(entry.cluster, cluster)?;
            push_run(runs, Run { guest, length, cell });
            return Ok(());
        }
        let offset = self.aligned(entry.cluster, guest)?;
        let is_there = offset != 0 || self.header.has_data_file && entry.cluster & COPIED != 0;
        if self.header.has_subclusters {
            return self.push_subclusters(runs, entry, is_there.then_some(offset), guest, end);
        }
        let cell = match (entry.cluster & ZERO != 0, is_there) {
            (true, _) if self.header.version < 3 => {
                return Err(Error::corrupt(
                    "an image of version 2 has a cluster of zeros, which came with version 3",
                )
                .with("device_offset", guest));
            }
            (true, _) => Cell::Zero,
            (false, true) => Cell::Data { host: offset + (guest - cluster) },
            (false, false) => Cell::Hole,
        };
        push_run(runs, Run { guest, length, cell });
        Ok(())
    }

    /// What an entry of a compressed cluster says.
    fn packed(&self, entry: u64, cluster: u64) -> Result<Cell> {
        if self.header.has_data_file {
            return Err(Error::corrupt("an image whose data is in another file has a compressed cluster")
                .with("device_offset", cluster));
        }
        // Offset, then the number of further sectors of 512 bytes.
        let offset_bits = 62 - (self.header.cluster_bits - 8);
        let host = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
        Ok(Cell::Packed { host, length: (sectors + 1) * 512 - host % 512, cluster })
    }

    /// Adds what the bitmap of an entry says: of each subcluster that it has bytes, that it is zeros, or neither.
    fn push_subclusters(
        &self,
        runs: &mut Vec<Run>,
        entry: Entry,
        host: Option<u64>,
        guest: u64,
        end: u64,
    ) -> Result<()> {
        let bits = self.header.cluster_bits;
        let cluster = guest >> bits << bits;
        let size = (1_u64 << bits) / SUBCLUSTERS;
        let mut at = guest;
        while at < end {
            let n = (at - cluster) / size;
            let (has_bytes, is_zero) =
                (entry.bitmap >> n & 1 != 0, entry.bitmap >> (n + SUBCLUSTERS) & 1 != 0);
            let cell = match (has_bytes, is_zero, host) {
                (true, true, _) | (true, false, None) => {
                    return Err(Error::corrupt("the bitmap of a cluster contradicts itself")
                        .with("device_offset", at)
                        .with("bitmap", format!("{:#018x}", entry.bitmap)));
                }
                (false, true, _) => Cell::Zero,
                (true, false, Some(host)) => Cell::Data { host: host + (at - cluster) },
                (false, false, _) => Cell::Hole,
            };
            let next = (cluster + (n + 1) * size).min(end);
            push_run(runs, Run { guest: at, length: next - at, cell });
            at = next;
        }
        Ok(())
    }

    /// The entry of a cluster.
    async fn entry(&self, entries: &mut Entries<'_>, table: u64, index: u64) -> Result<Entry> {
        if self.header.has_subclusters {
            let at = table + index * 16;
            return Ok(Entry { cluster: entries.u64(at).await?, bitmap: entries.u64(at + 8).await? });
        }
        Ok(Entry { cluster: entries.u64(table + index * 8).await?, bitmap: 0 })
    }
}

impl Table for Qcow2 {
    async fn runs(&self, at: SourcePoint, offset: u64, length: u64) -> Result<Vec<Run>> {
        let l1 = self.l1(at)?;
        let bits = self.header.cluster_bits;
        let span_bits = span_bits(bits, self.header.has_subclusters);
        let (mut upper, mut lower) = (self.pages.entries(), self.pages.entries());
        let mut runs = Vec::new();
        let (mut guest, end) = (offset, offset + length);
        while guest < end {
            let span_end = ((guest >> span_bits) + 1) << span_bits;
            let entry = upper.u64(l1.offset + (guest >> span_bits) * 8).await?;
            let table = self.aligned(entry, guest)?;
            if table == 0 {
                push_run(&mut runs, Run { guest, length: span_end.min(end) - guest, cell: Cell::Hole });
                guest = span_end;
                continue;
            }
            while guest < end.min(span_end) {
                let index = guest >> bits & ((1 << (span_bits - bits)) - 1);
                let next = (((guest >> bits) + 1) << bits).min(end);
                let entry = self.entry(&mut lower, table, index).await?;
                self.push_cluster(&mut runs, entry, guest, next)?;
                guest = next;
            }
        }
        Ok(runs)
    }
}
