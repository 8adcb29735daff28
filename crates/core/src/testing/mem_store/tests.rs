//! The contract, and what only this store shows.

use super::*;
use crate::testing::test_env;

#[test]
fn an_op_that_fails_halfway_leaves_nothing_behind() {
    let store = MemStore::new(&test_env(1));
    let pool = store.create_pool("p").wait().unwrap();
    let object = ObjectId::new(pool, &Namespace::default(), "o");
    store.write(&object, WriteOp::new().write(0, &b"old"[..])).wait().unwrap();
    let missing = ObjectId::new(pool, &Namespace::default(), "missing");
    let share =
        Effect::ShareRange { source: missing, at: SnapId::HEAD, offset: 0, length: 4096, target_offset: 0 };
    let error = store.write(&object, WriteOp::new().write(0, &b"new"[..]).effect(share)).wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let reply = store.read(&object, SnapId::HEAD, ReadOp::data(0, 10)).wait().unwrap();
    assert_eq!(reply.data.to_vec(0, reply.size), b"old");
}
