//! Streams of diffs: what is refused, and with which number.

use bytes::Bytes;
use ferry_core::testing::{MemStore, test_env};
use ferry_core::{BlockDevice, Errno, Namespace, Result, Store};
use ferry_image::create::{CreateOptions, create};
use ferry_image::device::ImageDevice;
use ferry_image::diff::Granularity;
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::pool::Pool;
use ferry_image::progress::silent;
use ferry_image::snapshot;
use ferry_image::stream::{DiffHeader, DiffVersion, DiffWriter};
use ferry_image::transfer::export_diff::export_diff;
use ferry_image::transfer::import::{RawExtent, RawSource, ReadSource, import_raw};
use ferry_image::transfer::import_diff::import_diff;
use ferry_image::transfer::merge_diff::merge_diff;
use futures_executor::block_on;

async fn pool() -> Pool {
    let env = test_env(5);
    let store = MemStore::new(&env);
    store.create_pool("p").await.unwrap();
    Pool::open(store, env, "p", &Namespace::default()).await.unwrap()
}

async fn image(pool: &Pool, name: &str, size: u64) -> Result<Image> {
    create(pool, name, &CreateOptions { order: Some(14), ..CreateOptions::sized(size) }).await?;
    Image::open(pool, name, Opening::ReadWrite).await
}

async fn write(image: &Image, offset: u64, data: Vec<u8>) -> Result<()> {
    let device = ImageDevice::open(image.clone()).await?;
    device.write(offset, Bytes::from(data)).await
}

async fn bytes_of(image: &Image) -> Vec<u8> {
    let revision = image.revision().await.unwrap();
    revision.read_bytes(0, revision.size).await.unwrap().to_vec()
}

/// A diff of `records` (offset, bytes; no bytes for 100 zeros).
fn diff(from: Option<&str>, to: Option<&str>, size: u64, records: &[(u64, &[u8])]) -> Vec<u8> {
    let header = DiffHeader {
        from_snap: from.map(str::to_owned),
        to_snap: to.map(str::to_owned),
        is_protected: false,
        size: Some(size),
    };
    let mut writer = DiffWriter::new(Vec::new(), DiffVersion::V1, &header).unwrap();
    for (offset, bytes) in records {
        if bytes.is_empty() {
            writer.zero(*offset, 100).unwrap();
        } else {
            writer.write(*offset, bytes).unwrap();
        }
    }
    writer.finish().unwrap()
}

#[test]
fn a_diff_is_applied_between_its_two_snapshots_only() {
    block_on(async {
        let pool = pool().await;
        let mut target = image(&pool, "a", 1000).await.unwrap();
        let step = diff(Some("s1"), Some("s2"), 2000, &[(10, b"hello")]);
        let missing = import_diff(&step[..], &mut target, 4096, &mut silent).await.unwrap_err();
        assert_eq!(missing.errno(), Errno::EINVAL);
        snapshot::create(&mut target, "s1").await.unwrap();
        import_diff(&step[..], &mut target, 4096, &mut silent).await.unwrap();
        assert_eq!(target.header.size, 2000);
        assert!(target.header.user_snap("s2").is_ok());
        assert_eq!(&bytes_of(&target).await[8..17], b"\0\0hello\0\0");
        let again = import_diff(&step[..], &mut target, 4096, &mut silent).await.unwrap_err();
        assert_eq!(again.errno(), Errno::EEXIST);
    });
}

#[test]
fn a_diff_that_writes_outside_the_image_or_is_cut_short_is_refused() {
    block_on(async {
        let pool = pool().await;
        let mut target = image(&pool, "a", 0).await.unwrap();
        let outside = diff(None, Some("s"), 1000, &[(999, b"xy")]);
        let refused = import_diff(&outside[..], &mut target, 4096, &mut silent).await.unwrap_err();
        assert_eq!(refused.errno(), Errno::EINVAL);
        let whole = diff(None, Some("s"), 1000, &[(1, b"xy")]);
        let cut = import_diff(&whole[..whole.len() - 1], &mut target, 4096, &mut silent).await.unwrap_err();
        assert_eq!(cut.errno(), Errno::EBADMSG);
        assert!(target.header.user_snap("s").is_err(), "a broken diff makes no snapshot");
    });
}

