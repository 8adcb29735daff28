//! For tests and benchmarks: a device in memory that can be told to fail, to be late, and to be slow.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use ferry_core::{BlockDevice, DeviceExtent, Error, ErrorKind, ExtentState, Reply, Result};
use tokio::sync::Notify;

/// What is stored or not stored at once. Bytes.
const PAGE: u64 = 4096;

/// A sparse device in memory.
#[derive(Debug, Default)]
pub struct MemoryDevice {
    size: u64,
    is_read_only: bool,
    pages: RwLock<BTreeMap<u64, Box<[u8]>>>,
    /// Reads and writes that touch this byte fail; `u64::MAX` for none.
    pub bad_byte: AtomicU64,
    /// Whether answers come later instead of at once.
    pub is_late: AtomicBool,
    /// Microseconds that a flush keeps its caller waiting.
    pub flush_micros: AtomicU64,
    /// Microseconds that a read keeps its caller waiting, as one from a disk does.
    pub read_micros: AtomicU64,
    /// Reads that keep their callers waiting now, and the most there were at once.
    slow_reads: (AtomicU64, AtomicU64),
    /// Flushes so far.
    pub flushes: AtomicU64,
    /// What is held back until [`Self::let_go`].
    held: Held,
}

/// Requests that wait for a test to let them go.
#[derive(Debug, Default)]
struct Held {
    is_holding: AtomicBool,
    gone: Arc<Notify>,
    waiting: Arc<AtomicU64>,
}

impl MemoryDevice {
    /// A device of `size` bytes, all of them holes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self { size, bad_byte: AtomicU64::new(u64::MAX), ..Self::default() }
    }

    /// The same, refusing writes.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { is_read_only: true, ..self }
    }

    /// Fills it with bytes that are nowhere zero for long.
    #[must_use]
    pub fn filled(self, seed: u64) -> Self {
        {
            let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
            let mut state = seed | 1;
            for page in 0..self.size.div_ceil(PAGE) {
                let mut bytes = vec![0; usize::try_from(PAGE).expect("a page")].into_boxed_slice();
                for word in bytes.chunks_exact_mut(8) {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    word.copy_from_slice(&state.to_le_bytes());
                }
                pages.insert(page, bytes);
            }
        }
        self
    }

    /// Holds answers back from now on.
    pub fn hold(&self) {
        self.held.is_holding.store(true, Ordering::SeqCst);
    }

    /// Gives the answers held back.
    pub fn let_go(&self) {
        self.held.is_holding.store(false, Ordering::SeqCst);
        self.held.gone.notify_waiters();
    }

    /// How many answers are held back.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.held.waiting.load(Ordering::SeqCst)
    }

    /// How many reads kept their callers waiting at the same time, at most.
    #[must_use]
    pub fn slow_reads_max(&self) -> u64 {
        self.slow_reads.1.load(Ordering::SeqCst)
    }

    /// All bytes.
    #[must_use]
    pub fn contents(&self) -> Vec<u8> {
        self.copy(0, self.size).to_vec()
    }

    /// What is stored. Bytes, in whole pages.
    #[must_use]
    pub fn stored(&self) -> u64 {
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        u64::try_from(pages.len()).expect("it is in memory") * PAGE
    }

    /// Makes all of it a hole.
    pub fn fill_with_zeros(&self) {
        self.pages.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn copy(&self, offset: u64, length: u64) -> Bytes {
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        let mut out = Vec::with_capacity(memory(length));
        let mut at = offset;
        while at < offset + length {
            let (page, from) = (at / PAGE, at % PAGE);
            let count = (PAGE - from).min(offset + length - at);
            match pages.get(&page) {
                Some(bytes) => out.extend_from_slice(&bytes[memory(from)..memory(from + count)]),
                None => out.resize(out.len() + memory(count), 0),
            }
            at += count;
        }
        out.into()
    }

    fn fill(&self, offset: u64, length: u64, data: impl Fn(&mut [u8], usize), is_zero: bool) {
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        let mut at = offset;
        while at < offset + length {
            let (page, from) = (at / PAGE, at % PAGE);
            let count = (PAGE - from).min(offset + length - at);
            if is_zero && count == PAGE {
                pages.remove(&page);
            } else {
                let bytes = pages.entry(page).or_insert_with(|| vec![0; memory(PAGE)].into_boxed_slice());
                data(&mut bytes[memory(from)..memory(from + count)], memory(at - offset));
            }
            at += count;
        }
    }

    fn check(&self, offset: u64, length: u64) -> Result<()> {
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(Error::invalid("the range is not inside the device"));
        }
        let bad = self.bad_byte.load(Ordering::SeqCst);
        if (offset..offset + length).contains(&bad) {
            return Err(Error::new(ErrorKind::Io, "a bad byte").with("offset", bad));
        }
        Ok(())
    }

    fn change(&self, offset: u64, length: u64, change: impl FnOnce()) -> Reply<()> {
        if self.is_read_only {
            return Reply::ready(Err(Error::new(ErrorKind::ReadOnly, "the device is read-only")));
        }
        let done = self.check(offset, length).map(|()| change());
        self.answer(done)
    }

    fn answer<T: Send + 'static>(&self, result: Result<T>) -> Reply<T> {
        if self.held.is_holding.load(Ordering::SeqCst) {
            let (gone, waiting) = (Arc::clone(&self.held.gone), Arc::clone(&self.held.waiting));
            waiting.fetch_add(1, Ordering::SeqCst);
            let go = gone.notified_owned();
            return Reply::pending(async move {
                go.await;
                waiting.fetch_sub(1, Ordering::SeqCst);
                result
            });
        }
        if self.is_late.load(Ordering::SeqCst) {
            return Reply::pending(async move {
                tokio::task::yield_now().await;
                result
            });
        }
        Reply::ready(result)
    }
}

