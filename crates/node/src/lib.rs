//! The composition root: every command's one implementation over the stores that the configuration names.
#![forbid(unsafe_code)]

pub mod api;
pub mod backend;
pub mod cancel;
pub mod config;
mod control;
mod devices;
pub mod env;
mod execute;
mod exporter;
mod host;
mod jobs;
mod offered;
pub mod options;
pub mod serve;
mod shared;
mod sources;
pub mod spec;

pub use execute::Node;
pub use ferry_serve::kernel::be_watchdog;
