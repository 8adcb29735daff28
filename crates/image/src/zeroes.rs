//! Telling zeros from data, in blocks.

/// A run of bytes that are all zeros, or not to be taken for zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// From the start of the buffer. Bytes.
    pub start: usize,
    /// Bytes.
    pub length: usize,
    /// Whether all of it is zeros.
    pub is_zero: bool,
}

/// Whether all bytes are zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let (head, words, tail) = (bytes.len() % 16, bytes.chunks_exact(16), bytes.chunks_exact(16).remainder());
    debug_assert_eq!(head, tail.len());
    tail.iter().all(|b| *b == 0) && words.into_iter().all(|w| *w == [0; 16])
}

/// Cuts a buffer that lies at `offset` of an image into runs of zero blocks and of others. Blocks are `block` bytes on
/// multiples of `block` in the image; a partial one at either end counts as a block.
///
/// # Panics
/// If `block` is 0.
pub fn runs(offset: u64, bytes: &[u8], block: u64) -> impl Iterator<Item = Run> {
    let mut at = 0;
    let next_block = move |at: usize| {
        let in_block = (offset + at as u64) % block;
        let length = usize::try_from(block - in_block).unwrap_or(usize::MAX);
        length.min(bytes.len() - at)
    };
    std::iter::from_fn(move || {
        if at >= bytes.len() {
            return None;
        }
        let start = at;
        at += next_block(at);
        let zero = is_zero(&bytes[start..at]);
        while at < bytes.len() {
            let length = next_block(at);
            if is_zero(&bytes[at..at + length]) != zero {
                break;
            }
            at += length;
        }
        Some(Run { start, length: at - start, is_zero: zero })
    })
}

#[cfg(test)]
mod tests {
    use super::{Run, is_zero, runs};

    #[test]
    fn blocks_are_those_of_the_image() {
        let mut bytes = vec![0; 20];
        bytes[9] = 1;
        let runs: Vec<_> = runs(3, &bytes, 8).collect();
        // Blocks end at image offsets 8, 16 and 24: buffer offsets 5, 13 and 21.
        assert_eq!(
            runs,
            [
                Run { start: 0, length: 5, is_zero: true },
                Run { start: 5, length: 8, is_zero: false },
                Run { start: 13, length: 7, is_zero: true },
            ]
        );
    }

    #[test]
    fn neighbours_of_a_kind_are_joined_and_an_empty_buffer_has_none() {
        assert_eq!(runs(0, &[1; 40], 8).count(), 1);
        assert_eq!(runs(5, &[0; 40], 8).collect::<Vec<_>>(), [Run { start: 0, length: 40, is_zero: true }]);
        assert_eq!(runs(5, &[], 8).count(), 0);
    }

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        for at in 0..70 {
            let mut bytes = [0_u8; 70];
            bytes[at] = 0x80;
            assert!(!is_zero(&bytes), "{at}");
        }
        assert!(is_zero(&[0; 70]));
    }
}
