//! A cache of two generations: an approximation of least-recently-used that costs one hash lookup or two.

use std::hash::Hash;

use rustc_hash::FxHashMap as HashMap;

/// Entries used lately, and those used before that. When the young generation is full the old one is handed out to be
/// dropped (or written back) and the young one grows old.
#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    capacity: usize,
}

impl<K: Hash + Eq, V> Cache<K, V> {
    /// A cache of up to twice `capacity` entries.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { young: HashMap::default(), old: HashMap::default(), capacity: capacity.max(8) }
    }

    /// Makes the entry of `key` young; whether there is one.
    pub(crate) fn renew(&mut self, key: &K) -> bool
    where
        K: Clone,
    {
        if self.young.contains_key(key) {
            return true;
        }
        let Some(value) = self.old.remove(key) else { return false };
        self.young.insert(key.clone(), value);
        true
    }

    /// The entry of `key` if it is young.
    pub(crate) fn young(&mut self, key: &K) -> Option<&mut V> {
        self.young.get_mut(key)
    }

    /// The entry of `key`, made young.
    pub(crate) fn get(&mut self, key: &K) -> Option<&mut V>
    where
        K: Clone,
    {
        self.renew(key);
        self.young.get_mut(key)
    }

    /// The entry of `key`, left where it is.
    pub(crate) fn peek(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    /// The entry of `key`, left where it is.
    pub(crate) fn peek_mut(&mut self, key: &K) -> Option<&mut V> {
        match self.young.get_mut(key) {
            Some(value) => Some(value),
            None => self.old.get_mut(key),
        }
    }

    /// Puts an entry in.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let (a, b) = (self.young.remove(key), self.old.remove(key));
        a.or(b)
    }

    /// Whether the young generation is full and [`Cache::age`] is due.
    pub(crate) fn is_full(&self) -> bool {
        self.young.len() >= self.capacity
    }

    /// Hands out the old generation and makes the young one old.
    pub(crate) fn age(&mut self) -> HashMap<K, V> {
        let young = std::mem::take(&mut self.young);
        std::mem::replace(&mut self.old, young)
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }
}
