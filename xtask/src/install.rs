//! Installs what tests need from outside, where that can be done without asking: as root, with apt.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// A program tests run, and the Debian package it comes in.
const NEEDED: &[(&str, &str)] = &[
    ("qemu-img", "qemu-utils"),
    ("nbdinfo", "libnbd-bin"),
    ("psktool", "gnutls-bin"),
    ("nbdsh", "python3-libnbd"),
    ("nbdkit", "nbdkit"),
    ("nginx", "nginx-light"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("fio", "fio"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("losetup", "mount"),
    ("nbd-client", "nbd-client"),
    ("fstrim", "util-linux"),
    ("strace", "strace"),
    ("zsh", "zsh"),
    ("fish", "fish"),
    ("groff", "groff-base"),
    ("busybox", "busybox-static"),
    ("syslinux", "syslinux"),
    ("mcopy", "mtools"),
    ("mkfs.vfat", "dosfstools"),
    ("ceph-mon", "ceph-mon"),
    ("ceph-osd", "ceph-osd"),
    ("ceph-mgr", "ceph-mgr"),
    ("rbd", "ceph-common"),
];

/// QEMU's machine, wanted at the version of the other programs of QEMU.
const MACHINE: (&str, &str) = ("qemu-system-x86_64", "qemu-system-x86");

/// Whether a program is in the search path.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(Path::new).map(Path::to_path_buf);
    std::env::split_paths(&path).chain(system).any(|dir| dir.join(program).is_file())
}

/// Whether a whole Ceph can be started here.
pub(crate) fn has_ceph() -> bool {
    ["ceph-mon", "ceph-osd", "ceph-mgr", "rbd", "ceph"].into_iter().all(has)
}

/// Whether this process may install packages.
fn is_root() -> bool {
    let output = Command::new("id").arg("-u").stdin(Stdio::null()).output();
    output.is_ok_and(|o| o.stdout.trim_ascii() == b"0")
}

/// Runs `apt-get`, in silence. Whether it succeeded.
fn apt(arguments: &[&str]) -> bool {
    let mut command = Command::new("apt-get");
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// What a program prints; nothing where it fails.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}

/// Installs QEMU's machine at the version of `qemu-utils`, from the suite of backports where that is where they came from: its
/// address is that of the suite in use, and the list of sources is left as it is.
fn machine() -> io::Result<bool> {
    let version = said("dpkg-query", &["-W", "-f", "${Version}", "qemu-utils"]);
    let exact = format!("{}={version}", MACHINE.1);
    if apt(&["install", "-q", "-y", "--no-install-recommends", &exact]) {
        return Ok(true);
    }
    let targets =
        said("apt-get", &["indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"]);
    // The suite without a suffix is the release itself.
    let release =
        targets.lines().filter_map(|line| line.split_once(' ')).find(|(_, name)| !name.contains('-'));
    let Some((address, name)) = release else { return Ok(false) };
    let sources = std::env::temp_dir().join(format!("ferry-sources-{}", std::process::id()));
    std::fs::create_dir_all(sources.join("lists/partial"))?;
    for entry in std::fs::read_dir("/etc/apt/sources.list.d")? {
        let entry = entry?;
        std::fs::copy(entry.path(), sources.join(entry.file_name()))?;
    }
    let suite = format!("{name}-backports");
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    std::fs::write(
        sources.join("ferry-backports.list"),
        format!("deb [signed-by={keyring}] {address} {suite} main\n"),
    )?;
    let parts = format!("Dir::Etc::SourceParts={}", sources.display());
    let lists = format!("Dir::State::Lists={}", sources.join("lists").display());
    let with = ["-q", "-o", &parts, "-o", &lists];
    let installed = apt(&[&with[..], &["update"]].concat())
        && apt(&[&with[..], &["install", "-y", "--no-install-recommends", "-t", &suite, &exact]].concat());
    std::fs::remove_dir_all(&sources)?;
    Ok(installed)
}

/// Installs what is missing. What cannot be installed is told, and its tests say that they were skipped.
///
/// # Errors
/// Those of writing to stderr.
pub(crate) fn missing() -> io::Result<()> {
    let needed = NEEDED.iter().chain([&MACHINE]);
    let missing: Vec<&str> = needed.filter(|(p, _)| !has(p)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root() || !has("apt-get") {
        return writeln!(
            io::stderr(),
            "==> not installed: {} (as root, with apt, this command installs them)",
            missing.join(" ")
        );
    }
    writeln!(io::stderr(), "==> installing {}", missing.join(" "))?;
    apt(&["update", "-q"]);
    for package in missing {
        // One by one: a package that cannot be had must not keep the others away.
        let installed = if package == MACHINE.1 {
            machine()?
        } else {
            apt(&["install", "-q", "-y", "--no-install-recommends", package])
        };
        if !installed {
            writeln!(io::stderr(), "==> cannot install {package}")?;
        }
    }
    Ok(())
}
