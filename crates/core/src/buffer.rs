//! Large buffers that are used again.
//!
//! Memory fresh from the system costs a page fault for every 4 KiB and is in no cache; what was used a moment ago costs
//! neither. So what moves data in bulk takes its buffers here, and gets the one given back last.
//!
//! Invariants
//! - What is kept for later is bounded, for the whole process, by [`KEPT_MAX`].
//! - A buffer holds whatever it was used for before: whoever takes one shows others only what was written into it since.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Most that is kept for later. Bytes.
pub const KEPT_MAX: usize = 16 << 20;
/// Smallest and largest buffers that are kept, as powers of two; others come from the allocator.
const SMALLEST: u32 = 16;
const LARGEST: u32 = 20;
/// How many sizes that is.
const SIZES: usize = (LARGEST - SMALLEST + 1) as usize;

/// What is kept of one size, the last given back on top.
static KEPT: [Mutex<Vec<Vec<u8>>>; SIZES] = [const { Mutex::new(Vec::new()) }; SIZES];
/// All that is kept. Bytes.
static KEPT_BYTES: AtomicUsize = AtomicUsize::new(0);

/// A buffer, given back when dropped.
#[derive(Debug)]
pub struct Buffer {
    /// As long as its size; what is behind `length` is not shown.
    memory: Vec<u8>,
    length: usize,
}

impl Buffer {
    /// A buffer of `length` bytes, which may hold anything.
    #[must_use]
    pub fn take(length: usize) -> Self {
        let Some(place) = place_of(length) else { return Self { memory: vec![0; length], length } };
        let kept = lock(place).pop();
        let memory = match kept {
            Some(memory) => {
                KEPT_BYTES.fetch_sub(memory.len(), Ordering::Relaxed);
                memory
            }
            None => vec![0; 1 << (SMALLEST as usize + place)],
        };
        Self { memory, length }
    }

    /// Ends the buffer after `length` bytes; nothing where it is shorter.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// What it holds, to be shared; given back when the last part of it is dropped.
    #[must_use]
    pub fn freeze(mut self) -> Bytes {
        if place_of(self.memory.len()).is_none() {
            let mut memory = std::mem::take(&mut self.memory);
            memory.truncate(self.length);
            return Bytes::from(memory);
        }
        Bytes::from_owner(self)
    }
}

/// Which of the sizes fits best; `None` for what is not kept.
fn place_of(length: usize) -> Option<usize> {
    let is_kept = length > 1 << (SMALLEST - 1) && length <= 1 << LARGEST;
    is_kept.then(|| (length.next_power_of_two().trailing_zeros().max(SMALLEST) - SMALLEST) as usize)
}

fn lock(place: usize) -> MutexGuard<'static, Vec<Vec<u8>>> {
    KEPT[place].lock().unwrap_or_else(PoisonError::into_inner)
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[..self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.length]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let size = self.memory.len();
        let Some(place) = place_of(size).filter(|place| size == 1 << (SMALLEST as usize + place)) else {
            return;
        };
        // Two at once may keep a buffer too many each; the next ones will not.
        if KEPT_BYTES.load(Ordering::Relaxed) + size <= KEPT_MAX {
            KEPT_BYTES.fetch_add(size, Ordering::Relaxed);
            lock(place).push(std::mem::take(&mut self.memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Buffer, KEPT_BYTES, KEPT_MAX, Ordering};

    #[test]
    fn a_buffer_is_as_long_as_asked_for() {
        for length in [0, 1, 4096, 32 << 10, (32 << 10) + 1, 64 << 10, 100_000, 1 << 20, (1 << 20) + 1] {
            let mut buffer = Buffer::take(length);
            assert_eq!(buffer.len(), length);
            buffer.fill(7);
            let bytes = buffer.freeze();
            assert_eq!(bytes.len(), length);
            assert!(bytes.iter().all(|b| *b == 7));
        }
    }

    #[test]
    fn the_part_that_was_cut_off_is_not_shown() {
        for length in [1000, 100_000] {
            let mut buffer = Buffer::take(length);
            buffer.truncate(10);
            assert_eq!(buffer.len(), 10);
            assert_eq!(buffer.freeze().len(), 10);
        }
    }

    #[test]
    fn no_more_is_kept_than_allowed() {
        let many: Vec<Buffer> = (0..64).map(|_| Buffer::take(1 << 20)).collect();
        drop(many);
        // Other tests of this process may be giving one back at this moment.
        assert!(KEPT_BYTES.load(Ordering::Relaxed) <= KEPT_MAX + (4 << 20));
    }
}
