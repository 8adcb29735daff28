//! Who uses a block device.

use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ferry_core::{Error, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

/// How long a use may be a passing one: `udev` and `blkid` look at a device for a moment.
const PASSING: Duration = Duration::from_secs(1);

/// Between two looks.
const POLL: Duration = Duration::from_millis(20);

/// Keeps others from mounting a device, and from opening it for themselves alone.
#[derive(Debug)]
pub(super) struct Claim {
    _file: File,
}

impl Claim {
    /// Takes it, where nobody uses the device.
    ///
    /// # Errors
    /// `Busy` (16) where somebody does.
    pub(super) fn take(device: &Path) -> Result<Self> {
        let until = Instant::now() + PASSING;
        loop {
            match Self::try_take(device) {
                Err(e) if e.kind() == ferry_core::ErrorKind::Busy && Instant::now() < until => {
                    thread::sleep(POLL);
                }
                taken => return taken,
            }
        }
    }

    fn try_take(device: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = open(device, flags, Mode::empty()).map_err(|e| {
            if e == Errno::BUSY {
                let what =
                    mount_of(device).unwrap_or_else(|| "a file system, swap or another device".to_owned());
                Error::busy("the device is in use").with("device", device.display()).with("by", what)
            } else {
                Error::io("cannot open the device", e.into()).with("device", device.display())
            }
        })?;
        if let Some(process) = opener(device) {
            return Err(Error::busy("the device is in use")
                .with("device", device.display())
                .with("by", format!("process {process}")));
        }
        Ok(Self { _file: file.into() })
    }
}

/// Where it, or a partition of it, is mounted.
fn mount_of(device: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mounts").ok()?;
    let device = device.to_str()?;
    table.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (source, place) = (words.next()?, words.next()?);
        is_of(source, device).then(|| place.to_owned())
    })
}

/// A process other than this one that has it, or a partition of it, open.
fn opener(device: &Path) -> Option<u32> {
    let device = device.to_str()?;
    let us = std::process::id();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut numbers = processes.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    numbers.find(|process| *process != us && has_open(*process, device))
}

/// Whether a process has it open. One that ended meanwhile, or is not ours to look into, has not.
fn has_open(process: u32, device: &str) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    // The names alone: files are not looked at, which may take long where they are far away.
    files
        .flatten()
        .any(|f| fs::read_link(f.path()).is_ok_and(|at| at.to_str().is_some_and(|at| is_of(at, device))))
}

/// Whether `path` is the device or a partition of it.
fn is_of(path: &str, device: &str) -> bool {
    path.strip_prefix(device).is_some_and(|rest| {
        rest.is_empty()
            || rest.strip_prefix('p').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::is_of;

    #[test]
    fn partitions_are_of_a_device_and_longer_numbers_are_not() {
        assert!(is_of("/dev/loop1", "/dev/loop1"));
        assert!(is_of("/dev/loop1p12", "/dev/loop1"));
        assert!(!is_of("/dev/loop12", "/dev/loop1"));
        assert!(!is_of("/dev/loop1p", "/dev/loop1"));
        assert!(!is_of("/dev/loop", "/dev/loop1"));
    }
}
