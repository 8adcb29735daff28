//! QEMU's copy-on-write format, version 1: two levels of tables, deflate, a backing file.
//!
//! # Source
//! `block/qcow.c` of QEMU; the format has no other description.

use std::sync::Arc;

use ferry_core::{BlockSource, Errno, Error, Result, SourcePoint};

use crate::env::Env;
use crate::format::clustered::{Cell, Clustered, Parts, Run, Table, push_run};
use crate::format::pages::Pages;
use crate::format::qcow::{agree, number, wide};
use crate::format::unpack::Packing;
use crate::limits::FILE_NAME_MAX;
use crate::open::Beside;

/// Size of the header. Bytes.
const HEADER: u64 = 48;

/// Says of an entry of the second level that its cluster is compressed.
const COMPRESSED: u64 = 1 << 63;

/// What the header says, validated.
#[derive(Clone, Copy, Debug)]
struct Shape {
    size: u64,
    cluster_bits: u32,
    l2_bits: u32,
    l1: u64,
}

#[derive(Debug)]
struct Qcow1 {
    pages: Arc<Pages>,
    shape: Shape,
}

/// Opens an image of version 1.
///
/// # Errors
/// `Invalid`, `Unsupported`, `Corrupt`, as [`super::qcow::open`].
pub(crate) async fn open(pages: Pages, beside: Beside, env: &Env) -> Result<Arc<dyn BlockSource>> {
    let file = Arc::clone(pages.stream());
    let name = file.describe();
    if file.size() < HEADER {
        let short = Error::invalid("the file is too short for a QCOW header").errno_is(Errno::ERANGE);
        return Err(short.with("file", name).with("size", file.size()));
    }
    let header = pages.bytes(0, HEADER).await?;
    let shape = shape(&header).map_err(|e| e.with("file", &name))?;
    let backing_name = backing_name(&pages, &header).await.map_err(|e| e.with("file", &name))?;
    agree("backing", backing_name.as_deref(), beside.backing.is_some(), &name)?;
    agree("data_file", None, beside.data_file.is_some(), &name)?;
    let parts = Parts {
        data: Arc::clone(&file),
        file,
        backing: beside.backing,
        packing: Packing::Deflate,
        cluster_size: 1 << shape.cluster_bits,
        size: shape.size,
        snapshots: Vec::new(),
        env: env.clone(),
    };
    Ok(Arc::new(Clustered::new(Qcow1 { pages: Arc::new(pages), shape }, parts)))
}

/// From a header to what it says; QEMU refuses what this refuses.
fn shape(header: &[u8]) -> Result<Shape> {
    let (cluster_bits, l2_bits) = (header[32], header[33]);
    let shape = Shape {
        size: wide(header, 24),
        cluster_bits: u32::from(cluster_bits),
        l2_bits: u32::from(l2_bits),
        l1: wide(header, 40),
    };
    if number(header, 36) != 0 {
        return Err(Error::unsupported("invalid or unsupported encryption method")
            .errno_is(Errno::EINVAL)
            .with("method", number(header, 36)));
    }
    if !(9..=16).contains(&cluster_bits) {
        return Err(
            Error::corrupt("the size of clusters is not one that there is").with("bits", cluster_bits)
        );
    }
    if !(6..=13).contains(&l2_bits) {
        return Err(Error::corrupt("the size of tables is not one that there is").with("bits", l2_bits));
    }
    // No first-level table is longer than QEMU can hold in memory; the limit tells damage.
    let entries = shape.size.div_ceil(1 << (shape.cluster_bits + shape.l2_bits));
    if entries > u64::from(u32::MAX) / 16 {
        return Err(Error::corrupt("the image is too large").with("size", shape.size));
    }
    if shape.l1.checked_add(entries * 8).is_none() {
        return Err(Error::corrupt("the first table lies nowhere").with("offset", shape.l1));
    }
    Ok(shape)
}

/// The name of the backing file, if there is one.
async fn backing_name(pages: &Pages, header: &[u8]) -> Result<Option<String>> {
    let (offset, length) = (wide(header, 8), number(header, 16));
    if offset == 0 {
        return Ok(None);
    }
    if length > FILE_NAME_MAX {
        return Err(Error::corrupt("the name of the backing file is too long").with("length", length));
    }
    let name = pages.bytes(offset, u64::from(length)).await?;
    Ok(Some(String::from_utf8_lossy(&name).into_owned()))
}

impl Qcow1 {
    /// What an entry of the second level says of the part of its cluster from `guest` on.
    fn cell(&self, entry: u64, guest: u64) -> Result<Cell> {
        let bits = self.shape.cluster_bits;
        let in_cluster = guest & ((1 << bits) - 1);
        if entry & COMPRESSED != 0 {
            let length = entry >> (63 - bits) & ((1 << bits) - 1);
            let host = entry & ((1 << (63 - bits)) - 1);
            return Ok(Cell::Packed { host, length, cluster: guest - in_cluster });
        }
        if entry == 0 {
            return Ok(Cell::Hole);
        }
        let host = entry.checked_add(in_cluster).filter(|host| *host <= i64::MAX.unsigned_abs());
        let host =
            host.ok_or_else(|| Error::corrupt("a cluster lies nowhere").with("device_offset", guest))?;
        Ok(Cell::Data { host })
    }
}

impl Table for Qcow1 {
    async fn runs(&self, _at: SourcePoint, offset: u64, length: u64) -> Result<Vec<Run>> {
        let Shape { cluster_bits, l2_bits, l1, .. } = self.shape;
        let (mut upper, mut lower) = (self.pages.entries(), self.pages.entries());
        let mut runs = Vec::new();
        let (mut guest, end) = (offset, offset + length);
        while guest < end {
            let table_end = ((guest >> (cluster_bits + l2_bits)) + 1) << (cluster_bits + l2_bits);
            let l2 = upper.u64(l1 + (guest >> (cluster_bits + l2_bits)) * 8).await?;
            if l2 == 0 {
                push_run(&mut runs, Run { guest, length: table_end.min(end) - guest, cell: Cell::Hole });
                guest = table_end;
                continue;
            }
            if l2.checked_add(8 << l2_bits).is_none() {
                return Err(Error::corrupt("a table lies nowhere").with("device_offset", guest));
            }
            while guest < end.min(table_end) {
                let index = guest >> cluster_bits & ((1 << l2_bits) - 1);
                let next = ((guest >> cluster_bits) + 1) << cluster_bits;
                let cell = self.cell(lower.u64(l2 + index * 8).await?, guest)?;
                push_run(&mut runs, Run { guest, length: next.min(end) - guest, cell });
                guest = next;
            }
        }
        Ok(runs)
    }
}
