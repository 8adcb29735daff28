//! The index: a copy-on-write B-tree of byte keys and values whose pages live in the log.
//!
//! A page is 4 KiB. Clean pages are found by address and verified against the CRC their parent holds; changed pages live in
//! memory under a temporary number until a checkpoint writes them, children before parents. Layout: `docs/format/index.md`.
//!
//! Invariants
//! - Every key of child `i` is at least the key of entry `i` and less than that of entry `i + 1`; the first entry of an
//!   internal page has the empty key.
//! - No page but the root is empty.
//! - A changed page's ancestors are changed pages.
//! - While a checkpoint writes the pages (the tree is *frozen*), only the checkpoint changes them; what others change is kept
//!   apart, shadows the pages, and goes into them afterwards.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use ferry_core::checksum::crc32c;
use ferry_core::{Error, Result};

mod page;

pub(crate) use page::Page;

use crate::address::Address;
use crate::cache::Cache;
use crate::disk::{Disk, FileId};
use crate::format::TreeRoot;
use crate::limits::{BLOCK, PAGE_ENTRY_MAX};

/// How a parent names a child: an address and CRC on disk, or a number in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Child {
    Clean(Address, u32),
    Dirty(u64),
}

/// Marks a child reference as a number in memory.
const DIRTY_BIT: u64 = 1 << 63;

impl Child {
    fn encode(self) -> [u8; 12] {
        let (raw, crc) = match self {
            Self::Clean(address, crc) => (address.raw(), crc),
            Self::Dirty(number) => (number | DIRTY_BIT, 0),
        };
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&raw.to_le_bytes());
        bytes[8..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let (Some(raw), Some(crc)) =
            (bytes.first_chunk::<8>(), bytes.get(8..12).and_then(|b| b.first_chunk::<4>()))
        else {
            return Err(Error::corrupt("a child reference in the index is cut short"));
        };
        let raw = u64::from_le_bytes(*raw);
        if raw & DIRTY_BIT != 0 {
            return Ok(Self::Dirty(raw & !DIRTY_BIT));
        }
        let address = Address::from_raw(raw).ok_or_else(|| Error::corrupt("an index page points nowhere"))?;
        Ok(Self::Clean(address, u32::from_le_bytes(*crc)))
    }
}

/// A page of the index that a checkpoint must write.
#[derive(Debug)]
pub(crate) struct DirtyPage {
    number: u64,
    /// 0 for a leaf.
    pub(crate) level: u8,
    /// A key the page holds, to find it again.
    pub(crate) key: Bytes,
}

/// The index.
#[derive(Debug)]
pub(crate) struct Tree {
    disk: Arc<dyn Disk>,
    root: Option<(Child, u8)>,
    clean: Cache<Address, Arc<Page>>,
    dirty: HashMap<u64, Page>,
    next_number: u64,
    /// What changed since the tree was frozen: a value, or `None` for an entry that is gone. Shadows the pages.
    apart: BTreeMap<Bytes, Option<Bytes>>,
    /// Whether changes are kept apart.
    frozen: bool,
    /// Addresses of pages that stopped being part of the tree; whoever keeps the counts of live pages takes them.
    dropped: Vec<Address>,
}

impl Tree {
    /// The index whose root a superblock names.
    pub(crate) fn open(disk: Arc<dyn Disk>, root: Option<TreeRoot>, cached_pages: usize) -> Self {
        Self {
            disk,
            root: root.map(|r| (Child::Clean(r.address, r.crc), r.level)),
            clean: Cache::new(cached_pages / 2),
            dirty: HashMap::new(),
            next_number: 1,
            apart: BTreeMap::new(),
            frozen: false,
            dropped: Vec::new(),
        }
    }

    /// Pages changed since the last checkpoint, and entries changed apart from them.
    pub(crate) fn dirty_pages(&self) -> usize {
        self.dirty.len() + self.apart.len()
    }

    /// Keeps changes apart from now on, but for those made with [`Tree::insert_frozen`] and [`Tree::remove_frozen`].
    pub(crate) fn freeze(&mut self) {
        assert!(self.apart.is_empty(), "what was changed apart is in the pages before they are frozen again");
        self.frozen = true;
    }

