//! Whole images: made, cloned, resized, renamed, flattened, removed.

use std::time::Duration;

use ferry_core::{ErrorKind, Result};

use super::shadow::{Shadow, to_usize};
use super::{IMAGES_MAX, World, mismatch, or_refused};
use crate::clone::{self, CloneFormat};
use crate::create::{CreateOptions, create};
use crate::encoding::TrashSource;
use crate::features::Features;
use crate::flatten;
use crate::map_check::{MapCheck, check, rebuild};
use crate::progress::silent;
use crate::remove::{UsedParent, remove};
use crate::rename::rename;
use crate::resize::{Shrinking, resize};
use crate::sparsify::sparsify;
use crate::trash;

impl World {
    /// Random features and layout.
    pub(super) fn random_options(&self, size: u64) -> CreateOptions {
        let order = 12 + u8::try_from(self.rng.below(3)).unwrap_or(0);
        let features =
            [Features::LAYERING, Features::DEFAULT, Features::DEFAULT.without(Features::DEEP_FLATTEN)];
        // Always both: what is left out is taken from a clone's parent, and may not fit the order.
        let (unit, count) = if self.rng.one_in(3) {
            ((1 << order) >> self.rng.below(4), 1 + self.rng.below(3))
        } else {
            (1 << order, 1)
        };
        let data_pool = self.rng.one_in(4).then(|| self.pools[1].info.clone());
        CreateOptions {
            size,
            order: Some(order),
            features: Some(features[self.pick(3)]),
            stripe_unit: Some(unit),
            stripe_count: Some(count),
            data_pool,
            ..CreateOptions::default()
        }
    }

    /// Makes an image.
    pub(super) async fn create(&mut self) -> Result<()> {
        if self.images.len() >= IMAGES_MAX {
            return Ok(());
        }
        let (pool, name, size) = (self.pick(2), self.new_name("i"), self.random_size());
        self.doing = format!("create {name} of {size}");
        create(&self.pools[pool], &name, &self.random_options(size)).await?;
        self.images.push(Shadow::new(pool, &name, size));
        Ok(())
    }

    /// Clones a snapshot.
    pub(super) async fn clone_image(&mut self, n: usize) -> Result<()> {
        if self.images[n].snaps.is_empty() || self.images.len() >= IMAGES_MAX {
            return Ok(());
        }
        let snap = self.images[n].snaps[self.pick(self.images[n].snaps.len())].clone();
        let (pool, name) = (self.pick(2), self.new_name("c"));
        let format = if snap.is_protected { CloneFormat::V1 } else { CloneFormat::V2 };
        self.doing = format!("clone {}@{} to {name}", self.images[n].name, snap.name);
        let parent = self.open_read(n).await?.at_snapshot(&snap.name)?;
        let own_layout = self.rng.one_in(3);
        let options = if own_layout { self.random_options(0) } else { CreateOptions::default() };
        clone::create(&parent, &self.pools[pool], &name, format, &options).await?;
        self.images.push(Shadow::holding(pool, &name, snap.data));
        self.check_image(self.images.len() - 1).await
    }

    /// Flattens a clone; anything else refuses.
    pub(super) async fn flatten(&mut self, n: usize) -> Result<()> {
        self.doing = format!("flatten {}", self.images[n].name);
        let mut image = self.open(n).await?;
        let is_clone = image.header.parent.as_ref().is_some_and(|p| p.head_overlap.is_some());
        let flattened = or_refused(flatten::flatten(&mut image, &mut silent).await, &[ErrorKind::Invalid])?;
        image.close().await?;
        if flattened.is_some() != is_clone {
            return Err(mismatch("only a clone can be flattened"));
        }
        self.check_image(n).await
    }

    /// Grows or shrinks.
    pub(super) async fn resize(&mut self, n: usize) -> Result<()> {
        let size = self.random_size();
        self.doing = format!("resize {} from {} to {size}", self.images[n].name, self.images[n].size());
        let mut image = self.open(n).await?;
        let shrinks = size < self.images[n].size();
        if shrinks {
            let refused = resize(&mut image, size, Shrinking::Refused, &mut silent).await;
            if or_refused(refused, &[ErrorKind::Invalid])?.is_some() {
                return Err(mismatch("shrinking must be asked for"));
            }
        }
        resize(&mut image, size, Shrinking::Allowed, &mut silent).await?;
        image.close().await?;
        self.images[n].head.resize(to_usize(size), 0);
        self.check_image(n).await
    }

    /// Removes an image; with snapshots it stays.
    pub(super) async fn remove(&mut self, n: usize) -> Result<()> {
        self.doing = format!("rm {}", self.images[n].name);
        let shadow = &self.images[n];
        let removed = remove(&self.pools[shadow.pool], &shadow.name, UsedParent::Refuse, &mut silent).await;
        let removed = or_refused(removed, &[ErrorKind::Busy])?;
        if removed.is_some() && !shadow.snaps.is_empty() {
            return Err(mismatch("an image with snapshots stays"));
        }
        if removed.is_some() {
            self.images.remove(n);
        }
        Ok(())
    }

    /// Renames.
    pub(super) async fn rename(&mut self, n: usize) -> Result<()> {
        let name = self.new_name("r");
        self.doing = format!("rename {} {name}", self.images[n].name);
        rename(&self.pools[self.images[n].pool], &self.images[n].name, &name).await?;
        self.images[n].name = name;
        self.check_image(n).await
    }

    /// Into the trash, looked at there, and back.
    pub(super) async fn trash_round(&mut self, n: usize) -> Result<()> {
        self.doing = format!("trash {}", self.images[n].name);
        let pool = self.pools[self.images[n].pool].clone();
        let id = trash::move_in(&pool, &self.images[n].name, TrashSource::User, Duration::ZERO).await?;
        self.images[n].trash_id = Some(id.clone());
        self.check_image(n).await?;
        trash::restore(&pool, &id, None, None).await?;
        self.images[n].trash_id = None;
        self.check_image(n).await
    }

    /// Gives zeros back.
    pub(super) async fn sparsify(&mut self, n: usize) -> Result<()> {
        self.doing = format!("sparsify {}", self.images[n].name);
        let mut image = self.open(n).await?;
        sparsify(&mut image, 4096, &mut silent).await?;
        image.close().await?;
        self.check_image(n).await
    }

    /// Makes the object maps anew; they must be valid before and after.
    pub(super) async fn rebuild_map(&mut self, n: usize) -> Result<()> {
        self.doing = format!("object-map rebuild {}", self.images[n].name);
        let mut image = self.open(n).await?;
        if image.header.features.contains(Features::OBJECT_MAP) {
            for round in 0..2 {
                if check(&mut image, &mut silent).await? != MapCheck::Valid {
                    return Err(mismatch("an object map denies an object").with("round", round));
                }
                rebuild(&mut image, &mut silent).await?;
            }
        }
        image.close().await?;
        self.check_image(n).await
    }
}
