//! Comparing images with the model, and removing everything in the end.

use ferry_core::{Error, ErrorKind, Result, SnapId};

use super::{World, mismatch, or_refused};
use crate::features::{Features, Flags};
use crate::image::Image;
use crate::layout::ObjectNo;
use crate::live_map::load_stored;
use crate::object_map::Loaded;
use crate::progress::silent;
use crate::remove::{UsedParent, remove};
use crate::rollback::exists_at;
use crate::snapshot;

impl World {
    /// Compares all images.
    pub(super) async fn check_all(&self) -> Result<()> {
        for n in 0..self.images.len() {
            self.check_image(n).await?;
        }
        Ok(())
    }

    /// Compares HEAD and all snapshots of an image, and their object maps.
    pub(super) async fn check_image(&self, n: usize) -> Result<()> {
        let shadow = &self.images[n];
        let image = self.open_read(n).await?;
        let names: Vec<_> =
            image.header.snaps.values().filter(|s| s.namespace.is_user()).map(|s| &s.name).collect();
        if names != shadow.snaps.iter().map(|s| &s.name).collect::<Vec<_>>() {
            return Err(mismatch("the snapshots are others").with("image", &shadow.name));
        }
        self.check_point(&image, SnapId::HEAD, &shadow.head)
            .await
            .map_err(|e| e.with("image", &shadow.name))?;
        for snap in &shadow.snaps {
            let checked = self.check_point(&image, snap.id, &snap.data).await;
            checked.map_err(|e| e.with("image", &shadow.name).with("snapshot", &snap.name))?;
        }
        Ok(())
    }

    /// Compares one point of an image.
    async fn check_point(&self, image: &Image, at: SnapId, expected: &[u8]) -> Result<()> {
        let revision = image.revision_at(at).await?;
        if revision.size != expected.len() as u64 {
            return Err(mismatch("the size is another").with("size", revision.size));
        }
        let found = revision.read_bytes(0, revision.size).await?;
        if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
            return Err(mismatch("bytes are others").with("at", at));
        }
        if !image.header.features.contains(Features::OBJECT_MAP) {
            return Ok(());
        }
        if image.header.flags_at(at)? != Flags::NONE {
            return Err(mismatch("an object map was flagged as invalid"));
        }
        let object = image.object_map_object(at);
        let stored = load_stored(&*image.pool.store, &object, revision.object_count()).await?;
        let Loaded::Valid(map) = stored else { return Err(mismatch("an object map is broken")) };
        for object in (0..revision.object_count()).map(ObjectNo) {
            if !map.get(object).may_exist() && exists_at(&revision, object).await? {
                return Err(mismatch("an object map denies an object").with("object", object.0));
            }
        }
        Ok(())
    }

    /// Removes everything, children before their parents, and looks for what is left.
    pub(super) async fn tear_down(&mut self) -> Result<()> {
        self.check_all().await?;
        while !self.images.is_empty() {
            let before = self.images.len();
            for n in (0..before).rev() {
                if Box::pin(self.remove_all_of(n)).await? {
                    self.images.remove(n);
                }
            }
            if self.images.len() == before {
                return Err(mismatch("images cannot be removed").with("image", &self.images[0].name));
            }
        }
        for pool in &self.pools {
            let mut after = None;
            loop {
                let page = pool.store.list_objects(pool.id(), None, after, 1000).await?;
                let is_image = |name: &str| {
                    ["rbd_data.", "rbd_header.", "rbd_object_map.", "rbd_id."]
                        .iter()
                        .any(|p| name.starts_with(p))
                };
                if let Some((_, name)) = page.objects.iter().find(|(_, name)| is_image(name)) {
                    return Err(mismatch("an object is left").with("object", name));
                }
                let Some(next) = page.next else { break };
                after = Some(next);
            }
        }
        Ok(())
    }

    /// Removes the snapshots of an image and then itself; whether nothing that depends on it stood in the way.
    async fn remove_all_of(&mut self, n: usize) -> Result<bool> {
        let mut image = self.open(n).await?;
        let mut left = Vec::new();
        for snap in self.images[n].snaps.clone() {
            let refusals = [ErrorKind::Busy, ErrorKind::Invalid];
            if snap.is_protected {
                or_refused(snapshot::unprotect(&mut image, &snap.name).await, &refusals)?;
            }
            let removed = snapshot::remove(&mut image, &snap.name).await;
            if or_refused(removed, &refusals).map_err(|e: Error| e.with("snapshot", &snap.name))?.is_none() {
                left.push(snap);
            }
        }
        image.close().await?;
        self.images[n].snaps = left;
        let shadow = &self.images[n];
        let removed = remove(&self.pools[shadow.pool], &shadow.name, UsedParent::Refuse, &mut silent).await;
        Ok(or_refused(removed, &[ErrorKind::Busy])?.is_some())
    }
}
