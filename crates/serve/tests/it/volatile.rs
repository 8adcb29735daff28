//! A device that keeps what is written in memory until it is flushed to a file: what a killed process loses and what not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use ferry_core::{BlockDevice, DeviceExtent, Error, ErrorKind, ExtentState, Reply, Result};

const PAGE: u64 = 4096;

/// See the module.
#[derive(Debug)]
pub(crate) struct Volatile {
    size: AtomicU64,
    file: File,
    state: Mutex<State>,
    /// Reads of this byte wait until [`Self::is_stuck`] is false.
    pub(crate) stuck_byte: u64,
    is_stuck: Mutex<bool>,
    freed: Condvar,
    pub(crate) is_broken: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    pages: BTreeMap<u64, Box<[u8]>>,
    dirty: BTreeSet<u64>,
}

impl Volatile {
    /// What is in a file, which is made with `size` bytes where it is missing.
    pub(crate) fn open(path: &Path, size: u64) -> Self {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        if file.metadata().unwrap().len() == 0 {
            file.set_len(size).unwrap();
        }
        let size = file.metadata().unwrap().len();
        let mut state = State::default();
        for page in 0..size / PAGE {
            let mut bytes = vec![0; 4096].into_boxed_slice();
            file.read_exact_at(&mut bytes, page * PAGE).unwrap();
            if bytes.iter().any(|b| *b != 0) {
                state.pages.insert(page, bytes);
            }
        }
        Self {
            size: AtomicU64::new(size),
            file,
            state: Mutex::new(state),
            stuck_byte: u64::MAX,
            is_stuck: Mutex::new(true),
            freed: Condvar::new(),
            is_broken: AtomicBool::new(false),
        }
    }

    /// Makes it larger.
    pub(crate) fn grow(&self, size: u64) {
        self.file.set_len(size).unwrap();
        self.size.store(size, Ordering::SeqCst);
    }

    /// Lets the reads go that wait.
    pub(crate) fn free(&self) {
        *self.is_stuck.lock().unwrap() = false;
        self.freed.notify_all();
    }

    /// Bytes that are stored.
    pub(crate) fn stored(&self) -> u64 {
        u64::try_from(self.state.lock().unwrap().pages.len()).unwrap() * PAGE
    }

    fn check(&self, offset: u64, length: u64) -> Result<()> {
        if self.is_broken.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Corrupt, "broken, as asked"));
        }
        if offset.checked_add(length).is_none_or(|end| end > self.size()) {
            return Err(Error::invalid("the range is not inside the device"));
        }
        Ok(())
    }

    /// Calls `each` with page, place in it, place in the range, and length.
    fn pages(offset: u64, length: u64, mut each: impl FnMut(u64, usize, usize, usize)) {
        let mut at = offset;
        while at < offset + length {
            let n = (PAGE - at % PAGE).min(offset + length - at);
            let place = |n: u64| usize::try_from(n).unwrap();
            each(at / PAGE, place(at % PAGE), place(at - offset), place(n));
            at += n;
        }
    }

    fn zero(&self, offset: u64, length: u64) -> Result<()> {
        self.check(offset, length)?;
        let mut state = self.state.lock().unwrap();
        Self::pages(offset, length, |page, from, _, n| {
            if n == 4096 {
                state.pages.remove(&page);
            } else if let Some(bytes) = state.pages.get_mut(&page) {
                bytes[from..from + n].fill(0);
            }
            state.dirty.insert(page);
        });
        Ok(())
    }
}

impl BlockDevice for Volatile {
    fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, length: u64) -> Reply<Bytes> {
        if (offset..offset + length).contains(&self.stuck_byte) {
            let stuck = self.is_stuck.lock().unwrap();
            let limit = Duration::from_secs(30);
            let waited = self.freed.wait_timeout_while(stuck, limit, |stuck| *stuck).unwrap();
            assert!(!waited.1.timed_out(), "nobody freed the read");
        }
        Reply::ready(self.check(offset, length).map(|()| {
            let mut out = vec![0; usize::try_from(length).unwrap()];
            let state = self.state.lock().unwrap();
            Self::pages(offset, length, |page, from, at, n| {
                if let Some(bytes) = state.pages.get(&page) {
                    out[at..at + n].copy_from_slice(&bytes[from..from + n]);
                }
            });
            Bytes::from(out)
        }))
    }

    fn write(&self, offset: u64, data: Bytes) -> Reply<()> {
        let length = u64::try_from(data.len()).unwrap();
        Reply::ready(self.check(offset, length).map(|()| {
            let mut state = self.state.lock().unwrap();
            Self::pages(offset, length, |page, from, at, n| {
                let bytes = state.pages.entry(page).or_insert_with(|| vec![0; 4096].into_boxed_slice());
                bytes[from..from + n].copy_from_slice(&data[at..at + n]);
                state.dirty.insert(page);
            });
        }))
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Reply<()> {
        Reply::ready(self.zero(offset, length))
    }

    fn discard(&self, offset: u64, length: u64) -> Reply<()> {
        Reply::ready(self.zero(offset, length))
    }

    fn flush(&self) -> Reply<()> {
        let mut state = self.state.lock().unwrap();
        for page in std::mem::take(&mut state.dirty) {
            let zeros = [0; 4096];
            let bytes = state.pages.get(&page).map_or(&zeros[..], |b| b);
            let length = PAGE.min(self.size() - page * PAGE);
            self.file.write_all_at(&bytes[..usize::try_from(length).unwrap()], page * PAGE).unwrap();
        }
        Reply::ready(self.check(0, 0))
    }

    fn extents(&self, offset: u64, length: u64) -> Reply<Vec<DeviceExtent>> {
        let state = self.state.lock().unwrap();
        let mut all: Vec<DeviceExtent> = Vec::new();
        let mut at = offset;
        Self::pages(offset, length, |page, _, _, n| {
            let is_data = state.pages.contains_key(&page);
            let held = if is_data { ExtentState::Data } else { ExtentState::Zero };
            let n = u64::try_from(n).unwrap();
            match all.last_mut() {
                Some(last) if last.state == held => last.length += n,
                Some(_) | None => all.push(DeviceExtent { offset: at, length: n, state: held }),
            }
            at += n;
        });
        Reply::ready(Ok(all))
    }
}
