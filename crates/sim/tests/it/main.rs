//! The system under seeds.

mod crash;
mod flip;
mod images;
mod process;
