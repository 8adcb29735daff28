//! Damaged images and specs: bytes or an error, never a panic, never memory or time without bound.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ferry_core::{BlockSource, ErrorKind, Result, SourcePoint};
use ferry_source::open::{Beside, over};
use ferry_source::{ImageFormat, SourceSpec};
use rustix::time::{ClockId, clock_gettime};

use crate::allocation;
use crate::generate::{Kind, Rng, make};
use crate::memory::MemoryStream;
use crate::qemu::{env, promises};

/// More than any damaged image may take: pages of tables, fetched pieces and decompressed clusters. Bytes.
const MEMORY_MAX: usize = 96 << 20;

/// More than any step of a damaged image may take. Of the processor's time, so that a machine that does other things, or was
/// halted, is not taken for a parser that finds no end; one that waits for ever hangs.
const STEP_MAX: Duration = Duration::from_secs(10);

/// The processor's time that this process has used.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

/// An image that is to be damaged.
#[derive(Debug)]
struct Whole {
    format: ImageFormat,
    bytes: Vec<u8>,
    has_backing: bool,
    data_file: Option<Bytes>,
}

/// Images of a kind, made by QEMU's tools.
fn whole_images(kind: Kind, count: u64) -> Vec<Whole> {
    let one = |seed| {
        let directory = tempfile::tempdir().unwrap();
        let made = make(kind, seed, directory.path());
        let data_file = made
            .spec
            .get("data_file")
            .map(|file| Bytes::from(std::fs::read(file["file_path"].as_str().unwrap()).unwrap()));
        Whole {
            format: if kind == Kind::Version1 { ImageFormat::Qcow } else { ImageFormat::Qcow2 },
            bytes: std::fs::read(&made.path).unwrap(),
            has_backing: made.spec.get("backing").is_some(),
            data_file,
        }
    };
    (1000..1000 + count).map(one).filter(|whole| whole.bytes.len() < 8 << 20).collect()
}

