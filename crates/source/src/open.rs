//! Format × stream: an open source out of a spec.

use std::sync::Arc;

use ferry_core::{BlockSource, Error, Reply, Result};

use crate::env::Env;
use crate::format::qcow::{self, Versions};
use crate::format::qemu;
use crate::format::raw::Raw;
use crate::merge::Merged;
use crate::spec::{ImageFormat, ImageSpec};
use crate::stream::{self, Stream};

/// Opens a foreign image, and pins all it consists of.
///
/// # Errors
/// Those of its streams ([`stream::open()`]); `Invalid`, `Corrupt` or `Unsupported` for bytes that are not an image of the format,
/// are damaged, or need what is not there.
pub fn open(spec: &ImageSpec, env: &Env) -> Reply<Arc<dyn BlockSource>> {
    let (spec, env) = (spec.clone(), env.clone());
    Reply::pending(async move {
        let image = image(&spec, &env).await?;
        Ok(Arc::new(Merged::new(image)) as Arc<dyn BlockSource>)
    })
}

/// What an image is made of beside its own file.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// What shows through where the image has nothing.
    pub backing: Option<Arc<dyn BlockSource>>,
    /// Where its data is, if not in the file itself.
    pub data_file: Option<Arc<dyn Stream>>,
    /// Whether an image is read that says of itself that it is damaged.
    pub accept_corrupt: bool,
}

/// Opens an image over a stream that is open already.
///
/// # Errors
/// As [`open`]; `Unsupported` for a format that is not read from a stream.
pub fn over(
    format: ImageFormat,
    file: Arc<dyn Stream>,
    beside: Beside,
    env: &Env,
) -> Reply<Arc<dyn BlockSource>> {
    let env = env.clone();
    Reply::pending(async move {
        match format {
            ImageFormat::Raw => Ok(Arc::new(Raw::new(file, Vec::new())) as Arc<dyn BlockSource>),
            ImageFormat::Qcow => qcow::open(file, beside, Versions::All, &env).await,
            ImageFormat::Qcow2 => qcow::open(file, beside, Versions::Qcow2, &env).await,
            ImageFormat::Qemu(format) => {
                Err(Error::unsupported("images of this format are read from files only")
                    .with("format", format.name()))
            }
        }
    })
}

async fn image(spec: &ImageSpec, env: &Env) -> Result<Arc<dyn BlockSource>> {
    match spec.format {
        ImageFormat::Raw => return raw(spec, env).await,
        ImageFormat::Qemu(format) => return qemu::open(spec, format, env).await,
        ImageFormat::Qcow | ImageFormat::Qcow2 => {}
    }
    let file = stream::open(&spec.stream, env).await?;
    let backing = match &spec.backing {
        // Boxed by `open`: a chain is as long as the spec, which is limited.
        Some(backing) => Some(open(backing, env).await?),
        None => None,
    };
    let data_file = match &spec.data_file {
        Some(data_file) => Some(stream::open(data_file, env).await?),
        None => None,
    };
    let beside = Beside { backing, data_file, accept_corrupt: spec.accept_corrupt };
    over(spec.format, file, beside, env).await
}

async fn raw(spec: &ImageSpec, env: &Env) -> Result<Arc<dyn BlockSource>> {
    let mut older = Vec::with_capacity(spec.snapshots.len());
    for snapshot in &spec.snapshots {
        older.push((snapshot.name.clone(), stream::open(&snapshot.stream, env).await?));
    }
    let head = stream::open(&spec.stream, env).await?;
    Ok(Arc::new(Raw::new(head, older)))
}
