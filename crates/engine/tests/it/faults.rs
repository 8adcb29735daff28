//! An operation of the disk that fails: the store refuses to go on, and what was flushed is there when it is opened again.

use std::sync::Arc;

use ferry_core::testing::test_env;
use ferry_core::{ErrorKind, Namespace, ObjectId, PoolId, ReadOp, SnapId, Store, WriteOp};
use ferry_engine::disk::Disk;
use ferry_engine::disk::sim::SimDisk;
use ferry_engine::{Engine, Options};

const OPTIONS: Options = Options { segment_blocks: 64, capacity_bytes: 0, cache_bytes: 1 << 20 };

fn object(n: u8) -> ObjectId {
    ObjectId::new(PoolId(1), &Namespace::default(), &format!("o{n}"))
}

/// Writes and flushes 40 objects, with a checkpoint now and then. Returns how many were flushed, and the error.
fn play(store: &Engine) -> (u8, Option<ferry_core::Error>) {
    for n in 0..40 {
        let step = || {
            store
                .write(&object(n), WriteOp::new().write(0, vec![n; 30_000]).omap_set("n", vec![n]))
                .wait()?;
            store.flush().wait()?;
            if n % 10 == 9 {
                store.checkpoint()?;
            }
            Ok(())
        };
        if let Err(e) = step() {
            return (n, Some(e));
        }
    }
    (40, None)
}

#[test]
fn any_failing_disk_operation_stops_the_store_and_costs_nothing_flushed() {
    let count = {
        let disk = Arc::new(SimDisk::new(0));
        let store = Engine::create(Arc::clone(&disk) as Arc<dyn Disk>, test_env(0), OPTIONS).unwrap();
        store.create_pool("p").wait().unwrap();
        assert_eq!(play(&store).0, 40);
        disk.operations()
    };
    let mut failed = 0;
    for at in 0..count {
        let disk = Arc::new(SimDisk::new(at));
        let Ok(store) = Engine::create(Arc::clone(&disk) as Arc<dyn Disk>, test_env(0), OPTIONS) else {
            continue;
        };
        store.create_pool("p").wait().unwrap();
        disk.fail_once(at, ErrorKind::Io);
        let (flushed, error) = play(&store);
        let Some(error) = error else { continue };
        failed += 1;
        assert_eq!(error.kind(), ErrorKind::Io, "operation {at}: {}", error.chain());
        let after = store
            .write(&object(99), WriteOp::new().write(0, vec![1]))
            .wait()
            .and_then(|_| store.flush().wait());
        let poisoned = after.as_ref().is_err_and(|e| e.kind() == ErrorKind::Poisoned);
        // A file that could not be made leaves the store as it was; after a failed sync or write nothing may be called durable.
        assert!(poisoned || (after.is_ok() && !disk.syncs().contains(&at)), "operation {at}: {after:?}");
        drop(store);
        for image in [disk.copy(), disk.crash(at)] {
            let store = Engine::open(Arc::new(image), test_env(1), OPTIONS).unwrap();
            for n in 0..flushed {
                let reply = store.read(&object(n), SnapId::HEAD, ReadOp::data(0, 1 << 20)).wait().unwrap();
                assert!(reply.data.to_vec(0, reply.size) == vec![n; 30_000], "operation {at}, object {n}");
            }
            assert!(store.check().unwrap().is_clean(), "operation {at}");
        }
    }
    assert!(failed > 60, "{failed} of {count} operations failed a step");
}
