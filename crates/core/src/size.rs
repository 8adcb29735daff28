//! Sizes as people write and read them: `10G` in, `10 GiB` out, always powers of 1024.

/// Reads `10`, `512K`, `10G`, `1.5T`, `10GiB`; a bare number is in units of `bare_unit` bytes.
///
/// `None` where it is not a size or does not fit 64 bits. Fractions must come out at whole bytes.
#[must_use]
pub fn parse_size(text: &str, bare_unit: u64) -> Option<u64> {
    let text = text.trim();
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits_end);
    let unit = match suffix.trim().to_ascii_uppercase().as_str() {
        "" => bare_unit,
        "B" => 1,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        "T" | "TB" | "TIB" => 1 << 40,
        "P" | "PB" | "PIB" => 1 << 50,
        "E" | "EB" | "EIB" => 1 << 60,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 15 || (fraction.is_empty() && number.contains('.')) {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    if fraction.is_empty() {
        return Some(whole);
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = fraction.parse::<u128>().ok()? * u128::from(unit);
    if !part.is_multiple_of(scale) {
        return None;
    }
    whole.checked_add(u64::try_from(part / scale).ok()?)
}

/// Writes a size as Ceph's `byte_u_t` does: `0 B`, `512 KiB`, `9.5 MiB`, `10 GiB`, `977 KiB`.
///
/// Exact multiples print whole; others with one decimal where the whole text then fits seven characters, else rounded.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0_usize;
    while unit + 1 < UNITS.len() && bytes >> (10 * (unit + 1)) != 0 {
        unit += 1;
    }
    let scale = 1_u64 << (10 * unit);
    if bytes.is_multiple_of(scale) {
        return format!("{} {}", bytes / scale, UNITS[unit]);
    }
    let value = as_f64(bytes) / as_f64(scale);
    let fine = format!("{value:.1} {}", UNITS[unit]);
    if fine.len() <= 7 { fine } else { format!("{value:.0} {}", UNITS[unit]) }
}

/// A 64-bit count as a double, as C++ converts it.
#[expect(clippy::cast_precision_loss, reason = "only three digits are printed")]
fn as_f64(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::{format_size, parse_size};

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_size("10G", 1 << 20), Some(10 << 30));
        assert_eq!(parse_size("10", 1 << 20), Some(10 << 20));
        assert_eq!(parse_size("1.5T", 1), Some(3 << 39));
        assert_eq!(parse_size("64KiB", 1), Some(64 << 10));
        assert_eq!(parse_size("0", 1), Some(0));
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in ["", "G", "-1", "1x", "1..5G", "1.G", ".5G", "17E", "99999999999999999999", "1.3B"] {
            assert_eq!(parse_size(text, 1), None, "{text}");
        }
    }

    #[test]
    fn sizes_print_as_rbd_prints_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (10 << 30, "10 GiB"),
            (64 << 20, "64 MiB"),
            (19 << 19, "9.5 MiB"),
            (31 << 19, "16 MiB"),
            (1_000_000, "977 KiB"),
            (512, "512 B"),
            (1536, "1.5 KiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(format_size(bytes), text);
        }
    }
}
