//! The composition root: every command's one implementation over the stores that the configuration names.
#![forbid(unsafe_code)]

pub mod api;
pub mod backend;
pub mod config;
pub mod env;
mod execute;
pub mod options;
pub mod spec;

pub use execute::Node;
