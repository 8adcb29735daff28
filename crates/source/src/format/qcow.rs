//! QEMU's copy-on-write formats, which begin with the same four bytes and a version.

use std::sync::Arc;

use ferry_core::{BlockSource, Errno, Error, Result};

use crate::env::Env;
use crate::format::pages::Pages;
use crate::format::{qcow1, qcow2};
use crate::open::Beside;
use crate::stream::Stream;

/// `QFI\xfb`
const MAGIC: u32 = 0x5146_49fb;

/// Which versions will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Versions {
    /// 1, 2 and 3.
    All,
    /// 2 and 3.
    Qcow2,
}

/// Opens an image of whichever version the file says.
///
/// # Errors
/// `Invalid` for what is no qcow image, with `rbd`'s texts; `Unsupported` for what is not read; `Corrupt` for damage.
pub(crate) async fn open(
    file: Arc<dyn Stream>,
    beside: Beside,
    versions: Versions,
    env: &Env,
) -> Result<Arc<dyn BlockSource>> {
    let name = file.describe();
    if file.size() < 8 {
        let short = Error::invalid("the file is too short for a QCOW header").errno_is(Errno::ERANGE);
        return Err(short.with("file", name).with("size", file.size()));
    }
    let pages = Pages::new(file);
    let start = pages.bytes(0, 8).await?;
    if number(&start, 0) != MAGIC {
        return Err(Error::invalid("invalid QCOW header magic").with("file", name));
    }
    match (number(&start, 4), versions) {
        (1, Versions::All) => qcow1::open(pages, beside, env).await,
        (version @ (2 | 3), _) => qcow2::open(pages, version, beside, env).await,
        (version, _) => {
            Err(Error::invalid(format!("invalid QCOW header version {version}")).with("file", name))
        }
    }
}

/// The big-endian number of 32 bits at a place of a header; 0 where the header ends before.
pub(crate) fn number(header: &[u8], at: usize) -> u32 {
    let bytes = header.get(at..).and_then(|rest| rest.first_chunk::<4>());
    bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// The big-endian number of 64 bits at a place of a header; 0 where the header ends before.
pub(crate) fn wide(header: &[u8], at: usize) -> u64 {
    u64::from(number(header, at)) << 32 | u64::from(number(header, at + 4))
}

/// Refuses a spec that gives an image what it does not want, and one that does not give what it wants.
///
/// # Errors
/// `Unsupported` with what to say in the spec; `Invalid` for what means nothing.
pub(crate) fn agree(what: &'static str, wanted: Option<&str>, is_given: bool, file: &str) -> Result<()> {
    match (wanted, is_given) {
        (Some(name), false) => Err(Error::unsupported(
            "the image needs another file, which the spec has to name: a file does not decide itself what is opened",
        )
        .with("file", file)
        .with("key", what)
        .with("wanted", format!("{name:?}"))),
        (None, true) => {
            Err(Error::invalid("the image has no such file, the spec names one").with("file", file).with("key", what))
        }
        (Some(_), true) | (None, false) => Ok(()),
    }
}
