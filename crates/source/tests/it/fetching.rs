//! What is asked of a stream: little more than an image holds, in few requests.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ferry_core::{BlockSource, SourcePoint};
use ferry_source::ImageFormat;
use ferry_source::open::{Beside, over};

use crate::generate::Rng;
use crate::memory::MemoryStream;
use crate::qemu::{env, qemu_io, run, text};

/// 24 MiB that compress by half.
fn raw(directory: &Path) -> Vec<u8> {
    let mut rng = Rng(7);
    let words = (0..24 << 16).flat_map(|_| [rng.next().to_le_bytes(), [3; 8]].concat());
    let bytes: Vec<u8> = words.collect();
    std::fs::write(directory.join("raw"), &bytes).unwrap();
    bytes
}

fn opened(path: &Path) -> (Arc<MemoryStream>, Arc<dyn BlockSource>) {
    let file = Arc::new(MemoryStream::new(std::fs::read(path).unwrap()));
    let stream = Arc::clone(&file);
    (file, over(ImageFormat::Qcow2, stream, Beside::default(), &env()).wait().unwrap())
}

#[test]
fn compressed_clusters_that_lie_together_are_fetched_together_and_once() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = raw(directory.path());
    let (raw, path) = (directory.path().join("raw"), directory.path().join("a.qcow2"));
    for kind in ["zlib", "zstd"] {
        let option = format!("compression_type={kind}");
        let convert = ["convert", "-f", "raw", "-O", "qcow2", "-c", "-o", &option, text(&raw), text(&path)];
        run("qemu-img", &convert);
        let (file, source) = opened(&path);
        let served_to_open = file.fetched.load(Ordering::Relaxed);
        assert!(served_to_open <= 256 << 10, "{served_to_open} bytes to open");
        for at in (0..24).map(|i| i << 20) {
            let got = source.read(SourcePoint::Head, at, 1 << 20).wait().unwrap().to_vec(at, 1 << 20);
            let from = usize::try_from(at).unwrap();
            assert!(got == bytes[from..from + (1 << 20)], "{kind} at {at}");
        }
        let (reads, fetched) = (file.reads.load(Ordering::Relaxed), file.fetched.load(Ordering::Relaxed));
        let size = file.bytes.len() as u64;
        assert!(fetched * 100 <= size * 105, "{kind}: {fetched} of {size} bytes");
        assert!(reads <= 48, "{kind}: {reads} requests for 24 MiB");
    }
}

#[test]
fn small_reads_one_after_the_other_fetch_a_compressed_cluster_once() {
    let directory = tempfile::tempdir().unwrap();
    raw(directory.path());
    let (raw, path) = (directory.path().join("raw"), directory.path().join("a.qcow2"));
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-c", text(&raw), text(&path)]);
    let (file, source) = opened(&path);
    source.read(SourcePoint::Head, 0, 512).wait().unwrap();
    let before = file.reads.load(Ordering::Relaxed);
    for at in (0..256).map(|i| i * 4096) {
        source.read(SourcePoint::Head, at, 4096).wait().unwrap();
    }
    let reads = file.reads.load(Ordering::Relaxed) - before;
    assert!(reads <= 16, "{reads} requests for 16 clusters");
}

#[test]
fn a_point_whose_clusters_lie_among_those_of_others_does_not_fetch_them_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", text(&path), "16M"]);
    // Clusters of two halves of the device take turns in the file.
    let writes = (0..128).flat_map(|i| {
        [format!("write -P 5 {} 64k", i * 65536), format!("write -P 6 {} 64k", (8 << 20) + i * 65536)]
    });
    qemu_io("qcow2", &path, &writes.collect::<Vec<_>>());
    let (file, source) = opened(&path);
    let before = file.fetched.load(Ordering::Relaxed);
    source.read(SourcePoint::Head, 0, 8 << 20).wait().unwrap();
    let fetched = file.fetched.load(Ordering::Relaxed) - before;
    assert!(fetched * 100 <= (8 << 20) * 105, "{fetched} bytes for 8 MiB");
}

#[test]
fn the_first_small_read_takes_two_requests_and_the_next_one_beside_it_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", text(&path), "100G"]);
    qemu_io("qcow2", &path, &["write -P 5 70G 1M".to_owned()]);
    let (file, source) = opened(&path);
    let mut reads = Vec::new();
    for at in [70 << 30, (70 << 30) + (512 << 10)] {
        let before = file.reads.load(Ordering::Relaxed);
        let got = source.read(SourcePoint::Head, at, 4096).wait().unwrap();
        assert_eq!(got.to_vec(at, 4096), [5; 4096]);
        reads.push(file.reads.load(Ordering::Relaxed) - before);
    }
    assert_eq!(reads, [2, 1]);
}
