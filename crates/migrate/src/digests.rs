//! The digests that an execute keeps of what it read of the source, so that a verification need not read it again.
//!
//! They lie in the data of the target's header object, which RBD leaves empty: a block that tells of what they are, and behind
//! it a row of numbers for each point. Layout: `docs/format/migration-record.md`.
//!
//! Invariants
//! - What is not a table of this migration counts for nothing, and neither does a number that was not written: the source is
//!   read in its place.
//! - A number is that of bytes that were read, or says that the store copied them unread. It is never told from what was written.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use ferry_core::checksum::crc32c;
use ferry_core::denc::{Decoder, Encoder};
use ferry_core::{
    Effect, Error, ErrorKind, Guard, ObjectId, ReadOp, ReadReply, Result, SnapId, Store, WriteOp,
};
use ferry_image::digest::Digest;
use ferry_image::header::{self, Header};
use ferry_image::image::Image;
use ferry_image::io::layout_of;
use ferry_image::layout::ObjectNo;

use crate::ends::End;

/// Where the rows begin. Bytes.
const HEAD: u64 = 4096;

/// Bytes of a number.
const ENTRY: u64 = 16;

/// How long a table may get: what it has no place for is read again. An object of RADOS holds 128 MiB. Bytes.
const TABLE_MAX: u64 = 64 << 20;

/// Points that the first block has room for.
const ROWS_MAX: usize = 480;

/// What the first block begins with.
const MAGIC: &[u8; 8] = b"ferrydig";

/// The newest version of it that is understood.
const VERSION: u8 = 1;

/// How much of a row is read at once. Bytes.
const READ_MAX: u64 = 4 << 20;

/// How often a table that another begins at the same time is looked at again.
const RETRIES_MAX: usize = 256;

/// How a table is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    /// The migration.
    uuid: [u8; 16],
    /// Objects in a row.
    objects: u64,
    /// Points of the target.
    rows: Vec<SnapId>,
}

impl Shape {
    /// That of a new table; `None` where the image was not prepared by ferry.
    fn new(header: &Header) -> Result<Option<Self>> {
        let (Some(intent), Some(base)) = (&header.intent, header.base()) else { return Ok(None) };
        let most = (TABLE_MAX - HEAD) / ENTRY;
        let objects = layout_of(header)?.object_count(base.largest).clamp(1, most);
        let snaps = header.migration.iter().flat_map(|m| m.snap_seqs.values().map(|s| SnapId(*s)));
        let mut rows: Vec<SnapId> = [base.snap].into_iter().chain(snaps).collect();
        rows.truncate(usize::try_from(most / objects).unwrap_or(usize::MAX).min(ROWS_MAX));
        Ok(Some(Self { uuid: intent.uuid, objects, rows }))
    }

    /// Where a number lies; `None` where the table has no place for it.
    fn place(&self, point: SnapId, object: u64) -> Option<u64> {
        let row = self.rows.iter().position(|p| *p == point)? as u64;
        (object < self.objects).then(|| HEAD + (row * self.objects + object) * ENTRY)
    }

    /// The first block.
    fn encode(&self) -> Bytes {
        let mut e = Encoder::new();
        e.raw(MAGIC);
        e.frame(VERSION, VERSION, |e| {
            e.raw(&self.uuid);
            e.u64(self.objects);
            e.u32(u32::try_from(self.rows.len()).expect("a block of rows"));
            self.rows.iter().for_each(|row| e.u64(row.0));
        });
        let body = e.finish();
        let mut block = vec![0; usize::try_from(HEAD).expect("a block")];
        block[..body.len()].copy_from_slice(&body);
        let end = block.len() - 4;
        let sum = crc32c(&block[..end]);
        block[end..].copy_from_slice(&sum.to_le_bytes());
        Bytes::from(block)
    }

    /// Reads the first block; `None` where it is none.
    fn decode(block: &[u8]) -> Option<Self> {
        let (body, sum) = block.split_last_chunk::<4>()?;
        if body.len() as u64 + 4 != HEAD || crc32c(body) != u32::from_le_bytes(*sum) {
            return None;
        }
        let mut d = Decoder::new(body.strip_prefix(MAGIC)?);
        d.frame(VERSION, |d, _| {
            let mut uuid = [0; 16];
            uuid.copy_from_slice(d.raw(16)?);
            let objects = d.u64()?;
            let mut rows = Vec::new();
            for _ in 0..d.u32()? {
                rows.push(SnapId(d.u64()?));
            }
            Ok(Self { uuid, objects, rows })
        })
        .ok()
        .filter(|shape| shape.objects <= TABLE_MAX / ENTRY && shape.rows.len() <= ROWS_MAX)
    }
}

