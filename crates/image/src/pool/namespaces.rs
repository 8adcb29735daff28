//! Namespaces of a pool: `rbd_namespace` lists them, and each has a directory that is ready.

use bytes::Bytes;
use ferry_core::limits::NAMESPACE_MAX;
use ferry_core::{Effect, Error, ErrorKind, Guard, Namespace, Result, WriteOp};

use super::{Pool, RETRIES_MAX};
use crate::encoding::{
    CHILDREN_OBJECT, DIRECTORY_OBJECT, DirectoryState, KEY_DIRECTORY_STATE, NAMESPACE_OBJECT, TRASH_OBJECT,
    encode_directory_state, namespace_name,
};

impl Pool {
    /// The same pool seen through another of its namespaces.
    #[must_use]
    pub fn in_namespace(&self, namespace: &Namespace) -> Self {
        Self { namespace: namespace.clone(), ..self.clone() }
    }

    /// Names of the namespaces, without the default one.
    ///
    /// # Errors
    /// Those of the store; `Corrupt`.
    pub async fn namespaces(&self) -> Result<Vec<Namespace>> {
        let entries = self.read_entries(&self.pool_object(NAMESPACE_OBJECT), "name_").await?;
        entries
            .iter()
            .map(|(key, _)| {
                std::str::from_utf8(&key["name_".len()..])
                    .map(Namespace::new)
                    .map_err(|e| Error::corrupt("the name of a namespace is not UTF-8").because(e))
            })
            .collect()
    }

    /// Makes a namespace.
    ///
    /// # Errors
    /// `Exists` (17); `Invalid` (22) for a name that is empty, too long or has a slash or an at sign.
    ///
    /// # Crash safety
    /// Listed first, then made ready. A crash between leaves one that is listed and takes no images; making it again
    /// finishes.
    pub async fn create_namespace(&self, name: &str) -> Result<()> {
        if name.is_empty() || name.len() > NAMESPACE_MAX || name.contains(['/', '@']) {
            return Err(Error::invalid("not a name of a namespace").with("namespace", name));
        }
        let namespace = Namespace::new(name);
        let listed = self.namespaces().await?.contains(&namespace);
        let inside = self.in_namespace(&namespace);
        if listed && inside.check_namespace().await.is_ok() {
            return Err(Error::exists("namespace exists").with("namespace", name));
        }
        let list_op = WriteOp::new().omap_set(namespace_name(name), Bytes::new());
        self.store.write(&self.pool_object(NAMESPACE_OBJECT), list_op).await?;
        let ready = encode_directory_state(DirectoryState::Ready);
        let ready_op = WriteOp::new().omap_set(KEY_DIRECTORY_STATE, ready);
        self.store.write(&inside.object(DIRECTORY_OBJECT), ready_op).await?;
        self.store.flush().await
    }

    /// Removes a namespace that holds no images, in its trash neither.
    ///
    /// # Errors
    /// `NotFound` (2); `Busy` (16).
    ///
    /// # Crash safety
    /// A crash midway leaves one that takes no images; removing it again finishes.
    pub async fn remove_namespace(&self, name: &str) -> Result<()> {
        let namespace = Namespace::new(name);
        if name.is_empty() || !self.namespaces().await?.contains(&namespace) {
            return Err(Error::not_found("no such namespace").with("namespace", name));
        }
        let inside = self.in_namespace(&namespace);
        let trash = inside.object(TRASH_OBJECT);
        if !self.read_entries(&trash, "").await?.is_empty() {
            return Err(not_empty(name));
        }
        inside.remove_empty_directory(name).await?;
        inside.remove_object(&trash).await?;
        inside.remove_object(&inside.object(CHILDREN_OBJECT)).await?;
        let op = WriteOp::new().omap_remove(namespace_name(name));
        self.store.write(&self.pool_object(NAMESPACE_OBJECT), op).await?;
        self.store.flush().await
    }

    /// Removes the namespace's directory, unless an image is in it.
    async fn remove_empty_directory(&self, name: &str) -> Result<()> {
        let object = self.object(DIRECTORY_OBJECT);
        for _ in 0..RETRIES_MAX {
            let Some(state) = self.read_or_absent(&object, ferry_core::ReadOp::stat()).await? else {
                return Ok(());
            };
            if !self.read_entries(&object, "name_").await?.is_empty() {
                return Err(not_empty(name));
            }
            let op = WriteOp::new().guard(Guard::AssertVersion(state.version)).effect(Effect::Remove);
            match self.store.write(&object, op).await {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Conflict => {}
                Err(e) => return Err(e),
            }
        }
        Err(not_empty(name))
    }
}

fn not_empty(name: &str) -> Error {
    Error::busy("namespace contains images which must be deleted first").with("namespace", name)
}
