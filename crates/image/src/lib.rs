//! Images in a pool: layout, snapshots, clones, locks; a `BlockDevice` out of a `Store`.
//!
//! Every byte of metadata is what RBD format 2 writes (`docs/format/rbd-metadata.md`), on every store, so that `rbd`
//! and ferry can use the same images.
#![forbid(unsafe_code)]

pub mod clone;
pub mod copy;
pub mod copyup;
pub mod create;
pub mod device;
pub mod diff;
pub mod digest;
pub mod encoding;
pub mod feature;
pub mod features;
pub mod flatten;
pub mod header;
pub mod history;
pub mod id;
pub mod image;
pub mod io;
pub mod layout;
pub mod limits;
pub mod live_map;
pub mod map_check;
pub mod metadata;
pub mod object_map;
pub mod peers;
pub mod pool;
pub mod progress;
pub mod remove;
pub mod rename;
pub mod resize;
pub mod revision;
pub mod rollback;
pub mod session;
pub mod snapshot;
pub mod sparsify;
pub mod status;
pub mod stream;
#[cfg(test)]
mod test_world;
#[cfg(feature = "testing")]
pub mod testing;
pub mod times;
pub mod transfer;
pub mod trash;
pub mod usage;
pub mod zeroes;
