//! Looking over a whole store: every reachable byte is read and verified, every count is counted again.

use std::collections::{BTreeMap, HashMap};

use ferry_core::{Error, ErrorKind, Result};

use crate::address::{Address, Block};
use crate::checkpoint::table_blocks;
use crate::chunk::Chunk;
use crate::core::Core;
use crate::disk::{FileId, SegmentNo};
use crate::engine::Engine;
use crate::format::SegmentHeader;
use crate::key::{Key, KeyReader, Tag};
use crate::limits::BLOCK;
use crate::read::read_run;
use crate::recover::{read_batch, read_superblock};
use crate::space::State;
use crate::tree::After;

/// Findings listed in full; the rest are counted.
const FINDINGS_MAX: usize = 100;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Objects looked at.
    pub objects: u64,
    /// Blocks of data read and verified.
    pub data_blocks: u64,
    /// Index pages read and verified.
    pub index_pages: u64,
    /// What is wrong, in words; at most a hundred.
    pub findings: Vec<String>,
    /// How many things are wrong.
    pub errors: u64,
}

impl CheckReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.errors == 0
    }

    fn add(&mut self, finding: &Error) {
        self.errors += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding.chain());
        }
    }
}

impl Engine {
    /// Reads and verifies everything the superblock reaches, and counts again what the segment table says.
    ///
    /// Works on an open store; writers wait meanwhile.
    ///
    /// # Errors
    /// Only those that keep the check from going on; what is damaged is in the report.
    pub fn check(&self) -> Result<CheckReport> {
        let _turn = self.turn();
        let mut core = self.lock();
        core.log_seal_if_writable()?;
        let mut report = CheckReport::default();
        core.check_superblock(&mut report);
        let found = core.check_index(&mut report);
        if let Err(e) = found {
            report.add(&e);
            return Ok(report);
        }
        core.check_segments(&mut report)?;
        Ok(report)
    }
}

/// What a reachable byte belongs to.
#[cfg(feature = "testing")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reached {
    /// A superblock slot.
    Superblock,
    /// A segment's first block.
    SegmentHeader,
    /// A batch's header.
    BatchHeader,
    /// A block of an object.
    Data,
    /// A page of the index.
    Index,
    /// The segment table.
    Table,
}

#[cfg(feature = "testing")]
impl Engine {
    /// Every range the superblock reaches: file, offset, length in bytes, and what it is. For tests that damage it.
    ///
    /// # Errors
    /// Those of reading the store.
    pub fn reached(&self) -> Result<Vec<(FileId, u64, u64, Reached)>> {
        let block = BLOCK as u64;
        let mut core = self.lock();
        let mut found = vec![(FileId::Superblock, 0, 2 * block, Reached::Superblock)];
        let mut add = |address: Address, length: u64, what| {
            found.push((FileId::Segment(address.segment()), crate::read::byte_of(address), length, what));
        };
        let mut counts = Counts::default();
        core.abandon_checkpoint()?;
        core.write_back()?;
        core.check_tables(&mut CheckReport::default(), &mut counts)?;
        counts.blocks.keys().for_each(|a| add(*a, block, Reached::Data));
        core.tree.walk(&mut |address| add(address, block, Reached::Index))?;
        if let Some((address, bytes, _)) = core.superblock.table {
            add(address, bytes, Reached::Table);
        }
        let segments: Vec<_> = core.space.iter().map(|(no, s)| (no, *s)).collect();
        for (no, segment) in segments.into_iter().filter(|(_, s)| s.state != State::Free) {
            add(Address::new(no, 0), block, Reached::SegmentHeader);
            let mut at = 1;
            while at < segment.used {
                let header =
                    read_batch(&*core.disk, Address::new(no, at), segment.life, core.space.segment_blocks())?;
                add(header.address, Self::header_bytes(header.header_blocks), Reached::BatchHeader);
                at += header.total_blocks();
            }
        }
        Ok(found)
    }

    fn header_bytes(blocks: u32) -> u64 {
        Core::block_bytes(blocks)
    }
}

/// What is counted while the index is walked.
#[derive(Debug, Default)]
struct Counts {
    references: BTreeMap<SegmentNo, u32>,
    nodes: BTreeMap<SegmentNo, u32>,
    blocks: HashMap<Address, u32>,
}

impl Core {
    fn log_seal_if_writable(&mut self) -> Result<()> {
        if self.read_only || self.log.poisoned { Ok(()) } else { self.log_seal() }
    }

    fn check_superblock(&self, report: &mut CheckReport) {
        match read_superblock(&*self.disk) {
            Ok((_, false)) => {}
            Ok((_, true)) => {
                report.add(&Error::corrupt("a superblock slot is damaged; the other one is used"));
            }
            Err(e) => report.add(&e),
        }
    }

