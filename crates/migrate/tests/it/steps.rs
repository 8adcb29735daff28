//! A migration from its beginning to one of its ends.

use std::pin::pin;
use std::sync::atomic::Ordering;

use ferry_core::{BlockDevice, Error, ErrorKind, Result};
use ferry_image::device::ImageDevice;
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::progress::silent;
use ferry_image::{rollback, snapshot};
use ferry_migrate::{
    AbortOptions, CommitOptions, Comparing, Control, Ends, Receipts, abort, commit, execute, losses, prepare,
    verify,
};
use futures_util::future::{Either, join, select};

use crate::case::{Case, REREAD, Shadow, Spot, Tally, lasting, same, snap_ids};
use crate::fault::Faults;

/// Changes within which a death comes: the last is more than any verb needs here, so that some live on.
const CHANGES: [u64; 3] = [6, 25, 90];

/// Deaths one after the other before a verb is let through.
pub(crate) const DEATHS_MAX: usize = 8;

impl Case {
    /// Runs it; how it died.
    pub(crate) async fn run(mut self) -> Tally {
        if let Err(e) = Box::pin(self.go()).await {
            panic!("seed {}: {}", self.seed, e.chain());
        }
        self.tally
    }

    async fn go(&mut self) -> Result<()> {
        self.trace(&format!("{:?} {:?} {:?}", self.source, self.target, self.options));
        self.set_up().await?;
        self.trace("----");
        let (spot, shadow) = (self.source.clone(), self.shadow.clone());
        self.check("before", &spot, &shadow).await?;
        let pool = self.pool(&spot).await;
        let before = Image::open(&pool, spot.name, Opening::ReadOnly).await?.header;

        let ended = self.to_the_end(Verb::Prepare).await?;
        assert!(ended, "prepare is let through");
        let target = self.target.clone();
        self.check("prepared", &target, &shadow).await?;
        self.check_child("prepared").await?;

        let mut lost = false;
        let mut now = shadow.clone();
        let aborts = self.below(3) == 0;
        let keeps_all = aborts && self.below(2) == 0;
        self.use_target(&mut now, &mut lost, keeps_all).await?;
        if let Some(machine) = self.machine() {
            self.write_until_cut(machine, &mut now).await?;
        }
        let early = self.below(3) == 0;
        if aborts && early {
            return Box::pin(self.abort(&before, &shadow, now, lost)).await;
        }
        let is_executed =
            self.below(2) == 0 && Box::pin(self.copy_beside_clients(&mut now, &mut lost, keeps_all)).await?;
        if !is_executed {
            if aborts && self.below(2) == 0 {
                return Box::pin(self.abort(&before, &shadow, now, lost)).await;
            }
            self.stop_half_way(&mut now, &mut lost, keeps_all).await?;
        }
        self.to_the_end(Verb::Execute).await?;
        self.check("executed", &target, &now).await?;
        self.check_child("executed").await?;
        let pool = self.pool(&target).await;
        let ends = Ends::find(&pool, target.name).await?;
        let kept = verify(&ends, Comparing::default(), &mut silent).await?;
        let read = verify(&ends, REREAD, &mut silent).await?;
        self.check_verified(&kept, &read);
        self.use_target(&mut now, &mut lost, keeps_all).await?;
        if aborts {
            return Box::pin(self.abort(&before, &shadow, now, lost)).await;
        }
        self.to_the_end(Verb::Commit).await?;
        self.receipts.check(self.seed);
        self.check("committed", &target, &now).await?;
        self.check_child("committed").await?;
        let pool = self.pool(&target).await;
        let image = Image::open(&pool, target.name, Opening::ReadOnly).await?;
        self.check_plain(&image).await?;
        self.tear_down(&target).await
    }

    /// Uses the target as a client would. Snapshots and sizes only where it may lose them.
    pub(crate) async fn use_target(&self, now: &mut Shadow, lost: &mut bool, keeps_all: bool) -> Result<()> {
        let target = self.target.clone();
        let pool = self.pool(&target).await;
        let device = self.open(&pool, target.name).await?;
        self.use_device(&device, now, lost, keeps_all).await?;
        device.close().await?;
        self.check("used", &target, now).await
    }

