//! An open image: where it is, its header as last read, and for a writer its standing with it.
//!
//! Invariants
//! - An image opened to be written has a [`Session`]; others see it as a watcher.
//! - `header` is what the last open, refresh or change of this handle saw. A change through this handle is told to all
//!   watchers before it returns.

mod open;

use std::sync::Arc;

use ferry_core::{Error, ErrorKind, ObjectId, PoolId, Result, SnapContext, SnapId};

use crate::encoding::{Message, header_object, object_map_object};
use crate::features::Features;
use crate::header::{self, Header, Opening, ParentLink};
use crate::pool::Pool;
use crate::session::Session;

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
    /// A writer's standing with the image.
    pub session: Option<Arc<Session>>,
    /// Whether it was opened as an end of a migration, by whoever runs the migration and may do what others may not.
    pub is_end: bool,
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
        let name =
            format!("{}.{number:0digits$x}", self.header.object_prefix, digits = self.header.name_digits());
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
        self.check_opening(&header)?;
        self.header = Arc::new(header);
        Ok(())
    }

    /// Whether the image may still be open.
    fn check_opening(&self, header: &Header) -> Result<()> {
        if self.is_end {
            return Ok(());
        }
        header.check_opening(if self.read_only { Opening::ReadOnly } else { Opening::ReadWrite })
    }

    /// Refuses an image that was opened to be read.
    ///
    /// # Errors
    /// `ReadOnly` (30).
    pub fn need_writable(&self) -> Result<()> {
        if self.read_only || self.session.is_none() {
            return Err(Error::new(ErrorKind::ReadOnly, "image is open read-only").with("image", &self.name));
        }
        Ok(())
    }

    /// Takes the exclusive lock where the image has one, and then reads the header again: its owner may have changed it.
    ///
    /// # Errors
    /// `ReadOnly` (30) where the image was opened to be read; those of [`Session::acquire`].
    pub async fn acquire(&mut self) -> Result<()> {
        self.need_writable()?;
        let Some(session) = self.session.clone() else { return Ok(()) };
        if self.header.features.contains(Features::EXCLUSIVE_LOCK) && !session.is_owner() {
            session.acquire().await?;
            self.refresh().await?;
        }
        if self.is_end { Ok(()) } else { self.release_left_points().await }
    }

    /// Releases the points of prepare of a migration that another program has ended, and with them what they preserve.
    async fn release_left_points(&mut self) -> Result<()> {
        let points = self.header.left_points(self.pool.store.identity(), self.pool.id())?;
        if points.is_empty() {
            return Ok(());
        }
        for (pool, snap) in points {
            match self.pool.store.release_snap(pool, snap).await {
                // Its pool is gone.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                released => released?,
            }
        }
        let object = self.header_object();
        let forget = |h: &mut Header| {
            h.forget_left_points();
            Ok(())
        };
        self.header = Arc::new(header::update(&*self.pool.store, &object, forget).await?.0);
        self.notify_header().await
    }

    /// Changes the header under the exclusive lock, keeps the result and tells all watchers. What `change` returns is
    /// returned.
    ///
    /// # Errors
    /// Those of `change`, of [`Image::acquire`] and of [`header::update`].
    ///
    /// # Crash safety
    /// One atomic op; durable after the next flush.
    pub async fn update_header<T: Send>(
        &mut self,
        change: impl FnMut(&mut Header) -> Result<T> + Send,
    ) -> Result<T> {
        self.acquire().await?;
        let before = self.header.version;
        let (header, output) = header::update(&*self.pool.store, &self.header_object(), change).await?;
        let changed = header.version != before;
        self.header = Arc::new(header);
        if changed {
            self.notify_header().await?;
        }
        Ok(output)
    }

    /// Tells all watchers to read the header again, and waits until they have.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn notify_header(&self) -> Result<()> {
        if let Some(session) = &self.session {
            session.notify(&Message::HeaderUpdate).await?;
        }
        Ok(())
    }

    /// Gives the lock back, ends the watch and makes everything durable.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn close(self) -> Result<()> {
        let Some(session) = &self.session else { return Ok(()) };
        self.pool.store.flush().await?;
        session.release().await
    }
}