/// A device that stores nothing: reads give bytes that mean nothing, without as much as a copy.
#[derive(Debug)]
pub struct NullDevice(Bytes);

impl NullDevice {
    /// A device.
    #[must_use]
    pub fn new() -> Self {
        Self(MemoryDevice::new(NULL_READ_MAX).filled(1).contents().into())
    }
}

impl Default for NullDevice {
    fn default() -> Self {
        Self::new()
    }
}

/// Longest read of a null device. Bytes.
const NULL_READ_MAX: u64 = 1 << 20;

impl BlockDevice for NullDevice {
    fn size(&self) -> u64 {
        1 << 40
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, length: u64) -> Reply<Bytes> {
        if length > NULL_READ_MAX {
            return Reply::ready(Err(Error::invalid("a read of a null device is too long")));
        }
        let from = memory(offset % (NULL_READ_MAX - length + 1));
        Reply::ready(Ok(self.0.slice(from..from + memory(length))))
    }

    fn write(&self, _: u64, _: Bytes) -> Reply<()> {
        Reply::ready(Ok(()))
    }

    fn write_zeroes(&self, _: u64, _: u64) -> Reply<()> {
        Reply::ready(Ok(()))
    }

    fn discard(&self, _: u64, _: u64) -> Reply<()> {
        Reply::ready(Ok(()))
    }

    fn flush(&self) -> Reply<()> {
        Reply::ready(Ok(()))
    }

    fn extents(&self, offset: u64, length: u64) -> Reply<Vec<DeviceExtent>> {
        Reply::ready(Ok(vec![DeviceExtent { offset, length, state: ExtentState::Data }]))
    }
}

/// A device of nothing but memory: as little work for each request as there can be, for measuring what is above it.
#[derive(Debug)]
pub struct FlatDevice(Vec<RwLock<Box<[u8]>>>);

/// Parts of a flat device, each with a lock of its own. Bytes.
const STRIPE: u64 = 64 << 10;

impl FlatDevice {
    /// A device of `size` bytes; a multiple of 64 KiB.
    #[must_use]
    pub fn new(size: usize) -> Self {
        let stripe = || RwLock::new(vec![0; memory(STRIPE)].into_boxed_slice());
        Self((0..size / memory(STRIPE)).map(|_| stripe()).collect())
    }

    /// The parts of a range: which stripe, from where, and how much of it.
    fn parts(offset: u64, length: u64) -> impl Iterator<Item = (usize, usize, usize)> {
        let mut at = offset;
        std::iter::from_fn(move || {
            let count = (STRIPE - at % STRIPE).min(offset + length - at);
            let part = (memory(at / STRIPE), memory(at % STRIPE), memory(count));
            at += count;
            (count > 0).then_some(part)
        })
    }

