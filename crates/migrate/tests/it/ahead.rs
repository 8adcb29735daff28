//! Aborts while clients go on writing the target.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ferry_core::{BlockDevice, Error, ErrorKind, Result, Store};
use ferry_image::device::ImageDevice;
use ferry_image::encoding::MigrationState;
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::progress::silent;
use ferry_image::{metadata, snapshot};
use ferry_migrate::{AbortOptions, CommitOptions, Control, Ends, LiveAbort, abort, commit, execute, prepare};
use futures_util::future::{Either, join, select};

use crate::case::{Case, Shadow};
use crate::fault::Faults;
use crate::power::Machine;

const ACCEPTING: AbortOptions = AbortOptions { accept_loss: true };

impl Case {
    /// Aborts while clients use the target, and may die meanwhile; whether the migration is over. `now` is what the target holds.
    pub(crate) async fn abort_beside_clients(&self, now: &mut Shadow, keeps_all: bool) -> Result<bool> {
        if self.dies || self.machine().is_some() {
            Box::pin(self.abort_and_die(now)).await
        } else {
            Box::pin(self.abort_late(now, keeps_all)).await
        }
    }

    /// On stores where what is asked at once happens in any order.
    async fn abort_late(&self, now: &mut Shadow, keeps_all: bool) -> Result<bool> {
        let stores = self.late_process();
        let target = self.target.clone();
        let pool = self.pool_in(&stores, &target).await;
        let ends = Ends::find(&pool, target.name).await?;
        let device = ImageDevice::open(ends.open_target().await?).await?;
        let Some(mut live) = LiveAbort::begin(&ends, ACCEPTING, &device).await? else {
            device.close().await?;
            return Ok(false);
        };
        let mut quiet = silent;
        let carry = live.carry(&device, self.below(4000), &mut quiet);
        let clients = self.use_carried(&device, now, keeps_all);
        let both = async { join(carry, clients).await };
        let (carried, used) = match select(pin!(both), pin!(device.attend())).await {
            Either::Left((both, _)) => both,
            Either::Right((ended, _)) => panic!("seed {}: attending ended: {ended:?}", self.seed),
        };
        used?;
        carried?;
        self.check("carried back", &target, now).await?;
        self.check_child("carried back").await?;
        live.close_target(&device).await?;
        device.close().await?;
        live.finish().await?.0.remove_target(&mut silent).await?;
        Ok(true)
    }

    /// Uses a target that is carried back: all but snapshots.
    async fn use_carried(&self, device: &ImageDevice, now: &mut Shadow, keeps_all: bool) -> Result<()> {
        for _ in 0..self.below(10) {
            let snap = now.snaps.iter().next().map(|(name, (bytes, _))| (name.clone(), bytes.clone()));
            match (self.below(10), snap) {
                (0, Some((name, bytes))) if !keeps_all && bytes.len() == now.head.len() => {
                    self.roll_back(device, &name).await?;
                    now.head = bytes;
                }
                _ => self.write_random(device, now).await?,
            }
            let bytes = device.read(0, device.size()).await?;
            assert!(bytes == now.head, "seed {}: HEAD of what is carried back", self.seed);
        }
        Ok(())
    }

    /// On stores that die; an abort finishes.
    async fn abort_and_die(&self, now: &mut Shadow) -> Result<bool> {
        let (faults, stores) = self.process();
        match self.abort_until_death(now, &faults, &stores).await {
            Err(e) if faults.is_dead() => {
                self.trace(&format!("dies in an abort beside clients: {}", e.chain()));
                self.tally.add(1, faults.armed.load(Ordering::Relaxed) << 8 | 0xab);
                Ok(false)
            }
            Err(e) if self.machine().is_some_and(Machine::is_cut) => {
                self.trace(&format!("is cut off in an abort beside clients: {}", e.chain()));
                self.machine().map_or(Ok(()), |machine| self.start_again(machine, 0xab))?;
                Ok(false)
            }
            done => done,
        }
    }

