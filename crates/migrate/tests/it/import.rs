//! Imports from a foreign source and from a snapshot of an image, from their beginning to one of their ends.

use std::sync::Arc;

use bytes::Bytes;
use ferry_core::testing::MemSource;
use ferry_core::testing::mem_source::Knowledge;
use ferry_core::{BlockDevice, Effect, Error, ErrorKind, ReadOp, Result, SnapId, WriteOp};
use ferry_image::create::CreateOptions;
use ferry_image::device::ImageDevice;
use ferry_image::encoding::MigrationState;
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::pool::Pool;
use ferry_image::progress::silent;
use ferry_image::snapshot;
use ferry_migrate::{
    AbortOptions, CommitOptions, Comparing, Control, Finding, Import, ImportFrom, ImportOptions, Receipts,
    abort_import, commit_import, execute_import, import_losses, prepare_import, verify_import,
};

use crate::case::{Case, REREAD, SIZE_MAX, SPEC, Shadow, Tally, layout, zeros};
use crate::steps::DEATHS_MAX;

/// What is imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Foreign,
    Snapshot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Prepare,
    Execute,
    Commit,
    Abort,
}

/// What stays the same through one case.
#[derive(Debug)]
struct Plan {
    from: From,
    /// The snapshot, where it is one of an image.
    snap: String,
    options: ImportOptions,
}

impl Case {
    pub(crate) async fn import(mut self, from: From) -> Tally {
        if let Err(e) = self.import_all(from).await {
            panic!("seed {}: {}", self.seed, e.chain());
        }
        self.tally
    }

    async fn import_all(&mut self, from: From) -> Result<()> {
        let (plan, shadow) = self.set_up_import(from).await?;
        self.trace(&format!("---- {plan:?}"));
        self.import_to_the_end(&plan, Verb::Prepare).await?;
        let target = self.target.clone();
        self.check("prepared", &target, &shadow).await?;
        self.check_pinned(&plan).await?;

        let (mut now, mut lost) = (shadow.clone(), false);
        let aborts = self.below(3) == 0;
        self.use_target(&mut now, &mut lost, false).await?;
        if aborts && self.below(3) == 0 {
            return self.abort_and_look(&plan, &shadow, &now).await;
        }
        self.stop_import_half_way(&mut now, &mut lost).await?;
        self.import_to_the_end(&plan, Verb::Execute).await?;
        self.check("executed", &target, &now).await?;
        let pool = self.pool(&target).await;
        let import = Import::find(&pool, target.name).await?;
        let kept = verify_import(&import, Comparing::default(), &mut silent).await?;
        let read = verify_import(&import, REREAD, &mut silent).await?;
        self.check_verified(&kept, &read);
        self.use_target(&mut now, &mut lost, false).await?;
        if aborts {
            return self.abort_and_look(&plan, &shadow, &now).await;
        }
        self.check_pinned(&plan).await?;
        self.import_to_the_end(&plan, Verb::Commit).await?;
        self.receipts.check(self.seed);
        self.foreign = None;
        self.check("committed", &target, &now).await?;
        let pool = self.pool(&target).await;
        let image = Image::open(&pool, target.name, Opening::ReadOnly).await?;
        self.check_plain(&image).await?;
        self.check_source(&plan).await?;
        self.remove_image(&pool, target.name).await?;
        self.tear_down_import(&plan).await
    }

