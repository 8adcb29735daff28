//! Images and the program beside plain files and `cp`.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use ferry_core::{BlockDevice, Namespace, Store};
use ferry_engine::disk::FileDisk;
use ferry_engine::{Engine, Options};
use ferry_image::clone::{self, CloneFormat};
use ferry_image::create::{self, CreateOptions};
use ferry_image::device::ImageDevice;
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::pool::Pool;
use ferry_image::snapshot;
use futures_executor::block_on;

use crate::measure::{Numbers, ROUNDS, Report, drop_caches, env, median, timed};

/// Reads of a round.
const READS: u32 = 40_000;

type Done<T> = Result<T, String>;

#[expect(clippy::needless_pass_by_value, reason = "handed to map_err")]
fn text(e: ferry_core::Error) -> String {
    e.chain()
}

fn command(program: &Path, arguments: &[&str], home: &Path) -> Done<()> {
    let output = Command::new(program)
        .args(arguments)
        .env("FERRY_HOME", home)
        .output()
        .map_err(|e| format!("{}: {e}", program.display()))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{} {arguments:?}: {}", program.display(), String::from_utf8_lossy(&output.stderr)))
    }
}

/// `ferry import` and `ferry export` of a half-allocated 4 GiB file beside `cp --sparse=always` and `sync`.
pub(crate) fn import_export(directory: &Path, report: &mut Report) -> Done<()> {
    let ferry = std::env::current_exe().map_err(|e| e.to_string())?.with_file_name("ferry");
    let home = directory.join("home");
    let raw = directory.join("raw");
    let file = std::fs::File::create(&raw).map_err(|e| e.to_string())?;
    file.set_len(4 << 30).map_err(|e| e.to_string())?;
    let rng = Numbers::new(1);
    let data: Vec<u8> = (0..1 << 17).flat_map(|_| rng.below(u64::MAX).to_le_bytes()).collect();
    for mebibyte in (0..4096_u64).step_by(2) {
        file.write_all_at(&data, mebibyte << 20).map_err(|e| e.to_string())?;
    }
    file.sync_all().map_err(|e| e.to_string())?;
    command(&ferry, &["pool", "create", "bench"], &home)?;
    let (from, to) = (raw.display().to_string(), directory.join("out").display().to_string());
    let (mut import, mut export, mut copy) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        drop_caches();
        let ((), wall, _) = timed(|| command(&ferry, &["import", &from, "bench/a", "--no-progress"], &home))?;
        import.push(wall);
        drop_caches();
        let ((), wall, _) = timed(|| {
            command(&ferry, &["export", "bench/a", &to, "--no-progress"], &home)?;
            command(Path::new("sync"), &[&to], &home)
        })?;
        export.push(wall);
        command(Path::new("cmp"), &[&from, &to], &home)?;
        std::fs::remove_file(&to).map_err(|e| e.to_string())?;
        command(&ferry, &["rm", "bench/a", "--no-progress"], &home)?;
        drop_caches();
        let ((), wall, _) = timed(|| {
            command(Path::new("cp"), &["--sparse=always", &from, &to], &home)?;
            command(Path::new("sync"), &[&to], &home)
        })?;
        copy.push(wall);
        std::fs::remove_file(&to).map_err(|e| e.to_string())?;
    }
    let (import, export, copy) = (median(import), median(export), median(copy));
    report.line(format!(
        "4 GiB raw file, half allocated: import {import:.2} s, export {export:.2} s, cp --sparse=always and sync {copy:.2} s: {:.2} x and {:.2} x (at least 0.8)",
        copy / import,
        copy / export
    ));
    Ok(())
}

/// Warm reads through a chain of 100 clones beside reads of an image without parents.
pub(crate) fn clone_chain(directory: &Path, report: &mut Report) -> Done<()> {
    let size: u64 = 256 << 20;
    let disk = FileDisk::create(&directory.join("store")).map_err(text)?;
    let engine = Engine::create(Arc::new(disk), env(), Options::default()).map_err(text)?;
    engine.create_pool("bench").wait().map_err(text)?;
    let pool = block_on(Pool::open(engine, env(), "bench", &Namespace::default())).map_err(text)?;
    block_on(create::create(&pool, "c0", &CreateOptions::sized(size))).map_err(text)?;
    let open = |name: &str| -> Done<ImageDevice> {
        let image = block_on(Image::open(&pool, name, Opening::ReadWrite)).map_err(text)?;
        block_on(ImageDevice::open(image)).map_err(text)
    };
    let base = open("c0")?;
    let data = Bytes::from(vec![7; 4 << 20]);
    for offset in (0..size).step_by(4 << 20) {
        base.write(offset, data.clone()).wait().map_err(text)?;
    }
    base.flush().wait().map_err(text)?;
    block_on(base.close()).map_err(text)?;
    for depth in 0..100 {
        let (parent, child) = (format!("c{depth}"), format!("c{}", depth + 1));
        block_on(async {
            let mut image = Image::open(&pool, &parent, Opening::ReadWrite).await?;
            let snap = snapshot::create(&mut image, "s").await?;
            image.close().await?;
            let mut parent = Image::open(&pool, &parent, Opening::ReadOnly).await?;
            parent.at = snap;
            clone::create(&parent, &pool, &child, CloneFormat::V2, &CreateOptions::default()).await?;
            parent.close().await
        })
        .map_err(text)?;
    }
    let (shallow, deep) = (open("c0")?, open("c100")?);
    let read = |device: &ImageDevice, round: u64| -> Done<f64> {
        let rng = Numbers::new(round);
        let one = || device.read(rng.below(size >> 12) << 12, 4096).wait().map(drop).map_err(text);
        let ((), wall, _) = timed(|| (0..READS).try_for_each(|_| one()))?;
        Ok(wall / f64::from(READS) * 1e6)
    };
    read(&shallow, 0)?;
    read(&deep, 0)?;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS as u64 {
        a.push(read(&shallow, round)?);
        b.push(read(&deep, round)?);
    }
    let (a, b) = (median(a), median(b));
    report.line(format!(
        "4 KiB random reads, warm: {a:.2} us, through 100 clones {b:.2} us: {:.2} x (1.2 at most)",
        b / a
    ));
    Ok(())
}
