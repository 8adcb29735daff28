//! Finds an image and opens it.

use std::sync::Arc;

use ferry_core::{Error, ErrorKind, Result, SnapId};

use super::Image;
use crate::encoding::{TrashSource, header_object};
use crate::header::{self, Opening};
use crate::pool::Pool;
use crate::session::Session;
use crate::trash;

impl Image {
    /// Opens the image called `name` at HEAD. Only `rbd_id.<name>` decides what image that is.
    ///
    /// # Errors
    /// `NotFound` (2); those of [`header::load`] and [`header::Header::check_opening`]; `ReadOnly` (30) where the pool is.
    pub async fn open(pool: &Pool, name: &str, opening: Opening) -> Result<Self> {
        let id = pool.image_id(name).await?;
        Self::open_found(pool, name.to_owned(), id, opening).await.map_err(|e| e.with("image", name))
    }

    /// Opens the image with this id at HEAD; it may be in the trash.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub async fn open_by_id(pool: &Pool, id: &str, opening: Opening) -> Result<Self> {
        let name = match pool.image_name(id).await? {
            Some(name) => name,
            None => trash::get(pool, id).await?.map(|e| e.name).unwrap_or_default(),
        };
        Self::open_found(pool, name, id.to_owned(), opening).await.map_err(|e| e.with("id", id))
    }

    /// Opens the image called `name` to be read; where there is none, the source of a migration that had that name.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub async fn open_or_migration_source(pool: &Pool, name: &str) -> Result<Self> {
        match Self::open(pool, name, Opening::ReadOnly).await {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                match trash::find_by_name(pool, name, TrashSource::Migration).await? {
                    Some((id, _)) => Self::open_by_id(pool, &id, Opening::ReadOnly).await,
                    None => Err(e),
                }
            }
            other => other,
        }
    }

    async fn open_found(pool: &Pool, name: String, id: String, opening: Opening) -> Result<Self> {
        let object = pool.object(&header_object(&id));
        if opening == Opening::ReadWrite && pool.is_read_only() {
            return Err(
                Error::new(ErrorKind::ReadOnly, "the pool is read-only").with("pool", &pool.info.name)
            );
        }
        let session = match opening {
            Opening::ReadOnly => None,
            Opening::ReadWrite => Some(Arc::new(Session::open(&pool.store, &pool.env.clock, &object).await?)),
        };
        let header = Arc::new(header::load(&*pool.store, &object).await?);
        header.check_opening(opening)?;
        let read_only = opening == Opening::ReadOnly;
        let (pool, is_end) = (pool.clone(), false);
        Ok(Self { pool, name, id, header, at: SnapId::HEAD, read_only, session, is_end })
    }

    /// Opens an end of a migration to be changed, whatever state it is in: for whoever runs the migration.
    ///
    /// # Errors
    /// `NotFound` (2); those of [`header::load`].
    pub async fn open_end(pool: &Pool, name: &str, id: &str) -> Result<Self> {
        let object = pool.object(&header_object(id));
        let session = Some(Arc::new(Session::open(&pool.store, &pool.env.clock, &object).await?));
        let header = Arc::new(header::load(&*pool.store, &object).await?);
        header.features.check_writable()?;
        let (pool, name, id) = (pool.clone(), name.to_owned(), id.to_owned());
        Ok(Self { pool, name, id, header, at: SnapId::HEAD, read_only: false, session, is_end: true })
    }

    /// The same image at its user's snapshot `snap`, to be read.
    ///
    /// # Errors
    /// `NotFound` (2).
    pub fn at_snapshot(&self, snap: &str) -> Result<Self> {
        let at = self.header.user_snap(snap)?.id;
        Ok(Self { at, read_only: true, session: None, ..self.clone() })
    }

    /// The same image at the snapshot with id `snap`, to be read.
    ///
    /// # Errors
    /// `NotFound` (2).
    pub fn at_snapshot_id(&self, snap: SnapId) -> Result<Self> {
        let at = self.header.snap(snap)?.id;
        Ok(Self { at, read_only: true, session: None, ..self.clone() })
    }
}