    async fn set_up_import(&mut self, from: From) -> Result<(Plan, Shadow)> {
        let options = ImportOptions { layout: layout(&self.rng), shared: false };
        if self.target.name == self.source.name {
            self.target.name = "b";
        }
        if from == From::Foreign {
            self.has_parent = false;
            let shadow = self.foreign_source();
            return Ok((Plan { from, snap: String::new(), options }, shadow));
        }
        self.set_up().await?;
        let pool = self.pool(&self.source).await;
        if self.shadow.snaps.is_empty() {
            let device = self.open(&pool, self.source.name).await?;
            let mut shadow = std::mem::take(&mut self.shadow);
            self.snap_random(&device, &mut shadow, "s0".to_owned()).await?;
            self.shadow = shadow;
            device.close().await?;
        }
        let names: Vec<String> = self.shadow.snaps.keys().cloned().collect();
        let snap = names[usize::try_from(self.below(names.len() as u64)).unwrap()].clone();
        let shows_protection =
            options.layout.features.is_none_or(|f| f.contains(ferry_image::features::Features::LAYERING));
        assert!(shows_protection, "all layouts here have layering");
        let head = self.shadow.snaps[&snap].0.clone();
        let snaps = self.shadow.snaps.range(..=snap.clone()).map(|(n, s)| (n.clone(), s.clone())).collect();
        Ok((Plan { from, snap, options }, Shadow { head, snaps }))
    }

    /// Makes a foreign source with history.
    fn foreign_source(&mut self) -> Shadow {
        let mut size = (self.below(17)) * (SIZE_MAX / 16);
        if self.below(3) == 0 {
            size -= self.below(4000).min(size);
        }
        let mut shadow = Shadow { head: zeros(size), ..Shadow::default() };
        let mut snaps = Vec::new();
        for n in 0..=self.below(4) {
            if n > 0 {
                shadow.snaps.insert(format!("s{n}"), (shadow.head.clone(), false));
                snaps.push((format!("s{n}"), shadow.head.clone()));
            }
            for _ in 0..self.below(6) {
                let size = shadow.head.len() as u64;
                if size == 0 {
                    break;
                }
                let offset = self.below(size);
                let length = (1 + self.below(9000)).min(size - offset);
                let fill = u8::try_from(self.below(3) * self.below(85)).unwrap();
                let range = usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap();
                shadow.head[range].fill(fill);
            }
            if self.below(4) == 0 {
                shadow.head.resize(usize::try_from(self.below(SIZE_MAX)).unwrap(), 0);
            }
        }
        let knowledge = if self.below(2) == 0 { Knowledge::Exact } else { Knowledge::Nothing };
        self.foreign = Some(MemSource::new(snaps, shadow.head.clone(), knowledge));
        shadow
    }

    /// A snapshot that is imported from is not removed.
    async fn check_pinned(&self, plan: &Plan) -> Result<()> {
        if plan.from == From::Foreign {
            return Ok(());
        }
        let pool = self.pool(&self.source).await;
        let mut image = Image::open(&pool, self.source.name, Opening::ReadWrite).await?;
        for (name, (_, is_protected)) in self.shadow.snaps.range(..=plan.snap.clone()) {
            if *is_protected {
                continue;
            }
            let refused = snapshot::remove(&mut image, name).await.map_err(|e| e.kind());
            assert_eq!(refused, Err(ErrorKind::Busy), "seed {}: {name}", self.seed);
        }
        image.close().await?;
        let refused =
            ferry_migrate::prepare(&pool, self.source.name, &pool, "elsewhere", &self.options).await;
        assert!(refused.is_err(), "seed {}", self.seed);
        Ok(())
    }

    /// The source is as it was, and free.
    async fn check_source(&self, plan: &Plan) -> Result<()> {
        if plan.from == From::Foreign {
            return Ok(());
        }
        let (spot, shadow) = (self.source.clone(), self.shadow.clone());
        self.check("source", &spot, &shadow).await
    }

    async fn tear_down_import(&self, plan: &Plan) -> Result<()> {
        if plan.from == From::Snapshot {
            return self.tear_down(&self.source.clone()).await;
        }
        self.check_nothing_left().await
    }

    async fn open_from(&self, plan: &Plan, stores: &[Arc<dyn ferry_core::Store>]) -> Result<ImportFrom> {
        let spec = SPEC.to_owned();
        if let Some(source) = &self.foreign {
            return Ok(ImportFrom::Foreign { source: Arc::clone(source) as _, spec });
        }
        let pool = self.pool_in(stores, &self.source).await;
        let image = Image::open(&pool, self.source.name, Opening::ReadOnly).await?;
        Ok(ImportFrom::Snapshot { image: Box::new(image.at_snapshot(&plan.snap)?), spec })
    }

