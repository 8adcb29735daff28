//! An export as a device of the kernel's NBD client.
//!
//! The kernel gets one end of a pair of sockets and this process serves the other. It is told no limit of time: a device that is
//! far away may take long to answer, and is not lost for that.
//!
//! A process that dies leaves a device whose new requests fail at once, but those under way wait until somebody disconnects it.
//! A [watchdog](super::Watchdog) does, so that they fail too.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use ferry_core::{Error, Result};
use rustix::fs::{FlockOperation, flock};

use super::Options;
use super::netlink::{Control, Wanted};
use super::openers::Claim;
use super::setup::{BLOCK_DEVICES, POLL, READ_AHEAD_KB, wait_until_gone};
use super::watchdog::{Watchdog, Watching};
use crate::export::Export;
use crate::fuse::Access;
use crate::nbd::inside::{Inside, transmission_flags};

/// Where the kernel tells of its modules.
const MODULE: &str = "/sys/module/nbd";

/// What the names of its devices begin with.
const PREFIX: &str = "nbd";

/// Kilobytes of one request; the kernel's own choice is 128.
const REQUEST_KB: &str = "1024";

/// Bytes of a logical block where nobody says; the kernel's own choice is 1024.
const BLOCK_SIZE: u32 = 512;

/// How long a new device may take to get its place below `/dev`.
const NODE_WAIT: Duration = Duration::from_secs(5);

/// The file in a mapping's directory that says which device is its: what the kernel says of the device, and where it is. Locked by
/// the process that serves it, for as long as it lives.
const RECORD: &str = "nbd";

/// See the module.
#[derive(Debug)]
pub(super) struct NbdDevice {
    control: Control,
    index: u32,
    path: PathBuf,
    export: Arc<Export>,
    record: Record,
    served: Inside,
    watching: Watching,
}

/// Which device belongs to a directory.
#[derive(Debug)]
struct Record {
    path: PathBuf,
    identity: String,
    /// Kept locked.
    file: File,
}

impl NbdDevice {
    /// Makes one, told of in `directory`; `None` where this system's kernel has no NBD client that can be used.
    ///
    /// # Errors
    /// `Denied` without the rights of root; `Invalid` for a size of blocks that the kernel does not take; those of the system.
    pub(super) fn attach(
        export: &Arc<Export>,
        options: &Options,
        watchdog: &Watchdog,
        directory: &Path,
    ) -> Result<Option<Self>> {
        let Some(control) = open_control()? else { return Ok(None) };
        let mut record = Record::make(directory)?;
        let access = if export.is_read_only() { Access::ReadOnly } else { options.access };
        let cannot = |e| Error::io("cannot make a device of the kernel's NBD client", e);
        let (ours, theirs) = UnixStream::pair().map_err(cannot)?;
        let served = Inside::start(export, access, ours)?;
        let watching = watchdog.start(&record.identity)?;
        let wanted = Wanted {
            size: export.size(),
            block_size: options.sector_size.unwrap_or(BLOCK_SIZE),
            flags: transmission_flags(access),
            socket: theirs.as_fd(),
            identity: &record.identity,
        };
        let index = match control.connect(&wanted) {
            Ok(index) => index,
            Err(e) => {
                drop(theirs);
                served.end();
                watching.end();
                return Err(cannot(e));
            }
        };
        let path = path_of(index);
        let noted = record.note(&path);
        let device = Self { control, index, path, export: Arc::clone(export), record, served, watching };
        if noted.is_ok() && device.is_usable() {
            // Wishes: where the kernel does not take them, large requests are slower.
            fs::write(of_kernel(index, "queue/max_sectors_kb"), REQUEST_KB).ok();
            fs::write(of_kernel(index, "queue/read_ahead_kb"), READ_AHEAD_KB).ok();
            return Ok(Some(device));
        }
        tracing::warn!(device = %device.path.display(), "the kernel's NBD client cannot be used: too old, or no device below /dev");
        device.disconnect()?;
        device.end()?;
        noted.map(|()| None)
    }

    /// `/dev/nbdN`.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nobody took it away.
    pub(super) fn is_attached(&self) -> bool {
        backend(self.index).is_some_and(|backend| backend == self.record.identity)
    }

    /// Gives it the size the export has.
    pub(super) fn resize(&self) -> Result<()> {
        let size = self.export.size();
        self.control
            .resize(self.index, &self.record.identity, size)
            .map_err(|e| Error::io("the kernel did not take the new size", e).with("size", size))
    }

    /// Takes it away unless somebody uses it.
    pub(super) fn detach(&self) -> Result<()> {
        let claim = Claim::take(&self.path)?;
        self.disconnect()?;
        drop(claim);
        wait_until_gone(&self.path, || self.is_attached())
    }

    /// Takes it away from those who use it.
    pub(super) fn abort(&self) -> Result<()> {
        if self.is_attached() { self.disconnect() } else { Ok(()) }
    }

