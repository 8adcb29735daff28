//! Image-meta: texts that people and tools keep with an image or a pool; keys `conf_rbd_*` among them are configuration.

pub mod config;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_core::limits::{METADATA_VALUE_MAX, OMAP_KEY_MAX};
use ferry_core::{Error, Result};

use crate::encoding::{INFO_OBJECT, PREFIX_METADATA, metadata};
use crate::image::Image;
use crate::pool::Pool;

/// Refuses what cannot be a key or a value.
fn check(key: &str, value: &[u8]) -> Result<()> {
    if key.is_empty() || key.contains('\0') || PREFIX_METADATA.len() + key.len() > OMAP_KEY_MAX {
        return Err(Error::invalid("not a key of metadata").with("key", key));
    }
    if value.len() > METADATA_VALUE_MAX {
        return Err(Error::invalid("a value of metadata is too long").with("bytes", value.len()));
    }
    Ok(())
}

fn missing(key: &str) -> Error {
    Error::not_found("no such metadata").with("key", key)
}

/// The value of an image's key.
///
/// # Errors
/// `NotFound` (2).
pub fn get(image: &Image, key: &str) -> Result<Bytes> {
    image.header.metadata.get(key).cloned().ok_or_else(|| missing(key))
}

/// Sets an image's key.
///
/// # Errors
/// `Invalid` (22) for an empty or overlong key; `ReadOnly` (30).
pub async fn set(image: &mut Image, key: &str, value: &[u8]) -> Result<()> {
    check(key, value)?;
    let value = Bytes::copy_from_slice(value);
    image
        .update_header(|h| {
            h.metadata.insert(key.to_owned(), value.clone());
            Ok(())
        })
        .await?;
    image.pool.store.flush().await
}

/// Removes an image's key.
///
/// # Errors
/// `NotFound` (2); `ReadOnly` (30).
pub async fn remove(image: &mut Image, key: &str) -> Result<()> {
    image.update_header(|h| h.metadata.remove(key).map(drop).ok_or_else(|| missing(key))).await?;
    image.pool.store.flush().await
}

/// All keys and values of a pool.
///
/// # Errors
/// Those of the store. Keys that are no text are left out.
pub async fn pool_list(pool: &Pool) -> Result<BTreeMap<String, Bytes>> {
    let entries = pool.read_entries(&pool.pool_object(INFO_OBJECT), PREFIX_METADATA).await?;
    let text = |key: &[u8]| std::str::from_utf8(&key[PREFIX_METADATA.len()..]).ok().map(str::to_owned);
    Ok(entries.into_iter().filter_map(|(key, value)| Some((text(&key)?, value))).collect())
}

/// The value of a pool's key.
///
/// # Errors
/// `NotFound` (2).
pub async fn pool_get(pool: &Pool, key: &str) -> Result<Bytes> {
    let value = pool.read_key(&pool.pool_object(INFO_OBJECT), &metadata(key)).await?;
    value.ok_or_else(|| missing(key))
}

/// Sets a pool's key.
///
/// # Errors
/// As [`set`].
pub async fn pool_set(pool: &Pool, key: &str, value: &[u8]) -> Result<()> {
    check(key, value)?;
    let (object, value) = (pool.pool_object(INFO_OBJECT), Bytes::copy_from_slice(value));
    pool.change_key(&object, &metadata(key), |_| Ok(Some(value.clone()))).await?;
    pool.store.flush().await
}

/// Removes a pool's key.
///
/// # Errors
/// As [`remove`].
pub async fn pool_remove(pool: &Pool, key: &str) -> Result<()> {
    let object = pool.pool_object(INFO_OBJECT);
    pool.change_key(&object, &metadata(key), |before| match before {
        Some(_) => Ok(None),
        None => Err(missing(key)),
    })
    .await?;
    pool.store.flush().await
}
