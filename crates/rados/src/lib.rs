//! A `Store` on Ceph, through librados.
//!
//! librados is loaded when a cluster is first connected to ([`RadosStore::connect`]); where it is not installed, that is
//! `Unsupported` and everything else works. `ffi` holds the C signatures, `handle` an owner for each kind of C
//! handle; all `unsafe` is in these two. Callbacks fill a oneshot or a watch's queue and nothing else.

#![deny(unsafe_code)]

mod errno;
#[allow(unsafe_code)]
mod ffi;
#[allow(unsafe_code)]
mod handle;
mod limits;
mod lock;
mod store;

pub use handle::Options;
pub use store::RadosStore;
