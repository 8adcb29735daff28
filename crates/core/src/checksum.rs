//! CRC-32C (Castagnoli), the checksum of every block and of RBD's object maps; and a hash that tells bytes apart by itself.

use crc_fast::{CrcAlgorithm, checksum};
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// 128 bits that no other bytes, nor the same under another seed, have by accident (XXH3). Not made to withstand forgery.
#[must_use]
pub fn hash128(bytes: &[u8], seed: u64) -> u128 {
    xxh3_128_with_seed(bytes, seed)
}

/// CRC-32C of `bytes` in its usual form (initial value and final inversion all ones; "123456789" gives `e3069283`).
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    low(checksum(CrcAlgorithm::Crc32Iscsi, bytes))
}

/// CRC-32C of `a` followed by `b`, without joining them.
#[must_use]
pub fn crc32c_of_two(a: &[u8], b: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(a);
    digest.update(b);
    low(digest.finalize())
}

/// CRC-32C as Ceph stores it in object maps: initial value 0, no final inversion.
///
/// # Source
/// `ceph_crc32c(0, …)`; see `docs/format/object-map.md`.
#[must_use]
pub fn crc32c_ceph(bytes: &[u8]) -> u32 {
    // Without either inversion. A CRC register is linear in its starting value, so the effect of starting at all ones
    // is what the same number of zero bytes gives: take that out again.
    let usual = !crc32c(bytes);
    let shift = !crc32c_of_zeros(bytes.len());
    usual ^ shift
}

/// The usual CRC-32C of `len` zero bytes.
fn crc32c_of_zeros(len: usize) -> u32 {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut digest = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
    let mut left = len;
    while left > 0 {
        let n = left.min(ZEROS.len());
        digest.update(&ZEROS[..n]);
        left -= n;
    }
    low(digest.finalize())
}

/// The low half of a 64-bit register that holds a 32-bit sum.
fn low(value: u64) -> u32 {
    u32::try_from(value & 0xFFFF_FFFF).expect("masked to 32 bits")
}

#[cfg(test)]
mod tests {
    use super::{crc32c, crc32c_ceph, crc32c_of_two, hash128};

    #[test]
    fn the_hash_is_the_published_one_and_takes_its_seed_into_account() {
        assert_eq!(hash128(b"", 0), 0x99AA_06D3_0147_98D8_6001_C324_468D_497F);
        assert_ne!(hash128(&[7; 4096], 0), hash128(&[7; 4096], 4096));
        assert_ne!(hash128(&[7; 4096], 0), hash128(&[7; 4095], 0));
    }

    #[test]
    fn crc32c_has_the_published_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c_of_two(b"1234", b"56789"), 0xE306_9283);
    }

    #[test]
    fn ceph_form_matches_bytes_written_by_stock_rbd() {
        assert_eq!(crc32c_ceph(&[1, 1, 8, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0]), 0x6EC1_B3E6);
        assert_eq!(crc32c_ceph(&[0x40, 0, 0, 0]), 0xABA6_5FE7);
        assert_eq!(crc32c_ceph(&[0; 4096]), 0);
    }
}
