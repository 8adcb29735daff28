//! `rbd merge-diff`: two diffs, one after the other in time, as one.

use std::io::{Read, Write};

use ferry_core::{Error, Result};

use crate::progress::Progress;
use crate::stream::{DiffFile, DiffHeader, DiffReader, DiffRecord, DiffVersion, DiffWriter};

/// Writes to `target` one diff that does what `first` and then `second` do. Progress counts bytes of the image.
///
/// # Errors
/// `Invalid` (22) where the first does not lead to where the second starts; `Unsupported` (95) where the changes of one are not
/// ascending; `Corrupt` (22, 74) for broken streams.
pub fn merge_diff<A: Read, B: Read, W: Write>(
    first: A,
    second: B,
    target: W,
    progress: Progress<'_>,
) -> Result<W> {
    let (mut first, mut second) = (DiffFile::new(first), DiffFile::new(second));
    let (older, newer) = (first.open(DiffVersion::V1)?, second.open(DiffVersion::V1)?);
    let (begin, end) = (older.header().clone(), newer.header().clone());
    if begin.to_snap.as_deref().unwrap_or("") != end.from_snap.as_deref().unwrap_or("") {
        return Err(Error::invalid("the first diff does not lead to where the second starts"));
    }
    let header =
        DiffHeader { from_snap: begin.from_snap, to_snap: end.to_snap, is_protected: false, size: end.size };
    let mut writer = DiffWriter::new(target, DiffVersion::V1, &header)?;
    let total = end.size.unwrap_or(0);
    // What the first changed behind the second's end is gone; what the second added behind the first's reads as zeros.
    let grown = match (begin.size, end.size) {
        (Some(before), Some(after)) if before < after => {
            Some(DiffRecord::Zero { offset: before, length: after - before })
        }
        (Some(_) | None, Some(_) | None) => None,
    };
    let mut older = Cursor::new(older, end.size.unwrap_or(u64::MAX), grown)?;
    let mut newer = Cursor::new(newer, u64::MAX, None)?;
    loop {
        match (older.current.take(), newer.current.take()) {
            (None, None) => break,
            (Some(old), None) => {
                emit(&mut writer, &old)?;
                older.advance()?;
            }
            (None, Some(new)) => {
                progress(start(&new), total);
                emit(&mut writer, &new)?;
                newer.advance()?;
            }
            (Some(old), Some(new)) => step(&mut writer, (&mut older, old), (&mut newer, new))?,
        }
    }
    progress(total, total);
    writer.finish()
}

/// One step where both have something: the newer one wins where they overlap.
fn step<A: Read, B: Read, W: Write>(
    writer: &mut DiffWriter<W>,
    (older, old): (&mut Cursor<'_, A>, DiffRecord),
    (newer, new): (&mut Cursor<'_, B>, DiffRecord),
) -> Result<()> {
    if start(&old) < start(&new) {
        let (head, tail) = split(old, start(&new));
        emit(writer, &head)?;
        older.put_back(tail)?;
        newer.current = Some(new);
    } else if start(&old) < end(&new) {
        let (_, tail) = split(old, end(&new));
        older.put_back(tail)?;
        newer.current = Some(new);
    } else {
        emit(writer, &new)?;
        older.current = Some(old);
        newer.advance()?;
    }
    Ok(())
}

/// The changes of one diff, one at a time.
struct Cursor<'a, R> {
    reader: DiffReader<'a, R>,
    current: Option<DiffRecord>,
    /// Changes from here on are dropped. Bytes from the start of the image.
    limit: u64,
    /// Comes behind the last.
    last: Option<DiffRecord>,
    /// Where the change before ended.
    at: u64,
}

impl<'a, R: Read> Cursor<'a, R> {
    /// Stands on the first change.
    fn new(reader: DiffReader<'a, R>, limit: u64, last: Option<DiffRecord>) -> Result<Self> {
        let mut cursor = Self { reader, current: None, limit, last, at: 0 };
        cursor.advance()?;
        Ok(cursor)
    }

    /// Goes on to the next change.
    fn advance(&mut self) -> Result<()> {
        self.current = loop {
            let Some(record) = self.reader.next_record()? else { break self.last.take() };
            if start(&record) < self.at {
                return Err(Error::unsupported("the changes of a diff to merge are not ascending")
                    .with("offset", start(&record)));
            }
            self.at = end(&record);
            if start(&record) < self.limit {
                break split(record, self.limit).0.into();
            }
        };
        Ok(())
    }

    /// Stands on what is left of a change, or on the next one.
    fn put_back(&mut self, left: Option<DiffRecord>) -> Result<()> {
        match left {
            Some(record) => {
                self.current = Some(record);
                Ok(())
            }
            None => self.advance(),
        }
    }
}

/// Where a change begins. Bytes from the start of the image.
fn start(record: &DiffRecord) -> u64 {
    match record {
        DiffRecord::Write { offset, .. } | DiffRecord::Zero { offset, .. } => *offset,
    }
}

/// The first byte behind a change.
fn end(record: &DiffRecord) -> u64 {
    match record {
        DiffRecord::Write { offset, data } => offset.saturating_add(data.len() as u64),
        DiffRecord::Zero { offset, length } => offset.saturating_add(*length),
    }
}

/// Cuts a change at an image offset behind its start; nothing is left where it ends before.
fn split(record: DiffRecord, at: u64) -> (DiffRecord, Option<DiffRecord>) {
    if end(&record) <= at {
        return (record, None);
    }
    match record {
        DiffRecord::Write { offset, mut data } => {
            let head = usize::try_from(at - offset).expect("a cut inside a buffer fits memory");
            let tail = data.split_off(head);
            (DiffRecord::Write { offset, data }, Some(DiffRecord::Write { offset: at, data: tail }))
        }
        DiffRecord::Zero { offset, length } => (
            DiffRecord::Zero { offset, length: at - offset },
            Some(DiffRecord::Zero { offset: at, length: offset + length - at }),
        ),
    }
}

/// Writes one change.
fn emit<W: Write>(writer: &mut DiffWriter<W>, record: &DiffRecord) -> Result<()> {
    match record {
        DiffRecord::Write { offset, data } => writer.write(*offset, data),
        DiffRecord::Zero { offset, length } => writer.zero(*offset, *length),
    }
}