    /// As [`Self::use_target`], which is open.
    async fn use_device(
        &self,
        device: &ImageDevice,
        now: &mut Shadow,
        lost: &mut bool,
        keeps_all: bool,
    ) -> Result<()> {
        for n in 0..self.below(8) {
            match self.below(12) {
                0 if !keeps_all && self.child.is_none() => {
                    self.resize_random(device, now).await?;
                    *lost = true;
                }
                1 if !keeps_all => {
                    let name = format!("t{n}{}", self.below(1 << 30));
                    self.snap_random(device, now, name).await?;
                    *lost = true;
                }
                2 if !keeps_all && self.child.is_none() => {
                    let victim = now.snaps.iter().find(|(_, (_, protected))| !protected);
                    if let Some(name) = victim.map(|(name, _)| name.clone()) {
                        device.exclusively(async |i: &mut Image| snapshot::remove(i, &name).await).await?;
                        self.trace(&format!("removed {name}"));
                        now.snaps.remove(&name);
                        *lost = true;
                    }
                }
                3 if !keeps_all => {
                    if let Some((name, (bytes, _))) =
                        now.snaps.iter().next().map(|(n, s)| (n.clone(), s.clone()))
                    {
                        self.roll_back(device, &name).await?;
                        *lost |= bytes.len() != now.head.len();
                        now.head = bytes;
                    }
                }
                _ => self.write_random(device, now).await?,
            }
            let bytes = device.read(0, device.size()).await?;
            same(&format!("seed {}: HEAD through the device", self.seed), &bytes, &now.head);
        }
        Ok(())
    }

    /// Rolls the image of `device` back to its snapshot `name`.
    pub(super) async fn roll_back(&self, device: &ImageDevice, name: &str) -> Result<()> {
        device
            .exclusively(async |i: &mut Image| {
                let id = i.header.user_snap(name)?.id;
                rollback::rollback(i, id, &mut silent).await
            })
            .await?;
        self.trace(&format!("rolled back to {name}"));
        Ok(())
    }

    /// Executes while a client uses the target, on stores where what is asked at once happens in any order, and another reads
    /// its snapshots. The copy comes to its end, which is told, or is stopped when the clients are.
    async fn copy_beside_clients(&self, now: &mut Shadow, lost: &mut bool, keeps_all: bool) -> Result<bool> {
        let stores = self.late_process();
        let target = self.target.clone();
        let pool = self.pool_in(&stores, &target).await;
        let mut ends = Ends::find(&pool, target.name).await?;
        let device = ImageDevice::open(ends.open_target().await?).await?;
        let (control, is_stopped) = (Control::default(), self.below(2) == 0);
        let mut quiet = silent;
        let copy = execute(&mut ends, &device, &control, &mut quiet);
        let clients = async {
            for _ in 0..1 + self.below(3) {
                self.use_device(&device, now, lost, keeps_all).await?;
            }
            if is_stopped {
                control.cancel();
            }
            Ok(())
        };
        let both = async { join(copy, clients).await };
        let (copied, used): (_, Result<()>) = match select(pin!(both), pin!(device.attend())).await {
            Either::Left((both, _)) => both,
            Either::Right((ended, _)) => panic!("seed {}: attending ended: {ended:?}", self.seed),
        };
        used?;
        let is_executed = match copied {
            Ok(_) => true,
            Err(e) if is_stopped && e.kind() == ErrorKind::Unavailable => false,
            Err(e) => return Err(e),
        };
        self.trace(&format!("copied beside clients: {is_executed}"));
        device.close().await?;
        self.check("copied beside clients", &target, now).await?;
        self.check_child("copied beside clients").await?;
        Ok(is_executed)
    }

    /// Executes a part, and uses the target in between.
    async fn stop_half_way(&self, now: &mut Shadow, lost: &mut bool, keeps_all: bool) -> Result<()> {
        let (faults, stores) = self.process();
        let target = self.target.clone();
        let pool = self.pool_in(&stores, &target).await;
        self.arm(&faults, 40);
        let done = self.execute_in(&pool, target.name).await;
        if done.is_err() {
            assert!(faults.is_dead(), "seed {}: {done:?}", self.seed);
        }
        if let Some(machine) = self.machine() {
            drop((pool, stores));
            self.write_until_cut(machine, now).await?;
        }
        self.check("half executed", &target, now).await?;
        self.check_child("half executed").await?;
        self.use_target(now, lost, keeps_all).await
    }

    async fn execute_in(&self, pool: &ferry_image::pool::Pool, name: &str) -> Result<()> {
        let mut ends = Ends::find(pool, name).await?;
        let device = ImageDevice::open(ends.open_target().await?).await?;
        execute(&mut ends, &device, &Control::default(), &mut silent).await?;
        device.close().await
    }

