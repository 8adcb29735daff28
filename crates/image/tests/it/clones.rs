//! What a clone shows of its parent, and what it takes to stop.

use std::sync::Arc;

use bytes::Bytes;
use ferry_core::testing::{MemStore, test_env};
use ferry_core::{
    BlockDevice, Capabilities, Env, ErrorKind, ExtentState, Namespace, ReadOp, Result, SnapId, Store,
};
use ferry_image::clone::{self, CloneFormat};
use ferry_image::create::{CreateOptions, create};
use ferry_image::device::ImageDevice;
use ferry_image::diff::{Diff, DiffRequest, Granularity, ParentData};
use ferry_image::flatten::{Flattened, flatten};
use ferry_image::header::Opening;
use ferry_image::image::Image;
use ferry_image::layout::ObjectNo;
use ferry_image::pool::Pool;
use ferry_image::progress::silent;
use ferry_image::resize::{Shrinking, resize};
use ferry_image::usage::usage;
use ferry_image::{copy, rollback, snapshot};
use futures_executor::block_on;

/// Bytes in memory.
const OBJECT_LEN: usize = 16 << 10;
const OBJECT: u64 = OBJECT_LEN as u64;
const SIZE: u64 = 4 * OBJECT;

async fn pool_in(store: Arc<MemStore>, env: Env) -> Pool {
    store.create_pool("p").await.unwrap();
    Pool::open(store, env, "p", &Namespace::default()).await.unwrap()
}

/// A parent full of sevens with a snapshot, and its clone.
async fn family(share: bool) -> Result<Pool> {
    let env = test_env(3);
    let capabilities = Capabilities { share, copy: None, list_snaps: true, list_watchers: true };
    family_in(MemStore::with_capabilities(&env, capabilities), env).await
}

/// As [`family`], in any store.
async fn family_in(store: Arc<MemStore>, env: Env) -> Result<Pool> {
    let pool = pool_in(store, env).await;
    let options = CreateOptions { order: Some(14), ..CreateOptions::sized(SIZE) };
    create(&pool, "parent", &options).await?;
    write(&pool, "parent", 0, vec![7; 4 * OBJECT_LEN]).await?;
    let mut parent = open(&pool, "parent").await?;
    snapshot::create(&mut parent, "s").await?;
    parent.close().await?;
    let parent = Image::open(&pool, "parent", Opening::ReadOnly).await?.at_snapshot("s")?;
    clone::create(&parent, &pool, "child", CloneFormat::V2, &CreateOptions::default()).await?;
    Ok(pool)
}

async fn open(pool: &Pool, name: &str) -> Result<Image> {
    Image::open(pool, name, Opening::ReadWrite).await
}

async fn write(pool: &Pool, name: &str, offset: u64, data: Vec<u8>) -> Result<()> {
    let device = ImageDevice::open(open(pool, name).await?).await?;
    device.write(offset, Bytes::from(data)).await?;
    device.close().await
}

async fn discard(pool: &Pool, name: &str, offset: u64, length: u64) -> Result<()> {
    let device = ImageDevice::open(open(pool, name).await?).await?;
    device.discard(offset, length).await?;
    device.close().await
}

async fn snap(pool: &Pool, name: &str, snap: &str) -> Result<SnapId> {
    let mut image = open(pool, name).await?;
    let id = snapshot::create(&mut image, snap).await?;
    image.close().await?;
    Ok(id)
}

async fn set_size(pool: &Pool, name: &str, size: u64) -> Result<()> {
    let mut image = open(pool, name).await?;
    resize(&mut image, size, Shrinking::Allowed, &mut silent).await?;
    image.close().await
}

async fn flattened(pool: &Pool, name: &str) -> Result<Flattened> {
    let mut image = open(pool, name).await?;
    let outcome = flatten(&mut image, &mut silent).await?;
    image.close().await?;
    Ok(outcome)
}

