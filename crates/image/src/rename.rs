//! Gives an image another name: new id object, directory, old id object. In between both names open the image, and the
//! same call again finishes.

#[cfg(test)]
mod tests;

use ferry_core::{Error, Result};

use crate::header::Opening;
use crate::image::Image;
use crate::pool::Pool;
use crate::trash::check_name;

/// Renames an image inside its pool and namespace.
///
/// # Errors
/// `NotFound` (2); `Exists` (17) where `to` is taken, by the image itself too; `Invalid` (22) for what is no name;
/// `ReadOnly` (30).
///
/// # Crash safety
/// Durable when it returns. After a crash midway the same call finishes.
pub async fn rename(pool: &Pool, from: &str, to: &str) -> Result<()> {
    check_name(to)?;
    let image = Image::open(pool, from, Opening::ReadWrite).await?;
    let result = rename_open(&image, from, to).await;
    let closed = image.close().await;
    result.and(closed)
}

async fn rename_open(image: &Image, from: &str, to: &str) -> Result<()> {
    let pool = &image.pool;
    image.header.need_format2()?;
    if from == to || pool.listed_id(to).await?.is_some_and(|other| other != image.id) {
        return Err(Error::exists("an image of this name exists").with("image", to));
    }
    pool.create_id(to, &image.id).await?;
    if let Err(e) = pool.directory_rename(from, to, &image.id).await {
        // The directory did not take the new name, so the id object must not have it either.
        if pool.listed_id(to).await?.as_deref() != Some(&image.id) {
            pool.remove_id(to, &image.id).await?;
        }
        return Err(e);
    }
    pool.remove_id(from, &image.id).await?;
    image.notify_header().await?;
    pool.store.flush().await
}
