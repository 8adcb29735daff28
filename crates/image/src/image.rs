//! An open image: where it is, and its header as last read.

use std::sync::Arc;

use ferry_core::{ObjectId, PoolId, Result, SnapContext, SnapId};

use crate::encoding::{header_object, object_map_object};
use crate::header::{self, Header, Opening, ParentLink};
use crate::pool::Pool;

/// An image, at HEAD or at one of its snapshots.
#[derive(Clone, Debug)]
pub struct Image {
    /// Where it is.
    pub pool: Pool,
    /// Its name; the one it had before for an image in the trash.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Its header as last read.
    pub header: Arc<Header>,
    /// HEAD or a snapshot.
    pub at: SnapId,
    /// Whether it was opened to be read only; always so at a snapshot.
    pub read_only: bool,
}

impl Image {
    /// The header object.
    #[must_use]
    pub fn header_object(&self) -> ObjectId {
        self.pool.object(&header_object(&self.id))
    }

    /// The object map of HEAD or of a snapshot.
    #[must_use]
    pub fn object_map_object(&self, at: SnapId) -> ObjectId {
        self.pool.object(&object_map_object(&self.id, at))
    }

    /// The pool its data lies in.
    #[must_use]
    pub fn data_pool(&self) -> PoolId {
        self.header.data_pool_or(self.pool.id())
    }

    /// The data object number `number`.
    #[must_use]
    pub fn data_object(&self, number: u64) -> ObjectId {
        let name = format!("{}.{number:016x}", self.header.object_prefix);
        ObjectId::new(self.data_pool(), &self.pool.namespace, &name)
    }

    /// Size where it was opened. Bytes.
    ///
    /// # Errors
    /// `NotFound` (2) where the snapshot it was opened at is gone.
    pub fn size(&self) -> Result<u64> {
        self.header.size_at(self.at)
    }

    /// What data writes must preserve.
    #[must_use]
    pub fn snap_context(&self) -> SnapContext {
        self.header.snap_context()
    }

    /// The parent and how much of it shows where it was opened.
    ///
    /// # Errors
    /// `NotFound` (2) where the snapshot it was opened at is gone.
    pub fn parent(&self) -> Result<Option<ParentLink>> {
        self.header.parent_at(self.at)
    }

    /// Reads the header again.
    ///
    /// # Errors
    /// Those of [`header::load`] and [`Header::check_opening`].
    pub async fn refresh(&mut self) -> Result<()> {
        let header = header::load(&*self.pool.store, &self.header_object()).await?;
        header.check_opening(if self.read_only { Opening::ReadOnly } else { Opening::ReadWrite })?;
        self.header = Arc::new(header);
        Ok(())
    }
}
