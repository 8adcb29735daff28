//! Images of all kinds, made by QEMU's tools from a seed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::qemu::{qemu_io, run, text};

/// SplitMix64.
#[derive(Debug)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

/// What kinds of images a seed stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// qcow2 by itself, with snapshots, all cluster sizes, compressed or not.
    Alone,
    /// qcow2 over other images.
    Chain,
    /// qcow2 whose data is in another file.
    DataFile,
    /// qcow of version 1.
    Version1,
}

/// An image, and what is known of it.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) path: PathBuf,
    /// QEMU's name of the format.
    pub(crate) format: &'static str,
    /// Its spec.
    pub(crate) spec: Value,
    /// Names of its snapshots and sizes of the device then, oldest first.
    pub(crate) snapshots: Vec<(String, u64)>,
    /// How it was made, for messages.
    pub(crate) story: Vec<String>,
}

/// The spec of an image in a file.
pub(crate) fn spec_of(format: &str, path: &Path) -> Value {
    json!({"type": format, "stream": {"type": "file", "file_path": path}})
}

/// How the image under way is shaped.
#[derive(Debug)]
struct Shape {
    size: u64,
    cluster: u64,
    can_compress: bool,
    has_zeros: bool,
}

/// A size that is odd more often than not. Whole sectors: QEMU has no other.
fn size(rng: &mut Rng, cluster: u64) -> u64 {
    let clusters = 1 + rng.below(if cluster >= 1 << 19 { 6 } else { 40 });
    let largest = (clusters * cluster).min(12 << 20);
    match rng.below(4) {
        0 => largest.next_multiple_of(512),
        1 => 512 * (1 + rng.below(4)),
        _ => (largest.saturating_sub(512 * rng.below(cluster.div_ceil(512)))).max(512) / 512 * 512,
    }
}

/// A file of bytes that compress by half, for `qemu-io` to write from.
fn pattern(directory: &Path, rng: &mut Rng) -> PathBuf {
    let path = directory.join("pattern");
    if !path.exists() {
        let words = (0..8192).flat_map(|_| [rng.next().to_le_bytes(), [7; 8]].concat());
        std::fs::write(&path, words.collect::<Vec<u8>>()).unwrap();
    }
    path
}

/// Random commands for `qemu-io`.
fn commands(rng: &mut Rng, shape: &Shape, pattern: &Path) -> Vec<String> {
    let count = 1 + rng.below(8);
    let command = |rng: &mut Rng| {
        let longest = (4 * shape.cluster).min(shape.size);
        let length = 1 + rng.below(longest);
        let offset = rng.below(shape.size - length + 1);
        let fill = if rng.one_in(3) {
            format!("-P {}", 1 + rng.below(255))
        } else {
            format!("-s {}", pattern.display())
        };
        let aligned = (offset / shape.cluster * shape.cluster, length.next_multiple_of(shape.cluster));
        let whole = aligned.1.min(shape.size - aligned.0).max(1);
        match rng.below(9) {
            0 if shape.has_zeros => format!("write -z {offset} {length}"),
            1 if shape.has_zeros => format!("write -z -u {offset} {length}"),
            2 if shape.has_zeros => format!("write -z -u {} {whole}", aligned.0),
            3 => format!("discard {} {whole}", aligned.0),
            4..=6 if shape.can_compress => {
                let one = shape.cluster.min(shape.size - aligned.0);
                format!("write -c {fill} {} {one}", aligned.0)
            }
            7 => format!("write {fill} {} {whole}", aligned.0),
            _ => format!("write {fill} {offset} {length}"),
        }
    };
    (0..count).map(|_| command(rng)).collect()
}

/// Makes the image of a seed in a directory of its own.
pub(crate) fn make(kind: Kind, seed: u64, directory: &Path) -> Made {
    let mut rng = Rng(seed);
    match kind {
        Kind::Alone => qcow2(&mut rng, directory, "image.qcow2", None),
        Kind::Chain => chain(&mut rng, directory),
        Kind::DataFile => data_file(&mut rng, directory),
        Kind::Version1 => version_1(&mut rng, directory),
    }
}