    async fn import_to_the_end(&self, plan: &Plan, verb: Verb) -> Result<()> {
        let deaths = if self.dies { DEATHS_MAX } else { 0 };
        for n in 0..=deaths {
            let (faults, stores) = self.process();
            if n < deaths {
                self.arm_soon(&faults);
            }
            match self.attempt_import(plan, verb, &stores, n > 0).await {
                Ok(()) => {
                    assert!(!faults.is_dead(), "seed {}: a dead store reports success", self.seed);
                    return Ok(());
                }
                Err(e) if faults.is_dead() => self.trace(&format!("{verb:?} dies: {}", e.chain())),
                Err(e) => return Err(e.with("verb", format!("{verb:?} {n}"))),
            }
        }
        Err(Error::invalid("a verb that never ends"))
    }

    async fn attempt_import(
        &self,
        plan: &Plan,
        verb: Verb,
        stores: &[Arc<dyn ferry_core::Store>],
        again: bool,
    ) -> Result<()> {
        let (pool, name) = (self.pool_in(stores, &self.target).await, self.target.name);
        match verb {
            Verb::Prepare => {
                let from = self.open_from(plan, stores).await?;
                prepare_import(&from, &pool, name, &plan.options).await.map(drop)
            }
            Verb::Execute => {
                let import = Import::find(&pool, name).await?;
                if import.state() == MigrationState::Executed {
                    return Ok(());
                }
                self.execute_import_in(&pool, name).await
            }
            Verb::Commit => {
                let import = match ferry_migrate::Ends::look_up(&pool, name).await? {
                    Finding::Importing(import) => *import,
                    // It was done before the answer could be given.
                    Finding::Plain if again => return Ok(()),
                    other => panic!("seed {}: {other:?}", self.seed),
                };
                let receipts = Some(&self.receipts as &dyn Receipts);
                let options = CommitOptions { force: true, receipts, ..CommitOptions::default() };
                commit_import(import, options, &mut silent).await.map(drop)
            }
            Verb::Abort => {
                match abort_import(&pool, name, AbortOptions { accept_loss: true }, &mut silent).await {
                    Err(e) if again && e.kind() == ErrorKind::NotFound => Ok(()),
                    done => done,
                }
            }
        }
    }

    async fn execute_import_in(&self, pool: &Pool, name: &str) -> Result<()> {
        let mut import = Import::find(pool, name).await?;
        let device = ImageDevice::open(Image::open(pool, name, Opening::ReadWrite).await?).await?;
        execute_import(&mut import, &device, &Control::default(), &mut silent).await?;
        device.close().await
    }

    async fn stop_import_half_way(&self, now: &mut Shadow, lost: &mut bool) -> Result<()> {
        let (faults, stores) = self.process();
        let target = self.target.clone();
        let pool = self.pool_in(&stores, &target).await;
        self.arm(&faults, 40);
        let done = self.execute_import_in(&pool, target.name).await;
        if done.is_err() {
            assert!(faults.is_dead(), "seed {}: {done:?}", self.seed);
        }
        self.check("half executed", &target, now).await?;
        self.use_target(now, lost, false).await
    }

    async fn abort_and_look(&self, plan: &Plan, shadow: &Shadow, now: &Shadow) -> Result<()> {
        let target = self.target.clone();
        let pool = self.pool(&target).await;
        let losses = import_losses(&Import::find(&pool, target.name).await?).await?;
        let kept = |s: &Shadow| s.snaps.keys().cloned().collect::<Vec<_>>();
        let is_new = kept(now).iter().any(|name| !shadow.snaps.contains_key(name));
        if now.head != shadow.head || is_new {
            assert!(!losses.what.is_empty(), "seed {}", self.seed);
            let refused = abort_import(&pool, target.name, AbortOptions::default(), &mut silent).await;
            assert_eq!(refused.map_err(|e| e.kind()), Err(ErrorKind::Busy), "seed {}", self.seed);
            self.check("refused", &target, now).await?;
        }
        self.import_to_the_end(plan, Verb::Abort).await?;
        let gone = Image::open(&pool, target.name, Opening::ReadOnly).await;
        assert_eq!(gone.map(drop).map_err(|e| e.kind()), Err(ErrorKind::NotFound), "seed {}", self.seed);
        self.check_source(plan).await?;
        self.tear_down_import(plan).await
    }

