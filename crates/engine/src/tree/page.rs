//! One page of the index: sorted entries in slots. Layout: `docs/format/index.md`.
//!
//! ```text
//! 0        4      5      6       8        10         12         32                          heap         4096
//! | FIDX   | ver  | lvl  | count | heap   | garbage  | zeros    | slot 0 | slot 1 | … free … | entries …   |
//! ```
//! A slot is the offset of an entry; an entry is key length (u16), value length (u16), key, value.

use bytes::Bytes;
use ferry_core::{Error, Result};

use crate::limits::BLOCK;

const MAGIC: [u8; 4] = *b"FIDX";
const VERSION: u8 = 1;
const HEADER: usize = 32;
const SLOT: usize = 2;
const ENTRY: usize = 4;

/// A page in its on-disk form, kept so in memory.
#[derive(Clone)]
pub(crate) struct Page {
    bytes: Box<[u8; BLOCK]>,
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Page").field("level", &self.level()).field("count", &self.count()).finish()
    }
}

impl Page {
    /// An empty page of `level`.
    pub(crate) fn new(level: u8) -> Self {
        let mut bytes = Box::new([0; BLOCK]);
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = level;
        let mut page = Self { bytes };
        page.put16(8, BLOCK);
        page
    }

    /// Checks bytes whose CRC matched: every slot and entry must lie inside the page, keys ascend.
    ///
    /// # Errors
    /// `Corrupt` where they do not.
    pub(crate) fn validate(bytes: Box<[u8; BLOCK]>) -> Result<Self> {
        let page = Self { bytes };
        let wrong = |clause: &'static str| Err(Error::corrupt(clause));
        if page.bytes[..4] != MAGIC || page.bytes[4] != VERSION {
            return wrong("not an index page");
        }
        let (count, heap) = (page.count(), page.heap());
        if HEADER + count * SLOT > heap || heap > BLOCK {
            return wrong("an index page's slots overlap its entries");
        }
        for i in 0..count {
            let at = page.get16(HEADER + i * SLOT);
            if at < heap || at + ENTRY > BLOCK {
                return wrong("an index page's slot points outside");
            }
            if at + ENTRY + page.get16(at) + page.get16(at + 2) > BLOCK {
                return wrong("an index page's entry reaches outside");
            }
            if page.level() > 0 && page.get16(at + 2) != 12 {
                return wrong("an index page's child reference has the wrong length");
            }
            if i > 0 && page.key(i - 1) >= page.key(i) {
                return wrong("an index page's keys are out of order");
            }
        }
        if page.level() > 0 && count == 0 {
            return wrong("an internal index page is empty");
        }
        Ok(page)
    }