/// A qcow2 image over the given one, or by itself.
fn qcow2(rng: &mut Rng, directory: &Path, name: &str, below: Option<&Made>) -> Made {
    let path = directory.join(name);
    let cluster: u64 = 1 << (9 + rng.below(13));
    let version = rng.pick(&["0.10", "1.1", "1.1", "1.1"]);
    let mut options = format!("compat={version},cluster_size={cluster}");
    if version == "1.1" {
        if cluster >= 16384 && rng.one_in(2) {
            options.push_str(",extended_l2=on");
        }
        if rng.one_in(2) {
            options.push_str(",compression_type=zstd");
        }
        if rng.one_in(4) {
            options.push_str(",lazy_refcounts=on");
        }
    }
    if below.is_none() && rng.one_in(5) {
        options.push_str(rng.pick(&[
            ",preallocation=metadata",
            ",preallocation=falloc",
            ",preallocation=full",
        ]));
    }
    let shape = Shape { size: size(rng, cluster), cluster, can_compress: true, has_zeros: true };
    let mut story = below.map(|b| b.story.clone()).unwrap_or_default();
    let size_text = shape.size.to_string();
    let mut create = vec!["create", "-q", "-f", "qcow2", "-o", &options];
    if let Some(below) = below {
        create.extend(["-F", below.format, "-b", text(&below.path)]);
    }
    create.extend([text(&path), &size_text]);
    story.push(format!("qemu-img {create:?}"));
    run("qemu-img", &create);
    let mut made =
        Made { spec: spec_of("qcow2", &path), path, format: "qcow2", snapshots: Vec::new(), story };
    if let Some(below) = below {
        made.spec["backing"] = below.spec.clone();
    }
    // Version 2 cannot hide what is below new space, and its snapshots do not know their sizes.
    let sizes = match (version, below) {
        ("1.1", _) => Sizes::Change,
        (_, None) => Sizes::ChangeWithoutSnapshots,
        (_, Some(_)) => Sizes::Stay,
    };
    fill(rng, shape, sizes, &mut made, &pattern(directory, &mut Rng(1)));
    made
}

/// Whether the size of a device may be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sizes {
    Change,
    ChangeWithoutSnapshots,
    Stay,
}

/// Writes, takes snapshots and changes the size, as the seed says.
fn fill(rng: &mut Rng, mut shape: Shape, sizes: Sizes, made: &mut Made, pattern: &Path) {
    for round in 0..=rng.below(4) {
        let commands = commands(rng, &shape, pattern);
        made.story.extend(commands.iter().cloned());
        qemu_io("qcow2", &made.path, &commands);
        if rng.one_in(2) {
            let name = format!("s{round}");
            made.story.push(format!("snapshot {name}"));
            run("qemu-img", &["snapshot", "-c", &name, text(&made.path)]);
            made.snapshots.push((name, shape.size));
        }
        let may = match sizes {
            Sizes::Change => true,
            Sizes::ChangeWithoutSnapshots => made.snapshots.is_empty(),
            Sizes::Stay => false,
        };
        if rng.one_in(3) && may {
            let larger = rng.one_in(2) || shape.size <= 2048;
            let by = 512 * (1 + rng.below(shape.size / 1024 + 1));
            let size = if larger { shape.size + by } else { shape.size - by };
            let text_of_size = size.to_string();
            let mut resize = Command::new("qemu-img");
            resize.args(["resize", "-q", "--shrink", text(&made.path), &text_of_size]);
            // QEMU cannot always hide what is below new space; then the image is as it was.
            if resize.stderr(Stdio::null()).status().unwrap().success() {
                made.story.push(format!("resize {size}"));
                shape.size = size;
            } else {
                assert!(made.spec.get("backing").is_some() && larger, "{resize:?}");
                made.story.push(format!("not resized to {size}"));
            }
        }
    }
    if sizes == Sizes::Change && rng.one_in(4) {
        made.story.push("dirty".to_owned());
        set_incompatible(&made.path, 1);
    }
}