/// The value all bytes of each object have, at one point of an image.
async fn objects_at(pool: &Pool, name: &str, at: SnapId) -> Result<Vec<u8>> {
    let image = Image::open(pool, name, Opening::ReadOnly).await?;
    let revision = image.revision_at(at).await?;
    let bytes = revision.read_bytes(0, revision.size).await?;
    let value = |object: &[u8]| {
        assert!(object.iter().all(|b| *b == object[0]), "an object of {name} holds a mix");
        object[0]
    };
    Ok(bytes.chunks(OBJECT_LEN).map(value).collect())
}

/// Size of a data object of HEAD; `None` where there is none.
async fn object_size(pool: &Pool, name: &str, object: u64) -> Result<Option<u64>> {
    let image = Image::open(pool, name, Opening::ReadOnly).await?;
    let revision = image.revision().await?;
    match pool.store.read(&revision.object_id(ObjectNo(object)), SnapId::HEAD, ReadOp::stat()).await {
        Ok(reply) => Ok(Some(reply.size)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[test]
fn discarding_an_object_that_shows_the_parent_leaves_an_empty_one_and_any_other_goes() {
    block_on(async {
        let pool = family(true).await.unwrap();
        discard(&pool, "child", 0, OBJECT).await.unwrap();
        assert_eq!(object_size(&pool, "child", 0).await.unwrap(), Some(0));
        assert_eq!(objects_at(&pool, "child", SnapId::HEAD).await.unwrap(), [0, 7, 7, 7]);
        discard(&pool, "parent", 0, OBJECT).await.unwrap();
        assert_eq!(object_size(&pool, "parent", 0).await.unwrap(), None);
        assert_eq!(objects_at(&pool, "child", SnapId::HEAD).await.unwrap(), [0, 7, 7, 7]);
    });
}

#[test]
fn one_block_can_be_discarded_out_of_the_parents_bytes() {
    block_on(async {
        let pool = family(true).await.unwrap();
        discard(&pool, "child", 4096, 4096).await.unwrap();
        let device = ImageDevice::open(open(&pool, "child").await.unwrap()).await.unwrap();
        let bytes = device.read(0, OBJECT).await.unwrap();
        let holds = |range: std::ops::Range<usize>, value: u8| bytes[range].iter().all(|b| *b == value);
        assert!(holds(0..4096, 7) && holds(4096..8192, 0) && holds(8192..OBJECT_LEN, 7));
    });
}

#[test]
fn a_first_write_brings_the_parents_bytes_along_shared_or_copied() {
    for share in [true, false] {
        block_on(async {
            let pool = family(share).await.unwrap();
            write(&pool, "child", 100, vec![1; 50]).await.unwrap();
            assert_eq!(object_size(&pool, "child", 0).await.unwrap(), Some(OBJECT));
            let revision = open(&pool, "child").await.unwrap().revision().await.unwrap();
            let bytes = revision.read_bytes(0, OBJECT).await.unwrap();
            let mut expected = vec![7; OBJECT_LEN];
            expected[100..150].fill(1);
            assert_eq!(bytes, expected);
        });
    }
}

#[test]
fn a_snapshot_made_before_the_first_write_keeps_showing_the_parent() {
    block_on(async {
        let pool = family(true).await.unwrap();
        let then = snap(&pool, "child", "t").await.unwrap();
        write(&pool, "child", 0, vec![1; OBJECT_LEN]).await.unwrap();
        assert_eq!(objects_at(&pool, "child", then).await.unwrap(), [7, 7, 7, 7]);
        assert_eq!(objects_at(&pool, "child", SnapId::HEAD).await.unwrap(), [1, 7, 7, 7]);
    });
}

#[test]
fn deep_flatten_frees_head_and_snapshots() {
    block_on(async {
        let pool = family(true).await.unwrap();
        let then = snap(&pool, "child", "t").await.unwrap();
        write(&pool, "child", 0, vec![1; OBJECT_LEN]).await.unwrap();
        discard(&pool, "child", OBJECT, OBJECT).await.unwrap();
        assert_eq!(flattened(&pool, "child").await.unwrap(), Flattened::Everything);
        assert!(!open(&pool, "child").await.unwrap().header.needs_parent());
        assert_eq!(objects_at(&pool, "child", then).await.unwrap(), [7, 7, 7, 7]);
        assert_eq!(objects_at(&pool, "child", SnapId::HEAD).await.unwrap(), [1, 0, 7, 7]);
    });
}

#[test]
fn a_snapshot_that_cannot_be_served_keeps_its_link_when_head_is_flattened() {
    block_on(async {
        let pool = family(true).await.unwrap();
        let then = snap(&pool, "child", "t").await.unwrap();
        // HEAD loses half of the parent; what is written there now lies above the snapshot.
        set_size(&pool, "child", 2 * OBJECT).await.unwrap();
        set_size(&pool, "child", SIZE).await.unwrap();
        write(&pool, "child", 3 * OBJECT, vec![1; OBJECT_LEN]).await.unwrap();
        assert_eq!(flattened(&pool, "child").await.unwrap(), Flattened::Head);
        assert_eq!(objects_at(&pool, "child", then).await.unwrap(), [7, 7, 7, 7]);
        assert_eq!(objects_at(&pool, "child", SnapId::HEAD).await.unwrap(), [7, 7, 0, 1]);
        let mut image = open(&pool, "child").await.unwrap();
        assert!(image.header.needs_parent());
        snapshot::remove(&mut image, "t").await.unwrap();
        assert!(!image.header.needs_parent(), "the last snapshot took the link along");
    });
}

#[test]
fn what_head_lost_of_the_parent_by_shrinking_is_zeros_and_comes_back_with_a_rollback() {
    block_on(async {
        let pool = family(true).await.unwrap();
        let then = snap(&pool, "child", "t").await.unwrap();
        set_size(&pool, "child", OBJECT).await.unwrap();
        set_size(&pool, "child", SIZE).await.unwrap();
        assert_eq!(objects_at(&pool, "child", SnapId::HEAD).await.unwrap(), [7, 0, 0, 0]);
        let mut image = open(&pool, "child").await.unwrap();
        let request = DiffRequest {
            from: Some(then),
            to: SnapId::HEAD,
            granularity: Granularity::Exact,
            parent: ParentData::Included,
        };
        let changes = Diff::open(&image, request).await.unwrap().collect(&mut silent).await.unwrap();
        assert_eq!(changes.len(), 1);
        let lost = (changes[0].offset, changes[0].length, changes[0].state);
        assert_eq!(lost, (OBJECT, 3 * OBJECT, ExtentState::Zero));
        rollback::rollback(&mut image, then, &mut silent).await.unwrap();
        image.close().await.unwrap();
        assert_eq!(objects_at(&pool, "child", SnapId::HEAD).await.unwrap(), [7, 7, 7, 7]);
    });
}

#[test]
fn used_space_counts_what_each_snapshot_added_and_not_the_parent() {
    block_on(async {
        let pool = family(true).await.unwrap();
        write(&pool, "child", 0, vec![1; 100]).await.unwrap();
        snap(&pool, "child", "t").await.unwrap();
        write(&pool, "child", 0, vec![2; 4096]).await.unwrap();
        let image = Image::open(&pool, "child", Opening::ReadOnly).await.unwrap();
        for (granularity, since) in [(Granularity::Exact, 4096), (Granularity::WholeObject, OBJECT)] {
            let lines = usage(&image, None, granularity, &mut silent).await.unwrap();
            let used: Vec<_> = lines.iter().map(|l| (l.snap_name.as_deref(), l.used_bytes)).collect();
            assert_eq!(used, [(Some("t"), OBJECT), (None, since)], "{granularity:?}");
            assert!(lines.iter().all(|l| l.provisioned_bytes == SIZE));
        }
    });
}

#[test]
fn a_copy_reads_like_its_source_whatever_the_layout_and_wants_room_for_it() {
    block_on(async {
        let pool = family(true).await.unwrap();
        let options = CreateOptions { order: Some(13), ..CreateOptions::sized(SIZE) };
        create(&pool, "copy", &options).await.unwrap();
        let mut target = open(&pool, "copy").await.unwrap();
        let source = Image::open(&pool, "child", Opening::ReadOnly).await.unwrap();
        copy::copy(&source, &mut target, &mut silent).await.unwrap();
        target.close().await.unwrap();
        assert_eq!(objects_at(&pool, "copy", SnapId::HEAD).await.unwrap(), [7, 7, 7, 7]);
        create(&pool, "small", &CreateOptions::sized(SIZE - 1)).await.unwrap();
        let mut small_target = open(&pool, "small").await.unwrap();
        let refused = copy::copy(&source, &mut small_target, &mut silent).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid);
    });
}

/// A clone beside `child` that is to be a copy of it, opened.
async fn beside(pool: &Pool, name: &str, order: u8) -> Result<Image> {
    let source = Image::open(pool, "child", Opening::ReadOnly).await?;
    let record = copy::parent_to_share(&source)?.unwrap();
    let parent = clone::open_parent(&source, &record).await?;
    let options = CreateOptions { order: Some(order), ..CreateOptions::sized(source.header.size) };
    clone::create_exactly(&parent, pool, name, CloneFormat::V2, &options).await?;
    open(pool, name).await
}

#[test]
fn a_copy_beside_a_clone_shows_as_much_of_the_parent_at_each_snapshot_and_holds_what_the_clone_holds() {
    for (share, list_snaps, order) in
        [(true, true, 14), (false, true, 14), (true, true, 13), (false, false, 15), (false, false, 14)]
    {
        block_on(async {
            let env = test_env(3);
            let capabilities = Capabilities { share, copy: None, list_snaps, list_watchers: true };
            let pool = family_in(MemStore::with_capabilities(&env, capabilities), env).await.unwrap();
            write(&pool, "child", 0, vec![1; OBJECT_LEN]).await.unwrap();
            snap(&pool, "child", "t1").await.unwrap();
            // An empty object hides the parent, shrinking loses half of it, and a rollback brings it back as data.
            discard(&pool, "child", OBJECT, OBJECT).await.unwrap();
            set_size(&pool, "child", 2 * OBJECT).await.unwrap();
            set_size(&pool, "child", SIZE).await.unwrap();
            snap(&pool, "child", "t2").await.unwrap();
            let mut image = open(&pool, "child").await.unwrap();
            snapshot::protect(&mut image, "t2").await.unwrap();
            let first = image.header.user_snap("t1").unwrap().id;
            rollback::rollback(&mut image, first, &mut silent).await.unwrap();
            image.close().await.unwrap();
            let source = Image::open(&pool, "child", Opening::ReadOnly).await.unwrap();
            let mut target = beside(&pool, "copy", order).await.unwrap();
            copy::deep_copy(&source, &mut target, &mut silent).await.unwrap();
            let header = Arc::clone(&target.header);
            target.close().await.unwrap();
            let at = |name: &str| header.user_snap(name).unwrap().clone();
            assert_eq!(objects_at(&pool, "copy", at("t1").id).await.unwrap(), [1, 7, 7, 7]);
            assert_eq!(objects_at(&pool, "copy", at("t2").id).await.unwrap(), [1, 0, 0, 0]);
            assert_eq!(objects_at(&pool, "copy", SnapId::HEAD).await.unwrap(), [1, 7, 7, 7]);
            let overlaps =
                [at("t1").overlap(), at("t2").overlap(), header.parent.clone().unwrap().head_overlap];
            assert_eq!(overlaps, [Some(SIZE), Some(2 * OBJECT), Some(2 * OBJECT)]);
            assert_eq!(at("t2").protection, ferry_image::encoding::Protection::Protected);
            let parent = Image::open(&pool, "parent", Opening::ReadOnly).await.unwrap();
            let children = clone::children(&parent, SnapId::HEAD).await.unwrap();
            let names: Vec<_> = children.iter().map(|c| c.name.as_str()).collect();
            assert_eq!(names, ["child", "copy"]);
        });
    }
}

#[test]
fn a_copy_beside_a_clone_takes_no_data_of_the_parent() {
    block_on(async {
        let pool = family(false).await.unwrap();
        write(&pool, "child", 0, vec![1; OBJECT_LEN]).await.unwrap();
        let source = Image::open(&pool, "child", Opening::ReadOnly).await.unwrap();
        let mut target = beside(&pool, "copy", 14).await.unwrap();
        copy::deep_copy(&source, &mut target, &mut silent).await.unwrap();
        target.close().await.unwrap();
        assert_eq!(objects_at(&pool, "copy", SnapId::HEAD).await.unwrap(), [1, 7, 7, 7]);
        assert_eq!(object_size(&pool, "copy", 0).await.unwrap(), Some(OBJECT));
        for object in 1..4 {
            assert_eq!(object_size(&pool, "copy", object).await.unwrap(), None);
        }
        // A clone of something else is no target: what it shows would shine through.
        snap(&pool, "child", "t").await.unwrap();
        let other = Image::open(&pool, "child", Opening::ReadOnly).await.unwrap().at_snapshot("t").unwrap();
        clone::create(&other, &pool, "grandchild", CloneFormat::V2, &CreateOptions::default()).await.unwrap();
        let mut wrong = open(&pool, "grandchild").await.unwrap();
        let refused = copy::deep_copy(&source, &mut wrong, &mut silent).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid);
    });
}

#[test]
fn extents_name_what_holds_bytes_and_what_became_zeros_and_a_copy_keeps_long_parts() {
    block_on(async {
        let pool = family(true).await.unwrap();
        write(&pool, "child", 0, vec![1; OBJECT_LEN]).await.unwrap();
        let then = snap(&pool, "child", "t").await.unwrap();
        discard(&pool, "child", 4096, 4096).await.unwrap();
        let image = Image::open(&pool, "child", Opening::ReadOnly).await.unwrap();
        let list = async |from, granularity, parent| {
            let request = DiffRequest { from, to: SnapId::HEAD, granularity, parent };
            let changes = Diff::open(&image, request).await.unwrap().collect(&mut silent).await.unwrap();
            changes.iter().map(|c| (c.offset, c.length, c.state == ExtentState::Data)).collect::<Vec<_>>()
        };
        let (all, own) = (ParentData::Included, ParentData::Excluded);
        assert_eq!(list(Some(then), Granularity::Extents, all).await, [(4096, 4096, false)]);
        assert_eq!(list(Some(then), Granularity::Exact, all).await, [(4096, 4096, true)]);
        let rest = SIZE - 8192;
        assert_eq!(list(None, Granularity::Extents, all).await, [(0, 4096, true), (8192, rest, true)]);
        assert_eq!(list(None, Granularity::Extents, own).await, [(0, 4096, true), (8192, 8192, true)]);
        assert_eq!(list(None, Granularity::Exact, own).await, [(0, OBJECT, true)]);
        let device = ImageDevice::open(image.clone()).await.unwrap();
        let extents = device.extents(0, OBJECT).await.unwrap();
        let extents: Vec<_> =
            extents.iter().map(|c| (c.offset, c.length, c.state == ExtentState::Data)).collect();
        assert_eq!(extents, [(0, 4096, true), (4096, 4096, false), (8192, 8192, true)]);
    });
}
