//! Memory of requests in flight, shared by all connections of a server.
//!
//! Invariants
//! - What is held never exceeds the budget.
//! - Nobody waits for a part: whoever gets none goes on with the little that every connection may use anyway. So a client that
//!   holds its part for ever slows others down at most.
//! - One request gets at most a fixed part of what is left, so that the last ones get something too.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::limits::BUDGET_PART;

/// See the module.
#[derive(Debug)]
pub(super) struct Budget {
    left: AtomicUsize,
    size: usize,
}

impl Budget {
    /// A budget of `size` bytes.
    pub(super) fn new(size: usize) -> Self {
        Self { left: AtomicUsize::new(size), size }
    }

    /// What is held. Bytes.
    pub(super) fn held(&self) -> usize {
        self.size - self.left.load(Ordering::Relaxed)
    }

    /// Between `least` and `most` bytes, if there are that many.
    pub(super) fn take(self: &Arc<Self>, least: usize, most: usize) -> Option<Lease> {
        let mut left = self.left.load(Ordering::Relaxed);
        loop {
            let part = left / BUDGET_PART;
            // Buffers are as large as the next power of two: less than all is one.
            let bytes = if part >= most { most } else { 1 << part.max(1).ilog2() };
            if bytes < least.max(1) {
                return None;
            }
            match self.left.compare_exchange_weak(left, left - bytes, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(Lease { budget: Arc::clone(self), bytes }),
                Err(now) => left = now,
            }
        }
    }
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Lease {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Lease {
    /// Bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes a part of it one of its own; at most all of it.
    pub(super) fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { budget: Arc::clone(&self.budget), bytes }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budget.left.fetch_add(self.bytes, Ordering::Relaxed);
    }
}