    /// The source fails, then changes, then is as it was.
    pub(crate) async fn faulty_foreign(mut self) {
        let (plan, shadow) = self.set_up_import(From::Foreign).await.unwrap();
        let source = self.foreign.clone().unwrap();
        self.import_to_the_end(&plan, Verb::Prepare).await.unwrap();
        let (target, seed) = (self.target.clone(), self.seed);
        let pool = self.pool(&target).await;
        source.set_unreadable(true);
        let image = Image::open(&pool, target.name, Opening::ReadOnly).await.unwrap();
        let head = image.revision().await.unwrap();
        if head.size > 0 {
            let read = head.read_bytes(0, head.size).await.map(drop).map_err(|e| e.kind());
            assert_eq!(read, Err(ErrorKind::Io), "seed {seed}");
            let executed = self.execute_import_in(&pool, target.name).await.map_err(|e| e.kind());
            assert_eq!(executed, Err(ErrorKind::Io), "seed {seed}");
            assert_eq!(Import::find(&pool, target.name).await.unwrap().state(), MigrationState::Executing);
        }
        source.set_unreadable(false);
        source.set_changed(true);
        let opened = image.revision().await.map(drop).map_err(|e| e.kind());
        assert_eq!(opened, Err(ErrorKind::Conflict), "seed {seed}");
        source.set_changed(false);
        self.import_to_the_end(&plan, Verb::Execute).await.unwrap();
        self.check("executed after errors", &target, &shadow).await.unwrap();
        source.set_changed(true);
        let pool = self.pool(&target).await;
        let import = Import::find(&pool, target.name).await.unwrap();
        let options = CommitOptions::default();
        let refused = commit_import(import, options, &mut silent).await.map(drop).map_err(|e| e.kind());
        assert_eq!(refused, Err(ErrorKind::Conflict), "seed {seed}");
        source.set_changed(false);
        self.import_to_the_end(&plan, Verb::Commit).await.unwrap();
        self.check("committed after errors", &target, &shadow).await.unwrap();
    }

    /// Executes with one byte flipped on its way, which must be found; whether one was.
    pub(crate) async fn flip_import(mut self) -> bool {
        let (plan, _) = self.set_up_import(From::Foreign).await.unwrap();
        self.import_to_the_end(&plan, Verb::Prepare).await.unwrap();
        let (faults, stores) = self.process();
        faults.flip.store(i64::try_from(self.below(6)).unwrap(), std::sync::atomic::Ordering::Relaxed);
        let pool = self.pool_in(&stores, &self.target.clone()).await;
        self.execute_import_in(&pool, self.target.name).await.unwrap();
        let flipped = faults.flipped.load(std::sync::atomic::Ordering::Relaxed);
        let import = Import::find(&pool, self.target.name).await.unwrap();
        let options = CommitOptions { force: true, ..CommitOptions::default() };
        let committed = commit_import(import, options, &mut silent).await;
        let wanted = if flipped { Err(ErrorKind::Corrupt) } else { Ok(()) };
        assert_eq!(committed.map(drop).map_err(|e| e.kind()), wanted, "seed {}", self.seed);
        flipped
    }

