//! Format × stream: an open source out of a spec.

use std::sync::Arc;

use ferry_core::{BlockSource, Error, Reply, Result};

use crate::env::Env;
use crate::format::raw::Raw;
use crate::spec::{ImageFormat, ImageSpec};
use crate::stream;

/// Opens a foreign image, and pins all it consists of.
///
/// # Errors
/// Those of its streams ([`stream::open()`]); `Invalid`, `Corrupt` or `Unsupported` for bytes that are not an image of the format,
/// are damaged, or need what is not there.
pub fn open(spec: &ImageSpec, env: &Env) -> Reply<Arc<dyn BlockSource>> {
    let (spec, env) = (spec.clone(), env.clone());
    Reply::pending(async move { image(&spec, &env).await })
}

async fn image(spec: &ImageSpec, env: &Env) -> Result<Arc<dyn BlockSource>> {
    match spec.format {
        ImageFormat::Raw => raw(spec, env).await,
        ImageFormat::Qcow | ImageFormat::Qcow2 | ImageFormat::Qemu(_) => {
            Err(Error::unsupported("images of this format cannot be read by this version")
                .with("format", spec.format.name()))
        }
    }
}

async fn raw(spec: &ImageSpec, env: &Env) -> Result<Arc<dyn BlockSource>> {
    let mut older = Vec::with_capacity(spec.snapshots.len());
    for snapshot in &spec.snapshots {
        older.push((snapshot.name.clone(), stream::open(&snapshot.stream, env).await?));
    }
    let head = stream::open(&spec.stream, env).await?;
    Ok(Arc::new(Raw::new(head, older)))
}
