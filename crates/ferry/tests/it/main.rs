//! The built program, run as a user runs it.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod ceph;
mod clones;
mod demo;
mod device;
mod durability;
mod errors;
mod foreign;
mod foreign_job;
mod guest;
mod harness;
mod images;
mod import_only;
mod kills;
mod live;
mod main_job;
mod migration;
mod nbd;
mod owner;
mod quick_start;
mod served;
mod settings;
mod snapshots;
mod tidy;
mod transfer;
mod trash;