    /// Lets changes go into the pages again. What is apart shadows them until [`Tree::merge_apart`] has put it there.
    pub(crate) fn thaw(&mut self) {
        self.frozen = false;
    }

    /// Puts up to `max` entries that were changed apart into the pages. `true` where there are more.
    pub(crate) fn merge_apart(&mut self, max: usize) -> Result<bool> {
        assert!(!self.frozen, "frozen pages are not changed by others");
        for _ in 0..max {
            let Some((key, value)) = self.apart.pop_first() else { return Ok(false) };
            match value {
                Some(value) => self.insert_frozen(&key, &value)?,
                None => drop(self.remove_frozen(&key)?),
            }
        }
        Ok(!self.apart.is_empty())
    }

    /// Whether entries changed apart wait to be put into the pages.
    pub(crate) fn has_apart(&self) -> bool {
        !self.apart.is_empty()
    }

    /// Addresses of pages that left the tree since the last call.
    pub(crate) fn take_dropped(&mut self) -> Vec<Address> {
        std::mem::take(&mut self.dropped)
    }

    fn load(&mut self, address: Address, crc: u32, level: u8) -> Result<Arc<Page>> {
        if let Some(page) = self.clean.get(&address) {
            return Ok(Arc::clone(page));
        }
        let mut bytes = Box::new([0; BLOCK]);
        self.disk.read(
            FileId::Segment(address.segment()),
            u64::from(address.block()) * BLOCK as u64,
            bytes.as_mut_slice(),
        )?;
        if crc32c(bytes.as_slice()) != crc {
            return Err(Error::corrupt("an index page does not match its checksum").with("address", address));
        }
        let page = Page::validate(bytes).map_err(|e| e.with("address", address))?;
        if page.level() != level {
            return Err(Error::corrupt("an index page is of the wrong level").with("address", address));
        }
        let page = Arc::new(page);
        if self.clean.is_full() {
            drop(self.clean.age());
        }
        self.clean.insert(address, Arc::clone(&page));
        Ok(page)
    }

    /// Runs `f` on the page `child`.
    fn with<T>(&mut self, child: Child, level: u8, f: impl FnOnce(&Page) -> T) -> Result<T> {
        match child {
            Child::Dirty(number) => Ok(f(self.dirty.get(&number).expect("a dirty page is in memory"))),
            Child::Clean(address, crc) => Ok(f(&*self.load(address, crc, level)?)),
        }
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// `Corrupt` where a page on the way is damaged; so for everything below.
    pub(crate) fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>> {
        match self.apart.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.get_in_pages(key),
        }
    }

    fn get_in_pages(&mut self, key: &[u8]) -> Result<Option<Bytes>> {
        let Some((mut child, mut level)) = self.root else { return Ok(None) };
        while level > 0 {
            let next = self.with(child, level, |p| Child::decode(p.value(p.child_of(key))))??;
            (child, level) = (next, level - 1);
        }
        self.with(child, 0, |p| p.find(key).ok().map(|i| Bytes::copy_from_slice(p.value(i))))
    }

    /// The first entry whose key is at least `key` (or greater, where `after`) and begins with `prefix`.
    pub(crate) fn next(&mut self, key: &[u8], after: After, prefix: &[u8]) -> Result<Option<(Bytes, Bytes)>> {
        let mut found = self.scan(key, after, prefix, 1)?;
        Ok(found.pop())
    }

