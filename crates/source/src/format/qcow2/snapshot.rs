//! The table of snapshots inside an image.

use std::collections::BTreeMap;

use ferry_core::{Error, Result, SourceSnapshot, Timestamp};

use super::header::Header;
use super::table::L1;
use crate::format::pages::Pages;
use crate::format::qcow::{number, wide};
use crate::format::uuid_of;
use crate::limits::{QCOW2_SNAPSHOT_EXTRA_MAX, QCOW2_SNAPSHOT_TABLE_MAX};

/// Length of the fields that each entry has. Bytes.
const FIELDS: u64 = 40;

/// Reads the snapshots, oldest first, each with its first-level table. The state of a machine that one holds is not looked at.
///
/// # Errors
/// `Corrupt` where the table does not fit or an entry contradicts itself.
pub(super) async fn read(pages: &Pages, header: &Header) -> Result<Vec<(SourceSnapshot, L1)>> {
    let mut found = Vec::new();
    let mut names = BTreeMap::new();
    let mut at = header.snapshots_at;
    for _ in 0..header.snapshots {
        let fields = pages.bytes(at, FIELDS).await?;
        let (id_length, name_length) = (number(&fields, 12) >> 16, number(&fields, 12) & 0xffff);
        let extra_length = number(&fields, 36);
        if extra_length > QCOW2_SNAPSHOT_EXTRA_MAX {
            return Err(Error::corrupt("a snapshot has too much extra data").with("length", extra_length));
        }
        let rest_length = u64::from(extra_length) + u64::from(id_length) + u64::from(name_length);
        let end = (at + FIELDS + rest_length).next_multiple_of(8);
        if end - header.snapshots_at > QCOW2_SNAPSHOT_TABLE_MAX {
            return Err(Error::corrupt("the table of snapshots is too large"));
        }
        let rest = pages.bytes(at + FIELDS, rest_length).await?;
        let (extra, strings) = rest.split_at(index(extra_length));
        let (id, name) = strings.split_at(index(id_length));
        // Without the size of its device a snapshot is as large as HEAD.
        let size = if extra_length >= 16 { wide(extra, 8) } else { header.size };
        let l1_entries = number(&fields, 8);
        let l1 = L1::new(wide(&fields, 0), l1_entries, size, header.cluster_bits, header.has_subclusters);
        let name = unique(&mut names, name, id);
        let l1 = l1.map_err(|e| e.with("snapshot", &name))?;
        let taken =
            Timestamp { seconds: number(&fields, 16), nanoseconds: number(&fields, 20).min(999_999_999) };
        found.push((SourceSnapshot { name, size, taken: Some(taken) }, l1));
        at = end;
    }
    Ok(found)
}

fn index(length: u32) -> usize {
    usize::try_from(length).expect("below the limits")
}

/// The name a snapshot goes by: its own; a UUID made of its id where that is empty; with a number where another has it. Of each
/// name it is remembered which number comes next, so that a table full of one name takes no longer than another.
fn unique(names: &mut BTreeMap<String, u32>, name: &[u8], id: &[u8]) -> String {
    let own = match name {
        [] => uuid_of(&[id]),
        name => String::from_utf8_lossy(name).into_owned(),
    };
    let Some(next) = names.get(&own).copied() else {
        names.insert(own.clone(), 2);
        return own;
    };
    let mut n = next;
    while names.contains_key(&format!("{own} ({n})")) {
        n += 1;
    }
    let chosen = format!("{own} ({n})");
    names.insert(own, n + 1);
    names.insert(chosen.clone(), 2);
    chosen
}