    fn fill(&self, offset: u64, length: u64, data: impl Fn(&mut [u8], usize)) -> Reply<()> {
        let mut done = 0;
        for (stripe, from, count) in Self::parts(offset, length) {
            let mut bytes = self.0[stripe].write().unwrap_or_else(PoisonError::into_inner);
            data(&mut bytes[from..from + count], done);
            done += count;
        }
        Reply::ready(Ok(()))
    }
}

impl BlockDevice for FlatDevice {
    fn size(&self) -> u64 {
        u64::try_from(self.0.len()).expect("it is in memory") * STRIPE
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, length: u64) -> Reply<Bytes> {
        let mut out = Vec::with_capacity(memory(length));
        for (stripe, from, count) in Self::parts(offset, length) {
            let bytes = self.0[stripe].read().unwrap_or_else(PoisonError::into_inner);
            out.extend_from_slice(&bytes[from..from + count]);
        }
        Reply::ready(Ok(out.into()))
    }

    fn write(&self, offset: u64, data: Bytes) -> Reply<()> {
        let length = u64::try_from(data.len()).expect("it is in memory");
        self.fill(offset, length, |to, from| to.copy_from_slice(&data[from..from + to.len()]))
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Reply<()> {
        self.fill(offset, length, |to, _| to.fill(0))
    }

    fn discard(&self, offset: u64, length: u64) -> Reply<()> {
        self.write_zeroes(offset, length)
    }

    fn flush(&self) -> Reply<()> {
        Reply::ready(Ok(()))
    }

    fn extents(&self, offset: u64, length: u64) -> Reply<Vec<DeviceExtent>> {
        Reply::ready(Ok(vec![DeviceExtent { offset, length, state: ExtentState::Data }]))
    }
}

fn memory(bytes: u64) -> usize {
    usize::try_from(bytes).expect("it is in memory")
}

impl BlockDevice for MemoryDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    fn read(&self, offset: u64, length: u64) -> Reply<Bytes> {
        let micros = self.read_micros.load(Ordering::SeqCst);
        if micros > 0 {
            let now = self.slow_reads.0.fetch_add(1, Ordering::SeqCst) + 1;
            self.slow_reads.1.fetch_max(now, Ordering::SeqCst);
            std::thread::sleep(Duration::from_micros(micros));
            self.slow_reads.0.fetch_sub(1, Ordering::SeqCst);
        }
        self.answer(self.check(offset, length).map(|()| self.copy(offset, length)))
    }

    fn write(&self, offset: u64, data: Bytes) -> Reply<()> {
        let length = u64::try_from(data.len()).expect("it is in memory");
        let copy = |to: &mut [u8], from: usize| to.copy_from_slice(&data[from..from + to.len()]);
        self.change(offset, length, || self.fill(offset, length, copy, false))
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Reply<()> {
        self.change(offset, length, || self.fill(offset, length, |to, _| to.fill(0), true))
    }

    fn discard(&self, offset: u64, length: u64) -> Reply<()> {
        self.write_zeroes(offset, length)
    }

    fn flush(&self) -> Reply<()> {
        let micros = self.flush_micros.load(Ordering::SeqCst);
        if micros > 0 {
            std::thread::sleep(Duration::from_micros(micros));
        }
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.answer(Ok(()))
    }

    fn extents(&self, offset: u64, length: u64) -> Reply<Vec<DeviceExtent>> {
        if let Err(e) = self.check(offset, length) {
            return self.answer(Err(e));
        }
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        let mut extents: Vec<DeviceExtent> = Vec::new();
        let mut at = offset;
        while at < offset + length {
            let count = (PAGE - at % PAGE).min(offset + length - at);
            let state = if pages.contains_key(&(at / PAGE)) { ExtentState::Data } else { ExtentState::Zero };
            match extents.last_mut() {
                Some(last) if last.state == state => last.length += count,
                Some(_) | None => extents.push(DeviceExtent { offset: at, length: count, state }),
            }
            at += count;
        }
        self.answer(Ok(extents))
    }
}
