//! QEMU's copy-on-write format, versions 2 and 3.
//!
//! Invariants
//! - All numbers of the file are checked before they are used: nothing it says makes memory grow beyond the limits of
//!   [`crate::limits`], overflow, or read outside the file.
//! - Features that are not known are refused by name: an image is read right or not at all.
//!
//! # Source
//! `docs/interop/qcow2.rst` of QEMU.

mod extension;
mod header;
mod snapshot;
mod table;

use std::sync::Arc;

use ferry_core::{BlockSource, Error, Result};

use crate::env::Env;
use crate::format::clustered::{Clustered, Parts};
use crate::format::pages::Pages;
use crate::format::qcow::agree;
use crate::open::Beside;
use table::{L1, Qcow2};

/// Opens an image of version 2 or 3.
///
/// # Errors
/// `Invalid`, `Unsupported`, `Corrupt`, as [`super::qcow::open`].
pub(crate) async fn open(
    pages: Pages,
    version: u32,
    beside: Beside,
    env: &Env,
) -> Result<Arc<dyn BlockSource>> {
    let file = Arc::clone(pages.stream());
    let name = file.describe();
    let header = header::read(&pages, version).await.map_err(|e| e.with("file", &name))?;
    if header.is_corrupt && !beside.accept_corrupt {
        return Err(Error::corrupt("the image says that it is damaged: repair it, or say accept_corrupt")
            .with("file", &name));
    }
    agree("backing", header.backing_name.as_deref(), beside.backing.is_some(), &name)?;
    let data_name = header.has_data_file.then(|| header.data_name.as_deref().unwrap_or_default());
    agree("data_file", data_name, beside.data_file.is_some(), &name)?;
    // The first table is there, and the first read need not fetch it.
    header.l1.touch(&pages).await.map_err(|e| e.with("file", &name))?;
    let taken = snapshot::read(&pages, &header).await.map_err(|e| e.with("file", &name))?;
    let (snapshots, tables): (Vec<_>, Vec<L1>) = taken.into_iter().unzip();
    let parts = Parts {
        data: beside.data_file.unwrap_or_else(|| Arc::clone(&file)),
        file,
        backing: beside.backing,
        packing: header.packing,
        cluster_size: 1 << header.cluster_bits,
        size: header.size,
        snapshots,
        env: env.clone(),
    };
    Ok(Arc::new(Clustered::new(Qcow2::new(pages, header, tables), parts)))
}
