//! What tests of this room share.

use std::sync::{Arc, OnceLock};

use ferry_core::{BlockSource, SourcePoint};
use tokio::runtime::Runtime;

use crate::env::{Env, NoSecrets};
use crate::spec::{Origin, SourceSpec};

/// An environment whose runtime lives as long as the tests.
pub(crate) fn env() -> Env {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    });
    Env { runtime: runtime.handle().clone(), secrets: Arc::new(NoSecrets) }
}

/// Opens a spec.
pub(crate) fn open(json: &str) -> ferry_core::Result<Arc<dyn BlockSource>> {
    let spec = SourceSpec::parse(json)?;
    match spec.origin() {
        Origin::Image(image) => crate::open(image, &env()).wait(),
        Origin::Native(_) => panic!("a native spec is not opened here"),
    }
}

/// All bytes at a point.
pub(crate) fn bytes_at(source: &Arc<dyn BlockSource>, at: SourcePoint) -> Vec<u8> {
    let size = source.size_at(at);
    source.read(at, 0, size).wait().unwrap().to_vec(0, size)
}
