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
    ("fio", "fio"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("losetup", "mount"),
    ("fstrim", "util-linux"),
    ("ceph-mon", "ceph-mon"),
    ("ceph-osd", "ceph-osd"),
    ("ceph-mgr", "ceph-mgr"),
    ("rbd", "ceph-common"),
];

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

/// Installs what is missing. What cannot be installed is told, and its tests say that they were skipped.
///
/// # Errors
/// Those of writing to stderr.
pub(crate) fn missing() -> io::Result<()> {
    let missing: Vec<&str> = NEEDED.iter().filter(|(p, _)| !has(p)).map(|(_, package)| *package).collect();
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
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    apt(&["update", "-q"]);
    for package in missing {
        // One by one: a package that cannot be had must not keep the others away.
        if !apt(&["install", "-q", "-y", "--no-install-recommends", package]) {
            writeln!(io::stderr(), "==> cannot install {package}")?;
        }
    }
    Ok(())
}