    /// Reads of a few bytes fetch a few bytes, and what an execute fetched is not fetched again by the next.
    pub(crate) async fn thrifty(mut self) {
        let size = 1 << 20;
        self.has_parent = false;
        self.target.name = "b";
        let bytes: Vec<u8> = (0..size).map(|n: usize| u8::try_from(n / 512 % 251).unwrap() | 1).collect();
        let source = MemSource::new(Vec::new(), bytes.clone(), Knowledge::Nothing);
        self.foreign = Some(Arc::clone(&source));
        let layout = CreateOptions { order: Some(12), ..CreateOptions::default() };
        let plan = Plan {
            from: From::Foreign,
            snap: String::new(),
            options: ImportOptions { layout, shared: false },
        };
        self.import_to_the_end(&plan, Verb::Prepare).await.unwrap();
        assert_eq!(source.bytes_read(), 0, "prepare reads nothing");
        let pool = self.pool(&self.target.clone()).await;
        let device = self.open(&pool, self.target.name).await.unwrap();
        device.read(700_000, 512).await.unwrap();
        assert_eq!(source.bytes_read(), 512);
        device.close().await.unwrap();
        let (faults, stores) = self.process();
        faults.changes_left.store(300, std::sync::atomic::Ordering::Relaxed);
        let dying = self.pool_in(&stores, &self.target.clone()).await;
        self.execute_import_in(&dying, self.target.name).await.unwrap_err();
        let before = source.bytes_read();
        assert!(before > 400_000, "{before}");
        self.execute_import_in(&pool, self.target.name).await.unwrap();
        let read = source.bytes_read() - 512;
        assert!(read <= bytes.len() as u64 * 105 / 100, "{read} of {} bytes", bytes.len());
    }

    /// A first write, or discard, waits for what its own blocks need of the source, and for nothing else of the object.
    pub(crate) async fn written_at_once(mut self) {
        let size = 4 << 20;
        self.has_parent = false;
        self.target.name = "b";
        let bytes: Vec<u8> = (0..size).map(|n: usize| u8::try_from(n / 512 % 251).unwrap() | 1).collect();
        let source = MemSource::new(Vec::new(), bytes.clone(), Knowledge::Nothing);
        self.foreign = Some(Arc::clone(&source));
        let layout = CreateOptions { order: Some(20), ..CreateOptions::default() };
        let plan = Plan {
            from: From::Foreign,
            snap: String::new(),
            options: ImportOptions { layout, shared: false },
        };
        self.import_to_the_end(&plan, Verb::Prepare).await.unwrap();
        let pool = self.pool(&self.target.clone()).await;
        let device = self.open(&pool, self.target.name).await.unwrap();
        let mut wanted = bytes.clone();
        let mut put = async |offset: usize, length: usize, with: u8| {
            wanted[offset..offset + length].fill(with);
            device.write(offset as u64, Bytes::from(vec![with; length])).await.unwrap();
        };
        put(1 << 20, 4096, 200).await;
        put((1 << 20) + 40960, 12288, 201).await;
        assert_eq!(source.bytes_read(), 0, "whole blocks need nothing of the source");
        put((2 << 20) + 5000, 8192, 202).await;
        assert!(source.bytes_read() <= 8192, "the two blocks it cuts: {}", source.bytes_read());
        put(2 << 20, 100, 203).await;
        device.exclusively(async |i: &mut Image| snapshot::create(i, "t").await).await.unwrap();
        let at_t = wanted.clone();
        let mut put = async |offset: usize, length: usize, with: u8| {
            wanted[offset..offset + length].fill(with);
            device.write(offset as u64, Bytes::from(vec![with; length])).await.unwrap();
        };
        put((1 << 20) + 4096, 65536, 204).await;
        assert!(device.read(0, size as u64).await.unwrap() == wanted);
        let aside = |names: Vec<String>| names.iter().filter(|n| n.contains(".early")).count();
        assert_eq!(aside(self.names().await), 3, "two objects, and the index of them");
        let before = source.bytes_read();
        let mut cut = async |offset: usize, length: usize| {
            wanted[offset..offset + length].fill(0);
            device.discard(offset as u64, length as u64).await.unwrap();
        };
        cut(3 << 20, 1 << 20).await;
        cut((1 << 20) + 8192, 16384).await;
        assert_eq!(source.bytes_read(), before, "whole objects and blocks need nothing of the source");
        cut(5000, 100_000).await;
        assert!(source.bytes_read() - before <= 8192, "the two blocks it cuts");
        assert_eq!(aside(self.names().await), 6, "two objects more, and zeros");
        assert!(device.read(0, size as u64).await.unwrap() == wanted);
        let before_abort = Import::find(&pool, self.target.name).await.unwrap();
        assert!(!import_losses(&before_abort).await.unwrap().what.is_empty());
        device.close().await.unwrap();

        let before = source.bytes_read();
        self.execute_import_in(&pool, self.target.name).await.unwrap();
        assert_eq!(source.bytes_read() - before, size as u64, "every object once");
        let image = Image::open(&pool, self.target.name, Opening::ReadOnly).await.unwrap();
        let head = image.revision().await.unwrap();
        assert!(head.read_bytes(0, size as u64).await.unwrap() == wanted);
        let gone = [(8192, 94_208), ((1 << 20) + 8192, 16384), (3 << 20, 1 << 20)];
        for (offset, length) in gone {
            let data = head.read(offset, length).await.unwrap();
            assert_eq!(data.extents, [], "what was discarded takes no space");
        }
        let t = image.at_snapshot("t").unwrap().revision().await.unwrap();
        assert!(t.read_bytes(0, size as u64).await.unwrap() == at_t);
        assert_eq!(aside(self.names().await), 0);
        self.import_to_the_end(&plan, Verb::Commit).await.unwrap();
    }

