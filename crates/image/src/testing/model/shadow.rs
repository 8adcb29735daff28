//! What an image should hold.

use ferry_core::SnapId;

/// An image as the model sees it.
#[derive(Clone, Debug)]
pub(super) struct Shadow {
    /// Which pool it is in.
    pub(super) pool: usize,
    /// Its name.
    pub(super) name: String,
    /// HEAD.
    pub(super) head: Vec<u8>,
    /// Oldest first.
    pub(super) snaps: Vec<ShadowSnap>,
    /// Its id, while it is in the trash.
    pub(super) trash_id: Option<String>,
}

/// A snapshot.
#[derive(Clone, Debug)]
pub(super) struct ShadowSnap {
    /// Its name.
    pub(super) name: String,
    /// Its id.
    pub(super) id: SnapId,
    /// What it holds.
    pub(super) data: Vec<u8>,
    /// Whether it is protected.
    pub(super) is_protected: bool,
}

impl Shadow {
    /// An image of zeros.
    pub(super) fn new(pool: usize, name: &str, size: u64) -> Self {
        Self::holding(pool, name, vec![0; to_usize(size)])
    }

    /// An image without snapshots.
    pub(super) fn holding(pool: usize, name: &str, head: Vec<u8>) -> Self {
        Self { pool, name: name.to_owned(), head, snaps: Vec::new(), trash_id: None }
    }

    /// Size. Bytes.
    pub(super) fn size(&self) -> u64 {
        self.head.len() as u64
    }

    /// HEAD or the snapshot with this id.
    pub(super) fn at(&self, at: SnapId) -> &[u8] {
        self.snaps.iter().find(|s| s.id == at).map_or(&self.head, |s| &s.data)
    }
}

/// A length in memory.
pub(super) fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
