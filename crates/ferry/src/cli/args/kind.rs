//! What options take, and what a value must look like. The checks are those `rbd` makes while it parses.

use ferry_core::size::parse_size;

/// What an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing.
    Switch,
    /// Any text.
    Text,
    /// A size, bare numbers in MiB.
    ImageSize,
    /// A size that is rounded to a power of two.
    ObjectSize,
    /// `1` or `2`.
    ImageFormat,
    /// A size, bare numbers in bytes.
    Size,
    /// A power of two from 4K to 32M as its exponent.
    Order,
    /// A whole number.
    Number,
    /// A number from 0 to 1.
    Fraction,
    /// A number up to 100.
    Percent,
    /// `plain`, `json` or `xml`.
    Format,
    /// `1` or `2`.
    ExportFormat,
    /// Names of features, commas between them; may be given again.
    Features,
    /// `read`, `write`, `readwrite` or `rw`.
    IoType,
    /// `rand`, `seq` or `full-seq`.
    IoPattern,
}

/// Exponent of the power of two nearest to a number of bytes, as `rbd` rounds it. Whether objects may be that large is
/// for whoever makes them to say.
pub(crate) fn object_order(bytes: u64) -> Option<u8> {
    let below = bytes.checked_ilog2()?;
    // The nearest power on a logarithmic scale: up where bytes² ≥ 2^(2·below+1).
    let up = u128::from(bytes).pow(2) >= 1_u128 << (2 * below + 1);
    u8::try_from(below + u32::from(up)).ok()
}

/// Names and bits of the features a user may name.
const FEATURES: &[(&str, u64)] = &[
    ("layering", 0x1),
    ("striping", 0x2),
    ("exclusive-lock", 0x4),
    ("object-map", 0x8),
    ("fast-diff", 0x10),
    ("deep-flatten", 0x20),
    ("journaling", 0x40),
    ("data-pool", 0x80),
];

/// Bits of names joined by commas, or of a number.
pub(crate) fn feature_bits(text: &str) -> Option<u64> {
    let mut bits = 0;
    for name in text.split(',') {
        bits |= match FEATURES.iter().find(|(n, _)| *n == name) {
            Some((_, bit)) => *bit,
            None => name.parse::<u64>().ok().filter(|n| *n != 0 && *n & !0xff == 0)?,
        };
    }
    Some(bits)
}

impl Kind {
    /// Whether a value belongs to it.
    pub(crate) fn takes_value(self) -> bool {
        self != Self::Switch
    }

    /// Whether it may be given more than once.
    pub(crate) fn repeats(self) -> bool {
        self == Self::Features
    }

    /// Whether `value` is one.
    pub(crate) fn accepts(self, value: &str) -> bool {
        match self {
            Self::Switch | Self::Text => true,
            Self::ImageSize => parse_size(value, 1 << 20).is_some(),
            Self::Size => parse_size(value, 1).is_some(),
            Self::ObjectSize => parse_size(value, 1).and_then(object_order).is_some(),
            Self::ImageFormat => matches!(value, "1" | "2"),
            Self::Order => value.parse::<u8>().is_ok_and(|o| (12..=25).contains(&o)),
            Self::Number => value.parse::<u64>().is_ok(),
            Self::Fraction => value.parse::<f64>().is_ok_and(|f| (0.0..=1.0).contains(&f)),
            Self::Percent => value.parse::<u64>().is_ok_and(|p| p <= 100),
            Self::Format => matches!(value, "plain" | "json" | "xml"),
            Self::ExportFormat => matches!(value, "1" | "2"),
            Self::Features => feature_bits(value).is_some(),
            Self::IoType => matches!(value, "read" | "write" | "readwrite" | "rw"),
            Self::IoPattern => matches!(value, "rand" | "seq" | "full-seq"),
        }
    }

    /// The complaint about a value that is none.
    pub(crate) fn complaint(self, name: &str, value: &str) -> String {
        match self {
            // Plain numbers are read by a library that quotes them.
            Self::Number | Self::Fraction => {
                format!("the argument ('{value}') for option '--{name}' is invalid")
            }
            Self::Switch
            | Self::Text
            | Self::ImageSize
            | Self::ObjectSize
            | Self::ImageFormat
            | Self::Size
            | Self::Order
            | Self::Percent
            | Self::Format
            | Self::ExportFormat
            | Self::Features
            | Self::IoType
            | Self::IoPattern => format!("the argument for option '--{name}' is invalid"),
        }
    }
}
