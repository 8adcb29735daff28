//! Tables with two blanks between columns, every cell padded to its column, the last one too.

/// To which side a column's cells go. Headings are always on the left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Texts.
    Left,
    /// Numbers and sizes.
    Right,
}

/// A table.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row<C: Into<String>>(&mut self, cells: impl IntoIterator<Item = C>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The table with its headings.
    pub(crate) fn text(&self) -> String {
        let width = |i: usize, heading: &str| {
            self.rows
                .iter()
                .filter_map(|r| r.get(i))
                .map(|c| c.chars().count())
                .fold(heading.chars().count(), usize::max)
        };
        let widths: Vec<usize> = self.columns.iter().enumerate().map(|(i, (h, _))| width(i, h)).collect();
        let mut out = String::new();
        let headings = self.columns.iter().map(|(h, _)| (*h, Align::Left));
        write_row(&mut out, headings, &widths);
        for row in &self.rows {
            let cells = row.iter().zip(&self.columns).map(|(cell, (_, align))| (cell.as_str(), *align));
            write_row(&mut out, cells, &widths);
        }
        out
    }
}

/// One line.
fn write_row<'a>(out: &mut String, cells: impl Iterator<Item = (&'a str, Align)>, widths: &[usize]) {
    for (i, ((cell, align), width)) in cells.zip(widths).enumerate() {
        if i > 0 {
            out.push_str("  ");
        }
        // Not by `format!`, which has a widest column.
        let blanks = " ".repeat(width - cell.chars().count().min(*width));
        match align {
            Align::Left => out.extend([cell, &blanks]),
            Align::Right => out.extend([&blanks, cell]),
        }
    }
    out.push('\n');
}