/// The header object of an image, and the table in it.
#[derive(Debug)]
struct Table {
    store: Arc<dyn Store>,
    object: ObjectId,
    uuid: [u8; 16],
}

impl Table {
    /// `None` where the image was not prepared by ferry.
    fn of(end: &End) -> Option<Self> {
        let uuid = end.intent()?.uuid;
        let object = header::object(end.pool.id(), &end.pool.namespace, &end.id);
        Some(Self { store: Arc::clone(&end.pool.store), object, uuid })
    }

    /// The version of the object, and the table's shape where one was begun.
    async fn look(&self) -> Result<(u64, Option<Shape>)> {
        let reply = self.store.read(&self.object, SnapId::HEAD, ReadOp::data(0, HEAD)).await?;
        let shape = Shape::decode(&reply.data.to_vec(0, HEAD)).filter(|s| s.uuid == self.uuid);
        Ok((reply.version, shape))
    }
}

/// Writes digests while objects are copied.
#[derive(Debug)]
pub(crate) struct Keeper {
    table: Option<Table>,
    /// Of a table that is there.
    shape: Option<Shape>,
    /// Of one that is begun with the first digests.
    planned: Option<Shape>,
    pending: BTreeMap<(SnapId, u64), Digest>,
}

impl Keeper {
    /// Of the target of a migration.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn open(target: &End) -> Result<Self> {
        let table = Table::of(target);
        let shape = match &table {
            Some(table) => table.look().await?.1,
            None => None,
        };
        let planned = Shape::new(target.need_header()?)?;
        Ok(Self { table, shape, planned, pending: BTreeMap::new() })
    }

    /// Takes what was read of an object, to be written later.
    pub(crate) fn note(&mut self, object: ObjectNo, digests: &[(SnapId, Digest)]) {
        let Some(shape) = self.shape.as_ref().or(self.planned.as_ref()) else { return };
        let with_place = digests.iter().filter(|(point, _)| shape.place(*point, object.0).is_some());
        self.pending.extend(with_place.map(|(point, digest)| ((*point, object.0), *digest)));
    }

    /// Writes what was noted.
    ///
    /// # Errors
    /// Those of the store.
    ///
    /// # Crash safety
    /// One op; durable after the next flush.
    pub(crate) async fn write(&mut self) -> Result<()> {
        let Some(table) = self.table.as_ref().filter(|_| !self.pending.is_empty()) else { return Ok(()) };
        for _ in 0..RETRIES_MAX {
            // A header that is gone is not made again.
            let mut op = WriteOp::new().guard(Guard::AssertExists);
            let shape = match (&self.shape, &self.planned) {
                (Some(shape), _) => shape,
                (None, Some(planned)) => {
                    let (version, found) = table.look().await?;
                    if found.is_some() {
                        self.shape = found;
                        continue;
                    }
                    op = op.guard(Guard::AssertVersion(version));
                    op = op.effect(Effect::Write { offset: 0, data: planned.encode() });
                    planned
                }
                (None, None) => return Ok(()),
            };
            op.effects.extend(writes(shape, &self.pending));
            match table.store.write(&table.object, op).await {
                Err(e) if e.kind() == ErrorKind::Conflict && self.shape.is_none() => {}
                Err(e) => return Err(e),
                Ok(_) => {
                    let shape = shape.clone();
                    self.shape = Some(shape);
                    self.pending.clear();
                    return Ok(());
                }
            }
        }
        Err(Error::busy("the image's header is changed by others all the time").with("object", &table.object))
    }
}

/// Numbers as writes, neighbours joined.
fn writes(shape: &Shape, digests: &BTreeMap<(SnapId, u64), Digest>) -> Vec<Effect> {
    let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
    for ((point, object), digest) in digests {
        let Some(place) = shape.place(*point, *object) else { continue };
        // Zero is what was not written.
        let number = digest.0.wrapping_add(1).to_le_bytes();
        match runs.last_mut() {
            Some((at, bytes)) if *at + bytes.len() as u64 == place => bytes.extend_from_slice(&number),
            Some(_) | None => runs.push((place, number.to_vec())),
        }
    }
    runs.into_iter().map(|(offset, data)| Effect::Write { offset, data: Bytes::from(data) }).collect()
}

/// The digests that were kept.
#[derive(Debug)]
pub(crate) struct Kept {
    table: Option<(Table, Shape)>,
}

/// Those of one point.
#[derive(Debug, Default)]
pub(crate) struct Row {
    numbers: Vec<u8>,
}

impl Kept {
    /// None.
    pub(crate) fn none() -> Self {
        Self { table: None }
    }

