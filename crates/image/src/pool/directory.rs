//! The images of one namespace: `rbd_directory`, an index by name and by id, and `rbd_id.*`, which opening goes by.

use bytes::Bytes;
use ferry_core::{Effect, Errno, Error, ErrorKind, Guard, ReadOp, Result, WriteOp};

use super::{Pool, RETRIES_MAX};
use crate::encoding::{
    DIRECTORY_OBJECT, DirectoryState, Format1Directory, KEY_DIRECTORY_STATE, decode_string, directory_id,
    directory_name, encode_directory_state, encode_string, format1_name, id_object, v1_header_object,
};

/// Longest text of an id object read. Bytes: far above any id.
const ID_OBJECT_MAX: u64 = 4096;
/// Longest directory of format-1 images read. Bytes.
const FORMAT1_DIRECTORY_MAX: u64 = 64 << 20;

impl Pool {
    /// Names and ids of all images of the namespace: first those of format 1, which have no id but what
    /// [`v1_header_object`] gives, then the others, both by name.
    ///
    /// # Errors
    /// Those of the store; `Corrupt`.
    pub async fn images(&self) -> Result<Vec<(String, String)>> {
        let (_, format1) = self.read_format1().await?;
        let format1 = format1.names.into_keys().map(|name| {
            let id = v1_header_object(&name);
            Ok((name, id))
        });
        let entries = self.read_entries(&self.object(DIRECTORY_OBJECT), "name_").await?;
        format1
            .chain(entries.iter().map(|(key, value)| {
                let name = std::str::from_utf8(&key["name_".len()..])
                    .map_err(|e| Error::corrupt("the name of an image is not UTF-8").because(e))?;
                Ok((name.to_owned(), decode_string(value)?))
            }))
            .collect()
    }

    /// The names of the images of format 1, and the version of the directory; 0 where there is none.
    async fn read_format1(&self) -> Result<(u64, Format1Directory)> {
        let object = self.object(DIRECTORY_OBJECT);
        let stored = self.read_or_absent(&object, ReadOp::data(0, FORMAT1_DIRECTORY_MAX)).await?;
        let Some(reply) = stored else { return Ok((0, Format1Directory::default())) };
        if reply.size > FORMAT1_DIRECTORY_MAX {
            return Err(
                Error::corrupt("the directory of format-1 images is too long").with("size", reply.size)
            );
        }
        Ok((reply.version, Format1Directory::decode(&reply.data.to_vec(0, reply.size))?))
    }