#[test]
fn an_exported_diff_is_the_bytes_rbd_would_write() {
    block_on(async {
        let pool = pool().await;
        let mut source = image(&pool, "a", 65536).await.unwrap();
        write(&source, 0, vec![1; 8192]).await.unwrap();
        snapshot::create(&mut source, "s1").await.unwrap();
        write(&source, 4096, vec![2; 4096]).await.unwrap();
        source.refresh().await.unwrap();
        let exported =
            export_diff(&source, Some("s1"), Granularity::Exact, Vec::new(), &mut silent).await.unwrap();
        assert_eq!(exported, diff(Some("s1"), None, 65536, &[(4096, &[2; 4096])]));
        let missing = export_diff(&source, Some("no"), Granularity::Exact, Vec::new(), &mut silent).await;
        assert_eq!(missing.unwrap_err().errno(), Errno::ENOENT);
    });
}

#[test]
fn merging_lets_the_second_diff_win_and_wants_both_to_meet() {
    let first = diff(Some("a"), Some("b"), 1000, &[(0, &[1; 300]), (600, &[1; 300])]);
    let second = diff(Some("b"), Some("c"), 800, &[(100, &[2; 50]), (650, &[])]);
    let merged = merge_diff(&first[..], &second[..], Vec::new(), &mut silent).unwrap();
    let expected: &[(u64, &[u8])] =
        &[(0, &[1; 100]), (100, &[2; 50]), (150, &[1; 150]), (600, &[1; 50]), (650, &[]), (750, &[1; 50])];
    assert_eq!(merged, diff(Some("a"), Some("c"), 800, expected));
    let apart = merge_diff(&second[..], &first[..], Vec::new(), &mut silent).unwrap_err();
    assert_eq!(apart.errno(), Errno::EINVAL);
    let disorder = diff(Some("b"), Some("c"), 800, &[(100, b"x"), (50, b"x")]);
    let refused = merge_diff(&first[..], &disorder[..], Vec::new(), &mut silent).unwrap_err();
    assert_eq!(refused.errno(), Errno::EOPNOTSUPP);
}

/// A file with a hole.
struct Holey(Vec<RawExtent>);

impl RawSource for Holey {
    fn size(&self) -> Option<u64> {
        None
    }

    fn next_extent(&mut self) -> Result<Option<RawExtent>> {
        Ok((!self.0.is_empty()).then(|| self.0.remove(0)))
    }
}

#[test]
fn importing_grows_to_what_comes_and_stores_no_zeros() {
    block_on(async {
        let pool = pool().await;
        let mut target = image(&pool, "a", 16384).await.unwrap();
        let mut source = Holey(vec![
            RawExtent::Data { offset: 0, data: Bytes::from(vec![0; 16384]) },
            RawExtent::Hole { offset: 16384, length: 50_000 },
            RawExtent::Data { offset: 66_384, data: Bytes::from_static(b"end") },
        ]);
        import_raw(&mut source, &mut target, 4096, &mut silent).await.unwrap();
        assert_eq!(target.header.size, 66_387);
        assert!(bytes_of(&target).await.ends_with(b"end"));
        let data = |(_, name): &&(Namespace, std::sync::Arc<str>)| name.starts_with("rbd_data.");
        let page = pool.store.list_objects(pool.id(), None, None, 100).await.unwrap();
        assert_eq!(page.objects.iter().filter(data).count(), 1, "zeros are not stored");
        let mut short = image(&pool, "b", 10).await.unwrap();
        let mut longer = ReadSource::new(&[1_u8; 11][..], Some(10));
        let refused = import_raw(&mut longer, &mut short, 4096, &mut silent).await.unwrap_err();
        assert_eq!(refused.errno(), Errno::EINVAL);
    });
}