    /// Serves it no more. The kernel has let go of it.
    pub(super) fn end(self) -> Result<()> {
        self.served.end();
        self.watching.end();
        self.record.remove()
    }

    fn disconnect(&self) -> Result<()> {
        self.control
            .disconnect(self.index)
            .map_err(|e| Error::io("cannot disconnect a device", e).with("device", self.path.display()))
    }

    /// Whether the kernel tells whose it is, and it can be opened.
    fn is_usable(&self) -> bool {
        let until = Instant::now() + NODE_WAIT;
        while self.is_attached() {
            if self.path.exists() {
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            thread::sleep(POLL);
        }
        false
    }
}

impl Record {
    /// Makes one, of a device that is not there yet.
    fn make(directory: &Path) -> Result<Self> {
        let path = directory.join(RECORD);
        let cannot = |e| Error::io("cannot note a device", e).with("file", path.display());
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let identity = format!("ferry {} {since:x}", std::process::id());
        let mut file = File::create_new(&path).map_err(cannot)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| cannot(e.into()))?;
        file.write_all(identity.as_bytes()).map_err(cannot)?;
        Ok(Self { path, identity, file })
    }

    /// Notes where the device is.
    fn note(&mut self, device: &Path) -> Result<()> {
        writeln!(self.file, "\n{}", device.display())
            .map_err(|e| Error::io("cannot note a device", e).with("file", self.path.display()))
    }

    fn remove(self) -> Result<()> {
        remove(&self.path)
    }
}

/// What became of a mapping of this kind that is told of in a directory.
#[derive(Debug)]
pub(super) enum Found {
    /// There is none.
    None,
    /// Its process lives.
    Alive,
    /// Its process is dead. These were its devices; they are disconnected, and its record gone.
    Cleared(Vec<PathBuf>),
}

/// Looks for a mapping in `directory`, and clears it away where its process is dead.
///
/// # Errors
/// Those of the system.
///
/// # Crash safety
/// The record goes last.
pub(super) fn clear_stale(directory: &Path) -> Result<Found> {
    let path = directory.join(RECORD);
    let cannot = |e| Error::io("cannot read which device is mapped", e).with("file", path.display());
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::None),
        Err(e) => return Err(cannot(e)),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Found::Alive),
        Err(e) => return Err(cannot(e.into())),
    }
    let text = io::read_to_string(&file).map_err(cannot)?;
    let mut lines = text.lines();
    // One that died before it had a name for its device has none.
    let disconnected = lines.next().map_or_else(|| Ok(Vec::new()), disconnect_all)?;
    // Its watchdog may have been here before.
    let noted = lines.next().map(PathBuf::from).filter(|device| !disconnected.contains(device));
    remove(&path)?;
    Ok(Found::Cleared(disconnected.into_iter().chain(noted).collect()))
}

/// Takes the devices that say so away from the process that serves them: requests under way and later ones fail.
///
/// # Errors
/// Those of the kernel.
pub(super) fn disconnect_all(identity: &str) -> Result<Vec<PathBuf>> {
    let cannot = |e| Error::io("cannot disconnect a device", e);
    let mut disconnected = Vec::new();
    let mut control = None;
    for index in indices() {
        if backend(index).is_none_or(|backend| backend != identity) {
            continue;
        }
        let control = match &mut control {
            Some(control) => control,
            none => none.insert(Control::open().map_err(cannot)?),
        };
        control.disconnect(index).map_err(cannot)?;
        disconnected.push(path_of(index));
    }
    Ok(disconnected)
}

/// The numbers of all devices there are.
fn indices() -> Vec<u32> {
    let Ok(entries) = fs::read_dir(BLOCK_DEVICES) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| name.strip_prefix(PREFIX)?.parse().ok()).collect()
}

fn path_of(index: u32) -> PathBuf {
    PathBuf::from(format!("/dev/{PREFIX}{index}"))
}

/// What the kernel says of a device that is connected: whose it is.
fn backend(index: u32) -> Option<String> {
    let text = fs::read_to_string(of_kernel(index, "backend")).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}

/// A file in which the kernel tells of a device.
fn of_kernel(index: u32, what: &str) -> PathBuf {
    Path::new(BLOCK_DEVICES).join(format!("{PREFIX}{index}")).join(what)
}

/// The way to the kernel's client, which is loaded where it is not; `None` where there is none.
fn open_control() -> Result<Option<Control>> {
    if !Path::new(MODULE).exists() {
        // Whether it is there now is seen below.
        let mut modprobe = Command::new("modprobe");
        modprobe.args(["--quiet", "nbd"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        modprobe.status().ok();
    }
    match Control::open() {
        Ok(control) => Ok(Some(control)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("cannot ask for the kernel's NBD client", e)),
    }
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path)
        .map_err(|e| Error::io("cannot remove the note of a device", e).with("file", path.display()))
}
