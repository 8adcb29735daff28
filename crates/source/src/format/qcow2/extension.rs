//! Header extensions: names of features, and of the file with the data.

use std::collections::BTreeMap;

use ferry_core::{Error, Result};

use crate::format::pages::Pages;
use crate::format::qcow::number;
use crate::limits::{FILE_NAME_MAX, QCOW2_EXTENSIONS_MAX, QCOW2_FEATURE_NAMES_MAX};

/// The end of the extensions.
const END: u32 = 0;
/// Names of features.
const FEATURE_NAMES: u32 = 0x6803_f857;
/// The name of the file with the data.
const DATA_FILE: u32 = 0x4441_5441;

/// Length of an entry of the table of feature names: kind, bit, name. Bytes.
const FEATURE_ENTRY: usize = 48;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    /// Names of incompatible features, by bit.
    pub(super) incompatible_names: BTreeMap<u32, String>,
    /// The name of the file with the data.
    pub(super) data_name: Option<String>,
}

/// Reads the extensions between `from` and `to`. Those that mean nothing for reading are passed over.
///
/// # Errors
/// `Corrupt` where they do not fit.
pub(super) async fn read(pages: &Pages, from: u64, to: u64) -> Result<Extensions> {
    let mut found = Extensions::default();
    let to = to.min(pages.stream().size());
    let mut at = from;
    for _ in 0..QCOW2_EXTENSIONS_MAX {
        if at + 8 > to {
            return Ok(found);
        }
        let start = pages.bytes(at, 8).await?;
        let (kind, length) = (number(&start, 0), number(&start, 4));
        if kind == END {
            return Ok(found);
        }
        let end = at + 8 + u64::from(length);
        if end > to {
            return Err(Error::corrupt("a header extension does not fit")
                .with("offset", at)
                .with("length", length));
        }
        match kind {
            FEATURE_NAMES if length <= QCOW2_FEATURE_NAMES_MAX => {
                let table = pages.bytes(at + 8, u64::from(length)).await?;
                found.incompatible_names = incompatible_names(&table);
            }
            DATA_FILE if length <= FILE_NAME_MAX => {
                let name = pages.bytes(at + 8, u64::from(length)).await?;
                found.data_name = Some(String::from_utf8_lossy(&name).into_owned());
            }
            _ => {}
        }
        at = end.next_multiple_of(8);
    }
    Err(Error::corrupt("there are more header extensions than there can be")
        .with("most", QCOW2_EXTENSIONS_MAX))
}

fn incompatible_names(table: &[u8]) -> BTreeMap<u32, String> {
    let entries = table.chunks_exact(FEATURE_ENTRY).filter(|entry| entry[0] == 0);
    let named = entries.map(|entry| {
        let name = entry[2..].split(|byte| *byte == 0).next().unwrap_or_default();
        (u32::from(entry[1]), String::from_utf8_lossy(name).into_owned())
    });
    named.collect()
}
