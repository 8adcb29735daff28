//! Formats that the machine's `qemu-nbd` reads for us.
//!
//! Invariants
//! - The server is started read-only, with the format named, for one file; its socket lies in a private directory. It ends with its
//!   last client, so also when this process is killed.
//! - What it read is handed out only when the file was seen to be unchanged afterwards.
//! - A file that names other files is refused, unless the spec names them: QEMU opens what a file tells it to.

#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use ferry_core::{BlockSource, DeviceExtent, Error, ErrorKind, Reply, Result};
use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

use crate::env::Env;
use crate::format::raw::Raw;
use crate::spec::{FileSpec, ImageSpec, NbdSpec, QemuFormat, StreamSpec};
use crate::stream::{self, Stream};

/// Connections the server takes at once: those of a stream, and room for one that is being replaced.
const CLIENTS: &str = "16";

/// Opens an image of a format that QEMU knows.
///
/// # Errors
/// `Unsupported` where the image is not in a file, needs another one, or QEMU is not there; `Corrupt` for what QEMU refuses.
pub(crate) async fn open(spec: &ImageSpec, format: QemuFormat, env: &Env) -> Result<Arc<dyn BlockSource>> {
    let mut files = Vec::new();
    let mut paths = Vec::new();
    for place in [&spec.stream].into_iter().chain(&spec.data_file) {
        let StreamSpec::File(FileSpec { path }) = place else {
            return Err(Error::unsupported("an image of this format has to be in a file of this machine")
                .with("format", format.name())
                .with("place", place.place()));
        };
        // Without a colon in front of a slash it cannot be taken for a protocol of QEMU's.
        let path = std::path::absolute(path)
            .map_err(|e| Error::io("cannot find the directory this process is in", e))?;
        files.push(stream::open(&StreamSpec::File(FileSpec { path: path.clone() }), env).await?);
        paths.push(path);
    }
    let accepts = spec.accept_corrupt;
    let server = env.blocking(move || {
        check_files(format, &paths, accepts)?;
        Server::start(format, &paths[0])
    });
    let server = server.await?;
    let uri = format!("nbd+unix:///?socket={}", server.socket().display());
    let served = stream::open(&StreamSpec::Nbd(NbdSpec { uri, ca_file: None }), env).await?;
    let watched = Watched { served, files, format, _server: Arc::new(server) };
    // The server opened the file after it was pinned here; it was the same one then.
    for file in &watched.files {
        file.read(0, 0).await?;
    }
    Ok(Arc::new(Raw::new(Arc::new(watched), Vec::new())))
}

/// Runs one of QEMU's programs to its end.
fn run(program: &str, arguments: &[&OsStr]) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command.output().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            Error::unsupported("QEMU's programs read images of this format, and are not installed")
                .with("program", program)
        }
        _ => Error::io("cannot run a program of QEMU's", e).with("program", program),
    })
}

/// An error with what a program said on its last line.
fn refused(output: &Output, path: &Path) -> Error {
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it did not say why").to_owned();
    Error::corrupt("QEMU does not open the image").with("file", path.display()).with("because", last)
}

