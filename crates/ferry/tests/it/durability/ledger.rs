//! What a client wrote, what was acknowledged, what was flushed: and so what each block may show after a crash.
//!
//! Invariants
//! - At most one request is in flight for a block, so the order of its contents is known.
//! - The first entry of a block's history is what it shows at least; later ones it may show.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Size of a block, within which a write is old or new. Bytes.
pub(crate) const BLOCK: usize = 4096;

/// What a block shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Zeros.
    Zero,
    /// The pattern of this number.
    Numbered(u64),
}

/// One content of a block. Moments count what happened in the ledger.
#[derive(Clone, Copy, Debug)]
struct Entry {
    content: Content,
    /// When it was sent.
    sent: u64,
    /// When it was acknowledged; `None` while it is in flight.
    acknowledged: Option<u64>,
}

#[derive(Clone, Debug)]
struct Block {
    history: Vec<Entry>,
    /// Index of the newest entry that is known to be durable.
    durable: usize,
    is_busy: bool,
}

#[derive(Debug)]
struct State {
    blocks: Vec<Block>,
    moment: u64,
    last_number: u64,
    writes: u64,
    flushes: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Ledger(Mutex<State>);

/// Blocks written by one request, one after another.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) first: usize,
    pub(crate) contents: Vec<Content>,
    pub(crate) is_durable: bool,
}

/// What was known to be durable at one moment: per block, how many entries of its history came before.
#[derive(Clone, Debug)]
pub(crate) struct Durable(Vec<usize>);

/// What a check found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Blocks that show what was last flushed, though more was written later.
    pub(crate) old: usize,
    /// Blocks that show something newer than what was last flushed.
    pub(crate) new: usize,
}

/// The bytes of a block: each word says what it is, so that a mixture of two contents is noticed.
pub(crate) fn pattern(content: Content, block: usize) -> Vec<u8> {
    match content {
        Content::Zero => vec![0; BLOCK],
        Content::Numbered(number) => {
            let word = |i: u64| (number << 32 | u64::try_from(block).unwrap() << 10 | i).to_le_bytes();
            (0..512).flat_map(word).collect()
        }
    }
}

/// What a block read from an image shows; `None` where it is no content at all.
fn recognized(bytes: &[u8], block: usize) -> Option<Content> {
    let word = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let content = if word == 0 { Content::Zero } else { Content::Numbered(word >> 32) };
    (pattern(content, block) == bytes).then_some(content)
}

