//! What was read of the source while an object got its history: at which points, and its digest.

use std::collections::BTreeMap;

use ferry_core::SnapId;

use super::step::is_foreign;
use super::{Migrated, Move, Moved};
use crate::digest::{Blocks, Digest, has_whole_blocks};
use crate::revision::Revision;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Trail {
    /// What the source shows in the object at the newest point that was looked at, where that is known.
    newest: Option<(SnapId, Blocks)>,
    /// The newest point at which the store copied the object, which nobody read.
    unread: Option<SnapId>,
    digests: BTreeMap<SnapId, Digest>,
}

impl Trail {
    /// What is known of an object before it is read at `point`: nothing where all of it will be read, else what it shows at
    /// `before`. `None` where its digest cannot be told.
    pub(super) fn begin(&mut self, point: &Revision, before: Option<&Revision>) -> Option<Blocks> {
        if !has_whole_blocks(point.layout) {
            return None;
        }
        let newest = self.newest.take();
        match before {
            None => Some(Blocks::default()),
            Some(before) if is_foreign(point) => {
                newest.filter(|(at, _)| *at == before.snap).map(|(_, blocks)| blocks)
            }
            // What an image says has not changed is to be verified.
            Some(_) => None,
        }
    }

    /// The object was read, as it is at `point`.
    pub(super) fn read(&mut self, point: &Revision, blocks: Option<Blocks>) {
        let Some(blocks) = blocks else { return };
        self.digests.insert(point.snap, blocks.digest());
        self.newest = Some((point.snap, blocks));
    }

    /// The store copied the object, as it is at `point`.
    pub(super) fn copied_unread(&mut self, point: &Revision) {
        self.digests.insert(point.snap, Digest::UNREAD);
        self.unread = Some(point.snap);
    }

    /// The object is at `newer` as it is at `older`, the point before, as far as the store tells: what is said of the one that the
    /// store copied is said of the other.
    pub(super) fn goes_on(&mut self, older: &Revision, newer: &Revision) {
        if self.unread == Some(older.snap) {
            self.copied_unread(newer);
        }
    }

    /// Whether it is known what the object is at a point, the newest so far.
    pub(super) fn knows(&self, point: &Revision) -> bool {
        self.newest.as_ref().is_some_and(|(at, _)| *at == point.snap)
    }

    /// The object is at `newer` as it is at `older`, the point before; `surely` so.
    pub(super) fn shows_same(&mut self, older: &Revision, newer: &Revision, surely: bool) {
        let Some((_, blocks)) = self.newest.take_if(|(at, _)| *at == older.snap) else { return };
        if surely {
            self.digests.insert(newer.snap, blocks.digest());
            self.newest = Some((newer.snap, blocks));
        }
    }

    /// What came of it all.
    pub(super) fn end(self, migrated: Migrated, moved: Moved) -> Move {
        Move { migrated, moved, digests: self.digests.into_iter().collect() }
    }
}
