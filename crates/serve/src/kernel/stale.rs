//! What processes left behind that were killed while they had devices mapped.

use std::path::{Path, PathBuf};

use ferry_core::{Error, Result};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::nbd::{self, Found};
use super::setup::{Directories, LoopDevice};
use crate::fuse::{FILE_NAME, is_mounted};

/// What was cleared away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Devices. One that is still mounted goes when it is unmounted.
    pub devices: Vec<PathBuf>,
    /// Mounts and directories.
    pub directories: Vec<PathBuf>,
}

/// Clears away what dead processes left under `directory`: devices, mounts, directories. What living processes map stays.
/// Blocks.
///
/// # Errors
/// Those of the operating system; the rest is cleared away all the same.
///
/// # Crash safety
/// Run again, it goes on where it was stopped.
pub fn clean_stale(directory: &Path) -> Result<Cleaned> {
    let mut cleaned = Cleaned::default();
    if !directory.is_dir() {
        return Ok(cleaned);
    }
    let directories = Directories::open(directory)?;
    // Nobody is between making a directory and mounting at it while this is held.
    let _lock = directories.lock()?;
    let mut first = Ok(());
    for path in directories.all()? {
        first = first.and(clean(&path, &mut cleaned));
    }
    first.map(|()| cleaned)
}

fn clean(path: &Path, cleaned: &mut Cleaned) -> Result<()> {
    if is_mounted(path) {
        match rustix::fs::stat(path) {
            // The kernel says so once nobody serves it any more.
            Err(Errno::NOTCONN) => {}
            Ok(_) | Err(_) => return Ok(()),
        }
        for device in LoopDevice::all_on(&path.join(FILE_NAME)) {
            device.detach()?;
            cleaned.devices.push(device.path().to_owned());
        }
        unmount(path, UnmountFlags::DETACH).map_err(|e| {
            Error::io("cannot unmount a dead file system", e.into()).with("directory", path.display())
        })?;
    } else {
        match nbd::clear_stale(path)? {
            Found::None => {}
            Found::Alive => return Ok(()),
            Found::Cleared(devices) => cleaned.devices.extend(devices),
        }
    }
    std::fs::remove_dir(path)
        .map_err(|e| Error::io("cannot remove a directory", e).with("directory", path.display()))?;
    tracing::info!(directory = %path.display(), "stale mapping cleared away");
    cleaned.directories.push(path.to_owned());
    Ok(())
}
