//! Directories of mounts, and loop devices on files in them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use ferry_core::{Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, flock};

use super::Options;
use crate::fuse::Access;

/// The program that sets loop devices up, of util-linux.
const LOSETUP: &str = "losetup";

/// Where the kernel tells of its block devices.
pub(super) const BLOCK_DEVICES: &str = "/sys/block";

/// How long a device may take to go once nobody uses it: the kernel closes it a little later, and `udev` may look at it meanwhile.
const GONE_WAIT: Duration = Duration::from_secs(5);

/// Between two looks.
pub(super) const POLL: Duration = Duration::from_millis(10);

/// Kilobytes that the kernel reads ahead of one who reads the device through the page cache; its own choice is 128, and a request
/// takes 1024.
pub(super) const READ_AHEAD_KB: &str = "1024";

/// Name of the lock among the directories.
const LOCK_NAME: &str = "lock";

/// Directories made at most.
const DIRECTORIES_MAX: u32 = 4096;

/// Whether loop devices can be made.
///
/// # Errors
/// `Unsupported` where the kernel has none.
pub(super) fn check() -> Result<()> {
    if Path::new("/dev/loop-control").exists() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unsupported, "this system has no loop devices")
        .with("missing", "/dev/loop-control"))
}

/// Makes the directory in which mappings have theirs, where it is missing.
///
/// # Errors
/// Those of the operating system.
pub fn make_directory(directory: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|e| {
        Error::io("cannot make the directory of devices", e).with("directory", directory.display())
    })
}

/// The directory in which mappings have theirs.
#[derive(Debug)]
pub(super) struct Directories {
    directory: PathBuf,
}

impl Directories {
    /// Uses `directory`, made where it is missing.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        make_directory(directory)?;
        let directory = directory.canonicalize().map_err(|e| {
            Error::io("cannot use the directory of devices", e).with("directory", directory.display())
        })?;
        Ok(Self { directory })
    }

    /// Keeps others from making and clearing away at the same time, until it is dropped.
    pub(super) fn lock(&self) -> Result<File> {
        let path = self.directory.join(LOCK_NAME);
        let cannot = |e| Error::io("cannot lock the directory of devices", e).with("file", path.display());
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(cannot)?;
        flock(&file, FlockOperation::LockExclusive).map_err(|e| cannot(e.into()))?;
        Ok(file)
    }

    /// Makes one that nobody has.
    pub(super) fn make_one(&self) -> Result<PathBuf> {
        for number in 0..DIRECTORIES_MAX {
            let path = self.directory.join(number.to_string());
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(path),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => {
                    return Err(Error::io("cannot make a directory", e).with("directory", path.display()));
                }
            }
        }
        Err(Error::busy("too many devices are mapped").with("directory", self.directory.display()))
    }

    /// Removes one.
    pub(super) fn remove_one(&self, path: &Path) -> Result<()> {
        let _lock = self.lock()?;
        fs::remove_dir(path)
            .map_err(|e| Error::io("cannot remove a directory", e).with("directory", path.display()))
    }

    /// All there are.
    pub(super) fn all(&self) -> Result<Vec<PathBuf>> {
        let cannot =
            |e| Error::io("cannot list the mapped devices", e).with("directory", self.directory.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(cannot)? {
            let path = entry.map_err(cannot)?.path();
            if path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.parse::<u32>().is_ok()) {
                found.push(path);
            }
        }
        Ok(found)
    }
}

/// A loop device.
#[derive(Debug)]
pub(super) struct LoopDevice {
    path: PathBuf,
    /// The file it was put on, as the kernel names it.
    file: PathBuf,
}

impl LoopDevice {
    /// Puts a free one on `file`.
    pub(super) fn attach(file: &Path, options: &Options) -> Result<Self> {
        let mut arguments: Vec<String> = ["--find", "--show", "--direct-io=on"].map(str::to_owned).to_vec();
        if options.access == Access::ReadOnly {
            arguments.push("--read-only".to_owned());
        }
        if options.scan_partitions {
            arguments.push("--partscan".to_owned());
        }
        arguments.extend(options.sector_size.map(|size| format!("--sector-size={size}")));
        let mut command = Command::new(LOSETUP);
        let output = run(command.args(&arguments).arg(file))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let device = Self { path: PathBuf::from(text.trim()), file: file.to_owned() };
        // A wish: where the kernel does not take it, reading through the page cache is slower.
        fs::write(device.of_kernel("queue/read_ahead_kb"), READ_AHEAD_KB).ok();
        Ok(device)
    }

    /// All that are on `file`, whoever put them there.
    pub(super) fn all_on(file: &Path) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(BLOCK_DEVICES) else { return Vec::new() };
        let names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
        let devices = names
            .filter(|n| n.starts_with("loop"))
            .map(|name| Self { path: Path::new("/dev").join(name), file: file.to_owned() });
        devices.filter(Self::is_attached).collect()
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is on its file still.
    pub(super) fn is_attached(&self) -> bool {
        let Ok(text) = fs::read_to_string(self.of_kernel("loop/backing_file")) else { return false };
        Path::new(text.trim_end_matches('\n')) == self.file
    }

    /// Has the kernel look at the size of the file again.
    pub(super) fn resize(&self, file: &Path) -> Result<()> {
        // The kernel knows the size of a file as last asked for.
        let size =
            fs::metadata(file).map_err(|e| Error::io("cannot ask for the size of the export", e))?.len();
        run(Command::new(LOSETUP).arg("--set-capacity").arg(&self.path))?;
        let blocks = fs::read_to_string(self.of_kernel("size")).unwrap_or_default();
        if blocks.trim().parse::<u64>().ok() == Some(size / 512) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Internal, "the kernel did not take the new size")
            .with("device", self.path.display())
            .with("size", size))
    }

    /// Takes it off its file, at once or when the last one who has it open closes it.
    pub(super) fn detach(&self) -> Result<()> {
        if self.is_attached() { self.let_go() } else { Ok(()) }
    }

    /// The same, for one that is known to be on its file.
    pub(super) fn let_go(&self) -> Result<()> {
        run(Command::new(LOSETUP).arg("--detach").arg(&self.path)).map(drop)
    }

    /// Waits until it is off its file.
    pub(super) fn wait_until_gone(&self) -> Result<()> {
        wait_until_gone(&self.path, || self.is_attached())
    }

    /// A file in which the kernel tells of it.
    fn of_kernel(&self, what: &str) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default();
        Path::new(BLOCK_DEVICES).join(name).join(what)
    }
}

/// Waits until a device that was let go of is not attached any more.
pub(super) fn wait_until_gone(device: &Path, is_attached: impl Fn() -> bool) -> Result<()> {
    let until = Instant::now() + GONE_WAIT;
    while is_attached() {
        if Instant::now() > until {
            return Err(Error::busy("somebody opened the device while it was being unmapped")
                .with("device", device.display()));
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// Runs a program, which must succeed.
fn run(command: &mut Command) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| {
        if e.kind() == std::io::ErrorKind::NotFound {
            Error::new(ErrorKind::Unsupported, "a program of util-linux is missing").with("program", &program)
        } else {
            Error::io("cannot run a program", e).with("program", &program)
        }
    })?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let kind = if said.contains("Permission denied") || said.contains("not permitted") {
        ErrorKind::Denied
    } else if said.contains("Invalid argument") || said.contains("sector size") {
        ErrorKind::Invalid
    } else {
        ErrorKind::Io
    };
    Err(Error::new(kind, "the loop device could not be changed").because(said))
}
