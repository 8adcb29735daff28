//! From runs to what is asked of a stream, and from its answers to bytes of the device.

use std::sync::Arc;

use bytes::Bytes;
use ferry_core::{Error, Reply, Result};
use futures_util::future::try_join_all;

use super::{Cell, Parts, Run, Unpacked};
use crate::format::unpack::unpack;
use crate::limits::{PIECE_MAX, UNPACK_BATCH, WASTE_DIVISOR};
use crate::stream::Stream;

/// Which of an image's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// The one with the tables and the compressed clusters.
    File,
    /// The one with the other clusters.
    Data,
}

/// A part of a compressed cluster.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    /// Where the cluster begins in the file.
    host: u64,
    /// How long it may be.
    length: u64,
    /// Where the part is wanted in the device.
    guest: u64,
    /// Where it begins in the cluster.
    skip: u64,
    /// How long it is.
    take: u64,
}

impl Wanted {
    /// The part, cut out of its cluster.
    fn of(&self, cluster: &Bytes) -> (u64, Bytes) {
        (self.guest, cluster.slice(memory(self.skip)..memory(self.skip + self.take)))
    }
}

/// What becomes of a range of a file.
#[derive(Clone, Copy, Debug)]
enum Use {
    /// It is at `guest` of the device.
    Plain { guest: u64 },
    /// It is decompressed.
    Packed(Wanted),
}

/// A range of a file that is wanted.
#[derive(Clone, Copy, Debug)]
struct Item {
    place: Place,
    from: u64,
    length: u64,
    wanted: Use,
}

/// A range that is asked of a stream at once.
#[derive(Debug)]
pub(super) struct Fetch {
    place: Place,
    from: u64,
    length: u64,
    /// How much of it lies between items.
    waste: u64,
    items: Vec<Item>,
}

/// What a read needs.
#[derive(Debug)]
pub(super) struct Plan {
    /// What is to be fetched.
    pub(super) fetches: Vec<Fetch>,
    /// What is here already, at its place in the device.
    pub(super) kept: Vec<(u64, Bytes)>,
}

/// A length that was seen to be that of something in memory.
fn memory(length: u64) -> usize {
    usize::try_from(length).expect("no longer than a cluster or a piece")
}

/// What a cluster is missing of which the file does not have all that is wanted.
fn missing(stream: &dyn Stream, host: u64, guest: u64) -> Error {
    Error::corrupt("the file ends before the data of the image does")
        .with("file", stream.describe())
        .with("offset", host)
        .with("device_offset", guest)
        .with("size", stream.size())
}

impl Plan {
    /// What the runs of a read need.
    ///
    /// # Errors
    /// `Corrupt` where a run is not in the file.
    pub(super) fn of(runs: &[Run], parts: &Parts, unpacked: &Unpacked) -> Result<Self> {
        let mut items = Vec::new();
        let mut kept = Vec::new();
        for run in runs {
            match run.cell {
                Cell::Hole | Cell::Zero => {}
                Cell::Data { host } => plain(run, host, &*parts.data, &mut items)?,
                Cell::Packed { host, length, cluster } => {
                    let wanted = Wanted {
                        host,
                        length,
                        guest: run.guest,
                        skip: run.guest - cluster,
                        take: run.length,
                    };
                    match unpacked.get(host) {
                        Some(cluster) => kept.push(wanted.of(&cluster)),
                        None => items.push(packed(wanted, &*parts.file)?),
                    }
                }
            }
        }
        items.sort_by_key(|item| (item.place, item.from));
        Ok(Self { fetches: joined(items, parts), kept })
    }
}

/// Pieces of a run of plain clusters.
fn plain(run: &Run, host: u64, data: &dyn Stream, items: &mut Vec<Item>) -> Result<()> {
    if host.checked_add(run.length).is_none_or(|end| end > data.size()) {
        return Err(missing(data, host, run.guest));
    }
    let mut done = 0;
    while done < run.length {
        let length = PIECE_MAX.min(run.length - done);
        let wanted = Use::Plain { guest: run.guest + done };
        items.push(Item { place: Place::Data, from: host + done, length, wanted });
        done += length;
    }
    Ok(())
}

