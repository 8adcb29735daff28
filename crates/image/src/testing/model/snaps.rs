//! Snapshots.

use ferry_core::{Error, ErrorKind, Result};

use super::shadow::ShadowSnap;
use super::{SNAPS_MAX, World, mismatch, or_refused};
use crate::progress::silent;
use crate::{rollback, snapshot};

impl World {
    /// Takes a snapshot.
    pub(super) async fn take_snapshot(&mut self, n: usize) -> Result<()> {
        if self.images[n].snaps.len() >= SNAPS_MAX {
            return self.remove_snapshot(n).await;
        }
        let name = self.new_name("s");
        self.doing = format!("snap create {}@{name}", self.images[n].name);
        let mut image = self.open(n).await?;
        let id = snapshot::create(&mut image, &name).await?;
        image.close().await?;
        let data = self.images[n].head.clone();
        self.images[n].snaps.push(ShadowSnap { name, id, data, is_protected: false });
        Ok(())
    }

    /// Removes a snapshot, unless it is protected.
    pub(super) async fn remove_snapshot(&mut self, n: usize) -> Result<()> {
        if self.images[n].snaps.is_empty() {
            return Ok(());
        }
        let s = self.pick(self.images[n].snaps.len());
        let snap = self.images[n].snaps[s].clone();
        self.doing = format!("snap rm {}@{}", self.images[n].name, snap.name);
        let mut image = self.open(n).await?;
        let removed = or_refused(snapshot::remove(&mut image, &snap.name).await, &[ErrorKind::Busy])?;
        image.close().await?;
        if removed.is_some() == snap.is_protected {
            return Err(mismatch("only a protected snapshot stays"));
        }
        if removed.is_some() {
            self.images[n].snaps.remove(s);
        }
        Ok(())
    }

    /// Rolls HEAD back.
    pub(super) async fn roll_back(&mut self, n: usize) -> Result<()> {
        if self.images[n].snaps.is_empty() {
            return Ok(());
        }
        let snap = self.images[n].snaps[self.pick(self.images[n].snaps.len())].clone();
        self.doing = format!("rollback {}@{}", self.images[n].name, snap.name);
        let mut image = self.open(n).await?;
        rollback::rollback(&mut image, snap.id, &mut silent).await?;
        image.close().await?;
        self.images[n].head = snap.data;
        self.check_image(n).await
    }

    /// Protects a snapshot, or gives its protection up where no clone needs it.
    pub(super) async fn toggle_protection(&mut self, n: usize) -> Result<()> {
        if self.images[n].snaps.is_empty() {
            return Ok(());
        }
        let s = self.pick(self.images[n].snaps.len());
        let snap = self.images[n].snaps[s].clone();
        self.doing = format!("toggle protection of {}@{}", self.images[n].name, snap.name);
        let mut image = self.open(n).await?;
        let done = if snap.is_protected {
            or_refused(snapshot::unprotect(&mut image, &snap.name).await, &[ErrorKind::Busy])?
        } else {
            Some(snapshot::protect(&mut image, &snap.name).await?)
        };
        image.close().await?;
        if done.is_some() {
            self.images[n].snaps[s].is_protected = !snap.is_protected;
        }
        Ok(())
    }

    /// What a new image holds after snapshots were copied into it: the same bytes under ids of its own.
    pub(super) async fn adopt_snaps(&self, n: usize, snaps: &[ShadowSnap]) -> Result<Vec<ShadowSnap>> {
        let image = self.open_read(n).await?;
        let adopt = |s: &ShadowSnap| -> Result<ShadowSnap, Error> {
            Ok(ShadowSnap { id: image.header.user_snap(&s.name)?.id, ..s.clone() })
        };
        snaps.iter().map(adopt).collect()
    }
}
