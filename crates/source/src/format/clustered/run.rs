//! What a range of the device holds, as a table says it.

/// What is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    /// Nothing: the backing image shows through, or zeros where there is none.
    Hole,
    /// Zeros, whatever the backing image has.
    Zero,
    /// Bytes, from `host` of the file with the data on.
    Data {
        /// Where the first byte of the run is. Bytes.
        host: u64,
    },
    /// A part of a compressed cluster.
    Packed {
        /// Where it begins in the file of the image. Bytes.
        host: u64,
        /// How long it may be. Bytes.
        length: u64,
        /// Where the whole cluster begins in the device. Bytes.
        cluster: u64,
    },
}

/// A range of the device, and what is there. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) guest: u64,
    pub(crate) length: u64,
    pub(crate) cell: Cell,
}

impl Run {
    pub(crate) fn end(&self) -> u64 {
        self.guest + self.length
    }
}

/// Adds a run that follows the last one, as one with it where that goes on.
pub(crate) fn push_run(runs: &mut Vec<Run>, run: Run) {
    if run.length == 0 {
        return;
    }
    if let Some(last) = runs.last_mut() {
        let goes_on = match (last.cell, run.cell) {
            (Cell::Hole, Cell::Hole) | (Cell::Zero, Cell::Zero) => true,
            (Cell::Data { host: first }, Cell::Data { host }) => first.checked_add(last.length) == Some(host),
            (Cell::Hole | Cell::Zero | Cell::Data { .. } | Cell::Packed { .. }, _) => false,
        };
        if goes_on {
            last.length += run.length;
            return;
        }
    }
    runs.push(run);
}

/// Whether two runs hold the same at `at`, which both cover, and as far as both go on.
pub(crate) fn is_same(one: &Run, other: &Run, at: u64, has_backing: bool) -> bool {
    match (one.cell, other.cell) {
        (Cell::Hole, Cell::Hole) | (Cell::Zero, Cell::Zero) => true,
        (Cell::Hole, Cell::Zero) | (Cell::Zero, Cell::Hole) => !has_backing,
        (Cell::Data { host: a }, Cell::Data { host: b }) => a + (at - one.guest) == b + (at - other.guest),
        (
            Cell::Packed { host: a, length: m, cluster: c },
            Cell::Packed { host: b, length: n, cluster: d },
        ) => (a, m, c) == (b, n, d),
        (Cell::Hole | Cell::Zero | Cell::Data { .. } | Cell::Packed { .. }, _) => false,
    }
}
