//! A target that says nothing of its migration, as a program leaves it that dies while it prepares it.

use bytes::Bytes;
use ferry_core::testing::{MemStore, test_env};
use ferry_core::{BlockDevice, ErrorKind, Namespace, Store};
use ferry_image::create::{CreateOptions, create};
use ferry_image::device::ImageDevice;
use ferry_image::encoding::MigrationState;
use ferry_image::header::{self, Opening};
use ferry_image::image::Image;
use ferry_image::pool::Pool;
use ferry_image::progress::silent;
use ferry_migrate::{AbortOptions, End, Ends, PrepareOptions, abort, prepare};
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
