//! Pages of omap entries: librados takes cursors and prefixes as C strings, the contract as bytes.
//!
//! Up to the first NUL librados can be told; what it gives too much is dropped here.

use std::ffi::CString;

use bytes::Bytes;
use ferry_core::limits::OMAP_PAGE_MAX;
use ferry_core::{Error, OmapPage, OmapRead, Result};

use crate::handle::op::OmapStep;
use crate::limits::OMAP_SKIP_MAX;

#[cfg(test)]
mod tests;

/// What was asked for.
#[derive(Debug)]
pub(super) struct Page(OmapRead);

/// The bytes before the first NUL.
fn nameable(bytes: &[u8]) -> CString {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    CString::new(&bytes[..end]).expect("no NUL before the first")
}

impl Page {
    pub(super) fn new(asked: OmapRead) -> Self {
        Self(asked)
    }

    /// The step to ask librados.
    pub(super) fn step(&self) -> OmapStep<'_> {
        match &self.0 {
            OmapRead::Keys(keys) => OmapStep::Keys(keys),
            OmapRead::Page { after, prefix, max } => {
                let exact = !after.contains(&0) && !prefix.contains(&0);
                let max = if exact { (*max).min(OMAP_PAGE_MAX) as u64 } else { OMAP_SKIP_MAX };
                OmapStep::Page { after: nameable(after), prefix: nameable(prefix), max }
            }
        }
    }

    /// What was asked for, out of what came.
    pub(super) fn pick(&self, came: Vec<(Bytes, Bytes)>, more: bool) -> Result<OmapPage> {
        let OmapRead::Page { after, prefix, max } = &self.0 else {
            return Ok(OmapPage { entries: came, more: false });
        };
        // Behind the prefix nothing more can come.
        let past = came.last().is_some_and(|(key, _)| key > prefix && !key.starts_with(prefix));
        let none_came = came.is_empty();
        let wanted = |(key, _): &(Bytes, Bytes)| key > after && key.starts_with(prefix);
        let mut entries: Vec<_> = came.into_iter().filter(wanted).collect();
        let max = (*max).min(OMAP_PAGE_MAX);
        let cut = entries.len() > max;
        entries.truncate(max);
        let more = cut || (more && !past);
        if more && entries.is_empty() && !none_came {
            return Err(Error::unsupported("paging behind a key with a NUL among too many alike")
                .with("key", after.escape_ascii()));
        }
        Ok(OmapPage { entries, more })
    }
}
