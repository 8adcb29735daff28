//! What a write op makes of an object's blocks, as runs.

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_core::checksum::crc32c;

use crate::limits::BLOCK;
use crate::record::{BlockRef, Record};

/// What a run of blocks becomes.
#[derive(Clone, Debug)]
pub(crate) enum Draft {
    /// These bytes, whole blocks.
    Data(Bytes),
    /// Zeros.
    Zero,
    /// Holes.
    Hole,
    /// What another version has, from this block on.
    Shared(BlockRef),
}

impl Draft {
    /// The run without its first `n` blocks.
    fn skip(&self, n: u32) -> Self {
        match self {
            Self::Data(bytes) => Self::Data(bytes.slice(n as usize * BLOCK..)),
            Self::Shared(r) => Self::Shared(BlockRef { block: r.block + n, ..*r }),
            Self::Zero => Self::Zero,
            Self::Hole => Self::Hole,
        }
    }

    /// The first `n` blocks of the run.
    fn first(&self, n: u32) -> Self {
        match self {
            Self::Data(bytes) => Self::Data(bytes.slice(..n as usize * BLOCK)),
            other => other.clone(),
        }
    }
}

/// Runs of blocks and what they become; none overlap.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drafts(BTreeMap<u32, (u32, Draft)>);

impl Drafts {
    /// Says what `count` blocks from `block` on become, whatever was said before.
    pub(crate) fn put(&mut self, block: u32, count: u32, draft: Draft) {
        if count == 0 {
            return;
        }
        self.cut(block, block + count);
        self.0.insert(block, (count, draft));
    }

    /// Forgets what was said of `[from, to)`.
    fn cut(&mut self, from: u32, to: u32) {
        let before = self.0.range(..from).next_back().map(|(start, run)| (*start, run.clone()));
        if let Some((start, (count, draft))) = before
            && start + count > from
        {
            self.0.insert(start, (from - start, draft.first(from - start)));
            if start + count > to {
                self.0.insert(to, (start + count - to, draft.skip(to - start)));
            }
        }
        let inside: Vec<u32> = self.0.range(from..to).map(|(start, _)| *start).collect();
        for start in inside {
            if let Some((count, draft)) = self.0.remove(&start)
                && start + count > to
            {
                self.0.insert(to, (start + count - to, draft.skip(to - start)));
            }
        }
    }

    /// What block `block` becomes, where anything was said of it.
    pub(crate) fn get(&self, block: u32) -> Option<Draft> {
        let (start, (count, draft)) = self.0.range(..=block).next_back()?;
        (start + count > block).then(|| draft.skip(block - start).first(1))
    }

    /// Forgets everything from `block` on.
    pub(crate) fn truncate(&mut self, block: u32) {
        self.cut(block, u32::MAX);
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Turns the runs into records and payload.
    pub(crate) fn emit(self, inode: u64, records: &mut Vec<Record>, payload: &mut Vec<Bytes>) {
        for (at, (run, draft)) in self.0 {
            match (draft, records.last_mut()) {
                (Draft::Data(bytes), last) => {
                    let sums = bytes.chunks_exact(BLOCK).map(crc32c);
                    match last {
                        Some(Record::Data { block, crcs, .. })
                            if *block as usize + crcs.len() == at as usize =>
                        {
                            crcs.extend(sums);
                        }
                        _ => records.push(Record::Data { inode, block: at, crcs: sums.collect() }),
                    }
                    payload.push(bytes);
                }
                (Draft::Zero, Some(Record::Zero { block, count, .. })) if *block + *count == at => {
                    *count += run;
                }
                (Draft::Zero, _) => records.push(Record::Zero { inode, block: at, count: run }),
                (Draft::Hole, Some(Record::Hole { block, count, .. })) if *block + *count == at => {
                    *count += run;
                }
                (Draft::Hole, _) => records.push(Record::Hole { inode, block: at, count: run }),
                (Draft::Shared(source), _) => {
                    records.push(Record::Share { source, count: run, inode, block: at });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Draft, Drafts};
    use crate::limits::BLOCK;
    use bytes::Bytes;
    use ferry_core::testing::TestRng;

    #[test]
    fn what_was_said_last_of_a_block_holds() {
        let rng = TestRng::new(4);
        for _ in 0..200 {
            let mut drafts = Drafts::default();
            let mut model: Vec<Option<u8>> = vec![None; 64];
            for step in 0..30_u8 {
                let from = u32::try_from(rng.below(60)).unwrap();
                let count = u32::try_from(rng.below(u64::from(64 - from))).unwrap();
                if rng.one_in(9) {
                    drafts.truncate(from);
                    model[from as usize..].fill(None);
                    continue;
                }
                drafts.put(from, count, Draft::Data(Bytes::from(vec![step; count as usize * BLOCK])));
                model[from as usize..(from + count) as usize].fill(Some(step));
            }
            for (block, want) in (0..).zip(&model) {
                let found = drafts.get(block).map(|d| match d {
                    Draft::Data(bytes) => {
                        assert_eq!(bytes.len(), BLOCK);
                        bytes[0]
                    }
                    Draft::Zero | Draft::Hole | Draft::Shared(_) => panic!("only data was said"),
                });
                assert_eq!(found, *want);
            }
        }
    }
}