fn index(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

/// A place to damage: the header, tables it leads to, or anywhere.
fn place(rng: &mut Rng, bytes: &[u8]) -> usize {
    let length = bytes.len() as u64;
    let word = |at: usize| {
        let eight = bytes.get(at..at + 8).map_or(0, |b| u64::from_be_bytes(b.try_into().unwrap()));
        eight & 0x00ff_ffff_ffff_fe00
    };
    let near = |start: u64, rng: &mut Rng| start.saturating_add(rng.below(128));
    let at = match rng.below(8) {
        0..=2 => rng.below(112),
        3 => near(word(40), rng),
        4 => near(word(index(word(40)).min(bytes.len())), rng),
        5 => near(word(64), rng),
        6 => rng.below(1024),
        _ => rng.below(length),
    };
    index(at.min(length - 1))
}

/// Changes an image in one to six places, or cuts it off.
fn damage(rng: &mut Rng, bytes: &mut Vec<u8>) {
    const NUMBERS: [u64; 12] =
        [0, 1, 2, 511, 512, 0x1_0000, u32::MAX as u64, 1 << 31, 1 << 55, 1 << 62, i64::MAX as u64, u64::MAX];
    if rng.one_in(8) {
        let cut = rng.below(bytes.len() as u64);
        bytes.truncate(index(cut).max(1));
    }
    for _ in 0..1 + rng.below(6) {
        let at = place(rng, bytes);
        let number = if rng.one_in(3) { rng.next() >> rng.below(64) } else { rng.pick(&NUMBERS) };
        let wide = number.to_be_bytes();
        let put: &[u8] = match rng.below(4) {
            0 => &[bytes[at] ^ 1 << rng.below(8)],
            1 => &wide[7..],
            2 => &wide[4..],
            _ => &wide,
        };
        let at = if put.len() > 1 { at / put.len() * put.len() } else { at };
        let end = bytes.len().min(at + put.len());
        bytes[at..end].copy_from_slice(&put[..end - at]);
    }
}

/// What came of looking at a damaged image.
#[derive(Debug, Default)]
struct Tally {
    refused: u64,
    partly: u64,
    read: u64,
}

fn open(whole: &Whole, file: Arc<MemoryStream>) -> Result<Arc<dyn BlockSource>> {
    let backing = || {
        let bytes = Arc::new(MemoryStream::new(vec![0x5a; 1 << 20]));
        over(ImageFormat::Raw, bytes, Beside::default(), &env()).wait().unwrap()
    };
    let data_file = whole.data_file.clone().map(|bytes| Arc::new(MemoryStream::new(bytes)) as Arc<_>);
    let beside = Beside { backing: whole.has_backing.then(backing), data_file, accept_corrupt: true };
    over(whole.format, file, beside, &env()).wait()
}

/// Asks everything of an image at a few points, in ranges that are bounded as a caller bounds them.
fn look(source: &Arc<dyn BlockSource>, rng: &mut Rng) -> bool {
    let snapshots = source.snapshots().len();
    let mut points: Vec<SourcePoint> = (0..snapshots.min(3)).map(SourcePoint::Snapshot).collect();
    points.push(SourcePoint::Head);
    let mut whole = true;
    for at in &points {
        let size = source.size_at(*at);
        for _ in 0..3 {
            let offset = if rng.one_in(2) { 0 } else { rng.below(size.max(1)) };
            let length = (size - offset).min(1 << 20);
            match source.read(*at, offset, length).wait() {
                Ok(sparse) => {
                    let end = offset + length;
                    assert!(sparse.extents.iter().all(|(o, b)| o + b.len() as u64 <= end));
                }
                Err(e) => {
                    assert!(matches!(e.kind(), ErrorKind::Corrupt), "{e}");
                    whole = false;
                }
            }
            let length = (size - offset).min(32 << 20);
            whole &= source.extents(*at, offset, length).wait().is_ok();
        }
    }
    for pair in points.windows(2) {
        let size = source.size_at(pair[0]).min(source.size_at(pair[1]));
        whole &= source.changes(pair[0], pair[1], 0, size.min(32 << 20)).wait().is_ok();
    }
    whole
}

/// Seeds to try: from `FERRY_SEED` on, `FERRY_STEPS` of them or as many as `FERRY_SECONDS` of the processor's time are enough for.
fn seeds(usual: u64) -> impl Iterator<Item = u64> {
    let asked = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().unwrap());
    let first = asked("FERRY_SEED").unwrap_or(1);
    let (began, seconds) = (processor_time(), asked("FERRY_SECONDS"));
    let count = if seconds.is_some() { u64::MAX - first } else { asked("FERRY_STEPS").unwrap_or(usual) };
    let in_time = move |_: &u64| seconds.is_none_or(|s| processor_time() - began < Duration::from_secs(s));
    (first..first + count).take_while(in_time)
}

fn damaged_images(kind: Kind, usual: u64) {
    let images = whole_images(kind, if kind == Kind::Chain { 12 } else { 24 });
    assert!(images.len() >= 6, "{} images", images.len());
    let mut count = 0;
    let mut tally = Tally::default();
    let began = Instant::now();
    for seed in seeds(usual) {
        count += 1;
        let mut rng = Rng(seed);
        let whole = &images[index(rng.below(images.len() as u64))];
        let mut bytes = whole.bytes.clone();
        damage(&mut rng, &mut bytes);
        let file = Arc::new(MemoryStream::new(bytes));
        let (before, step) = (allocation::begin(), processor_time());
        match open(whole, Arc::clone(&file)) {
            Err(e) => {
                let known =
                    matches!(e.kind(), ErrorKind::Invalid | ErrorKind::Corrupt | ErrorKind::Unsupported);
                assert!(known, "seed {seed}: {e}");
                tally.refused += 1;
            }
            Ok(source) if look(&source, &mut rng) => tally.read += 1,
            Ok(_) => tally.partly += 1,
        }
        let used = allocation::most().saturating_sub(before);
        assert!(used < MEMORY_MAX, "seed {seed}: {used} bytes in use");
        assert!(processor_time() - step < STEP_MAX, "seed {seed}: {:?}", processor_time() - step);
        assert!(file.longest.load(Ordering::Relaxed) <= 5 << 20, "seed {seed}: a read that long");
    }
    println!("{kind:?}: {count} damaged images, {:?}: {tally:?}", began.elapsed());
    assert!(tally.refused > 0 && tally.partly > 0 && tally.read > 0, "damage of all kinds: {tally:?}");
}

#[test]
fn damaged_qcow2_images_give_bytes_or_an_error() {
    damaged_images(Kind::Alone, 12_000);
}

