//! The system under seeds.

mod crash;
