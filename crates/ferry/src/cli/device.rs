//! Verbs on images as block devices, and the process in the background that keeps them where no node does.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use ferry_core::Errno;
use ferry_node::api::{Command, DeviceCommand, Done, Failure, MapOptions, MappedBy, Response};

use super::args::{Context, Flag, Kind, Parsed, Usage, Verb, Word};
use super::spec::{self, FORMAT, IMAGE, IMAGE_OR_SNAP_WORD, SNAP};
use super::{Plan, exit};

/// Set for a process that is started in the background to keep mappings.
const HOLDS: &str = "FERRY_HOLDS_DEVICES";

/// How long to wait for a command that has the store.
const STORE_WAIT: Duration = Duration::from_secs(30);

/// The type of device.
const TYPE: &[Flag] = &[Flag::new(
    "device-type",
    Kind::Text,
    "to map: loop for a loop device even where the kernel has an NBD client; all else is accepted for the sake of scripts",
)
.short('t')];

/// Options as `rbd device` takes them.
const OPTIONS: &[Flag] =
    &[Flag::new("options", Kind::Text, "comma separated: ro, rw, sector_size=N, partscan; to unmap: force")
        .short('o')];

/// The verbs.
pub(crate) const VERBS: &[Verb] = &[
    Verb {
        name: "device list",
        alias: Some("device ls"),
        about: "List mapped images.",
        words: &[],
        flags: &[TYPE, FORMAT],
        remark: "",
        convert: |_, _| Plan::run(Command::Device(DeviceCommand::List { here: false })),
    },
    Verb {
        name: "device map",
        alias: None,
        about: "Map an image to a block device.",
        words: &[IMAGE_OR_SNAP_WORD],
        flags: &[
            TYPE,
            OPTIONS,
            IMAGE,
            SNAP,
            &[
                Flag::new("read-only", Kind::Switch, "map read-only"),
                Flag::new("exclusive", Kind::Switch, "accepted: the image's exclusive lock is always taken"),
            ],
        ],
        remark: "It prints the device. Where no node serves the image, a process in the background does until the device is\n\
                 unmapped. Needs root.\n",
        convert: map,
    },
    Verb {
        name: "device unmap",
        alias: None,
        about: "Unmap a block device.",
        words: &[Word::new(
            "image-or-snap-or-device-spec",
            "image, snapshot, or device specification\n\
             (example: [<pool-name>/[<namespace>/]]<image-name>[@<snap-name>] or /dev/loop<n>)",
        )],
        flags: &[TYPE, OPTIONS, IMAGE, SNAP],
        remark: "",
        convert: unmap,
    },
];

fn map(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let image = spec::image_or_snap(p, cx)?;
    let mut options = MapOptions {
        image,
        read_only: p.is_set("read-only"),
        sector_size: None,
        scan_partitions: false,
        is_loop: p.text("device-type").is_some_and(|kind| kind == "loop"),
    };
    for option in p.text("options").unwrap_or_default().split(',').filter(|o| !o.is_empty()) {
        match option.split_once('=') {
            None if ["ro", "read_only"].contains(&option) => options.read_only = true,
            None if option == "rw" => options.read_only = p.is_set("read-only"),
            None if option == "partscan" => options.scan_partitions = true,
            Some(("sector_size", bytes)) => {
                let bytes =
                    bytes.parse().ok().filter(|n: &u32| n.is_power_of_two() && (512..=4096).contains(n));
                let wrong = || Usage::invalid("sector_size is 512, 1024, 2048 or 4096");
                options.sector_size = Some(bytes.ok_or_else(wrong)?);
            }
            Some(_) | None => return Err(Usage::invalid(format!("unknown map option '{option}'"))),
        }
    }
    let command = if std::env::var_os(HOLDS).is_some() {
        DeviceCommand::Hold(options)
    } else {
        DeviceCommand::Map(options)
    };
    Plan::run(Command::Device(command))
}

fn unmap(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let mut force = false;
    for option in p.text("options").unwrap_or_default().split(',').filter(|o| !o.is_empty()) {
        match option {
            "force" => force = true,
            _ => return Err(Usage::invalid(format!("unknown unmap option '{option}'"))),
        }
    }
    let which = match p.peek_word() {
        Some(word) if word.starts_with("/dev/") => {
            MappedBy::Device(PathBuf::from(p.next_word().unwrap_or_default()))
        }
        Some(_) | None => MappedBy::Image(spec::image_or_snap(p, cx)?),
    };
    Plan::run(Command::Device(DeviceCommand::Unmap { which, force, here: false }))
}

/// Asks again while a command that ends soon has the store, and does not stay to serve a device.
pub(super) fn until_taken(
    first: Done<Response>,
    mut again: impl FnMut() -> Done<Response>,
) -> Done<Response> {
    let began = Instant::now();
    let mut result = first;
    while matches!(result, Ok(Response::Mapped(None))) {
        if began.elapsed() > STORE_WAIT {
            let text = "another command uses the store";
            return Err(Failure::plain(Errno::EBUSY, text).advise("nothing was changed; run it again later"));
        }
        std::thread::sleep(Duration::from_millis(100));
        result = again();
    }
    result
}

/// Has a process in the background do what this one was asked for, and stay; the device.
pub(super) fn hold() -> Result<String, exit::End> {
    let cannot = |e: io::Error| Failure {
        cause: e.to_string(),
        ..Failure::plain(
            Errno(e.raw_os_error().unwrap_or(Errno::EIO.0)),
            "cannot start the process that serves the device",
        )
    };
    let mut arguments = std::env::args_os();
    let mut process = Process::new(std::env::current_exe().map_err(cannot)?);
    if let Some(name) = arguments.next() {
        process.arg0(name);
    }
    let mut child = process
        .args(arguments)
        .env(HOLDS, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C is for us.
        .process_group(0)
        .spawn()
        .map_err(cannot)?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    if !line.is_empty() {
        return Ok(line.trim_end().to_owned());
    }
    let mut said = String::new();
    if let Some(mut err) = child.stderr.take() {
        err.read_to_string(&mut said)?;
    }
    let code = child.wait()?.code().unwrap_or(Errno::EIO.0);
    Err(exit::End::Told { text: said, code })
}
