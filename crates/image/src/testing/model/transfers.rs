//! Copies, exports, imports and diffs.

use ferry_core::{ExtentState, Result, SnapId};

use super::shadow::{Shadow, to_usize};
use super::{IMAGES_MAX, World, mismatch};
use crate::clone::{self, CloneFormat};
use crate::copy;
use crate::create::{CreateOptions, create};
use crate::diff::{Diff, DiffRequest, Granularity, ParentData};
use crate::encoding::{ParentRecord, Protection};
use crate::features::Features;
use crate::header::Opening;
use crate::image::Image;
use crate::progress::silent;
use crate::remove::{UsedParent, remove};
use crate::stream::ImageStreamReader;
use crate::transfer::export::{ReadHere, WriteTarget, export_raw, export_stream};
use crate::transfer::export_diff::export_diff;
use crate::transfer::import::{ReadSource, import_raw, import_stream};
use crate::transfer::import_diff::import_diff;
use crate::transfer::merge_diff::merge_diff;

impl World {
    /// An empty image to copy into, opened.
    async fn make_target(&mut self, size: u64) -> Result<(usize, Image)> {
        let (pool, name) = (self.pick(2), self.new_name("t"));
        create(&self.pools[pool], &name, &self.random_options(size)).await?;
        self.images.push(Shadow::new(pool, &name, size));
        let n = self.images.len() - 1;
        Ok((n, self.open(n).await?))
    }

    /// Copies HEAD or a snapshot.
    pub(super) async fn copy(&mut self, n: usize) -> Result<()> {
        if self.images.len() >= IMAGES_MAX {
            return Ok(());
        }
        let at = self.random_point(n);
        self.doing = format!("cp {}@{at}", self.images[n].name);
        let source = Image { at, ..self.open_read(n).await? };
        let data = self.images[n].at(at).to_vec();
        let (t, mut target) = self.make_target(data.len() as u64).await?;
        copy::copy(&source, &mut target, &mut silent).await?;
        target.close().await?;
        self.images[t].head = data;
        self.check_image(t).await
    }

    /// Copies an image with its snapshots; a clone to a clone of the same parent, or to an image that owns all its data.
    pub(super) async fn deep_copy(&mut self, n: usize) -> Result<()> {
        if self.images.len() >= IMAGES_MAX {
            return Ok(());
        }
        self.doing = format!("deep cp {}", self.images[n].name);
        let source = self.open_read(n).await?;
        let shared = copy::parent_to_share(&source)?.filter(|_| !self.rng.one_in(3));
        let (t, mut target) = match &shared {
            Some(record) => self.make_clone_beside(&source, record).await?,
            None => self.make_target(self.images[n].size()).await?,
        };
        copy::deep_copy(&source, &mut target, &mut silent).await?;
        target.close().await?;
        self.images[t].head = self.images[n].head.clone();
        self.images[t].snaps = self.adopt_snaps(t, &self.images[n].snaps).await?;
        if shared.is_some() {
            self.check_shows_as_much(n, t).await?;
        }
        self.check_image(t).await
    }

    /// An empty clone of what another image is a clone of, opened. Its parent's snapshot may be one that was removed, and is
    /// not to be cloned again: then it is an image of its own.
    async fn make_clone_beside(&mut self, source: &Image, record: &ParentRecord) -> Result<(usize, Image)> {
        let size = source.header.size;
        let parent = clone::open_parent(source, record).await?;
        let snap = parent.header.snap(parent.at)?;
        if !snap.namespace.is_user() {
            return self.make_target(size).await;
        }
        let format = if snap.protection == Protection::Protected && self.rng.one_in(2) {
            CloneFormat::V1
        } else {
            CloneFormat::V2
        };
        let (pool, name) = (self.pick(2), self.new_name("b"));
        self.doing.push_str(&format!(" to {name}, linked"));
        let options = self.random_options(size);
        clone::create_exactly(&parent, &self.pools[pool], &name, format, &options).await?;
        self.images.push(Shadow::new(pool, &name, size));
        let t = self.images.len() - 1;
        Ok((t, self.open(t).await?))
    }

    /// Whether a linked copy shows as much of the parent as its source, at each point.
    async fn check_shows_as_much(&self, n: usize, t: usize) -> Result<()> {
        let (source, target) = (self.open_read(n).await?, self.open_read(t).await?);
        if target.header.parent_spec().is_none() {
            return Ok(());
        }
        let snaps = self.images[n].snaps.iter().zip(&self.images[t].snaps).map(|(a, b)| (a.id, b.id));
        for (in_source, in_target) in snaps.chain([(SnapId::HEAD, SnapId::HEAD)]) {
            let overlap = |image: &Image, at| Ok(image.header.parent_at(at)?.map(|link| link.overlap));
            let (wanted, found): (Option<u64>, Option<u64>) =
                (overlap(&source, in_source)?, overlap(&target, in_target)?);
            if wanted != found {
                return Err(mismatch("a copy shows more or less of the parent than its source"));
            }
        }
        Ok(())
    }