    /// Those of the target of a migration.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn open(target: &End) -> Result<Self> {
        let Some(table) = Table::of(target) else { return Ok(Self::none()) };
        let shape = table.look().await?.1;
        Ok(Self { table: shape.map(|shape| (table, shape)) })
    }

    /// Those of a point of the target.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn row(&self, point: SnapId) -> Result<Row> {
        let Some((table, shape)) = &self.table else { return Ok(Row::default()) };
        let Some(place) = shape.place(point, 0) else { return Ok(Row::default()) };
        let (mut at, end) = (place, place + shape.objects * ENTRY);
        let mut numbers = Vec::new();
        while at < end {
            let length = READ_MAX.min(end - at);
            let op = ReadOp::data(at, length);
            let ReadReply { data, .. } = table.store.read(&table.object, SnapId::HEAD, op).await?;
            numbers.extend(data.to_vec(at, length));
            at += length;
        }
        Ok(Row { numbers })
    }
}

impl Row {
    /// What was read of the source in an object.
    pub(crate) fn get(&self, object: ObjectNo) -> Option<Digest> {
        self.number(object).filter(|digest| *digest != Digest::UNREAD)
    }

    /// Whether an object was copied, by whomever.
    pub(crate) fn was_copied(&self, object: ObjectNo) -> bool {
        self.number(object).is_some()
    }

    fn number(&self, object: ObjectNo) -> Option<Digest> {
        let at = usize::try_from(object.0.checked_mul(ENTRY)?).ok()?;
        let number = u128::from_le_bytes(*self.numbers.get(at..)?.first_chunk()?);
        number.checked_sub(1).map(Digest)
    }
}

/// Takes the table away: the image needs no digests any more.
///
/// # Errors
/// Those of the store.
pub(crate) async fn remove(target: &Image) -> Result<()> {
    let (store, object) = (&target.pool.store, target.header_object());
    if store.read(&object, SnapId::HEAD, ReadOp::stat()).await?.size > 0 {
        let op = WriteOp::new().guard(Guard::AssertExists).effect(Effect::Truncate(0));
        store.write(&object, op.full_try()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ferry_core::{Effect, SnapId};
    use ferry_image::digest::Digest;

    use super::{HEAD, Row, Shape, writes};

    fn shape() -> Shape {
        Shape { uuid: [7; 16], objects: 10, rows: vec![SnapId(9), SnapId(4)] }
    }

    #[test]
    fn the_first_block_is_read_as_it_was_written_and_not_when_it_is_damaged() {
        let block = shape().encode();
        assert_eq!(block.len() as u64, HEAD);
        assert_eq!(Shape::decode(&block), Some(shape()));
        for at in (0..block.len()).step_by(37) {
            let mut other = block.to_vec();
            other[at] ^= 1;
            assert_eq!(Shape::decode(&other), None, "{at}");
        }
        assert_eq!(Shape::decode(&[0; 4096]), None);
        assert_eq!(Shape::decode(&[]), None);
    }

    #[test]
    fn numbers_lie_in_rows_and_what_was_not_written_is_none() {
        let digests: BTreeMap<_, _> =
            [(9, 2, 5), (9, 3, u128::MAX), (4, 0, 0), (4, 7, 6), (3, 1, 1), (9, 10, 1)]
                .into_iter()
                .map(|(point, object, sum)| ((SnapId(point), object), Digest(sum)))
                .collect();
        let effects = writes(&shape(), &digests);
        let places: Vec<(u64, usize)> =
            effects
                .iter()
                .map(|e| {
                    if let Effect::Write { offset, data } = e {
                        (*offset, data.len())
                    } else {
                        panic!("{e:?}")
                    }
                })
                .collect();
        assert_eq!(places, [(HEAD + 160, 16), (HEAD + 160 + 112, 16), (HEAD + 32, 32)]);
        let mut numbers = vec![0; 64];
        let Effect::Write { data, .. } = &effects[2] else { panic!("{effects:?}") };
        numbers[32..].copy_from_slice(data);
        let row = Row { numbers };
        let got: Vec<_> = (0..5).map(|n| row.get(ferry_image::layout::ObjectNo(n))).collect();
        // A sum that cannot be told from none is none.
        assert_eq!(got, [None, None, Some(Digest(5)), None, None]);
    }

    #[test]
    fn what_was_copied_unread_is_known_to_be_copied_and_has_no_digest() {
        let effects = writes(&shape(), &[((SnapId(9), 0), Digest::UNREAD)].into());
        let [Effect::Write { data, .. }] = &effects[..] else { panic!("{effects:?}") };
        let row = Row { numbers: [&data[..], &[0; 16]].concat() };
        let object = ferry_image::layout::ObjectNo;
        assert_eq!((row.get(object(0)), row.was_copied(object(0))), (None, true));
        assert_eq!((row.get(object(1)), row.was_copied(object(1))), (None, false));
    }
}