    fn get16(&self, at: usize) -> usize {
        usize::from(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]))
    }

    fn put16(&mut self, at: usize, value: usize) {
        let value = u16::try_from(value).expect("a page is 4 KiB");
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    /// 0 for a leaf.
    pub(crate) fn level(&self) -> u8 {
        self.bytes[5]
    }

    /// Number of entries.
    pub(crate) fn count(&self) -> usize {
        self.get16(6)
    }

    fn heap(&self) -> usize {
        self.get16(8)
    }

    fn garbage(&self) -> usize {
        self.get16(10)
    }

    /// Bytes in use, header apart.
    pub(crate) fn used(&self) -> usize {
        self.count() * SLOT + (BLOCK - self.heap()) - self.garbage()
    }

    /// Whether less than a quarter is in use.
    pub(crate) fn is_sparse(&self) -> bool {
        self.used() < (BLOCK - HEADER) / 4
    }

    fn entry(&self, i: usize) -> usize {
        self.get16(HEADER + i * SLOT)
    }

    /// Key of entry `i`.
    pub(crate) fn key(&self, i: usize) -> &[u8] {
        let at = self.entry(i);
        &self.bytes[at + ENTRY..at + ENTRY + self.get16(at)]
    }

    /// Value of entry `i`.
    pub(crate) fn value(&self, i: usize) -> &[u8] {
        let at = self.entry(i);
        let from = at + ENTRY + self.get16(at);
        &self.bytes[from..from + self.get16(at + 2)]
    }

    /// Index of `key`, or where it would go.
    pub(crate) fn find(&self, key: &[u8]) -> std::result::Result<usize, usize> {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = usize::midpoint(low, high);
            match self.key(middle).cmp(key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Ok(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// Index of the child whose range holds `key`, on an internal page.
    pub(crate) fn child_of(&self, key: &[u8]) -> usize {
        match self.find(key) {
            Ok(i) => i,
            Err(i) => i.saturating_sub(1),
        }
    }

    /// Replaces a value by one of the same length.
    pub(crate) fn set_value(&mut self, i: usize, value: &[u8]) {
        let at = self.entry(i);
        assert_eq!(self.get16(at + 2), value.len(), "a value is replaced by one of its length");
        let from = at + ENTRY + self.get16(at);
        self.bytes[from..from + value.len()].copy_from_slice(value);
    }

    /// Removes entry `i`.
    pub(crate) fn remove(&mut self, i: usize) {
        let count = self.count();
        let at = self.entry(i);
        let size = ENTRY + self.get16(at) + self.get16(at + 2);
        self.bytes[at..at + size].fill(0);
        self.bytes.copy_within(HEADER + (i + 1) * SLOT..HEADER + count * SLOT, HEADER + i * SLOT);
        self.put16(HEADER + (count - 1) * SLOT, 0);
        self.put16(6, count - 1);
        let garbage = self.garbage() + size;
        self.put16(10, garbage);
        if count == 1 {
            self.put16(8, BLOCK);
            self.put16(10, 0);
        }
    }

    /// Makes the first key empty: an internal page's first child has no lower bound.
    pub(crate) fn clear_first_key(&mut self) {
        if !self.key(0).is_empty() {
            let value = self.value(0).to_vec();
            self.remove(0);
            let split = self.insert(0, &[], &value);
            assert!(split.is_none(), "a shorter entry fits");
        }
    }

    /// Inserts an entry at `i`. Where it does not fit, the page is split: the right half comes back with the key that
    /// separates the two.
    pub(crate) fn insert(&mut self, i: usize, key: &[u8], value: &[u8]) -> Option<(Vec<u8>, Self)> {
        let size = ENTRY + key.len() + value.len();
        if self.used() + size + SLOT > BLOCK - HEADER {
            return Some(self.split_insert(i, key, value));
        }
        if self.heap() - (HEADER + self.count() * SLOT) < size + SLOT {
            self.compact();
        }
        let count = self.count();
        let at = self.heap() - size;
        self.put16(at, key.len());
        self.put16(at + 2, value.len());
        self.bytes[at + ENTRY..at + ENTRY + key.len()].copy_from_slice(key);
        self.bytes[at + ENTRY + key.len()..at + size].copy_from_slice(value);
        self.bytes.copy_within(HEADER + i * SLOT..HEADER + count * SLOT, HEADER + (i + 1) * SLOT);
        self.put16(HEADER + i * SLOT, at);
        self.put16(6, count + 1);
        self.put16(8, at);
        None
    }

    /// Splits the entries and the new one so that both halves hold about the same bytes; where the new one is the last, the
    /// left page stays full, which keeps ascending inserts dense.
    fn split_insert(&mut self, i: usize, key: &[u8], value: &[u8]) -> (Vec<u8>, Self) {
        let count = self.count();
        let mut entries: Vec<(&[u8], &[u8])> = (0..count).map(|j| (self.key(j), self.value(j))).collect();
        entries.insert(i, (key, value));
        let size = |e: &(&[u8], &[u8])| SLOT + ENTRY + e.0.len() + e.1.len();
        let total: usize = entries.iter().map(size).sum();
        let mut left_count = count;
        if i < count {
            let mut sum = 0;
            left_count = 0;
            while sum + size(&entries[left_count]) < total / 2 {
                sum += size(&entries[left_count]);
                left_count += 1;
            }
            // The entry that crosses the middle goes left if it fits there; else the rest, being smaller, fits right.
            if sum + size(&entries[left_count]) <= BLOCK - HEADER {
                left_count += 1;
            }
        }
        let (mut left, mut right) = (Self::new(self.level()), Self::new(self.level()));
        for (j, (key, value)) in entries.iter().enumerate() {
            let (page, at) = if j < left_count { (&mut left, j) } else { (&mut right, j - left_count) };
            let split = page.insert(at, key, value);
            assert!(split.is_none(), "half the entries fit a page");
        }
        let separator = right.key(0).to_vec();
        if right.level() > 0 {
            right.clear_first_key();
        }
        *self = left;
        (separator, right)
    }

    /// Moves the entries together.
    fn compact(&mut self) {
        let mut fresh = Self::new(self.level());
        for i in 0..self.count() {
            let split = fresh.insert(i, self.key(i), self.value(i));
            assert!(split.is_none(), "the same entries fit");
        }
        *self = fresh;
    }

    /// Its bytes.
    pub(crate) fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.bytes.as_slice())
    }
}