    /// Exports an image with its snapshots and imports it under another name.
    pub(super) async fn export_import(&mut self, n: usize) -> Result<()> {
        if self.images.len() >= IMAGES_MAX {
            return Ok(());
        }
        self.doing = format!("export and import {}", self.images[n].name);
        let bytes = export_stream(&self.open_read(n).await?, Vec::new(), &mut silent).await?;
        let mut stream = ImageStreamReader::new(&bytes[..])?;
        let header = stream.header().clone();
        let wide = Features(header.features.unwrap_or(0) & Features::DEFAULT.0);
        let options = CreateOptions {
            order: header.order.and_then(|o| u8::try_from(o).ok()),
            features: Some(wide),
            stripe_unit: header.stripe_unit,
            stripe_count: header.stripe_count,
            ..CreateOptions::default()
        };
        let (pool, name) = (self.pick(2), self.new_name("x"));
        create(&self.pools[pool], &name, &options).await?;
        let mut target = Image::open(&self.pools[pool], &name, Opening::ReadWrite).await?;
        import_stream(&mut stream, &mut target, 4096, &mut silent).await?;
        target.close().await?;
        let mut shadow = Shadow { pool, name, trash_id: None, ..self.images[n].clone() };
        self.images.push(shadow.clone());
        let t = self.images.len() - 1;
        shadow.snaps = self.adopt_snaps(t, &self.images[n].snaps).await?;
        self.images[t] = shadow;
        self.check_image(t).await
    }

    /// Exports the diffs from the beginning to a snapshot and from there to HEAD, and applies both, or what they merge to.
    pub(super) async fn diff_chain(&mut self, n: usize) -> Result<()> {
        if self.images.len() >= IMAGES_MAX || self.images[n].snaps.is_empty() {
            return Ok(());
        }
        let snap = self.images[n].snaps[self.pick(self.images[n].snaps.len())].clone();
        self.doing = format!("export-diff {}@{} and on to HEAD", self.images[n].name, snap.name);
        let source = self.open_read(n).await?;
        let grain = [Granularity::Exact, Granularity::WholeObject][self.pick(2)];
        let at_snap = source.at_snapshot(&snap.name)?;
        let first = export_diff(&at_snap, None, grain, Vec::new(), &mut silent).await?;
        let second = export_diff(&source, Some(&snap.name), grain, Vec::new(), &mut silent).await?;
        let (t, mut target) = self.make_target(0).await?;
        let merged = self.rng.one_in(2);
        if merged {
            self.doing.push_str(", merged");
            let both = merge_diff(&first[..], &second[..], Vec::new(), &mut silent)?;
            import_diff(&both[..], &mut target, 4096, &mut silent).await?;
        } else {
            import_diff(&first[..], &mut target, 4096, &mut silent).await?;
            import_diff(&second[..], &mut target, 4096, &mut silent).await?;
        }
        target.close().await?;
        self.images[t].head = self.images[n].head.clone();
        if !merged {
            let snap = super::shadow::ShadowSnap { is_protected: false, ..snap };
            self.images[t].snaps = self.adopt_snaps(t, &[snap]).await?;
        }
        self.check_image(t).await
    }

    /// Exports a raw image, compares it, imports it and compares again.
    pub(super) async fn raw_round_trip(&mut self, n: usize) -> Result<()> {
        let at = self.random_point(n);
        self.doing = format!("export and import raw {}@{at}", self.images[n].name);
        let source = Image { at, ..self.open_read(n).await? };
        let mut file = WriteTarget(Vec::new());
        export_raw(&source, &ReadHere, &mut file, &mut silent).await?;
        if file.0 != self.images[n].at(at) {
            return Err(mismatch("an export holds other bytes than the image"));
        }
        let knows_size = self.rng.one_in(2);
        let size = file.0.len() as u64;
        let (t, mut target) = self.make_target(if knows_size { size } else { 4096 }).await?;
        let mut input = ReadSource::new(&file.0[..], knows_size.then_some(size));
        import_raw(&mut input, &mut target, 4096, &mut silent).await?;
        target.close().await?;
        self.images[t].head = file.0;
        self.check_image(t).await?;
        let shadow = self.images.remove(t);
        remove(&self.pools[shadow.pool], &shadow.name, UsedParent::Refuse, &mut silent).await
    }

    /// What a diff leaves out must be the same at both ends, and what it calls zeros must be zeros.
    pub(super) async fn check_diff(&mut self, n: usize) -> Result<()> {
        let shadow = &self.images[n];
        let mut points: Vec<SnapId> = shadow.snaps.iter().map(|s| s.id).collect();
        points.push(SnapId::HEAD);
        let to = self.pick(points.len());
        let from = if self.rng.one_in(3) { None } else { Some(points[self.pick(to + 1)]) };
        let to = points[to];
        let grain = [Granularity::Exact, Granularity::WholeObject][self.pick(2)];
        self.doing = format!("diff {} from {from:?} to {to}, {grain:?}", shadow.name);
        let request = DiffRequest { from, to, granularity: grain, parent: ParentData::Included };
        let image = self.open_read(n).await?;
        let changes = Diff::open(&image, request).await?.collect(&mut silent).await?;
        let shadow = &self.images[n];
        let new = shadow.at(to);
        let mut old = from.map(|at| shadow.at(at).to_vec()).unwrap_or_default();
        old.resize(new.len(), 0);
        let mut at = 0;
        for change in &changes {
            let range = to_usize(change.offset)..to_usize(change.offset + change.length);
            if change.length == 0 || change.offset < at || range.end > new.len() {
                return Err(mismatch("a diff is not ascending or leaves the image").with("at", change.offset));
            }
            if change.state == ExtentState::Zero && new[range.clone()].iter().any(|b| *b != 0) {
                return Err(mismatch("a diff calls data zeros").with("at", change.offset));
            }
            at = change.offset + change.length;
            old[range.clone()].copy_from_slice(&new[range]);
        }
        if let Some(at) = old.iter().zip(new).position(|(a, b)| a != b) {
            return Err(mismatch("a diff misses a change").with("at", at));
        }
        Ok(())
    }

    /// HEAD or a snapshot.
    fn random_point(&self, n: usize) -> SnapId {
        let snaps = &self.images[n].snaps;
        snaps.get(self.pick(snaps.len() + 1)).map_or(SnapId::HEAD, |s| s.id)
    }
}