    /// A source that was copied, with all its history, is not read again to be verified and committed; what was not copied by an
    /// execute, or of which the digest is not there, is.
    pub(crate) async fn verified_by_digests(mut self) -> bool {
        let (plan, _) = self.set_up_import(From::Foreign).await.unwrap();
        let source = self.foreign.clone().unwrap();
        self.import_to_the_end(&plan, Verb::Prepare).await.unwrap();
        let (seed, pool) = (self.seed, self.pool(&self.target.clone()).await);
        self.execute_import_in(&pool, self.target.name).await.unwrap();
        let import = Import::find(&pool, self.target.name).await.unwrap();
        let unit = plan.options.layout.stripe_unit.unwrap();
        let is_whole = plan.options.layout.stripe_count == Some(1) || unit.is_multiple_of(4096);

        let before = source.bytes_read();
        let kept = verify_import(&import, Comparing::default(), &mut silent).await.unwrap();
        let read = source.bytes_read() - before;
        let by_digests = kept.points.iter().all(|p| p.digest_bytes == p.data_bytes);
        assert!(kept.is_equal() && (!is_whole || (by_digests && read == 0)), "seed {seed}: {read} {kept:?}");

        // Other numbers, as if the table were that of another target, refuse nothing: both ends are read.
        let image = Image::open(&pool, self.target.name, Opening::ReadOnly).await.unwrap();
        let (header, store) = (image.header_object(), &pool.store);
        let size = store.read(&header, SnapId::HEAD, ReadOp::stat()).await.unwrap().size;
        assert_eq!(size > 4096, is_whole && source.bytes_read() > 0, "seed {seed}: {size}");
        if size > 4096 {
            let (place, data) = (4096 + self.below((size - 4096) / 16) * 16, Bytes::from(vec![7; 16]));
            let wrong = WriteOp::new().effect(Effect::Write { offset: place, data });
            store.write(&header, wrong).await.unwrap();
            let read = verify_import(&import, Comparing::default(), &mut silent).await.unwrap();
            assert!(read.is_equal(), "seed {seed}: {read:?}");
            let data = Bytes::from(vec![7; 4096]);
            let wrong = WriteOp::new().effect(Effect::Write { offset: 0, data });
            store.write(&header, wrong).await.unwrap();
            let read = verify_import(&import, Comparing::default(), &mut silent).await.unwrap();
            let none = read.points.iter().all(|p| p.digest_bytes == 0);
            assert!(read.is_equal() && none, "seed {seed}: {read:?}");
        }
        self.import_to_the_end(&plan, Verb::Commit).await.unwrap();
        is_whole && kept.points.iter().any(|p| p.digest_bytes > 0)
    }
}