    async fn abort(
        &self,
        before: &ferry_image::header::Header,
        shadow: &Shadow,
        mut now: Shadow,
        lost: bool,
    ) -> Result<()> {
        let target = self.target.clone();
        let pool = self.pool(&target).await;
        let ends = Ends::find(&pool, target.name).await?;
        let seen = losses(&ends)?;
        assert!(lost || seen.what.is_empty(), "seed {}: {seen:?}", self.seed);
        if !seen.what.is_empty() {
            let refused = abort(ends, AbortOptions::default(), &mut silent).await;
            assert_eq!(refused.map_err(|e| e.kind()), Err(ErrorKind::Busy), "seed {}", self.seed);
            self.check("refused", &target, &now).await?;
        }
        // By the seed alone, so that seeds which found something once go on as they did.
        if matches!(self.seed % 4, 1 | 2) && Box::pin(self.abort_beside_clients(&mut now, !lost)).await? {
            self.trace("aborted beside clients");
            self.tally.live_aborts.fetch_add(1, Ordering::Relaxed);
        } else {
            self.to_the_end(Verb::Abort).await?;
        }
        let source = self.source.clone();
        let pool = self.pool(&source).await;
        let image = Image::open(&pool, source.name, Opening::ReadOnly).await?;
        // Inside its size, HEAD is what the target's was.
        let mut wanted = shadow.clone();
        let size = wanted.head.len();
        if now.head.len() == size {
            wanted.head = now.head;
        } else {
            let head = image.revision().await?;
            wanted.head = head.read_bytes(0, head.size).await?.to_vec();
            assert_eq!(wanted.head.len(), size, "seed {}", self.seed);
        }
        self.check_image("aborted", &image, &wanted).await?;
        self.check_child("aborted").await?;
        assert_eq!(snap_ids(&image.header), snap_ids(before), "seed {}", self.seed);
        let (is, was) = (lasting(&image.header), lasting(before));
        assert_eq!(is.snaps, was.snaps, "seed {}", self.seed);
        assert_eq!(is, was, "seed {}", self.seed);
        if self.target.name != source.name || self.target.pool != source.pool {
            let there = self.pool(&target).await;
            let gone = Image::open(&there, target.name, Opening::ReadOnly).await;
            assert_eq!(gone.map(drop).map_err(|e| e.kind()), Err(ErrorKind::NotFound), "seed {}", self.seed);
        }
        self.tear_down(&source).await
    }

    /// Does a verb, dying in between where this case dies.
    async fn to_the_end(&self, verb: Verb) -> Result<bool> {
        if let Some(machine) = self.machine() {
            return Box::pin(self.through_cuts(verb, machine)).await;
        }
        let deaths = if self.dies { DEATHS_MAX } else { 0 };
        for n in 0..=deaths {
            let (faults, stores) = self.process();
            if n < deaths {
                self.arm_soon(&faults);
            }
            match self.attempt(verb, &stores, n > 0).await {
                Ok(()) => {
                    assert!(!faults.is_dead(), "seed {}: a dead store reports success", self.seed);
                    return Ok(true);
                }
                Err(e) if faults.is_dead() => {
                    self.trace(&format!("{verb:?} dies: {}", e.chain()));
                    self.tally.add(1, faults.armed.load(Ordering::Relaxed) << 8 | verb as u64);
                    self.look_at_remains(verb).await?;
                }
                Err(e) => return Err(e.with("verb", format!("{verb:?} {n}"))),
            }
        }
        Err(Error::invalid("a verb that never ends"))
    }

    /// Lets death come, or not, before a verb is done.
    pub(crate) fn arm_soon(&self, faults: &Faults) {
        if let Some(machine) = self.machine() {
            return self.cut_soon(machine);
        }
        let within = CHANGES[usize::try_from(self.below(3)).unwrap()];
        self.arm(faults, within);
    }

    /// Lets nothing happen any more, unless it did.
    pub(crate) fn disarm(&self, faults: &Faults) {
        match self.machine() {
            Some(machine) => machine.disarm(),
            None => faults.disarm(),
        }
    }

    /// After a death: what is there reads as it should.
    pub(crate) async fn look_at_remains(&self, verb: Verb) -> Result<()> {
        if matches!(verb, Verb::Execute | Verb::Commit | Verb::Prepare) {
            self.check_child(&format!("dead in {verb:?}")).await?;
        }
        Ok(())
    }

