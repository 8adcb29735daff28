//! Who uses an image: its watchers, and the locks people take by hand.

#[cfg(test)]
mod tests;

use ferry_core::lock::{LockInfo, LockKind, LockRequest, UnlockRequest};
use ferry_core::watch::WatcherInfo;
use ferry_core::{ClientId, Error, Result};

use crate::encoding::{LOCK_NAME, Message};
use crate::image::Image;
use crate::session::NOTIFY_TIMEOUT;

/// Everybody who has the image open to write, this handle too, with their addresses. Where the store lists watchers for some
/// clients only, and not for this one or nobody now, as [`watchers`].
///
/// # Errors
/// Those of the store.
pub async fn watchers_with_addresses(image: &Image) -> Result<Vec<WatcherInfo>> {
    match image.pool.store.list_watchers(&image.header_object()).await {
        Ok(listed) if !listed.is_empty() => Ok(listed),
        _ => watchers(image).await,
    }
}

/// Everybody who has the image open to write, this handle too. Where the store does not list them for every client, whoever is told
/// to read the header again, answering or not; their addresses are then known of those alone who hold the lock, and empty of others.
///
/// # Errors
/// Those of the store.
pub async fn watchers(image: &Image) -> Result<Vec<WatcherInfo>> {
    let (store, object) = (&image.pool.store, image.header_object());
    if store.capabilities().list_watchers {
        return store.list_watchers(&object).await;
    }
    let reply = match &image.session {
        Some(session) => session.notify(&Message::HeaderUpdate).await?,
        None => store.notify(&object, Message::HeaderUpdate.encode(), NOTIFY_TIMEOUT).await?,
    };
    let answered = reply.answers.into_iter().map(|(client, handle, _)| (client, handle));
    let found: Vec<_> = answered.chain(reply.timed_out).collect();
    let locked = if found.is_empty() { Vec::new() } else { lockers(image).await?.lockers };
    let address_of = |client| {
        let known = locked.iter().find(|locker| locker.client == client);
        known.map(|locker| locker.address.clone()).unwrap_or_default()
    };
    let watcher = |(client, handle)| WatcherInfo { client, handle, address: address_of(client) };
    Ok(found.into_iter().map(watcher).collect())
}

/// Who holds the image's lock, by hand or by having it open.
///
/// # Errors
/// Those of the store.
pub async fn lockers(image: &Image) -> Result<LockInfo> {
    image.pool.store.lock_info(&image.header_object(), LOCK_NAME).await
}

/// Takes the lock by hand, under the name `id`: alone, or with all who name the same `shared` tag.
///
/// # Errors
/// `Busy` (16) where another holds it; `Exists` (17) where this client holds it under that name; `ReadOnly` (30).
pub async fn lock_add(image: &Image, id: &str, shared: Option<&str>) -> Result<()> {
    if image.pool.is_read_only() {
        return Err(Error::new(ferry_core::ErrorKind::ReadOnly, "the pool is read-only"));
    }
    let request = LockRequest {
        name: LOCK_NAME.to_owned(),
        kind: if shared.is_some() { LockKind::Shared } else { LockKind::Exclusive },
        cookie: id.to_owned(),
        tag: shared.unwrap_or_default().to_owned(),
        description: String::new(),
        renew: false,
    };
    image.pool.store.lock(&image.header_object(), request).await?;
    image.pool.store.flush().await
}

/// Takes a lock away from `locker`, who holds it under the name `id`.
///
/// # Errors
/// `NotFound` (2) where they do not.
pub async fn lock_remove(image: &Image, id: &str, locker: ClientId) -> Result<()> {
    let request = UnlockRequest { name: LOCK_NAME.to_owned(), cookie: id.to_owned() };
    image.pool.store.break_lock(&image.header_object(), request, locker).await?;
    image.pool.store.flush().await
}