    async fn abort_until_death(
        &self,
        now: &mut Shadow,
        faults: &Faults,
        stores: &[Arc<dyn Store>],
    ) -> Result<bool> {
        let target = self.target.clone();
        let pool = self.pool_in(stores, &target).await;
        let ends = Ends::find(&pool, target.name).await?;
        let device = ImageDevice::open(ends.open_target().await?).await?;
        let Some(mut live) = LiveAbort::begin(&ends, ACCEPTING, &device).await? else {
            device.close().await?;
            return Ok(false);
        };
        for _ in 0..2 {
            // Clients do not die: what they were promised would not be known.
            device.flush().await?;
            self.arm_soon(faults);
            live.carry(&device, self.below(4000), &mut silent).await?;
            self.disarm(faults);
            for _ in 0..self.below(4) {
                self.write_random(&device, now).await?;
            }
        }
        device.flush().await?;
        self.arm_soon(faults);
        live.close_target(&device).await?;
        device.close().await?;
        live.finish().await?.0.remove_target(&mut silent).await?;
        self.disarm(faults);
        Ok(true)
    }

    /// An abort beside clients is refused, in the middle too, without harm; and what comes next can only be an abort.
    pub(crate) async fn refused_beside_clients(mut self) -> Result<()> {
        self.has_parent = false;
        self.set_up().await?;
        let mut now = self.shadow.clone();
        let (source, target) = (self.source.clone(), self.target.clone());
        let (from, to) = (self.pool(&source).await, self.pool(&target).await);
        prepare(&from, source.name, &to, target.name, &self.options).await?;
        let ends = Ends::find(&to, target.name).await?;
        let device = ImageDevice::open(ends.open_target().await?).await?;
        self.write_random(&device, &mut now).await?;
        let other = self.open(&to, target.name).await?;
        match LiveAbort::begin(&ends, AbortOptions::default(), &device).await {
            Ok(None) => return Err(Error::invalid("not begun")),
            refused => assert_eq!(refused.map(drop).map_err(|e| e.kind()), Err(ErrorKind::Busy)),
        }
        other.close().await?;
        assert_eq!(Ends::find(&to, target.name).await?.state(), MigrationState::Prepared);
        let begun = LiveAbort::begin(&ends, AbortOptions::default(), &device).await?;
        let Some(mut live) = begun else { return Err(Error::invalid("not begun")) };
        live.carry(&device, 0, &mut silent).await?;
        // Nothing but an abort comes next.
        let mut ends = Ends::find(&to, target.name).await?;
        assert_eq!(ends.state(), MigrationState::Aborting);
        let executed = execute(&mut ends, &device, &Control::default(), &mut silent).await;
        assert_eq!(executed.map(drop).map_err(|e| e.kind()), Err(ErrorKind::ReadOnly));
        let options = CommitOptions { force: true, unverified: true, ..CommitOptions::default() };
        let committed = commit(ends.clone(), options, &mut silent).await;
        assert_eq!(committed.map(drop).map_err(|e| e.kind()), Err(ErrorKind::ReadOnly));
        // No snapshot is taken of what may show the source; other changes may be made, and are refused in the end.
        let taken = device.exclusively(async |i: &mut Image| snapshot::create(i, "meanwhile").await).await;
        assert_eq!(taken.map(drop).map_err(|e| e.kind()), Err(ErrorKind::ReadOnly));
        self.write_random(&device, &mut now).await?;
        device.exclusively(async |i: &mut Image| metadata::set(i, "key", b"value").await).await?;
        live.carry(&device, 0, &mut silent).await?;
        let refused = live.close_target(&device).await;
        assert_eq!(refused.map_err(|e| e.kind()), Err(ErrorKind::Busy));
        self.check("refused", &target, &now).await?;
        self.write_random(&device, &mut now).await?;
        drop(live);
        device.close().await?;
        self.check("given up", &target, &now).await?;
        abort(Ends::find(&to, target.name).await?, ACCEPTING, &mut silent).await?;
        let image = Image::open(&from, source.name, Opening::ReadOnly).await?;
        self.check_image("aborted", &image, &now).await?;
        self.check_plain(&image).await
    }
}