impl Ledger {
    /// `blocks` blocks that show `content`, durably.
    pub(crate) fn new(blocks: usize, content: Content) -> Self {
        let entry = Entry { content, sent: 0, acknowledged: Some(0) };
        let block = Block { history: vec![entry], durable: 0, is_busy: false };
        let last_number = match content {
            Content::Zero => 0,
            Content::Numbered(number) => number,
        };
        let blocks = vec![block; blocks];
        Self(Mutex::new(State { blocks, moment: 0, last_number, writes: 0, flushes: 0 }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked fails its test anyway.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes and flushes acknowledged so far.
    pub(crate) fn acknowledged(&self) -> (u64, u64) {
        let state = self.state();
        (state.writes, state.flushes)
    }

    /// Notes a write of `count` blocks from `first` (of zeros, or of fresh numbers), unless one of them is in flight.
    pub(crate) fn write(&self, first: usize, count: usize, zeros: bool, is_durable: bool) -> Option<Sent> {
        let mut state = self.state();
        if state.blocks[first..first + count].iter().any(|b| b.is_busy) {
            return None;
        }
        state.moment += 1;
        let sent = state.moment;
        let mut contents = Vec::new();
        for at in first..first + count {
            let content = if zeros {
                Content::Zero
            } else {
                state.last_number += 1;
                Content::Numbered(state.last_number)
            };
            let block = &mut state.blocks[at];
            block.is_busy = true;
            block.history.push(Entry { content, sent, acknowledged: None });
            contents.push(content);
        }
        Some(Sent { first, contents, is_durable })
    }

    /// Notes that a write was acknowledged.
    pub(crate) fn written(&self, sent: &Sent) {
        let mut state = self.state();
        state.moment += 1;
        state.writes += 1;
        let now = state.moment;
        for block in &mut state.blocks[sent.first..sent.first + sent.contents.len()] {
            block.is_busy = false;
            block.history.last_mut().unwrap().acknowledged = Some(now);
            if sent.is_durable {
                block.durable = block.history.len() - 1;
            }
        }
    }

    /// Notes that a flush was sent; when.
    pub(crate) fn flush(&self) -> u64 {
        let mut state = self.state();
        state.moment += 1;
        state.moment
    }

    /// Notes that the flush sent at `moment` was acknowledged: what had been acknowledged then, on any connection, is durable.
    pub(crate) fn flushed(&self, moment: u64) {
        let mut state = self.state();
        state.moment += 1;
        state.flushes += 1;
        for block in &mut state.blocks {
            let known = block.history.iter().rposition(|e| e.acknowledged.is_some_and(|at| at < moment));
            block.durable = block.durable.max(known.unwrap_or_default());
        }
    }

    /// What is known to be durable now.
    pub(crate) fn durable(&self) -> Durable {
        Durable(self.state().blocks.iter().map(|b| b.durable).collect())
    }

    /// Compares what an image shows with what it may show, where `durable` was known to be durable before the crash.
    pub(crate) fn check(&self, durable: &Durable, image: &[u8]) -> Result<Found, String> {
        let state = self.state();
        let mut found = Found::default();
        // No write may be there that was sent after another was acknowledged which is missing.
        let (mut newest_there, mut oldest_missing) = ((0, 0), (u64::MAX, 0));
        for (at, (block, bytes)) in state.blocks.iter().zip(image.chunks_exact(BLOCK)).enumerate() {
            let candidates = &block.history[durable.0[at]..];
            let shown = recognized(bytes, at);
            let Some(content) = shown else {
                return Err(format!("block {at} is a mixture; it may show {candidates:?}"));
            };
            let Some(index) = candidates.iter().rposition(|e| e.content == content) else {
                return Err(format!("block {at} shows {content:?}; it may show {candidates:?}"));
            };
            if index > 0 {
                found.new += 1;
            } else if candidates.len() > 1 {
                found.old += 1;
            }
            // Zeros may be those of several writes: in doubt it is the earliest that is there and the latest that is missing.
            let earliest = candidates.iter().position(|e| e.content == content).unwrap_or(index);
            newest_there = newest_there.max((candidates[earliest].sent, at));
            let missing = candidates[index + 1..].iter().filter_map(|e| e.acknowledged).min();
            oldest_missing = oldest_missing.min((missing.unwrap_or(u64::MAX), at));
        }
        if newest_there.0 > oldest_missing.0 {
            return Err(format!(
                "block {} shows a write that was sent after one to block {} was acknowledged, which is missing",
                newest_there.1, oldest_missing.1
            ));
        }
        Ok(found)
    }

    /// Takes what an image shows after a crash for what it shows from now on. It has been checked.
    pub(crate) fn take_over(&self, image: &[u8]) {
        let mut state = self.state();
        state.moment += 1;
        let now = state.moment;
        for (at, bytes) in image.chunks_exact(BLOCK).enumerate() {
            let content = recognized(bytes, at).expect("it was checked");
            let entry = Entry { content, sent: now, acknowledged: Some(now) };
            state.blocks[at] = Block { history: vec![entry], durable: 0, is_busy: false };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, Content, Found, Ledger, pattern};

    fn image(contents: &[Content]) -> Vec<u8> {
        contents.iter().enumerate().flat_map(|(at, c)| pattern(*c, at)).collect()
    }

    #[test]
    fn what_was_flushed_must_be_there_and_the_rest_may() {
        let ledger = Ledger::new(2, Content::Zero);
        let first = ledger.write(0, 1, false, false).unwrap();
        ledger.written(&first);
        let flush = ledger.flush();
        let second = ledger.write(1, 1, false, false).unwrap();
        ledger.written(&second);
        ledger.flushed(flush);
        let durable = ledger.durable();
        let (one, two) = (Content::Numbered(1), Content::Numbered(2));
        assert_eq!(ledger.check(&durable, &image(&[one, Content::Zero])), Ok(Found { old: 1, new: 0 }));
        assert_eq!(ledger.check(&durable, &image(&[one, two])), Ok(Found { old: 0, new: 1 }));
        assert!(ledger.check(&durable, &image(&[Content::Zero, two])).unwrap_err().contains("block 0"));
        let mut mixed = image(&[one, two]);
        mixed[BLOCK..BLOCK + 512].fill(0);
        assert!(ledger.check(&durable, &mixed).unwrap_err().contains("block 1 is a mixture"));
    }

    #[test]
    fn no_write_may_be_there_without_one_acknowledged_before_it_was_sent() {
        let ledger = Ledger::new(2, Content::Zero);
        let first = ledger.write(0, 1, false, false).unwrap();
        ledger.written(&first);
        ledger.write(1, 1, false, false).unwrap();
        let wrong = image(&[Content::Zero, Content::Numbered(2)]);
        assert!(ledger.check(&ledger.durable(), &wrong).unwrap_err().contains("sent after"));
    }

    #[test]
    fn a_durable_write_needs_no_flush() {
        let ledger = Ledger::new(1, Content::Zero);
        let sent = ledger.write(0, 1, false, true).unwrap();
        assert!(ledger.write(0, 1, false, true).is_none(), "one is in flight");
        ledger.written(&sent);
        assert!(ledger.check(&ledger.durable(), &image(&[Content::Zero])).is_err());
    }
}
