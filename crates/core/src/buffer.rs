//! Buffers that are used again.
//!
//! Memory fresh from the system costs a page fault for every 4 KiB and is in no cache; what was used a moment ago costs
//! neither, and needs no zeros put in before it is filled. So what moves data takes its buffers here, and gets the one given back
//! last.
//!
//! Large ones are mappings of their own, not the allocator's: what is not kept goes back to the system at once, whichever thread used it.
//!
//! Invariants
//! - What is kept for later is bounded, for the whole process, by [`KEPT_MAX`]; and what is in use and what is kept are together
//!   never more than that, or than was in use at once.
//! - A buffer holds whatever it was used for before: whoever takes one shows others only what was written into it since.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use memmap2::MmapMut;

/// Most that is kept for later. Bytes.
pub const KEPT_MAX: usize = 16 << 20;
/// Smallest and largest buffers that are kept, as powers of two; others are the allocator's. The smallest is one block, what most
/// reads are of; the largest a whole object of the usual size: copies take one for each.
const SMALLEST: u32 = 12;
const LARGEST: u32 = 22;
/// From here on they are mappings, as a power of two.
const MAPPED: u32 = 16;
/// How many sizes that is.
const SIZES: usize = (LARGEST - SMALLEST + 1) as usize;

/// What is kept of one size, the last given back on top.
static KEPT: [Mutex<Vec<Memory>>; SIZES] = [const { Mutex::new(Vec::new()) }; SIZES];
/// All that is kept. Bytes.
static KEPT_BYTES: AtomicUsize = AtomicUsize::new(0);
/// All that is kept and all of such sizes that is in use. Bytes.
static ALL_BYTES: AtomicUsize = AtomicUsize::new(0);

/// A buffer, given back when dropped.
#[derive(Debug)]
pub struct Buffer {
    /// As long as its size; what is behind `length` is not shown.
    memory: Memory,
    length: usize,
}

/// The bytes of a buffer.
#[derive(Debug)]
enum Memory {
    /// From the system, for large sizes that are kept.
    Mapped(MmapMut),
    /// From the allocator, for others, and where the system has no more mappings to give.
    Allocated(Vec<u8>),
}

impl Memory {
    /// Zeros: large ones from the system, if that has any.
    fn fresh(size: usize) -> Self {
        if size < 1 << MAPPED {
            return Self::Allocated(vec![0; size]);
        }
        MmapMut::map_anon(size).map_or_else(|_| Self::Allocated(vec![0; size]), Self::Mapped)
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(memory) => memory,
            Self::Allocated(memory) => memory,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Mapped(memory) => memory,
            Self::Allocated(memory) => memory,
        }
    }
}

impl Buffer {
    /// A buffer of `length` bytes, which may hold anything.
    #[must_use]
    pub fn take(length: usize) -> Self {
        let Some(place) = place_of(length) else {
            return Self { memory: Memory::Allocated(vec![0; length]), length };
        };
        let kept = lock(place).pop();
        let memory = match kept {
            Some(memory) => {
                KEPT_BYTES.fetch_sub(size_of_place(place), Ordering::Relaxed);
                memory
            }
            None => {
                let size = size_of_place(place);
                if ALL_BYTES.fetch_add(size, Ordering::Relaxed) + size > KEPT_MAX {
                    give_back(size);
                }
                Memory::fresh(size)
            }
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
        let is_kept = place_of(self.memory.bytes().len()).is_some();
        if let Memory::Allocated(memory) = &mut self.memory
            && !is_kept
        {
            let mut memory = std::mem::take(memory);
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

/// Size of the buffers of a place. Bytes.
fn size_of_place(place: usize) -> usize {
    1 << (SMALLEST as usize + place)
}

/// Gives so much of what is kept back to the system, if there is as much, the largest first: another size is wanted, and what is kept
/// must not come on top of it.
fn give_back(bytes: usize) {
    let mut left = bytes;
    for place in (0..SIZES).rev() {
        while left > 0 {
            let Some(memory) = lock(place).pop() else { break };
            drop(memory);
            KEPT_BYTES.fetch_sub(size_of_place(place), Ordering::Relaxed);
            ALL_BYTES.fetch_sub(size_of_place(place), Ordering::Relaxed);
            left = left.saturating_sub(size_of_place(place));
        }
    }
}

fn lock(place: usize) -> MutexGuard<'static, Vec<Memory>> {
    KEPT[place].lock().unwrap_or_else(PoisonError::into_inner)
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory.bytes()[..self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory.bytes_mut()[..self.length]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let size = self.memory.bytes().len();
        let Some(place) = place_of(size).filter(|place| size == size_of_place(*place)) else { return };
        // Two at once may keep a buffer too many each; the next ones will not.
        if KEPT_BYTES.load(Ordering::Relaxed) + size <= KEPT_MAX {
            KEPT_BYTES.fetch_add(size, Ordering::Relaxed);
            lock(place).push(std::mem::replace(&mut self.memory, Memory::Allocated(Vec::new())));
        } else {
            ALL_BYTES.fetch_sub(size, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Buffer, KEPT_BYTES, KEPT_MAX, Ordering};

    #[test]
    fn a_buffer_is_as_long_as_asked_for() {
        for length in [
            0,
            1,
            4096,
            32 << 10,
            (32 << 10) + 1,
            64 << 10,
            100_000,
            1 << 20,
            (1 << 20) + 1,
            4 << 20,
            (4 << 20) + 1,
        ] {
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
    fn what_is_kept_makes_way_for_other_sizes() {
        // More than is kept, so that what is kept is full of them.
        let many: Vec<Buffer> = (0..64).map(|_| Buffer::take(1 << 20)).collect();
        drop(many);
        let other: Vec<Buffer> = (0..KEPT_MAX >> 17).map(|_| Buffer::take(1 << 17)).collect();
        // Other tests of this process may be giving some back at this moment.
        assert!(KEPT_BYTES.load(Ordering::Relaxed) <= 4 << 20);
        drop(other);
        assert!(KEPT_BYTES.load(Ordering::Relaxed) >= 8 << 20);
    }

    #[test]
    fn no_more_is_kept_than_allowed() {
        let many: Vec<Buffer> = (0..64).map(|_| Buffer::take(1 << 20)).collect();
        drop(many);
        // Other tests of this process may be giving one back at this moment.
        assert!(KEPT_BYTES.load(Ordering::Relaxed) <= KEPT_MAX + (4 << 20));
    }
}