/// A compressed cluster. Its length counts sectors, and the last sector of a file need not be whole.
fn packed(wanted: Wanted, file: &dyn Stream) -> Result<Item> {
    let there = file.size().checked_sub(wanted.host).filter(|there| *there > 0);
    let there = there.ok_or_else(|| missing(file, wanted.host, wanted.guest))?;
    let length = wanted.length.min(there);
    let wanted = Wanted { length, ..wanted };
    Ok(Item { place: Place::File, from: wanted.host, length, wanted: Use::Packed(wanted) })
}

/// Items close to each other are fetched as one, as long as little is fetched in vain.
fn joined(items: Vec<Item>, parts: &Parts) -> Vec<Fetch> {
    let mut fetches: Vec<Fetch> = Vec::new();
    for item in items {
        let gap = match item.place {
            Place::File => parts.file.gap(),
            Place::Data => parts.data.gap(),
        };
        if let Some(last) = fetches.last_mut()
            && last.takes(&item, gap)
        {
            last.items.push(item);
            continue;
        }
        let Item { place, from, length, .. } = item;
        fetches.push(Fetch { place, from, length, waste: 0, items: vec![item] });
    }
    fetches
}

impl Fetch {
    /// Whether an item that does not begin before this was made a part of it.
    fn takes(&mut self, item: &Item, gap: u64) -> bool {
        let own_end = self.from + self.length;
        let skipped = item.from.saturating_sub(own_end);
        let waste = self.waste + skipped;
        let length = own_end.max(item.from + item.length) - self.from;
        let fits = item.place == self.place && skipped <= gap && length <= PIECE_MAX;
        if !fits || waste > (length - waste) / WASTE_DIVISOR {
            return false;
        }
        (self.length, self.waste) = (length, waste);
        true
    }

    /// Fetches the range, and makes of it what is wanted.
    pub(super) async fn run(self, parts: &Parts, unpacked: &Unpacked) -> Result<Vec<(u64, Bytes)>> {
        let stream = match self.place {
            Place::File => &parts.file,
            Place::Data => &parts.data,
        };
        let bytes = stream.read(self.from, self.length).await?;
        let mut made = Vec::with_capacity(self.items.len());
        let mut to_unpack = Vec::new();
        for item in &self.items {
            let skip = memory(item.from - self.from);
            let part = bytes.slice(skip..skip + memory(item.length));
            match item.wanted {
                Use::Plain { guest } => made.push((guest, part)),
                Use::Packed(wanted) => to_unpack.push((wanted, part)),
            }
        }
        let batch = (UNPACK_BATCH / memory(parts.cluster_size)).max(1);
        let jobs = to_unpack.chunks(batch).map(|batch| unpack_batch(batch.to_vec(), parts));
        for (wanted, cluster) in try_join_all(jobs).await?.into_iter().flatten() {
            if wanted.take < length_of_cluster(&cluster) {
                unpacked.put(wanted.host, cluster.clone());
            }
            made.push(wanted.of(&cluster));
        }
        Ok(made)
    }
}

fn length_of_cluster(cluster: &Bytes) -> u64 {
    crate::format::length_of(cluster)
}

/// Decompresses on a thread that is meant for it.
fn unpack_batch(batch: Vec<(Wanted, Bytes)>, parts: &Parts) -> Reply<Vec<(Wanted, Bytes)>> {
    let (packing, length, file) = (parts.packing, memory(parts.cluster_size), Arc::clone(&parts.file));
    parts.env.blocking(move || {
        let one = |(wanted, packed): &(Wanted, Bytes)| {
            let cluster = unpack(packing, packed, length).map_err(|e| {
                e.with("file", file.describe())
                    .with("offset", wanted.host)
                    .with("device_offset", wanted.guest)
            })?;
            Ok((*wanted, cluster))
        };
        batch.iter().map(one).collect()
    })
}
