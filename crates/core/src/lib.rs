//! The vocabulary: what a block device, a store and an error are.
//!
//! Three traits meet here: [`Store`] (below: pools of sparse objects), `BlockDevice` (above: what is
//! served) and `BlockSource` (beside: foreign images). This crate does no I/O, starts no thread
//! and knows no clock; [`mod@env`] is how the others are given those.

pub mod buffer;
pub mod checksum;
pub mod denc;
pub mod device;
pub mod env;
pub mod error;
pub mod ident;
pub mod layer;
pub mod limits;
pub mod lock;
pub mod reply;
pub mod size;
pub mod source;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
pub mod watch;

pub use buffer::Buffer;
pub use device::{BlockDevice, DeviceExtent, ExtentState};
pub use env::{Clock, Env, Rng, Timestamp};
pub use error::{Errno, Error, ErrorKind, Result};
pub use ident::{ClientId, Namespace, ObjectId, PoolId, SnapId};
pub use layer::{Layer, Layered};
pub use reply::Reply;
pub use source::{BlockSource, SourcePoint, SourceSnapshot};
pub use store::{
    Capabilities, Effect, Guard, ObjectPage, OmapPage, OmapRead, PoolFlags, PoolInfo, PoolStats, ReadOp,
    ReadReply, SnapContext, SnapSet, SparseData, Stamp, Store, WriteOp, WriteReply,
};
