//! The trash of a pool.
