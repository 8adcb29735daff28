//! Times as `ctime` prints them.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// `Sat Nov 21 20:37:27 2026`, in the machine's time zone. Empty for 0, which stands for "not known".
pub(crate) fn local(seconds: u64) -> String {
    at(seconds, &zone())
}

/// The machine's time zone.
#[cfg(not(test))]
fn zone() -> TimeZone {
    TimeZone::system()
}

/// A fixed one, so that tests mean the same everywhere.
#[cfg(test)]
fn zone() -> TimeZone {
    TimeZone::UTC
}

/// The same in a given time zone.
pub(super) fn at(seconds: u64, zone: &TimeZone) -> String {
    let Some(time) =
        i64::try_from(seconds).ok().filter(|s| *s != 0).and_then(|s| Timestamp::from_second(s).ok())
    else {
        return String::new();
    };
    time.to_zoned(zone.clone()).strftime("%a %b %e %H:%M:%S %Y").to_string()
}
