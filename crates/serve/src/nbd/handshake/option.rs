//! Data of options, taken apart.

use crate::nbd::limits::NAME_MAX;

/// What is wrong with an option's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Lengths and counts do not match what is there.
    Layout,
    /// A text is longer than the protocol allows.
    TooLong,
    /// A text is not UTF-8.
    Text,
}

/// Takes `N` bytes off the front.
fn take<const N: usize>(data: &mut &[u8]) -> Result<[u8; N], Fault> {
    let (head, rest) = data.split_first_chunk().ok_or(Fault::Layout)?;
    *data = rest;
    Ok(*head)
}

/// Takes a length and so many bytes of text off the front.
fn take_text<'a>(data: &mut &'a [u8]) -> Result<&'a str, Fault> {
    let length = u32::from_be_bytes(take(data)?);
    let count = usize::try_from(length).map_err(|_| Fault::Layout)?;
    let (text, rest) = data.split_at_checked(count).ok_or(Fault::Layout)?;
    if length > NAME_MAX {
        return Err(Fault::TooLong);
    }
    *data = rest;
    std::str::from_utf8(text).map_err(|_| Fault::Text)
}

/// Data of INFO and GO.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted<'a> {
    /// Of the export.
    pub(super) name: &'a str,
    kinds: &'a [u8],
}

impl<'a> Wanted<'a> {
    /// Takes it apart.
    pub(super) fn parse(mut data: &'a [u8]) -> Result<Self, Fault> {
        let name = take_text(&mut data)?;
        let count = u16::from_be_bytes(take(&mut data)?);
        if data.len() != 2 * usize::from(count) {
            return Err(Fault::Layout);
        }
        Ok(Self { name, kinds: data })
    }

    /// Whether a kind of information was asked for.
    pub(super) fn asks_for(&self, kind: u16) -> bool {
        self.kinds.chunks_exact(2).any(|k| k == kind.to_be_bytes())
    }
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Queries<'a> {
    /// Name of the export.
    pub(super) export: &'a str,
    queries: Vec<&'a str>,
}

impl<'a> Queries<'a> {
    /// Takes them apart.
    pub(super) fn parse(mut data: &'a [u8]) -> Result<Self, Fault> {
        let export = take_text(&mut data)?;
        let count = u32::from_be_bytes(take(&mut data)?);
        // Each needs four bytes at least, so a count larger than the data fails at once.
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(take_text(&mut data)?);
        }
        if data.is_empty() { Ok(Self { export, queries }) } else { Err(Fault::Layout) }
    }

    /// Whether a listing names the context: all for no queries, a namespace's for `namespace:`.
    pub(super) fn list(&self, name: &str) -> bool {
        let is_asked = |q: &&str| *q == name || (q.ends_with(':') && name.starts_with(*q));
        self.queries.is_empty() || self.queries.iter().any(is_asked)
    }

    /// Whether the context is selected: by its whole name.
    pub(super) fn select(&self, name: &str) -> bool {
        self.queries.contains(&name)
    }
}
