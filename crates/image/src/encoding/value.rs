//! Values that are one number, one text or one time.

use bytes::Bytes;
use ferry_core::denc::{Decoder, Encoder};
use ferry_core::{Result, Timestamp};

macro_rules! plain_value {
    ($decode:ident, $encode:ident, $method:ident, $type:ty, $what:literal) => {
        #[doc = concat!("Reads a value that is ", $what, ".")]
        ///
        /// # Errors
        /// `Corrupt` where it is not exactly that.
        pub fn $decode(bytes: &[u8]) -> Result<$type> {
            let mut d = Decoder::new(bytes);
            let value = d.$method()?;
            d.expect_end()?;
            Ok(value)
        }

        #[doc = concat!("Writes a value that is ", $what, ".")]
        #[must_use]
        pub fn $encode(value: $type) -> Bytes {
            let mut e = Encoder::new();
            e.$method(value);
            e.finish()
        }
    };
}

plain_value!(decode_u8, encode_u8, u8, u8, "one byte");
plain_value!(decode_u64, encode_u64, u64, u64, "eight bytes");
plain_value!(decode_i64, encode_i64, i64, i64, "eight bytes, signed");
plain_value!(decode_timestamp, encode_timestamp, timestamp, Timestamp, "a time");

/// Reads a value that is one text with its length.
///
/// # Errors
/// `Corrupt` where it is not exactly that.
pub fn decode_string(bytes: &[u8]) -> Result<String> {
    let mut d = Decoder::new(bytes);
    let value = d.string()?;
    d.expect_end()?;
    Ok(value)
}

/// Writes a value that is one text with its length.
#[must_use]
pub fn encode_string(value: &str) -> Bytes {
    let mut e = Encoder::new();
    e.string(value);
    e.finish()
}
