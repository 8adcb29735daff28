//! Clones of snapshots.