    pub(crate) async fn attempt(
        &self,
        verb: Verb,
        stores: &[std::sync::Arc<dyn ferry_core::Store>],
        again: bool,
    ) -> Result<()> {
        let source = self.pool_in(stores, &self.source).await;
        let target = self.pool_in(stores, &self.target).await;
        let find = async || -> Result<Option<Ends>> {
            // By either name, as it comes.
            let spots: [(&ferry_image::pool::Pool, &Spot); 2] =
                [(&target, &self.target), (&source, &self.source)];
            let first = usize::from(self.seed.is_multiple_of(2));
            for (pool, spot) in [spots[first], spots[1 - first]] {
                match Ends::find(pool, spot.name).await {
                    Ok(ends) => return Ok(Some(ends)),
                    Err(e) if again && matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Invalid) => {}
                    Err(e) if matches!(e.kind(), ErrorKind::NotFound) => {}
                    Err(e) => return Err(e),
                }
            }
            // It was done before the answer could be given.
            if again { Ok(None) } else { Err(Error::not_found("no end of the migration")) }
        };
        match verb {
            Verb::Prepare => {
                prepare(&source, self.source.name, &target, self.target.name, &self.options).await.map(drop)
            }
            Verb::Execute => {
                let Some(ends) = find().await? else { return Ok(()) };
                if ends.state() == ferry_image::encoding::MigrationState::Executed {
                    return Ok(());
                }
                self.execute_in(&target, self.target.name).await
            }
            Verb::Commit => {
                let Some(ends) = find().await? else { return Ok(()) };
                let receipts = Some(&self.receipts as &dyn Receipts);
                let options = CommitOptions { force: true, receipts, ..CommitOptions::default() };
                commit(ends, options, &mut silent).await.map(drop)
            }
            Verb::Abort => {
                let Some(ends) = find().await? else { return Ok(()) };
                abort(ends, AbortOptions { accept_loss: true }, &mut silent).await
            }
        }
    }
}

impl Case {
    /// Executes with one byte flipped on its way, which must be found; whether one was.
    pub(crate) async fn flip(mut self) -> bool {
        self.set_up().await.unwrap();
        self.to_the_end(Verb::Prepare).await.unwrap();
        let (faults, stores) = self.process();
        faults.flip.store(i64::try_from(self.below(6)).unwrap(), Ordering::Relaxed);
        let pool = self.pool_in(&stores, &self.target.clone()).await;
        self.execute_in(&pool, self.target.name).await.unwrap();
        let flipped = faults.flipped.load(Ordering::Relaxed);
        let ends = Ends::find(&pool, self.target.name).await.unwrap();
        let committed =
            commit(ends, CommitOptions { force: true, ..CommitOptions::default() }, &mut silent).await;
        let kind = committed.map(drop).map_err(|e| e.kind());
        let wanted = if flipped { Err(ErrorKind::Corrupt) } else { Ok(()) };
        assert_eq!(kind, wanted, "seed {}", self.seed);
        flipped
    }

    /// Executes while the source cannot be read, then again.
    pub(crate) async fn unreadable_source(mut self) {
        self.set_up().await.unwrap();
        let pool = self.pool(&self.source.clone()).await;
        let prefix = Image::open(&pool, self.source.name, Opening::ReadOnly)
            .await
            .unwrap()
            .header
            .object_prefix
            .clone();
        self.to_the_end(Verb::Prepare).await.unwrap();
        let (faults, stores) = self.process();
        *faults.unreadable.lock().unwrap() = Some(prefix);
        let pool = self.pool_in(&stores, &self.target.clone()).await;
        let image = Image::open(&pool, self.target.name, Opening::ReadOnly).await.unwrap();
        let head = image.revision().await.unwrap();
        let read = head.read_bytes(0, head.size).await;
        assert_eq!(read.map(drop).map_err(|e| e.kind()), Err(ErrorKind::Io), "seed {}", self.seed);
        let executed = self.execute_in(&pool, self.target.name).await;
        let ends = Ends::find(&pool, self.target.name).await.unwrap();
        if executed.is_err() {
            assert_eq!(ends.state(), ferry_image::encoding::MigrationState::Executing, "seed {}", self.seed);
        }
        *faults.unreadable.lock().unwrap() = None;
        self.to_the_end(Verb::Execute).await.unwrap();
        let (target, shadow) = (self.target.clone(), self.shadow.clone());
        self.check("executed after an error", &target, &shadow).await.unwrap();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Prepare,
    Execute,
    Commit,
    Abort,
}
