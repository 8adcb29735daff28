//! Points of prepare that nobody releases any more: another program ended the migration, and knows nothing of them.

use bytes::Bytes;
use ferry_core::denc::{Decoder, Encoder};
use ferry_core::{Error, PoolId, Result, SnapId, Stamp};

use super::Header;
use crate::encoding::MigrationPhase;

/// On the target of a migration: the stamp on what ferry copied and nobody wrote since. i64, as seconds.
const KEY_COPY_STAMP: &[u8] = b"ferry.copy-stamp";

/// On the source of a migration inside one store: where the target's point of prepare is. `F(1,1)`: i64 pool, u64 id.
const KEY_TARGET_POINT: &[u8] = b"ferry.target-point";

impl Header {
    /// Notes on a target what is left on objects that are copied.
    pub fn set_copy_stamp(&mut self, stamp: Stamp) {
        let mut e = Encoder::new();
        e.i64(stamp.seconds());
        self.other.insert(Bytes::from_static(KEY_COPY_STAMP), e.finish());
    }

    /// Forgets what is left on objects that are copied.
    pub fn clear_copy_stamp(&mut self) {
        self.other.remove(KEY_COPY_STAMP);
    }

    /// What is left on objects that are copied; `None` where no stamp was agreed on at prepare.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn copy_stamp(&self) -> Result<Option<Stamp>> {
        let Some(value) = self.other.get(KEY_COPY_STAMP) else { return Ok(None) };
        let corrupt = || Error::corrupt("the stamp of what is copied is none");
        Stamp::from_seconds(Decoder::new(value).i64()?).ok_or_else(corrupt).map(Some)
    }

    /// Notes on a source where its target's point of prepare is: the target may be removed by a program that does not know it.
    pub fn set_target_point(&mut self, pool: PoolId, snap: SnapId) {
        let mut e = Encoder::new();
        e.frame(1, 1, |e| {
            e.i64(pool.0);
            e.u64(snap.0);
        });
        self.other.insert(Bytes::from_static(KEY_TARGET_POINT), e.finish());
    }

    /// Forgets the target's point of prepare; nothing where none is noted.
    pub fn clear_target_point(&mut self) {
        self.other.remove(KEY_TARGET_POINT);
    }

    /// Where the target's point of prepare is, on a source.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn target_point(&self) -> Result<Option<(PoolId, SnapId)>> {
        let Some(value) = self.other.get(KEY_TARGET_POINT) else { return Ok(None) };
        let point =
            Decoder::new(value).frame(1, |d, _| Ok::<_, Error>((PoolId(d.i64()?), SnapId(d.u64()?))))?;
        Ok(Some(point))
    }

    /// The points of prepare, in the store `store`, of a migration inside it that another program committed (this being the target)
    /// or aborted (this being the source); `pool` is the image's.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn left_points(&self, store: [u8; 16], pool: PoolId) -> Result<Vec<(PoolId, SnapId)>> {
        let left = |i: &&crate::encoding::MigrationIntent| {
            i.phase == MigrationPhase::Underway && i.peer.store == store
        };
        let Some(intent) = self.intent.as_ref().filter(left) else { return Ok(Vec::new()) };
        if self.migration.is_some() {
            return Ok(Vec::new());
        }
        let own = intent.base.map(|base| (self.data_pool_or(pool), base.snap));
        Ok(own.into_iter().chain(self.target_point()?).collect())
    }

    /// Forgets the points of prepare that [`Header::left_points`] names, which have been released.
    pub fn forget_left_points(&mut self) {
        if let Some(intent) = &mut self.intent {
            intent.base = None;
            intent.overlaps.clear();
        }
        self.clear_target_point();
    }
}