/// Refuses an image that leads QEMU to other files than the given ones.
fn check_files(format: QemuFormat, paths: &[PathBuf], accepts_corrupt: bool) -> Result<()> {
    let path = &paths[0];
    let arguments = ["info", "-U", "-f", format.name(), "--output=json"].map(OsStr::new);
    let output = run("qemu-img", &[&arguments[..], &[path.as_os_str()]].concat())?;
    if !output.status.success() {
        return Err(refused(&output, path));
    }
    let info: Value = serde_json::from_slice(&output.stdout)
        .map_err(|e| Error::new(ErrorKind::Internal, "QEMU does not say what the image is").because(e))?;
    if info["dirty-flag"] == true && !accepts_corrupt {
        return Err(Error::corrupt(
            "the image was not closed, or is damaged: repair it, or say accept_corrupt",
        )
        .with("file", path.display()));
    }
    let extents = info["format-specific"]["data"]["extents"].as_array();
    let named = extents.into_iter().flatten().map(|extent| &extent["filename"]);
    let other = named.chain([&info["backing-filename"]]).filter_map(Value::as_str);
    let mut unused = &paths[1..];
    for name in other {
        let whole = std::path::absolute(name).unwrap_or_else(|_| PathBuf::from(name));
        if unused.contains(&whole) {
            unused = &[];
        }
        if !paths.contains(&whole) {
            return Err(Error::unsupported(
                "the image needs another file, which the spec has to name: a file does not decide itself what is opened",
            )
            .with("file", path.display())
            .with("wanted", format!("{name:?}")));
        }
    }
    if let Some(file) = unused.first() {
        return Err(
            Error::invalid("the image has no such file, the spec names one").with("file", file.display())
        );
    }
    Ok(())
}

/// A `qemu-nbd` that serves one image.
#[derive(Debug)]
struct Server {
    /// With its socket, and the number of its process while it lives.
    directory: TempDir,
}

impl Server {
    /// Starts a server; when this returns it can be connected to.
    fn start(format: QemuFormat, path: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("ferry-")
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir()
            .map_err(|e| Error::io("cannot make a directory for a socket", e))?;
        let server = Self { directory };
        let (socket, pid) = (server.socket(), server.pid_file());
        let arguments = [
            OsStr::new("--fork"),
            OsStr::new("--read-only"),
            OsStr::new("--format"),
            OsStr::new(format.name()),
            OsStr::new("--shared"),
            OsStr::new(CLIENTS),
            OsStr::new("--socket"),
            socket.as_os_str(),
            OsStr::new("--pid-file"),
            pid.as_os_str(),
            path.as_os_str(),
        ];
        let output = run("qemu-nbd", &arguments)?;
        if output.status.success() { Ok(server) } else { Err(refused(&output, path)) }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn pid_file(&self) -> PathBuf {
        self.directory.path().join("pid")
    }
}

impl Drop for Server {
    /// Ends the server, also one that nobody connected to. It takes the file with its number away when it ends by itself.
    fn drop(&mut self) {
        let number = std::fs::read_to_string(self.pid_file()).ok().and_then(|text| text.trim().parse().ok());
        if let Some(pid) = number.and_then(Pid::from_raw)
            && let Err(e) = rustix::process::kill_process(pid, Signal::TERM)
        {
            tracing::debug!(error = %e, "qemu-nbd was gone");
        }
    }
}

/// What a server offers, as long as the files it reads are the ones that were opened.
#[derive(Debug)]
struct Watched {
    served: Arc<dyn Stream>,
    /// The image and what belongs to it.
    files: Vec<Arc<dyn Stream>>,
    format: QemuFormat,
    /// Lives as long as this does.
    _server: Arc<Server>,
}

impl Watched {
    /// An answer that counts if the files are unchanged when it is there.
    fn checked<T: Send + Unpin + 'static>(&self, reply: Reply<T>) -> Reply<T> {
        let files = self.files.clone();
        Reply::pending(async move {
            let answer = reply.await;
            for file in files {
                file.read(0, 0).await?;
            }
            answer
        })
    }
}

impl Stream for Watched {
    fn size(&self) -> u64 {
        self.served.size()
    }

    fn read(&self, offset: u64, length: u64) -> Reply<Bytes> {
        self.checked(self.served.read(offset, length))
    }

    fn extents(&self, offset: u64, length: u64) -> Reply<Vec<DeviceExtent>> {
        self.checked(self.served.extents(offset, length))
    }

    fn gap(&self) -> u64 {
        self.served.gap()
    }

    fn pin(&self) -> String {
        let pins: Vec<String> = self.files.iter().map(|file| file.pin()).collect();
        format!("{} {}", self.format.name(), pins.join("; "))
    }

    fn describe(&self) -> String {
        self.files[0].describe()
    }
}