    /// Up to `max` entries in order, the first with a key at least `key` (or greater), all beginning with `prefix`.
    pub(crate) fn scan(
        &mut self,
        key: &[u8],
        after: After,
        prefix: &[u8],
        max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>> {
        let (mut from, mut after) =
            if key < prefix { (prefix.to_vec(), After::Including) } else { (key.to_vec(), after) };
        let mut found = Vec::new();
        loop {
            let wanted = max - found.len();
            let mut pages = Vec::new();
            if let Some((root, level)) = self.root {
                self.scan_page(root, level, &from, after, prefix, wanted, &mut pages)?;
            }
            if self.apart.is_empty() {
                found.append(&mut pages);
                return Ok(found);
            }
            // Up to where the pages are known; to the end where they have no more.
            let upto = (pages.len() == wanted).then(|| pages.last().map(|e| e.0.clone())).flatten();
            self.shadow(&from, after, prefix, upto.as_ref(), pages, &mut found);
            found.truncate(max);
            match upto {
                Some(last) if found.len() < max => (from, after) = (last.to_vec(), After::Excluding),
                _ => return Ok(found),
            }
        }
    }

    /// Adds to `found` what was read from the pages, shadowed by what was changed apart between `from` and `upto`.
    fn shadow(
        &self,
        from: &[u8],
        after: After,
        prefix: &[u8],
        upto: Option<&Bytes>,
        pages: Vec<(Bytes, Bytes)>,
        found: &mut Vec<(Bytes, Bytes)>,
    ) {
        let low = match after {
            After::Including => Bound::Included(from),
            After::Excluding => Bound::Excluded(from),
        };
        let within = |key: &Bytes| key.starts_with(prefix) && upto.is_none_or(|u| key <= u);
        let mut apart = self.apart.range::<[u8], _>((low, Bound::Unbounded)).take_while(|(k, _)| within(k));
        let mut next = apart.next();
        let mut add = |(key, value): (&Bytes, &Option<Bytes>)| {
            if let Some(value) = value {
                found.push((key.clone(), value.clone()));
            }
        };
        for (key, value) in pages {
            while let Some(entry) = next.filter(|(k, _)| **k < key) {
                add(entry);
                next = apart.next();
            }
            match next.filter(|(k, _)| **k == key) {
                Some(entry) => {
                    add(entry);
                    next = apart.next();
                }
                None => add((&key, &Some(value))),
            }
        }
        while let Some(entry) = next {
            add(entry);
            next = apart.next();
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one recursion with its fixed frame")]
    fn scan_page(
        &mut self,
        child: Child,
        level: u8,
        from: &[u8],
        after: After,
        prefix: &[u8],
        max: usize,
        found: &mut Vec<(Bytes, Bytes)>,
    ) -> Result<bool> {
        if level == 0 {
            return self.with(child, 0, |p| {
                let start = match (p.find(from), after) {
                    (Ok(i), After::Including) | (Err(i), _) => i,
                    (Ok(i), After::Excluding) => i + 1,
                };
                for i in start..p.count() {
                    if !p.key(i).starts_with(prefix) || found.len() >= max {
                        return false;
                    }
                    found.push((Bytes::copy_from_slice(p.key(i)), Bytes::copy_from_slice(p.value(i))));
                }
                found.len() < max
            });
        }
        let start = self.with(child, level, |p| p.child_of(from))?;
        let mut i = start;
        loop {
            let next = self.with(child, level, |p| {
                (i < p.count() && (i == start || p.key(i).starts_with(prefix) || p.key(i) < prefix))
                    .then(|| Child::decode(p.value(i)))
            })?;
            let Some(next) = next.transpose()? else { return Ok(false) };
            if !self.scan_page(next, level - 1, from, after, prefix, max, found)? {
                return Ok(false);
            }
            i += 1;
            let count = self.with(child, level, Page::count)?;
            if i >= count {
                return Ok(true);
            }
        }
    }

    /// Makes `child` a changed page and returns its number.
    fn make_dirty(&mut self, child: Child, level: u8) -> Result<u64> {
        match child {
            Child::Dirty(number) => Ok(number),
            Child::Clean(address, crc) => {
                let page = self.load(address, crc, level)?;
                self.clean.remove(&address);
                let number = self.add_dirty(Arc::unwrap_or_clone(page));
                self.dropped.push(address);
                Ok(number)
            }
        }
    }

    fn add_dirty(&mut self, page: Page) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.dirty.insert(number, page);
        number
    }

    fn dirty_page(&mut self, number: u64) -> &mut Page {
        self.dirty.get_mut(&number).expect("a dirty page is in memory")
    }

    /// Makes every page on the way to `key` changed, down to `level`. Returns the numbers from the root down, each with the
    /// index of the entry taken in it.
    fn path(&mut self, key: &[u8], level: u8) -> Result<Vec<(u64, usize)>> {
        let Some((root, root_level)) = self.root else { return Ok(Vec::new()) };
        let mut path = Vec::new();
        let mut number = self.make_dirty(root, root_level)?;
        self.root = Some((Child::Dirty(number), root_level));
        let mut at = root_level;
        while at > level {
            let page = self.dirty_page(number);
            let i = page.child_of(key);
            let child = Child::decode(page.value(i))?;
            let below = self.make_dirty(child, at - 1)?;
            self.dirty_page(number).set_value(i, &Child::Dirty(below).encode());
            path.push((number, i));
            (number, at) = (below, at - 1);
        }
        path.push((number, 0));
        Ok(path)
    }

    /// Sets the value of `key`.
    ///
    /// # Panics
    /// If key and value together are larger than [`PAGE_ENTRY_MAX`].
    pub(crate) fn insert(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if self.frozen {
            assert!(key.len() + value.len() <= PAGE_ENTRY_MAX, "an index entry fits half a page");
            self.apart.insert(Bytes::copy_from_slice(key), Some(Bytes::copy_from_slice(value)));
            return Ok(());
        }
        self.apart.remove(key);
        self.insert_frozen(key, value)
    }

    /// Sets the value of `key` in the pages, frozen or not: for the checkpoint that froze them.
    pub(crate) fn insert_frozen(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        assert!(key.len() + value.len() <= PAGE_ENTRY_MAX, "an index entry fits half a page");
        if self.root.is_none() {
            let number = self.add_dirty(Page::new(0));
            self.root = Some((Child::Dirty(number), 0));
        }
        let mut path = self.path(key, 0)?;
        let (leaf, _) = path.pop().expect("a path ends in a leaf");
        let page = self.dirty_page(leaf);
        let mut carry = match page.find(key) {
            Ok(i) if page.value(i).len() == value.len() => {
                page.set_value(i, value);
                None
            }
            Ok(i) => {
                page.remove(i);
                page.insert(i, key, value)
            }
            Err(i) => page.insert(i, key, value),
        };
        while let Some((separator, right)) = carry.take() {
            let right = self.add_dirty(right);
            let reference = Child::Dirty(right).encode();
            if let Some((parent, i)) = path.pop() {
                carry = self.dirty_page(parent).insert(i + 1, &separator, &reference);
            } else {
                let (old, level) = self.root.expect("a tree that split has a root");
                let mut page = Page::new(level + 1);
                let fits = page.insert(0, &[], &old.encode()).is_none()
                    && page.insert(1, &separator, &reference).is_none();
                assert!(fits, "two entries fit an empty page");
                let number = self.add_dirty(page);
                self.root = Some((Child::Dirty(number), level + 1));
            }
        }
        Ok(())
    }

    /// Removes `key`; `false` where it was not there.
    pub(crate) fn remove(&mut self, key: &[u8]) -> Result<bool> {
        if self.get(key)?.is_none() {
            return Ok(false);
        }
        if self.frozen {
            self.apart.insert(Bytes::copy_from_slice(key), None);
            return Ok(true);
        }
        self.apart.remove(key);
        self.remove_frozen(key)?;
        Ok(true)
    }

    /// Removes `key` from the pages, frozen or not: for the checkpoint that froze them.
    pub(crate) fn remove_frozen(&mut self, key: &[u8]) -> Result<bool> {
        if self.get_in_pages(key)?.is_none() {
            return Ok(false);
        }
        let mut path = self.path(key, 0)?;
        let (leaf, _) = path.pop().expect("a path ends in a leaf");
        let page = self.dirty_page(leaf);
        let i = page.find(key).expect("it was just found");
        page.remove(i);
        let mut below = leaf;
        while let Some((parent, i)) = path.pop() {
            if self.dirty_page(below).count() > 0 {
                if self.dirty_page(below).is_sparse() {
                    self.merge_with_neighbour(parent, i)?;
                }
                break;
            }
            self.dirty.remove(&below);
            let page = self.dirty_page(parent);
            page.remove(i);
            if i == 0 && page.count() > 0 {
                page.clear_first_key();
            }
            below = parent;
        }
        self.lower_root()
    }

    /// Joins child `i` of `parent` with the one behind it, where both fit one page with room to spare.
    fn merge_with_neighbour(&mut self, parent: u64, i: usize) -> Result<()> {
        let page = self.dirty_page(parent);
        let level = page.level() - 1;
        let left_i = if i + 1 < page.count() {
            i
        } else if i > 0 {
            i - 1
        } else {
            return Ok(());
        };
        let left = Child::decode(page.value(left_i))?;
        let right = Child::decode(page.value(left_i + 1))?;
        let separator = page.key(left_i + 1).to_vec();
        let left_used = self.with(left, level, Page::used)?;
        let right_used = self.with(right, level, Page::used)?;
        if left_used + right_used + separator.len() > BLOCK * 3 / 4 {
            return Ok(());
        }
        let left = self.make_dirty(left, level)?;
        let right = self.make_dirty(right, level)?;
        let right_page = self.dirty.remove(&right).expect("a dirty page is in memory");
        let left_page = self.dirty_page(left);
        for j in 0..right_page.count() {
            let key = if j == 0 && level > 0 { separator.as_slice() } else { right_page.key(j) };
            let split = left_page.insert(left_page.count(), key, right_page.value(j));
            assert!(split.is_none(), "the merged page has room");
        }
        let page = self.dirty_page(parent);
        page.remove(left_i + 1);
        page.set_value(left_i, &Child::Dirty(left).encode());
        Ok(())
    }

    /// Drops root pages with one child, and an empty root leaf.
    fn lower_root(&mut self) -> Result<bool> {
        while let Some((root, level)) = self.root {
            let (count, first) =
                self.with(root, level, |p| (p.count(), (p.count() > 0).then(|| Child::decode(p.value(0)))))?;
            if count == 0 || (level > 0 && count == 1) {
                match root {
                    Child::Dirty(number) => drop(self.dirty.remove(&number)),
                    Child::Clean(address, _) => self.dropped.push(address),
                }
                self.root = match first {
                    Some(child) if level > 0 => Some((child?, level - 1)),
                    _ => None,
                };
            } else {
                break;
            }
        }
        Ok(true)
    }

    /// Whether the page of `level` that holds `key` lies at `address`; if so it is marked changed, so that the next
    /// checkpoint writes it elsewhere.
    pub(crate) fn evict_page(&mut self, level: u8, key: &[u8], address: Address) -> Result<bool> {
        assert!(!self.frozen, "frozen pages are not changed by others");
        let Some((mut child, mut at)) = self.root else { return Ok(false) };
        if at < level {
            return Ok(false);
        }
        while at > level {
            child = self.with(child, at, |p| Child::decode(p.value(p.child_of(key))))??;
            at -= 1;
        }
        match child {
            Child::Clean(a, _) if a == address => {
                self.path(key, level)?;
                Ok(true)
            }
            Child::Clean(..) | Child::Dirty(_) => Ok(false),
        }
    }

    /// The next `max` changed pages to write, children before parents; fewer where there are no more. As each is placed it is
    /// no longer a changed one, so asking again goes on behind it.
    pub(crate) fn dirty_in_order(&mut self, max: usize) -> Result<Vec<DirtyPage>> {
        let mut order = Vec::new();
        if let Some((Child::Dirty(number), level)) = self.root {
            self.collect_dirty(number, level, max, &mut order)?;
        }
        Ok(order)
    }

    fn collect_dirty(
        &mut self,
        number: u64,
        level: u8,
        max: usize,
        order: &mut Vec<DirtyPage>,
    ) -> Result<()> {
        if level > 0 {
            let page = self.dirty_page(number);
            let children: Vec<Result<Child>> =
                (0..page.count()).map(|i| Child::decode(page.value(i))).collect();
            for child in children {
                if order.len() >= max {
                    return Ok(());
                }
                if let Child::Dirty(below) = child? {
                    self.collect_dirty(below, level - 1, max, order)?;
                }
            }
        }
        if order.len() < max {
            let key = self.key_within(Child::Dirty(number), level)?;
            order.push(DirtyPage { number, level, key });
        }
        Ok(())
    }

    /// A key that leads to the page: a leaf's first; an internal page's second, as its first is empty; with one child, one
    /// that leads to that.
    fn key_within(&mut self, child: Child, level: u8) -> Result<Bytes> {
        let (key, below) = self.with(child, level, |p| {
            if level == 0 {
                return (Some(Bytes::copy_from_slice(p.key(0))), None);
            }
            if p.count() > 1 {
                return (Some(Bytes::copy_from_slice(p.key(1))), None);
            }
            (None, Some(Child::decode(p.value(0))))
        })?;
        match (key, below) {
            (Some(key), _) => Ok(key),
            (None, Some(below)) => self.key_within(below?, level - 1),
            (None, None) => Err(Error::corrupt("an index page without entries")),
        }
    }

    /// The bytes of a changed page whose changed children have all been placed, and their CRC.
    pub(crate) fn seal(&mut self, page: &DirtyPage) -> (Bytes, u32) {
        let bytes = self.dirty.get(&page.number).expect("a dirty page is in memory").to_bytes();
        let crc = crc32c(&bytes);
        (bytes, crc)
    }

    /// Says where the checkpoint writes a changed page: it is clean from now on.
    pub(crate) fn place(&mut self, placed: &DirtyPage, address: Address, crc: u32) -> Result<()> {
        let page = self.dirty.remove(&placed.number).expect("a dirty page is in memory");
        if self.clean.is_full() {
            drop(self.clean.age());
        }
        self.clean.insert(address, Arc::new(page));
        let clean = Child::Clean(address, crc);
        let dirty = Child::Dirty(placed.number).encode();
        if let Some((Child::Dirty(root), level)) = self.root {
            if root == placed.number {
                self.root = Some((clean, level));
                return Ok(());
            }
            let (mut number, mut at) = (root, level);
            loop {
                let page = self.dirty_page(number);
                let i = page.child_of(&placed.key);
                if page.value(i) == dirty {
                    page.set_value(i, &clean.encode());
                    return Ok(());
                }
                match Child::decode(page.value(i))? {
                    Child::Dirty(below) if at > 1 => (number, at) = (below, at - 1),
                    Child::Dirty(_) | Child::Clean(..) => break,
                }
            }
        }
        Err(Error::new(ferry_core::ErrorKind::Internal, "a changed index page is not where its key leads"))
    }

    /// The root, once every page is clean.
    pub(crate) fn root(&self) -> Option<TreeRoot> {
        self.root.map(|(child, level)| match child {
            Child::Clean(address, crc) => TreeRoot { address, crc, level },
            Child::Dirty(_) => panic!("the root is written before it is asked for"),
        })
    }

    /// Forgets the cached pages, so that what is read next comes from the disk.
    pub(crate) fn forget_clean(&mut self) {
        self.clean.clear();
    }

    /// Calls `f` with the address and CRC of every clean page reachable from the root, verifying each.
    pub(crate) fn walk(&mut self, f: &mut dyn FnMut(Address)) -> Result<()> {
        match self.root {
            Some((root, level)) => self.walk_page(root, level, f),
            None => Ok(()),
        }
    }

    fn walk_page(&mut self, child: Child, level: u8, f: &mut dyn FnMut(Address)) -> Result<()> {
        if let Child::Clean(address, _) = child {
            f(address);
        }
        if level > 0 {
            let children: Vec<Result<Child>> =
                self.with(child, level, |p| (0..p.count()).map(|i| Child::decode(p.value(i))).collect())?;
            for below in children {
                self.walk_page(below?, level - 1, f)?;
            }
        } else {
            self.with(child, 0, |_| ())?;
        }
        Ok(())
    }
}

/// Whether a scan takes the key it starts at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// It does.
    Including,
    /// It does not.
    Excluding,
}

#[cfg(test)]
mod tests;
