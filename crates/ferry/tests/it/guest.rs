//! A machine that boots Linux from an image over NBD, and writes a file system to another.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::harness::{Home, root};

/// A machine that takes longer hangs. Emulated on a busy computer it takes half a minute.
const HANG: Duration = Duration::from_secs(180);

/// A disk that boots Linux; made once for a build directory, and again when its recipe changes.
fn bootable() -> PathBuf {
    let recipe = root().join("tests/guest/make-disk.sh");
    let shared = root().join("tests/guest/kernel.sh");
    let target = Path::new(env!("CARGO_BIN_EXE_ferry")).parent().unwrap().join("guest");
    let disk = target.join("linux.qcow2");
    let made = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    if made(&disk) < made(&recipe).max(made(&shared)) {
        let ended = Command::new(recipe).arg(&target).output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    disk
}

/// Commands of the README's way to a machine, and what they are said to print.
fn way() -> Vec<(String, Vec<String>)> {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let (_, after) = readme.split_once("<!-- a machine -->\n```console\n").expect("the way is marked");
    let mut steps: Vec<(String, Vec<String>)> = Vec::new();
    for line in after.split_once("```\n").unwrap().0.lines() {
        match line.strip_prefix("$ ") {
            Some(command) => steps.push((command.to_owned(), Vec::new())),
            None => steps.last_mut().expect("a command comes first").1.push(line.to_owned()),
        }
    }
    steps
}

/// A line of a user's shell.
fn shell(home: &Home, line: &str) -> Command {
    let path = format!("{}:{}", home.dir().display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    command.args(["-ec", line]).current_dir(home.dir()).env("FERRY_HOME", home.path("home"));
    command.env("PATH", path).stdin(Stdio::null());
    command
}

/// A program that is ended when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Boots the machine of a command line, emulated, with a second disk; what the guest said.
fn boot(home: &Home, command: &str, second: &str) -> String {
    let line = format!(
        "timeout {} {command} -drive {second} -accel tcg -nographic -no-reboot -nic none 2>&1",
        HANG.as_secs()
    );
    let output = shell(home, &line).output().unwrap();
    String::from_utf8_lossy(&output.stdout).replace('\r', "")
}

/// What the guest of `make-disk.sh` found.
fn verdict(said: &str) -> &str {
    let line = said.lines().find_map(|line| line.strip_prefix("GUEST: "));
    line.unwrap_or_else(|| panic!("the guest says nothing: {said}"))
}

#[test]
fn a_machine_boots_as_the_readme_says() {
    let home = Home::new();
    fs::copy(bootable(), home.path("disk.qcow2")).unwrap();
    let scratch = home.sparse_file("scratch.raw", 96 << 20, &[]);
    let mut steps = way();
    let (last, printed) = steps.pop().expect("there are steps");
    assert!(last.starts_with("ferry nbd ") && printed.len() == 2, "{last}: {printed:?}");
    for (line, printed) in steps {
        let output = shell(&home, &line).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        assert_eq!(String::from_utf8(output.stdout).unwrap().lines().collect::<Vec<_>>(), printed, "{line}");
    }
    let mut offer = Running(shell(&home, &format!("exec {last}")).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(offer.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let here = home.dir().display().to_string();
    let expected: Vec<String> = printed.iter().map(|line| line.replace("/home/you", &here)).collect();
    assert_eq!(lines.by_ref().take(2).collect::<Vec<_>>(), expected);
    let said = boot(&home, &expected[1], &format!("file={},format=raw,if=virtio", scratch.display()));
    assert_eq!(verdict(&said), "written 203 files", "{said}");
    Command::new("kill").args(["-INT", &offer.0.id().to_string()]).status().unwrap();
    assert!(offer.0.wait().unwrap().success());
    home.check();
}

#[test]
fn what_a_guest_wrote_is_whole_after_the_node_was_killed() {
    let home = Home::new();
    let convert = format!("qemu-img convert -O raw {} linux.raw", bootable().display());
    assert!(shell(&home, &convert).status().unwrap().success());
    home.ok("import linux.raw linux --no-progress");
    home.ok("create data --size 96M");
    let node = home.serve();
    let invited = home.ok("export add linux");
    let boots = invited.lines().nth(1).unwrap();
    let second = home.ok("export add data --name data");
    let second = format!("'file={},format=raw,if=virtio,discard=unmap'", second.lines().next().unwrap());
    let said = boot(&home, boots, &second);
    assert_eq!(verdict(&said), "written 203 files", "{said}");
    node.kill();
    home.check();
    let node = home.serve();
    let said = boot(&home, boots, &second);
    assert_eq!(verdict(&said), "verified 203 files", "{said}");
    assert_eq!(node.stop(), 0, "{}", home.log());
    // Without a machine too the image is a whole file system.
    home.ok("export data data.raw --no-progress");
    let output = shell(&home, "PATH=$PATH:/usr/sbin:/sbin e2fsck -f -n data.raw").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    home.check();
}

/// Runs a program in a machine whose kernel has an NBD client, with `ferry` and other files; what it said, where it succeeded.
fn in_guest(with: &[&Path], program: &Path, arguments: &[&str]) -> String {
    let ferry = Path::new(env!("CARGO_BIN_EXE_ferry"));
    let mut script = Command::new(root().join("tests/guest/run-tests.sh"));
    script.arg(ferry.parent().unwrap().join("guest"));
    for file in [ferry].iter().chain(with) {
        script.arg("--with").arg(file);
    }
    script.arg(program).args(arguments).env(crate::device::NBD, "1").env_remove("FERRY_TEST_CEPH");
    let output = script.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}\n{err}", output.status);
    said
}

/// The tests of devices once more, and of images that move below them, in such a machine.
#[test]
fn commands_map_devices_of_the_kernels_nbd_client() {
    // What writes, what tests are promised, and what they find that by.
    let with =
        ["/usr/bin/fio".into(), root().join("docs/SEMANTICS.md"), root().join("crates/ferry/Cargo.toml")];
    let with: Vec<&Path> = with.iter().map(PathBuf::as_path).collect();
    let said = in_guest(
        &with,
        &std::env::current_exe().unwrap(),
        &["device::", "live::a_file_system_mounted", "--test-threads=1", "--nocapture"],
    );
    assert!(!said.contains("SKIPPED "), "{said}");
    assert!(said.contains("test result: ok. 6 passed;"), "{said}");
}

/// The kernel's NBD client as anybody sets it up.
#[test]
fn the_kernels_nbd_client_uses_an_export() {
    let said = in_guest(&[], &root().join("tests/guest/nbd-client.sh"), &[env!("CARGO_BIN_EXE_ferry")]);
    assert!(said.contains("all is there"), "{said}");
}