    fn check_index(&mut self, report: &mut CheckReport) -> Result<()> {
        self.abandon_checkpoint()?;
        self.write_back()?;
        let mut counts = Counts::default();
        let mut pages = Vec::new();
        self.tree.forget_clean();
        self.tree.walk(&mut |address| pages.push(address))?;
        report.index_pages = pages.len() as u64;
        for address in pages {
            *counts.nodes.entry(address.segment()).or_default() += 1;
        }
        if let Some(table) = self.superblock.table {
            for address in table_blocks(table) {
                *counts.nodes.entry(address.segment()).or_default() += 1;
            }
            if let Err(e) = crate::recover::read_table(&*self.disk, &self.superblock) {
                report.add(&e);
            }
        }
        self.check_tables(report, &mut counts)?;
        self.check_data(report, &counts);
        let tables: Vec<_> = self.space.iter().map(|(no, s)| (no, s.state, s.references, s.nodes)).collect();
        for (no, state, references, nodes) in tables {
            let counted = counts.references.get(&no).copied().unwrap_or(0);
            let counted_nodes = counts.nodes.get(&no).copied().unwrap_or(0);
            if references != counted || nodes != counted_nodes || (state == State::Free && counted > 0) {
                report.add(
                    &Error::corrupt("a segment's counts are wrong")
                        .with("segment", no)
                        .with("references", references)
                        .with("counted", counted)
                        .with("pages", nodes)
                        .with("pages counted", counted_nodes),
                );
            }
        }
        Ok(())
    }

    /// Walks objects and tables: every entry must belong to a version that exists and point into a segment in use.
    fn check_tables(&mut self, report: &mut CheckReport, counts: &mut Counts) -> Result<()> {
        let prefix = Key::new(Tag::Table);
        let mut from = prefix.bytes().to_vec();
        let mut last_inode = None;
        loop {
            let page = self.tree.scan(&from, After::Excluding, prefix.bytes(), 256)?;
            let Some(last) = page.last() else { break };
            from = last.0.to_vec();
            for (key, value) in page {
                let mut r = KeyReader::new(&key);
                let (inode, version) = (r.u64()?, r.u64()?);
                if last_inode != Some(inode) {
                    last_inode = Some(inode);
                    if !self.has_object(inode)? {
                        report.add(
                            &Error::corrupt("a table of an object that does not exist").with("inode", inode),
                        );
                    }
                }
                let chunk =
                    Chunk::decode(&value).map_err(|e| e.with("inode", inode).with("version", version))?;
                for i in 0..crate::limits::CHUNK_BLOCKS {
                    if let Block::Data(address, crc) = chunk.get(i) {
                        *counts.references.entry(address.segment()).or_default() += 1;
                        counts.blocks.insert(address, crc);
                    }
                }
            }
        }
        let prefix = Key::new(Tag::Name);
        let names = self.tree.scan(prefix.bytes(), After::Including, prefix.bytes(), usize::MAX)?;
        report.objects = names.len() as u64;
        for (_, inode) in names {
            let inode: [u8; 8] = inode
                .as_ref()
                .try_into()
                .map_err(|_| Error::corrupt("an inode number has a wrong length"))?;
            if let Err(e) = self.object(u64::from_le_bytes(inode)).map(drop) {
                report.add(&e);
            }
        }
        Ok(())
    }

    fn check_data(&self, report: &mut CheckReport, counts: &Counts) {
        let mut blocks: Vec<(Address, u32)> = counts.blocks.iter().map(|(a, c)| (*a, *c)).collect();
        blocks.sort_unstable();
        report.data_blocks = blocks.len() as u64;
        let mut bytes = vec![0; BLOCK];
        for (address, crc) in blocks {
            if self.log.pending(address).is_some() {
                continue;
            }
            if let Err(e) = read_run(&*self.disk, address, &[crc], &mut bytes) {
                report.add(&e);
            }
        }
    }

    /// Every segment in use must be readable by the cleaner: its header, and the batches in it.
    fn check_segments(&mut self, report: &mut CheckReport) -> Result<()> {
        let segments: Vec<_> = self.space.iter().map(|(no, s)| (no, *s)).collect();
        for (no, segment) in segments.into_iter().filter(|(_, s)| s.state != State::Free) {
            let mut bytes = vec![0; BLOCK];
            let header = self
                .disk
                .read(FileId::Segment(no), 0, &mut bytes)
                .and_then(|()| SegmentHeader::decode(&bytes, &self.superblock.store, no));
            match header {
                Ok(h) if h.life == segment.life => {}
                Ok(_) => report.add(
                    &Error::corrupt("a segment is of another life than the table says").with("segment", no),
                ),
                Err(e) => {
                    report.add(&e);
                    continue;
                }
            }
            let mut block = 1;
            while block < segment.used {
                let at = Address::new(no, block);
                match read_batch(&*self.disk, at, segment.life, self.space.segment_blocks()) {
                    Ok(header) => block += header.total_blocks(),
                    Err(e) if e.kind() == ErrorKind::Corrupt => {
                        if !segment.torn {
                            report.add(&e);
                        }
                        block = segment.used;
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }
}