/// Sets bits of the incompatible features, as an image that was not closed has one.
pub(crate) fn set_incompatible(path: &Path, bits: u8) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 79).unwrap();
    file.write_all_at(&[byte[0] | bits], 79).unwrap();
}

fn chain(rng: &mut Rng, directory: &Path) -> Made {
    let mut below = if rng.one_in(3) { raw(rng, directory) } else { qcow2(rng, directory, "0.qcow2", None) };
    for level in 1..=1 + rng.below(3) {
        below = qcow2(rng, directory, &format!("{level}.qcow2"), Some(&below));
    }
    below
}

fn raw(rng: &mut Rng, directory: &Path) -> Made {
    let path = directory.join("0.raw");
    let shape = Shape { size: size(rng, 65536), cluster: 65536, can_compress: false, has_zeros: true };
    run("qemu-img", &["create", "-q", "-f", "raw", text(&path), &shape.size.to_string()]);
    let commands = commands(rng, &shape, &pattern(directory, &mut Rng(1)));
    qemu_io("raw", &path, &commands);
    Made { spec: spec_of("raw", &path), path, format: "raw", snapshots: Vec::new(), story: commands }
}

fn data_file(rng: &mut Rng, directory: &Path) -> Made {
    let (path, data) = (directory.join("image.qcow2"), directory.join("data.bin"));
    let cluster: u64 = 1 << (9 + rng.below(13));
    let shape = Shape { size: size(rng, cluster), cluster, can_compress: false, has_zeros: true };
    let mut options = format!("cluster_size={cluster},data_file={}", data.display());
    if rng.one_in(2) {
        options.push_str(",data_file_raw=on");
    }
    if cluster >= 16384 && rng.one_in(2) {
        options.push_str(",extended_l2=on");
    }
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, text(&path), &shape.size.to_string()]);
    let commands = commands(rng, &shape, &pattern(directory, &mut Rng(1)));
    qemu_io("qcow2", &path, &commands);
    let mut spec = spec_of("qcow2", &path);
    spec["data_file"] = json!({"type": "file", "file_path": data});
    let story = [vec![options, shape.size.to_string()], commands].concat();
    Made { spec, path, format: "qcow2", snapshots: Vec::new(), story }
}

fn version_1(rng: &mut Rng, directory: &Path) -> Made {
    let path = directory.join("image.qcow");
    let below = rng.one_in(3).then(|| raw(rng, directory));
    let shape = Shape { size: size(rng, 65536), cluster: 4096, can_compress: true, has_zeros: false };
    let size_text = shape.size.to_string();
    let mut create = vec!["create", "-q", "-f", "qcow"];
    if let Some(below) = &below {
        create.extend(["-F", "raw", "-b", text(&below.path)]);
    }
    create.extend([text(&path), &size_text]);
    run("qemu-img", &create);
    // With a backing file QEMU makes clusters of a sector, without one of 4 KiB.
    let cluster = if below.is_some() { 512 } else { 4096 };
    let shape = Shape { cluster, ..shape };
    let commands = commands(rng, &shape, &pattern(directory, &mut Rng(1)));
    let commands: Vec<String> = commands.into_iter().filter(|c| !c.starts_with("discard")).collect();
    if !commands.is_empty() {
        qemu_io("qcow", &path, &commands);
    }
    let mut spec = spec_of("qcow", &path);
    let mut story = vec![format!("{create:?}")];
    if let Some(below) = below {
        spec["backing"] = below.spec;
        story.extend(below.story);
    }
    story.extend(commands);
    Made { spec, path, format: "qcow", snapshots: Vec::new(), story }
}