#[test]
fn damaged_overlays_give_bytes_or_an_error() {
    damaged_images(Kind::Chain, 6_000);
}

#[test]
fn damaged_images_with_a_data_file_give_bytes_or_an_error() {
    damaged_images(Kind::DataFile, 6_000);
}

#[test]
fn damaged_images_of_version_1_give_bytes_or_an_error() {
    damaged_images(Kind::Version1, 12_000);
}

#[test]
fn every_length_a_small_image_can_be_cut_to_gives_bytes_or_an_error() {
    promises(
        "A foreign image that is cut off gives right bytes or an error, never zeros for what is missing.",
    );
    let images = whole_images(Kind::Alone, 24);
    let whole = images.iter().min_by_key(|whole| whole.bytes.len()).unwrap();
    let expected = {
        let source = open(whole, Arc::new(MemoryStream::new(whole.bytes.clone()))).unwrap();
        source.read(SourcePoint::Head, 0, source.size()).wait().unwrap().to_vec(0, source.size())
    };
    let step = (whole.bytes.len() / 2000).max(1);
    for length in (0..whole.bytes.len()).step_by(step).chain(0..1200.min(whole.bytes.len())) {
        let file = Arc::new(MemoryStream::new(whole.bytes[..length].to_vec()));
        let Ok(source) = open(whole, file) else { continue };
        // What is answered is right, however little of the file is left.
        if let Ok(sparse) = source.read(SourcePoint::Head, 0, source.size()).wait() {
            assert!(sparse.to_vec(0, source.size()) == expected, "cut to {length} bytes");
        }
    }
}

const SPECS: [&str; 4] = [
    r#"{"type":"raw","stream":{"type":"s3","url":"https://h:9/b/k","access_key":"argonaut","secret_key":"butterfly","style":"path"}}"#,
    r#"{"type":"qcow","stream":{"type":"http","url":"http://u:chrysalis@h/p?dragonfly#f","headers":{"a":"earthworm"}},"backing":{"type":"raw","stream":{"type":"file","file_path":"x"}}}"#,
    r#"{"type":"native","pool_id":"3","image_name":"i","snap_id":9,"pool_namespace":""}"#,
    r#"{"type":"raw","stream":{"type":"nbd","uri":"nbd+unix:///e?socket=/s"},"snapshots":[{"type":"raw","name":"n","stream":{"type":"file","file_path":"/y"}}]}"#,
];

#[test]
fn damaged_specs_are_refused_or_hide_their_secrets() {
    let (mut count, mut accepted) = (0, 0);
    for seed in seeds(50_000) {
        count += 1;
        let mut rng = Rng(seed);
        let mut text = rng.pick(&SPECS).as_bytes().to_vec();
        for _ in 0..1 + rng.below(3) {
            let at = index(rng.below(text.len() as u64));
            match rng.below(3) {
                0 => text[at] = u8::try_from(rng.below(256)).unwrap(),
                1 => drop(text.remove(at)),
                _ => text.insert(at, rng.pick(b"{}[]\":,0@/?#%")),
            }
        }
        let Ok(text) = String::from_utf8(text) else { continue };
        let Ok(spec) = SourceSpec::parse(&text) else { continue };
        accepted += 1;
        assert_eq!(SourceSpec::parse(&spec.to_json()).unwrap(), spec, "{text}");
        let safe = spec.with_references(&mut |_, _| Ok("k".to_owned())).unwrap();
        for (told_by, secret) in SECRETS {
            // Where the damage left standing what says that it is a secret.
            if text.contains(told_by) {
                assert!(!spec.redacted().contains(secret), "{text} shows {secret}: {}", spec.redacted());
                assert!(!safe.to_json().contains(secret), "{text} keeps {secret}: {}", safe.to_json());
            }
        }
    }
    println!("{accepted} of {count} damaged specs were still specs");
    assert!(accepted > 100);
}

/// What says that something is a secret, and the secret.
const SECRETS: [(&str, &str); 5] = [
    (r#""access_key":"argonaut"#, "argonaut"),
    (r#""secret_key":"butterfly"#, "butterfly"),
    (r#""url":"http://u:chrysalis@h/p?dragonfly#f""#, "chrysalis"),
    (r#""url":"http://u:chrysalis@h/p?dragonfly#f""#, "dragonfly"),
    (r#""headers":{"a":"earthworm"#, "earthworm"),
];