    /// Takes an image of format 1 out of the directory; nothing where it is not there.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn delist_format1(&self, name: &str) -> Result<()> {
        self.change_format1(|directory| directory.names.remove(name).is_some()).await
    }

    /// Puts an image of format 1 into the directory again; nothing where it is there.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list_format1(&self, name: &str) -> Result<()> {
        self.change_format1(|directory| directory.names.insert(name.to_owned(), Bytes::new()).is_none()).await
    }

    /// Changes the directory of format-1 images where `change` says that it did.
    async fn change_format1(
        &self,
        mut change: impl FnMut(&mut Format1Directory) -> bool + Send,
    ) -> Result<()> {
        let object = self.object(DIRECTORY_OBJECT);
        for _ in 0..RETRIES_MAX {
            let (version, mut directory) = self.read_format1().await?;
            if !change(&mut directory) {
                return Ok(());
            }
            let guard = if version == 0 { Guard::CreateExclusive } else { Guard::AssertVersion(version) };
            let op = WriteOp::new().guard(guard).effect(Effect::WriteFull(directory.encode()?));
            match self.store.write(&object, op).await {
                Ok(_) => return Ok(()),
                Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::Exists) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Error::busy("the directory is changed by others all the time").with("object", object))
    }

    /// Id of the image called `name`, as opening finds it.
    ///
    /// # Errors
    /// `NotFound` (2).
    pub async fn image_id(&self, name: &str) -> Result<String> {
        let id = match self.read_id(name).await? {
            Some(id) => Some(id),
            None => self.read_format1_id(name).await?,
        };
        id.ok_or_else(|| Error::not_found("no such image").with("image", name))
    }

    /// Id of what is called `name`, also where only a part of it is left.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn find_id(&self, name: &str) -> Result<Option<String>> {
        if let Some(id) = self.read_id(name).await? {
            return Ok(Some(id));
        }
        match self.listed_id(name).await? {
            Some(id) => Ok(Some(id)),
            None => self.read_format1_id(name).await,
        }
    }

    /// What the image of format 1 called `name` goes by; `None` where there is none. No namespace but the default has any.
    async fn read_format1_id(&self, name: &str) -> Result<Option<String>> {
        if !self.namespace.is_default() {
            return Ok(None);
        }
        let id = v1_header_object(name);
        let header = self.read_or_absent(&self.object(&id), ReadOp::stat()).await?;
        Ok(header.filter(|reply| reply.size > 0).map(|_| id))
    }

    /// Id in `rbd_id.<name>`; `None` where it does not exist or is empty.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn read_id(&self, name: &str) -> Result<Option<String>> {
        let object = self.object(&id_object(name));
        let Some(reply) = self.read_or_absent(&object, ReadOp::data(0, ID_OBJECT_MAX)).await? else {
            return Ok(None);
        };
        if reply.size == 0 {
            return Ok(None);
        }
        decode_string(&reply.data.to_vec(0, reply.size.min(ID_OBJECT_MAX))).map(Some)
    }

    /// Id the directory has for `name`.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn listed_id(&self, name: &str) -> Result<Option<String>> {
        let value = self.read_key(&self.object(DIRECTORY_OBJECT), &directory_name(name)).await?;
        value.map(|v| decode_string(&v)).transpose()
    }

    /// Name the directory has for `id`; `None` where it has none, as for an image in the trash.
    ///
    /// # Errors
    /// Those of the store; `Corrupt`.
    pub async fn image_name(&self, id: &str) -> Result<Option<String>> {
        if let Some(name) = format1_name(id) {
            return Ok(Some(name.to_owned()));
        }
        let value = self.read_key(&self.object(DIRECTORY_OBJECT), &directory_id(id)).await?;
        value.map(|v| decode_string(&v)).transpose()
    }

    /// Adds an image to the directory.
    ///
    /// # Errors
    /// `Exists` (17) where the name is taken, `Exists` (9) where the id is; `NotFound` (2) where the namespace does not
    /// exist.
    pub(crate) async fn directory_add(&self, name: &str, id: &str) -> Result<()> {
        let object = self.object(DIRECTORY_OBJECT);
        for _ in 0..RETRIES_MAX {
            let mut op = WriteOp::new();
            if self.namespace.is_default() {
                op = op.effect(Effect::Create);
            } else {
                let ready = encode_directory_state(DirectoryState::Ready);
                op = op.omap_compare(KEY_DIRECTORY_STATE, ready);
            }
            let (by_name, by_id) = (directory_name(name), directory_id(id));
            op = op
                .omap_compare(by_name.clone(), Bytes::new())
                .omap_compare(by_id.clone(), Bytes::new())
                .effect(Effect::OmapSet(vec![(by_name, encode_string(id)), (by_id, encode_string(name))]));
            match self.store.write(&object, op).await {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Conflict => {}
                Err(e) if e.kind() == ErrorKind::NotFound && !self.namespace.is_default() => {
                    return Err(self.no_namespace());
                }
                Err(e) => return Err(e),
            }
            self.check_namespace().await?;
            if self.listed_id(name).await?.is_some() {
                return Err(Error::exists("an image of this name exists").with("image", name));
            }
            if self.image_name(id).await?.is_some() {
                return Err(Error::exists("an image of this id exists")
                    .errno_is(Errno::EBADF)
                    .with("id", id));
            }
        }
        Err(Error::busy("the directory is changed by others all the time").with("object", object))
    }

    /// Takes an image out of the directory. Whether it was there; a pair half there, or of which one points elsewhere, is
    /// cleaned of what is this image's.
    pub(crate) async fn directory_remove(&self, name: &str, id: &str) -> Result<bool> {
        let object = self.object(DIRECTORY_OBJECT);
        for _ in 0..RETRIES_MAX {
            let (by_name, by_id) = (directory_name(name), directory_id(id));
            let mut op = WriteOp::new();
            let mut remove = Vec::new();
            for (key, value) in [(by_name, encode_string(id)), (by_id, encode_string(name))] {
                if self.read_key(&object, &key).await?.as_ref() == Some(&value) {
                    op = op.omap_compare(key.clone(), value);
                    remove.push(key);
                }
            }
            if remove.is_empty() {
                return Ok(false);
            }
            match self.store.write(&object, op.effect(Effect::OmapRemove(remove))).await {
                Ok(_) => return Ok(true),
                Err(e) if e.kind() == ErrorKind::Conflict => {}
                Err(e) => return Err(e),
            }
        }
        Err(Error::busy("the directory is changed by others all the time").with("object", object))
    }

    /// Gives an image another name in the directory; nothing where it has it.
    ///
    /// # Errors
    /// `Exists` (17) where the name is another image's; `NotFound` (2) where the image is not there; `Conflict` (116)
    /// where it has a third name.
    pub(crate) async fn directory_rename(&self, from: &str, to: &str, id: &str) -> Result<()> {
        let object = self.object(DIRECTORY_OBJECT);
        for _ in 0..RETRIES_MAX {
            let name_now = self.image_name(id).await?;
            match self.listed_id(to).await? {
                Some(other) if other != id => {
                    return Err(Error::exists("an image of this name exists").with("image", to));
                }
                Some(_) if name_now.as_deref() == Some(to) => return Ok(()),
                Some(_) | None => {}
            }
            match name_now.as_deref() {
                None => {
                    return Err(Error::not_found("the directory does not know the image").with("image", from));
                }
                Some(name) if name != from => {
                    return Err(Error::new(
                        ErrorKind::Conflict,
                        "the directory has another name for the image",
                    )
                    .errno_is(Errno::ESTALE)
                    .with("image", name));
                }
                Some(_) => {}
            }
            let (id_value, from_value) = (encode_string(id), encode_string(from));
            let op = WriteOp::new()
                .omap_compare(directory_name(from), id_value.clone())
                .omap_compare(directory_id(id), from_value)
                .omap_compare(directory_name(to), Bytes::new())
                .omap_remove(directory_name(from))
                .effect(Effect::OmapSet(vec![
                    (directory_name(to), id_value),
                    (directory_id(id), encode_string(to)),
                ]));
            match self.store.write(&object, op).await {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Conflict => {
                    if self.listed_id(from).await?.as_deref() != Some(id) {
                        return Err(
                            Error::not_found("the directory does not know the image").with("image", from)
                        );
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Err(Error::busy("the directory is changed by others all the time").with("object", object))
    }

    /// Makes `rbd_id.<name>`; nothing where it says `id` already.
    ///
    /// # Errors
    /// `Exists` (17) where the name is another image's.
    pub(crate) async fn create_id(&self, name: &str, id: &str) -> Result<()> {
        let op = WriteOp::new().guard(Guard::CreateExclusive).effect(Effect::WriteFull(encode_string(id)));
        match self.store.write(&self.object(&id_object(name)), op).await {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == ErrorKind::Exists => match self.read_id(name).await? {
                Some(other) if other == id => Ok(()),
                Some(_) => Err(Error::exists("an image of this name exists").with("image", name)),
                None => self.fill_empty_id(name, id).await,
            },
            Err(e) => Err(e),
        }
    }

    /// Writes into an id object that is empty, which counts as absent.
    async fn fill_empty_id(&self, name: &str, id: &str) -> Result<()> {
        let op = WriteOp::new().guard(Guard::AssertExists).effect(Effect::WriteFull(encode_string(id)));
        self.store.write(&self.object(&id_object(name)), op).await.map(drop)
    }

    /// Removes `rbd_id.<name>` where it says `id`; whether it did.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn remove_id(&self, name: &str, id: &str) -> Result<bool> {
        if self.read_id(name).await?.as_deref() != Some(id) {
            return Ok(false);
        }
        self.remove_object(&self.object(&id_object(name))).await
    }

    /// Refuses where the namespace was not made.
    ///
    /// # Errors
    /// `NotFound` (2).
    pub async fn check_namespace(&self) -> Result<()> {
        if self.namespace.is_default() {
            return Ok(());
        }
        let state = self.read_key(&self.object(DIRECTORY_OBJECT), &KEY_DIRECTORY_STATE.into()).await?;
        if state == Some(encode_directory_state(DirectoryState::Ready)) {
            Ok(())
        } else {
            Err(self.no_namespace())
        }
    }

    fn no_namespace(&self) -> Error {
        Error::not_found("no such namespace").with("namespace", &self.namespace)
    }
}
