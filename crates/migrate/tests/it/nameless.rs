//! What another program leaves that dies while it prepares a migration: a target that says nothing of it, or a source that was on its
//! way to the trash.

use std::time::Duration;

use bytes::Bytes;
use ferry_core::testing::{MemStore, test_env};
use ferry_core::{BlockDevice, Effect, ErrorKind, Namespace, Store, WriteOp};
use ferry_image::create::{CreateOptions, create};
use ferry_image::device::ImageDevice;
use ferry_image::encoding::{
    DIRECTORY_OBJECT, MigrationState, TrashSource, TrashState, directory_id, directory_name, encode_string,
    id_object,
};
use ferry_image::header::{self, Opening};
use ferry_image::image::Image;
use ferry_image::pool::Pool;
use ferry_image::progress::silent;
use ferry_image::trash;
use ferry_migrate::{AbortOptions, End, Ends, PrepareOptions, abort, prepare, revive};
use futures_executor::block_on;

/// Bytes of an image.
const SIZE: u64 = 64 << 10;

/// The image that moves.
async fn device(from: &Pool) -> ImageDevice {
    ImageDevice::open(Image::open(from, "a", Opening::ReadWrite).await.unwrap()).await.unwrap()
}

/// Two pools of a store, a namespace in the first, and an image with data there that was prepared to move to the second.
async fn prepared() -> (Pool, Pool) {
    let env = test_env(7);
    let store = MemStore::new(&env);
    for name in ["p", "q"] {
        store.create_pool(name).await.unwrap();
    }
    let pool = async |name: &str| {
        Pool::open(store.another_client(), env.clone(), name, &Namespace::default()).await.unwrap()
    };
    let (from, to) = (pool("p").await, pool("q").await);
    from.create_namespace("n").await.unwrap();
    let from = from.in_namespace(&Namespace::new("n"));
    create(&from, "a", &CreateOptions { order: Some(14), ..CreateOptions::sized(SIZE) }).await.unwrap();
    let device = ImageDevice::open(Image::open(&from, "a", Opening::ReadWrite).await.unwrap()).await.unwrap();
    device.write(0, Bytes::from(vec![7; usize::try_from(SIZE).unwrap()])).await.unwrap();
    device.close().await.unwrap();
    prepare(&from, "a", &to, "b", &PrepareOptions::default()).await.unwrap();
    (from, to)
}

/// Makes the target one that says nothing, and the source say how far it came.
async fn silence(ends: &Ends, state: MigrationState) {
    let object = |end: &End| header::object(end.pool.id(), &end.pool.namespace, &end.id);
    header::update(&*ends.target.pool.store, &object(&ends.target), |h| {
        h.end_migration();
        h.intent = None;
        Ok(())
    })
    .await
    .unwrap();
    header::update(&*ends.source.pool.store, &object(&ends.source), |h| h.set_migration_state(state, ""))
        .await
        .unwrap();
}

#[test]
fn its_name_leads_to_the_migration_which_is_aborted() {
    block_on(async {
        let (from, to) = prepared().await;
        silence(&Ends::find(&to, "b").await.unwrap(), MigrationState::Preparing).await;
        // A plain image beside it is nobody's target.
        create(&to, "plain", &CreateOptions::sized(SIZE)).await.unwrap();
        let other = Ends::find(&to, "plain").await.unwrap_err();
        assert_eq!((other.kind(), other.to_string().contains("not migrating")), (ErrorKind::Invalid, true));
        let ends = Ends::find(&to, "b").await.unwrap();
        assert_eq!((ends.source.name.as_str(), ends.state()), ("a", MigrationState::Preparing));
        abort(ends, AbortOptions { accept_loss: false }, &mut silent).await.unwrap();
        assert_eq!(to.find_id("b").await.unwrap(), None);
        let device = device(&from).await;
        assert!(device.read(0, SIZE).await.unwrap().iter().all(|b| *b == 7));
        device.close().await.unwrap();
    });
}

#[test]
fn one_that_was_ready_is_an_image_of_its_own() {
    block_on(async {
        for state in [MigrationState::Prepared, MigrationState::Executing, MigrationState::Executed] {
            let (_, to) = prepared().await;
            silence(&Ends::find(&to, "b").await.unwrap(), state).await;
            assert_eq!(Ends::find(&to, "b").await.unwrap_err().kind(), ErrorKind::Invalid, "{state:?}");
        }
    });
}

/// How far a source came on its way to the trash.
#[derive(Clone, Copy, Debug)]
enum Left {
    /// It is noted there.
    Named,
    /// It cannot be opened by its name, but is listed.
    Listed,
    /// Only the trash has it, but for the last step.
    Moving,
    /// As above, all done.
    Gone,
}

/// Two pools, and an image in the first that another program began to move.
async fn begun(left: Left) -> (Pool, Pool) {
    let (from, to) = prepared().await;
    let ends = Ends::find(&to, "b").await.unwrap();
    abort(ends, AbortOptions { accept_loss: false }, &mut silent).await.unwrap();
    let id = from.find_id("a").await.unwrap().unwrap();
    trash::unlink(&from, "a", &id, TrashSource::Migration, Duration::ZERO).await.unwrap();
    let write = async |object: &str, op| from.store.write(&from.object(object), op).await.unwrap();
    if matches!(left, Left::Named | Left::Listed) {
        let listed = WriteOp::new().omap_set(directory_name("a"), encode_string(&id));
        write(DIRECTORY_OBJECT, listed.omap_set(directory_id(&id), encode_string("a"))).await;
    }
    if matches!(left, Left::Named) {
        write(&id_object("a"), WriteOp::new().effect(Effect::WriteFull(encode_string(&id)))).await;
    }
    if !matches!(left, Left::Gone) {
        trash::set_state(&from, &id, TrashState::Moving, &[TrashState::Normal]).await.unwrap();
    }
    (from, to)
}

#[test]
fn a_source_on_its_way_to_the_trash_is_prepared_or_gets_its_name_back() {
    block_on(async {
        for left in [Left::Named, Left::Listed, Left::Moving, Left::Gone] {
            let (from, to) = begun(left).await;
            prepare(&from, "a", &to, "c", &PrepareOptions::default()).await.unwrap();
            assert_eq!(Ends::find(&from, "a").await.unwrap().target.name, "c", "{left:?}");

            let (from, _) = begun(left).await;
            // One that is open somewhere: that program may be at it.
            let id = trash::all_by_name(&from, "a", TrashSource::Migration).await.unwrap().remove(0).0;
            let open = Image::open_by_id(&from, &id, Opening::ReadWrite).await.unwrap();
            assert_eq!(revive(&from, "a").await.unwrap_err().kind(), ErrorKind::Busy, "{left:?}");
            open.close().await.unwrap();
            assert!(revive(&from, "a").await.unwrap(), "{left:?}");
            assert_eq!(trash::list(&from).await.unwrap(), [], "{left:?}");
            assert_eq!(from.images().await.unwrap(), [("a".to_owned(), id)], "{left:?}");
            let device = device(&from).await;
            assert!(device.read(0, SIZE).await.unwrap().iter().all(|b| *b == 7));
            device.close().await.unwrap();
            assert!(!revive(&from, "a").await.unwrap(), "a plain image is left alone");
        }
    });
}

#[test]
fn an_image_that_has_the_name_by_now_is_left_alone() {
    block_on(async {
        let (from, _) = begun(Left::Gone).await;
        create(&from, "a", &CreateOptions::sized(SIZE)).await.unwrap();
        assert!(!revive(&from, "a").await.unwrap());
        assert_eq!(trash::list(&from).await.unwrap().len(), 1);
    });
}
